"""Procedural scenes with exact captions, and a checker that reads an image back.

A scene has 1 to 4 things on a dark ground, each with a shape, a color, a size and a position. A
program can read a scene back from its image, so generated images are scored exactly, without a
learned classifier.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (60, 90, 240),
    "yellow": (240, 220, 40),
    "purple": (190, 60, 220),
    "white": (240, 240, 240),
}
SIZES = {"small": 0.14, "large": 0.21}  # half the extent, in image sides
GROUND = (24, 24, 32)
RELATIONS = ("above", "below", "to the left of", "to the right of")
MARGIN = 0.1  # a relation holds where the centers differ by more than this, in image sides


@dataclass(frozen=True)
class Thing:
    """One object. x (rightward) and y (downward) are in image sides, from the top left. size None:
    any (captions)."""

    shape: str
    color: str
    size: str | None
    x: float = 0.5
    y: float = 0.5

    def __str__(self):
        return " ".join(["a", *([self.size] if self.size else []), self.color, self.shape])


# ---- making scenes -------------------------------------------------------------------------------


def random_scene(rng: np.random.Generator, num: int | None = None) -> list[Thing]:
    """1 to 4 things (or `num`), each in its own quarter, no two of the same color and shape."""
    num = int(rng.integers(1, 5)) if num is None else num
    kinds = rng.choice(len(SHAPES) * len(COLORS), num, replace=False)
    things = []
    for kind, cell in zip(kinds, rng.permutation(4)[:num], strict=True):
        size = str(rng.choice(list(SIZES)))
        slack = 0.24 - SIZES[size]  # how far the center may move inside its quarter
        dx, dy = rng.uniform(-slack, slack, 2)
        things.append(
            Thing(
                SHAPES[kind % len(SHAPES)],
                list(COLORS)[kind // len(SHAPES)],
                size,
                0.25 + 0.5 * (cell % 2) + dx,
                0.25 + 0.5 * (cell // 2) + dy,
            )
        )
    return things


def coverage(
    thing: Thing, side: int, rows: slice = slice(None), cols: slice = slice(None)
) -> np.ndarray:
    """The share of each pixel that the thing covers: (side, side) float in [0, 1], from 4 x 4
    samples a pixel.

    rows and cols select a window of the image.
    """
    grid = ((np.arange(4 * side) + 0.5) / (4 * side)).reshape(side, 4)
    dx, dy, r = (
        grid[cols].reshape(1, -1) - thing.x,
        grid[rows].reshape(-1, 1) - thing.y,
        SIZES[thing.size],
    )
    inside = {
        "circle": dx**2 + dy**2 <= r**2,
        "square": np.maximum(abs(dx), abs(dy)) <= 0.95 * r,
        "triangle": (2 * abs(dx) <= dy + r) & (dy <= r),
    }[thing.shape]
    return inside.reshape(dy.shape[0] // 4, 4, dx.shape[1] // 4, 4).mean((1, 3))


def render(scene: list[Thing], side: int = 16) -> np.ndarray:
    """(3, side, side) uint8."""
    image = np.array(GROUND, float)[:, None, None] * np.ones((1, side, side))
    for thing in scene:
        r = SIZES[thing.size]
        rows, cols = (  # the part of the image that the thing may cover
            slice(max(0, int(side * (at - r))), max(0, int(side * (at + r)) + 2))
            for at in (thing.y, thing.x)
        )
        alpha, part = coverage(thing, side, rows, cols), image[:, rows, cols]
        color = np.array(COLORS[thing.color], float)[:, None, None]
        image[:, rows, cols] = part * (1 - alpha) + color * alpha
    return image.round().astype(np.uint8)


def holds(a: Thing, relation: str, b: Thing) -> bool:
    """Whether `a` is `relation` `b`. A thing may be both above and to the left of another."""
    gap = {
        "above": b.y - a.y,
        "below": a.y - b.y,
        "to the left of": b.x - a.x,
        "to the right of": a.x - b.x,
    }[relation]
    return gap > MARGIN


def caption(scene: list[Thing], sizes: bool = True, rng: np.random.Generator | None = None) -> str:
    """An exact caption: "a red circle", ..., "a small red circle above a large blue square, which
    is ..."."""
    words = [str(t if sizes else Thing(t.shape, t.color, None)) for t in scene]
    text = words[0]
    for i, (a, b) in enumerate(pairwise(scene)):
        true = [r for r in RELATIONS if holds(a, r, b)]
        relation = true[0] if rng is None else str(rng.choice(true))
        text += f"{', which is' if i else ''} {relation} {words[i + 1]}"
    return text


def make_shapes(
    num: int, side: int = 16, seed: int = 0
) -> tuple[np.ndarray, list[str], list[list[Thing]]]:
    """`num` images (num, 3, side, side) uint8 with their captions (half of them with sizes) and
    scenes."""
    if side < 16:
        raise ValueError(
            f"shapes at {side}x{side}: a small circle and a small square need at least 16x16 to "
            "differ"
        )
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(num)]
    captions = [caption(s, sizes=bool(rng.integers(2)), rng=rng) for s in scenes]
    return np.stack([render(s, side) for s in scenes]), captions, scenes


