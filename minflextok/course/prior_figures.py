"""Figures of notebook 08: bits, learning curves, ids one by one, dependence, cost of the cache."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from ..data import to_uint8
from .style import k_color, powers_axis

TICKS = [1, 4, 8, 16, 24, 32]


def bits_by_position(conditional: Tensor, unconditional: Tensor, vocab: int) -> Figure:
    """Mean bits of each id with and without the class, and their difference; (N, K) each."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    place = range(1, conditional.shape[1] + 1)
    left.plot(place, conditional.mean(0), "-o", color="#0072B2", ms=4, label="with the class")
    left.plot(place, unconditional.mean(0), "--", color="#D55E00", label="without the class")
    left.axhline(math.log2(vocab), color="0.5", ls=":", label="uniform over V ids")
    left.set(xlabel="position of the id", ylabel="bits", ylim=(0, None), xticks=TICKS)
    left.legend(loc="lower left")
    saved, colors = (unconditional - conditional).mean(0), [k_color(j) for j in place]
    right.bar(place, saved, color=colors, edgecolor="0.3", lw=0.5)
    right.set(xlabel="position of the id", ylabel="bits saved by the class", xticks=TICKS)
    fig.tight_layout()
    return fig


def learning_curves(curve: dict[int, Tensor], independent: float) -> Figure:
    """Bits of a validation id against the training step: the first id, the last, the mean of all.

    curve: step to the bits of each position (K,). independent: the bits with one histogram for
    each position.
    """
    fig, ax = plt.subplots(figsize=(6.5, 3.4))
    last = len(next(iter(curve.values()))) - 1
    for j, style in ((0, "--"), (last, "-.")):
        bits = [x[j] for x in curve.values()]
        ax.plot(list(curve), bits, style, color=k_color(j + 1), label=f"id {j + 1}")
    ax.plot(list(curve), [x.mean() for x in curve.values()], "k-", label="mean of all ids")
    ax.axhline(independent, color="0.5", ls=":", label="histogram for each position")
    ax.set(xlabel="training step", ylabel="bits of a validation id", ylim=(0, None))
    ax.legend(ncols=2)
    return fig


def total_probability(curves: dict[str, Tensor], ranks: Sequence[int]) -> Figure:
    """Total probability of the most likely ids against their number, marked at some ranks."""
    fig, ax = plt.subplots(figsize=(6.5, 3))
    looks = (("#0072B2", "-"), ("#D55E00", "--"))
    for (name, total), (color, style) in zip(curves.items(), looks, strict=False):
        marked = [r - 1 for r in ranks]
        places = range(1, len(total) + 1)
        ax.plot(places, total, style, color=color, marker="o", markevery=marked, label=name)
    label = "number of ids, most likely first"
    ax.set(xlabel=label, ylabel="total probability", xscale="log", ylim=(0, 1))
    ax.legend()
    return fig


def two_rows(images: Tensor, titles: Sequence[str], k: int, num_tokens: int) -> Figure:
    """A frame of an animation: images (B, 3, H, W) in two rows, with the number of their ids."""
    fig, axes = plt.subplots(2, len(images) // 2, figsize=(6.4, 2.95))
    for ax, x in zip(axes.flat, to_uint8(images), strict=True):
        ax.imshow(x.permute(1, 2, 0))
        ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, fontsize=9)
    fig.suptitle(f"{k} of {num_tokens} ids", y=0.055, fontsize=10, color=k_color(k))
    fig.subplots_adjust(0.01, 0.07, 0.99, 0.93, 0.05, 0.05)
    return fig


