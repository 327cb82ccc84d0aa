"""A small classifier that judges images: its features carry the Frechet distance, its classes the label agreement.

It is no part of FlexTok. It stands in for Inception where images are small and no network can be downloaded; a second
one, trained apart (preset "teacher"), gives the feature maps that REPA aligns a decoder with. Never judge with a
network that was trained with.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import weights
from ..checks import check_range, check_shape
from ..config import JudgeConfig
from ..data import Dataset, to_float


def conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Stage(nn.Module):
    """Shrink the map and widen it, then add what two more convolutions see."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.shrink = conv(in_channels, out_channels, stride)
        self.more = nn.Sequential(
            conv(out_channels, out_channels), conv(out_channels, out_channels)
        )

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
        self.stages = nn.Sequential(
            *(Stage(a, b, s) for a, b, s in zip(widths, widths[1:], config.strides, strict=False))
        )
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
        return (
            logits
            if labels is None
            else F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        )

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json."""
        weights.save(self, directory, dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Judge":
        """Shipped weights by name ("judge-cifar10"), or a directory that `save_pretrained` wrote; float32, on the CPU."""
        return weights.load(cls, JudgeConfig, weights.find(name))


@torch.no_grad()
def accuracy(judge: Judge, data: Dataset, batch_size: int = 500) -> float:
    """Share of the images whose largest logit is their label."""
    device, right = judge.head.weight.device, 0
    for i in torch.arange(len(data)).split(batch_size):
        right += (
            (judge(to_float(data.at(i)).to(device)).argmax(1).cpu() == data.labels[i]).sum().item()
        )
    return right / len(data)
