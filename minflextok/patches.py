"""Images as sequences of patches, and the fixed positions of the patches."""

from functools import partial

import torch
from einops import rearrange
from torch import Tensor


def patchify(x: Tensor, p: int) -> Tensor:
    """(B, C, h*p, w*p) -> (B, h*w, p*p*C): patches in row-major order, values in the order row, column, channel."""
    return rearrange(x, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p, p2=p)


def unpatchify(x: Tensor, p: int, h: int, w: int) -> Tensor:
    """The inverse of `patchify`: (B, h*w, p*p*C) -> (B, C, h*p, w*p)."""
    return rearrange(x, "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", h=h, w=w, p1=p, p2=p)


def sincos_positions(dim: int, grid: int) -> Tensor:
    """Fixed 2D position embeddings, (grid, grid, dim): half of the channels encode the row, half the column.

    Each half holds n = dim/4 sines, then n cosines, of the index times the frequencies 10000^(-j/n).
    """
    n = dim // 4
    count = partial(
        torch.arange, dtype=torch.float64, device="cpu"
    )  # also under torch.device("meta")
    frequencies = 10000.0 ** (-count(n) / n)  # (n,)
    angles = count(grid)[:, None] * frequencies  # (grid, n)
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1).float()  # (grid, 2n)
    rows = axis[:, None, :].expand(grid, grid, 2 * n)
    columns = axis[None, :, :].expand(grid, grid, 2 * n)
    return torch.cat([rows, columns], dim=-1)  # (grid, grid, dim)
