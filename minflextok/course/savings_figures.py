"""Notebook 11: guided steps with some of the exact savings, their times, and the figures."""

import time
from collections.abc import Callable, Collection, Hashable, Iterator
from itertools import accumulate

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from .. import savings
from ..data import to_uint8
from ..decoder import Decoder
from ..evaluation.figures import plural
from ..patches import embed_patches

# the savings of a guided step, in the order of the notebook
DROPPED, NULL, LAST, ONCE = "dropped registers", "null registers", "last block", "one modulation"
SAVINGS = (DROPPED, NULL, LAST, ONCE)
LOOKS = (("#0072B2", ".."), ("#E69F00", "//"), ("#009E73", "\\\\"), ("#CC79A7", "xx"))


@torch.no_grad()
def guided_step(
    decoder: Decoder,
    x_t: Tensor,
    t: Tensor,
    registers: Tensor,
    kept: int,
    null: Tensor,
    scale: float,
    use: Collection[str] = SAVINGS,
) -> Tensor:
    """The guided velocity (B, C, H, W) with those of the SAVINGS that `use` names.

    t (1,), the same for all images. registers (B, K, D), equal from index `kept` on; null (B, K,
    D), all equal.
    """
    h, w = (side // decoder.patch_size for side in x_t.shape[-2:])
    shared, found = savings.modulations(decoder, t) if ONCE in use else None, []
    for condition, k, saving in ((registers, kept, DROPPED), (null, 0, NULL)):
        mods = shared or savings.modulations(decoder, t.expand(len(x_t)))
        short, bias = savings.merge_dropped(condition, k) if saving in use else (condition, None)
        if LAST in use:
            found.append(savings.velocity(decoder, x_t, mods, short, bias))
            continue
        patches = embed_patches(x_t, decoder.patch_size, decoder.patch_proj, decoder.positions)
        seq, mask = (
            torch.cat([patches, short], 1),
            None if bias is None else F.pad(bias, (h * w, 0)),
        )
        for block, mod in zip(decoder.blocks, mods, strict=False):  # the last one is the head's
            seq = block(seq, mod, h * w, mask)
        found.append(decoder.output(seq[:, : h * w], mods[-1], h, w))
    return found[1] + scale * (found[0] - found[1])


def best_times(functions: dict[Hashable, Callable], repeats: int) -> dict[Hashable, float]:
    """The shortest of `repeats` processor times of each function, in milliseconds. The functions
    are called in turn, so that a busy machine slows all of them alike."""
    best = dict.fromkeys(functions, float("inf"))
    for trial in range(1 + repeats):  # the first, to warm up, does not count
        for name, function in functions.items():
            start = time.process_time()
            function()
            if trial:
                best[name] = min(best[name], 1000 * (time.process_time() - start))
    return best


def seconds_bars(bars: dict[str, tuple[float, float]]) -> Figure:
    """A pair of bars for each name: seconds plain, and with the savings."""
    fig, ax = plt.subplots(figsize=(7.6, 2.6), layout="constrained")
    looks = (("#D55E00", "//", "plain"), ("#0072B2", "", "with the savings"))
    for i, (color, hatch, label) in enumerate(looks):
        y, values = [j + 0.36 * i for j in range(len(bars))], [pair[i] for pair in bars.values()]
        drawn = ax.barh(y, values, 0.36, color=color, hatch=hatch, edgecolor="white", label=label)
        ax.bar_label(drawn, fmt="%.2f s", padding=3, fontsize=9)
    ax.set_yticks([j + 0.18 for j in range(len(bars))], list(bars))
    ax.set(xlabel="seconds of processor time", xlim=(0, 1.15 * max(map(max, bars.values()))))
    ax.invert_yaxis()
    fig.legend(loc="outside right upper")
    return fig


def distance_maps(stages: dict[str, Tensor], kept: int) -> Figure:
    """The distances between all pairs of registers (K, D), a panel for each stage; white lines
    separate the first `kept`."""
    fig, axes = plt.subplots(1, len(stages), figsize=(11, 3.4), layout="constrained")
    for ax, (title, registers) in zip(axes, stages.items(), strict=True):
        distance = (registers[:, None] - registers).norm(dim=-1)  # (K, K)
        shown = ax.imshow(distance / distance.max(), cmap="viridis", vmin=0, vmax=1)
        ax.axhline(kept - 0.5, color="white", lw=1)
        ax.axvline(kept - 0.5, color="white", lw=1)
        ticks = (0, kept, *range(8, len(registers), 8))
        ax.set(title=title, xlabel="register", ylabel="register", xticks=ticks, yticks=ticks)
    fig.colorbar(shown, ax=axes, label="distance / largest distance")
    return fig


def position_bars(num_patches: int, num_registers: int, budgets: tuple[int, ...]) -> Figure:
    """The positions of both evaluations of a guided step, plain and merged, a panel for each number
    of tokens. A merged register is drawn wider than it is, to be seen."""
    P, K, seen = num_patches, num_registers, 8
    fig, axes = plt.subplots(1, len(budgets), figsize=(11, 2.8), layout="constrained", sharey=True)
    rows = ("with tokens, plain", "with tokens, merged", "without, plain", "without, merged")
    looks = [("#BBBBBB", "", "patches"), ("#0072B2", "..", "kept registers")]
    looks += [("#D55E00", "//", "equal registers")]
    for ax, k in zip(axes, budgets, strict=True):
        equal = [K - k, min(1, K - k), K, 1]
        parts = ([P] * 4, [k, k, 0, 0], [max(n, seen) if n else 0 for n in equal])
        left = [0] * 4
        for part, (color, hatch, label) in zip(parts, looks, strict=True):
            drawn = ax.barh(rows, part, left=left, color=color, edgecolor="white", label=label)
            for bar in drawn:
                bar.set_hatch(hatch)
            left = [a + b for a, b in zip(left, part, strict=True)]
        after = 2 * P + k + min(1, K - k) + 1
        share = after / (2 * (P + K))
        ax.set(title=f"{plural(k, 'token')}: {2 * (P + K)} → {after} ({share:.0%})")
        ax.set(xlabel="positions")
    axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def saving_bars(chains: dict[str, list[float]]) -> Figure:
    """A stacked bar for each setting, in percent of its plain time: what is left, then what each of
    the SAVINGS takes off (0 if no time). chains: plain, and with one saving after the other."""
    fig, ax = plt.subplots(figsize=(9, 0.62 * len(chains) + 1.5), layout="constrained")
    names = list(chains)
    chains = {name: list(accumulate(times, min)) for name, times in chains.items()}
    ends = [100 * times[-1] / times[0] for times in chains.values()]
    ax.barh(names, ends, color="#BBBBBB", edgecolor="white", label="left over")
    for y, end in enumerate(ends):
        ax.text(end / 2, y, f"{end:.0f}%", ha="center", va="center", fontsize=10)
    for i in reversed(range(len(SAVINGS))):  # the first saving is the last part of the bar
        parts = [100 * (x[i] - x[i + 1]) / x[0] for x in chains.values()]
        color, hatch = LOOKS[i]
        bars = ax.barh(names, parts, left=ends, color=color, edgecolor="white", label=SAVINGS[i])
        for bar in bars:
            bar.set_hatch(hatch)
        for y, (end, part) in enumerate(zip(ends, parts, strict=True)):
            if part >= 4:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
                middle = end + part / 2
                ax.text(middle, y, f"{part:.0f}%", ha="center", va="center", fontsize=9, bbox=box)
        ends = [a + b for a, b in zip(ends, parts, strict=True)]
    ax.set(xlabel="percent of the processor time of a plain guided step", xlim=(0, 103))
    ax.invert_yaxis()
    fig.legend(loc="outside upper center", ncols=5)
    return fig


Film = list[tuple[float, Tensor]]


def record(step: Callable, noise: Tensor, steps: int) -> Film:
    """Euler steps with step(x_t, t): before each step and at the end, the seconds of processor time
    so far and the one-step estimate of the images (at the end: the images)."""
    x, spent, film = noise, 0.0, []
    for i in range(steps, 0, -1):
        start = time.process_time()
        v = step(x, torch.tensor([i / steps]))
        estimate, x = x - i / steps * v, x - v / steps
        film.append((spent, estimate if film else noise))
        spent += time.process_time() - start
    return [*film, (spent, x)]


def race(films: dict[str, Film], frames: int = 24) -> Iterator[Figure]:
    """Frames at equal times of several recordings side by side, for `animate`."""
    last = max(film[-1][0] for film in films.values())
    for n in range(frames + 1):
        now = last * n / frames
        fig, axes = plt.subplots(1, len(films), figsize=(7.2, 2.9))
        for ax, (name, film) in zip(axes, films.items(), strict=True):
            done = now >= film[-1][0]
            images = [x for seconds, x in film if seconds <= now][-1]
            tiles = torch.cat(list(to_uint8(images)), dim=2)  # (3, H, B * W)
            half = tiles.shape[2] // 2  # two rows
            ax.imshow(torch.cat([tiles[:, :, :half], tiles[:, :, half:]], 1).permute(1, 2, 0))
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(True)
            ax.spines[:].set(color="#009E73" if done else "0.8", linewidth=4 if done else 1)
            state = f"done after {film[-1][0]:.2f} s" if done else f"{now:.2f} s"
            ax.set_title(f"{name}: {state}", fontsize=10)
        fig.subplots_adjust(0.01, 0.03, 0.99, 0.9, 0.05)
        yield fig
