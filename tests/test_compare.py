"""The comparison: every system runs, results are stored and not done again, JPEG and WebP behave as such."""

import dataclasses
import json

import pytest
import torch

from minflextok import PRESETS, TokenizerConfig
from minflextok.cli import main
from minflextok.compare import SYSTEMS, codecs, compare, load_results
from minflextok.config import RECIPES
from minflextok.data import load_dataset
from minflextok.judge import Judge


def test_systems_differ_in_what_they_say_and_have_equal_size():
    sizes = {}
    for name, system in SYSTEMS.items():
        config = dataclasses.replace(PRESETS["cifar10-tiny"], **system.model)
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in system.cls(config).parameters())
        assert all(1 <= k <= config.num_registers for k in system.budgets)
    assert max(sizes.values()) < 1.03 * min(sizes.values()), sizes


def test_it_stores_what_it_finds_and_does_not_repeat_it(tmp_path, monkeypatch):
    from minflextok import compare as module

    systems = ["titok-4", "grid-16", "full-attention"]
    args = (systems, "cifar10-tiny", 0.003, "cifar10-sample", "cifar10-sample", tmp_path, 12)
    monkeypatch.setattr(TokenizerConfig, "budgets", property(lambda c: [1, c.num_registers]))
    monkeypatch.setitem(RECIPES, "cifar10-tiny", dataclasses.replace(RECIPES["cifar10-tiny"], val_images=8))
    table = compare(*args, quiet=True)
    results = load_results(tmp_path)
    assert list(results) == systems and list(results["titok-4"]["tokens"]) == ["4"]
    assert list(results["full-attention"]["tokens"]) == ["1", "16"] and results["grid-16"]["system"]["images_seen"] >= 64
    assert table.count("\n") == 1 + 4 and "| grid-16 | 16 | 23 |" in table
    assert (tmp_path / "tokens.png").stat().st_size > 10_000 < (tmp_path / "bytes.png").stat().st_size
    monkeypatch.setattr(module, "train_tokenizer", None)
    assert compare(*args, quiet=True) == table


def test_jpeg_and_webp_trade_bytes_for_quality():
    test = load_dataset("cifar10-sample", "test")
    rows = list(codecs(test, 60, Judge.from_pretrained("judge-cifar10"), (5, 70)))
    for poor, good in (rows[:2], rows[2:]):
        assert poor["codec"] == good["codec"] and poor["quality"] == 5
        assert 0 < poor["beyond_header"] < poor["bytes"] < good["bytes"]
        assert poor["psnr"]["mean"] < good["psnr"]["mean"] and poor["rfid"]["mean"] > good["rfid"]["mean"]
    json.dumps(rows)


def test_an_unknown_system_is_named(tmp_path):
    with pytest.raises(SystemExit, match="--systems nothing: there are flextok, titok-1"):
        main(["compare", "--systems", "nothing", "--out", str(tmp_path)])
