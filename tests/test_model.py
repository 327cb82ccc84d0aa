"""Each component against brute force and against the bugs that peers have had."""

import math

import pytest
import torch
from conftest import TINY, changed, randomised
from hypothesis import given, settings
from hypothesis import strategies as st

from minflextok import PRESETS, FlexTok
from minflextok.encoder import prefix_mask
from minflextok.flow import APG, cfg, euler, interpolate, mode_timesteps
from minflextok.fsq import FSQ
from minflextok.nested_dropout import NestedDropout, sample_keep_k
from minflextok.patches import patchify, sincos_positions, unpatchify
from minflextok.transformer import AdaLNBlock

levels_strategy = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)


# ---- patches ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_patchify_by_loops_and_back(p, c, h, w):
    x = torch.randn(2, c, h * p, w * p)
    patches = patchify(x, p)
    for row in range(h):
        for col in range(w):
            flat = [
                x[1, ch, row * p + i, col * p + j]
                for i in range(p)
                for j in range(p)
                for ch in range(c)
            ]
            assert torch.equal(patches[1, row * w + col], torch.stack(flat))
    assert torch.equal(unpatchify(patches, p, h, w), x)


def test_positions_tell_rows_first():
    table = sincos_positions(16, 5)
    assert torch.equal(table[2, 1, :8], table[2, 4, :8])  # same row
    assert torch.equal(table[1, 3, 8:], table[4, 3, 8:])  # same column
    assert table[3, 0, 1] == pytest.approx(math.sin(3 * 10000 ** (-1 / 4)), abs=1e-6)
    assert len(table.flatten(0, 1).unique(dim=0)) == 25


# ---- who sees whom ---------------------------------------------------------------------------------------------------


def test_prefix_mask_by_its_definition():
    mask = prefix_mask(4, 3)
    for q in range(7):
        for k in range(7):
            assert mask[q, k] == (k < 4 or (q >= 4 and k <= q))


def test_a_register_moves_only_itself_and_later_ones(tok, images):
    before = tok.encode_continuous(images)
    tok.encoder.registers.data[3] += torch.randn(64)
    moved = (tok.encode_continuous(images) - before).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False, False, False, True, True, True]


def test_encoding_a_prefix_equals_the_prefix_of_the_encoding(tok, images):
    ids = tok.encode(images)
    assert ids.shape == (3, 6) and ids.dtype == torch.int64
    for k in range(1, 7):
        assert torch.equal(tok.encode(images, k), ids[:, :k])


def test_registers_that_all_see_each_other(images):
    tok = randomised(changed(causal_registers=False))
    before = tok.encode_continuous(images)
    tok.encoder.registers.data[4] = torch.randn(64)
    moved = (tok.encode_continuous(images) - before).abs().amax((0, 2)) > 1e-6
    assert moved.all()  # register 4 reaches the first one too
    torch.testing.assert_close(tok.encoder(images, 2), tok.encode_continuous(images)[:, :2])


def test_images_of_a_batch_do_not_see_each_other(tok, images):
    torch.testing.assert_close(
        tok.encode_continuous(images)[1:2], tok.encode_continuous(images[1:2]), atol=1e-5, rtol=0
    )


# ---- FSQ -------------------------------------------------------------------------------------------------------------


