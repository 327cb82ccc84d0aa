"""Train a classifier: the one that evaluates, or a teacher for REPA."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ClassifierConfig, TrainConfig
from ..data.datasets import Dataset, Stream, held_out, shuffled, to_float
from ..evaluation.classifier import Classifier, accuracy
from .loop import Run, fit
from .runtime import Processes


def random_crop(x: Tensor, shift: Tensor, pad: int = 4) -> Tensor:
    """Move each image x (B, C, H, W) by shift (B, 2), rows and columns in 0..2 pad; its mirror image fills the rim."""
    B, _, H, W = x.shape
    padded = F.pad(x, [pad] * 4, mode="reflect").permute(0, 2, 3, 1)  # (B, H + 2 pad, W + 2 pad, C)
    rows = shift[:, :1] + torch.arange(H, device=x.device)  # (B, H)
    columns = shift[:, 1:] + torch.arange(W, device=x.device)  # (B, W)
    each = torch.arange(B, device=x.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def labelled_batches(data: Dataset, run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """From run.step on: this process's images (B / world, 3, H, W) in [-1, 1], shifted and mirrored, and labels."""
    c = run.c
    for i in shuffled(len(data), c.batch_size, c.seed, run.step):
        i, g = i[run.share], run.generator()
        shift = torch.randint(0, 9, (c.batch_size, 2), generator=g)[run.share]
        mirror = (torch.rand(c.batch_size, generator=g) < 0.5 * c.flip)[run.share]
        x = random_crop(to_float(data.at(i)), shift)
        x = torch.where(mirror.view(-1, 1, 1, 1), x.flip(-1), x)
        yield x.to(run.device, non_blocking=True), data.labels[i].to(run.device, non_blocking=True)


def train_judge(
    config: ClassifierConfig,
    recipe: TrainConfig,
    data: Dataset,
    out: str | Path,
    device: str | None = None,
    quiet: bool = False,
) -> Classifier:
    """Train a Classifier on labelled images; `out` and errors as for `fit`. The log has the accuracy on held-out ones.

    Batch norm sees the share of its own process, so a run of two processes repeats one of two, not one of one.
    """
    if isinstance(data, Stream) or data.labels is None:
        raise ValueError(
            f"{data.name}: a judge learns from labelled images that fit in memory or lie in class folders"
        )
    low, high, shape = (
        data.labels.min().item(),
        data.labels.max().item(),
        tuple(data.at(torch.arange(1)).shape[1:]),
    )
    if low < 0 or high >= config.num_classes:
        raise ValueError(
            f"{data.name} has labels {low} to {high}, the judge {config.num_classes} classes: "
            f"--model num_classes={high + 1}"
        )
    if shape != (3, config.image_size, config.image_size):
        raise ValueError(
            f"{data.name} gives {shape} images, the judge takes (3, {config.image_size}, {config.image_size})"
        )
    train, val = (data.select(i) for i in held_out(len(data), recipe, data.name))

    def evaluate(judge: Classifier, step: int) -> tuple[dict, str]:
        share = accuracy(judge, val)
        return {"accuracy": share}, f"accuracy {share:.1%} on {len(val)} held-out images"

    procs = Processes(device)
    torch.manual_seed(recipe.seed)
    return fit(
        Classifier(config),
        lambda run: labelled_batches(train, run),
        evaluate,
        recipe,
        out,
        data.name,
        procs,
        quiet,
    )
