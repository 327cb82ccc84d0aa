"""The evaluation of priors: metrics by their definitions, and no leak from image to image."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import TINY, randomised
from matplotlib.figure import Figure
from PIL import Image

from minflextok import FlexTok, Prior, PriorConfig, TrainConfig
from minflextok.cli.parser import main
from minflextok.config import ClassifierConfig
from minflextok.data import Images, load_dataset, to_float, to_uint8, validation_split
from minflextok.data.shapes import make_shapes
from minflextok.evaluation.classifier import Classifier
from minflextok.evaluation.fid import FeatureStats, frechet_distance
from minflextok.evaluation.figures import _plot_captions
from minflextok.evaluation.prefixes import overlap
from minflextok.evaluation.prior import PriorEvaluation
from minflextok.evaluation.reports import prior_table, write_pictures
from minflextok.evaluation.scores import image_noise
from minflextok.evaluation.settings import PriorSettings, Sampler
from minflextok.text import words_of

SIXTEEN = dataclasses.replace(TINY, image_size=16, patch_size=4)
SMALL = ClassifierConfig(image_size=8, widths=(8,), strides=(2,), num_features=4, num_classes=5)
CLASSES = PriorConfig(
    TINY.vocab_size, TINY.num_registers, 5, dim=32, depth=2, head_dim=8, class_names=tuple("abcde")
)
IMAGES, CAPTIONS, _ = make_shapes(24, seed=5)
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
    """Weights of two tokenizers, their priors, and a classifier."""
    folder = tmp_path_factory.mktemp("weights")
    for name, config, prior in (("class", TINY, CLASSES), ("text", SIXTEEN, TEXT)):
        randomised(config).save_pretrained(folder / f"tok-{name}")
        noisy(Prior(prior)).save_pretrained(folder / f"prior-{name}")
    noisy(Classifier(SMALL)).save_pretrained(folder / "classifier")
    return folder


def labelled(n=20):
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    return Images("noise", images, torch.arange(n) % 5, list("abcde"), split="test")


def captioned(n=24):
    return Images("shapes", torch.from_numpy(IMAGES[:n]), None, [], CAPTIONS[:n])


def work(folder, kind, data=None, **options):
    prior, tok = str(folder / f"prior-{kind}"), str(folder / f"tok-{kind}")
    data = data or (labelled() if kind == "class" else captioned())
    options = {
        "num_samples": 10,
        "steps": 1,
        "classifier": str(folder / "classifier"),
        "prefix_images": 0,
        "budgets": [1, 6],
    } | options
    return PriorEvaluation(
        Prior.from_pretrained(prior),
        prior,
        FlexTok.from_pretrained(tok),
        tok,
        data,
        PriorSettings(**options),
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


# ---- numbers -------------------------------------------------------------------------------------


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
        a, b = (FeatureStats().update(it.classifier.features(y)) for y in (made, x[:10]))
        return frechet_distance(a, b), (
            it.classifier(made).argmax(1) == labels
        ).float().mean().item()

    for row, want in (
        (found["samplers"][0]["tokens"]["4"], scored(ids, 8)),
        (found["tokenizer"]["4"], scored(real[:, :4], 7)),
    ):
        assert (row["fid"]["mean"], row["accuracy"]["mean"]) == pytest.approx(want, rel=1e-3)
    with torch.no_grad():
        losses = it.prior.token_losses(real, labels) / np.log(2)
    assert found["bits"]["by_position"] == pytest.approx(losses.mean(0).tolist(), rel=1e-4)
    a, b = (FeatureStats().update(it.classifier.features(y)) for y in (x[10:20], x[:10]))
    assert found["originals"]["fid"]["mean"] == pytest.approx(frechet_distance(a, b), rel=1e-3)
    assert work(folder, "class", num_samples=11).run()[0]["originals"]["fid"] == {}  # no 11 others
    assert "1.00x" in prior_table(found)


def test_without_a_classifier_that_fits_there_is_gfid_alone(folder, tmp_path, monkeypatch):
    def quadrants(x):  # of 3 x 8 x 8 values
        return x.unflatten(-1, (2, 4)).unflatten(-3, (2, 4)).mean((-3, -1)).flatten(1)

    monkeypatch.setattr("minflextok.evaluation.tokenizer.imagenet_network", lambda: quadrants)
    options = {"features": "imagenet", "classifier": "judge-cifar10", "prefix_images": 2}
    with pytest.warns(UserWarning, match="no accuracy: judge-cifar10 takes 32-pixel images"):
        it = work(folder, "class", budgets=[6], seed=7, **options)
    found, samples, continued = it.run()
    assert "accuracy" not in it.protocol_line and "trained on ImageNet" in it.protocol_line
    x = to_float(labelled().images[:10])
    made = it.tok.decode(it.tok.encode(x), steps=1, noise=image_noise((10, 3, 8, 8), 7, 0))
    a, b = (FeatureStats().update(quadrants(y)) for y in (to_float(to_uint8(made)), x))
    assert found["tokenizer"]["6"].keys() == {"fid"} and not continued
    assert found["tokenizer"]["6"]["fid"]["mean"] == pytest.approx(frechet_distance(a, b), rel=1e-3)
    assert "accuracy" not in prior_table(found) and "other originals" in prior_table(found)
    write_pictures(found, samples, continued, tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"tokens.png", "samples.png"}


def test_a_classifier_of_other_classes_is_refused(folder, tmp_path):
    Classifier(dataclasses.replace(SMALL, num_classes=6)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 6 classes, .*prior-class 5"):
        work(folder, "class", classifier=str(tmp_path))


def test_a_perfect_prior_and_tokenizer_meet_every_caption(folder, monkeypatch):
    """The true image i is decoded for row i: samples, reconstructions, originals score alike."""
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


@pytest.mark.parametrize(
    "a, b, want",
    [("", "", 1), ("a", "", 0), ("a", "a", 1), ("ab", "bc", 1 / 3), ("aab", "ab", 2 / 3)],
)
def test_overlap_is_what_is_in_both_of_what_is_in_either(a, b, want):
    assert overlap(Counter(a), Counter(b)) == pytest.approx(want)


# ---- the command, and what cannot be -------------------------------------------------------------


def write_folder(root, data, split):
    """Labeled images as an ImageFolder."""
    for i, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        directory = root / split / data.classes[label]
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(directory / f"{i:02d}.png")


def evaluate_prior(folder, kind, out, *options):
    weights = {"--prior": f"prior-{kind}", "--tokenizer": f"tok-{kind}", "--judge": "classifier"}
    flags = [x for flag, name in weights.items() for x in (flag, str(folder / name))]
    main(["evaluate-prior", *flags, "--device", "cpu", "--out", str(out), *options])


@pytest.mark.parametrize(
    "kind, said",
    [("class", "gFID to the 8 originals"), ("text", "checked exactly against its caption")],
)
def test_the_command(folder, tmp_path, capsys, kind, said):
    write_folder(tmp_path / "data", labelled(), "test")
    data, out = "shapes" if kind == "text" else str(tmp_path / "data"), tmp_path / "out"
    options = "--steps 1 --num-samples 8 --tokens 6 --guidance 1 2 --temperature 1 0.5 --top-k 9"
    evaluate_prior(folder, kind, out, "--data", data, "--prefix-images", "2", *options.split())
    printed = capsys.readouterr().out.splitlines()
    found = json.loads((out / "results.json").read_text())
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
        (out / name).stat().st_size > 3000 for name in ("tokens.png", "samples.png", "prefixes.png")
    )


def test_the_validation_split_is_what_training_left_out(folder, tmp_path, monkeypatch):
    seen, data = [], labelled(40)
    write_folder(tmp_path / "data", data, "train")
    monkeypatch.setattr(
        PriorEvaluation, "run", lambda self, **_: seen.append(self.data) or exit("far enough")
    )
    options = ("--num-samples", "4", "--prefix-images", "0", "--split", "held-out")
    with pytest.raises(SystemExit, match="far enough"):
        evaluate_prior(folder, "class", tmp_path, "--data", str(tmp_path / "data"), *options)
    left = validation_split(40, TrainConfig(val_images=4), "x")[1]
    whole = load_dataset(tmp_path / "data", "train", 8)
    assert torch.equal(seen[0].images, whole.images[left])


@pytest.mark.parametrize(
    "options, match",
    [
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 2}, "top_p=2"),
    ],
)
def test_bad_samplers_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        Sampler(**options)


@pytest.mark.parametrize(
    "kind, options, match",
    [
        ("class", {"num_samples": 21}, "num_samples=21: give 2 to 20 of noise, test split"),
        ("class", {"num_samples": 1}, "num_samples=1:"),
        ("class", {"budgets": [7]}, "budgets=7: .* gives 1 to 6"),
        ("class", {"batch_size": 0}, "batch_size=0"),
        ("class", {"steps": 0}, "steps=0"),
        ("class", {"prefix_images": 11}, "prefix_images=11: give 0 to 10"),
        ("class", {"samplers": []}, "samplers is empty"),
        ("class", {"decoder_guidance": float("inf")}, "decoder_guidance=inf"),
        ("class", {"classifier": "judge-cifar10"}, "takes 32-pixel images, .* makes 8: give f"),
        ("class", {"data": Images("plain", labelled().images)}, "plain has no labels"),
        (
            "text",
            {"data": labelled()},
            "noise has no captions, and this prior takes text: give shapes",
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


def test_the_figure_of_captions_with_few_numbers_of_things():
    """A small evaluation may have no captions of three or four things."""
    met = {group: {"mean": 0.5, "ci95": [0.4, 0.6]} for group in ("all", "1", "2")}
    tokens = {str(k): {"met": met, "shuffled": met} for k in (1, 16)}
    ax = Figure().subplots()
    _plot_captions(
        ax, {"originals": {"met": met}, "tokenizer": tokens}, {"name": "some", "tokens": tokens}
    )
    labels = ax.get_legend_handles_labels()[1]
    assert {"1 thing", "2 things"} <= set(labels) and "3 things" not in labels
