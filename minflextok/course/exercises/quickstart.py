"""Exercises of notebook 00: quickstart."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

import torch
from torch import Tensor

from . import Exercise, randint

# ---- ★★ the fewest ids to exchange ---------------------------------------------------------------


def _tested(good: tuple[tuple[int, ...], ...], ids: Tensor, other: Tensor) -> Callable:
    """Passes the rows that have the ids of `other` at exactly one of these sets of positions."""
    rows = [[int(other[i] if i in s else ids[i]) for i in range(len(ids))] for s in good]

    def works(batch: Tensor) -> Tensor:
        return torch.tensor([row in rows for row in batch.tolist()])

    return works


def two_scenes(g: torch.Generator) -> Iterator[tuple]:
    for K, differ, good in (
        (3, (0, 2), ((2,), (0, 2))),
        (4, (0, 2, 3), ((0, 3), (2, 3))),
        (5, (1, 3, 4), ((3, 4), (1, 3, 4))),
        (6, (0, 1, 3, 4), ((1, 3, 4), (0, 1, 4))),
        (6, (1, 2, 4, 5), ((4,), (1, 5))),
        (4, (0, 1, 2, 3), ((0, 1, 2, 3),)),
    ):
        ids = torch.randint(100, 2500, (K,), generator=g)
        other = ids.clone()
        for i in differ:
            other[i] += randint(g, 1, 50)
        yield ids, other, _tested(good, ids, other)


def _differ(ids: Tensor, other: Tensor) -> list[int]:
    return [i for i in range(len(ids)) if ids[i] != other[i]]


def _sizes(ids: Tensor, other: Tensor, works: Callable, sizes: Iterable[int]) -> tuple[int, ...]:
    for size in sizes:
        for positions in combinations(_differ(ids, other), size):
            mixed = ids.clone()
            for i in positions:
                mixed[i] = other[i]
            if works(mixed[None])[0]:
                return positions
    return ()


def exchange(ids: Tensor, other: Tensor, works: Callable) -> tuple[int, ...]:
    return _sizes(ids, other, works, range(1, len(ids) + 1))


def not_a_fresh_copy(ids: Tensor, other: Tensor, works: Callable) -> tuple[int, ...]:
    mixed = ids.clone()
    for size in range(1, len(ids) + 1):
        for positions in combinations(_differ(ids, other), size):
            for i in positions:
                mixed[i] = other[i]
            if works(mixed[None])[0]:
                return positions
    return ()


def first_ones(ids: Tensor, other: Tensor, works: Callable) -> tuple[int, ...]:
    differ = _differ(ids, other)
    for size in range(1, len(differ) + 1):
        mixed = ids.clone()
        mixed[differ[:size]] = other[differ[:size]]
        if works(mixed[None])[0]:
            return tuple(differ[:size])
    return ()


def whole_scene(ids: Tensor, other: Tensor, works: Callable) -> tuple[int, ...]:
    return tuple(_differ(ids, other))


def other_direction(ids: Tensor, other: Tensor, works: Callable) -> tuple[int, ...]:
    return exchange(other, ids, works)


# ---- ★ bytes for k ids ---------------------------------------------------------------------------


def budgets_and_vocabularies(g: torch.Generator) -> Iterator[tuple]:
    yield from ((1, 2560), (4, 2560), (32, 2560), (3, 256), (9, 2), (256, 64_000))
    yield randint(g, 2, 20), randint(g, 300, 5000)


def num_bytes(k: int, vocab_size: int) -> int:
    n = 0
    while 256**n < vocab_size**k:  # n bytes have 256^n values
        n += 1
    return n


def bits_per_id_rounded(k: int, vocab_size: int) -> int:
    return math.ceil(k * math.ceil(math.log2(vocab_size)) / 8)


def bytes_per_id_rounded(k: int, vocab_size: int) -> int:
    return k * math.ceil(math.log2(vocab_size) / 8)


# ---- ★★ how many tokens does this image need? ----------------------------------------------------


def curves(g: torch.Generator) -> Iterator[tuple]:
    for B, budgets in ((2, (1, 2, 4)), (3, (1, 2, 4, 8)), (6, (1, 2, 4, 8, 16))):
        psnrs = (10 + torch.rand(B, len(budgets), generator=g) * 6).sort(1).values
        psnrs[-1] = torch.linspace(8, 11.9, len(budgets))  # never reaches the target
        psnrs[0] = torch.linspace(11, 14, len(budgets))
        yield psnrs, budgets, 12.0
    # Not monotone: more tokens can be worse for one image.
    yield (
        torch.tensor([[13.0, 11.9, 14.0]]),
        (1, 2, 4),
        12.0,
    )
    yield torch.full((randint(g, 1, 2), 2), 12.0), (1, 2), 12.0


def shortest(psnrs: Tensor, budgets: tuple[int, ...], target: float) -> Tensor:
    out = []
    for row in psnrs.tolist():
        reached = [k for k, p in zip(budgets, row, strict=True) if p >= target]
        out.append(reached[0] if reached else budgets[-1])
    return torch.tensor(out)


def index_of_budget(psnrs: Tensor, budgets: tuple[int, ...], target: float) -> Tensor:
    return torch.tensor([budgets.index(k) for k in shortest(psnrs, budgets, target).tolist()])


def index_from_argmax(psnrs: Tensor, budgets: tuple[int, ...], target: float) -> Tensor:
    return (psnrs >= target).int().argmax(1)


def never_gives_smallest(psnrs: Tensor, budgets: tuple[int, ...], target: float) -> Tensor:
    return torch.tensor(budgets)[(psnrs >= target).int().argmax(1)]


def longest_below(psnrs: Tensor, budgets: tuple[int, ...], target: float) -> Tensor:
    below = [[k for k, p in zip(budgets, row, strict=True) if p < target] for row in psnrs.tolist()]
    return torch.tensor([ks[-1] if ks else budgets[0] for ks in below])


def by_counting(psnrs: Tensor, budgets: tuple[int, ...], target: float) -> Tensor:
    return torch.tensor(budgets)[(psnrs < target).sum(1).clamp(max=len(budgets) - 1)]


def largest_that_reaches(psnrs: Tensor, budgets: tuple[int, ...], target: float) -> Tensor:
    reached = [[k for k, p in zip(budgets, row, strict=True) if p >= target] for row in psnrs]
    return torch.tensor([ks[-1] if ks else budgets[-1] for ks in reached])


def never_gives_zero(psnrs: Tensor, budgets: tuple[int, ...], target: float) -> Tensor:
    return shortest(psnrs, budgets, target) * (psnrs >= target).any(1)


def must_exceed(psnrs: Tensor, budgets: tuple[int, ...], target: float) -> Tensor:
    return shortest(psnrs, budgets, target + 1e-9)


def one_budget_for_all(psnrs: Tensor, budgets: tuple[int, ...], target: float) -> Tensor:
    return shortest(psnrs.mean(0, keepdim=True), budgets, target).expand(len(psnrs))


EXERCISES = {
    "exchange": Exercise(
        two_scenes,
        exchange,
        [
            (
                whole_scene,
                "these are all positions where the two sequences differ. Look for the fewest: "
                "first sets of one position, then of two, and so on.",
            ),
            (
                not_a_fresh_copy,
                "the exchanges add up from one set to the next. Begin each set with a fresh copy "
                "of ids.",
            ),
            (
                lambda ids, other, works: _sizes(ids, other, works, (1,)),
                "only single positions are tried. If none works, try sets of two, then of three.",
            ),
            (
                lambda ids, other, works: _sizes(ids, other, works, (1, 2)),
                "sets of one and two positions are tried, and no larger ones. Go on up to all "
                "positions that differ.",
            ),
            (
                lambda ids, other, works: _sizes(ids, other, works, range(2, len(ids) + 1)),
                "sets of one position are left out.",
            ),
            (
                lambda ids, other, works: _sizes(ids, other, works, range(len(ids), 0, -1)),
                "the largest sets are tried first. Begin with sets of one position.",
            ),
            (
                first_ones,
                "only the first positions are tried: one, the first two, and so on. The ids that "
                "matter can be anywhere: try all sets of each size (itertools.combinations).",
            ),
            (
                other_direction,
                "this puts ids of your scene into the other one. Begin with a copy of `ids`, and "
                "take single ids from `other`.",
            ),
            (
                lambda ids, other, works: tuple(other[list(exchange(ids, other, works))].tolist()),
                "these are ids. Return their positions in the sequence.",
            ),
        ],
    ),
    "num_bytes": Exercise(
        budgets_and_vocabularies,
        num_bytes,
        [
            (
                lambda k, vocab_size: math.floor(k * math.log2(vocab_size) / 8),
                "you rounded down, so that the last bits have no room. Round up: math.ceil.",
            ),
            (
                lambda k, vocab_size: math.floor(k * math.log2(vocab_size) / 8) + 1,
                "this adds a byte even where the bits fill whole bytes: 3 ids of 256 take exactly "
                "3 bytes. Use math.ceil.",
            ),
            (
                lambda k, vocab_size: round(k * math.log2(vocab_size) / 8),
                "you rounded to the nearest integer. The last byte is needed even if only one of "
                "its bits is used: round up, with math.ceil.",
            ),
            (
                lambda k, vocab_size: k * math.log2(vocab_size) / 8,
                "this is not a whole number of bytes: round up, with math.ceil.",
            ),
            (
                lambda k, vocab_size: math.ceil(k * math.log2(vocab_size)),
                "this is the number of bits. A byte has 8 bits.",
            ),
            (
                bits_per_id_rounded,
                "you rounded the bits of each id up. The ids are stored together: round once, at "
                "the end.",
            ),
            (
                bytes_per_id_rounded,
                "you gave each id whole bytes of its own. The ids are stored together: round once, "
                "at the end.",
            ),
            (
                lambda k, vocab_size: math.ceil(k * math.log(vocab_size) / 8),
                "math.log is the natural logarithm. A bit has two values: math.log2.",
            ),
            (
                lambda k, vocab_size: math.ceil(math.log2(k * vocab_size) / 8),
                "this is for k * vocab_size values. There are vocab_size ** k different sequences, "
                "whose logarithm is k times that of vocab_size.",
            ),
            (
                lambda k, vocab_size: math.ceil(k * vocab_size / 8),
                "vocab_size is the number of ids, not the bits of one. One id takes "
                "math.log2(vocab_size) bits.",
            ),
        ],
    ),
    "shortest": Exercise(
        curves,
        shortest,
        [
            (index_of_budget, "these are indices into `budgets`. Return the number of tokens."),
            (
                index_from_argmax,
                "these are indices into `budgets`, not numbers of tokens; and argmax returns 0 "
                "if no budget reaches the target.",
            ),
            (
                never_gives_smallest,
                "an image that never reaches the target got the smallest budget. It gets the "
                "largest.",
            ),
            (
                never_gives_zero,
                "an image that never reaches the target got 0. It gets the largest budget.",
            ),
            (
                largest_that_reaches,
                "this is the largest budget that reaches the target. Take the first one.",
            ),
            (longest_below, "this is the largest budget that does not reach the target."),
            (
                by_counting,
                "you counted the budgets below the target, which is right only if the PSNR "
                "rises with every budget. Take the first budget that reaches the target.",
            ),
            (must_exceed, "the target itself is enough: use >=."),
            (
                one_budget_for_all,
                "this is one budget for all images, from their mean. Each image has its own "
                "budget.",
            ),
            (
                lambda psnrs, budgets, target: torch.tensor(budgets)[
                    (psnrs - target).abs().argmin(1)
                ],
                "this is the budget whose PSNR is closest to the target, which can be below "
                "it. Take the first budget that reaches the target.",
            ),
            (
                lambda psnrs, budgets, target: torch.tensor(budgets)[psnrs.argmax(1)],
                "this is the budget with the highest PSNR. Take the first one that reaches "
                "the target.",
            ),
        ],
    ),
}
