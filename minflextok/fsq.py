"""Finite scalar quantization (Mentzer et al., arXiv 2309.15505): round each channel of a latent to
a few levels.

There is no learned codebook. Channel i is bounded and rounded to one of L_i evenly spaced values.
The F rounded channels are a code; its token id is the sum of digit_i * L_0 * ... * L_{i-1}, where
digit_i in 0..L_i - 1 numbers the values of channel i.
"""

import math

import torch
from torch import Tensor, nn

from . import codec_checks


class FSQ(nn.Module):
    """Latents (..., F) -> codes (..., F) in [-1, 1] and ids (...) in [0, prod(levels))."""

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.levels = codec_checks.check_levels(levels)
        self.vocab_size = math.prod(levels)
        # Channel 0 is the least significant digit.
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        # Integers, which stay exact when the model is cast to bfloat16.
        self.register_buffer("L", torch.tensor(levels, device="cpu"), persistent=False)
        self.register_buffer("basis", torch.tensor(basis, device="cpu"), persistent=False)

    @property
    def center(self) -> Tensor:
        """The digit whose value is 0, (F,)."""
        return self.L // 2

    def bound(self, z: Tensor) -> Tensor:
        """Squash channel i into an interval that holds exactly L_i integers. Always in float32."""
        with torch.autocast(z.device.type, enabled=False):
            # The 1.001 keeps atanh(offset / half) finite for 2 levels.
            half = (self.L.float() - 1) * 1.001 / 2
            # For an even number of levels, a shift by 1/2 puts one of them at 0.
            offset = torch.where(self.L % 2 == 0, 0.5, 0.0)
            return torch.tanh(z.float() + torch.atanh(offset / half)) * half - offset

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., F) -> codes (..., F) float32 in [-1, 1], ids (...) int64.

        Straight-through estimator: the backward pass treats rounding as the identity.
        """
        bounded = self.bound(codec_checks.check_channels(z, "z", len(self.levels)))
        rounded = bounded + (bounded.round() - bounded).detach()
        codes = rounded / self.center
        return codes, self._to_ids(codes.detach())

    def codes_to_ids(self, codes: Tensor) -> Tensor:
        """(..., F) -> (...) int64."""
        return self._to_ids(codec_checks.check_codes(codes, self.L))

    def _to_ids(self, codes: Tensor) -> Tensor:
        digits = (codes * self.center).round().long() + self.center
        return (digits * self.basis).sum(-1)

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., F) float32."""
        ids = codec_checks.check_code_ids(ids, self.vocab_size)
        digits = (ids[..., None] // self.basis) % self.L
        return (digits - self.center) / self.center
