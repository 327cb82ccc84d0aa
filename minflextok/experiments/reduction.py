"""Fewer vectors from many: random dropping, average pooling, and token merging.

Each takes the outputs of an encoder at its P patches (B, P, D) and gives `Reduced`: n vectors, and
which of them each patch went to.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import require


class Reduced(NamedTuple):
    """n vectors (B, n, D); groups (B, P) int64: the vector that each patch went to, -1 for none."""

    vectors: Tensor
    groups: Tensor

    def sizes(self) -> Tensor:
        """How many patches each vector stands for: (B, n)."""
        n = self.vectors.shape[1]
        return F.one_hot(self.groups + 1, n + 1)[..., 1:].sum(1)

    def placed(self) -> Tensor:
        """Each vector put back at the places of its patches, zeros elsewhere: (B, P, D)."""
        index = self.groups.clamp(min=0)[..., None].expand(-1, -1, self.vectors.shape[2])
        return self.vectors.gather(1, index) * (self.groups >= 0)[..., None]

    def located(self) -> Tensor:
        """The vectors with the mean row, the mean column and the share of their patches: (B, n, D +
        3), for readers that do not know where a vector comes from."""
        P = self.groups.shape[1]
        side = round(P**0.5)
        at = torch.stack([torch.arange(P) // side, torch.arange(P) % side], 1) / side  # (P, 2)
        member = F.one_hot(self.groups + 1, self.vectors.shape[1] + 1)[..., 1:].float()  # (B, P, n)
        size = member.sum(1)[..., None]  # (B, n, 1)
        where = member.transpose(1, 2) @ at / size  # (B, n, 2)
        return torch.cat([self.vectors, where, size / P], -1)


def drop(patches: Tensor, n: int, seed: int = 0) -> Reduced:
    """n patches at random places, the same for all images; fewer are a subset of more."""
    B, P, _ = patches.shape
    kept = torch.randperm(P, generator=torch.Generator().manual_seed(seed))[:n].sort().values
    groups = torch.full((P,), -1)
    groups[kept] = torch.arange(n)
    return Reduced(patches[:, kept], groups.expand(B, P))


def pool(patches: Tensor, n: int) -> Reduced:
    """Means over the cells of a grid of n cells, which divides the grid of patches: as nearly
    square as possible, at least as high as wide."""
    B, P, _ = patches.shape
    side = round(P**0.5)
    fits = [w for w in range(1, n + 1) if n % w == 0 and side % w == 0 and side % (n // w) == 0]
    require(bool(fits), f"n={n}: no grid of so many equal cells covers {side}x{side} patches")
    w = max(w for w in fits if w * w <= n)
    h = n // w
    i = torch.arange(P)
    groups = (i // side) * h // side * w + (i % side) * w // side  # (P,)
    cells = F.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, (side, side)), (h, w))
    return Reduced(cells.flatten(2).transpose(1, 2), groups.expand(B, P))


def merge_step(x: Tensor, sizes: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite soft matching (Bolya et al., arXiv 2210.09461, section 3): x (B, N, D) with the
    number of patches in each, sizes (B, N) -> (B, N - r, D), (B, N - r), and where each of the N
    went, (B, N) int64. r <= N / 2.

    Vectors at even places form set A, those at odd places set B. Each of A draws an edge to its
    most similar vector of B, by cosine; the r most similar edges merge their ends, as means
    weighted by size. (The paper measures similarity by the keys of an attention layer.)
    """
    N = x.shape[1]
    unit = F.normalize(x, dim=-1)
    similarity, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)  # (B, A)
    order = similarity.argsort(dim=-1, descending=True, stable=True)
    merged, kept = order[:, :r], order[:, r:].sort(dim=-1).values
    A, rest = similarity.shape[1], similarity.shape[1] - r
    # New places: first the A - r unmerged ones of A, then all of B.
    to_a = torch.empty_like(partner)
    to_a.scatter_(1, kept, torch.arange(rest).expand_as(kept))
    to_a.scatter_(1, merged, partner.gather(1, merged) + rest)
    went = torch.empty(len(x), N, dtype=torch.long)
    went[:, ::2], went[:, 1::2] = to_a, torch.arange(N - A) + rest
    new_sizes = torch.zeros(len(x), N - r).scatter_add_(1, went, sizes)
    sums = torch.zeros(len(x), N - r, x.shape[2])
    sums.scatter_add_(1, went[..., None].expand_as(x), x * sizes[..., None])
    return sums / new_sizes[..., None], new_sizes, went


def merge(patches: Tensor, n: int, r: int = 8) -> Reduced:
    """Token merging down to n vectors, at most r at a step. The sum of all vectors, weighted by
    their sizes, stays that of the patches."""
    B, P, _ = patches.shape
    x, sizes, groups = patches.float(), torch.ones(B, P), torch.arange(P).expand(B, P)
    while x.shape[1] > n:
        N = x.shape[1]
        x, sizes, went = merge_step(x, sizes, min(r, N // 2, N - n))
        groups = went.gather(1, groups)
    return Reduced(x, groups)
