"""Finite scalar quantisation (Mentzer et al., arXiv 2309.15505): round a few bounded numbers, count the results.

There is no learned codebook: each of F channels is squashed to one of L_i evenly spaced values, and the id of a
token is the number whose mixed-radix digits are those values.
"""

import math

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    """Rounds latents (..., F) to codes in [-1, 1] and names each code vector by an id in [0, prod(levels))."""

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.levels = tuple(levels)
        self.vocab_size = math.prod(levels)
        basis = [
            math.prod(levels[:i]) for i in range(len(levels))
        ]  # the first channel is the least significant digit
        # Whole numbers, so that casting the model to bfloat16 leaves them exact.
        self.register_buffer("L", torch.tensor(levels, device="cpu"), persistent=False)
        self.register_buffer("basis", torch.tensor(basis, device="cpu"), persistent=False)

    @property
    def center(self) -> Tensor:
        """The digit of code 0, (F,)."""
        return self.L // 2

    def bound(self, z: Tensor) -> Tensor:
        """Squash each channel to its own range, so that rounding gives exactly L_i values. Always float32."""
        with torch.autocast(z.device.type, enabled=False):
            half = (
                (self.L.float() - 1) * 1.001 / 2
            )  # a little over: atanh(offset / half) stays finite at 2 levels
            offset = torch.where(
                self.L % 2 == 0, 0.5, 0.0
            )  # an even number of levels has no level at zero
            return torch.tanh(z.float() + torch.atanh(offset / half)) * half - offset

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., F) -> codes (..., F) float32 in [-1, 1], ids (...) int64.

        Straight-through: the backward pass takes rounding for the identity.
        """
        bounded = self.bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        codes = rounded / self.center
        return codes, self.codes_to_ids(codes.detach())

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        """(..., F) -> (...) int64."""
        digits = (codes * self.center).round().long() + self.center
        return (digits * self.basis).sum(-1)

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., F) float32."""
        digits = (ids[..., None] // self.basis) % self.L
        return (digits - self.center) / self.center