@given(levels_strategy)
@settings(max_examples=25, deadline=None)
def test_fsq_has_exactly_its_levels_and_round_trips(levels):
    fsq = FSQ(levels)
    ids = torch.arange(fsq.vocab_size)
    codes = fsq.ids_to_codes(ids)
    assert torch.equal(fsq.codes_to_ids(codes), ids)
    assert codes.abs().max() <= 1
    z = torch.linspace(-20, 20, 4001)[:, None].expand(-1, len(levels))
    reached, _ = fsq(z)
    assert [len(reached[:, i].unique()) for i in range(len(levels))] == list(levels)
    digits = [int(ids[-1]) // math.prod(levels[:i]) % n for i, n in enumerate(levels)]
    assert digits == [n - 1 for n in levels]


def test_fsq_gradient_is_that_of_the_bound():
    fsq = FSQ((8, 5))
    z = torch.randn(10, 2, requires_grad=True)
    fsq(z)[0].sum().backward()
    straight, z.grad = z.grad.clone(), None
    (fsq.bound(z) / fsq.center).sum().backward()
    torch.testing.assert_close(straight, z.grad)


def test_fsq_stays_exact_in_a_bfloat16_model(tok, images):
    z = torch.randn(50, 3)
    assert torch.equal(tok.fsq(z)[1], tok.bfloat16().fsq(z)[1])


# ---- nested dropout --------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.sampled_from(["uniform", "pow2", "uniform_pow2"]))
@settings(max_examples=40, deadline=None)
def test_keep_k_reaches_what_it_should(K, mode):
    drawn = set(sample_keep_k(4000, K, mode, torch.Generator().manual_seed(0)).tolist())
    powers = {2**i for i in range(7) if 2**i < K} | {K}
    assert drawn == (set(range(1, K + 1)) if mode == "uniform" else powers)


def test_keep_k_frequencies():
    k = sample_keep_k(60_000, 16, "uniform_pow2", torch.Generator().manual_seed(0))
    share = {int(v): (k == v).float().mean().item() for v in k.unique()}
    for v, want in {1: 1 / 16, 2: 1 / 16, 4: 2 / 16, 8: 4 / 16, 16: 8 / 16}.items():
        assert share[v] == pytest.approx(want, abs=0.01)


def test_nested_dropout_by_loops():
    drop = NestedDropout(4)
    torch.nn.init.normal_(drop.mask_token)
    x, keep = torch.randn(3, 5, 4), torch.tensor([1, 5, 3])
    out = drop(x, keep)
    for b in range(3):
        for k in range(5):
            assert torch.equal(out[b, k], x[b, k] if k < keep[b] else drop.mask_token)


def test_output_and_gradient_ignore_codes_from_keep_k_on(tok, images):
    codes = torch.rand(3, 6, 3, requires_grad=True)
    keep, null = torch.tensor([2, 6, 1]), torch.tensor([False, False, False])
    tok.decoder(images, torch.full((3,), 0.5), codes, keep, null).square().sum().backward()
    touched = codes.grad.abs().amax(-1) > 0
    assert touched.sum(1).tolist() == keep.tolist() and touched[:, 0].all()


def test_null_condition_overrides_ids_and_length(tok, images):
    ids = tok.encode(images)
    a = tok.velocity(images, 0.3, ids, null=True)
    torch.testing.assert_close(a, tok.velocity(images, 0.3, None, null=True))
    torch.testing.assert_close(
        a[:1], tok.velocity(images, 0.3, ids[:, :2], null=torch.tensor([True, False, False]))[:1]
    )
    assert (a - tok.velocity(images, 0.3, ids)).abs().max() > 1e-3


# ---- decoder ---------------------------------------------------------------------------------------------------------


def test_at_initialisation_blocks_are_identities_and_velocity_is_zero(images):
    block = AdaLNBlock(64, 64, 2)
    for p in (block.adaln.weight, block.adaln.bias):
        torch.nn.init.zeros_(p)
    x = torch.randn(2, 5, 64)
    assert torch.equal(block(x, block.modulation(torch.randn(2, 64)), 3), x)
    assert torch.equal(
        FlexTok(TINY).velocity(images, 0.5, torch.zeros(3, 6, dtype=torch.long)),
        torch.zeros_like(images),
    )


def test_a_blocks_branch_does_not_feel_the_scale_of_its_input():
    block = AdaLNBlock(64, 64, 2)
    x = torch.randn(2, 5, 64)
    gates = torch.zeros(2, 6, 64)
    gates[:, 0] = 1  # the attention branch alone
    block.adaln.weight.data.zero_()
    block.adaln.bias.data = gates.flatten()
    m = block.modulation(torch.randn(2, 64))
    torch.testing.assert_close(block(x, m, 3) - x, block(7 * x, m, 3) - 7 * x, atol=1e-4, rtol=1e-3)


def test_patches_and_registers_are_modulated_apart():
    block = AdaLNBlock(64, 64, 2)
    block.adaln.weight.data.zero_()
    bias = torch.zeros(2, 6, 64)
    bias[1, :2] = 1  # the registers' gates
    block.adaln.bias.data = bias.flatten()
    x = torch.randn(2, 5, 64)
    out = block(x, block.modulation(torch.randn(2, 64)), 3)
    assert (
        torch.equal(out[:, :3], x[:, :3]) and (out[:, 3:] - x[:, 3:]).abs().min(0).values.max() > 0
    )


def test_a_guided_step_computes_its_modulations_once(tok, images):
    rows = []
    for linear in (tok.decoder.blocks[0].adaln, tok.decoder.head_adaln):
        linear.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))
    tok.decode(tok.encode(images)[:, :2], steps=3, guidance=2.0)
    assert (
        rows == [1] * 6
    )  # one row for all images and both halves of guidance, in each of three steps


