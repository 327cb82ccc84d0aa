"""Figures: grids of images, and the curves of a prior's evaluation, readable without colors."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data import to_uint8


def plural(n: int | str, noun: str) -> str:
    """ "1 token", "2 tokens"."""
    return f"{n} {noun}{'s' * (int(n) != 1)}"


def budget_grid(originals: Tensor | None, images: dict[int, Tensor], title: str = "") -> Figure:
    """A column an image: the original, if given, above reconstructions from k tokens, k growing.

    originals and each of images: (B, 3, H, W) in [-1, 1].
    """
    rows = {plural(k, "token"): x for k, x in images.items()}
    return image_grid(rows if originals is None else {"original": originals} | rows, title)


def image_grid(
    rows: dict[str, Tensor], title: str = "", columns: Sequence[str] = (), wrap: int = 16
) -> Figure:
    """Rows of images, each (B, 3, H, W) in [-1, 1] or uint8, with their names to the left.

    columns: a name above each column. wrap: longest line of a row's name, in characters.
    """
    B = len(next(iter(rows.values())))
    names = [textwrap.fill(name, wrap) for name in rows]
    longest = max(len(line) for name in names for line in name.splitlines() or [""])
    left = max(0.9, 0.3 + 0.065 * longest)  # inches
    top = 0.4 * bool(title) + 0.2 * bool(columns)
    width, height = 0.9 * B + left, 0.9 * len(rows) + top
    fig, axes = plt.subplots(len(rows), B, figsize=(width, height), squeeze=False)
    for name, images, line in zip(names, rows.values(), axes, strict=True):
        pixels = images if images.dtype == torch.uint8 else to_uint8(images)
        for ax, image in zip(line, pixels.cpu(), strict=True):
            ax.imshow(image.permute(1, 2, 0), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for ax, name in zip(axes[0], columns, strict=False):
        ax.set_title(name, fontsize=9)
    fig.suptitle(title, fontsize=10, x=(left / width + 0.995) / 2)  # above the images
    fig.subplots_adjust(
        left=left / width,
        right=0.995,
        bottom=0.005,
        wspace=0.04,
        hspace=0.04,
        top=1 - (top / height if top else 0.005),
    )
    return fig


def save(fig: Figure, path: str | Path) -> None:
    """Write a figure to a file and close it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)
    plt.close(fig)


# ---- the evaluation of a prior -------------------------------------------------------------------

GRAYS = ("0.0", "0.4", "0.6", "0.75")  # each with a marker, so that no color is needed
MARKERS = ("o", "s", "^", "D")


def prior_figure(found: dict) -> Figure:
    """Scores against the number of tokens, bits by position, and continuations of prefixes.

    found: the results of `PriorEvaluation.run`.
    """
    kind, prefixes = found["protocol"]["kind"], found["prefixes"].get("by_length", {})
    judged = "accuracy" in found["originals"]
    first = ["fid", "accuracy"][: 1 + judged] if kind == "class" else found["samplers"]
    count = len(first) + 1 + bool(prefixes)
    fig = Figure(figsize=(3.7 * count, 3.5), layout="constrained")
    axes = fig.subplots(1, count)
    for ax, what in zip(axes, first, strict=False):
        (_plot_classes if kind == "class" else _plot_captions)(ax, found, what)
        _ticks(ax, found["tokenizer"], "tokens", "log")
    _plot_bits(axes[len(first)], found["bits"])
    if prefixes:
        _plot_prefixes(axes[-1], prefixes)
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
        ax.title.set_fontsize(9)
    return fig


def _ticks(ax: Axes, at: dict[str, dict], label: str, scale: str, **options) -> None:
    ax.set_xscale(scale, base=2, **options)
    ax.set_xticks([int(k) for k in at], list(at))
    ax.set_xlabel(label)
    ax.minorticks_off()


def _interval(ax: Axes, rows: dict[str, dict], style: str, **options) -> None:
    """A line through the means, with their 95% confidence intervals as bars."""
    x, y = [int(k) for k in rows], [v["mean"] for v in rows.values()]
    bars = None
    if all("ci95" in v for v in rows.values()):
        below = [v["mean"] - v["ci95"][0] for v in rows.values()]
        bars = [below, [v["ci95"][1] - v["mean"] for v in rows.values()]]
    ax.errorbar(x, y, yerr=bars, fmt=style, ms=4, capsize=2, lw=1.3, **options)


def _plot_bits(ax: Axes, bits: dict) -> None:
    positions = range(1, len(bits["by_position"]) + 1)
    ax.plot(positions, bits["by_position"], "k-o", ms=3, label="conditional")
    ax.plot(positions, bits["without_condition"], color="0.5", ls="--", label="unconditional")
    ax.axhline(bits["uniform"], color="0.7", ls=":", label="uniform distribution")
    ax.set(xlabel="position of the id", ylabel="bits", title="bits a token, by position")


def _plot_prefixes(ax: Axes, prefixes: dict) -> None:
    lengths = [int(j) for j in prefixes]
    for name, style, label in (
        ("alike", "k-o", "agreement of two continuations"),
        ("original", "k--s", "agreement with the image"),
    ):
        means = [row[name]["mean"] for row in prefixes.values()]
        ax.plot(lengths, means, style, ms=3, label=label)
    pixels = [row["pixels"]["mean"] for row in prefixes.values()]
    label = f"pixel distance / {pixels[0]:.2f}"
    ratios = [x / pixels[0] for x in pixels]
    ax.plot(lengths, ratios, color="0.5", ls=":", marker="^", ms=3, label=label)
    ax.set(ylim=(0, 1.05), title="samples that share a prefix")
    _ticks(ax, prefixes, "length of the prefix (ids)", "symlog", linthresh=1)


def _plot_classes(ax: Axes, found: dict, what: str) -> None:
    """FID or classification accuracy against the number of tokens."""

    def rows(by_budget: dict) -> dict:
        return {k: row[what] for k, row in by_budget.items()}

    _interval(ax, rows(found["tokenizer"]), "x--", color="0.5", label="tokenizer alone")
    for s, gray, marker in zip(found["samplers"], GRAYS * 9, MARKERS * 9, strict=False):
        _interval(ax, rows(s["tokens"]), "-", color=gray, marker=marker, label=s["name"])
    real, label = found["originals"][what], {"fid": "other originals", "accuracy": "the originals"}
    if real:
        ax.axhline(real["mean"], color="0.7", ls=":", label=label[what])
    ax.set(title={"fid": "Frechet distance", "accuracy": "classification accuracy"}[what])
    ax.set_ylim(bottom=0)


def _plot_captions(ax: Axes, found: dict, sampler: dict) -> None:
    """Captions met by one sampler against the number of tokens, by the number of things."""
    groups = [g for g in found["originals"]["met"] if g != "all"]
    for group, gray, marker in zip(groups, GRAYS, MARKERS, strict=False):
        rows = {k: row["met"][group] for k, row in sampler["tokens"].items()}
        _interval(ax, rows, "-", color=gray, marker=marker, label=plural(group, "thing"))
        rows = {int(k): row["met"][group]["mean"] for k, row in found["tokenizer"].items()}
        ax.plot(list(rows), list(rows.values()), ls="--", lw=1, color=gray)
    ax.plot([], [], "k--", lw=1, label="tokenizer alone")
    rows = {int(k): row["shuffled"]["all"]["mean"] for k, row in sampler["tokens"].items()}
    ax.plot(list(rows), list(rows.values()), "k:", lw=1, label="another image's caption")
    ax.set(title=f"captions met exactly, {sampler['name']}", ylim=(-0.02, 1.02))
