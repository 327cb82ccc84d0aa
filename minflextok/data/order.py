"""The order in which images are seen, and the validation split."""

import random
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from ..config import TrainConfig
from .images import RandomCrop


def shuffled(n: int, batch_size: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Endless positions (batch_size,) in a set of n images, in a new random order each epoch.

    The batch of step s depends on (seed, s) only, so a run that resumes at step `start` gets the
    same batches.
    """
    orders: dict[int, Tensor] = {}
    position = start * batch_size
    while True:
        first, last = position // n, (position + batch_size - 1) // n  # epochs in this batch
        orders = {
            e: orders[e] if e in orders else permutation(n, seed * 1_000_003 + e)
            for e in range(first, last + 1)
        }
        at = position - first * n
        yield torch.cat(list(orders.values()))[at : at + batch_size]
        position += batch_size


def random_crops(
    batch_size: int, seed: int, scale: float, start: int = 0
) -> Iterator[list[RandomCrop | None]]:
    """Endless random crops of a batch of images, a function of seed and step as in `shuffled`; None
    for scale = 1, the whole image."""
    for step in count(start):
        rng = random.Random(f"crops {seed} {step}")
        yield [
            RandomCrop(scale, *(rng.random() for _ in range(4))) if scale < 1 else None
            for _ in range(batch_size)
        ]


def permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def validation_split(num: int, c: TrainConfig, name: str) -> tuple[Tensor, Tensor]:
    """Random positions in a training set of `num` images: those that train, and those of the
    validation split."""
    order = permutation(num, c.seed)
    n = min(c.val_images, num // 10)
    if n == 0:
        raise ValueError(f"{name} has {num} images: training wants at least 10")
    return order[n:], order[:n]
