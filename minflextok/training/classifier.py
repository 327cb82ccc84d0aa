"""Train a classifier: the evaluation classifier, or a teacher for REPA."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import ClassifierConfig, TrainConfig
from ..data import Dataset, Stream, shuffled, to_float, validation_split
from ..evaluation.classifier import Classifier, accuracy, match_classes
from .batches import check_image_size, describe_data
from .loop import Task, fit
from .run import Run
from .runtime import Ranks, check_world_size


def random_crop(x: Tensor, shift: Tensor, pad: int = 4) -> Tensor:
    """Crop images (B, C, H, W), padded by reflection, at rows and columns shift (B, 2) in 0..2
    pad."""
    B, _, H, W = x.shape
    padded = F.pad(x, [pad] * 4, mode="reflect").permute(0, 2, 3, 1)  # (B, H + 2 pad, W + 2 pad, C)
    rows = shift[:, :1] + torch.arange(H, device=x.device)  # (B, H)
    columns = shift[:, 1:] + torch.arange(W, device=x.device)  # (B, W)
    each = torch.arange(B, device=x.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class ClassifierTask(Task):
    """A Classifier on labeled images, shifted by up to 4 pixels and, with recipe.flip, mirrored at
    random.

    Batch norm uses the statistics of one rank's images, so runs of different world sizes differ.
    """

    def __init__(self, config: ClassifierConfig, recipe: TrainConfig, data: Dataset, ranks: Ranks):
        if isinstance(data, Stream) or data.labels is None:
            raise ValueError(
                f"{data.name}: a classifier needs labeled images, in memory or in class folders"
            )
        low, high = data.labels.min().item(), data.labels.max().item()
        if low < 0 or high >= config.num_classes:
            raise ValueError(
                f"{data.name} has labels {low} to {high}, the classifier {config.num_classes} "
                f"classes: give num_classes={high + 1}"
            )
        if not config.class_names:
            config = dataclasses.replace(config, class_names=tuple(data.classes))
        number = match_classes(data, config.class_names, config.num_classes, "the classifier")
        check_image_size(data, data.at(torch.arange(1)), config.image_size)
        self.ranks, self.sources = ranks, {"data": describe_data(data, conditions=True)}
        parts = validation_split(len(data), recipe, data.name)
        self.train, self.val = (data.select(part) for part in parts)
        self.labels = number(self.train.labels)
        torch.manual_seed(recipe.seed)
        self.model = Classifier(config)

    def batches(self, run: Run) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B / world size, 3, H, W) in [-1, 1], and their labels."""
        c, data = run.recipe, self.train
        for i in shuffled(len(data), c.batch_size, c.seed, run.step):
            i, g = i[run.share], run.generator()
            shift = torch.randint(0, 9, (c.batch_size, 2), generator=g)[run.share]
            mirror = (torch.rand(c.batch_size, generator=g) < 0.5 * c.flip)[run.share]
            x = random_crop(to_float(data.at(i)), shift)
            x = torch.where(mirror.view(-1, 1, 1, 1), x.flip(-1), x)
            yield tuple(part.to(run.device, non_blocking=True) for part in (x, self.labels[i]))

    def evaluate(self, model: Classifier) -> tuple[dict, str]:
        share = accuracy(model, self.val)
        return {"accuracy": share}, f"accuracy {share:.1%} on {len(self.val)} validation images"


def train_classifier(
    config: ClassifierConfig,
    recipe: TrainConfig,
    data: Dataset,
    out: str | Path,
    device: str | None = None,
    quiet: bool = False,
) -> Classifier:
    """Train a Classifier on labeled images; returns it with averaged weights.

    `out` gets what `fit` writes; its weights load with `Classifier.from_pretrained(out)`.
    """
    check_world_size(recipe.batch_size)
    return fit(ClassifierTask(config, recipe, data, Ranks(device)), recipe, out, quiet)