def test_one_timestep_for_all_equals_one_each(tok, images):
    ids = tok.encode(images)
    torch.testing.assert_close(
        tok.velocity(images, 0.4, ids),
        tok.velocity(images, torch.full((3,), 0.4), ids),
        atol=1e-5,
        rtol=0,
    )


# ---- flow ------------------------------------------------------------------------------------------------------------


def test_time_runs_from_image_to_noise():
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(interpolate(x, noise, torch.zeros(2)), x)
    assert torch.equal(interpolate(x, noise, torch.ones(2)), noise)
    h = 1e-3
    slope = (
        interpolate(x, noise, torch.full((2,), 0.5 + h))
        - interpolate(x, noise, torch.full((2,), 0.5))
    ) / h
    torch.testing.assert_close(slope, noise - x, atol=1e-2, rtol=0)


@pytest.mark.parametrize("steps", [1, 3, 25])
def test_euler_is_exact_on_straight_lines(steps):
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    seen = []
    out = euler(lambda _, t: seen.append(t) or noise - x, noise, steps)
    torch.testing.assert_close(out, x, atol=1e-5, rtol=0)
    assert seen == [i / steps for i in range(steps, 0, -1)]


def test_mode_timesteps_stay_in_range_and_favour_the_middle():
    u = torch.linspace(0, 1, 10_001)
    t = mode_timesteps(u)
    assert t[0] == 1 and abs(t[-1]) < 1e-6 and (t.diff() <= 0).all()
    assert ((t > 0.3) & (t < 0.7)).float().mean() > 0.43  # uniform: 0.4
    assert torch.equal(mode_timesteps(u, 0.0), 1 - u)


def test_guidance_formulas():
    c, u = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(cfg(c, u, 1.0), c)
    torch.testing.assert_close(cfg(c, u, 0.0), u)
    step = APG(momentum=0, threshold=1e9)(c, u, 3.0) - c
    for b in range(2):  # orthogonal to the conditional velocity, and what is left of (s - 1)(c - u)
        unit = c[b] / c[b].norm()
        assert (step[b] * unit).sum().abs() < 1e-4
        diff = c[b] - u[b]
        torch.testing.assert_close(
            step[b], 2 * (diff - (diff * unit).sum() * unit), atol=1e-4, rtol=0
        )
    assert torch.equal(APG()(c, u, 1.0), c)
    assert torch.isfinite(APG()(torch.zeros_like(c), torch.zeros_like(c), 3.0)).all()


