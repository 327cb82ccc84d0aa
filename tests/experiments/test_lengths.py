"""Adaptive lengths, measured: the parts of the experiment."""

import json

import torch

from minflextok import FlexTok
from minflextok.data import load_dataset, to_float
from minflextok.experiments.lengths import (
    choose_confidence,
    decoded_psnr,
    main,
    shortest_fixed,
    train_head,
)


def test_the_shortest_fixed_length_reaches_the_quality_and_one_less_does_not():
    tok = FlexTok.from_pretrained("cifar10-tiny")
    x = to_float(load_dataset("cifar10-sample", "test").images[:16])
    curve = [decoded_psnr(tok, x, torch.full((16,), k), 2).mean().item() for k in range(1, 17)]
    k, value = shortest_fixed(tok, x, curve[3] - 0.01, 2)
    assert curve[k - 1] == value >= curve[3] - 0.01 and (k == 1 or curve[k - 2] < curve[3])


def test_more_confidence_is_chosen_for_a_larger_share():
    torch.manual_seed(0)
    z, lengths = torch.randn(300, 8, 3), torch.randint(1, 9, (300,))
    head = train_head(z[:200], lengths[:200], steps=20)
    some, most = (choose_confidence(head, z[200:], lengths[200:], s) for s in (0.3, 0.95))
    assert some <= most and (head.lengths(z[200:], most) >= lengths[200:]).float().mean() >= 0.9


def test_the_command_stores_what_it_found(tmp_path, capsys):
    images = ["--train-images", "20", "--test-images", "40", "--steps", "1"]
    main(["--weights", "cifar10-tiny", *images, "--out", str(tmp_path)])
    results = json.loads((tmp_path / "cifar10-tiny.json").read_text())
    assert json.loads(capsys.readouterr().out) == results
    assert results["adaptive"]["of those, met"] == 1.0 and (tmp_path / "cifar10-tiny.png").exists()
    assert sum(results["adaptive"]["images by length"]) == 40
