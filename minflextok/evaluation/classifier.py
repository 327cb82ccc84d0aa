"""The evaluation classifier: a small convolutional network that is no part of FlexTok.

Its features are the space of the Frechet distance, and its classes give the classification accuracy
of reconstructions and samples. It takes Inception's place where images are small and nothing can be
downloaded. A second classifier (preset "teacher"), trained separately, is the teacher of REPA:
never evaluate a model with the network that it was trained with.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import weights
from ..checks import check_range, check_shape
from ..config import ClassifierConfig
from ..data import Dataset, to_float


def conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Stage(nn.Module):
    """A strided convolution to more channels, then a residual branch of two convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.shrink = conv(in_channels, out_channels, stride)
        self.more = nn.Sequential(
            conv(out_channels, out_channels), conv(out_channels, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(x)
        return x + self.more(x)


class Classifier(nn.Module):
    """Images (B, 3, H, W) in [-1, 1], H = W = config.image_size -> class logits (B, num_classes).

    Raises ValueError for images of another shape, type or range.
    """

    former_names = ("Judge",)  # in the metadata of weights that were saved under this name

    def __init__(self, config: ClassifierConfig):
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
        """The last feature map, before average pooling: (B, 3, H, W) -> (B, widths[-1], h, w)."""
        return self.stages(self.stem(self._check(images)))

    def features(self, images: Tensor) -> Tensor:
        """The input of the last linear layer: (B, 3, H, W) -> (B, num_features), all >= 0."""
        return F.relu(self.neck(self.maps(images).mean((2, 3))))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes); or, given labels (B,) int64, the training loss, a scalar."""
        logits = self.head(self.features(images)).float()
        if labels is None:
            return logits
        return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json."""
        weights.save(self, directory, dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "Classifier":
        """Shipped weights by name ("judge-cifar10") or from a directory; float32, on the CPU."""
        return weights.load(cls, ClassifierConfig, weights.find(name))


def match_classes(
    data: Dataset, names: Sequence[str], num_classes: int, model: str
) -> Callable[[Tensor], Tensor]:
    """A function from labels of the data (B,) to class numbers of a model (B,): by name where both
    know names, else unchanged.

    names: those of the model's classes, or none; `model` names it in errors. Raises ValueError for
    a class of the data that the model does not have; for labels in memory before the first call.
    """
    table = torch.arange(num_classes)
    if names and data.classes:
        number = {name: i for i, name in enumerate(names)}
        table = torch.tensor([number.get(name, -1) for name in data.classes])

    def convert(labels: Tensor) -> Tensor:
        labels = labels.long()
        known = (labels >= 0) & (labels < len(table))
        known[known.clone()] = table[labels[known]] >= 0
        if not known.all():
            i = int(labels[~known][0])
            name = data.classes[i] if 0 <= i < len(data.classes) else i
            have = ", ".join(names[:10]) if names else f"0 to {num_classes - 1}"
            raise ValueError(
                f"{data.name} has class {name!r}, which {model} does not have (its classes: "
                f"{have}): give data of these classes, or a model that was trained on classes "
                f"of {data.name}"
            )
        return table[labels]

    if getattr(data, "labels", None) is not None:
        convert(data.labels)
    return convert


@torch.no_grad()
def accuracy(classifier: Classifier, data: Dataset, batch_size: int = 500) -> float:
    """Share of the images whose largest logit is that of their class. Classes are matched by name,
    see `match_classes`."""
    device, correct, c = classifier.head.weight.device, 0, classifier.config
    labels = match_classes(data, c.class_names, c.num_classes, "the classifier")(data.labels)
    for i in torch.arange(len(data)).split(batch_size):
        predicted = classifier(to_float(data.at(i)).to(device)).argmax(1).cpu()
        correct += (predicted == labels[i]).sum().item()
    return correct / len(data)