def savings(lengths: Sequence[int], ratios: dict[str, list[float]]) -> Figure:
    """How many times less the cache needs of something, against the number of generated ids.

    ratios: what, to the ratio without / with the cache for each length; first what is counted, then
    what is timed.
    """
    fig, ax = plt.subplots(figsize=(7, 3.6))
    looks = (("0.4", ":^"), ("0.4", ":v"), ("#D55E00", "-s"), ("#0072B2", "-o"))
    for (name, values), (color, style) in zip(ratios.items(), looks, strict=False):
        ax.plot(lengths, values, style, color=color, label=name)
    ax.axhline(1, color="0.8", lw=0.8, zorder=0)
    powers_axis(ax, lengths)
    ax.set_yscale("log", base=2)
    ax.set_yticks(ticks := [1, 2, 4, 8, 16, 32], [f"{n}x" for n in ticks])
    ax.minorticks_off()
    ax.set(xlabel="generated ids", ylabel="without the cache / with it")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    fig.tight_layout()
    return fig


def dependence(moved: Tensor) -> Figure:
    """The change of each prediction by a change of each id: moved (ids, predictions), on a
    logarithmic scale. Cells without any change are hatched."""
    rows, columns = moved.shape
    fig, ax = plt.subplots(figsize=(5.6, 4.4))
    ax.patch.set(facecolor="white", hatch="////", edgecolor="0.75", lw=0)
    shown = moved.where(moved > 1e-4, float("nan"))
    low, high = float(shown.nan_to_num(1e9).min()), float(moved.max())
    extent = (0.5, columns + 0.5, rows + 0.5, 0.5)
    picture = ax.imshow(shown, cmap="viridis_r", norm=LogNorm(low, high), extent=extent)
    ax.set(xlabel="position of the prediction", ylabel="position of the changed id")
    fig.colorbar(picture, shrink=0.85, label="largest change of a logit")
    fig.tight_layout()
    return fig


def conflict(lengths: Sequence[int], condition: list[float], prefix: list[float]) -> Figure:
    """Which class samples show, if that of the condition and that of the kept ids differ."""
    fig, ax = plt.subplots(figsize=(6.5, 3.2))
    ax.plot(lengths, condition, "-o", color="#0072B2", label="the class of the condition")
    label = "the class of the image with these ids"
    ax.plot(lengths, prefix, "--s", color="#D55E00", mfc="w", label=label)
    ax.set_xscale("symlog", base=2, linthresh=1)
    ax.set_xticks(lengths, [str(n) for n in lengths])
    ax.minorticks_off()
    ax.set(xlabel="ids kept", ylabel="share of the samples", ylim=(0, 1))
    ax.legend()
    return fig


def accuracy_and_gfid(curves: dict[str, dict]) -> Figure:
    """Classification accuracy and gFID against the number of tokens, with 95% intervals.

    curves: a name to a table of a results.json, number of tokens to its metrics. The first are the
    reconstructions.
    """
    looks = (("0.4", "x:"), ("#0072B2", "s--"), ("#009E73", "^-."), ("#D55E00", "o-"))
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6))
    for i, ((name, curve), (color, style)) in enumerate(zip(curves.items(), looks, strict=True)):
        budgets = [int(k) for k in curve]
        places = [k * 1.03 ** (2 * i - 3) for k in budgets]  # so that the intervals do not overlap
        for ax, metric in zip(axes, ("accuracy", "fid"), strict=True):
            cells = [row[metric] for row in curve.values()]
            bars = [[abs(x["mean"] - x["ci95"][side]) for x in cells] for side in (0, 1)]
            means = [x["mean"] for x in cells]
            ax.errorbar(places, means, bars, fmt=style, color=color, capsize=3, label=name)
    axes[0].axhline(0.1, color="0.6", ls=":", label="chance")
    axes[0].set(ylabel="classification accuracy", ylim=(0, 0.95))
    axes[1].set(ylabel="gFID (classifier features)", ylim=(0, None))
    for ax in axes:
        powers_axis(ax, budgets)
        ax.set_xlabel("tokens")
    handles = axes[0].get_legend_handles_labels()
    fig.legend(*handles, loc="lower center", ncols=5, columnspacing=1)
    fig.tight_layout(rect=(0, 0.09, 1, 1))
    return fig
