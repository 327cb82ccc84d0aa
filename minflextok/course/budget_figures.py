"""Tables and figures of notebook 07: metrics against tokens and bytes, the effect of one token."""

import textwrap
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data import to_uint8
from .style import k_color, k_line, powers_axis

METRICS = {
    "psnr": "PSNR (dB)",
    "accuracy": "classification accuracy",
    "rfid": "rFID (classifier features)",
}
# a setting (number of tokens, steps, ...) to its metrics, each with "mean" and "ci95"
Scores = dict[int, dict[str, dict]]


def paired_intervals(statistic: Callable, a: Tensor, b: Tensor, draws: Tensor) -> dict[str, Tensor]:
    """95% bootstrap intervals of a statistic of a, of b and of their difference, each (2,).

    a, b (N, ...): rows of the same N images by two methods. draws (R, N): resampled image numbers.
    """
    values = torch.tensor([[float(statistic(x[i])) for x in (a, b)] for i in draws])  # (R, 2)
    rows = {"a": values[:, 0], "b": values[:, 1], "b - a": values[:, 1] - values[:, 0]}
    return {name: x.quantile(torch.tensor([0.025, 0.975])) for name, x in rows.items()}


def interval_panels(means: dict[int, float], steps: dict[tuple[int, int], dict]) -> Figure:
    """Means with their intervals by number of tokens, and the intervals of the differences.

    steps: (k, next k) to their `paired_intervals`.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.1), width_ratios=(3, 2))
    found = {k: x["a"] for (k, _), x in steps.items()} | {k: x["b"] for (_, k), x in steps.items()}
    for row, (k, ends) in enumerate(found.items()):
        left.plot(ends, [row, row], lw=3, color=k_color(k))
        left.plot(means[k], row, **k_line(k) | {"ms": 8, "mec": "w"})
    left.set_yticks(range(len(found)), [k_line(k)["label"] for k in found])
    left.set(xlabel="mean PSNR (dB)", title="each mean with its interval")
    for row, ((k, after), x) in enumerate(steps.items()):
        right.plot(x["b - a"], [row, row], lw=3, color="0.2")
        right.plot(means[after] - means[k], row, "o", ms=7, color="0.2")
    right.axvline(0, color="#D55E00", ls="--")
    right.set_yticks(range(len(steps)), [f"{after} minus {k}" for k, after in steps])
    right.set(xlabel="difference of mean PSNRs (dB)", title="each difference with its interval")
    for ax in (left, right):
        ax.invert_yaxis()
    fig.tight_layout()
    return fig


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
        ax.set_ylim(bottom=None if metric == "psnr" else 0)
        ax.grid(alpha=0.3)
    axes[0].legend()
    fig.tight_layout()
    return fig


def rate_curves(samples: Scores, means: Scores, files: list[dict], sizes: dict[int, int]) -> Figure:
    """The three metrics against bytes: samples, mean images, files. What the metric does not
    compare with the files (samples in PSNR, mean images in rFID) is pale.

    files: results of `codecs`. sizes: number of tokens to bytes.
    """
    fig, axes = plt.subplots(1, 3, figsize=(10.5, 4.1))
    for ax, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for values, style, face, pale in (
            (samples, "-", None, "psnr"),
            (means, "--", "w", "rfid"),
        ):
            xs, alpha = list(sizes.values()), 0.3 if metric == pale else 1.0
            ys = [values[k][metric]["mean"] for k in sizes]
            ax.plot(xs, ys, style, color="0.4", lw=2, alpha=alpha, zorder=1)
            for x, y, k in zip(xs, ys, sizes, strict=True):
                look = k_line(k) | {"ls": "", "ms": 7, "mfc": face or k_color(k), "mew": 1.5}
                ax.plot(x, y, **look, alpha=alpha)
        for codec, style in (("JPEG", "s:"), ("WEBP", "x-.")):
            rows = [r for r in files if r["codec"] == codec]
            xs = [max(1, r["beyond_header"]) for r in rows]
            ys = [r[metric]["mean"] for r in rows]
            ax.plot(xs, ys, style, color="#D55E00", mfc="w", lw=2, label=codec)
        powers_axis(ax, [2, 6, 20, 60, 200])
        ax.set(xlabel="bytes (files: without their header)", ylabel=label)
        ax.set_ylim(bottom=None if metric == "psnr" else 0)
        ax.grid(alpha=0.3)
    fig.tight_layout(rect=(0, 0.14, 1, 1))
    kinds = (("-", "samples (filled)"), ("--", "mean images (white)"))
    handles = [plt.Line2D([], [], color="0.4", ls=style, lw=2, label=text) for style, text in kinds]
    handles += [plt.Line2D([], [], **k_line(k) | {"ls": ""}) for k in sizes]
    handles += axes[0].get_lines()[-2:]
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
    cap: float | None = None,
) -> Figure:
    """A heat map with a named row for each entry; values of at least `threshold` are printed.

    cap: the value from which on all cells have the darkest color (default: the largest).
    """
    fig, ax = plt.subplots(figsize=(width, 0.36 * len(table) + 0.9))
    largest = cap or max(map(max, table.values()))
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
    fig.colorbar(picture, label=colorbar, pad=0.02, extend="max" if cap else "neither")
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


def setting_curves(k: int, by_steps: Scores, by_scale: dict[str, Scores], title: str) -> Figure:
    """The three metrics against the Euler steps (above) and the guidance scale (below), from k
    tokens, with intervals. by_scale: a kind of guidance to its scores by scale."""
    fig, axes = plt.subplots(2, 3, figsize=(10.5, 5.4), sharex="row", sharey="col")
    pale = "#D55E00"
    for (above, below), (metric, label) in zip(axes.T, METRICS.items(), strict=True):
        lines = [(above, by_steps, "o-", "0.2", 1.0, "")]
        for (kind, rows), style, color, shift in zip(
            by_scale.items(), ("o-", "s--"), ("0.2", pale), (0.98, 1.02), strict=True
        ):
            lines.append((below, rows, style, color, shift, kind))
        for ax, rows, style, color, shift, name in lines:
            cells = [row[metric] for row in rows.values()]
            xs, ys = [x * shift for x in rows], [cell["mean"] for cell in cells]
            # an interval of resampled values need not contain the value itself
            bars = [[max(0, y - x["ci95"][0]) for x, y in zip(cells, ys, strict=True)]]
            bars += [[max(0, x["ci95"][1] - y) for x, y in zip(cells, ys, strict=True)]]
            look = {"color": color, "label": name, "capsize": 3, "mfc": "w" if shift > 1 else color}
            ax.errorbar(xs, ys, bars, fmt=style, **look)
            powers_axis(ax, list(rows))
            ax.grid(alpha=0.3)
        above.set(xlabel="Euler steps (guidance 1)", ylabel=label)
        below.set(xlabel="guidance scale", ylabel=label)
        if metric != "psnr":
            above.set_ylim(bottom=0)
    axes[1, 0].legend()
    fig.suptitle(f"{k} tokens, {title}")
    fig.tight_layout()
    return fig
