"""Each exact saving against the plain path: the same numbers, for less work."""

import math
from functools import partial

import pytest
import torch
from conftest import changed, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from minflextok import FlexTok, savings
from minflextok.draws import Draws
from minflextok.training.objective import TokenizerObjective
from minflextok.training.parallel import checkpoint_activations, compile_blocks

VARIANTS = {
    "apart": {},
    "alike": {"separate_adaln": False, "learned_null": False, "latent_penalty": 0.1},
    "full attention": {"causal_registers": False},
    "one block": {"enc_depth": 1, "dec_depth": 1},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def tok(request) -> FlexTok:
    return randomised(changed(**request.param))


def plain(tok: FlexTok) -> FlexTok:
    """The same weights without savings."""
    twin = FlexTok(tok.config).eval()
    twin.load_state_dict(tok.state_dict())
    twin.savings = False
    return twin


def close(saved, expected):
    assert (saved - expected).abs().max() <= 1e-5 * expected.abs().max()


def count_rows(module) -> list[int]:
    """Grows by the number of positions that each call of a module computes, per image."""
    rows = []
    module.register_forward_hook(lambda _, x, __: rows.append(x[0].shape[-2]))
    return rows


# ---- encoder -------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_prefix_without_a_mask(tok, images):
    z = tok.encoder(images)
    for k in range(1, 7):
        close(savings.encode_registers(tok.encoder, images, k), z[:, :k])
        assert torch.equal(tok.encode(images, k), plain(tok).encode(images, k))


def test_later_registers_and_the_last_patches_are_not_computed(images):
    tok = randomised()
    first, last = count_rows(tok.encoder.blocks[0].mlp), count_rows(tok.encoder.blocks[-1].mlp)
    tok.encode(images, 2)
    assert first == [16 + 2] and last == [2]


# ---- decoder -------------------------------------------------------------------------------------


@torch.no_grad()
def test_equal_registers_merged_into_one(tok, images):
    """At the level of the attention: one key with log n on its logit equals n equal keys."""
    attn = tok.decoder.blocks[0].attn
    x = torch.randn(3, 10, 64)
    for kept in (0, 4, 8, 9):
        repeated = torch.cat([x[:, : kept + 1], x[:, kept : kept + 1].expand(-1, 9 - kept, -1)], 1)
        merged, bias = savings.merge_dropped(repeated, kept)
        assert merged.shape[1] == kept + 1 and (bias is None) == (kept == 9)
        close(attn(merged, bias), attn(repeated)[:, : kept + 1])
        assert bias is None or bias[-1] == pytest.approx(math.log(10 - kept))


@torch.no_grad()
def test_velocity_at_mixed_lengths_and_null(tok, images):
    ids = torch.randint(120, (3, 6), generator=torch.Generator().manual_seed(0))
    t, null = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([False, True, False])
    for lengths in ((1, 4, 6), (2, 1, 3)):
        ragged = [row[:k] for row, k in zip(ids, lengths, strict=True)]
        expected = plain(tok).velocity(images, t, ragged, null)
        close(tok.velocity(images, t, ragged, null), expected)
        assert (expected[0] - expected[2]).abs().max() > 1e-2


def test_dropped_registers_and_the_last_registers_are_not_computed(images):
    tok = randomised()
    first, last = count_rows(tok.decoder.blocks[0].mlp), count_rows(tok.decoder.blocks[-1].mlp)
    tok.velocity(images, 0.5, torch.zeros(3, 2, dtype=torch.long))
    assert first == [16 + 3] and last == [16]  # two registers, one for the four dropped


@pytest.mark.parametrize("options", [{}, {"guidance": 3.0}, {"guidance": 3.0, "apg": True}])
def test_sampling(tok, images, options):
    for k in (1, 6):
        ids = torch.randint(120, (3, k), generator=torch.Generator().manual_seed(k))
        expected = plain(tok).decode(ids, 4, noise=images, **options)
        close(tok.decode(ids, 4, noise=images, **options), expected)


def test_a_guided_step_computes_its_modulations_once(images):
    tok, rows = randomised(), []
    for linear in (tok.decoder.blocks[0].adaln, tok.decoder.head_adaln):
        linear.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))
    tok.decode(tok.encode(images)[:, :2], steps=3, guidance=2.0)
    assert rows == [1] * 6  # one row for all images and both conditions, in each of three steps


