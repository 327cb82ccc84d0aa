"""Exercises of notebook 03: finite scalar quantization."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import Exercise, randint, value_and_gradient


def _levels(g: torch.Generator, least: int = 2, most: int = 9) -> tuple[int, ...]:
    return tuple(randint(g, least, most) for _ in range(randint(g, 1, 5)))


# ---- bound: so that rounding gives L values ------------------------------------------------------


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


def _no_artanh(z: float, L: int) -> float:
    half, offset = (L - 1) * 1.001 / 2, 0.5 if L % 2 == 0 else 0.0
    return math.tanh(z + offset / half) * half - offset


def _wider(z: float, L: int, half: float) -> float:
    offset = 0.5 if L % 2 == 0 else 0.0
    return math.tanh(z + math.atanh(offset / half)) * half - offset


def _offset_not_subtracted(z: float, L: int) -> float:
    offset = 0.5 if L % 2 == 0 else 0.0
    return _bounded(z, L, offset) + offset


def _offset_times_half(z: float, L: int) -> float:
    half, offset = (L - 1) * 1.001 / 2, 0.5 if L % 2 == 0 else 0.0
    return (math.tanh(z + math.atanh(offset / half)) - offset) * half


def _other_shift(z: float, L: int) -> float:
    half, offset = (L - 1) * 1.001 / 2, 0.5 if L % 2 == 0 else 0.0
    return math.tanh(z - math.atanh(offset / half)) * half - offset


def _no_slack(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    L = torch.tensor(levels)
    half, offset = (L - 1) / 2, torch.where(L % 2 == 0, 0.5, 0.0)
    # In torch an infinite atanh is no error.
    return torch.tanh(z + torch.atanh(offset / half)) * half - offset


NOT_SUBTRACTED = (
    "the offset is inside the artanh but not subtracted at the end: for an even L the range is "
    "still symmetric. Subtract it after the multiplication by half."
)

BOUND = Exercise(
    _bound_inputs,
    bound,
    [
        (
            _bound_each(lambda z, L: _bounded(z, L, 0.0)),
            "no offset for an even number of levels: for L = 4, tanh then ranges from -1.5 "
            "to 1.5, and rounding gives five values, -2, -1, 0, 1, 2. Subtract 1/2 if L is "
            "even.",
        ),
        (
            _bound_each(lambda z, L: _bounded(z, L, 0.5)),
            "the offset of 1/2 is also applied to odd numbers of levels. These have a level "
            "at zero already.",
        ),
        (
            _bound_each(lambda z, L: _bounded(z, L, 0.5 if L % 2 == 0 else 0.0, shift=False)),
            "the offset is subtracted outside the tanh but not compensated inside: z = 0 is "
            "mapped to -1/2, the border between two levels. Add atanh(offset / half) to z "
            "first.",
        ),
        (
            _bound_each(_no_artanh),
            "inside the tanh stands offset / half, without its atanh: z = 0 is mapped near "
            "0, but not to 0.",
        ),
        (
            _no_slack,
            "half is (L - 1) / 2 here. Use 1.001 times this value, as published weights do; "
            "without it atanh is infinite for L = 2.",
        ),
        (
            _bound_each(lambda z, L: _bounded(z, L, 0.5 if L % 2 == 0 else 0.0) + (L % 2 == 0)),
            "the offset is added at the end. Subtract it: for L = 4 the range is -2 to 1.",
        ),
        (
            _bound_each(_offset_not_subtracted),
            NOT_SUBTRACTED,
        ),
        (
            _bound_each(_offset_times_half),
            "the offset is multiplied by half here: subtract it after the multiplication.",
        ),
        (
            lambda z, levels: bound(z, levels).round(),
            "this is rounded already. This function only bounds z.",
        ),
        (
            _bound_each(lambda z, L: math.tanh(z)),
            "tanh alone is in (-1, 1) for every L: multiply by half = (L - 1) * 1.001 / 2.",
        ),
        (
            _bound_each(lambda z, L: _wider(z, L, L / 2)),
            "half is L / 2 here, which is too wide: L values span a width of L - 1. Use "
            "half = (L - 1) * 1.001 / 2.",
        ),
        (
            _bound_each(_other_shift),
            "the shift inside the tanh has the wrong sign: z = 0 is mapped to -1. Add "
            "atanh(offset / half) to z.",
        ),
        (
            _bound_each(lambda z, L: _bounded(z, L, 0.5 if L % 2 else 0.0)),
            "odd and even are exchanged: an EVEN number of levels needs the offset.",
        ),
        (
            lambda z, levels: bound(z, levels) / torch.tensor([L // 2 for L in levels]),
            "this is divided by the center already. This function only bounds z; the "
            "division comes after the rounding.",
        ),
    ],
)


# ---- straight_through: round forward, identity backward ------------------------------------------


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
            "the values are right and the gradient is zero: rounding is flat almost "
            "everywhere, and in z + z.round() - z both z cancel in the backward pass too. "
            "Detach the change made by rounding.",
        ),
        (
            lambda z: z.round() + (z - z.round()).detach(),
            "the wrong part is detached: the value is z, not rounded, and the gradient is "
            "that of rounding, zero.",
        ),
        (
            lambda z: z + 0.0,
            "the gradient is right, but nothing was rounded: z + (z.round() - z).detach().",
        ),
        (
            lambda z: z + z.round().detach(),
            "detach the change made by rounding, z.round() - z, not the rounded value itself.",
        ),
        (
            lambda z: z - (z.round() - z).detach(),
            "the change made by rounding has the wrong sign, so the value is 2 z - "
            "round(z). Add z.round() - z.",
        ),
        (
            lambda z: straight_through(z - 0.5),
            "this rounds down. Round to the nearest integer: z.round().",
        ),
    ],
    observe=value_and_gradient,
)


# ---- codes_to_ids: mixed radix, rounded ----------------------------------------------------------


def _all_digits(g: torch.Generator, levels: tuple[int, ...]) -> tuple:
    digits = torch.stack([torch.randint(L, (64,), generator=g) for L in levels], dim=-1)
    center = torch.tensor([L // 2 for L in levels])
    return (digits - center) / center, levels


def _ids_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([[-1.0, -1.0], [0.0, -1.0], [-1.0, 0.0], [0.5, 1.0]]), (4, 3)
    for _ in range(6):
        yield _all_digits(g, _levels(g))
    yield _all_digits(g, (250, 98, 8))  # code * center is slightly below a whole number


def _codes_to_ids(
    codes: Tensor, levels: tuple[int, ...], to_int=round, first_is_least: bool = True
) -> Tensor:
    ids = []
    for row in codes:
        number, places = 0, list(zip(row, levels, strict=True))
        # From the most significant digit down.
        for code, L in reversed(places) if first_is_least else places:
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


def _symmetric(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    digits = ((codes + 1) * (torch.tensor(levels) - 1) / 2).round().long()
    places = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
    return (digits * places).sum(-1)


def _half_level(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    digits = ((codes + 1) * torch.tensor(levels) / 2).round().long()
    places = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
    return (digits * places).sum(-1)


CODES_TO_IDS = Exercise(
    _ids_inputs,
    codes_to_ids,
    [
        (
            lambda codes, levels: _codes_to_ids(codes, levels, first_is_least=False),
            "the order of the digits is reversed: the first channel is the least "
            "significant digit. Its place value is 1, that of the second L_1, that of the "
            "third L_1 * L_2.",
        ),
        (
            lambda codes, levels: _codes_to_ids(codes, levels, to_int=int),
            "truncated instead of rounded: products such as -125 / 125 * 125 can be "
            "slightly below a whole number in floating point, and .long() then truncates "
            "them to the wrong integer. This is safe for some levels and wrong for others.",
        ),
        (
            _one_base,
            "every place value is a power of the first L. The levels differ, so a place "
            "value is the product of the levels before it (as in hours, minutes, seconds).",
        ),
        (
            _own_level_too,
            "each place value has one level too many: the first is 1, the second L_1. It is "
            "the product of the levels BEFORE it.",
        ),
        (
            _symmetric,
            "this assumes that the codes end at 1, but for an even L the highest code is "
            "below 1. A digit is code * center + center, with center = L // 2.",
        ),
        (
            lambda codes, levels: (
                _codes_to_ids(codes, levels) - _codes_to_ids(torch.zeros(1, len(levels)), levels)
            ),
            "digits start at 0: code -1 is digit 0 if L is even, so add the center L // 2 "
            "to code * center.",
        ),
        (
            lambda codes, levels: _codes_to_ids(
                codes.round() / torch.tensor([L // 2 for L in levels]), levels
            ),
            "the codes were rounded before they were scaled, so only -1, 0 and 1 remain. "
            "A digit is (code * center).round() + center.",
        ),
        (
            _half_level,
            "the factor is L / 2 here. For an odd L the center is rounded down: L // 2.",
        ),
        (
            lambda codes, levels: torch.stack(
                [_codes_to_ids(codes[:, i : i + 1], (L,)) for i, L in enumerate(levels)]
            ).sum(0),
            "these are sums of digits. Each digit has a place value: 1, L_1, L_1 * L_2, ...",
        ),
    ],
)


# ---- perplexity: the effective number of ids in use ----------------------------------------------


def _usage_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([0, 0, 1, 3]), 4
    for _ in range(6):
        vocab = randint(g, 3, 12)
        yield torch.randint(randint(g, 2, vocab), (randint(g, 5, 40),), generator=g), vocab


def _shares(ids: Tensor, vocab_size: int) -> list[float]:
    return [sum(1 for i in ids.tolist() if i == v) / len(ids) for v in range(vocab_size)]


def perplexity(ids: Tensor, vocab_size: int) -> float:
    return math.exp(-sum(p * math.log(p) for p in _shares(ids, vocab_size) if p > 0))


def _divided_by_vocab_size(ids: Tensor, vocab_size: int) -> float:
    shares = [p * len(ids) / vocab_size for p in _shares(ids, vocab_size)]
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


PERPLEXITY = Exercise(
    _usage_inputs,
    perplexity,
    [
        (
            lambda ids, vocab_size: (
                float("nan") if 0 in _shares(ids, vocab_size) else perplexity(ids, vocab_size)
            ),
            "0 * log 0 is nan in floating point and 0 in the limit: leave unused ids out of "
            "the sum, or clamp p from below inside the logarithm.",
        ),
        (
            lambda ids, vocab_size: math.log(perplexity(ids, vocab_size)),
            "this is the entropy in nats. Its exponential is the perplexity: the number of "
            "equally likely ids with this entropy.",
        ),
        (
            lambda ids, vocab_size: 2 ** math.log(perplexity(ids, vocab_size)),
            "the logarithm has base e and the power has base 2: use the same base for both.",
        ),
        (
            lambda ids, vocab_size: math.exp(math.log(perplexity(ids, vocab_size)) / math.log(2)),
            "the logarithm has base 2 and the power has base e: use the same base for both.",
        ),
        (
            lambda ids, vocab_size: float(len(set(ids.tolist()))),
            "this counts the ids that occur at all. The perplexity also measures how evenly "
            "they are used.",
        ),
        (
            lambda ids, vocab_size: 1 / perplexity(ids, vocab_size),
            "the sign is missing: the entropy is MINUS the sum of p log p.",
        ),
        (
            lambda ids, vocab_size: perplexity(ids, vocab_size) ** (1 / vocab_size),
            "this has the mean of p log p over the ids. The entropy is the sum.",
        ),
        (
            _divided_by_vocab_size,
            "the counts are divided by vocab_size. Shares are counts divided by the number of "
            "ids, len(ids).",
        ),
        (
            lambda ids, vocab_size: 1 / sum(p * p for p in _shares(ids, vocab_size)),
            "this is the inverse of the sum of squares, another measure of even use. The "
            "perplexity is the exponential of the entropy.",
        ),
        (
            lambda ids, vocab_size: math.exp(
                -sum(
                    p * len(ids) * math.log(p * len(ids)) for p in _shares(ids, vocab_size) if p > 0
                )
            ),
            "these are counts. Divide them by the number of ids first, so that the "
            "shares add up to 1.",
        ),
    ],
)


# ---- quantize: the whole function, with its gradient ---------------------------------------------


def _quantize(
    z: Tensor,
    levels: tuple[int, ...],
    offset: bool = True,
    to_one: str = "center",
    subtract: bool = True,
) -> Tensor:
    rows = []
    for row in z:
        for value, L in zip(row, levels, strict=True):
            half, down = (L - 1) * 1.001 / 2, 0.5 if offset and L % 2 == 0 else 0.0
            bounded = torch.tanh(value + math.atanh(down / half)) * half
            digit = straight_through(bounded - down if subtract else bounded)
            rows.append(digit / (L // 2 if to_one == "center" else (L - 1) / 2))
    return torch.stack(rows).view_as(z)


def quantize(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    return _quantize(z, levels)


def _division_detached(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    rounded = _quantize(z, levels) * torch.tensor([L // 2 for L in levels])
    return rounded + (quantize(z, levels) - rounded).detach()


def _bounded_only(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    L = torch.tensor(levels)
    half, offset = (L - 1) * 1.001 / 2, torch.where(L % 2 == 0, 0.5, 0.0)
    return (torch.tanh(z + torch.atanh(offset / half)) * half - offset) / (L // 2)


def _divided_before_rounding(z: Tensor, levels: tuple[int, ...]) -> Tensor:
    return straight_through(_bounded_only(z, levels))


QUANTIZE = Exercise(
    _bound_inputs,
    quantize,
    [
        (
            lambda z, levels: z + (quantize(z, levels) - z).detach(),
            "this is straight-through around the whole function: the codes are right, but "
            "the gradient of tanh is lost, so saturated latents still get a full gradient. "
            "Apply straight-through to the rounding only.",
        ),
        (
            _division_detached,
            "the codes are right, but the division by the center is detached with the "
            "rounding, so the gradient is too large. Round straight-through, then divide.",
        ),
        (
            lambda z, levels: quantize(z, levels).detach(),
            "there is no gradient: the rounding blocks it.",
        ),
        (
            lambda z, levels: _quantize(z, levels, offset=False),
            "no offset for an even number of levels: L = 4 gives five values.",
        ),
        (
            lambda z, levels: _quantize(z, levels, subtract=False),
            NOT_SUBTRACTED,
        ),
        (
            lambda z, levels: _quantize(z, levels) * torch.tensor([L // 2 for L in levels]),
            "the rounded values are not scaled: divide by the center, L // 2, so that codes "
            "are in [-1, 1].",
        ),
        (
            lambda z, levels: _quantize(z, levels, to_one="half"),
            "divided by (L - 1) / 2: for an even L the rounded values start at -L/2, so the "
            "lowest code is below -1. Divide by the center, L // 2.",
        ),
        (
            lambda z, levels: (
                _quantize(z, levels) * torch.tensor([L // 2 / (L - 1) for L in levels])
            ),
            "divided by L - 1. Divide by the center, L // 2.",
        ),
        (
            _bounded_only,
            "nothing was rounded. Round straight-through between the bound and the division.",
        ),
        (
            _divided_before_rounding,
            "the division comes before the rounding here, so nearly all codes are -1, 0 "
            "or 1. Round first, then divide.",
        ),
    ],
    observe=value_and_gradient,
)


# ---- neighbors: one digit, one level -------------------------------------------------------------


def _neighbors_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield 17, (5, 4)
    yield 0, (5, 4)
    yield 815, (8, 8, 8, 5)
    for _ in range(7):
        levels = _levels(g, 3)
        yield randint(g, 0, math.prod(levels) - 1), levels


def _digits(number: int, levels: tuple[int, ...]) -> list[int]:
    digits = []
    for L in levels:
        digits.append(number % L)
        number //= L
    return digits


def neighbors(number: int, levels: tuple[int, ...]) -> list[int]:
    here, found = _digits(number, levels), []
    for other in range(math.prod(levels)):
        steps = [abs(a - b) for a, b in zip(here, _digits(other, levels), strict=True)]
        if sum(steps) == 1:
            found.append(other)
    return found


def _stepped(number: int, levels: tuple[int, ...], keep: Callable, places: list[int]) -> list[int]:
    """number plus and minus each place value, where keep(digit after the step, L)."""
    digits = _digits(number, levels)
    return sorted(
        number + step * place
        for d, L, place in zip(digits, levels, places, strict=True)
        for step in (-1, 1)
        if keep(d + step, L)
    )


def _places(levels: tuple[int, ...]) -> list[int]:
    return [math.prod(levels[:i]) for i in range(len(levels))]


def _inside(d: int, L: int) -> bool:
    return 0 <= d < L


def _all_steps(number: int, levels: tuple[int, ...]) -> list[int]:
    found = _stepped(number, levels, lambda d, L: True, _places(levels))
    return [i for i in found if 0 <= i < math.prod(levels)]


def _around(number: int, levels: tuple[int, ...]) -> list[int]:
    here = _digits(number, levels)
    found = set()
    for i, (L, place) in enumerate(zip(levels, _places(levels), strict=True)):
        for step in (-1, 1):
            found.add(number + ((here[i] + step) % L - here[i]) * place)
    return sorted(found)


def _any_change(number: int, levels: tuple[int, ...]) -> list[int]:
    here = _digits(number, levels)
    return [
        other
        for other in range(math.prod(levels))
        if sum(a != b for a, b in zip(here, _digits(other, levels), strict=True)) == 1
    ]


def _by_digit(number: int, levels: tuple[int, ...]) -> list[int]:
    return [
        number + step * place
        for d, L, place in zip(_digits(number, levels), levels, _places(levels), strict=True)
        for step in (-1, 1)
        if _inside(d + step, L)
    ]


NEIGHBORS = Exercise(
    _neighbors_inputs,
    neighbors,
    [
        (
            _all_steps,
            "a digit leaves its range: 0 - 1 or L - 1 + 1 changes the next digit as well. Take a "
            "step only if the new digit is from 0 to L - 1.",
        ),
        (
            lambda number, levels: _stepped(number, levels, lambda d, L: True, _places(levels)),
            "there are negative ids, or digits outside their range. Take a step only if the new "
            "digit is from 0 to L - 1.",
        ),
        (
            _around,
            "the digits wrap around, from L - 1 to 0. These levels are the two ends of a channel, "
            "and no neighbors.",
        ),
        (
            _any_change,
            "these ids differ in one digit, but by any number of levels. A neighbor differs by "
            "one level.",
        ),
        (
            lambda number, levels: [
                i for i in (number - 1, number + 1) if 0 <= i < math.prod(levels)
            ],
            "number - 1 and number + 1 are steps of the first digit only. Each digit has its place "
            "value.",
        ),
        (
            lambda number, levels: _stepped(number, levels, _inside, _places(levels[::-1])[::-1]),
            "the place values start with the last channel. The first channel is the least "
            "significant digit: its place value is 1.",
        ),
        (
            lambda number, levels: sorted([number, *neighbors(number, levels)]),
            "the id itself is in the list. It differs in no digit.",
        ),
        (
            _by_digit,
            "the ids are right, but not in ascending order: return sorted(...).",
        ),
    ],
    tolerance=0,
)


EXERCISES = {
    "codes_to_ids": CODES_TO_IDS,
    "bound": BOUND,
    "straight_through": STRAIGHT_THROUGH,
    "perplexity": PERPLEXITY,
    "quantize": QUANTIZE,
    "neighbors": NEIGHBORS,
}
