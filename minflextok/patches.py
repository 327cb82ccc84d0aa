"""Images as sequences of patches, and where each patch stands."""

from functools import partial

import torch
from einops import rearrange
from torch import Tensor


def patchify(x: Tensor, p: int) -> Tensor:
    """(B, C, h*p, w*p) -> (B, h*w, p*p*C). Patches in row-major order; inside a patch row, column, channel."""
    return rearrange(x, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p, p2=p)


def unpatchify(x: Tensor, p: int, h: int, w: int) -> Tensor:
    """The inverse of `patchify`: (B, h*w, p*p*C) -> (B, C, h*p, w*p)."""
    return rearrange(x, "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", h=h, w=w, p1=p, p2=p)


def sincos_positions(dim: int, grid: int) -> Tensor:
    """Fixed 2D positions, (grid, grid, dim): the first half of the channels tells the row, the second the column.

    Each half holds sines then cosines of the index times n = dim/4 frequencies 10000^(-j/n).
    """
    n = dim // 4
    count = partial(
        torch.arange, dtype=torch.float64, device="cpu"
    )  # real also inside a torch.device("meta") block
    freqs = 10000.0 ** (-count(n) / n)  # (n,)
    angles = count(grid)[:, None] * freqs  # (grid, n)
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1).float()  # (grid, 2n)
    rows = axis[:, None, :].expand(grid, grid, 2 * n)
    cols = axis[None, :, :].expand(grid, grid, 2 * n)
    return torch.cat([rows, cols], dim=-1)  # (grid, grid, dim)
