"""Figures of notebook 00: scenes that fail a test, and a picture of one's own."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..data import to_uint8
from ..evaluation.figures import plural


def frame_failures(fig: Figure, passed: Sequence[bool]) -> None:
    """A dashed frame around each image of the figure that did not pass, row by row."""
    for ax, good in zip(fig.axes, passed, strict=True):
        if not good:
            ax.spines[:].set(visible=True, color="#D55E00", ls="--", lw=3)


def own_picture(whole: np.ndarray, crops: Tensor, results: dict[int, Tensor], other: str) -> Figure:
    """A picture with its crop, and two images (2, 3, H, W) from rising numbers of tokens.

    whole (height, width, 3) uint8; crops: the square crop of `whole`, and an image for comparison,
    whose name is `other`; results: number of tokens to the two reconstructions.
    """
    fig, axes = plt.subplots(2, 2 + len(results), figsize=(11.6, 3.0), layout="constrained")
    height, width, _ = whole.shape
    side = min(height, width)
    corner = ((width - side) / 2, (height - side) / 2)
    axes[0, 0].imshow(whole)
    frame = plt.Rectangle(corner, side - 1, side - 1, fill=False, ec="white", lw=2)
    axes[0, 0].add_patch(frame)
    axes[0, 0].set_title("your picture")
    axes[1, 0].text(0.5, 0.5, other, ha="center", va="center")
    size = f"{crops.shape[-1]} x {crops.shape[-1]}"
    columns = {size: crops} | {plural(k, "token"): pair for k, pair in results.items()}
    for column, (name, pair) in zip(axes.T[1:], columns.items(), strict=True):
        column[0].set_title(name)
        for ax, image in zip(column, pair, strict=True):
            ax.imshow(to_uint8(image).permute(1, 2, 0))
    for ax in axes.flat:
        ax.axis("off")
    return fig
