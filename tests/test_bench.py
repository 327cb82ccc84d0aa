"""The benchmark's plain path gives what the package gives, and its formulas count what PyTorch counts."""

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
import plain
import prior
from flops import decode_flops, encoder_flops, velocity_flops


@pytest.fixture(
    params=[{}, {"separate_adaln": False, "learned_null": False, "latent_penalty": 0.1}],
    ids=["apart", "alike"],
)
def tok(request):
    return randomised(dataclasses.replace(TINY, **request.param))


def close(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@torch.no_grad()
def test_plain_encoder(tok, images):
    z = plain.latents(tok, images)
    close(tok.encode_continuous(images), z)
    for k in (1, 3, 6):
        close(tok.encoder(images, k), z[:, :k])
        assert torch.equal(tok.encode(images, k), plain.encode(tok, images, k))


@torch.no_grad()
def test_plain_velocity_at_mixed_k_and_null(tok, images):
    ids = torch.randint(120, (3, 6))
    keep_k, null, t = (
        torch.tensor([1, 4, 6]),
        torch.tensor([False, True, False]),
        torch.tensor([0.1, 0.5, 0.9]),
    )
    theirs = plain.velocity(tok, images, t, tok.fsq.ids_to_codes(ids), keep_k, null)
    close(tok.velocity(images, t, [i[:k] for i, k in zip(ids, keep_k, strict=True)], null), theirs)


@pytest.mark.parametrize("k", [1, 6])
def test_plain_guided_decoding(tok, images, k):
    ids = torch.randint(120, (3, k))
    close(tok.decode(ids, 4, guidance=3.0, noise=images), plain.decode(tok, ids, 4, 3.0, images))


def test_plain_loss_and_gradients(tok, images):
    draws = list(tok.draw(images, generator=torch.Generator().manual_seed(0)))
    draws[2:] = torch.tensor([1, 4, 6]), torch.tensor([False, False, True])
    gradients = []
    for loss in (tok(images, *draws), plain.loss(tok, images, *draws)):
        tok.zero_grad()
        loss.backward()
        gradients.append(
            [(loss.detach(), *(p.grad for p in tok.parameters() if p.grad is not None))]
        )
    for ours, theirs in zip(*(g[0] for g in gradients), strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 + 1e-4 * theirs.abs().max()


@torch.no_grad()
def test_formulas_count_what_pytorch_counts(tok, images):
    def counted(f, *args):
        # Spelt-out attention, because the counter overlooks the fused kernel of a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            f(*args)
        return counter.get_total_flops()

    c = tok.config
    for k in (1, 4, 6):
        ids = torch.randint(120, (3, k))
        assert encoder_flops(c, 3, k) == counted(tok.encode, images, k)
        assert encoder_flops(c, 3, k, plain=True) == counted(plain.encode, tok, images, k)
        assert velocity_flops(c, 3, k, times=3) == counted(tok.velocity, images, torch.rand(3), ids)
        assert decode_flops(c, 3, k, 2) == counted(lambda: tok.decode(ids, 2, 3.0, noise=images))
        assert decode_flops(c, 3, k, 2, plain=True) == counted(
            plain.decode, tok, ids, 2, 3.0, images
        )


def test_bench_runs_and_finds_no_difference(tmp_path):
    out = tmp_path / "results.json"
    bench.main(
        ["--preset", "shapes", "--quick", "--device", "cpu", "--threads", "1", "--out", str(out)]
    )
    found = json.loads(out.read_text())
    assert [(r["what"], r["k"]) for r in found["rows"][1:]] == [
        ("encode", 1),
        ("encode", 16),
        ("decode, 2", 1),
        ("decode, 2", 16),
    ]
    assert found["rows"][0]["what"] == "train"
    for row in found["rows"]:
        assert (
            row["difference"] < 1e-4
            and row["ours_s"] > 0
            and row["ours_flops"] <= row["plain_flops"]
        ), row
    assert found["rows"][1]["plain_mb"] > 0
    assert found["cost"]["k"] == [1, 2, 4, 8, 16] and found["cost"]["positions"] == [
        18,
        19,
        21,
        25,
        32,
    ]
    assert (tmp_path / "cost.png").stat().st_size > 1000


def test_bench_of_the_prior_compares_every_side(tmp_path, capsys):
    out = tmp_path / "prior.json"
    prior.main(
        [
            "--presets",
            "cifar10-tiny",
            "--tokens",
            "40",
            "--batch",
            "1",
            "--turns",
            "1",
            "--threads",
            "1",
            "--out",
            str(out),
        ]
    )
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    (row,) = found["rows"]
    assert {"cached", "as trained", "uncached"} <= row.keys() and row["cached"]["ratio"] == 1 < row[
        "uncached"
    ]["ratio"]
    assert (
        found["machine"]["threads"] == 1
        and "medians of 1 turns" in printed
        and "threads 1" in printed
    )
