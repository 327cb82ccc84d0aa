"""Classifiers: the network, its augmentation, its training, and the shipped evaluation
classifier."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import check_resume, lines
from PIL import Image

from minflextok import TrainConfig
from minflextok.cli.parser import main
from minflextok.config import WEIGHTS_DIR, ClassifierConfig
from minflextok.data import CIFAR10_CLASSES, Images, Stream, load_dataset, to_float
from minflextok.evaluation.classifier import Classifier, accuracy, match_classes
from minflextok.presets import CLASSIFIER_PRESETS
from minflextok.training.classifier import random_crop, train_classifier

SMALL = ClassifierConfig(
    image_size=8, widths=(8, 12), strides=(2, 1), num_features=6, num_classes=3
)


def colored(n=64):
    """Images whose class is their color."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 60, (n, 3, 8, 8), generator=g)
    images[torch.arange(n), labels] += 150
    return Images("colors", images.to(torch.uint8), labels, ["red", "green", "blue"])


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
    classifier = Classifier(SMALL).eval()
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    assert (
        classifier(x).shape == (2, 3)
        and classifier.features(x).shape == (2, 6)
        and classifier.maps(x).shape == (2, 12, 4, 4)
    )
    torch.testing.assert_close(classifier(x), classifier.head(classifier.features(x)))
    assert (classifier.features(x) >= 0).all()
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(
        classifier(x, labels), F.cross_entropy(classifier(x), labels, label_smoothing=0.1)
    )
    assert Classifier(CLASSIFIER_PRESETS["teacher"]).eval().maps(torch.zeros(1, 3, 32, 32)).shape[
        2:
    ] == (8, 8)


@pytest.mark.parametrize(
    "images, match",
    [
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            "images have dtype torch.uint8: give a float tensor",
        ),
        ([1, 2], r"images are \[1, 2\], a list"),
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


def run(out, data=None):
    return train_classifier(SMALL, RECIPE, data or colored(), out, "cpu", quiet=True)


def test_it_learns_and_its_weights_load_again(tmp_path):
    classifier = run(tmp_path)
    assert accuracy(classifier, colored()) > 0.95
    again = Classifier.from_pretrained(tmp_path)
    x = to_float(colored().images)
    torch.testing.assert_close(classifier(x), again(x))
    assert [step for step, _ in lines(tmp_path, "accuracy")] == [30, 60]


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    check_resume(run, tmp_path, 40, "accuracy")


def test_data_that_does_not_fit(tmp_path):
    data = colored()
    for changed, match in [
        (Images("x", data.images), "needs labeled images"),
        (Images("x", data.images, data.labels + 1), "num_classes=4"),
        (Images("x", data.images[:, :, :6], data.labels), r"\(3, 6, 8\) images"),
        (data.select(torch.arange(5)), "at least 10"),
    ]:
        with pytest.raises(ValueError, match=match):
            run(tmp_path, changed)


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


# ---- class names ---------------------------------------------------------------------------------


def test_a_folder_without_a_class_keeps_the_numbers_of_the_classifier(tmp_path):
    data = colored(60)
    for i, label in enumerate(data.labels.tolist()):
        for split in ("train", "apart", "foreign"):
            name = data.classes[label]
            if split == "apart" and name == "blue":  # the first in alphabetical order
                continue
            name = "violet" if split == "foreign" and name == "red" else name
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(data.images[i].permute(1, 2, 0).numpy())
            image.save(tmp_path / split / name / f"{i}.png")
    run(tmp_path / "out", load_dataset(tmp_path / "train"))
    classifier = Classifier.from_pretrained(tmp_path / "out")
    assert classifier.config.class_names == ("blue", "green", "red")
    apart = load_dataset(tmp_path / "apart")
    assert apart.classes == ["green", "red"]
    assert accuracy(classifier, apart) > 0.95 and accuracy(classifier, data) > 0.95
    with pytest.raises(ValueError, match="has class 'violet', which the classifier does not have"):
        accuracy(classifier, load_dataset(tmp_path / "foreign"))
    with pytest.raises(ValueError, match="has class 'violet'"):
        named = dataclasses.replace(SMALL, class_names=classifier.config.class_names)
        train_classifier(named, RECIPE, load_dataset(tmp_path / "foreign"), tmp_path / "x", "cpu")


@pytest.mark.parametrize(
    "names, classes, labels, want",
    [
        (["a", "b", "c"], ["c", "a"], [0, 1, 0], [2, 0, 2]),
        ([], ["c", "a"], [0, 1], [0, 1]),
        (["a", "b", "c"], [], [0, 2], [0, 2]),  # shards have numbers only
        (["1", "2", "3"], ["2", "3"], [0, 1], [1, 2]),
        (["a", "b", "c"], ["a", "x", "c"], [0, 2], [0, 2]),  # no image of the unknown class
        (["a", "b", "c"], ["a", "x", "c"], [0, 1], "class 'x'"),
        (["a", "b", "c"], ["A"], [0], "class 'A'"),
        (["a", "b", "c"], [], [0, 3], "class 3"),
        ([], ["p", "q", "r", "s"], [3], "class 's'.* 0 to 2"),
    ],
)
def test_classes_are_matched_by_name(names, classes, labels, want):
    x, labels = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), torch.tensor(labels)
    data = Images("x", x, labels, classes)
    if isinstance(want, str):
        with pytest.raises(ValueError, match=want):
            match_classes(data, names, 3, "it")
    else:
        assert match_classes(data, names, 3, "it")(labels).tolist() == want


def test_streamed_labels_are_checked_when_they_come():
    convert = match_classes(Stream("s", ["s.tar"], 8, 0), ["a", "b"], 2, "it")
    assert convert(torch.tensor([1, 0])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="s has class 2, which it does not have"):
        convert(torch.tensor([0, 2]))
