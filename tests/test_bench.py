"""The benchmarks run, and their formulas count the operations that PyTorch counts."""

import dataclasses
import json
import re
import sys

import pytest
import torch
from conftest import ROOT, TINY, randomised
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts, not part of the package

import bench
import busy
import prior
import readers
import step

from minflextok.experiments.flops import (
    decode_flops,
    decoder_flops,
    embed_flops,
    encoder_flops,
    prior_training_flops,
)
from minflextok.experiments.footprint import works
from minflextok.presets import PRESETS, PRIOR_PRESETS, RECIPES
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
    found = json.loads(out.read_text())
    rows = found["rows"]
    names = [(row["size"], row["reader"]) for row in rows]
    assert names == [(size, name) for size in (32, 256) for name in ("folder", ".tar", ".tar.gz")]
    assert all(row["images_per_s"] > 0 for row in rows)
    assert rows[0]["images_per_s"] > rows[3]["images_per_s"]  # small images are read faster
    if works():
        assert [row["preset"] for row in found["steps"]] == ["d12-d12", "d18-d28"]
        assert "d12-d12 takes" in capsys.readouterr().out
    assert found.keys() == json.loads((ROOT / "benchmarks/readers.json").read_text()).keys()


def test_the_cores_that_read_what_a_step_takes():
    """One core reads 251 images/s, two workers 500: 1000 need 4 cores of either."""
    rows = [{"reader": "folder", "size": n, "images_per_s": v} for n, v in ((32, 5000), (256, 251))]
    (found,) = readers.compared(rows, {"d12-d12": 1000.0}, workers=0)
    assert found == {"preset": "d12-d12", "images_per_s": 1000, "cores": {"folder": 4}}
    rows[1]["images_per_s"] = 500
    assert readers.compared(rows, {"d12-d12": 1000.0}, workers=2)[0]["cores"] == {"folder": 4}


@pytest.mark.parametrize("savings", [True, False])
def test_bench_of_the_training_step_of_a_tokenizer(savings, capsys):
    found = step.measured("shapes", 4, "cpu", savings=savings, steps=1, profiled=savings)
    alone = re.findall(r"matrix products alone: (\d+)% of the peak", capsys.readouterr().err)
    assert [0 < int(share) < 200 for share in alone] == [True] * savings
    assert found["flops_per_s"] * 4 == pytest.approx(found["images_per_s"] * found["flops"])
    assert 0 < found["share_of_peak"] < 2 and found["precision"] in ("float32", "bfloat16")
    plain = step.tokenizer_training_flops(PRESETS["shapes"], savings=False)
    if savings:
        assert found["flops"] < 0.95 * 4 * plain
    else:
        assert found["flops"] == pytest.approx(4 * plain, rel=0.01)


def test_bench_of_the_training_step_of_a_prior(tmp_path, capsys):
    out = tmp_path / "step.json"
    command = ["--prior", "cifar10-tiny", "--depth", "2", "--device", "cpu", "--quick"]
    step.main([*command, "--threads", "1", "--out", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    c = dataclasses.replace(PRIOR_PRESETS["cifar10-tiny"], depth=2)
    assert row["flops"] == pytest.approx(2 * prior_training_flops(c), rel=0.01)
    assert (row["stage"], row["depth"], row["compiled"]) == ("prior", [2], False)
    assert "2 of 6" in capsys.readouterr().out


def test_a_step_has_as_many_blocks_as_fit():
    c, recipe = PRESETS["d18-d28"], RECIPES["d18-d28"]

    def depths(**limits):
        found = step.as_many_blocks_as_fit(c, recipe, 32, **{"memory": 1e15} | limits)
        return found.enc_depth, found.dec_depth

    eight = step.with_blocks(c, 8)
    assert (eight.enc_depth, eight.dec_depth) == (5, 8)
    flops = 32 * step.tokenizer_training_flops(eight, savings=False)
    assert depths(flops=flops) == (5, 8) and depths(flops=0.99 * flops) == (4, 7)
    assert depths() == (18, 28)
    assert depths(flops=0) == (1, 1)  # it may be too large: then its row says so
    if works():
        memory = step.step_bytes(eight, recipe, 32) / step.USABLE
        assert depths(memory=memory) == (5, 8) and depths(memory=0.99 * memory) == (4, 7)


@pytest.mark.skipif(not works(), reason="this torch has no fake tensors of a GPU without one")
def test_the_account_of_a_step_is_what_a_gpu_took():
    """The largest memory of tensors in eager steps on a GPU, of the rows that were measured."""
    for name in ("step-gpu", "step-d18-d28"):
        row = json.loads((ROOT / f"benchmarks/{name}.json").read_text())["rows"][0]
        c = PRESETS[row["preset"]]
        enc, dec = row.get("depth", [c.enc_depth, c.dec_depth])
        c = dataclasses.replace(c, enc_depth=enc, dec_depth=dec)
        counted = step.step_bytes(c, RECIPES[row["preset"]], row["batch"])
        assert counted == pytest.approx(1e9 * row["peak_gb"], rel=0.1)


@pytest.mark.parametrize("numbers", [["1"], ["1", "2", "3"]])
def test_a_tokenizer_has_two_depths(numbers, capsys):
    with pytest.raises(SystemExit):
        step.parse(["--preset", "cifar10", "--depth", *numbers])
    assert "two numbers for tokenizers" in capsys.readouterr().err


def test_bench_beside_busy_loops(tmp_path, monkeypatch, capsys):
    assert busy.images_per_second({"OMP_NUM_THREADS": "1"}, "shapes", 4) > 0
    speeds = iter([300.0, 100.0])
    monkeypatch.setattr(busy, "images_per_second", lambda *_: next(speeds))
    out = tmp_path / "busy.json"
    busy.main(["--quick", "--loops", "1", "--out", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    assert row == {"setting": "package", "idle": 300, "busy": 100, "ratio": 3}
    assert "3.0 times slower" in capsys.readouterr().out


def test_busy_loops_end():
    with busy.busy(2) as loops:
        assert all(loop.poll() is None for loop in loops)
    assert all(loop.poll() is not None for loop in loops)
