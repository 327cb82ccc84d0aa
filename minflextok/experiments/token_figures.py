"""The figures of what tokens carry."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from ..evaluation.figures import plural
from .codecs import tile
from .token_effects import Decoder


def blank(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def vocabulary_figure(images: Tensor, first: Tensor, results: dict) -> Figure:
    """The first four test images with each of the 12 most frequent first ids: the visual
    vocabulary."""
    found = list(results["first token"]["most frequent ids"].items())[:12]
    fig, axes = plt.subplots(3, 4, figsize=(12, 5), layout="constrained")
    for ax in axes.flat:
        blank(ax)
    for ax, (i, row) in zip(axes.flat, found, strict=False):
        shown = images[first == int(i)]
        ax.imshow(tile(shown[:4], 4, fill=255).permute(1, 2, 0))
        purity = row["purity"]
        ax.set_title(f"id {i}: {plural(len(shown), 'image')}", fontsize=10)
        ax.set_xlabel(f"{row['class']}: {purity['mean']:.0%} of them", fontsize=9)
    fig.suptitle("Test images by their first id; below, the class of this id by training images")
    return fig


def maps_figure(maps: list[Tensor], power: float = 1.0) -> Figure:
    """Where the image changes if one id is replaced: a mean over images for each token. The color
    is the change to a power; below 1, small changes are visible beside large ones."""
    means = torch.stack([m.mean(0) for m in maps])  # (K, H, W)
    columns = min(8, len(means))
    rows = -(-len(means) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(1.4 * columns + 1, 1.6 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        blank(ax)
    norm = PowerNorm(power, vmin=0, vmax=means.max().item())
    for j, (ax, m) in enumerate(zip(axes.flat, means, strict=False), start=1):
        shown = ax.imshow(m, cmap="cividis", norm=norm)
        ax.set_title(f"token {j}", fontsize=9)
    fig.colorbar(shown, ax=axes, label="mean absolute change", shrink=0.7)
    return fig


def open_figure(decode: Decoder, ids: Tensor, images: Tensor, left_open: dict) -> Figure:
    """For each k: two decodes of each image with other noise, and the standard deviation of all."""
    budgets = list(left_open)
    top = max(v[: len(ids)].sqrt().max().item() for v, _ in left_open.values())
    fig, axes = plt.subplots(
        len(budgets) + 1, 3 * len(ids), figsize=(1.05 * 3 * len(ids), 1.1 * (len(budgets) + 1))
    )
    for ax in axes.flat:
        blank(ax)
    for i, image in enumerate(images):
        axes[0, 3 * i].imshow(image.permute(1, 2, 0))
    axes[0, 0].set_ylabel("original", fontsize=9)
    for row, k in zip(axes[1:], budgets, strict=True):
        decoded = [(decode(ids[:, :k], seed) + 1) / 2 for seed in (0, 1)]
        for i in range(len(ids)):
            for ax, x in zip(row[3 * i :], decoded, strict=False):
                ax.imshow(x[i].permute(1, 2, 0))
            row[3 * i + 2].imshow(left_open[k][0][i].sqrt(), cmap="cividis", vmin=0, vmax=top)
        row[0].set_ylabel(plural(k, "token"), fontsize=9)
    fig.suptitle(f"Two decodes with other noise, and the standard deviation (0 to {top:.1f})")
    fig.subplots_adjust(left=0.08, right=0.99, bottom=0.01, wspace=0.05, hspace=0.05, top=0.93)
    return fig


PANELS = (
    "class information",
    "entropy",
    "size of the change",
    "area of the change",
    "variance and squared bias",
    "swaps",
)


def _curve(ax: Axes, x: list[int], values: list[dict], style: tuple[str, str], label: str) -> None:
    """The means of `values` in a (color, format), with their 95% intervals as a band."""
    color, form = style
    ax.plot(x, [v["mean"] for v in values], form, color=color, ms=4, label=label)
    low, high = zip(*(v["ci95"] for v in values), strict=True)
    ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0)


def numbers_figure(results: dict, panels: Sequence[int] = range(1, 7)) -> Figure:
    """Class information, entropy, change and area by position; variance by k; swaps.

    panels: which of the six, counted from 1, three in a row.
    """
    rows, columns = math.ceil(len(panels) / 3), min(len(panels), 3)
    size = (3.5 * max(columns, 1.4), 3 * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for number, ax in zip(panels, axes.flat, strict=False):
        _DRAW[number - 1](ax, results)
        ax.set_title(f"{number}. {PANELS[number - 1]}", fontsize=11)
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=9)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    return fig


def _information(ax: Axes, results: dict) -> None:
    positions = {int(j): row for j, row in results["positions"].items()}
    information = [row["class information bits"]["corrected"] for row in positions.values()]
    digit = [row["of the best digit"]["corrected"] for row in positions.values()]
    ax.plot(list(positions), information, "k-o", ms=4, label="id")
    ax.plot(list(positions), digit, color="C0", ls="--", marker="s", ms=4, label="its best digit")
    ax.set(ylabel="class information (bits), corrected", ylim=(0, None))
    ax.set_xlabel("position of the token")


def _entropy(ax: Axes, results: dict) -> None:
    positions = {int(j): row for j, row in results["positions"].items()}
    ax.plot(list(positions), [row["entropy bits"] for row in positions.values()], "k-o", ms=4)
    ax.set(xlabel="position of the token", ylabel="entropy of the id (bits)")


def _changes(ax: Axes, results: dict, key: str, label: str, top: float | None) -> None:
    for name, style, line in (
        ("replaced", ("k", "o-"), "id replaced"),
        ("added", ("C0", "s--"), "from k - 1 to k tokens"),
    ):
        rows = results[name]
        _curve(ax, [int(j) for j in rows], [r[key] for r in rows.values()], style, line)
    ax.set(xlabel="position of the token", ylabel=label, ylim=(0, top))


def _left_open(ax: Axes, results: dict) -> None:
    rows = results["left open"]
    x = [int(k) for k in rows]
    for name, style in (("variance", ("k", "o-")), ("squared bias", ("C0", "s--"))):
        _curve(ax, x, [row[name] for row in rows.values()], style, name)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="tokens", ylabel="squared error of a pixel", ylim=(0, None))


def _swaps(ax: Axes, results: dict) -> None:
    rows = results["swaps"]
    x = [int(k) for k in rows]
    for name, style in (("A", ("k", "o-")), ("B", ("C1", "s-"))):
        _curve(ax, x, [row[name] for row in rows.values()], style, f"class of {name}")
    ax.set_xscale("symlog", base=2, linthresh=1)
    ax.set_xticks(x, [str(k) for k in x])
    ax.minorticks_off()
    ax.set(xlabel="k: first k ids of A, the rest of B", ylabel="share of images", ylim=(0, None))


_DRAW: tuple[Callable[[Axes, dict], None], ...] = (
    _information,
    _entropy,
    partial(_changes, key="change", label="mean absolute change of a pixel", top=None),
    partial(_changes, key="area of one image", label="share of the image that changes", top=1),
    _left_open,
    _swaps,
)
