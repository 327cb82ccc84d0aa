"""The line-up of notebook 01: six pairs of patchify and unpatchify, of which one is right."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data import to_uint8


def right(x: Tensor, p: int) -> Tensor:
    return rearrange(x, "c (h a) (w b) -> (h w) (a b c)", a=p, b=p)


def channels_first(x: Tensor, p: int) -> Tensor:
    return rearrange(x, "c (h a) (w b) -> (h w) (c a b)", a=p, b=p)


def right_back(rows: Tensor, p: int, h: int, w: int) -> Tensor:
    return rearrange(rows, "(h w) (a b c) -> c (h a) (w b)", h=h, w=w, a=p, b=p)


def channels_first_back(rows: Tensor, p: int, h: int, w: int) -> Tensor:
    return rearrange(rows, "(h w) (c a b) -> c (h a) (w b)", h=h, w=w, a=p, b=p)


def column_by_column_back(rows: Tensor, p: int, h: int, w: int) -> Tensor:
    return rearrange(rows, "(w h) (a b c) -> c (h a) (w b)", h=h, w=w, a=p, b=p)


def red_and_blue_exchanged_back(rows: Tensor, p: int, h: int, w: int) -> Tensor:
    return right_back(rows, p, h, w).flip(0)


def h_and_w_exchanged_back(rows: Tensor, p: int, h: int, w: int) -> Tensor:
    return right_back(rows, p, w, h)


PAIRS: dict[str, tuple[Callable, Callable]] = {
    "A": (right, column_by_column_back),
    "B": (channels_first, channels_first_back),
    "C": (right, channels_first_back),
    "D": (right, right_back),
    "E": (right, red_and_blue_exchanged_back),
    "F": (right, h_and_w_exchanged_back),
}


def line_up(
    images: Sequence[Tensor], p: int = 4, verdicts: dict[str, tuple[bool, bool]] | None = None
) -> Figure:
    """What each pair makes of the images (C, H, W): a column for each pair, a row for each image.

    verdicts: whether patchify and unpatchify of a pair are right, written above its column.
    """
    fig = plt.figure(figsize=(1.75 * len(PAIRS), 1.9 * len(images) + 0.5), layout="constrained")
    axes = fig.subplots(len(images), len(PAIRS), squeeze=False)
    for column, (name, (cut, back)) in zip(axes.T, PAIRS.items(), strict=True):
        for ax, image in zip(column, images, strict=True):
            _, H, W = image.shape
            _show(ax, back(cut(image, p), p, H // p, W // p))
        words = [name]
        if verdicts is not None:
            parts = zip(("patchify", "unpatchify"), verdicts[name], strict=True)
            words += [f"{part} {'right' if good else 'WRONG'}" for part, good in parts]
        column[0].set_title("\n".join(words), fontsize=9)
    return fig


def _show(ax: Axes, image: Tensor) -> None:
    ax.imshow(to_uint8(image).permute(1, 2, 0))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
