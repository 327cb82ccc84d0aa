"""Image, codebook and interval metrics against their definitions."""

import math

import numpy as np
import pytest
import torch

from minflextok.evaluation.metrics import (
    CodeCounts,
    bootstrap,
    code_usage,
    health,
    mae,
    psnr,
    ssim,
)


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One image (C, H, W): window after window, pixel after pixel."""
    weight = {
        (i, j): math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2))
        for i in range(11)
        for j in range(11)
    }
    total, found = sum(weight.values()), []
    for c in range(a.shape[0]):
        for y in range(a.shape[1] - 10):
            for x in range(a.shape[2] - 10):
                pairs = [
                    (w / total, a[c, y + i, x + j], b[c, y + i, x + j])
                    for (i, j), w in weight.items()
                ]
                ma, mb = sum(w * p for w, p, _ in pairs), sum(w * q for w, _, q in pairs)
                va, vb = (
                    sum(w * (p - ma) ** 2 for w, p, _ in pairs),
                    sum(w * (q - mb) ** 2 for w, _, q in pairs),
                )
                cov = sum(w * (p - ma) * (q - mb) for w, p, q in pairs)
                c1, c2 = 0.02**2, 0.06**2
                found.append(
                    (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
                )
    return sum(found) / len(found)


def test_ssim_agrees_with_loops():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 13, 12, generator=g) * 2 - 1
    b = (a + 0.3 * torch.randn(a.shape, generator=g)).clamp(-1, 1)
    want = [slow_ssim(x, y) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(want, abs=1e-6)
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    assert ssim(torch.ones(1, 3, 11, 11), -torch.ones(1, 3, 11, 11)).item() < -0.99
    with pytest.raises(ValueError, match="images are 10x12: SSIM has an 11x11 window"):
        ssim(a[:, :, :10], b[:, :, :10])


def test_metrics_by_hand():
    a = torch.zeros(2, 3, 4, 4)
    assert psnr(a, a + 0.2).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)  # 10 log10(4 / 0.04)
    assert mae(a, a - 0.2).tolist() == pytest.approx([0.2, 0.2])
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        psnr(a, a[:1])
    used, perplexity = code_usage(torch.tensor([[0, 1], [1, 1], [2, 1], [3, 1]]), 5)
    assert used.tolist() == [4, 1] and perplexity.tolist() == pytest.approx([4, 1])
    assert "collapsed" in health({1: 10.0, 2: 12.0}, torch.tensor([1.0, 1.2]), 100)
    assert "nothing yet" in health({1: 10.0, 2: 10.1}, torch.tensor([50.0]), 100)
    assert health({1: 10.0, 2: 12.0}, torch.tensor([50.0]), 100) == ""


def test_code_counts_add_up_over_batches():
    ids = torch.randint(0, 7, (50, 3))
    counts = CodeCounts(3, 7)
    for part in ids.split(8):
        counts.update(part)
    for got, want in zip(counts.usage(), code_usage(ids, 7), strict=True):
        torch.testing.assert_close(got, want)


def test_bootstrap_covers_a_known_mean():
    g = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap(3 + torch.randn(60, generator=g), resamples=200, seed=seed)
        hits += low <= 3 <= high
    assert 178 <= hits <= 199  # 95% of 200, give or take four standard deviations
    low, high = bootstrap(torch.tensor([0.0, 1.0] * 5000))
    assert high - low == pytest.approx(4 * 0.5 / 100, rel=0.15)
    with pytest.raises(ValueError, match="give"):
        bootstrap(torch.zeros(0))
