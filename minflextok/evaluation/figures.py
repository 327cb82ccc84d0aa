"""Pictures of what the tokens hold."""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from ..data import to_uint8


def budget_grid(originals: Tensor | None, images: dict[int, Tensor], title: str = "") -> Figure:
    """One column an image: the original on top, if there is one, below it what k tokens give, k rising downwards.

    originals and each of images: (B, 3, H, W) in [-1, 1].
    """
    rows = {f"{k} token{'s' * (k > 1)}": x for k, x in images.items()}
    return image_grid(rows if originals is None else {"original": originals} | rows, title)


def image_grid(rows: dict[str, Tensor], title: str = "") -> Figure:
    """Rows of images, each (B, 3, H, W) in [-1, 1], with their names to the left."""
    B = len(next(iter(rows.values())))
    fig, axes = plt.subplots(
        len(rows), B, figsize=(0.9 * B + 0.9, 0.9 * len(rows) + 0.4 * bool(title)), squeeze=False
    )
    for (label, images), line in zip(rows.items(), axes, strict=True):
        for ax, image in zip(line, to_uint8(images).cpu(), strict=True):
            ax.imshow(image.permute(1, 2, 0), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(
            textwrap.fill(label, 16), rotation=0, ha="right", va="center", fontsize=9
        )
    fig.suptitle(title, fontsize=10)
    fig.subplots_adjust(
        left=0.9 / (0.9 * B + 0.9),
        right=0.995,
        bottom=0.005,
        wspace=0.04,
        hspace=0.04,
        top=1 - (0.35 / (0.9 * len(rows)) if title else 0.005),
    )
    return fig


def save(fig: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)
    plt.close(fig)
