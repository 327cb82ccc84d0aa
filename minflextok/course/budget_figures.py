"""Tables and figures of notebook 07: metrics against tokens and bytes, the effect of one token."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from ..data import to_uint8
from .style import k_color, k_line, powers_axis

METRICS = {
    "psnr": "PSNR (dB)",
    "accuracy": "classification accuracy",
    "rfid": "rFID (classifier features)",
}
Scores = dict[int, dict[str, float]]  # a setting (number of tokens, steps, ...) to its metrics


def half(cell: dict) -> float:
    """Half the width of the 95% interval of a stored result."""
    return (cell["ci95"][1] - cell["ci95"][0]) / 2


def print_results(title: str, results: dict, protocol: bool = True) -> None:
    """The protocol and the metrics of one evaluation, as its results.json holds them."""
    print(textwrap.fill(f"{title}: {results['protocol']['line']}" if protocol else title, 110))
    print("tokens bytes     PSNR (dB)       accuracy         rFID     (± half of the 95% interval)")
    for k, row in results["tokens"].items():
        cells = "  ".join(f"{row[m]['mean']:7.2f} ±{half(row[m]):5.2f}" for m in METRICS)
        print(f"{k:>4} {row['bytes']:6}  {cells}")
    print(f"originals: accuracy {results['originals']['accuracy']['mean']:.2f}\n")


def stored_curves(tables: dict[str, dict]) -> Figure:
    """The three metrics against the number of tokens, one line for each table, with intervals."""
    fig, axes = plt.subplots(1, 3, figsize=(10.5, 2.9))
    for ax, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for (name, results), style in zip(tables.items(), ("o-", "s--"), strict=False):
            budgets = [int(k) for k in results["tokens"]]
            cells = [row[metric] for row in results["tokens"].values()]
            color = "0.2" if style == "o-" else "#0072B2"
            means, bars = [x["mean"] for x in cells], [half(x) for x in cells]
            ax.errorbar(budgets, means, bars, fmt=style, color=color, label=name)
        powers_axis(ax, budgets)
        ax.set(xlabel="tokens", ylabel=label)
        ax.grid(alpha=0.3)
    axes[0].legend()
    fig.tight_layout()
    return fig


def rate_curves(samples: Scores, means: Scores, files: list[dict], sizes: dict[int, int]) -> Figure:
    """The three metrics against tokens (above) and bytes (below): samples, mean images, files.

    files: results of `codecs`. sizes: number of tokens to bytes.
    """
    fig, axes = plt.subplots(2, 3, figsize=(10.5, 5.8))
    budgets = list(sizes)
    below = "bytes (files: without their header)"
    for (above, lower), (metric, label) in zip(axes.T, METRICS.items(), strict=True):
        for ax, xs in ((above, budgets), (lower, list(sizes.values()))):
            for values, style, face in ((samples, "-", None), (means, "--", "w")):
                ax.plot(xs, [values[k][metric] for k in budgets], style, color="0.5", zorder=1)
                for x, k in zip(xs, budgets, strict=True):
                    look = k_line(k) | {"ls": "", "mfc": face or k_color(k), "mew": 1.5}
                    ax.plot(x, values[k][metric], **look)
        for codec, style in (("JPEG", "s:"), ("WEBP", "x-.")):
            rows = [r for r in files if r["codec"] == codec]
            xs = [max(1, r["beyond_header"]) for r in rows]
            ys = [r[metric]["mean"] for r in rows]
            lower.plot(xs, ys, style, color="#D55E00", mfc="w", label=codec)
        for ax, xlabel, ticks in ((above, "tokens", budgets), (lower, below, [2, 6, 20, 60, 200])):
            powers_axis(ax, ticks)
            ax.set(xlabel=xlabel, ylabel=label)
            ax.grid(alpha=0.3)
    fig.tight_layout(rect=(0, 0.1, 1, 1))
    kinds = (("-", "samples (filled)"), ("--", "mean images (white)"))
    handles = [plt.Line2D([], [], color="0.5", ls=style, label=text) for style, text in kinds]
    handles += [plt.Line2D([], [], **k_line(k) | {"ls": ""}) for k in budgets]
    handles += axes[1, 0].get_lines()[-2:]
    fig.legend(handles=handles, loc="lower center", ncols=5)
    return fig


def family_frame(originals: Tensor, samples: dict[int, Tensor]) -> Figure:
    """A row for each image (B, 3, H, W): the original, then one sample from k tokens, k growing."""
    fig, axes = plt.subplots(len(originals), 1 + len(samples), figsize=(7.4, 2.5))
    columns = [("original", "k", originals)]
    columns += [(k_line(k)["label"], k_color(k), x) for k, x in samples.items()]
    for (title, color, images), column in zip(columns, axes.T, strict=True):
        for ax, x in zip(column, images, strict=True):
            ax.imshow(to_uint8(x).permute(1, 2, 0))
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color=color, linewidth=2)
        column[0].set_title(title, fontsize=9)
    fig.subplots_adjust(0.01, 0.01, 0.99, 0.89, 0.06, 0.06)
    return fig


def heat_map(
    table: dict[str, Sequence[float]],
    columns: Sequence,
    xlabel: str,
    colorbar: str,
    width: float,
    threshold: float = 0.0,
    form: str = "{:.2f}",
) -> Figure:
    """A heat map with a named row for each entry; values of at least `threshold` are printed."""
    fig, ax = plt.subplots(figsize=(width, 0.36 * len(table) + 0.9))
    largest = max(map(max, table.values()))
    picture = ax.imshow(list(table.values()), cmap="Blues", vmin=0, vmax=largest, aspect="auto")
    for i, line in enumerate(table.values()):
        for j, value in enumerate(line):
            if value >= threshold:
                color = "w" if value > 0.6 * largest else "k"
                text = form.format(value)
                ax.text(j, i, text, ha="center", va="center", fontsize=9, color=color)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(table)), list(table))
    ax.set_xlabel(xlabel)
    ax.spines[:].set_visible(False)
    fig.colorbar(picture, label=colorbar, pad=0.02)
    fig.tight_layout()
    return fig


def token_bars(panels: dict[tuple[str, str], Sequence[float]]) -> Figure:
    """A bar for each token; panels: (title, label of the vertical axis) to the values."""
    fig, axes = plt.subplots(1, len(panels), figsize=(11, 2.9))
    for ax, ((title, label), values) in zip(axes, panels.items(), strict=True):
        tokens = range(1, len(values) + 1)
        ax.bar(tokens, values, color=[k_color(k) for k in tokens], edgecolor="0.3", lw=0.5)
        ax.set(title=title, xlabel="token", ylabel=label, xticks=[1, *range(4, len(values) + 1, 4)])
    fig.tight_layout()
    return fig


def change_maps(rows: dict[str, dict[int, Tensor]], large: float = 0.5) -> Figure:
    """Maps (H, W) for each row and k, each drawn by its own maximum; above each map the share of
    the image with at least `large` times this maximum."""
    fig, axes = plt.subplots(len(rows), len(next(iter(rows.values()))), figsize=(8.6, 4.7))
    for line, (name, maps) in zip(axes, rows.items(), strict=True):
        for ax, (k, x) in zip(line, maps.items(), strict=True):
            ax.imshow(x / x.max(), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            share = (x > large * x.max()).float().mean()
            ax.set_title(f"k = {k}: {share:.0%}", fontsize=9)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    fig.tight_layout()
    return fig


def setting_curves(k: int, by_steps: Scores, by_scale: dict[str, dict], title: str) -> Figure:
    """The three metrics against the Euler steps (above) and the guidance scale (below), from k
    tokens. by_scale: a kind of guidance to its scores by scale."""
    fig, axes = plt.subplots(2, 3, figsize=(10.5, 4.9), sharex="row")
    for (above, below), (metric, label) in zip(axes.T, METRICS.items(), strict=True):
        above.plot(list(by_steps), [r[metric] for r in by_steps.values()], "-", **k_line(k))
        powers_axis(above, list(by_steps))
        above.set(xlabel="Euler steps (guidance 1)", ylabel=label)
        for (kind, rows), style, face in zip(
            by_scale.items(), ("-", "--"), (k_color(k), "w"), strict=True
        ):
            look = k_line(k) | {"label": kind, "mfc": face, "ls": style}
            below.plot(list(rows), [r[metric] for r in rows.values()], **look)
        below.set(xlabel="guidance scale", ylabel=label)
    axes[1, 0].legend()
    fig.suptitle(title)
    fig.tight_layout()
    return fig
