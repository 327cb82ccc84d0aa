"""The attention mask of the encoder as a picture of its four blocks."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLUE, ORANGE, EDGE = "#9ecae1", "#fdae6b", "#636363"
K = 4  # registers in the picture
CELL = (0.9, 0.6)  # width and height of the cell of two registers; a block has 4 by 4 of them


def mask_diagram() -> Figure:
    """Who attends to whom: rows are queries, columns are keys, in both patches before registers.

    Filled: the row attends to the column. Hatched: the mask excludes the column.
    """
    fig = Figure(figsize=(8.2, 4.2))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-1.7, 7.5), ylim=(4.95, -0.95))
    ax.axis("off")
    w, h = 4 * CELL[0], 4 * CELL[1]
    _block(ax, 0, 0, w, h, BLUE, "patches attend\nto all patches")
    _block(ax, w, 0, w, h, None, "no patch attends\nto a register")
    _block(ax, 0, h, w, h, BLUE, "registers attend\nto all patches")
    _block(ax, w, h, w, h, None, "")
    for i in range(K):
        for j in range(i + 1):
            corner = w + j * CELL[0], h + i * CELL[1]
            _block(ax, *corner, *CELL, ORANGE, f"$r_{i}$ to $r_{j}$")
    _text(ax, w + 3 * CELL[0], h + CELL[1], "no register attends\nto a later one", "white")
    _text(ax, w / 2, -0.25, "patches")
    _text(ax, -0.55, h / 2, "patches")
    for i in range(K):
        _text(ax, w + (i + 0.5) * CELL[0], -0.25, f"$r_{i}$")
        _text(ax, -0.55, h + (i + 0.5) * CELL[1], f"$r_{i}$")
    _text(ax, w, -0.7, "key: the position that is attended to")
    ax.text(-1.35, h, "query: the position that attends", rotation=90, ha="center", va="center")
    return fig


def _block(ax: Axes, x: float, y: float, w: float, h: float, color: str | None, text: str) -> None:
    hatch = None if color else "///"
    ax.add_patch(Rectangle((x, y), w, h, fc=color or "white", ec="0.8", hatch=hatch, lw=0))
    ax.add_patch(Rectangle((x, y), w, h, fill=False, ec=EDGE, lw=1))
    if text:
        _text(ax, x + w / 2, y + h / 2, text, None if color else "white")


def _text(ax: Axes, x: float, y: float, text: str, ground: str | None = None) -> None:
    box = {"fc": ground, "ec": "none", "pad": 2} if ground else None
    ax.text(x, y, text, ha="center", va="center", fontsize=10, bbox=box)