def test_an_apg_object_carries_nothing_from_one_decode_to_the_next(tok, images):
    ids, x, apg = tok.encode(images), torch.randn_like(images), APG(momentum=-0.3)
    a, b = (tok.decode(ids, steps=3, guidance=3.0, apg=apg, noise=x) for _ in range(2))
    assert torch.equal(a, b)


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_decode_takes_ragged_ids_and_is_deterministic(tok, images):
    ids, noise = (
        tok.encode(images),
        torch.randn(images.shape, generator=torch.Generator().manual_seed(0)),
    )
    ragged = tok.decode([ids[0, :2], ids[1], ids[2, :1]], steps=3, noise=noise)
    assert ragged.shape == images.shape and ragged.abs().max() <= 1
    for i, k in enumerate((2, 6, 1)):
        torch.testing.assert_close(
            ragged[i],
            tok.decode(ids[i : i + 1, :k], steps=3, noise=noise[i : i + 1])[0],
            atol=1e-5,
            rtol=0,
        )
    a, b = (tok.decode(ids, steps=3, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{"guidance": 2.0}, {"guidance": 2.0, "apg": True}])
def test_batched_guidance_equals_two_calls(tok, images, options):
    ids, x = tok.encode(images, 2), torch.randn_like(images)
    guide, expected = (APG() if options.get("apg") else cfg), x
    with torch.no_grad():
        for t in (1.0, 0.5):
            cond, uncond = (
                tok.velocity(expected, t, ids),
                tok.velocity(expected, t, None, null=True),
            )
            expected = expected - guide(cond, uncond, 2.0) / 2
    torch.testing.assert_close(
        tok.decode(ids, steps=2, noise=x, **options), expected.clamp(-1, 1), atol=1e-5, rtol=0
    )


def test_reconstruct_is_encode_then_decode(tok, images):
    noise = torch.randn_like(images)
    assert torch.equal(
        tok.reconstruct(images, 2, steps=2, noise=noise),
        tok.decode(tok.encode(images, 2), steps=2, noise=noise),
    )


def test_latent_models_take_other_sizes_and_ranges():
    latents = randomised(changed(in_channels=5))
    x = 30 * torch.randn(2, 5, 4, 8)
    out = latents.reconstruct(x, num_tokens=3, steps=2)
    assert out.shape == x.shape
    assert (
        latents.decode(latents.encode(x), steps=1, noise=100 * torch.randn_like(x)).abs().max() > 1
    )  # not clamped


