"""Adaptive lengths, measured: the table, the comparison, the head, and both commands."""

import json

import pytest
import torch

from minflextok import FlexTok
from minflextok.adaptive import LengthHead, encode_adaptive, psnr
from minflextok.data import load_dataset, to_float
from minflextok.experiments import length_head, lengths
from minflextok.experiments.length_head import (
    choose_confidence,
    lengths_of,
    metric_of,
    train_head,
    values_by_length,
)
from minflextok.experiments.lengths import compare, fixed_length


def test_the_table_has_what_the_search_decodes():
    tok = FlexTok.from_pretrained("cifar10-tiny")
    x = to_float(load_dataset("cifar10-sample", "test").images[:6])
    metrics = {"psnr": psnr, "class": metric_of("class")}
    table = values_by_length(tok, x, metrics, 1)
    for name, target in (("psnr", 16.0), ("class", 0.5)):
        found, values = encode_adaptive(tok, x, target, metrics[name], steps=1), table[name]
        at_length = values[torch.arange(6), lengths_of(found) - 1]
        torch.testing.assert_close(at_length, found.values, atol=1e-3, rtol=1e-3)
        some = compare(values, target, 11.0)["adaptive"]
        assert some["tokens"]["mean"] == pytest.approx(lengths_of(found).double().mean().item())
    assert ((table["class"] >= 0) & (table["class"] <= 1)).all()


def test_the_comparison_is_that_of_plain_loops():
    g = torch.Generator().manual_seed(0)
    values = torch.rand(40, 6, generator=g).cumsum(1)  # it rises: the search finds the shortest
    predicted = torch.randint(1, 7, (40,), generator=g)
    found, target = compare(values, 2.0, 11.0, predicted), 2.0
    best = [next((k for k in range(1, 7) if row[k - 1] >= target), 6) for row in values]
    quality = sum(values[i, k - 1].item() for i, k in enumerate(best)) / 40
    fixed = next(k for k in range(1, 7) if values[:, k - 1].mean() >= quality - 1e-6)
    possible = [i for i in range(40) if values[i, 5] >= target]
    one = found["one length for all, of this mean quality"]
    assert found["adaptive"]["tokens"]["mean"] == pytest.approx(sum(best) / 40)
    assert one["tokens"] == fixed
    assert one["fewer tokens than it, adaptive"]["mean"] == pytest.approx(fixed - sum(best) / 40)
    assert found["adaptive"]["met, of those that K tokens meet it for"]["mean"] == 1
    share = [sum(values[i, k].item() >= target for i in range(40)) for k in range(6)]
    assert (
        found["one length for all, at which as many meet the target"]
        == share.index(len(possible)) + 1
    )
    met = sum(values[i, predicted[i] - 1].item() >= target for i in possible) / len(possible)
    got = found["predicted"]["met, of those that K tokens meet it for"]["mean"]
    assert got == pytest.approx(met)
    assert fixed_length(torch.tensor([1.0, 2.0]), 5.0) == 2


def test_more_confidence_is_chosen_for_a_larger_share():
    torch.manual_seed(0)
    z, found = torch.randn(300, 8, 3), torch.randint(1, 9, (300,))
    head = train_head(z[:200], found[:200], steps=20)
    some, most = (choose_confidence(head, z[200:], found[200:], s) for s in (0.3, 0.95))
    assert some <= most and (head.lengths(z[200:], most) >= found[200:]).float().mean() >= 0.9


def test_the_commands_store_what_they_found(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(length_head, "QUARTER", 20)
    head, weights = tmp_path / "head", ["--weights", "cifar10-tiny"]
    length_head.main([*weights, "--train-images", "20", "--steps", "1", "--out", str(head)])
    stored = json.loads((head / "results.json").read_text())
    assert json.loads(capsys.readouterr().out) == stored
    assert stored["target"] == LengthHead.from_pretrained(head).config.target
    metrics = ["--metrics", "psnr", "class", "--head", str(head)]
    lengths.main([*weights, "--test-images", "20", *metrics, "--out", str(tmp_path)])
    results = json.loads((tmp_path / "cifar10-tiny.json").read_text())
    assert json.loads(capsys.readouterr().out) == results and results["setting"]["steps"] == 1
    assert sum(results["psnr"]["adaptive"]["images by length"]) == 20 > results["class"]["images"]
    assert results["psnr"]["target"] == stored["target"] and "predicted" in results["psnr"]
    assert results["class"]["target"] == 0.5 and "predicted" not in results["class"]
    assert (tmp_path / "cifar10-tiny.png").stat().st_size > 20_000
    with pytest.raises(ValueError, match="train one for it"):
        lengths.main(["--weights", "shapes", "--data", "shapes", "--head", str(head)])
    with pytest.raises(ValueError, match="metric='ssim': give 'psnr' or 'class'"):
        metric_of("ssim")
