"""Exercises of notebook 01: images, patches, positions."""

import math
from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from torch import Tensor

from ..lineup import PAIRS, channels_first, right, right_back
from . import Exercise, randint

# ---- patchify and back ---------------------------------------------------------------------------


def _image_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.arange(16.0).view(1, 4, 4), 2
    yield torch.arange(16.0).view(2, 2, 4), 2
    for _ in range(5):
        # W > h.
        p, C, h, w = (randint(g, low, high) for low, high in ((2, 4), (2, 3), (2, 3), (4, 5)))
        yield torch.randn(C, h * p, w * p, generator=g), p


def patchify(x: Tensor, p: int) -> Tensor:
    C, H, W = x.shape
    rows = []
    for top in range(0, H, p):
        for left in range(0, W, p):
            rows.append(
                [
                    float(x[c, top + i, left + j])
                    for i in range(p)
                    for j in range(p)
                    for c in range(C)
                ]
            )
    return torch.tensor(rows)


PATCHIFY = Exercise(
    _image_inputs,
    patchify,
    [
        (
            lambda x, p: rearrange(x, "c (h a) (w b) -> (h w) (c a b)", a=p, b=p),
            "inside a patch the channels come first. The order is row, column, channel: the "
            "three numbers of a pixel are consecutive.",
        ),
        (
            lambda x, p: rearrange(x, "c (h a) (w b) -> (w h) (a b c)", a=p, b=p),
            "the patches are in column-major order. The order is row by row, left to right "
            "(row-major).",
        ),
        (
            lambda x, p: rearrange(x, "c (h a) (w b) -> (h w) (b a c)", a=p, b=p),
            "the pixels of each patch are transposed: column by column instead of row by row.",
        ),
        (
            lambda x, p: rearrange(x, "c (h a) (w b) -> h w (a b c)", a=p, b=p),
            "the values are right; put the patches on one axis: (P, p*p*C).",
        ),
        (
            lambda x, p: x.unfold(1, p, p).unfold(2, p, p).reshape(-1, p * p * len(x)),
            "the channels are still the first axis: all patches of one channel come before "
            "those of the next. Move the axis of the patches to the front first.",
        ),
        (
            lambda x, p: x.permute(1, 2, 0).reshape(-1, p * p * len(x)),
            "your patches are runs of pixels along one image row, not squares. Split H and "
            "W into (h, p) and (w, p) first, then move the axes.",
        ),
        (
            lambda x, p: x.reshape(-1, p * p * len(x)),
            "reshape alone keeps the memory order: your patch is a piece of one row (or "
            "channel), not a square. Split H and W into (h, p) and (w, p) first, then move "
            "the axes.",
        ),
        (
            lambda x, p: rearrange(x, "c (a h) (b w) -> (h w) (a b c)", a=p, b=p),
            "the pixels of your patch lie far apart: H was split into (p, h). A patch is "
            "a block of p neighboring rows and columns, so split H into (h, p) and W "
            "into (w, p).",
        ),
        (
            lambda x, p: patchify(x, p).T,
            "the axes are exchanged: one row for each patch.",
        ),
    ],
)


def _rows_inputs(g: torch.Generator) -> Iterator[tuple]:
    for x, p in _image_inputs(g):
        yield patchify(x, p), p, x.shape[1] // p, x.shape[2] // p


