"""Exercises of notebook 00: quickstart."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import Exercise, randint

# ---- ★ sequences of different lengths ------------------------------------------------------------


def id_rows(g: torch.Generator) -> Iterator[tuple]:
    for B, K in ((2, 4), (1, 3), (3, 6), (5, 8)):
        lengths = torch.randint(1, K, (B,), generator=g)
        lengths[-1] = K - 1 if lengths[0] < K - 1 else 1  # different lengths
        yield torch.randint(1, 2560, (B, K), generator=g), lengths


def shorten(ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    return tuple(
        torch.tensor([int(ids[b, j]) for j in range(int(lengths[b]))]) for b in range(len(ids))
    )


def the_last(ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    return tuple(row[-int(k) :] for row, k in zip(ids, lengths, strict=True))


def filled_with_0(ids: Tensor, lengths: Tensor) -> Tensor:
    return torch.where(torch.arange(ids.shape[1]) < lengths[:, None], ids, 0)


def one_length(ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    return tuple(row[: int(lengths[0])] for row in ids)


def one_more(ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    return shorten(ids, lengths + 1)


def without_the_first(ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    return tuple(row[int(k) :] for row, k in zip(ids, lengths, strict=True))


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
    "shorten": Exercise(
        id_rows,
        shorten,
        [
            (
                the_last,
                "you kept the last ids. A prefix of the sequence can be decoded: keep the first "
                "ids.",
            ),
            (
                filled_with_0,
                "0 is an id like any other and would be decoded. A shorter sequence has fewer ids.",
            ),
            (
                one_length,
                "all sequences got the length of the first one. Each image has its own length.",
            ),
            (one_more, "one id too many: a sequence of length k ends before index k."),
            (
                without_the_first,
                "this removes the beginning. Keep the beginning and remove the end.",
            ),
            (
                lambda ids, lengths: torch.where(
                    torch.arange(ids.shape[1]) < lengths[:, None], ids, -1
                ),
                "the rest is filled with -1, which is no id. A shorter sequence has fewer ids.",
            ),
            (
                lambda ids, lengths: shorten(ids, lengths - 1),
                "one id too few: row[:k] has k ids already.",
            ),
            (
                lambda ids, lengths: torch.cat(shorten(ids, lengths)),
                "the prefixes are joined into one sequence. Return a list with one tensor "
                "for each image.",
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
