"""Images as sequences of patches, with fixed position embeddings.

Shapes in this package: B batch, C channels, (H, W) height and width, P patches, K registers, k <= K
of them kept, N = P + K positions, D width, F FSQ channels; in attention, H heads of width d.
"""

import torch
from einops import rearrange
from torch import Tensor, nn


def patchify(x: Tensor, p: int) -> Tensor:
    """Cut into p x p patches: (B, C, h*p, w*p) -> (B, h*w, p*p*C). Patches are in row-major order,
    the values of a patch in the order row, column, channel."""
    return rearrange(x, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p, p2=p)


def unpatchify(x: Tensor, p: int, h: int, w: int) -> Tensor:
    """The inverse of `patchify`: (B, h*w, p*p*C) -> (B, C, h*p, w*p)."""
    return rearrange(x, "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", h=h, w=w, p1=p, p2=p)


def sincos_positions(dim: int, grid: int) -> Tensor:
    """Fixed 2D position embeddings (grid, grid, dim): half of the channels encode the row, half the
    column.

    Each half is [sin(i f_j), cos(i f_j)] for row or column i, with f_j = 10000^(-j/n) and j = 0,
    ..., n - 1, n = dim/4.
    """
    n = dim // 4
    # On the CPU, so that a model built on the meta device has real tables.
    i, j = (torch.arange(m, dtype=torch.float64, device="cpu") for m in (grid, n))
    angles = i[:, None] * 10000.0 ** (-j / n)  # (grid, n)
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1).float()  # (grid, 2n)
    rows = axis[:, None, :].expand(grid, grid, 2 * n)
    columns = axis[None, :, :].expand(grid, grid, 2 * n)
    return torch.cat([rows, columns], dim=-1)  # (grid, grid, dim)


def embed_patches(x: Tensor, p: int, proj: nn.Linear, positions: Tensor) -> Tensor:
    """Project p x p patches and add their positions: (B, C, H, W) -> (B, P, D).

    An image smaller than the table of positions (grid, grid, D) uses the upper left part of the
    table.
    """
    h, w = x.shape[-2] // p, x.shape[-1] // p
    return proj(patchify(x.to(proj.weight.dtype), p)) + positions[:h, :w].flatten(0, 1)
