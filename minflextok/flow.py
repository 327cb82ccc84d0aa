"""Rectified flow: straight lines between images and noise, and the solver that integrates the learned velocity.

Direction of time, here and in FlexTok: t = 0 is the image, t = 1 is noise (SiT and others count the other way).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def mode_timesteps(u: Tensor, s: float = 0.25) -> Tensor:
    """u ~ U(0, 1) -> t in [0, 1], denser around 1/2 for s > 0 (SD3, arXiv 2403.03206, eq. 20). t decreases with u."""
    return 1 - u - s * (torch.cos(torch.pi / 2 * u) ** 2 - 1 + u)


def interpolate(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The state x_t = t * noise + (1 - t) * x, for x, noise (B, C, H, W) and t (B,). Its velocity is noise - x."""
    t = t.view(-1, 1, 1, 1)
    return t * noise + (1 - t) * x


def euler(
    velocity: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    steps: int,
    wrap: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """Integrate velocity(x_t, t) from noise (t = 1) to an image (t = 0) in equal Euler steps, at t = 1, ..., 1/steps.

    wrap: wraps the iterable of step indices, for a progress bar.
    """
    x = noise
    for i in wrap(range(steps, 0, -1)):
        x = x - velocity(x, i / steps) / steps
    return x


def cfg(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): extrapolate from the unconditional to the conditional velocity."""
    return uncond + scale * (cond - uncond)


class APG:
    """Adaptive projected guidance (arXiv 2410.02416, alg. 1): strong guidance without oversaturation.

    Three changes to CFG: the update has (negative) momentum over the steps; its norm is clipped; its component parallel
    to the conditional velocity, which drives saturation, is scaled by eta. Use one object per sampled batch.
    """

    def __init__(self, momentum: float = -0.5, threshold: float = 2.5, eta: float = 0.0):
        self.momentum, self.threshold, self.eta = momentum, threshold, eta
        self.average: Tensor | float = 0.0

    def __call__(self, cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
        """cond, uncond (B, C, H, W) -> guided velocity (B, C, H, W)."""
        axes = tuple(range(1, cond.ndim))
        self.average = cond - uncond + self.momentum * self.average
        norm = self.average.norm(p=2, dim=axes, keepdim=True)
        diff = (self.average * (self.threshold / norm).clamp(max=1)).double()
        unit = cond.double() / cond.double().norm(p=2, dim=axes, keepdim=True).clamp(min=1e-12)
        parallel = (diff * unit).sum(axes, keepdim=True) * unit
        return cond + (scale - 1) * (diff - parallel + self.eta * parallel).to(cond.dtype)


def seeded_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise of a shape, float32 on the CPU, determined by the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
