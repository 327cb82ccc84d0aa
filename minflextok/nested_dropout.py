"""Nested dropout (Rippel et al., arXiv 1402.0915) orders the tokens from coarse to fine.

In training, a random number keep_k is drawn for each image, and only its first keep_k registers are
kept. The first register must therefore encode what matters most, and each later one can only refine
it. Decoding an image from k tokens drops the others the same way.
"""

import torch
from torch import Tensor, nn

from . import checks


def round_up_pow2(k: Tensor) -> Tensor:
    """The smallest power of two >= k, for k >= 1; int64."""
    return 2 ** torch.ceil(torch.log2(k.double())).long()


def sample_keep_k(
    batch: int, num_registers: int, mode: str, generator: torch.Generator | None = None
) -> Tensor:
    """How many registers each image keeps: (B,) int64 in 1..K, drawn independently for each image.

    uniform: 1..K with equal probability. pow2: 1, 2, 4, ... and K with equal probability.
    uniform_pow2: uniform, rounded up to a power of two, at most K (if K is a power of two, half of
    the images keep all K).
    """
    K = checks.check_count(num_registers, "num_registers", 1)
    checks.check_count(batch, "batch", 0, 2**24)
    checks.check_choice(mode, "mode", ("uniform", "pow2", "uniform_pow2"))
    checks.check_generator(generator, "cpu")
    if mode == "pow2":
        num_choices = (K - 1).bit_length() + 1  # 1, 2, 4, ... below K, and K
        return (2 ** torch.randint(num_choices, (batch,), generator=generator)).clamp(max=K)
    k = torch.randint(1, K + 1, (batch,), generator=generator)
    return k if mode == "uniform" else round_up_pow2(k).clamp(max=K)


class NestedDropout(nn.Module):
    """Replaces the registers with index >= keep_k by one learned mask token.

    The dropped registers stay in the sequence and can be attended to, but they hold neither content
    nor position: all of them are the same vector.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(dim))

    def forward(self, registers: Tensor, keep_k: Tensor) -> Tensor:
        """registers (B, K, D), keep_k (B,) int -> (B, K, D)."""
        # (B, K)
        dropped = torch.arange(registers.shape[1], device=registers.device) >= keep_k[:, None]
        return torch.where(dropped[..., None], self.mask_token.to(registers.dtype), registers)
