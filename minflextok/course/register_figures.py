"""Figures of notebook 02: attention masks, and what registers attend to, depend on and change."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data import to_uint8


def show_table(ax: Axes, table: Tensor, title: str, P: int = 4) -> None:
    """Black where the row attends to (or depends on) the column; the first P are patches."""
    names = [f"p{i}" for i in range(P)] + [f"r{i}" for i in range(len(table) - P)]
    ax.imshow(table, cmap="gray_r", vmin=0, vmax=1)
    ax.set_xticks(range(len(table)), names, fontsize=9)
    ax.set_yticks(range(len(table)), names, fontsize=9)
    for edge in range(len(table) + 1):
        ax.axhline(edge - 0.5, color="gray", lw=2.5 if edge == P else 0.5)
        ax.axvline(edge - 0.5, color="gray", lw=2.5 if edge == P else 0.5)
    ax.set_title(title)


def map_of(ax: Axes, values: Tensor, title: str, largest: float | None = None) -> None:
    """The values (P) of a square grid of patches, from white (0) to black (`largest`)."""
    grid = int(len(values) ** 0.5)
    top = float(values.max()) if largest is None else largest
    ax.imshow(values.view(grid, grid), cmap="gray_r", vmin=0, vmax=top)
    ax.set_title(title, fontsize=9)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)


def attention_maps(images: Tensor, weights: dict[str, Tensor], registers: Sequence[int]) -> Figure:
    """Maps of some registers, a row for each image, a block of rows for each entry of weights.

    images (B, 3, H, W); weights: title to (B, K, P). The largest weight is above each map.
    """
    B, n = len(images), len(registers)
    fig = plt.figure(figsize=(1.5 * (n + 1), 1.75 * B * len(weights) + 0.6), layout="constrained")
    for part, (title, w) in zip(
        fig.subfigures(len(weights), squeeze=False)[:, 0], weights.items(), strict=True
    ):
        part.suptitle(title, fontsize=10)
        for row, image, maps in zip(part.subplots(B, n + 1, squeeze=False), images, w, strict=True):
            row[0].imshow(to_uint8(image).permute(1, 2, 0))
            row[0].axis("off")
            for ax, j in zip(row[1:], registers, strict=True):
                map_of(ax, maps[j], f"r{j}: max {maps[j].max():.0%}")
    return fig


def three_maps(
    attended: Tensor, depended: Tensor, changed: Tensor, registers: Sequence[int]
) -> Figure:
    """What each register attends to, depends on and changes: three rows, each (K, P).

    depended is drawn from 0 to 1; each map of the other rows is scaled to its largest value, which
    is above it.
    """
    n = len(registers)
    fig, axes = plt.subplots(3, n, figsize=(1.3 * n + 0.4, 4.7), layout="constrained")
    for (top, middle, bottom), j in zip(axes.T, registers, strict=True):
        map_of(top, attended[j], f"r{j}\nmax {attended[j].max():.0%}")
        map_of(middle, depended[j], f"max {depended[j].max():.0%}", 1.0)
        map_of(bottom, changed[j], f"max {changed[j].max():.2f}")
    for ax, name in zip(axes[:, 0], ("attended to", "depended on", "changed"), strict=True):
        ax.set_ylabel(name, fontsize=10)
    return fig
