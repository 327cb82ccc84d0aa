"""The sweep, at equal steps and at equal minutes: rows are scored, stored, not measured again."""

import dataclasses
import json

import pytest
from conftest import ROOT

from minflextok.data import load_dataset
from minflextok.experiments import sweep as module
from minflextok.experiments import sweep_rows
from minflextok.experiments.sweep import sweep
from minflextok.experiments.sweep_rows import Setting
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
    assert (
        "2 steps. Base: {'optimizer': 'adamw', 'batch_size': 64, " in table
        and "| 8 registers | " in table
    )
    monkeypatch.setattr(module, "measure", None)
    sweep(setting, data, tmp_path, ["recipe"])
    with pytest.raises(ValueError, match="sweep.json has another setting"):
        sweep(dataclasses.replace(setting, steps=3), data, tmp_path, ["recipe"])


def test_at_equal_minutes_with_scores_on_validation_images(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(sweep_rows, "BASE", sweep_rows.BEFORE | {"batch_size": 32})
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


def test_trained_elsewhere_for_the_images_of_this_processor(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(sweep_rows, "BASE", sweep_rows.BEFORE | {"batch_size": 32})
    changes = {"EMA 0.998": {"ema": 0.998}, "batch 16": {"batch_size": 16}}
    monkeypatch.setattr(sweep_rows, "AT_EQUAL_MINUTES", changes)
    setting = Setting(
        "cifar10-tiny", "cifar10-sample (JPEG)", None, minutes=1.0, val_images=16, train_on="cpu"
    )
    with pytest.raises(
        ValueError, match="sweep_minutes_speeds.json is missing: run with --speeds first"
    ):
        sweep(setting, data, tmp_path, ["batch 16"])
    monkeypatch.setattr(module, "steps_per_second", lambda run, recipe: 16 / recipe.batch_size)
    module.measure_speeds(setting, data, tmp_path)
    assert module.read_speeds(setting, tmp_path) == {"EMA 0.998": 16, "batch 16": 16}
    module.write_results(
        {"images_per_second": {"EMA 0.998": 0.5, "batch 16": 0.5}}, tmp_path / setting.speeds
    )
    for change in changes:  # as two commands would
        sweep(setting, data, tmp_path, [change])
    rows = json.loads((tmp_path / "sweep_minutes.json").read_text())["rows"]
    assert {name: row["images"] for name, row in rows.items()} == {"EMA 0.998": 32, "batch 16": 32}
    (tmp_path / "sweep_minutes.json").unlink()  # the files of single rows are enough
    monkeypatch.setattr(module, "measure", None)
    found = module.stored_rows(
        tmp_path / "sweep_minutes.json",
        tmp_path / "runs/sweep_minutes",
        dataclasses.asdict(setting),
    )
    assert found == rows


def test_every_row_differs_from_the_base():
    for steps, minutes in ((3, None), (None, 1.0)):
        setting = Setting("cifar10-tiny", "x", steps, minutes, teacher="t")
        rows = {sweep_rows.row_of(name, setting) for name in setting.changes}
        assert len(rows) == len(setting.changes)


def test_sizes_share_one_speed_and_have_their_own_minutes():
    setting = Setting("cifar10", "x", None, sizes=True)
    for minutes, batch in sweep_rows.BUDGETS:
        config, recipe, _ = sweep_rows.row_of(
            f"width 192, 4 + 5 blocks, {minutes} minutes", setting
        )
        assert (config.enc_dim, config.dec_depth) == (192, 5)
        assert (recipe.minutes, recipe.batch_size) == (minutes, batch)
        assert not recipe.compile and recipe.savings


def test_figure_of_sizes_has_a_line_for_each_size():
    rows = json.loads((ROOT / "benchmarks/sweep_sizes.json").read_text())["rows"]
    assert list(rows) == list(sweep_rows.SIZES)
    axes = module.plot_sizes(rows).axes
    assert [len(ax.lines) for ax in axes] == [3, 3, 3]
    first = axes[0].lines[1]  # width 192
    assert list(first.get_xdata()) == [0.5, 2, 8]
    one = rows["width 192, 4 + 5 blocks, 480 minutes"]["guidance 2"]["1"]["rfid"]
    assert first.get_ydata()[-1] == one


def test_one_cost_is_given():
    for steps, minutes, sizes in ((None, None, False), (3, 1.0, False), (3, None, True)):
        with pytest.raises(ValueError, match="steps, minutes, sizes: give one of them"):
            Setting("cifar10-tiny", "x", steps, minutes, sizes=sizes)
