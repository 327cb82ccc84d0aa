"""Cost by image size: the counts are those of PyTorch, and both parts of the command run."""

import dataclasses
import json

import pytest
import torch
from conftest import TINY
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minflextok import Prior, PriorConfig
from minflextok.experiments import equal_compute, resolution
from minflextok.experiments.baselines import Grid
from minflextok.experiments.flops import generation_flops, grid_flops
from minflextok.presets import RECIPES


def counted(f) -> int:
    # The math kernel, because the counter overlooks the fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops()


@torch.no_grad()
def test_formulas_count_what_pytorch_counts(images):
    c = dataclasses.replace(TINY, num_registers=16)
    tok = Grid(c).eval()
    ids = tok.encode(images)
    encode, decode = grid_flops(c, 3)
    assert encode == counted(lambda: tok.encode(images))
    assert decode == counted(lambda: tok.decode(ids, noise=images))
    p = PriorConfig(vocab_size=120, num_tokens=6, num_classes=3, dim=64, depth=2, head_dim=32)
    prior, labels = Prior(p).eval(), torch.zeros(3, dtype=torch.long)
    assert generation_flops(p, 3) == counted(lambda: prior.generate(labels))


def test_what_grows_with_the_area_and_what_does_not():
    small, large = (
        {n: resolution.counts(n, c) for n, c in resolution.configs(s).items()} for s in (64, 128)
    )
    assert small["flextok"]["tokens"] == large["flextok"]["tokens"] == 32
    assert small["flextok"]["prior"] == large["flextok"]["prior"]
    assert large["grid"]["tokens"] == 4 * small["grid"]["tokens"] == 32**2
    assert large["grid"]["bits"] == 4 * small["grid"]["bits"]
    c = resolution.configs(64)["flextok"]
    P, N, d = 256, 256 + 32, 128
    linear = 2 * d * d * 4 + 2 * 3 * d * (8 * d // 3)  # of a position in a block
    last = 2 * d * d * (2 * 32 + 2 * N) + 2 * 3 * d * (8 * d // 3) * 32 + 4 * d * 32 * N
    want = 3 * (N * linear + 4 * d * (P * P + 32 * N)) + last + 2 * d * (P * 48 + 32 * 4)
    assert small["flextok"]["encode"] == want and c.enc_depth == 4


def test_peak_memory_is_that_of_the_largest_moment():
    x = torch.zeros(1000)  # 4,000 bytes

    def work():
        y = x + 1
        z = torch.cat([y, y])
        del y
        return z.sum() + (z * 2).sum()

    assert 16_000 <= resolution.peak_bytes(work) < 18_000


def test_both_parts_of_the_command(tmp_path, monkeypatch, capsys):
    out = ["--out", str(tmp_path)]
    resolution.main(["--sizes", "8", "16", *out])
    found = json.loads((tmp_path / "resolution.json").read_text())["cost"]
    assert all(v > 0 for row in found["16"]["grid"].values() for v in row.values())
    assert (tmp_path / "resolution.png").stat().st_size > 20_000
    recipe = dataclasses.replace(RECIPES["cifar10"], val_images=8)
    monkeypatch.setitem(equal_compute.RECIPES, "cifar10", recipe)
    data = ["--data", "16=cifar10-sample", "--test", "16=cifar10-sample", "--num-images", "8"]
    more = ["--only", "trained", "--minutes", "16=0.002", "--runs", str(tmp_path / "runs")]
    resolution.main([*more, *data, *out])
    both = json.loads((tmp_path / "resolution.json").read_text())
    assert both["cost"] == found
    flextok, grid = (both["trained"]["16"][name] for name in ("flextok", "grid"))
    assert list(flextok["tokens"]) == ["1", "8", "32"] and list(grid["tokens"]) == ["16"]
    assert {"rfid", "psnr", "ssim"} < flextok["tokens"]["8"].keys() and grid["images_seen"] > 0
    with pytest.raises(SystemExit, match="give SIZE=VALUE"):
        resolution.by_size(["x.tar"])
    with pytest.raises(SystemExit, match="the same sizes"):
        resolution.main([*data, *out, "--only", "trained", "--minutes", "32=1"])
