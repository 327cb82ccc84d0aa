"""Vectors that stand for images: what an encoder outputs, at full width and as codes, and pixels.

The splits are here too: probes are fitted on training images, chosen on validation images of the
same split, and tested on others.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import require
from ..data import Images, load_dataset, to_float
from ..encoder import Encoder
from ..tokenizer import FlexTok
from ..transformer import layer_norm
from .baselines import GridEncoder


class Splits(NamedTuple):
    """Labelled images. train and val are disjoint parts of a training split, test of another."""

    train: Images
    val: Images
    test: Images


def load_splits(data: str, image_size: int, train: int, val: int, test: int) -> Splits:
    """`train` images of the training split, `val` others, and `test` of the test split, all drawn
    with a fixed seed, for folders are sorted by class. ValueError where there are fewer, or no
    labels."""
    found = {name: load_dataset(data, name, image_size) for name in ("train", "test")}
    wanted = {"train": train + val, "test": test}
    for name, images in found.items():
        require(
            isinstance(images, Images) and images.labels is not None,
            f"data={data!r}: probes need labelled images that fit in memory",
        )
        require(
            len(images) >= wanted[name],
            f"data={data!r} has {len(images)} {name} images, {wanted[name]} are asked for (train: "
            "train_images + val_images; test: test_images): give smaller numbers",
        )
    order = {name: shuffled_once(len(images)) for name, images in found.items()}
    return Splits(
        found["train"].select(order["train"][:train]),
        found["train"].select(order["train"][train : train + val], "val"),
        found["test"].select(order["test"][:test]),
    )


def shuffled_once(n: int) -> Tensor:
    """The positions of n images in an order that depends on n alone: (n,) int64."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def encoder_outputs(encoder: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Images or latents x (B, C, H, W) -> the normalized outputs of the last block at the patches
    (B, P, D) and at the registers (B, K, D), whose projections by `encoder.head` are z.

    The patches do not depend on the registers. A `GridEncoder` has none: its patches, twice.
    """
    outputs: list[Tensor] = []
    handle = encoder.blocks[-1].register_forward_hook(lambda block, args, out: outputs.append(out))
    encoder(x)
    handle.remove()
    seq, P = layer_norm(outputs[0]), x.shape[-2] * x.shape[-1] // encoder.patch_size**2
    return seq[:, :P], seq if isinstance(encoder, GridEncoder) else seq[:, P:]


class Encoded(NamedTuple):
    """A tokenizer's vectors of N images, on the CPU."""

    patches: Tensor  # (N, P, D), `encoder_outputs`
    registers: Tensor  # (N, K, D), likewise
    continuous: Tensor  # (N, K, F), z: registers before FSQ
    quantized: Tensor  # (N, K, F), codes in [-1, 1]
    ids: Tensor  # (N, K) int64


@torch.no_grad()
def encode_all(tok: FlexTok, images: Tensor, batch_size: int = 250) -> Encoded:
    """All vectors of images (N, 3, H, W) uint8."""
    parts = []
    for part in images.split(batch_size):
        x = tok.to_latents(to_float(part).to(tok.device))
        patches, registers = encoder_outputs(tok.encoder, x)
        z = tok.encoder.head(registers)
        parts.append(tuple(v.cpu() for v in (patches, registers, z, *tok.fsq(z))))
    return Encoded(*(torch.cat(column) for column in zip(*parts, strict=True)))


def pooled_pixels(images: Tensor, values: int) -> Tensor:
    """Images (N, 3, H, W) uint8 -> (N, 3 h w): averages over an h x w grid, the smallest nearly
    square one that has at least so many values."""
    cells = math.ceil(values / 3)
    h = max(1, math.isqrt(cells))
    return F.adaptive_avg_pool2d(to_float(images), (h, math.ceil(cells / h))).flatten(1)
