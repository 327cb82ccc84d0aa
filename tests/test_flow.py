"""Rectified flow: interpolation, solver, guidance."""

import pytest
import torch

from minflextok.flow import euler, interpolate, mode_timesteps
from minflextok.guidance import APG, cfg


def test_time_runs_from_image_to_noise():
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(interpolate(x, noise, torch.zeros(2)), x)
    assert torch.equal(interpolate(x, noise, torch.ones(2)), noise)
    h = 1e-3
    slope = (
        interpolate(x, noise, torch.full((2,), 0.5 + h))
        - interpolate(x, noise, torch.full((2,), 0.5))
    ) / h
    torch.testing.assert_close(slope, noise - x, atol=1e-2, rtol=0)


@pytest.mark.parametrize("steps", [1, 3, 25])
def test_euler_is_exact_on_straight_lines(steps):
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    seen = []
    out = euler(lambda _, t: seen.append(t) or noise - x, noise, steps)
    torch.testing.assert_close(out, x, atol=1e-5, rtol=0)
    assert seen == [i / steps for i in range(steps, 0, -1)]


def test_mode_timesteps_stay_in_range_and_favour_the_middle():
    u = torch.linspace(0, 1, 10_001)
    t = mode_timesteps(u)
    assert t[0] == 1 and abs(t[-1]) < 1e-6 and (t.diff() <= 0).all()
    assert ((t > 0.3) & (t < 0.7)).float().mean() > 0.43  # uniform: 0.4
    assert torch.equal(mode_timesteps(u, 0.0), 1 - u)


def test_guidance_formulas():
    c, u = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(cfg(c, u, 1.0), c)
    torch.testing.assert_close(cfg(c, u, 0.0), u)
    step = APG(momentum=0, threshold=1e9)(c, u, 3.0) - c
    for b in range(2):  # orthogonal to the conditional velocity, and what is left of (s - 1)(c - u)
        unit = c[b] / c[b].norm()
        assert (step[b] * unit).sum().abs() < 1e-4
        diff = c[b] - u[b]
        torch.testing.assert_close(
            step[b], 2 * (diff - (diff * unit).sum() * unit), atol=1e-4, rtol=0
        )
    assert torch.equal(APG()(c, u, 1.0), c)
    assert torch.isfinite(APG()(torch.zeros_like(c), torch.zeros_like(c), 3.0)).all()
