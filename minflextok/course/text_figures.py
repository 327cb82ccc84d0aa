"""Figures of notebook 09: attention to words, shares of matching samples."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..evaluation.scores import share
from ..prior import Prior
from ..transformer import layer_norm
from .style import powers_axis

# one color, marker and line style for captions of 1, 2, 3 and 4 objects
LINES = [
    {"color": color, "marker": marker, "ls": ls, "label": f"{n} object{'s' * (n > 1)}"}
    for n, color, marker, ls in (
        (1, "#0072B2", "o", "-"),
        (2, "#E69F00", "s", "--"),
        (3, "#009E73", "^", "-."),
        (4, "#CC79A7", "D", ":"),
    )
]


@torch.no_grad()
def word_attention(prior: Prior, captions: list[str], ids: Tensor) -> Tensor:
    """Cross-attention of B captions and their first k ids (B, k): the weights of every block, head
    and position on every word, (blocks, B, H, k + 1, L).

    Forward hooks catch the inputs of the cross-attention of each block; the weights are computed
    from them as in `CrossAttention.forward`.
    """
    caught: list[tuple] = []
    hooks = [
        block.cross.register_forward_hook(lambda m, args, out: caught.append((m, *args)))
        for block in prior.blocks
    ]
    prior.logits(ids, prior.prepare(captions))
    for hook in hooks:
        hook.remove()
    weights = []
    for m, x, (k, _, mask) in caught:
        q = layer_norm(m.wq(x).unflatten(-1, (-1, m.head_dim))).transpose(1, 2)  # (B, H, k + 1, d)
        logits = (q @ k.transpose(-1, -2) * m.head_dim**-0.5).masked_fill(~mask, float("-inf"))
        weights.append(logits.softmax(-1))
    return torch.stack(weights)


def attention_figure(maps: dict[str, Tensor], words: Sequence[Sequence[str]]) -> Figure:
    """Maps (positions, words), one panel each; words: the labels of the columns of each panel."""
    fig, axes = plt.subplots(1, len(maps), figsize=(11, 4.2), sharey=True, layout="constrained")
    largest = max(float(x.max()) for x in maps.values())
    for ax, (title, x), labels in zip(axes, maps.items(), words, strict=True):
        drawn = ax.imshow(x, cmap="Blues", vmin=0, vmax=largest, aspect="auto")
        ax.set_xticks(range(len(labels)), labels, rotation=90)
        ax.set_title(title)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("position of the predicted id")
    axes[0].set_yticks(range(len(x)), range(1, len(x) + 1))
    fig.colorbar(drawn, ax=axes, label="attention weight", pad=0.01)
    return fig


def captioned(images: Tensor, captions: Sequence[str]) -> Figure:
    """Images (B, 3, H, W) uint8 in one row, each above its caption."""
    fig, axes = plt.subplots(1, len(images), figsize=(2.6 * len(images), 3))
    for ax, image, caption in zip(axes, images, captions, strict=True):
        ax.imshow(image.permute(1, 2, 0), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_xlabel(textwrap.fill(caption, 32))
    fig.tight_layout()
    return fig


def word_changes(cosines: dict[str, dict[str, Tensor]]) -> Figure:
    """Mean cosines of the embeddings of words in two captions, one panel for each change.

    cosines: the change, to the label of a word and its cosines over captions. Lines: from the 10th
    to the 90th percentile of the captions.
    """
    fig, axes = plt.subplots(1, len(cosines), figsize=(4.6 * len(cosines), 3), sharey=True)
    for ax, (change, words) in zip(axes, cosines.items(), strict=True):
        values = torch.stack(list(words.values()))  # (words, captions)
        means, ends = values.mean(1), values.quantile(torch.tensor([0.1, 0.9]), dim=1)
        looks = [("#0072B2", "") if "color" in w else ("#E69F00", "//") for w in words]
        for i, (mean, (color, hatch)) in enumerate(zip(means, looks, strict=True)):
            ax.bar(i, mean, color=color, hatch=hatch, edgecolor="0.2")
            ax.text(i, 0.03, f"{mean:.2f}", ha="center", bbox={"fc": "w", "ec": "none", "pad": 1.5})
        ax.vlines(range(len(words)), *ends, color="0.2")
        ax.set_xticks(range(len(words)), [w.replace(" ", "\n", 1) for w in words])
        ax.set(title=change, ylim=(0, 1.05))
    axes[0].set_ylabel("cosine")
    fig.tight_layout()
    return fig


def match_curves(stored: dict[str, dict], live: dict[str, Tensor], ks: Sequence[int]) -> Figure:
    """Share of matching images against the number of tokens, one panel for each complexity.

    stored: title to the table of a results.json, number of tokens to its results; drawn as lines
    with bands. live: title to (len(ks), 4, captions), 1 where an image matches; open markers.
    """
    fig, axes = plt.subplots(1, 4, figsize=(11, 3.5), sharey=True)
    looks = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"))
    for n, ax in enumerate(axes):
        for (title, table), (color, marker, ls) in zip(stored.items(), looks, strict=True):
            budgets = [int(k) for k in table]
            cells = [row["met"][str(n + 1)] for row in table.values()]
            low, high = zip(*(x["ci95"] for x in cells), strict=True)
            means = [x["mean"] for x in cells]
            ax.plot(budgets, means, ls, color=color, marker=marker, ms=4, label=title)
            ax.fill_between(budgets, low, high, color=color, alpha=0.2, lw=0)
            ax.plot(ks, live[title][:, n].mean(1), marker, color=color, ms=9, mfc="none")
        ax.set(xlabel="tokens", title=LINES[n]["label"], ylim=(-0.03, 1.03))
        powers_axis(ax, budgets)
    axes[0].set_ylabel("share that matches exactly")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=2)
    fig.tight_layout(rect=(0, 0.07, 1, 1))
    return fig


def guidance_curves(scales: Sequence[float], found: Tensor) -> Figure:
    """Share of matching images against the guidance scale; found: (scales, 4, captions) bool.

    Bars: 95% intervals (Wilson's).
    """
    fig, axes = plt.subplots(1, 4, figsize=(11, 3), sharey=True)
    for n, ax in enumerate(axes):
        cells = [share(x.tolist()) for x in found[:, n]]
        bars = [[abs(x["mean"] - x["ci95"][side]) for x in cells] for side in (0, 1)]
        means = [x["mean"] for x in cells]
        ax.errorbar(range(len(scales)), means, bars, fmt="-o", color="#0072B2", capsize=3)
        ax.set_xticks(range(len(scales)), [f"{s:g}" for s in scales])
        ax.set(xlabel="guidance scale s", title=LINES[n]["label"], ylim=(-0.03, 1.05))
    axes[0].set_ylabel("share that matches exactly")
    fig.tight_layout()
    return fig
