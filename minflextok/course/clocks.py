"""Sinusoidal position embeddings as clocks: each pair (sine, cosine) is the tip of a hand."""

from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

# From the fastest hand to the slowest: shorter, thicker and darker, so that gray suffices.
HANDS = (
    ("#E69F00", 1.5, 0.92),
    ("#D55E00", 2.5, 0.74),
    ("#0072B2", 3.5, 0.56),
    ("black", 4.5, 0.38),
)


def clock_faces(angles: Tensor) -> Figure:
    """One clock for each position.

    angles (positions, hands), the fastest hand first, at most four hands. A hand at angle a points
    to (sin a, cos a): up at 0, and clockwise from there.
    """
    positions, hands = angles.shape
    if hands > len(HANDS):
        raise ValueError(f"{hands} hands: a clock has at most {len(HANDS)}")
    fig = Figure(figsize=(1.25 * positions, 1.6), layout="constrained")
    for i, (ax, row) in enumerate(
        zip(fig.subplots(1, positions, squeeze=False)[0], angles, strict=True)
    ):
        ax.add_patch(Circle((0, 0), 1, fill=False, ec="0.5"))
        for a, (color, width, length) in zip(row, HANDS, strict=False):
            tip = length * a.sin(), length * a.cos()
            ax.plot([0, tip[0]], [0, tip[1]], color=color, lw=width, solid_capstyle="round")
        ax.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal", title=f"position {i}")
        ax.axis("off")
    return fig
