"""The architecture of FlexTok as a diagram, with the part that a notebook is about highlighted."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from ..checks import show
from .style import k_color

PARTS: tuple[str, ...] = (
    "image",
    "vae",
    "patches",
    "encoder",
    "registers",
    "fsq",
    "ids",
    "nested dropout",
    "decoder",
    "noise",
    "reconstruction",
    "prior",
)
PLAIN, ACTIVE, FRAME, EDGE, TEXT = "#eef1f4", "#ffd9a8", "#d9730d", "#8a939c", "#20262c"
K = 6  # registers in the picture


def architecture(highlight: str | Sequence[str] = (), vae: bool = False) -> Figure:
    """Image, patches, encoder with registers, FSQ, nested dropout, decoder, image; the prior above.

    highlight: names from PARTS, drawn in orange. vae: with the frozen VAE of stage 0 around the
    encoder and the decoder, as in the published models. ValueError for an unknown name.
    """
    names = [highlight] if isinstance(highlight, str) else list(highlight)
    if unknown := [name for name in names if name not in PARTS]:
        raise ValueError(f"highlight={show(unknown[0])}: give names from {', '.join(PARTS)}")
    fig = Figure(figsize=(10.9, 3.65))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 20.9), ylim=(0, 7), aspect="equal")
    ax.axis("off")
    for draw in (_input, _encoder, _codes, _decoder, _prior):
        draw(ax, set(names))
    if vae or "vae" in names:
        _vae(ax, "vae" in names)
    return fig


# ---- the parts, from left to right ---------------------------------------------------------------


def _input(ax: Axes, on: set[str]) -> None:
    _picture(ax, 0.15, 2.2, "image", "image" in on)
    arrow(ax, (1.8, 3), (2.85, 3))
    for i in range(4):
        for j in range(4):
            ax.add_patch(_square(2.95 + 0.42 * i, 2.2 + 0.42 * j, 0.34, "patches" in on))
    _label(ax, 3.75, 1.8, "patches", "patches" in on)
    arrow(ax, (4.65, 3), (5.35, 3))


def _encoder(ax: Axes, on: set[str]) -> None:
    _box(ax, 5.4, 2.0, 1.9, 2.0, "encoder\n(ViT)", "encoder" in on)
    for i in range(K):
        _dot(ax, 5.6 + 0.3 * i, 1.2, "registers" in on)
    arrow(ax, (6.35, 1.4), (6.35, 1.95))
    _label(ax, 6.35, 0.8, "K learned registers", "registers" in on)
    arrow(ax, (7.35, 3), (7.95, 3))


def _codes(ax: Axes, on: set[str]) -> None:
    _box(ax, 8.0, 2.35, 1.3, 1.3, "FSQ", "fsq" in on)
    arrow(ax, (9.35, 3), (9.85, 3))
    for i in range(K):
        color = k_color(2**i)
        for x, kept, part in ((10.1, True, "ids"), (12.9, i < 3, "nested dropout")):
            face = color if kept else "white"
            frame = FRAME if part in on else "white" if kept else EDGE
            y = 4.15 - 0.46 * i
            ax.add_patch(Rectangle((x, y), 0.7, 0.36, fc=face, ec=frame, lw=1.6, ls="-"))
            if kept:
                white = i < 4
                ax.text(
                    x + 0.35,
                    y + 0.17,
                    f"id {i + 1}" if i < 5 else "id K",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="w" if white else TEXT,
                )
    _label(ax, 10.45, 1.45, "ordered ids")
    arrow(ax, (11.0, 3), (12.7, 3))
    _label(ax, 11.85, 3.55, "nested", "nested dropout" in on)
    _label(ax, 11.85, 3.2, "dropout", "nested dropout" in on)
    _label(ax, 13.25, 1.45, "keep the first k")
    arrow(ax, (13.8, 3), (14.5, 3))


def _decoder(ax: Axes, on: set[str]) -> None:
    _box(ax, 14.6, 2.0, 2.3, 2.0, "decoder\n(velocity of a\nrectified flow)", "decoder" in on)
    noise = np.random.default_rng(0).random((8, 8, 3))
    ax.imshow(noise, extent=(14.5, 15.6, 0.3, 1.4), zorder=2, interpolation="nearest")
    _frame(ax, 14.5, 0.3, 1.1, "noise" in on)
    _label(ax, 13.9, 0.85, "noise", "noise" in on)
    arrow(ax, (15.05, 1.42), (15.35, 1.95))
    arrow(ax, (16.95, 3), (18.9, 3))
    loop = FancyArrowPatch(
        (16.5, 4.05),
        (15.0, 4.05),
        connectionstyle="arc3,rad=0.75",
        arrowstyle="-|>",
        mutation_scale=11,
        color=TEXT,
        lw=1.1,
    )
    ax.add_patch(loop)
    _label(ax, 15.75, 5.0, "Euler steps, t = 1 to 0")
    _picture(ax, 19.0, 2.2, "reconstruction", "reconstruction" in on)


def _prior(ax: Axes, on: set[str]) -> None:
    _box(ax, 9.2, 5.55, 2.5, 1.1, "prior (GPT)", "prior" in on)
    _label(ax, 7.6, 6.1, "class or text")
    arrow(ax, (8.55, 6.1), (9.15, 6.1))
    arrow(ax, (10.45, 5.5), (10.45, 4.65))
    _label(ax, 11.75, 5.05, "predicts id by id")


def _vae(ax: Axes, on: bool) -> None:
    for x, name in ((2.28, "VAE encoder"), (17.9, "VAE decoder")):
        face = ACTIVE if on else PLAIN
        ax.add_patch(
            FancyBboxPatch(
                (x - 0.22, 1.7),
                0.44,
                2.6,
                boxstyle="round,pad=0.04",
                fc=face,
                ec=FRAME if on else EDGE,
                lw=1.3,
                zorder=3,
            )
        )
        ax.text(x, 3.0, name, rotation=90, ha="center", va="center", fontsize=8.5, zorder=4)


# ---- shapes --------------------------------------------------------------------------------------


def _box(ax: Axes, x: float, y: float, w: float, h: float, text: str, on: bool) -> None:
    patch = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.05", lw=1.8 if on else 1)
    patch.set(facecolor=ACTIVE if on else PLAIN, edgecolor=FRAME if on else EDGE)
    ax.add_patch(patch)
    weight = "bold" if on else "normal"
    ax.text(
        x + w / 2,
        y + h / 2,
        text,
        ha="center",
        va="center",
        fontsize=9.5,
        color=TEXT,
        fontweight=weight,
    )


def _square(x: float, y: float, side: float, on: bool) -> Rectangle:
    return Rectangle(
        (x, y), side, side, fc=ACTIVE if on else "#c9d3dc", ec=FRAME if on else EDGE, lw=1
    )


def _dot(ax: Axes, x: float, y: float, on: bool) -> None:
    ax.add_patch(
        Circle((x, y), 0.12, fc=ACTIVE if on else "#c9d3dc", ec=FRAME if on else EDGE, lw=1)
    )


def _picture(ax: Axes, x: float, y: float, name: str, on: bool) -> None:
    """A small landscape of 16 x 16 pixels."""
    v, u = np.mgrid[0:16, 0:16]
    rgb = np.where((v > 9)[..., None], (90, 150, 80), (150, 195, 230)).astype(np.uint8)
    rgb[(u - 11) ** 2 + (v - 4) ** 2 <= 5] = (250, 215, 90)
    rgb[(v > 6) & (abs(u - 5) < 3) & (v < 13)] = (165, 80, 60)
    ax.imshow(rgb, extent=(x, x + 1.6, y, y + 1.6), zorder=2, interpolation="nearest")
    _frame(ax, x, y, 1.6, on)
    _label(ax, x + 0.8, y - 0.4, name, on)


def _frame(ax: Axes, x: float, y: float, side: float, on: bool) -> None:
    ax.add_patch(
        Rectangle(
            (x, y),
            side,
            side,
            fill=False,
            ec=FRAME if on else EDGE,
            lw=2 if on else 1,
            zorder=3,
        )
    )


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = TEXT
) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            color=color,
            lw=1.1,
            shrinkA=0,
            shrinkB=0,
        )
    )


def _label(ax: Axes, x: float, y: float, text: str, on: bool = False) -> None:
    ax.text(
        x,
        y,
        text,
        ha="center",
        va="center",
        fontsize=9,
        color="#b35900" if on else TEXT,
        fontweight="bold" if on else "normal",
    )
