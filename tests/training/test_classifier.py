"""The judge: its augmentation, its training command, and the weights that are shipped."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from minflextok import TrainConfig
from minflextok.cli.parser import main
from minflextok.config import WEIGHTS_DIR, ClassifierConfig
from minflextok.data import CIFAR10_CLASSES, Images, load_dataset, to_float
from minflextok.evaluation.classifier import Classifier, accuracy
from minflextok.presets import CLASSIFIER_PRESETS
from minflextok.training.classifier import random_crop, train_judge

SMALL = ClassifierConfig(
    image_size=8, widths=(8, 12), strides=(2, 1), num_features=6, num_classes=3
)


def coloured(n=64):
    """Images whose class is their colour."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 60, (n, 3, 8, 8), generator=g)
    images[torch.arange(n), labels] += 150
    return Images("colours", images.to(torch.uint8), labels, ["red", "green", "blue"])


RECIPE = TrainConfig(
    steps=60,
    batch_size=16,
    lr=1e-2,
    warmup=5,
    log_every=20,
    eval_every=30,
    val_images=6,
    bf16=False,
)


def test_shapes_of_logits_features_and_maps():
    judge = Classifier(SMALL).eval()
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    assert (
        judge(x).shape == (2, 3)
        and judge.features(x).shape == (2, 6)
        and judge.maps(x).shape == (2, 12, 4, 4)
    )
    torch.testing.assert_close(judge(x), judge.head(judge.features(x)))
    assert (judge.features(x) >= 0).all()
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(
        judge(x, labels), F.cross_entropy(judge(x), labels, label_smoothing=0.1)
    )
    assert Classifier(CLASSIFIER_PRESETS["teacher"]).eval().maps(torch.zeros(1, 3, 32, 32)).shape[
        2:
    ] == (8, 8)


@pytest.mark.parametrize(
    "images, match",
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "images is torch.uint8: give a float tensor"),
        ([1, 2], "images is list"),
        (torch.zeros(2, 3, 9, 8), r"shape \(2, 3, 9, 8\): give \(B >= 1, 3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), "give"),
        (torch.full((1, 3, 8, 8), 2.0), r"range from 2 to 2: scale them to \[-1, 1\]"),
        (torch.full((1, 3, 8, 8), float("nan")), "hold NaN"),
    ],
)
def test_bad_images(images, match):
    with pytest.raises(ValueError, match=match):
        Classifier(SMALL)(images)


@pytest.mark.parametrize(
    "fields, match",
    [
        ({"widths": (8,)}, "give one each"),
        ({"widths": (8, 0)}, "positive whole numbers"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    ],
)
def test_bad_configs(fields, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(SMALL, **fields)


def test_random_crop_shifts_and_mirrors_the_rim():
    x = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).float()
    shift = torch.tensor([[4, 4], [0, 7]])
    out = random_crop(x, shift)
    assert torch.equal(out[0], x[0])
    for i in range(8):
        for j in range(8):
            row, column = abs(i + 0 - 4), j + 7 - 4
            column = column if column < 8 else 14 - column
            assert torch.equal(out[1, :, i, j], x[1, :, row, column])


def test_it_learns_and_its_weights_come_back(tmp_path):
    judge = train_judge(SMALL, RECIPE, coloured(), tmp_path, "cpu", quiet=True)
    assert accuracy(judge, coloured()) > 0.95
    again = Classifier.from_pretrained(tmp_path)
    x = to_float(coloured().images)
    torch.testing.assert_close(judge(x), again(x))
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in logged if "accuracy" in r] == [30, 60]


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    from minflextok.training import loop as train

    straight = train_judge(SMALL, RECIPE, coloured(), tmp_path / "a", "cpu", quiet=True)
    real, calls = train.training_step, []

    def step(*a, **k):
        calls.append(1)
        if len(calls) > 40:
            raise KeyboardInterrupt
        return real(*a, **k)

    monkeypatch.setattr(train, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        train_judge(SMALL, RECIPE, coloured(), tmp_path / "b", "cpu", quiet=True)
    monkeypatch.setattr(train, "training_step", real)
    resumed = train_judge(SMALL, RECIPE, coloured(), tmp_path / "b", "cpu", quiet=True)
    for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_data_that_does_not_fit(tmp_path):
    data = coloured()
    for changed, match in [
        (Images("x", data.images), "labelled"),
        (Images("x", data.images, data.labels + 1), "num_classes=4"),
        (Images("x", data.images[:, :, :6], data.labels), r"\(3, 6, 8\) images"),
        (data.select(torch.arange(5)), "at least 10"),
    ]:
        with pytest.raises(ValueError, match=match):
            train_judge(SMALL, RECIPE, changed, tmp_path, "cpu")


def test_the_command(tmp_path):
    main(
        [
            "train",
            "judge",
            "--data",
            "cifar10-sample",
            "--out",
            str(tmp_path),
            "--model",
            "widths=[8]",
            "--model",
            "strides=[4]",
            "--steps",
            "2",
            "--batch-size",
            "4",
            "--val-images",
            "8",
            "--device",
            "cpu",
            "--quiet",
        ]
    )
    assert Classifier.from_pretrained(tmp_path).config.widths == (8,)
    with pytest.raises(SystemExit, match="unknown ClassifierConfig key 'nonsense'"):
        main(["train", "judge", "--out", str(tmp_path), "--model", "nonsense=1"])


def test_shipped_weights():
    folder = WEIGHTS_DIR / "judge-cifar10"
    data = load_dataset("cifar10-sample", "test")
    assert data.classes == CIFAR10_CLASSES
    assert accuracy(Classifier.from_pretrained("judge-cifar10"), data) > 0.85
    assert (folder / "model.safetensors").stat().st_size < 3e6
