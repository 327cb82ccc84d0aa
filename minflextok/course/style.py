"""The look of the course's figures: sizes, and one color for each number of tokens."""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from ..checks import check_count

# Positions on viridis, which is safe for color-blind readers and grows lighter with k, so that the
# order of the lines can be read in gray. The lightest yellows are left out.
SHADES = {1: 0.0, 2: 0.18, 4: 0.36, 8: 0.53, 16: 0.69, 32: 0.80, 64: 0.87, 128: 0.91, 256: 0.94}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")


def use_style() -> None:
    """Set Matplotlib for the figures of a notebook: 140 dots per inch, text of 9 points or more."""
    plt.switch_backend(plt.get_backend())  # load it now: IPython else shows no Figure before a plot
    plt.rcParams.update(
        {
            "figure.dpi": 140,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
        }
    )


def k_color(k: int) -> str:
    """The color of results from k tokens, 1 to 256: the same in every notebook."""
    check_count(k, "k", 1, 256)
    low = 2 ** int(math.log2(k))
    high, part = min(2 * low, 256), math.log2(k) - math.log2(low)
    return to_hex(plt.get_cmap("viridis")(SHADES[low] + part * (SHADES[high] - SHADES[low])))


def k_line(k: int) -> dict:
    """Color, marker and label of a line for k tokens, as arguments of `Axes.plot`."""
    marker = MARKERS[int(math.log2(check_count(k, "k", 1, 256)))]
    return {"color": k_color(k), "marker": marker, "label": f"{k} token{'s' * (k != 1)}"}


def powers_axis(ax: Axes, ticks: Sequence[int]) -> None:
    """A logarithmic horizontal axis, of tokens or bytes, with these ticks alone."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(x) for x in ticks])
    ax.minorticks_off()
