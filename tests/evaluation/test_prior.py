"""The evaluation of priors: what is counted, against what, and that nothing leaks from one image to another."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import TINY, randomised

from minflextok import FlexTok, Prior, PriorConfig, TrainConfig
from minflextok.cli.parser import main
from minflextok.config import JudgeConfig
from minflextok.data import Images, held_out, to_float, to_uint8
from minflextok.data.shapes import check, make_shapes, parse_caption, render
from minflextok.evaluation.classifier import Judge
from minflextok.evaluation.metrics import FeatureStats, frechet_distance
from minflextok.evaluation.prior import (
    CaptionScores,
    PriorEvaluation,
    Sampler,
    other_captions,
    overlap,
    share,
)
from minflextok.evaluation.reports import prior_table
from minflextok.evaluation.tokenizer import image_noise
from minflextok.text import words_of

SIXTEEN = dataclasses.replace(TINY, image_size=16, patch_size=4)
JUDGE = JudgeConfig(image_size=8, widths=(8,), strides=(2,), num_features=4, num_classes=5)
CLASSES = PriorConfig(
    TINY.vocab_size, TINY.num_registers, 5, dim=32, depth=2, head_dim=8, class_names=tuple("abcde")
)
IMAGES, CAPTIONS, SCENES = make_shapes(24, seed=5)
TEXT = dataclasses.replace(
    CLASSES,
    num_classes=0,
    class_names=(),
    text="words",
    text_dim=16,
    text_length=40,
    words=words_of(CAPTIONS),
)


def noisy(model, scale=0.3):
    torch.manual_seed(0)
    for p in model.parameters():
        p.data += scale * torch.randn_like(p)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of two tokenizers, their priors, and a judge."""
    folder = tmp_path_factory.mktemp("weights")
    for name, config, prior in (("class", TINY, CLASSES), ("text", SIXTEEN, TEXT)):
        randomised(config).save_pretrained(folder / f"tok-{name}")
        noisy(Prior(prior)).save_pretrained(folder / f"prior-{name}")
    noisy(Judge(JUDGE)).save_pretrained(folder / "judge")
    return folder


def labelled(n=20):
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    return Images("noise", images, torch.arange(n) % 5, list("abcde"))


def captioned(n=24):
    return Images("shapes", torch.from_numpy(IMAGES[:n]), None, [], CAPTIONS[:n])


def work(folder, kind, data=None, **options):
    prior, tok = str(folder / f"prior-{kind}"), str(folder / f"tok-{kind}")
    data = data or (labelled() if kind == "class" else captioned())
    options = {
        "num_samples": 10,
        "steps": 1,
        "judge": str(folder / "judge"),
        "prefix_images": 0,
        "budgets": [1, 6],
    } | options
    return PriorEvaluation(
        Prior.from_pretrained(prior), prior, FlexTok.from_pretrained(tok), tok, data, **options
    )


