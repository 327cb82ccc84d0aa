"""Teachers for REPA: the rotated set, and a run of all of them, stored and not measured again."""

import dataclasses
import json

import pytest
import torch
from conftest import same

from minflextok.data import Images, load_dataset, validation_split
from minflextok.evaluation import scores
from minflextok.evaluation import tokenizer as evaluation
from minflextok.evaluation.classifier import Classifier
from minflextok.experiments import teachers as module
from minflextok.experiments.sweep import slug
from minflextok.experiments.sweep_rows import Setting
from minflextok.experiments.teachers import compare, rotated, teacher_of
from minflextok.presets import CLASSIFIERS, PRESETS, RECIPES
from minflextok.training.tokenizer import TokenizerTask


def test_labels_are_quarter_turns_counterclockwise():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 5, 5), generator=g, dtype=torch.uint8)
    found = rotated(Images("x", images))
    assert len(found) == 12 and found.classes == ["0°", "90°", "180°", "270°"]
    assert found.labels.bincount().tolist() == [3, 3, 3, 3]
    for i, (image, turns) in enumerate(zip(found.images, found.labels.tolist(), strict=True)):
        for row in range(5):
            for column in range(5):
                r, c = row, column
                for _ in range(turns):  # a turn takes its pixels from the right column downwards
                    r, c = c, 4 - r
                assert torch.equal(image[:, row, column], images[i % 3, :, r, c])


def test_a_bright_corner_goes_round():
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    image[..., 0, 0] = 255  # top left
    corners = [tuple(x[0].nonzero()[0].tolist()) for x in rotated(Images("x", image)).images]
    assert corners == [(0, 0), (3, 0), (3, 3), (0, 3)]


@pytest.fixture
def data(monkeypatch):
    """160 images, of which 16 are the validation split; tiny networks, and nothing that is slow and
    not stored."""
    model = dict(enc_dim=64, dec_dim=64, enc_depth=1, dec_depth=2, num_registers=4)
    replace, preset = dataclasses.replace, CLASSIFIERS["teacher"]
    monkeypatch.setitem(PRESETS, "cifar10-tiny", replace(PRESETS["cifar10-tiny"], **model))
    monkeypatch.setitem(RECIPES, "cifar10-tiny", replace(RECIPES["cifar10-tiny"], bf16=False))
    small = replace(preset.model, widths=(4, 8, 8), num_features=8)
    recipe = replace(preset.recipe, batch_size=16, warmup=1, bf16=False)
    monkeypatch.setitem(CLASSIFIERS, "teacher", replace(preset, model=small, recipe=recipe))
    monkeypatch.setattr(TokenizerTask, "picture", lambda *_: None)
    monkeypatch.setattr(scores, "bootstrap_frechet", lambda a, b: (0.0, 0.0))
    monkeypatch.setattr(evaluation, "imagenet_network", lambda: lambda x: x.mean(3).flatten(1))
    return load_dataset("cifar10-sample", "train").select(torch.arange(160))


def test_teachers_are_trained_scored_and_stored(tmp_path, data, monkeypatch, capsys):
    setting = Setting("cifar10-tiny", "160 images (JPEG)", None, minutes=0.001)
    compare(setting, 2, data, tmp_path, ["rotations", "labels"])
    compare(setting, 2, data, tmp_path, ["none, another seed", "none"])
    rows = json.loads((tmp_path / "teachers.json").read_text())["rows"]
    # in the order of the table
    assert list(rows) == ["none", "none, another seed", "labels", "rotations"]
    assert rows["none"]["loss"] < min(rows["labels"]["loss"], rows["rotations"]["loss"])
    for row in rows.values():
        for guidance in ("guidance 1", "guidance 2"):
            spaces = [row[space + guidance] for space in ("", "imagenet, ")]
            assert list(spaces[0]) == list(spaces[1]) == ["1", "4"]
            assert spaces[0]["1"]["rfid"] != spaces[1]["1"]["rfid"]
    # 16 of 160 images are scored; 57 of the other 4 * 144 are the teacher's own validation split
    assert rows["rotations"]["teacher"]["set"] == 4 * 144 - 57
    assert rows["rotations"]["teacher"]["seen"] == 2 * 16
    assert rows["labels"]["teacher"]["accuracy"] == 0.836  # by its README

    runs = tmp_path / "runs/teachers"
    used = {name: json.loads((runs / slug(name) / "run.json").read_text()) for name in rows}
    assert {n: x["train"]["seed"] for n, x in used.items() if x["train"]["seed"]} == {
        "none, another seed": 1
    }
    assert "teacher" not in used["none, another seed"]
    assert "teacher" not in used["none"]
    assert used["labels"]["teacher"] == {"name": "teacher-cifar10"}
    assert used["rotations"]["teacher"] == {"name": str(runs / "weights/rotations")}

    table = (tmp_path / "teachers.md").read_text()
    for name, count in (("rotations", 3), ("none, another seed", 2)):
        assert sum(text.startswith(f"| {name} | ") for text in table.splitlines()) == count
    assert "160 images (JPEG)" in table and "| 49,000 | 640,000 | 83.6% |" in table
    monkeypatch.setattr(module, "measure", None)
    compare(setting, 2, data, tmp_path, list(rows))
    with pytest.raises(ValueError, match=r"teachers.json has another setting"):
        compare(setting, 3, data, tmp_path, ["none"])


def test_what_each_teacher_is(tmp_path, data):
    def make(name):
        weights, facts = teacher_of(name, 2, data, data.select(torch.arange(20)), tmp_path / name)
        return Classifier.from_pretrained(weights), facts

    rotations, _ = make("rotations")
    longer, facts = make("labels, longer")
    assert facts["set"] == 160 - 16 and facts["seen"] == 2 * 2 * 16
    assert rotations.config.num_classes == 4 and longer.config.class_names == tuple(data.classes)
    flips = [
        json.loads((tmp_path / name / "run.json").read_text())["train"]["flip"]
        for name in ("rotations", "labels, longer")
    ]
    assert flips == [False, True]  # a mirrored quarter turn is one in the other direction
    untrained, facts = make("untrained")
    assert facts == {} and untrained.maps(torch.ones(1, 3, 32, 32)).std() > 0
    again, _ = make("untrained")
    assert same(untrained, again)


def test_no_teacher_is_trained_on_an_image_that_is_scored(tmp_path, data, monkeypatch):
    seen = {}
    setting = Setting("cifar10-tiny", "x", None, minutes=0.001, val_images=16)
    scored = validation_split(len(data), module.row_of(module.BASE_ROW, setting)[1], "x")[1]

    def keep(name, steps, train, validation, out):
        seen[name] = train.images
        assert torch.equal(validation.images, data.images[scored])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "teacher_of", keep)
    with pytest.raises(KeyboardInterrupt):
        compare(setting, 2, data, tmp_path, ["rotations"])
    held_out = {image.numpy().tobytes() for image in data.images[scored]}
    assert len(held_out) == 16 and len(seen["rotations"]) == 144
    assert held_out.isdisjoint(image.numpy().tobytes() for image in seen["rotations"])
