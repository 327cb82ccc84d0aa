"""Figures of notebook 09: attention to words, shares of matching samples."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

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


def match_curves(stored: dict[str, dict], live: dict[str, Tensor], ks: Sequence[int]) -> Figure:
    """Share of matching images against the number of tokens, one panel for each title.

    stored: title to the table of a results.json, number of tokens to its results; drawn as lines
    with bands. live: title to (len(ks), 4, captions), 1 where an image matches; open markers.
    """
    fig, axes = plt.subplots(1, len(stored), figsize=(10.5, 4.3), sharey=True)
    for ax, (title, table) in zip(axes, stored.items(), strict=True):
        budgets = [int(k) for k in table]
        for n, line in enumerate(LINES):
            cells = [row["met"][str(n + 1)] for row in table.values()]
            low, high = zip(*(x["ci95"] for x in cells), strict=True)
            ax.plot(budgets, [x["mean"] for x in cells], **line)
            ax.fill_between(budgets, low, high, color=line["color"], alpha=0.15, lw=0)
            places = [k * 1.04 ** (2 * n - 3) for k in ks]
            hollow = line | {"ls": "", "ms": 8, "mfc": "none", "label": None}
            ax.plot(places, live[title][:, n].mean(1), **hollow)
        ax.set(xlabel="tokens", title=title, ylim=(-0.03, 1.03))
        powers_axis(ax, budgets)
    axes[0].set_ylabel("share that matches exactly")
    axes[0].legend(loc="upper left")
    fig.tight_layout()
    return fig
