"""Batches of training images, and the validation split.

All random draws of step s come from a generator seeded by (seed, s), and each rank takes its rows
of the same draws. So a resumed run repeats an uninterrupted one exactly, and two ranks repeat one.
"""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import TokenizerConfig, TrainConfig
from ..data import (
    Dataset,
    Folder,
    Images,
    Latents,
    Stream,
    identity,
    shuffled,
    to_float,
    validation_split,
)
from ..data.node import once_per_node
from ..data.waiting import limited
from .run import Run
from .runtime import Ranks


def split_validation(data: Dataset, c: TrainConfig) -> tuple[Dataset, Tensor]:
    """The images to train on, and those for validation (n, 3, H, W) uint8; none of the test
    split."""
    if isinstance(data, Stream):
        warnings.warn(
            "a stream has no validation split: metrics are of the first images of its shards",
            stacklevel=2,
        )
        return data, limited(lambda: data.head(c.val_images), data, c.reader_minutes)
    train, val = validation_split(len(data), c, data.name)
    if isinstance(data, Images):
        key = "train", data.name, data.split, len(data), c.seed, c.val_images
        shared = once_per_node(key, lambda: {"images": data.images[train]})
        return data.select(train, **shared), data.at(val)
    return data.select(train), limited(lambda: data.at(val), data, c.reader_minutes)


def describe_data(data: Dataset, conditions: bool = False) -> dict:
    """The name, the size and the identity of a data set, for run.json. conditions: its labels and
    captions count too."""
    size = {"shards": len(data.shards)} if isinstance(data, Stream) else {"images": len(data)}
    return {"name": data.name, **size, "identity": identity(data, conditions)}


def check_image_size(data: Dataset, images: Tensor, size: int) -> None:
    """Raises ValueError unless images (n, 3, H, W) of a data set are of size x size pixels."""
    if images.shape[1:] != (3, size, size):
        raise ValueError(
            f"{data.name} has {tuple(images.shape[1:])} images, this model takes "
            f"(3, {size}, {size}): load them with image_size={size}"
        )


def check_latents(data: Latents, vae: str, c: TokenizerConfig, flip: bool) -> None:
    """Raises ValueError unless data has latents for this tokenizer, by the VAE of this fingerprint,
    and of mirror images if flip asks for them."""
    shape = c.in_channels, c.image_size, c.image_size
    if data.vae != vae:
        raise ValueError(
            f"{data.name} holds latents of the VAE {data.vae}, this is {vae}: give that VAE, or "
            "cache the latents again"
        )
    if data.shape[2:] != shape:
        raise ValueError(
            f"{data.name} has latents of shape {data.shape[2:]}, this model takes {shape}: cache "
            "them from images of another size"
        )
    if flip and data.shape[0] == 1:
        raise ValueError(
            f"{data.name} has no latents of mirror images: give flip=False, or cache them again"
        )


def batch_images(
    data: Dataset | None, c: TrainConfig, step: int, ranks: Ranks
) -> list[str] | list[int]:
    """The images of a step of training on `data`: their names, where they are known, else their
    positions in it. All ranks must call this."""
    if data is None:
        return []
    if isinstance(data, Stream):  # each rank knows its own
        return [name for names in ranks.gather(data.names.get(step, [])) for name in names]
    positions = next(shuffled(len(data), c.batch_size, c.seed, step)).tolist()
    return [*map(data.name_of, positions)] if isinstance(data, Folder) else positions


def image_batches(data: Dataset, run: Run) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Endless batches from step run.step on: this rank's images, and a generator for further draws.

    Images are (B / world size, 3, H, W) in [-1, 1] on run.device; with recipe.flip, half of them
    are mirrored. Of `Latents`, mean and log-variance: (B / world size, 2, C, h, w) float32.
    """
    c, ranks = run.recipe, run.ranks
    if isinstance(data, Images):
        data.images = data.images.to(run.device)  # data in memory is batched on the device
    share = ranks.rank, ranks.world_size
    for batch in data.batches(c.batch_size, c.seed, run.step, *share, c.crop_scale):
        batch, g = batch.to(run.device, non_blocking=True), run.generator()
        cached = isinstance(data, Latents)
        x = batch[:, 0].float() if cached else to_float(batch)
        if c.flip:
            mirrored = (torch.rand(c.batch_size, generator=g) < 0.5)[run.share]
            mirrored = mirrored.to(run.device, non_blocking=True)
            mirror = batch[:, 1].float() if cached else x.flip(-1)
            x = torch.where(mirrored.view(-1, *(1,) * (x.ndim - 1)), mirror, x)
        yield x, g