def close(a, b):
    """Equal JSON, but for rounding."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        [close(a[k], b[k]) for k in a if k != "seconds"]
    elif isinstance(a, list):
        [close(x, y) for x, y in zip(a, b, strict=True)]
    else:
        assert a == (b if isinstance(b, str) or b is None else pytest.approx(b, rel=2e-3, abs=1e-4))


# ---- captions --------------------------------------------------------------------------------------------------------


def test_an_image_meets_its_caption_and_a_spoilt_one_does_not():
    scores, spoilt = CaptionScores(), CaptionScores()
    others = other_captions(CAPTIONS)
    scores.update(torch.from_numpy(IMAGES), CAPTIONS, others)
    spoilt.update(torch.from_numpy(np.stack([render(s[1:]) for s in SCENES])), CAPTIONS, others)
    found, lost = scores.summary(), spoilt.summary()
    counts = Counter(len(s) for s in SCENES)
    assert list(found["met"]) == ["all", *(str(n) for n in sorted(counts))]
    for n, count in counts.items():
        assert (
            found["met"][str(n)]["mean"] == found["things"][str(n)]["mean"] == 1
            and found["met"][str(n)]["n"] == count
        )
        assert lost["met"][str(n)]["mean"] == 0 and lost["things"][str(n)]["mean"] == pytest.approx(
            1 - 1 / n
        )
        right = [
            check(i, o).met
            for i, o, s in zip(IMAGES, others, SCENES, strict=True)
            if len(s) == n and o
        ]
        assert found["shuffled"][str(n)]["mean"] == pytest.approx(sum(right) / len(right))
    assert found["met"]["all"]["n"] == 24 and found["shuffled"]["all"]["mean"] < 0.2


def test_the_control_is_another_caption_that_says_as_much():
    one, two = ["a red circle", "a blue square"], ["a red circle above a blue square"]
    assert other_captions([one[0], two[0], one[1]]) == [one[1], None, one[0]]
    others = other_captions(CAPTIONS)
    assert Counter(others) == Counter(CAPTIONS)  # each serves once
    assert all(
        len(parse_caption(a)[0]) == len(parse_caption(b)[0])
        for a, b in zip(CAPTIONS, others, strict=True)
    )
    with pytest.raises(ValueError, match="cannot read the caption 'a cat'"):
        other_captions(["a cat"])


def test_shares_have_wilsons_interval():
    n, z = (
        10,
        1.959964,
    )  # https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval
    for hits in (0, 3, 10):
        p, found = hits / n, share([i < hits for i in range(n)])
        middle, half = (
            (p + z**2 / 2 / n) / (1 + z**2 / n),
            z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / 4 / n**2) ** 0.5,
        )
        assert found["mean"] == p and found["ci95"] == pytest.approx(
            [middle - half, middle + half], abs=1e-5
        )


@pytest.mark.parametrize(
    "a, b, want",
    [("", "", 1), ("a", "", 0), ("a", "a", 1), ("ab", "bc", 1 / 3), ("aab", "ab", 2 / 3)],
)
def test_overlap_is_what_is_in_both_of_what_is_in_either(a, b, want):
    assert overlap(Counter(a), Counter(b)) == pytest.approx(want)


# ---- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["class", "text"])
def test_batches_change_nothing(folder, kind):
    one, other = (
        work(folder, kind, batch_size=b, budgets=[6], prefix_images=2).run() for b in (3, 10)
    )
    close(one[0], other[0])
    for a, b in zip(one[1:], other[1:], strict=True):
        assert a.keys() == b.keys() and all((a[k].int() - b[k].int()).abs().max() <= 1 for k in a)
    assert len(one[0]["shown"]) == len(one[1][6]) == 10


def test_class_numbers_are_those_of_the_definitions(folder):
    it = work(folder, "class", samplers=[Sampler(2.0, 0.8, top_k=50)], budgets=[4], seed=7, steps=2)
    found, data = it.run()[0], labelled()
    labels, x, g = data.labels[:10], to_float(data.images), torch.Generator().manual_seed(7)
    ids = it.prior.generate(labels, 4, guidance=2.0, temperature=0.8, top_k=50, generator=g)
    real = it.tok.encode(x[:10])

    def scored(ids, seed):
        made = it.tok.decode(ids, steps=2, noise=image_noise((10, 3, 8, 8), seed, 0))
        made = to_float(to_uint8(made))
        a, b = (FeatureStats().update(it.judge.features(y)) for y in (made, x[:10]))
        return frechet_distance(a, b), (it.judge(made).argmax(1) == labels).float().mean().item()

    for row, want in (
        (found["samplers"][0]["tokens"]["4"], scored(ids, 8)),
        (found["tokenizer"]["4"], scored(real[:, :4], 7)),
    ):
        assert (row["fid"]["mean"], row["agreement"]["mean"]) == pytest.approx(want, rel=1e-3)
    with torch.no_grad():
        losses = it.prior.token_losses(real, labels) / np.log(2)
    assert found["bits"]["by_position"] == pytest.approx(losses.mean(0).tolist(), rel=1e-4)
    a, b = (FeatureStats().update(it.judge.features(y)) for y in (x[10:20], x[:10]))
    assert found["originals"]["fid"]["mean"] == pytest.approx(frechet_distance(a, b), rel=1e-3)
    assert work(folder, "class", num_samples=11).run()[0]["originals"]["fid"] == {}  # no 11 others
    assert "1.00x" in prior_table(found)


def test_a_perfect_prior_and_tokenizer_meet_every_caption(folder, monkeypatch):
    """Whatever is decoded for row i is the true image i: samples, reconstructions and originals score alike."""
    it = work(folder, "text", num_samples=24, batch_size=5, budgets=[2])
    seen = []

    def decode(self, ids, noise):
        rows = sum(
            len(batch) for batch in seen[::3]
        )  # the tokenizer, then two samplers, batch by batch
        seen.append(ids)
        start = rows - (len(ids) if (len(seen) - 1) % 3 else 0)
        return torch.from_numpy(IMAGES[start : start + len(ids)])

    monkeypatch.setattr(PriorEvaluation, "decode", decode)
    found = it.run()[0]
    for rows in (found["tokenizer"], *(s["tokens"] for s in found["samplers"])):
        assert rows["2"] == found["originals"] and rows["2"]["met"]["all"]["mean"] == 1
    assert all(ids.shape[1] == 2 for ids in seen) and "other captions, real images" in prior_table(
        found
    )


@pytest.mark.parametrize("kind", ["class", "text"])
def test_prefixes_are_kept_and_continued_without_the_condition(folder, kind, monkeypatch):
    made = []
    monkeypatch.setattr(
        PriorEvaluation,
        "decode",
        lambda self, ids, noise: made.append(ids) or plain(ids, self.tok.image_size),
    )

    def plain(ids, side):  # an image that shows the ids: all of one colour
        return (ids.sum(1) % 256).to(torch.uint8)[:, None, None, None].expand(-1, 3, side, side)

    it = work(folder, kind, prefix_images=4, batch_size=100)
    found, shown = it.prefixes()
    real = it.tok.encode(to_float(it.data.images[:4])).repeat_interleave(6, 0)
    lengths = [0, 1, 2, 4, 6]
    assert [int(j) for j in found["by_length"]] == lengths == list(shown) and len(made) == 5
    for j, ids in zip(lengths, made, strict=True):
        assert ids.shape == (24, 6) and torch.equal(ids[:, :j], real[:, :j])
    assert (
        found["by_length"]["6"]["pixels"]["mean"] == 0
        and found["by_length"]["6"]["alike"]["mean"] == 1
    )
    assert found["by_length"]["0"]["pixels"]["mean"] > 0
    assert shown[1].shape[:2] == (2, 7) and torch.equal(shown[1][:, 0], it.data.images[:2])
    before, made[:] = list(made), []
    if kind == "class":
        it.data.labels = it.data.labels.roll(1)
    else:
        it.captions = it.captions[1:] + it.captions[:1]
    it.prefixes()
    assert all(torch.equal(a, b) for a, b in zip(before, made, strict=True))


# ---- the command, and what cannot be -------------------------------------------------------------------------------------


def test_the_command(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "minflextok.cli.commands.load_dataset",
        lambda name, *_: captioned() if name == "shapes" else labelled(),
    )
    for kind, said in (
        ("class", "gFID to the 8 originals"),
        ("text", "checked exactly against its caption"),
    ):
        out = tmp_path / kind
        main(
            [
                "evaluate-prior",
                "--prior",
                str(folder / f"prior-{kind}"),
                "--tokenizer",
                str(folder / f"tok-{kind}"),
                "--steps",
                "1",
                "--num-samples",
                "8",
                "--tokens",
                "6",
                "--guidance",
                "1",
                "2",
                "--temperature",
                "1",
                "0.5",
                "--top-k",
                "9",
                "--prefix-images",
                "2",
                "--judge",
                str(folder / "judge"),
                "--device",
                "cpu",
                "--out",
                str(out),
            ]
        )
        printed, found = (
            capsys.readouterr().out.splitlines(),
            json.loads((out / "results.json").read_text()),
        )
        assert printed[0] == found["protocol"]["line"] and said in printed[0]
        assert [s["name"] for s in found["samplers"]] == [
            "guidance 1, top-k 9",
            "guidance 1, temperature 0.5, top-k 9",
            "guidance 2, top-k 9",
            "guidance 2, temperature 0.5, top-k 9",
        ]
        for s in found["samplers"]:
            assert s["name"] in printed[0] and list(s["tokens"]) == ["6"]
        assert all(
            (out / name).stat().st_size > 3000
            for name in ("tokens.png", "samples.png", "prefixes.png")
        )


def test_held_out_is_what_training_left_out(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("minflextok.cli.commands.load_dataset", lambda *_: labelled(40))
    seen, real = [], PriorEvaluation.__init__
    monkeypatch.setattr(
        PriorEvaluation, "__init__", lambda self, *a: seen.append(a[4]) or real(self, *a)
    )
    monkeypatch.setattr(PriorEvaluation, "run", lambda *_, **__: exit("far enough"))
    with pytest.raises(SystemExit, match="far enough"):
        main(
            [
                "evaluate-prior",
                "--prior",
                str(folder / "prior-class"),
                "--tokenizer",
                str(folder / "tok-class"),
                "--data",
                "x",
                "--num-samples",
                "4",
                "--prefix-images",
                "0",
                "--split",
                "held-out",
                "--judge",
                str(folder / "judge"),
                "--out",
                str(tmp_path),
            ]
        )
    left = held_out(40, TrainConfig(val_images=4), "x")[1]
    assert torch.equal(seen[0].images, labelled(40).images[left])


@pytest.mark.parametrize(
    "kind, options, match",
    [
        ("class", {"num_samples": 21}, "--num-samples 21: give 2 to 20 of noise, test split"),
        ("class", {"num_samples": 1}, "--num-samples 1"),
        ("class", {"budgets": [7]}, "--tokens 7: .* gives 1 to 6"),
        ("class", {"batch_size": 0}, "--batch-size 0"),
        ("class", {"steps": 0}, "--steps 0"),
        ("class", {"prefix_images": 11}, "--prefix-images 11: give 0 to 10"),
        ("class", {"samplers": [Sampler(top_p=2)]}, "top_p=2"),
        ("class", {"samplers": [Sampler(float("nan"))]}, "guidance=nan"),
        ("class", {"decoder_guidance": float("inf")}, "--decoder-guidance inf"),
        ("class", {"judge": "judge-cifar10"}, "32-pixel images of 10"),
        ("class", {"data": Images("plain", labelled().images)}, "plain has no labels"),
        (
            "text",
            {"data": labelled()},
            "noise has no captions, and this prior takes text: give --data shapes",
        ),
        (
            "text",
            {"data": Images("cats", labelled().images, captions=["a cat"] * 20)},
            "cannot read the caption 'a cat'",
        ),
    ],
)
def test_bad_settings_are_named(folder, kind, options, match):
    with pytest.raises(ValueError, match=match):
        work(folder, kind, **options)


def test_a_prior_of_another_tokenizer_is_refused(folder):
    prior = Prior.from_pretrained(folder / "prior-class")
    prior.config = dataclasses.replace(prior.config, tokenizer="0123456789abcdef")
    with pytest.raises(ValueError, match="trained with the tokenizer 0123456789abcdef"):
        PriorEvaluation(
            prior,
            str(folder / "prior-class"),
            FlexTok.from_pretrained(folder / "tok-class"),
            str(folder / "tok-class"),
            labelled(),
        )
