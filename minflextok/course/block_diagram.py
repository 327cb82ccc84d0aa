"""One adaLN-Zero block of the decoder as a diagram."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from .diagram import ACTIVE, EDGE, FRAME, PLAIN, TEXT, arrow

MIDDLE = 4.3  # height of the part that computes the six vectors
SCALE, SHIFT, GATE, SUM = 7.6, 10.0, 16.0, 18.0  # positions of the operations, from the left


def adaln_block() -> Figure:
    """The attention branch above, the MLP branch below; between them the six vectors that are
    predicted from the timestep, in orange."""
    fig = Figure(figsize=(10.9, 4.3))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 21.8), ylim=(0, 8.6), aspect="equal")
    ax.axis("off")
    _timestep(ax)
    _branch(ax, "attention", "attn", up=1, ends=("sequence x\n(B, N, D)", "to the\nMLP branch"))
    _branch(ax, "MLP", "mlp", up=-1, ends=("from the\nattention\nbranch", "to the\nnext block"))
    return fig


def _timestep(ax: Axes) -> None:
    """The timestep, its embedding, and the linear layer that predicts the six vectors."""
    _text(ax, 1.1, MIDDLE, "timestep t")
    arrow(ax, (2.05, MIDDLE), (2.5, MIDDLE))
    _box(ax, 2.6, MIDDLE, 1.7, "time\nembedding")
    arrow(ax, (4.4, MIDDLE), (4.8, MIDDLE))
    _box(ax, 4.9, MIDDLE, 2.0, "SiLU, then\nadaln (linear)", on=True)
    ax.plot((6.95, GATE), (MIDDLE, MIDDLE), color=FRAME, lw=1.6)
    _text(ax, 18.9, MIDDLE, "all six are predicted from t;\nzero at initialization")


def _branch(ax: Axes, name: str, short: str, up: int, ends: tuple[str, str]) -> None:
    """Layer norm, modulation, attention or MLP, gate, and the sum with the residual path.

    up: 1 for the branch above the middle, -1 for that below.
    """
    y = MIDDLE + up * 2.15
    _text(ax, 1.1, y, ends[0])
    arrow(ax, (2.05, y), (4.1, y))
    _box(ax, 4.2, y, 1.5, "layer\nnorm")
    arrow(ax, (5.8, y), (SCALE - 0.32, y))
    _operation(ax, SCALE, y, "×", f"1 + scale ({short})", up)
    arrow(ax, (SCALE + 0.3, y), (SHIFT - 0.32, y))
    _operation(ax, SHIFT, y, "+", f"shift ({short})", up)
    arrow(ax, (SHIFT + 0.3, y), (11.9, y))
    _box(ax, 12.0, y, 1.9, name)
    arrow(ax, (14.0, y), (GATE - 0.32, y))
    _operation(ax, GATE, y, "×", f"gate ({short})", up)
    arrow(ax, (GATE + 0.3, y), (SUM - 0.32, y))
    _circle(ax, SUM, y, "+", PLAIN, EDGE)
    arrow(ax, (SUM + 0.3, y), (19.6, y))
    _text(ax, 20.5, y, ends[1])

    outside = y + up * 1.2
    ax.plot((2.9, 2.9, SUM), (y, outside, outside), color=TEXT, lw=1.1)
    arrow(ax, (SUM, outside), (SUM, y + up * 0.32))
    _text(ax, 10.5, outside + up * 0.32, "residual path: x unchanged")
    _text(ax, 8.8, y + up * 0.65, "modulate")


def _operation(ax: Axes, x: float, y: float, sign: str, vector: str, up: int) -> None:
    """A product or a sum with one of the six vectors."""
    arrow(ax, (x, MIDDLE), (x, y - up * 0.32), color=FRAME)
    _circle(ax, x, y, sign, ACTIVE, FRAME)
    ax.text(x + 0.15, y - up * 0.95, vector, ha="left", va="center", fontsize=9, color=TEXT)


def _box(ax: Axes, x: float, y: float, width: float, text: str, on: bool = False) -> None:
    face, edge = (ACTIVE, FRAME) if on else (PLAIN, EDGE)
    style = "round,pad=0.05"
    ax.add_patch(FancyBboxPatch((x, y - 0.5), width, 1, style, fc=face, ec=edge, lw=1.3, zorder=3))
    _text(ax, x + width / 2, y, text)


def _circle(ax: Axes, x: float, y: float, sign: str, face: str, edge: str) -> None:
    ax.add_patch(Circle((x, y), 0.3, fc=face, ec=edge, lw=1.4, zorder=3))
    ax.text(x, y - 0.02, sign, ha="center", va="center", fontsize=12, color=TEXT, zorder=4)


def _text(ax: Axes, x: float, y: float, text: str) -> None:
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color=TEXT, zorder=4)
