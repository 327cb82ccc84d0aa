"""Figures of notebook 10: stored pictures of the systems, and the curves of an evaluation."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from ..evaluation.metrics import psnr
from .style import powers_axis

# the first tile of data/compare/pictures, its side, and the distance of two tiles, in pixels
LEFT, TOP, SIDE, STEP = 135.5, 4.0, 129, 134.9
ROWS = {0: 0, 1: 1, 2: 2, 4: 3, 8: 4, 16: 5}  # number of tokens (0: original) to its row


def stored_tiles(rows: dict[str, tuple[Path, int]], columns: Sequence[int]) -> Figure:
    """Tiles of stored pictures: a row for each name, (file, number of tokens; 0: the original)."""
    fig, axes = plt.subplots(len(rows), len(columns), squeeze=False)
    fig.set_size_inches(1.1 * len(columns) + 0.4, 1.12 * len(rows))
    for line, (name, (path, k)) in zip(axes, rows.items(), strict=True):
        picture = plt.imread(path)
        y = round(TOP + 134.6 * ROWS[k])
        for ax, column in zip(line, columns, strict=True):
            x = round(LEFT + STEP * column)
            ax.imshow(picture[y : y + SIDE, x : x + SIDE])
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    fig.tight_layout(pad=0.4)
    return fig


def rate_curves(scores: dict[str, dict[int, tuple[int, float, float]]], ceiling: float) -> Figure:
    """PSNR and accuracy against bytes for each system: its number of tokens to (bytes, dB, share).

    ceiling: the accuracy on the originals.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    looks = (("black", "o-"), ("#0072B2", "^--"), ("#D55E00", "s:"))
    for (name, rows), (color, style) in zip(scores.items(), looks, strict=False):
        size = [row[0] for row in rows.values()]
        for i, ax in enumerate(axes, start=1):
            ax.plot(size, [row[i] for row in rows.values()], style, color=color, label=name)
            powers_axis(ax, size)
    axes[1].axhline(ceiling, color="0.5", ls=":", label="originals")
    for ax, label in zip(axes, ("PSNR (dB)", "classification accuracy"), strict=True):
        ax.set(xlabel="bytes an image", ylabel=label)
        ax.grid(alpha=0.3)
    axes[1].set_ylim(0, 1)
    axes[1].legend()
    return fig


def evaluate(
    encode: Callable,
    decode: Callable,
    classify: Callable,
    images: Tensor,
    labels: Tensor,
    budgets: Sequence[int],
    vocab: int,
) -> dict[int, tuple[int, float, float]]:
    """For each number of tokens: the bytes of an image, the mean PSNR in dB, the accuracy."""
    ids, found = encode(images), {}
    for k in budgets:
        made = decode(ids[:, :k])
        right = (classify(made).argmax(1) == labels).float().mean()
        size = math.ceil(k * math.log2(vocab) / 8)
        found[k] = size, float(psnr(made, images).mean()), float(right)
    return found