# ---- reading scenes back -------------------------------------------------------------------------


def read_scene(image: np.ndarray) -> list[Thing]:
    """The things in an image (3, S, S) uint8: the inverse of `render`, tolerant of blur and noise.

    Every pixel is modeled as ground + alpha * (color - ground), with the color of the smallest
    residual. Connected pixels of one color are a thing. Its shape and size are those whose
    rendering overlaps it best.
    """
    image = np.asarray(image)
    if (
        image.ndim != 3
        or image.shape[0] != 3
        or image.shape[1] != image.shape[2]
        or image.dtype != np.uint8
    ):
        raise ValueError(f"image is {image.dtype} {image.shape}: give uint8 (3, S, S)")
    side = image.shape[1]
    ground = np.array(GROUND, float)
    pixel = image.transpose(1, 2, 0) - ground  # (S, S, 3)
    rays = np.array(list(COLORS.values()), float) - ground  # (6, 3)
    alphas = np.clip(pixel @ rays.T / (rays**2).sum(1), 0, 1)  # (S, S, 6)
    rest = ((pixel[:, :, None] - alphas[..., None] * rays) ** 2).sum(-1)
    best = rest.argmin(-1)
    things = []
    for c, color in enumerate(COLORS):
        alpha = np.where(best == c, alphas[..., c], 0)
        labels, _ = ndimage.label(alpha > 0.5)
        for i, (rows, cols) in enumerate(ndimage.find_objects(labels), start=1):
            if (labels == i).sum() < 0.02 * side**2:
                continue  # a speck: half of the smallest thing is larger
            reach = side // 8
            window = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in (rows, cols))
            blob = np.where(
                ndimage.binary_dilation(labels[window] == i) & (best[window] == c), alpha[window], 0
            )
            x, y = (cols.start + cols.stop) / 2 / side, (rows.start + rows.stop) / 2 / side
            nudges = np.array([-0.5, 0, 0.5]) / side  # the true center may lie between pixels
            guesses = [
                Thing(s, color, z, x + dx, y + dy)
                for s in SHAPES
                for z in SIZES
                for dx in nudges
                for dy in nudges
            ]
            masks = [coverage(g, side, *window) for g in guesses]
            overlap = [np.minimum(blob, m).sum() / np.maximum(blob, m).sum() for m in masks]
            things.append(guesses[int(np.argmax(overlap))])
    return things


def parse_caption(text: str) -> tuple[list[Thing], list[str]]:
    """The inverse of `caption`: things (without positions) and the relation of each to the next."""
    thing = rf"an? (?:({'|'.join(SIZES)}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
    relation = rf"(?:, which is)? ({'|'.join(RELATIONS)}) "
    clean = " ".join(text.lower().split()).rstrip(".")
    if not re.fullmatch(f"{thing}(?:{relation}{thing}){{0,3}}", clean):
        raise ValueError(
            f"cannot read the caption {text!r}: give '[small|large] COLOR SHAPE', joined by "
            f"RELATION ('..., which is RELATION ...' from the second on); colors "
            f"{', '.join(COLORS)}; "
            f"shapes {', '.join(SHAPES)}; relations {', '.join(RELATIONS)}"
        )
    things = [Thing(shape, color, size or None) for size, color, shape in re.findall(thing, clean)]
    return things, re.findall(rf" ({'|'.join(RELATIONS)}) ", clean)


@dataclass(frozen=True)
class Verdict:
    """The result of `check`. met: the image shows the caption's things, no others, and all
    relations hold."""

    met: bool
    found: list[Thing]
    missing: list[str]
    extra: list[str]
    wrong_relations: list[str]


def check(image: np.ndarray, text: str) -> Verdict:
    """Whether the image (3, S, S) uint8 shows exactly the scene of the caption."""
    return check_scene(read_scene(image), text)


def check_scene(found: list[Thing], text: str) -> Verdict:
    """Whether these things are exactly those of the caption, in its relations."""
    wanted, relations = parse_caption(text)
    rest, missing = list(found), []
    matched: list[Thing | None] = []
    for want in wanted:
        same = [
            t
            for t in rest
            if (t.shape, t.color) == (want.shape, want.color) and want.size in (None, t.size)
        ]
        matched.append(same[0] if same else None)
        if same:
            rest.remove(same[0])
        else:
            missing.append(str(want))
    pairs = zip(pairwise(wanted), pairwise(matched), relations, strict=True)
    wrong = [f"{a} {r} {b}" for (a, b), (p, q), r in pairs if p and q and not holds(p, r, q)]
    return Verdict(not (missing or rest or wrong), found, missing, [str(t) for t in rest], wrong)
