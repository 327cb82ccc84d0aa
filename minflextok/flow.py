"""Rectified flow: straight lines between images and noise, and the solver that integrates the
learned velocity.

Direction of time, here and in FlexTok: t = 0 is the image, t = 1 is noise (flow matching,
arXiv 2210.02747, and others count the other way).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm


def mode_timesteps(u: Tensor, s: float = 0.25) -> Tensor:
    """u ~ U(0, 1) -> t in [0, 1], denser around 1/2 for s > 0 (SD3, arXiv 2403.03206, eq. 20). t
    decreases with u."""
    return 1 - u - s * (torch.cos(torch.pi / 2 * u) ** 2 - 1 + u)


def interpolate(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The state x_t = t * noise + (1 - t) * x, for x, noise (B, C, H, W) and t (B,). Its velocity
    is noise - x."""
    t = t.view(-1, 1, 1, 1)
    return t * noise + (1 - t) * x


def euler(
    velocity: Callable[[Tensor, float], Tensor], noise: Tensor, steps: int, progress: bool = False
) -> Tensor:
    """Integrate velocity(x_t, t) from noise (t = 1) to an image (t = 0) in equal Euler steps, at t
    = 1, ..., 1/steps."""
    x = noise
    for i in tqdm(range(steps, 0, -1), "decode", disable=not progress, leave=False):
        x = x - velocity(x, i / steps) / steps
    return x
