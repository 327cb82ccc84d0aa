"""Exercises of notebook 03: finite scalar quantisation."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import Exercise, randint, values


def _levels(g: torch.Generator, least: int = 2, most: int = 9) -> tuple[int, ...]:
    return tuple(randint(g, least, most) for _ in range(randint(g, 1, 5)))


# ---- bound: squash, so that rounding gives L values ------------------------------------------------------------------


def _bound_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([[-9.0, -9.0], [0.0, 0.0], [9.0, 9.0]]), (5, 4)
    for _ in range(7):
        levels = _levels(g)
        yield 2 * torch.randn(randint(g, 1, 6), len(levels), generator=g), levels


def _bounded(z: float, L: int, offset: float, shift: bool = True) -> float:
    half = (L - 1) * 1.001 / 2
    return math.tanh(z + (math.atanh(offset / half) if shift else 0.0)) * half - offset


def bound(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    out = torch.empty_like(z)
    for i in range(z.shape[0]):
        for j, L in enumerate(levels):
            out[i, j] = _bounded(float(z[i, j]), L, 0.5 if L % 2 == 0 else 0.0)
    return out


def _bound_each(f):
    return lambda z, levels: torch.tensor(
        [[f(float(v), L) for v, L in zip(row, levels, strict=True)] for row in z]
    )


def _no_slack(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    L = torch.tensor(levels)
    half, offset = (L - 1) / 2, torch.where(L % 2 == 0, 0.5, 0.0)
    return (
        torch.tanh(z + torch.atanh(offset / half)) * half - offset
    )  # an infinite atanh is no error here


BOUND = Exercise(
    _bound_inputs,
    bound,
    [
        (
            _bound_each(lambda z, L: _bounded(z, L, 0.0)),
            "no offset for an even number of levels: tanh then reaches from -1.5 to 1.5 for L = 4, and rounding gives five "
            "values, -2, -1, 0, 1, 2. Subtract 1/2 where L is even.",
        ),
        (
            _bound_each(lambda z, L: _bounded(z, L, 0.5)),
            "the offset of 1/2 was taken for odd numbers of levels too: they have a level at zero already.",
        ),
        (
            _bound_each(lambda z, L: _bounded(z, L, 0.5 if L % 2 == 0 else 0.0, shift=False)),
            "the offset is subtracted outside the tanh and not made up for inside: z = 0 lands on -1/2, on the border of two "
            "levels. Add atanh(offset / half) to z first.",
        ),
        (
            _no_slack,
            "half is (L - 1) / 2 here. Take 1.001 times that, as published weights do; without it the artanh is "
            "infinite for L = 2.",
        ),
        (
            _bound_each(lambda z, L: _bounded(z, L, 0.5 if L % 2 == 0 else 0.0) + (L % 2 == 0)),
            "the offset is added at the end. Subtract it: for L = 4 the range is -2 to 1.",
        ),
        (
            lambda z, levels: bound(z, levels).round(),
            "that is rounded already. This function only squashes.",
        ),
        (
            _bound_each(lambda z, L: math.tanh(z)),
            "tanh alone keeps all within (-1, 1), whatever L is: multiply by half = (L - 1) * 1.001 / 2.",
        ),
    ],
)


# ---- straight_through: round forward, identity backward --------------------------------------------------------------


def _straight_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield (torch.tensor([-1.2, 0.4, 0.7]),)
    for _ in range(5):
        yield (2 * torch.randn(randint(g, 1, 4), randint(g, 1, 4), generator=g),)


def straight_through(z: Tensor) -> Tensor:
    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.tensor([float(round(v)) for v in x.flatten().tolist()]).view_as(x)

        @staticmethod
        def backward(ctx, grad):
            return grad

    return Round.apply(z)


STRAIGHT_THROUGH = Exercise(
    _straight_inputs,
    straight_through,
    [
        (
            lambda z: z.round(),
            "the values are right and the gradient is zero: rounding is flat nearly everywhere, and in z + z.round() - z both z "
            "cancel in the backward pass too. Detach what rounding adds.",
        ),
        (
            lambda z: z.round() + (z - z.round()).detach(),
            "the wrong part is detached: the value is z again, unrounded, and the gradient is that of rounding, zero.",
        ),
        (
            lambda z: z + 0.0,
            "the gradient is right, but nothing was rounded: z + (z.round() - z).detach().",
        ),
        (
            lambda z: z + z.round().detach(),
            "the detached part is what rounding adds, z.round() - z, not the rounded value itself.",
        ),
    ],
    observe=values,
)


# ---- codes_to_ids: mixed radix, rounded ------------------------------------------------------------------------------


def _all_digits(g: torch.Generator, levels: tuple[int, ...]) -> tuple:
    digits = torch.stack([torch.randint(L, (200,), generator=g) for L in levels], dim=-1)
    center = torch.tensor([L // 2 for L in levels])
    return (digits - center) / center, levels


def _ids_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([[-1.0, -1.0], [0.0, -1.0], [-1.0, 0.0], [0.5, 1.0]]), (4, 3)
    for _ in range(6):
        yield _all_digits(g, _levels(g))
    yield _all_digits(g, (250, 98, 8))  # where code * centre falls a little short of a whole number


def _codes_to_ids(
    codes: Tensor, levels: tuple[int, ...], to_int=round, first_is_least: bool = True
) -> Tensor:
    ids = []
    for row in codes:
        number, places = 0, list(zip(row, levels, strict=True))
        for code, L in (
            reversed(places) if first_is_least else places
        ):  # from the most significant digit down
            number = number * L + to_int((code * (L // 2)).item()) + L // 2
        ids.append(number)
    return torch.tensor(ids)


def codes_to_ids(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    return _codes_to_ids(codes, levels)


def _one_base(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    digits = [
        [round((c * (L // 2)).item()) + L // 2 for c, L in zip(row, levels, strict=True)]
        for row in codes
    ]
    return torch.tensor([sum(d * levels[0] ** i for i, d in enumerate(row)) for row in digits])


def _own_level_too(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    digits = [
        [round((c * (L // 2)).item()) + L // 2 for c, L in zip(row, levels, strict=True)]
        for row in codes
    ]
    return torch.tensor(
        [sum(d * math.prod(levels[: i + 1]) for i, d in enumerate(row)) for row in digits]
    )


CODES_TO_IDS = Exercise(
    _ids_inputs,
    codes_to_ids,
    [
        (
            lambda codes, levels: _codes_to_ids(codes, levels, first_is_least=False),
            "the order of the digits: the first channel is the least significant, as the units are. Its place is worth 1, the "
            "second's L_1, the third's L_1 * L_2.",
        ),
        (
            lambda codes, levels: _codes_to_ids(codes, levels, to_int=int),
            "truncated where it should be rounded: -125 / 125 * 125 and its like come out as a whole number minus a hair, and "
            ".long() cuts that to the next one. It is safe for some levels and wrong for others.",
        ),
        (
            _one_base,
            "every place counts in powers of the first L: the levels differ, so the worth of a place is the product of "
            "the levels before it (as in hours, minutes, seconds).",
        ),
        (
            _own_level_too,
            "each place is worth one level too much: the first is worth 1, the second L_1. A product of the levels BEFORE it.",
        ),
        (
            lambda codes, levels: (
                _codes_to_ids(codes, levels) - _codes_to_ids(torch.zeros(1, len(levels)), levels)
            ),
            "the digits must start at 0: code -1 is digit 0 where L is even, so add the centre L // 2 to code * centre.",
        ),
    ],
)


# ---- perplexity: how many ids are in use, in effect ------------------------------------------------------------------


def _usage_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([0, 0, 1, 3]), 4
    for _ in range(6):
        vocab = randint(g, 3, 12)
        yield torch.randint(randint(g, 2, vocab), (randint(g, 5, 40),), generator=g), vocab


def _shares(ids: Tensor, vocab_size: int) -> list[float]:
    return [sum(1 for i in ids.tolist() if i == v) / len(ids) for v in range(vocab_size)]


def perplexity(ids: Tensor, vocab_size: int) -> float:
    return math.exp(-sum(p * math.log(p) for p in _shares(ids, vocab_size) if p > 0))


PERPLEXITY = Exercise(
    _usage_inputs,
    perplexity,
    [
        (
            lambda ids, vocab_size: (
                float("nan") if 0 in _shares(ids, vocab_size) else perplexity(ids, vocab_size)
            ),
            "0 * log 0 is nan in floating point and 0 in the limit: leave unused ids out of the sum, or clamp p from below inside "
            "the logarithm.",
        ),
        (
            lambda ids, vocab_size: math.log(perplexity(ids, vocab_size)),
            "this is the entropy in nats. Its exponential is the perplexity: the number of equally likely ids with that entropy.",
        ),
        (
            lambda ids, vocab_size: 2 ** math.log(perplexity(ids, vocab_size)),
            "the logarithm is to base e and the power to base 2: take both to one base.",
        ),
        (
            lambda ids, vocab_size: math.exp(math.log(perplexity(ids, vocab_size)) / math.log(2)),
            "the logarithm is to base 2 and the power to base e: take both to one base.",
        ),
        (
            lambda ids, vocab_size: float(len(set(ids.tolist()))),
            "this counts the ids that occur at all; the perplexity also tells how evenly they do.",
        ),
    ],
)


# ---- quantise: all of it, with its gradient ----------------------------------------------------------------------------


def _quantise(
    z: Tensor, levels: tuple[int, ...], offset: bool = True, to_one: str = "center"
) -> Tensor:
    rows = []
    for row in z:
        for value, L in zip(row, levels, strict=True):
            half, down = (L - 1) * 1.001 / 2, 0.5 if offset and L % 2 == 0 else 0.0
            digit = straight_through(torch.tanh(value + math.atanh(down / half)) * half - down)
            rows.append(digit / (L // 2 if to_one == "center" else (L - 1) / 2))
    return torch.stack(rows).view_as(z)


def quantise(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    return _quantise(z, levels)


QUANTISE = Exercise(
    _bound_inputs,
    quantise,
    [
        (
            lambda z, levels: z + (quantise(z, levels) - z).detach(),
            "straight-through around everything: the codes are right, but the gradient of tanh is lost, and saturated latents "
            "are pushed on as if they could still move. Only the rounding is to be skipped.",
        ),
        (
            lambda z, levels: quantise(z, levels).detach(),
            "no gradient at all comes back: the rounding cuts it.",
        ),
        (
            lambda z, levels: _quantise(z, levels, offset=False),
            "no offset for even numbers of levels: L = 4 gives five values.",
        ),
        (
            lambda z, levels: _quantise(z, levels) * torch.tensor([L // 2 for L in levels]),
            "the rounded values are not scaled: divide by the centre, L // 2, so that codes lie in [-1, 1].",
        ),
        (
            lambda z, levels: _quantise(z, levels, to_one="half"),
            "divided by (L - 1) / 2: for an even L the digits run from -L/2, so the lowest code falls below -1. Divide by the "
            "centre, L // 2.",
        ),
    ],
    observe=values,
)


EXERCISES = {
    "codes_to_ids": CODES_TO_IDS,
    "bound": BOUND,
    "straight_through": STRAIGHT_THROUGH,
    "perplexity": PERPLEXITY,
    "quantise": QUANTISE,
}
