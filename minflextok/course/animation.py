"""Animations as GIFs: they play in a stored notebook, without JavaScript and without a kernel."""

import io
from collections.abc import Iterable

import matplotlib.pyplot as plt
import PIL.Image
from IPython.display import Image
from matplotlib.figure import Figure

from ..checks import check_number

LARGEST = 1_000_000  # bytes; larger outputs make a notebook slow to load


def animate(
    frames: Iterable[Figure], seconds: float = 0.12, hold: float = 1.5, dpi: int = 100
) -> Image:
    """Figures of one size as a GIF that repeats. Closes the figures.

    seconds: shows each frame for this long, and the last for `hold`. ValueError without frames, for
    figures of different sizes, or above 1 MB.
    """
    shown = round(1000 * check_number(seconds, "seconds", 0.02, 60))
    last = round(1000 * check_number(hold, "hold", 0.02, 60))
    pictures = [_pixels(fig, dpi) for fig in frames]
    if not pictures or len({picture.size for picture in pictures}) > 1:
        sizes = sorted({picture.size for picture in pictures})
        raise ValueError(f"frames of sizes {sizes}: give figures of one size")
    ends = PIL.Image.new("RGB", (pictures[0].width, 2 * pictures[0].height))
    ends.paste(pictures[0])
    ends.paste(pictures[-1], (0, pictures[0].height))
    # Colors of the first frame too: it may be noise. An octree keeps rare colors.
    palette = ends.quantize(256, PIL.Image.Quantize.FASTOCTREE)
    pictures = [
        picture.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for picture in pictures
    ]
    out, durations = io.BytesIO(), [shown] * (len(pictures) - 1) + [last]
    pictures[0].save(
        out, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
    )
    data = out.getvalue()
    if len(data) > LARGEST:
        raise ValueError(f"{len(data):,} bytes: at most 1 MB; use fewer frames or a smaller dpi")
    return Image(data, format="gif")


def _pixels(fig: Figure, dpi: int) -> PIL.Image.Image:
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=dpi)
    plt.close(fig)
    return PIL.Image.open(out).convert("RGB")