@torch.no_grad()
def test_both_conditions_in_one_batch(tok, images, monkeypatch):
    """What a GPU does, on the CPU."""
    monkeypatch.setattr(savings, "one_batch_pays", lambda x_t, num_kept, num_patches: True)
    everyone = torch.ones(3, dtype=torch.bool)
    codes = tok.fsq.ids_to_codes(torch.randint(120, (3, 6)))
    keep_k = torch.tensor([2, 1, 3])
    conditions = [tok.decoder.embed_registers(codes, keep_k, n) for n in (~everyone, everyone)]
    t = torch.tensor([0.3])
    sizes = []
    tok.decoder.head.register_forward_hook(lambda _, x, __: sizes.append(x[0].shape[:2]))
    saved = savings.velocities(tok.decoder, images, t, conditions, [3, 0])
    assert sizes == [(6, 16)]
    for v, registers in zip(saved, conditions, strict=True):
        close(v, tok.decoder(images, t, registers))


# ---- training ------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=7),
    st.sampled_from([0.0, 0.3]),
)
def test_grouped_by_length_the_objective_and_its_gradients_are_the_same(rows, penalty):
    tok = randomised(changed(num_registers=12, latent_penalty=penalty))
    tok.encoder.head.weight.data *= 3  # so that there is a penalty
    objective, g = TokenizerObjective(tok), torch.Generator().manual_seed(0)
    x = torch.rand(len(rows), 3, 8, 8, generator=g) * 2 - 1
    noise, t = torch.randn(x.shape, generator=g), torch.rand(len(rows), generator=g)
    keep_k, null = torch.tensor([k for k, _ in rows]), torch.tensor([n for _, n in rows])
    found = []
    for tok.savings in (True, False):
        tok.zero_grad()
        loss = objective(x, noise, t, keep_k, null)
        loss.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in tok.parameters()]
        found.append([loss.detach(), *(g.clone() for g in grads)])
    for saved, full in zip(*found, strict=True):
        tolerance = 1e-5 * full.abs().max().item() + 1e-7
        torch.testing.assert_close(saved, full, atol=tolerance, rtol=1e-4)


def test_grouping_computes_no_register_that_nobody_keeps(images):
    tok, rows = randomised(), []
    tok.encoder.head.register_forward_hook(lambda _, __, out: rows.append(out.shape[:2]))
    x = images.repeat(3, 1, 1, 1)
    keep_k, null = torch.tensor([1, 1, 2, 2, 3, 4, 5, 6, 6]), torch.tensor([False] * 8 + [True])
    objective = TokenizerObjective(tok)
    objective(x, *objective.draw(x)[:2], keep_k, null)
    # P/8 = 2 registers for the lengths 1, 1, 2, 2 and for the null condition
    assert sorted(rows) == [(2, 4), (2, 6), (5, 2)]


def test_compiled_parts_of_blocks_change_no_gradient(images, monkeypatch):
    """Here, the graphs are traced, but not translated."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    savings._compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    tok, x = randomised(changed(enc_depth=3, dec_depth=3)), images.repeat(3, 1, 1, 1)
    objective, keep_k = TokenizerObjective(tok), torch.tensor([2, 2, 2, 4, 4, 4, 6, 6, 6])
    draws = objective.draw(x)._replace(keep_k=keep_k, null=torch.arange(9) == 0)

    def gradients():
        tok.zero_grad()
        objective(x, *draws).backward()
        return [p.grad for p in tok.parameters()]

    plain = gradients()
    for change in (compile_blocks, checkpoint_activations):
        change(tok)
        for a, b in zip(plain, gradients(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
        if change is compile_blocks:
            # The encoder's blocks and its last one; the decoder's two, with dropped registers and
            # without.
            assert counters["stats"]["unique_graphs"] == 6
    savings._compiled.cache_clear()
    torch._dynamo.reset()


def test_a_teacher_sees_the_same_hidden_patches(tok, images):
    """REPA reads the patches after a block, the last one included."""
    null = torch.tensor([False, False, True])
    draws = Draws(torch.randn_like(images), torch.rand(3), torch.tensor([1, 4, 6]), null)
    hidden = {True: [], False: []}
    for tok.savings, found in hidden.items():
        tok.flow_loss(images, draws, hidden=found)
    assert len(hidden[True]) == tok.config.dec_depth
    for saved, full in zip(*hidden.values(), strict=True):
        close(saved, full)
