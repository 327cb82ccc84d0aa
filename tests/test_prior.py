"""The prior: the network against brute force, generation with and without its cache, and its
training."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, randomised
from hypothesis import given, settings
from hypothesis import strategies as st

from minflextok import PRIOR_PRESETS, FlexTok, Prior, PriorConfig
from minflextok.config import WEIGHTS_DIR
from minflextok.presets import PRIOR_RECIPES
from minflextok.prior import sample

SMALL = PriorConfig(
    TINY.vocab_size, TINY.num_registers, 5, dim=32, depth=2, head_dim=8, class_names=tuple("abcde")
)
V, K = SMALL.vocab_size, SMALL.num_tokens
TEXT = dataclasses.replace(
    SMALL,
    num_classes=0,
    class_names=(),
    text="words",
    text_dim=16,
    text_depth=1,
    text_length=4,
    words=("blue", "circle", "red", "square"),
)


def small(config=SMALL, seed=0) -> Prior:
    """Weights far from their start, so that every path shows and the likeliest id is no near
    tie."""
    torch.manual_seed(seed)
    prior = Prior(config).eval()
    for p in prior.parameters():
        p.data += (0.3 if p.ndim > 1 else 1.0) * torch.randn_like(p)
    return prior


def g(seed=0):
    return torch.Generator().manual_seed(seed)


labels = torch.tensor([0, 4, 2])
ids = torch.randint(V, (3, K), generator=g())
CAPTIONS = ["red circle", "Blue square", "red square, blue circle"]
PRIORS = {"class": (small(), labels), "text": (small(TEXT), CAPTIONS)}


# ---- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PRIORS)
def test_an_id_is_not_seen_before_its_turn(kind):
    prior, cond = PRIORS[kind]
    cond = prior.prepare(cond)
    before = prior.logits(ids[:, :-1], cond)
    for j in range(K - 1):
        changed = ids[:, :-1].clone()
        changed[:, j] = (changed[:, j] + 1) % V
        moved = (prior.logits(changed, cond) - before).abs().amax((0, 2)) > 1e-4
        assert moved.tolist() == [i > j for i in range(K)]
    assert (prior.logits(ids[:, :-1], cond.roll(1, 0)) - before).abs().amax(
        (0, 2)
    ).min() > 1e-3  # all see the condition


@pytest.mark.parametrize("kind", PRIORS)
def test_loss_is_the_cross_entropy_of_each_id_given_those_before(kind):
    prior, cond = PRIORS[kind]
    prepared, null = prior.prepare(cond), torch.tensor([False, True, False])
    by_hand = torch.zeros(3, K)
    for b in range(3):
        for i in range(K):
            logits = prior.logits(ids[b : b + 1, :i], prepared[b : b + 1], null[b : b + 1])[
                0, -1
            ].double()
            by_hand[b, i] = torch.logsumexp(logits, 0) - logits[ids[b, i]]
    torch.testing.assert_close(
        prior.token_losses(ids, prepared, null), by_hand, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        prior(ids, prepared, null, torch.ones(3, 0)), by_hand.mean(), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        prior.token_losses(ids[:, :2], prepared, null), by_hand[:, :2], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", PRIORS)
def test_a_hidden_condition_tells_nothing(kind):
    prior, cond = PRIORS[kind]
    cond, null = prior.prepare(cond), torch.tensor([True, True, True])
    torch.testing.assert_close(
        prior.logits(ids[:, :-1], cond, null), prior.logits(ids[:, :-1], cond.roll(1, 0), null)
    )


def test_draws_have_their_rates_and_dropout_drops_them():
    config = dataclasses.replace(SMALL, null_prob=0.3, dropout=0.2)
    null, keep = Prior(config).draw(4000, g())
    assert null.float().mean() == pytest.approx(
        0.3, abs=0.02
    ) and keep.float().mean() == pytest.approx(0.8, abs=0.01)
    assert Prior(SMALL).draw(7, g())[1].shape == (7, 0)
    prior, block = small(config), small(config).blocks[0]
    x, keep = torch.randn(2, 3, 32, generator=g()), torch.ones(2, 2, 1, 32)
    keep[0, 1, 0, 5] = 0
    whole, dropped = block(x), block(x, dropout=keep)
    h = x + block.attn(F.layer_norm(x, (32,)))
    torch.testing.assert_close(dropped[0, :, 5], h[0, :, 5])
    assert torch.equal(dropped[1], whole[1]) and not torch.allclose(
        whole[0, :, 5], h[0, :, 5], atol=1e-3
    )
    all_kept = torch.ones(3, 2, 2, 32, dtype=torch.bool)  # what is kept is scaled up
    assert not torch.allclose(
        prior.token_losses(ids, labels, keep=all_kept), prior.token_losses(ids, labels), atol=1e-3
    )


def test_loss_draws_its_null_conditions_from_the_generator():
    prior = small()
    null, keep = prior.draw(3, g(5))
    assert torch.equal(prior.loss(ids, labels, generator=g(5)), prior(ids, labels, null, keep))
    always = small(dataclasses.replace(SMALL, null_prob=0.999999))
    assert torch.equal(always.loss(ids, labels), always.loss(ids, labels.roll(1)))
    prior.generate(labels, generator=g())
    prior.loss(
        prior.generate(labels, generator=g()), labels
    ).backward()  # ids from generate can be trained on
    assert all(p.grad is not None for p in prior.parameters())


@pytest.mark.parametrize(
    "name, millions",
    [
        ("ar-49m", 49),
        ("ar-85m", 85),
        ("ar-201m", 201),
        ("ar-393m", 393),
        ("ar-679m", 679),
        ("ar-1.33b", 1330),
    ],
)
def test_sizes_of_the_paper(name, millions):
    with torch.device("meta"):
        prior = Prior(PRIOR_PRESETS[name])
    assert sum(p.numel() for p in prior.blocks.parameters()) / 1e6 == pytest.approx(
        millions, rel=0.01
    )
    assert (prior.config.vocab_size, prior.config.num_tokens, prior.config.num_classes) == (
        64_000,
        256,
        1000,
    )


def test_presets_have_recipes():
    assert PRIOR_PRESETS.keys() == PRIOR_RECIPES.keys()


# ---- generation ----------------------------------------------------------------------------------

options = st.fixed_dictionaries(
    {
        "num_tokens": st.integers(1, K),
        "temperature": st.sampled_from([0.0, 0.7, 1.0]),
        "guidance": st.sampled_from([1.0, 2.5, 0.0, lambda i: 1 + i / 2]),
        "top_k": st.sampled_from([None, 1, 7, 10**6]),
        "top_p": st.sampled_from([None, 0.6, 1.0]),
        "j": st.integers(0, K),
        "rows": st.sampled_from([1, 3, 9]),
        "kind": st.sampled_from(list(PRIORS)),
        "seed": st.integers(0, 3),
    }
)


@given(options)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_cache_changes_no_id(options):
    (prior, cond), rows, seed = (
        PRIORS[options.pop("kind")],
        options.pop("rows"),
        options.pop("seed"),
    )
    cond = [cond[i % 3] for i in range(rows)]
    cond = cond if isinstance(cond[0], str) else torch.stack(cond)
    n, j = options["num_tokens"], min(options.pop("j"), options["num_tokens"])
    prefix = torch.randint(V, (rows, j), generator=g(seed))
    out = prior.generate(cond, prefix=prefix, generator=g(seed), **options)
    assert out.shape == (rows, n) and out.dtype == torch.int64 and torch.equal(out[:, :j], prefix)
    assert torch.equal(
        out, prior.generate(cond, prefix=prefix, generator=g(seed), use_cache=False, **options)
    )


def test_greedy_takes_the_likeliest_of_the_guided_logits():
    """Guidance against two separate passes, at each position with its own scale."""
    for prior, cond in PRIORS.values():
        for scale in (1.0, 3.0, lambda i: 0.5 * i):
            out = prior.generate(cond, guidance=scale, temperature=0)
            prepared, hidden = prior.prepare(cond), torch.ones(3, dtype=torch.bool)
            for i in range(K):
                s = scale(i) if callable(scale) else scale
                conditional, unconditional = (
                    prior.logits(out[:, :i], prepared, h)[:, -1] for h in (~hidden, hidden)
                )
                assert torch.equal(
                    (unconditional + s * (conditional - unconditional)).argmax(-1), out[:, i]
                )


def test_samples_follow_the_model():
    """Frequencies of the first two ids, guided, against probabilities from two passes."""
    config = dataclasses.replace(SMALL, vocab_size=4, num_tokens=2)
    prior, n = small(config, seed=1), 20_000
    both = prior.generate(torch.full((n,), 3), guidance=1.5, temperature=0.8, generator=g())
    counts = torch.bincount(both[:, 0] * 4 + both[:, 1], minlength=16) / n
    all_ids, label = torch.arange(4)[:, None], torch.full((4,), 3)
    conditional, unconditional = (
        prior.logits(all_ids, label, torch.full((4,), h)).double() for h in (False, True)
    )
    p = ((unconditional + 1.5 * (conditional - unconditional)) / 0.8).softmax(-1)  # (4, 2, 4)
    want = (p[0, 0][:, None] * p[:, 1]).flatten()
    assert (counts - want).abs().max() < 4 * math.sqrt(0.25 / n)


@given(
    st.integers(2, 12),
    st.integers(1, 14),
    st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.999]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_top_k_and_top_p_keep_what_a_slow_reference_keeps(size, top_k, top_p, temperature, seed):
    logits = 2 * torch.randn(1, size, generator=g(seed))
    order = sorted(range(size), key=lambda i: -logits[0, i].item())
    weights = {i: math.exp(logits[0, i].item() / temperature) for i in order[:top_k]}
    total, held, kept = sum(weights.values()), 0.0, set()
    for i, w in weights.items():
        if held / total < top_p:
            kept.add(i)
        held += w
    u = torch.rand(3000, size, generator=g(seed + 1))
    drawn = sample(logits.expand(3000, -1), u, temperature, top_k, top_p)
    assert set(drawn.tolist()) <= kept
    for i in kept:
        p = weights[i] / sum(weights[k] for k in kept)
        assert (drawn == i).float().mean().item() == pytest.approx(
            p, abs=5 * math.sqrt(0.25 / 3000)
        )


def test_sample_never_takes_an_impossible_id():
    logits = torch.tensor([[0.0, float("-inf"), -1e4, 1.0]]).expand(2000, -1)
    assert set(sample(logits, torch.rand(2000, 4, generator=g())).tolist()) == {0, 3}
    assert (
        sample(torch.tensor([[0.0, 1.0, 2.0]]), torch.zeros(1, 3), top_k=1).item() == 2
    )  # log 0 is not p = 0
    assert sample(torch.tensor([[1.0, 2.0]]), torch.rand(1, 2), 1e-6).item() == 1


def test_generation_is_the_generators_alone():
    prior = PRIORS["class"][0]
    whole = prior.generate(labels, generator=g(3))
    torch.manual_seed(99)
    assert torch.equal(whole, prior.generate(labels, generator=g(3)))
    assert not torch.equal(whole, prior.generate(labels, generator=g(4)))
    for n in range(1, K):  # a shorter generation is the start of a longer one
        assert torch.equal(whole[:, :n], prior.generate(labels, num_tokens=n, generator=g(3)))
    same = g(3)  # and images do not depend on the size of the batch
    parts = [prior.generate(part, generator=same, guidance=2.0) for part in labels.split([1, 2])]
    assert torch.equal(torch.cat(parts), prior.generate(labels, generator=g(3), guidance=2.0))


def test_a_prefix_matters():
    prior = PRIORS["class"][0]
    a, b = (prior.generate(labels, prefix=ids[:, :1] * 0 + i, temperature=0) for i in (1, 2))
    assert not torch.equal(a[:, 1:], b[:, 1:])


def test_generation_in_bfloat16_and_under_autocast():
    prior = PRIORS["class"][0]
    with torch.autocast("cpu", torch.bfloat16):
        for cond in (labels, labels.repeat(4)):
            assert prior.generate(cond, guidance=2.0).shape == (len(cond), K)
    assert small().bfloat16().generate(labels.repeat(4), guidance=2.0).shape == (12, K)


# ---- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, args, match",
    [
        (
            "class",
            dict(labels=torch.tensor([5])),
            "classes range from 5 to 5: this prior's are 0 to 4",
        ),
        ("class", dict(labels=torch.tensor([-1, 2])), "range from -1 to 2"),
        (
            "class",
            dict(labels=torch.tensor([1.0])),
            r"not torch.float32 \(1,\): give a \(B,\) int64",
        ),
        ("class", dict(labels=torch.tensor([True])), "torch.bool"),
        ("class", dict(labels=torch.tensor([[1]])), r"\(1, 1\)"),
        ("class", dict(labels=torch.empty(0, dtype=torch.long)), r"\(0,\)"),
        ("class", dict(labels=["red circle"]), "takes classes 0 to 4, not text"),
        ("class", dict(labels=3), "not a int"),
        (
            "text",
            dict(labels=labels),
            r"takes text, not torch.int64 \(3,\): give a list of captions",
        ),
        ("text", dict(labels="red circle"), "not one text, .*: give a list"),
        ("text", dict(labels=[]), "takes text"),
        ("text", dict(labels=["red", 3]), "takes text"),
        ("class", dict(num_tokens=0), "num_tokens=0: give a whole number from 1 to 6"),
        ("class", dict(num_tokens=K + 1), "num_tokens=7"),
        ("class", dict(num_tokens=2.0), "num_tokens=2.0"),
        ("class", dict(guidance=float("nan")), "guidance=nan at position 0: give a finite"),
        (
            "class",
            dict(guidance=lambda i: float("inf") if i == 3 else 1),
            "guidance=inf at position 3",
        ),
        ("class", dict(guidance="2"), "guidance='2'"),
        ("class", dict(temperature=-0.1), "temperature=-0.1: give a number of at least 0"),
        ("class", dict(temperature=float("nan")), "temperature=nan"),
        ("class", dict(top_k=0), "top_k=0: give a whole number of at least 1"),
        ("class", dict(top_k=2.5), "top_k=2.5"),
        ("class", dict(top_p=0), "top_p=0: give a share above 0"),
        ("class", dict(top_p=1.01), "top_p=1.01"),
        (
            "class",
            dict(prefix=ids[:, :3], num_tokens=2),
            "prefix has 3 ids an image, num_tokens is 2",
        ),
        ("class", dict(prefix=ids[:2]), "for 3 conditions"),
        ("class", dict(prefix=ids.float()), "float32"),
        ("class", dict(prefix=ids[0]), r"\(6,\)"),
        (
            "class",
            dict(prefix=torch.full((3, 1), V)),
            f"prefix range from {V} to {V}: this prior's are 0 to {V - 1}",
        ),
        ("class", dict(prefix=torch.full((3, 1), -1)), "range from -1"),
        ("class", dict(prefix=torch.zeros(3, K + 1, dtype=torch.long)), "at most 6"),
    ],
)
def test_generate_says_what_is_wrong(kind, args, match):
    prior, cond = PRIORS[kind]
    with pytest.raises(ValueError, match=match):
        prior.generate(**({"labels": cond} | args))


@pytest.mark.parametrize(
    "bad, match",
    [
        (ids[:, :0], "no column"),
        (ids + V, "ids range"),
        (ids[:2], "for 3 conditions"),
        (torch.cat([ids, ids], 1), "12 ids an image, this prior has at most 6"),
    ],
)
def test_loss_says_what_is_wrong(bad, match):
    with pytest.raises(ValueError, match=match):
        PRIORS["class"][0].loss(bad, labels)


@pytest.mark.parametrize(
    "change, match",
    [
        (dict(num_classes=0), "give classes, or num_classes=0 and a text encoder"),
        (dict(text="bytes"), "give classes"),
        (dict(dim=30), "dim=30: give a multiple of head_dim=8"),
        (dict(null_prob=1.0), "null_prob=1.0"),
        (dict(dropout=-0.1), "dropout=-0.1"),
        (dict(depth=0), "depth=0"),
        (dict(class_names=("a",)), "1 class_names for 5"),
        (dict(words=("a",)), "1 words"),
        (dict(num_classes=0, class_names=(), text="words"), "0 words"),
        (dict(class_names=(1, 2, 3, 4, 5)), "class_names: give strings"),
        (dict(vocab_size="7"), "vocab_size='7'"),
        (dict(num_classes=0, class_names=(), text="bytes", text_dim=12), "text_dim=12"),
    ],
)
def test_configs_that_cannot_be(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(SMALL, **change)


def test_names_of_classes():
    assert PRIORS["class"][0].classes(["e", "0", "b"]).tolist() == [4, 0, 1]
    with pytest.raises(
        ValueError, match="no class 'f': give a number from 0 to 4, or a name such as"
    ):
        PRIORS["class"][0].classes(["f"])


# ---- on disk, and the tokenizer ------------------------------------------------------------------


@pytest.mark.parametrize("kind", PRIORS)
def test_weights_come_back(kind, tmp_path, monkeypatch):
    prior, cond = PRIORS[kind]
    prior.save_pretrained(tmp_path / "prior-thing")
    back = Prior.from_pretrained(tmp_path / "prior-thing")
    assert back.config == prior.config and not back.training
    assert torch.equal(back.generate(cond, generator=g()), prior.generate(cond, generator=g()))
    monkeypatch.setattr("minflextok.weights.WEIGHTS_DIR", tmp_path)
    assert Prior.from_pretrained("thing").config == prior.config
    with pytest.raises(FileNotFoundError, match="no weights 'other': shipped are thing"):
        Prior.from_pretrained("other")
    with pytest.raises(ValueError, match="unknown TokenizerConfig key"):
        FlexTok.from_pretrained("prior-thing")


def test_a_prior_knows_its_tokenizer(tok):
    prior = small(dataclasses.replace(SMALL, tokenizer=tok.fingerprint()))
    prior.check_tokenizer(tok)
    prior.check_tokenizer(randomised().bfloat16())
    decoder_moved, encoder_moved = randomised(), randomised()
    decoder_moved.decoder.head.bias.data += 1
    prior.check_tokenizer(decoder_moved)
    encoder_moved.encoder.registers.data[0, 0] += 0.1
    with pytest.raises(
        ValueError, match=f"trained with the tokenizer {tok.fingerprint()}, this is [0-9a-f]{{16}}"
    ):
        prior.check_tokenizer(encoder_moved)
    for change in (dict(fsq_levels=(8, 5, 4)), dict(num_registers=5), dict(num_registers=7)):
        other = FlexTok(dataclasses.replace(TINY, **change))
        with pytest.raises(
            ValueError, match="generates 6 ids of 120, the tokenizer has .* give the tokenizer"
        ):
            small().check_tokenizer(other)  # without a fingerprint too


def test_shipped_priors_fit_their_tokenizers():
    for folder in WEIGHTS_DIR.glob("prior-*"):
        prior = Prior.from_pretrained(folder.name.removeprefix("prior-"))
        prior.check_tokenizer(FlexTok.from_pretrained(folder.name.removeprefix("prior-")))
        assert sum(f.stat().st_size for f in folder.iterdir()) < 24e6
        card = (folder / "README.md").read_text()
        for said in ("Data", "Command", "Time", "Hardware", "test split"):
            assert said in card, said
