"""Nested dropout (Rippel et al., arXiv 1402.0915): what puts the tokens in order.

Each training image keeps only its first keep_k registers; so the first must tell what matters most, and every
further one can only refine.
"""

import torch
from torch import Tensor, nn


def round_up_pow2(k: Tensor) -> Tensor:
    """The least power of two that is not below k >= 1, int64."""
    return 2 ** torch.ceil(torch.log2(k.double())).long()


def sample_keep_k(
    batch: int,
    num_registers: int,
    mode: str,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """How many registers each image keeps: (B,) int64 in 1..K, one draw per image.

    uniform: each of 1..K alike. pow2: each of 1, 2, 4, ..., K alike (K too where it is no power of two).
    uniform_pow2: uniform, rounded up to a power of two, at most K (so half of the images keep all K).
    """
    K = num_registers
    if mode == "pow2":
        choices = (K - 1).bit_length() + 1  # 1, 2, 4, ... below K, and K
        return (2 ** torch.randint(choices, (batch,), generator=generator, device=device)).clamp(
            max=K
        )
    k = torch.randint(1, K + 1, (batch,), generator=generator, device=device)
    if mode == "uniform":
        return k
    if mode == "uniform_pow2":
        return round_up_pow2(k).clamp(max=K)
    raise ValueError(f"keep_k mode {mode!r}: give 'uniform', 'pow2' or 'uniform_pow2'")


class NestedDropout(nn.Module):
    """Replaces registers from keep_k on by one learned mask token.

    They stay in the sequence and can be attended to, but carry neither content nor position: all are the same vector.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(dim))

    def forward(self, registers: Tensor, keep_k: Tensor) -> Tensor:
        """registers (B, K, D), keep_k (B,) int -> (B, K, D)."""
        dropped = (
            torch.arange(registers.shape[1], device=registers.device) >= keep_k[:, None]
        )  # (B, K)
        return torch.where(dropped[..., None], self.mask_token.to(registers.dtype), registers)