@pytest.mark.parametrize(
    "separate, learned", [(True, True), (True, False), (False, True), (False, False)]
)
def test_every_parameter_learns(separate, learned, images):
    tok = randomised(changed(separate_adaln=separate, learned_null=learned, null_prob=0.3)).train()
    for seed in range(3):
        tok.loss(images, generator=torch.Generator().manual_seed(seed)).backward()
    assert [n for n, p in tok.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_null_condition_is_drawn_at_its_rate_also_under_nested_dropout(tok):
    x = torch.zeros(20_000, 3, 1, 1)
    for nested in (0.0, 0.5, 1.0):
        _, t, keep_k, null = tok.draw(x, nested, torch.Generator().manual_seed(0))
        assert null.float().mean().item() == pytest.approx(0.1, abs=0.01)
        below = (keep_k < 6).float().mean().item()  # pow2 over 1, 2, 4, 6
        assert below == pytest.approx(0.75 * nested, abs=0.01)
        assert t.min() >= 0 and t.max() <= 1


def test_loss_is_the_mean_squared_velocity_error(tok, images):
    noise, t, keep_k, null = tok.draw(images, 1.0, torch.Generator().manual_seed(3))
    ids, total = tok.encode(images), 0.0
    for b in range(3):
        x_t = t[b] * noise[b] + (1 - t[b]) * images[b]
        v = tok.velocity(x_t[None], t[b : b + 1], ids[b : b + 1, : keep_k[b]], null=bool(null[b]))
        total += (v[0] - (noise[b] - images[b])).square().mean().item()
    assert tok(images, noise, t, keep_k, null).item() == pytest.approx(total / 3, abs=1e-5)
    assert tok.loss(images, generator=torch.Generator().manual_seed(3)).item() == pytest.approx(
        total / 3, abs=1e-5
    )


def full_objective(tok, x, noise, t, keep_k, null):
    """The objective as it is defined: all K registers encoded and decoded for every image."""
    z = tok.encoder(x)
    v = tok.decoder(interpolate(x, noise, t), t, tok.fsq(z)[0], keep_k, null)
    over = (z.abs() - 1).clamp(min=0).square()
    kept = torch.stack([torch.arange(z.shape[1]) < k for k in keep_k.masked_fill(null, 0)])
    return (v - (noise - x)).square().mean() + tok.config.latent_penalty * (
        over * kept[..., None]
    ).mean()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=7),
    st.sampled_from([0.0, 0.3]),
)
def test_the_packed_objective_is_the_full_one(rows, penalty):
    tok = randomised(changed(num_registers=12, latent_penalty=penalty))
    tok.encoder.head.weight.data *= 3  # so that the penalty bites
    g = torch.Generator().manual_seed(0)
    x = torch.rand(len(rows), 3, 8, 8, generator=g) * 2 - 1
    noise, t = torch.randn(x.shape, generator=g), torch.rand(len(rows), generator=g)
    draws = (noise, t, torch.tensor([k for k, _ in rows]), torch.tensor([n for _, n in rows]))
    grads = []
    for objective in (tok, lambda *a: full_objective(tok, *a)):
        tok.zero_grad()
        loss = objective(x, *draws)
        loss.backward()
        grads.append(
            [loss.detach()]
            + [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in tok.parameters()]
        )
    for packed, full in zip(*grads, strict=True):
        torch.testing.assert_close(
            packed, full, atol=1e-5 * full.abs().max().item() + 1e-7, rtol=1e-4
        )


def test_packing_computes_no_register_that_nobody_keeps(tok, images):
    rows = []
    tok.encoder.head.register_forward_hook(lambda _, __, out: rows.append(out.shape[:2]))
    x = images.repeat(3, 1, 1, 1)
    keep_k, null = torch.tensor([1, 1, 2, 2, 3, 4, 5, 6, 6]), torch.tensor([False] * 8 + [True])
    tok(x, *tok.draw(x)[:2], keep_k, null)
    assert sorted(rows) == [
        (2, 4),
        (2, 6),
        (5, 2),
    ]  # P/8 = 2 registers for 1, 1, 2, 2 and the null condition


def test_bfloat16_autocast_stays_close(tok, images):
    ids = tok.encode(images)
    plain = tok.velocity(images, 0.5, ids)
    with torch.autocast("cpu", torch.bfloat16):
        low = tok.velocity(images, 0.5, ids)
        assert torch.isfinite(tok.loss(images)) and tok.decode(ids, steps=2).dtype == torch.float32
    assert ((low - plain).norm() / plain.norm()).item() < 0.03


def test_a_bfloat16_model_runs(tok, images):
    tok = tok.bfloat16()
    assert tok.reconstruct(images, 2, steps=2).shape == images.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu(tok, images):
    ids, noise = tok.encode(images), torch.randn_like(images)
    here = tok.decode(ids, steps=3, noise=noise, guidance=2.0)
    there = tok.cuda().decode(ids, steps=3, noise=noise, guidance=2.0).cpu()
    torch.testing.assert_close(there, here, atol=1e-3, rtol=0)
    tok.loss(images.cuda()).backward()


def test_published_sizes():
    """Parameter counts that the published state dicts imply (their fixed position tables counted in)."""
    for name, want in {
        "d12-d12": 257_830_726,
        "d18-d18": 865_913_542,
        "d18-d28": 2_457_061_830,
    }.items():
        with torch.device("meta"):
            tok = FlexTok(PRESETS[name])
        tables = (tok.config.enc_dim + tok.config.dec_dim) * 16 * 16
        assert sum(p.numel() for p in tok.parameters()) + tables == want