def unpatchify(rows: Tensor, p: int, h: int, w: int) -> Tensor:
    C = rows.shape[1] // p**2
    x = torch.empty(C, h * p, w * p)
    for n, row in enumerate(rows):
        top, left = n // w * p, n % w * p
        for m, value in enumerate(row):
            pixel, c = divmod(m, C)
            x[c, top + pixel // p, left + pixel % p] = value
    return x


UNPATCHIFY = Exercise(
    _rows_inputs,
    unpatchify,
    [
        (
            lambda rows, p, h, w: rearrange(
                rows, "(h w) (c a b) -> c (h a) (w b)", h=h, w=w, a=p, b=p
            ),
            "this inverts a patchify with channels first. Here the order in a patch is row, "
            "column, channel, and both functions must use the same order.",
        ),
        (
            lambda rows, p, h, w: rearrange(
                rows, "(w h) (a b c) -> c (h a) (w b)", h=h, w=w, a=p, b=p
            ),
            "the patches are placed in column-major order. Patch n is at row n // w and "
            "column n % w of the grid.",
        ),
        (
            lambda rows, p, h, w: rearrange(
                rows, "(h w) (b a c) -> c (h a) (w b)", h=h, w=w, a=p, b=p
            ),
            "each patch is transposed.",
        ),
        (
            lambda rows, p, h, w: rows.reshape(-1, h * p, w * p),
            "reshape alone keeps the memory order: the pixels of a patch end up side by "
            "side in one image row.",
        ),
        (
            lambda rows, p, h, w: (
                rows.view(h, w, p, p, -1).permute(4, 0, 1, 2, 3).reshape(-1, h * p, w * p)
            ),
            "the axes are in the order (C, h, w, p, p). An image row runs through all "
            "patches of a row of the grid, so the order is (C, h, p, w, p) before the "
            "reshape.",
        ),
        (
            lambda rows, p, h, w: rearrange(
                rows, "(h w) (a b c) -> c (a h) (b w)", h=h, w=w, a=p, b=p
            ),
            "each patch is spread over the whole image. Its p rows are neighbors: merge "
            "(h, p) into H, not (p, h).",
        ),
        (
            lambda rows, p, h, w: unpatchify(rows, p, h, w).permute(1, 2, 0),
            "the channels are the last axis. An image here is (C, H, W).",
        ),
    ],
)


# ---- a test of both ------------------------------------------------------------------------------


def _column_by_column(x: Tensor, p: int) -> Tensor:
    return rearrange(x, "c (h a) (w b) -> (w h) (a b c)", a=p, b=p)


def _transposed(x: Tensor, p: int) -> Tensor:
    return rearrange(x, "c (h a) (w b) -> (h w) (b a c)", a=p, b=p)


def _last_patch_forgotten(x: Tensor, p: int) -> Tensor:
    rows = right(x, p)
    return torch.cat([rows[:-1], rows[-2:-1]])


def _column_by_column_back(rows: Tensor, p: int, h: int, w: int) -> Tensor:
    return rearrange(rows, "(w h) (a b c) -> c (h a) (w b)", h=h, w=w, a=p, b=p)


def _pairs(g: torch.Generator) -> Iterator[tuple]:
    yield PAIRS["D"]
    yield from (pair for name, pair in PAIRS.items() if name != "D")
    yield channels_first, right_back
    yield _column_by_column, _column_by_column_back
    yield _transposed, right_back
    yield _last_patch_forgotten, right_back


def _numbered(C: int, h: int, w: int, p: int) -> tuple[Tensor, Tensor]:
    """An image of h by w patches in which all numbers differ, and its rows."""
    x = torch.arange(1.0, C * h * p * w * p + 1).view(C, h * p, w * p)
    return x, patchify(x, p)


def _equal(f: Callable, target: Tensor) -> bool:
    try:
        return torch.equal(f(), target)
    except (RuntimeError, ValueError):  # such as einops raises for sizes that do not fit
        return False


def _test(cut: Callable, back: Callable, C: int = 3, h: int = 2, w: int = 3, p: int = 2) -> tuple:
    x, rows = _numbered(C, h, w, p)
    return _equal(lambda: cut(x, p), rows), _equal(lambda: back(rows, p, h, w), x)


def test_pair(patchify: Callable, unpatchify: Callable) -> tuple[bool, bool]:
    return _test(patchify, unpatchify)


def _round_trip(cut: Callable, back: Callable) -> tuple[bool, bool]:
    x, _ = _numbered(3, 2, 3, 2)
    good = _equal(lambda: back(cut(x, 2), 2, 2, 3), x)
    return good, good


def _after_patchify(cut: Callable, back: Callable) -> tuple[bool, bool]:
    return test_pair(cut, back)[0], _round_trip(cut, back)[1]


def _same_values(cut: Callable, back: Callable) -> tuple[bool, bool]:
    x, rows = _numbered(3, 2, 3, 2)
    made, image = cut(x, 2), back(rows, 2, 2, 3)
    return (
        torch.equal(made.sort(-1).values, rows.sort(-1).values),
        image.shape == x.shape and torch.equal(image.flatten().sort().values, x.flatten()),
    )


def _first_patch(cut: Callable, back: Callable) -> tuple[bool, bool]:
    x, rows = _numbered(3, 2, 3, 2)
    made, image = cut(x, 2), back(rows, 2, 2, 3)
    return torch.equal(made[0], rows[0]), torch.equal(image[:, :2, :2], x[:, :2, :2])


def _shapes(cut: Callable, back: Callable) -> tuple[bool, bool]:
    x, rows = _numbered(3, 2, 3, 2)
    return cut(x, 2).shape == rows.shape, back(rows, 2, 2, 3).shape == x.shape


TEST_PAIR = Exercise(
    _pairs,
    test_pair,
    [
        (
            _round_trip,
            "this is the round trip. It says that the two do not fit, and not which of them is "
            "wrong; and it is exact for two functions with the same error (pair B). Compare each "
            "function with numbers that you arranged by hand.",
        ),
        (
            _after_patchify,
            "unpatchify gets the rows that the patchify under test has made. If that patchify is "
            "wrong, unpatchify is blamed for it, or two errors cancel. Give it rows that you made "
            "by hand.",
        ),
        (
            lambda cut, back: _test(cut, back, h=2, w=2),
            "the test image is square, so h and w can be exchanged without any effect (pair F). "
            "Take one with h different from w.",
        ),
        (
            lambda cut, back: _test(cut, back, C=1),
            "the test image has one channel, so the order of the channels has no effect (pairs C "
            "and E). Take three.",
        ),
        (
            lambda cut, back: _test(cut, back, p=1),
            "patches of one pixel have no order of pixels. Take p = 2 or more.",
        ),
        (
            _same_values,
            "the right values are in the right patch, but their order is not tested: compare "
            "number by number, not sums or sorted values.",
        ),
        (
            _first_patch,
            "only the first patch is compared, and it is at the same place in any order of the "
            "patches. Compare all of them.",
        ),
        (
            _shapes,
            "only the shapes are compared, and they are right for most errors.",
        ),
        (
            lambda cut, back: test_pair(cut, back)[::-1],
            "the two results are exchanged: first whether patchify is right, then unpatchify.",
        ),
        (
            lambda cut, back: tuple(not good for good in test_pair(cut, back)),
            "True means right here, not wrong.",
        ),
    ],
)


# ---- positions on a line and on a grid -----------------------------------------------------------


def _axis_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield 3, 4
    for _ in range(5):
        yield randint(g, 1, 9), 2 * randint(g, 2, 8)


def axis(length: int, dim: int) -> Tensor:
    n = dim // 2
    table = torch.empty(length, dim)
    for i in range(length):
        for j in range(n):
            angle = i * 10000 ** (-j / n)
            table[i, j], table[i, n + j] = math.sin(angle), math.cos(angle)
    return table


def _axis(length: int, dim: int, exponent: float, steps: int) -> Tensor:
    angles = torch.tensor(
        [[i * 10000 ** (exponent * j / steps) for j in range(dim // 2)] for i in range(length)]
    )
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _from_one(length: int, dim: int) -> Tensor:
    angles = torch.arange(length)[:, None] * 10000.0 ** -(torch.arange(1, dim // 2 + 1) * 2 / dim)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _rising(length: int, dim: int) -> Tensor:
    """The same in single precision, where angles of thousands of radians are inexact."""
    angles = torch.arange(length)[:, None] * 10000.0 ** (torch.arange(dim // 2) / (dim // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


AXIS = Exercise(
    _axis_inputs,
    axis,
    [
        (
            _from_one,
            "j runs from 1 to n here. It starts at 0, so the first frequency is 1.",
        ),
        (
            lambda length, dim: axis(length + 1, dim)[1:],
            "the positions run from 1 to length here. They start at 0.",
        ),
        (
            lambda length, dim: axis(length, dim).T,
            "the axes are exchanged: one row for each position.",
        ),
        (
            lambda length, dim: _axis(length, dim, -2, dim // 2),
            "the exponent is 2 j / n. With n = dim / 2 frequencies, 2 j / dim and j / n "
            "are equal; use one of them.",
        ),
        (
            lambda length, dim: axis(length, 2 * dim),
            "the table is twice as wide: dim counts sines and cosines together, so there "
            "are n = dim / 2 of each.",
        ),
        (
            lambda length, dim: rearrange(axis(length, dim), "i (two n) -> i (n two)", two=2),
            "sine and cosine alternate. All n sines come first, then all n cosines. (A "
            "model could be trained with either order, but the table must agree with "
            "trained weights.)",
        ),
        (
            lambda length, dim: torch.cat(axis(length, dim).chunk(2, dim=-1)[::-1], dim=-1),
            "the cosines come first. The sines come first, then the cosines.",
        ),
        (
            lambda length, dim: _axis(length, dim, -1, dim),
            "the exponent is j / dim. There are n = dim / 2 frequencies over the whole "
            "range: j / n.",
        ),
        (
            lambda length, dim: _axis(length, dim, -1, dim // 2 - 1),
            "your exponent reaches 1: j / n runs from 0 to 1 as with linspace. The last j "
            "is n - 1.",
        ),
        *(
            (
                rising,
                "the frequencies rise: 10000^(+j/n). Neighboring positions then differ by "
                "thousands of radians; the exponent is negative.",
            )
            for rising in (lambda length, dim: _axis(length, dim, 1, dim // 2), _rising)
        ),
    ],
)


def _grid_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield axis(2, 4)[:, 1:3]
    for _ in range(4):
        yield axis(randint(g, 2, 6), 2 * randint(g, 2, 4))


def positions_2d(table: Tensor) -> Tensor:
    grid, half = table.shape
    out = torch.empty(grid, grid, 2 * half)
    for r in range(grid):
        for c in range(grid):
            out[r, c, :half], out[r, c, half:] = table[r], table[c]
    return out


def _added(table: Tensor) -> Tensor:
    return (table[:, None] + table[None, :]).repeat(1, 1, 2)


POSITIONS_2D = Exercise(
    lambda g: ((table,) for table in _grid_inputs(g)),
    positions_2d,
    [
        (
            lambda table: positions_2d(table).transpose(0, 1),
            "row and column are exchanged: the first half of the channels encodes the row "
            "(the first index), the second half the column.",
        ),
        (
            _added,
            "row and column are added in the same channels, so (r, c) and (c, r) get the "
            "same vector. Use one half of the channels for each.",
        ),
        (
            lambda table: table[:, None] + table[None, :],
            "row and column are added, so (r, c) and (c, r) get the same vector, and the "
            "width is half. Concatenate them.",
        ),
        (
            lambda table: positions_2d(table).flatten(0, 1),
            "the values are right; keep rows and columns as two axes: (grid, grid, dim).",
        ),
        (
            lambda table: positions_2d(table).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2),
            "row and column values alternate. All channels of the row come first, then "
            "all channels of the column.",
        ),
        (
            lambda table: positions_2d(table).unflatten(-1, (2, -1)),
            "the two halves are two axes. Concatenate them into one: (grid, grid, dim).",
        ),
        (
            lambda table: table[:, None].expand(-1, len(table), -1).repeat(1, 1, 2),
            "both halves encode the row, so all positions of a row are equal. The second "
            "half encodes the column.",
        ),
        (
            lambda table: table.expand(len(table), -1, -1).repeat(1, 1, 2),
            "both halves encode the column, so all positions of a column are equal. The "
            "first half encodes the row.",
        ),
    ],
)


# ---- a shift is a rotation -----------------------------------------------------------------------


def _shift_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield 1, 0.5
    yield 2, 0.1
    for _ in range(4):
        yield randint(g, -5, 5), float(0.05 + 0.5 * torch.rand((), generator=g))


def rotation(m: int, omega: float) -> Tensor:
    b = m * omega
    return torch.tensor([[math.cos(b), math.sin(b)], [-math.sin(b), math.cos(b)]])


ROTATION = Exercise(
    _shift_inputs,
    rotation,
    [
        (
            lambda m, omega: rotation(m, omega).T,
            "this rotates in the other direction: it gives the pair of position i - m. (Or your "
            "pair is (cosine, sine); here the sine is the first entry.)",
        ),
        (
            lambda m, omega: rotation(m, 1.0),
            "the angle is m. In m positions, the hand turns by m * omega.",
        ),
        (
            lambda m, omega: rotation(1, omega),
            "the angle is omega, which is a shift by one position. In m positions, the hand turns "
            "by m * omega.",
        ),
        (
            lambda m, omega: rotation(m, omega) * torch.tensor([[1.0], [-1.0]]),
            "the second row has the wrong sign, which makes your matrix a reflection: its "
            "determinant is -1. cos(a + b) = cos a cos b - sin a sin b.",
        ),
        (
            lambda m, omega: rotation(m, omega).abs(),
            "a sign is missing: cos(a + b) = cos a cos b - sin a sin b.",
        ),
    ],
)


EXERCISES = {
    "patchify": PATCHIFY,
    "unpatchify": UNPATCHIFY,
    "test_pair": TEST_PAIR,
    "axis": AXIS,
    "positions_2d": POSITIONS_2D,
    "rotation": ROTATION,
}
