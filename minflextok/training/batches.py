"""Batches of training images, and the images held out.

Every draw of step s comes from a generator seeded by (seed, s), and every process takes its share of the same draws.
So a resumed run repeats the uninterrupted one exactly, and two processes repeat one.
"""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.datasets import Dataset, Images, Stream, held_out, to_float
from .loop import Run


def hold_out(data: Dataset, c: TrainConfig) -> tuple[Dataset, Tensor]:
    """Training images, and the (n, 3, H, W) uint8 that the log is measured on; never the test split."""
    if isinstance(data, Stream):
        warnings.warn(
            "a stream cannot hold images out: PSNR is logged on the first images of its shards",
            stacklevel=2,
        )
        return data, data.head(c.val_images)
    learn, val = held_out(len(data), c, data.name)
    return data.select(learn), data.at(val)


def image_batches(data: Dataset, run: Run) -> Iterator[tuple[Tensor, torch.Generator]]:
    """From run.step on: this process's share of a batch, (B / world, 3, H, W) in [-1, 1] on run.device, half of the
    images mirrored where c.flip says so, and the generator of all further draws of that step."""
    c = run.c
    if isinstance(data, Images):
        data.images = data.images.to(run.device)  # small sets are batched on the device
    for batch in data.batches(c.batch_size, c.seed, run.step, run.procs.rank, run.procs.world):
        x, g = to_float(batch.to(run.device, non_blocking=True)), run.generator()
        if c.flip:
            mirrored = (torch.rand(c.batch_size, generator=g) < 0.5)[run.share].to(
                run.device, non_blocking=True
            )
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
        yield x, g
