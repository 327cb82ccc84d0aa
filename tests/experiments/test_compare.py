"""The comparison: every system runs, and results are stored and not computed again."""

import dataclasses
import json

import matplotlib.pyplot as plt
import pytest
import torch

from minflextok import PRESETS, FlexTok, TokenizerConfig
from minflextok.cli import train
from minflextok.cli.parser import main
from minflextok.data import load_dataset
from minflextok.experiments import equal_time
from minflextok.experiments.baselines import Regressor
from minflextok.experiments.compare import compare
from minflextok.experiments.equal_time import Setting, recipe_elsewhere, recipe_of, speed, speeds
from minflextok.experiments.systems import SYSTEMS
from minflextok.presets import RECIPES


def test_systems_differ_in_what_they_say_and_have_equal_size():
    sizes = {}
    for name, system in SYSTEMS.items():
        config = dataclasses.replace(PRESETS["cifar10-tiny"], **system.model)
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in system.cls(config).parameters())
        assert all(1 <= k <= config.num_registers for k in system.budgets)
    assert max(sizes.values()) < 1.03 * min(sizes.values()), sizes


def test_it_stores_what_it_finds_and_does_not_repeat_it(tmp_path, monkeypatch):
    systems = ["titok-4", "grid-16", "full-attention"]
    setting = Setting("cifar10-tiny", 1.0, "cifar10-sample", "cifar10-sample", 12)
    monkeypatch.setattr(equal_time, "speed", lambda *_: 2 / 60)
    small = dataclasses.replace(PRESETS["cifar10-tiny"], enc_depth=1, dec_depth=1)
    monkeypatch.setitem(PRESETS, "cifar10-tiny", small)
    monkeypatch.setattr(TokenizerConfig, "budgets", property(lambda c: [1, c.num_registers]))
    monkeypatch.setitem(
        RECIPES, "cifar10-tiny", dataclasses.replace(RECIPES["cifar10-tiny"], val_images=8)
    )
    table = compare(systems, setting, tmp_path, quiet=True)
    results = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in systems}
    assert list(results["titok-4"]["tokens"]) == ["4"]
    assert (
        list(results["full-attention"]["tokens"]) == ["1", "16"]
        and results["grid-16"]["system"]["images_seen"] == 2 * 32
    )
    assert table.count("\n") == 1 + 4 and "| grid-16 | 16 | 23 |" in table
    assert (
        (tmp_path / "tokens.png").stat().st_size > 10_000 < (tmp_path / "bytes.png").stat().st_size
    )
    rows = {name: plt.imread(tmp_path / f"{name}.png").shape[0] for name in systems}
    assert rows["full-attention"] > rows["titok-4"] == rows["grid-16"]  # two numbers of tokens
    monkeypatch.setattr(equal_time, "train_tokenizer", None)
    assert compare(systems, setting, tmp_path, quiet=True) == table
    file = tmp_path / "titok-4.json"
    before = json.loads(file.read_text())
    before["setting"].pop("recipe")  # of a version that had another recipe
    file.write_text(json.dumps(before))
    with pytest.raises(ValueError, match=r"\(recipe=None there, \{'optimizer': 'muon'"):
        compare(systems, setting, tmp_path, quiet=True)
    with pytest.raises(
        ValueError, match=r"speeds.json is of another comparison \(num_images=12 there, 13 here\)"
    ):
        compare(systems, dataclasses.replace(setting, num_images=13), tmp_path, quiet=True)
    regressor = Regressor.from_pretrained(tmp_path / "runs/titok-4")
    assert regressor.config.num_registers == 4
    with pytest.raises(ValueError, match="holds a Regressor, not a FlexTok"):
        FlexTok.from_pretrained(tmp_path / "runs/titok-4")


def test_speeds_are_measured_in_turns_and_kept(tmp_path, monkeypatch):
    setting, calls = Setting("cifar10-tiny", 1.0, "here", "there", 12), []

    def fake(name, *_):
        calls.append(name)
        return float(len(calls) if name == "flextok" else -len(calls))

    monkeypatch.setattr(equal_time, "speed", fake)
    file = tmp_path / "speeds.json"
    assert speeds(["flextok", "titok-1"], setting, None, file) == {"flextok": 5, "titok-1": -2}
    assert calls == ["flextok", "titok-1"] * 3
    assert speeds(["titok-1", "uniform"], setting, None, file) == {"titok-1": -2, "uniform": -7}
    with pytest.raises(ValueError, match=r"is of another comparison \(minutes=1.0 there, 2.0 here"):
        speeds(["flextok"], dataclasses.replace(setting, minutes=2.0), None, file)


def test_a_speed_counts_the_steps_of_the_recipe():
    setting = Setting("cifar10-tiny", 1.0, "cifar10-sample", "cifar10-sample", 12)
    assert speed("grid-16", setting, load_dataset("cifar10-sample", "train"), steps=4) > 0
    on_cpu, timed = (
        recipe_of(SYSTEMS["no-nested"], setting, 7),
        recipe_of(SYSTEMS["flextok"], setting),
    )
    assert (on_cpu.steps, on_cpu.minutes, on_cpu.optimizer) == (7, 0, "muon")
    assert (timed.minutes, timed.nested_full, on_cpu.nested_full) == (1, 0.3, 1)
    on_gpu = recipe_of(SYSTEMS["flextok"], dataclasses.replace(setting, device="cuda"), 7)
    assert on_gpu.batch_size == RECIPES["cifar10-tiny"].batch_size


def test_training_elsewhere_sees_as_many_images_in_other_batches():
    setting = Setting("cifar10-tiny", 1.0, "here", "there", 12, train_on="cuda", batch_size=128)
    recipe = recipe_elsewhere(SYSTEMS["flextok"], setting, 40)
    assert (recipe.steps * recipe.batch_size, recipe.batch_size) == (40 * 32, 128)
    assert recipe.compile and not recipe.savings and recipe.optimizer == "muon"
    here = recipe_elsewhere(
        SYSTEMS["flextok"], dataclasses.replace(setting, train_on="", batch_size=0), 40
    )
    assert here == recipe_of(SYSTEMS["flextok"], setting, 40)


def test_the_time_of_a_training_elsewhere_is_that_of_the_cpu(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(train, "compare", lambda _, setting, out: given.append(setting) or "")
    main(["compare", "--device", "cpu:0", "--train-on", "cpu:0", "--out", str(tmp_path)])
    assert (given[0].device, given[0].train_on) == ("cpu", "cpu:0")


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"preset": "shapes"}, "makes 16-pixel images, judge-cifar10 takes 32"),
        ({"num_images": 2000}, "num_images=2000: cifar10-sample has 1000 test images"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_trained(tmp_path, changes, match):
    setting = dataclasses.replace(
        Setting("cifar10-tiny", 1.0, "cifar10-sample", "cifar10-sample", 12), **changes
    )
    with pytest.raises(ValueError, match=match):
        compare(["titok-1"], setting, tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())


def test_an_unknown_system_is_named(tmp_path):
    with pytest.raises(SystemExit, match="--systems nothing: give some of flextok, titok-1"):
        main(["compare", "--systems", "nothing", "--out", str(tmp_path)])
