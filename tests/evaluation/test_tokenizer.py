"""The evaluation of a tokenizer: `minflextok evaluate` as a whole."""

import json

import pytest
import torch

from minflextok import FlexTok
from minflextok.cli.parser import main
from minflextok.config import DATA_DIR
from minflextok.data import Images, Stream, in_order, load_dataset, to_float
from minflextok.evaluation import tokenizer
from minflextok.evaluation.fid import FeatureStats, frechet_distance
from minflextok.evaluation.metrics import psnr
from minflextok.evaluation.scores import image_noise
from minflextok.evaluation.settings import EvaluationSettings
from minflextok.evaluation.tokenizer import Evaluation


@pytest.fixture(scope="module")
def sample():
    return load_dataset("cifar10-sample", "test")


def test_evaluate_writes_its_protocol_and_its_numbers(tmp_path, capsys):
    out = tmp_path / "a/results.json"
    main(
        [
            "evaluate",
            "--num-images",
            "8",
            "--steps",
            "2",
            "--tokens",
            "1",
            "16",
            "--seed",
            "3",
            "--out",
            str(out),
        ]
    )
    printed = capsys.readouterr().out.splitlines()
    found = json.loads(out.read_text())
    assert printed[0] == found["protocol"]["line"]
    for said in (
        "8 reconstructions",
        "cifar10-sample, test split, JPEG",
        "judge-cifar10 features",
        "128-d",
        "2 Euler steps",
        "guidance 1",
        "seed 3",
        found["protocol"]["weights_sha256"][:12],
    ):
        assert said in printed[0], said
    assert list(found["tokens"]) == ["1", "16"] and found["tokens"]["16"]["bytes"] == 23
    for row in found["tokens"].values():
        for name in ("rfid", "psnr", "ssim", "mae", "accuracy"):
            low, high = row[name]["ci95"]
            assert low <= row[name]["mean"] <= high, name
    assert found["originals"]["accuracy"]["mean"] > 0.5
    assert (
        len(found["codes"]["ids_used"]) == 16 == len(found["codes"]["perplexity"])
        and found["codes"]["vocabulary"] == 2560
    )
    assert "accuracy" in printed[1] and "results ->" in printed[-1]


def test_evaluate_does_not_depend_on_the_batch_size(sample):
    tok = FlexTok.from_pretrained("cifar10-tiny")
    one, other = (
        Evaluation(
            tok,
            "cifar10-tiny",
            sample,
            EvaluationSettings(num_images=10, budgets=[4], steps=2, batch_size=b),
        ).run()
        for b in (3, 10)
    )
    for name, value in one["tokens"]["4"].items():
        if isinstance(value, dict):
            assert value["mean"] == pytest.approx(other["tokens"]["4"][name]["mean"], rel=1e-3), (
                name
            )
            assert value["ci95"] == pytest.approx(other["tokens"]["4"][name]["ci95"], rel=2e-3), (
                name
            )
    assert one["codes"] == other["codes"] and one["originals"] == other["originals"]
    assert one["protocol"]["pixels_sha256"] == other["protocol"]["pixels_sha256"]


def test_numbers_are_those_of_the_definitions(sample):
    tok = FlexTok.from_pretrained("cifar10-tiny")
    settings = EvaluationSettings(num_images=12, budgets=[8], steps=2, batch_size=5, seed=1)
    work = Evaluation(tok, "cifar10-tiny", sample, settings)
    found = work.run()["tokens"]["8"]
    images = to_float(sample.images[:12])
    made = tok.decode(tok.encode(images)[:, :8], steps=2, noise=image_noise(images.shape, 1, 0))
    assert found["psnr"]["mean"] == pytest.approx(
        psnr(made, images).mean().item(), abs=0.02
    )  # made is not rounded to 8 bits
    right = (work.classifier(made).argmax(1) == sample.labels[:12]).float().mean().item()
    assert found["accuracy"]["mean"] == pytest.approx(right, abs=0.1)
    a, b = (FeatureStats().update(work.classifier.features(x)) for x in (made, images))
    assert found["rfid"]["mean"] == pytest.approx(frechet_distance(a, b), rel=0.02)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"num_images": 5000}, "num_images=5000: give 2 to 1000 of cifar10-sample, test split"),
        ({"num_images": 1}, "num_images=1:"),
        ({"budgets": [17]}, "budgets=17: cifar10-tiny gives 1 to 16"),
        ({"features": "clip"}, "features='clip'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"classifier": "nobody"}, "no weights 'nobody'"),
    ],
)
def test_bad_settings_are_named(sample, options, match):
    with pytest.raises((ValueError, OSError), match=match):
        tok = FlexTok.from_pretrained("cifar10-tiny")
        Evaluation(tok, "cifar10-tiny", sample, EvaluationSettings(**options))


def test_stored_order_and_encoding(sample, tmp_path):
    parts = list(in_order(sample, 4, 10))
    assert [len(x) for x, _ in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in parts]), sample.images[:10])
    assert torch.equal(torch.cat([y for _, y in parts]), sample.labels[:10])
    path = str(DATA_DIR / "cifar10-sample-test.tar.gz")
    streamed = list(in_order(Stream(path, [path], 32, 0), 4, 10))
    assert torch.equal(torch.cat([x for x, _ in streamed]), sample.images[:10])
    assert torch.equal(torch.cat([y for _, y in streamed]), sample.labels[:10])
    assert load_dataset(path, "test").encoding == "JPEG" == sample.encoding
    assert Images("mine", sample.images).encoding == "unknown encoding"


def test_a_space_of_other_features_needs_no_classifier_of_the_size(monkeypatch, sample):
    tok = FlexTok.from_pretrained("shapes")
    data = load_dataset("shapes", "test")
    with pytest.raises(
        ValueError, match="takes 32-pixel images, shapes makes 16.*'imagenet' or 'fidelity'"
    ):
        Evaluation(tok, "shapes", data)
    monkeypatch.setattr(
        tokenizer, "fidelity_inception", lambda: lambda images: images.flatten(1)[:, :4]
    )
    settings = EvaluationSettings(num_images=6, budgets=[2], steps=1, features="fidelity")
    work = Evaluation(tok, "shapes", data, settings)
    assert "torch-fidelity" in work.protocol_line
    row = work.run()["tokens"]["2"]
    assert row["rfid"]["mean"] > 0 and "ci95" not in row["rfid"] and "accuracy" not in row
