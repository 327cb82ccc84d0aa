"""The benchmarks run, and their formulas count the operations that PyTorch counts."""

import dataclasses
import json
import sys

import pytest
import torch
from conftest import ROOT, TINY, randomised
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts, not part of the package

import bench
import prior
import readers
import step

from minflextok.experiments.flops import decode_flops, decoder_flops, embed_flops, encoder_flops
from minflextok.training.runtime import peak_memory


@pytest.fixture(
    params=[{}, {"separate_adaln": False, "learned_null": False}],
    ids=["separate_adaln", "shared_adaln"],
)
def tok(request):
    return randomised(dataclasses.replace(TINY, **request.param))


@pytest.mark.parametrize("savings", [True, False])
@pytest.mark.parametrize("k", [1, 4, 5, 6])
@torch.no_grad()
def test_formulas_count_what_pytorch_counts(tok, images, k, savings):
    def counted(f, *args):
        # The math kernel, because the counter overlooks the fused attention of a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            f(*args)
        return counter.get_total_flops()

    c, ids = tok.config, torch.randint(120, (3, k))
    tok.savings = savings
    assert encoder_flops(c, 3, k, savings) == counted(tok.encode, images, k)
    velocity = embed_flops(c, 3) + decoder_flops(c, 3, k, savings, timesteps=3)
    assert velocity == counted(tok.velocity, images, torch.rand(3), ids)
    decode = counted(lambda: tok.decode(ids, 2, guidance=3.0, noise=images))
    assert decode_flops(c, 3, k, 2, savings) == decode


def test_bench_runs_and_finds_no_difference(tmp_path):
    out = tmp_path / "results.json"
    command = ["--preset", "shapes", "--quick", "--device", "cpu", "--threads", "1"]
    bench.main([*command, "--out", str(out)])
    found = json.loads(out.read_text())
    train, *rows = found["rows"]
    assert train["what"] == "train"
    assert [(r["what"], r["k"]) for r in rows] == [
        ("encode", 1),
        ("encode", 16),
        ("decode, 2", 1),
        ("decode, 2", 16),
    ]
    for row in found["rows"]:
        assert row["difference"] < 1e-4 and row["on_s"] > 0, row
        assert row["on_flops"] <= row["off_flops"], row
    assert found["cost"]["k"] == [1, 2, 4, 8, 16]
    assert found["cost"]["positions"] == [18, 19, 21, 25, 32]
    assert (tmp_path / "cost.png").stat().st_size > 1000
    if peak_memory() is not None:
        assert rows[0]["off_mb"] > 0
        stored = json.loads((ROOT / "benchmarks/results.json").read_text())
        assert found.keys() == stored.keys() and found["cost"].keys() == stored["cost"].keys()
        assert rows[0].keys() == stored["rows"][1].keys()


def test_bench_of_the_prior_compares_every_side(tmp_path, capsys):
    out = tmp_path / "prior.json"
    command = ["--presets", "cifar10-tiny", "--tokens", "40", "--batch", "1", "--turns", "1"]
    prior.main([*command, "--threads", "1", "--out", str(out)])
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    (row,) = found["rows"]
    assert {"cached", "uncached"} <= row.keys()
    assert row["cached"]["ratio"] == 1 < row["uncached"]["ratio"]
    assert found["machine"]["threads"] == 1
    assert "medians of 1 turns" in printed and "threads 1" in printed


def test_bench_of_the_readers(tmp_path, capsys):
    out = tmp_path / "readers.json"
    readers.main(["--images", "32", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    names = [(row["size"], row["reader"]) for row in rows]
    assert names == [(size, name) for size in (32, 256) for name in ("folder", ".tar", ".tar.gz")]
    assert all(row["images_per_s"] > 0 for row in rows)
    assert rows[0]["images_per_s"] > rows[3]["images_per_s"]  # small images are read faster


def test_bench_of_the_training_step():
    found = step.measured("shapes", 2, "cpu", compiled=False, steps=1)
    assert found["flops_per_s"] * 2 == pytest.approx(found["images_per_s"] * found["flops"])
    assert 0 < found["share_of_peak"] < 2 and found["precision"] in ("float32", "bfloat16")
