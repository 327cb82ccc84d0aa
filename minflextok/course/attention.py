"""Attention of one query as a picture: scores, weights, weighted mean of the values."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data import to_uint8


def attention_diagram(image: Tensor, scores: Tensor, weights: Tensor, values: Tensor) -> Figure:
    """Three steps with the numbers of the model, for a query of register M - 1.

    image (3, H, W); scores and weights (P + M) over the patches of a square grid, then M registers;
    values (P + M, d), of which the first three numbers are shown.
    """
    grid = int(len(scores) ** 0.5)
    P = grid * grid
    names = [f"p{i}" for i in range(P)] + [f"r{i}" for i in range(len(scores) - P)]
    fig = Figure(figsize=(11, 4.2), layout="constrained")
    axes = fig.subplots(1, 4, width_ratios=(0.8, 1, 1, 1.15))
    for ax in axes:
        ax.axis("off")
    axes[0].imshow(to_uint8(image).permute(1, 2, 0))
    axes[0].set_title(f"the image; query: {names[-1]}")
    _map(axes[1], scores, grid, "1. scores: query · key / √d", "{:.1f}")
    _map(axes[2], weights * 100, grid, "2. softmax: weights in %", "{:.0f}")
    axes[3].set_title("3. weight × value")
    # As high as the maps, so that the three titles are in one line.
    axes[3].set_box_aspect((grid + 1.8) / (grid + 0.2) / 1.15)
    order = weights.argsort(descending=True).tolist()
    lines = [f"{weights[j]:5.2f} × {_first(values[j])}  {names[j]}" for j in order[:4]]
    rest = weights[order[4:]] @ values[order[4:]]
    lines += [f"   +    {_first(rest)}  {len(order) - 4} others", "─" * 32]
    lines += [f"   =    {_first(weights @ values)}  result"]
    text = "\n\n".join(lines)
    axes[3].text(0, 0.5, text, family="monospace", fontsize=9, va="center")
    return fig


def _first(vector: Tensor) -> str:
    return "(" + ", ".join(f"{x:4.1f}" for x in vector[:3].tolist()) + ", …)"


def _map(ax: Axes, x: Tensor, grid: int, title: str, form: str) -> None:
    """The patches as a grid, and the registers as one more row below it."""
    low, high = float(x.min()), float(x.max())
    rows = [(i % grid, i // grid) for i in range(grid * grid)]
    places = rows + [(j, grid + 0.6) for j in range(len(x) - grid * grid)]
    ax.set(xlim=(-0.6, grid - 0.4), ylim=(grid + 1.2, -0.6), aspect="equal", title=title)
    ax.text(len(x) - grid * grid - 0.3, grid + 0.6, "← r0, r1, …", fontsize=9, va="center")
    for (column, row), value in zip(places, x.tolist(), strict=True):
        strength = (value - low) / max(high - low, 1e-9)  # equal values: white
        color = (1 - 0.1 * strength, 1 - 0.45 * strength, 1 - 0.9 * strength)
        ax.scatter(column, row, s=320, c=[color], marker="s", edgecolors="0.8", linewidths=0.5)
        ax.text(column, row, form.format(value), fontsize=8, ha="center", va="center")
