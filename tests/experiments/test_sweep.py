"""The sweep, at equal steps and at equal minutes: rows are scored, stored, not measured again."""

import dataclasses
import json

import pytest

from minflextok.data import load_dataset
from minflextok.experiments import sweep as module
from minflextok.experiments.sweep import Setting, sweep
from minflextok.presets import RECIPES


@pytest.fixture
def data(monkeypatch):
    recipe = dataclasses.replace(RECIPES["cifar10-tiny"], val_images=8, bf16=False)
    monkeypatch.setitem(RECIPES, "cifar10-tiny", recipe)
    return load_dataset("cifar10-sample", "train")


def test_at_equal_steps(tmp_path, data, monkeypatch, capsys):
    setting = Setting("cifar10-tiny", "cifar10-sample (JPEG)", steps=2, val_images=16)
    sweep(setting, data, tmp_path, ["8 registers", "recipe"])
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert list(found["rows"]) == ["recipe", "8 registers"]  # in the order of the table
    assert [list(row["psnr"])[-1] for row in found["rows"].values()] == ["16", "8"]
    assert all(row["images"] == 128 for row in found["rows"].values())
    table = (tmp_path / "sweep.md").read_text()
    assert "2 steps of batches of 64" in table and "| 8 registers | " in table
    monkeypatch.setattr(module, "measure", None)
    sweep(setting, data, tmp_path, ["recipe"])
    with pytest.raises(ValueError, match="sweep.json has another setting"):
        sweep(dataclasses.replace(setting, steps=3), data, tmp_path, ["recipe"])


def test_at_equal_minutes_with_scores_on_validation_images(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(module, "BASE", {"batch_size": 32})
    setting = Setting(
        "cifar10-tiny", "cifar10-sample (JPEG)", steps=None, minutes=0.002, val_images=16
    )
    sweep(setting, data, tmp_path, ["head_dim 32"])
    row = json.loads((tmp_path / "sweep_minutes.json").read_text())["rows"]["head_dim 32"]
    assert row["images"] % 32 == 0
    for guidance in ("guidance 1", "guidance 2"):
        assert list(row[guidance]) == ["1", "4", "8", "16"]
        assert all(x["rfid"] > 0 and 0 <= x["accuracy"] <= 1 for x in row[guidance].values())
    line = (tmp_path / "sweep_minutes.md").read_text().splitlines()[-1]
    assert line.startswith("| head_dim 32 | ") and line.count("|") == 11


def test_one_cost_is_given():
    for steps, minutes in ((None, None), (3, 1.0)):
        with pytest.raises(ValueError, match="steps, minutes: give one of them"):
            Setting("cifar10-tiny", "x", steps, minutes)
