"""Random draws: noise by seed, and those of a training step.

They are drawn apart from the loss, so that a resumed or a distributed run can repeat them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .config import TokenizerConfig
from .flow import mode_timesteps
from .nested_dropout import sample_keep_k


def seeded_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise of a shape, float32 on the CPU, determined by the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Draws(NamedTuple):
    """The random draws of a training step: noise (B, C, H, W), t (B,), keep_k (B,) int64, null (B,)
    bool."""

    noise: Tensor
    t: Tensor
    keep_k: Tensor
    null: Tensor

    def to(self, device: torch.device) -> "Draws":
        return Draws(*(x.to(device) for x in self))


def draw(
    c: TokenizerConfig, x: Tensor, nested_prob: float = 1.0, g: torch.Generator | None = None
) -> Draws:
    """Draws for images or latents x (B, C, H, W); noise and t on the device of x, keep_k and null
    on the CPU.

    With probability 1 - nested_prob an image keeps all K registers; with probability null_prob its
    condition is null.
    g: a generator on the CPU.
    """
    B = len(x)
    on_device = torch.Generator(x.device).manual_seed(int(torch.randint(2**62, (), generator=g)))
    noise = torch.randn(x.shape, device=x.device, generator=on_device)
    t = mode_timesteps(torch.rand(B, generator=g), c.mode_scale).to(x.device, non_blocking=True)
    keep_k = sample_keep_k(B, c.num_registers, c.keep_k_mode, generator=g)
    keep_k = torch.where(torch.rand(B, generator=g) < nested_prob, keep_k, c.num_registers)
    return Draws(noise, t, keep_k, torch.rand(B, generator=g) < c.null_prob)
