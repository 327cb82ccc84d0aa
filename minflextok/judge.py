"""A small classifier that judges images: its features carry the Frechet distance, its classes the label agreement.

It is no part of FlexTok. It stands in for Inception where images are small and no network can be downloaded; a second
one, trained apart (preset "teacher"), gives the feature maps that REPA aligns a decoder with. Never judge with a
network that was trained with.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import weights
from .checks import check_range, check_shape
from .config import TrainConfig, _check_types, _require, opt
from .data import Dataset, Stream, shuffled, to_float
from .run import Processes
from .train import Run, fit, held_out


@dataclass(frozen=True)
class JudgeConfig:
    image_size: int = opt(32, "side of the images in pixels")
    widths: tuple[int, ...] = opt((64, 128, 192), "channels of each stage; the stem has half of the first")
    strides: tuple[int, ...] = opt((2, 2, 2), "by how much each stage shrinks the map")
    num_features: int = opt(128, "length of the feature vector that the classes are read from")
    num_classes: int = opt(10, "classes")
    label_smoothing: float = opt(0.1, "training: share of the target that is spread over all classes")

    def __post_init__(self):
        for name in ("widths", "strides"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_types(self)
        for name in ("image_size", "num_features", "num_classes"):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: give a whole number of at least 1")
        _require(len(self.widths) == len(self.strides) >= 1, f"widths={self.widths}, strides={self.strides}: give one each")
        for name in ("widths", "strides"):
            values = getattr(self, name)
            _require(all(isinstance(n, int) and n >= 1 for n in values), f"{name}={values}: give positive whole numbers")
        _require(0 <= self.label_smoothing < 1, f"label_smoothing={self.label_smoothing}: give a share below 1")


JUDGES = {"judge": JudgeConfig(), "teacher": JudgeConfig(widths=(48, 96, 160), strides=(2, 2, 1))}
JUDGE_RECIPE = TrainConfig(steps=7000, batch_size=128, lr=4e-3, min_lr=0.01, warmup=300, weight_decay=0.05,
                           beta2=0.99, clip=2.0, val_images=1000, eval_every=1000)


def conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels),
                         nn.ReLU(inplace=True))


class Stage(nn.Module):
    """Shrink the map and widen it, then add what two more convolutions see."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.shrink = conv(in_channels, out_channels, stride)
        self.more = nn.Sequential(conv(out_channels, out_channels), conv(out_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(x)
        return x + self.more(x)


class Judge(nn.Module):
    """Images (B, 3, H, W) in [-1, 1], H = W = config.image_size -> class logits (B, num_classes).

    Raises ValueError for images of another shape, type or range.
    """

    def __init__(self, config: JudgeConfig):
        super().__init__()
        self.config, widths = config, (config.widths[0] // 2, *config.widths)
        self.stem = conv(3, widths[0])
        self.stages = nn.Sequential(*(Stage(a, b, s) for a, b, s in zip(widths, widths[1:], config.strides, strict=False)))
        self.neck = nn.Linear(widths[-1], config.num_features)
        self.head = nn.Linear(config.num_features, config.num_classes)
        self.to(memory_format=torch.channels_last)  # twice as fast on a CPU

    def _check(self, images: Tensor) -> Tensor:
        size = self.config.image_size
        images = check_range(check_shape(images, "images", 3, size, size, fixed=True))
        return images.to(self.head.weight).contiguous(memory_format=torch.channels_last)

    def maps(self, images: Tensor) -> Tensor:
        """The last feature map, before it is averaged: (B, 3, H, W) -> (B, widths[-1], h, w)."""
        return self.stages(self.stem(self._check(images)))

    def features(self, images: Tensor) -> Tensor:
        """What the classes are read from: (B, 3, H, W) -> (B, num_features), none negative."""
        return F.relu(self.neck(self.maps(images).mean((2, 3))))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes); or, given labels (B,) int64, the training objective, a scalar."""
        logits = self.head(self.features(images)).float()
        return logits if labels is None else F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json."""
        weights.save(self, directory, dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Judge":
        """Shipped weights by name ("judge-cifar10"), or a directory that `save_pretrained` wrote; float32, on the CPU."""
        return weights.load(cls, JudgeConfig, weights.find(name))


# ---- training --------------------------------------------------------------------------------------------------------

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


@torch.no_grad()
def accuracy(judge: Judge, data: Dataset, batch_size: int = 500) -> float:
    """Share of the images whose largest logit is their label."""
    device, right = judge.head.weight.device, 0
    for i in torch.arange(len(data)).split(batch_size):
        right += (judge(to_float(data.at(i)).to(device)).argmax(1).cpu() == data.labels[i]).sum().item()
    return right / len(data)


def train_judge(config: JudgeConfig, recipe: TrainConfig, data: Dataset, out: str | Path, device: str | None = None,
                quiet: bool = False) -> Judge:
    """Train a Judge on labelled images; `out` and errors as for `fit`. The log has the accuracy on held-out ones.

    Batch norm sees the share of its own process, so a run of two processes repeats one of two, not one of one.
    """
    if isinstance(data, Stream) or data.labels is None:
        raise ValueError(f"{data.name}: a judge learns from labelled images that fit in memory or lie in class folders")
    low, high, shape = data.labels.min().item(), data.labels.max().item(), tuple(data.at(torch.arange(1)).shape[1:])
    if low < 0 or high >= config.num_classes:
        raise ValueError(f"{data.name} has labels {low} to {high}, the judge {config.num_classes} classes: "
                         f"--model num_classes={high + 1}")
    if shape != (3, config.image_size, config.image_size):
        raise ValueError(f"{data.name} gives {shape} images, the judge takes (3, {config.image_size}, {config.image_size})")
    train, val = (data.select(i) for i in held_out(len(data), recipe, data.name))

    def evaluate(judge: Judge, step: int) -> tuple[dict, str]:
        share = accuracy(judge, val)
        return {"accuracy": share}, f"accuracy {share:.1%} on {len(val)} held-out images"

    procs = Processes(device)
    torch.manual_seed(recipe.seed)
    return fit(Judge(config), lambda run: labelled_batches(train, run), evaluate, recipe, out, data.name, procs, quiet)
