"""Exercises of notebook 14: lengths, paired shares, collages of tokens, bits of a code."""

import math
import operator
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import Exercise

# ---- paired: two shares of the same images -------------------------------------------------------


def paired(a: Tensor, b: Tensor) -> tuple[float, float, float, float]:
    """The difference of two shares of the same images, its 95% interval (normal approximation), and
    the p-value of the exact sign test."""
    only_a = sum(x and not y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    only_b = sum(y and not x for x, y in zip(a.tolist(), b.tolist(), strict=True))
    n, m = len(a), only_a + only_b
    difference = (only_a - only_b) / n
    error = math.sqrt(m / n - difference**2) / math.sqrt(n)
    p = 2 * sum(math.comb(m, i) for i in range(min(only_a, only_b) + 1)) / 2**m
    return difference, difference - 1.96 * error, difference + 1.96 * error, min(1.0, p)


def _paired_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([1, 1, 1, 0]).bool(), torch.tensor([1, 0, 0, 0]).bool()
    yield torch.tensor([1, 0, 1, 0, 1]).bool(), torch.tensor([0, 1, 1, 0, 1]).bool()
    for n in (20, 60):
        a = torch.rand(n, generator=g) < 0.6
        yield (
            a,
            torch.where(torch.rand(n, generator=g) < 0.3, ~a, a)
            & (torch.rand(n, generator=g) < 0.9),
        )


def _with_error(error, p=None):
    """Another standard error, or another p-value, from the counts of a and b, only a, only b."""

    def wrong(a: Tensor, b: Tensor) -> tuple[float, float, float, float]:
        difference, *_, right = paired(a, b)
        counts = len(a), int((a & ~b).sum()), int((~a & b).sum()), a, b
        e = error(*counts) if error else (paired(a, b)[2] - difference) / 1.96
        return (
            difference,
            difference - 1.96 * e,
            difference + 1.96 * e,
            p(*counts) if p else right,
        )

    return wrong


def _unpaired_error(n: int, _a: int, _b: int, a: Tensor, b: Tensor) -> float:
    return math.sqrt(sum(q * (1 - q) for q in (x.double().mean().item() for x in (a, b))) / n)


def _no_root(n: int, x: int, y: int, *_) -> float:
    return math.sqrt((x + y) / n - ((x - y) / n) ** 2)


def _one_sided(n: int, x: int, y: int, *_) -> float:
    return sum(math.comb(x + y, i) for i in range(min(x, y) + 1)) / 2 ** (x + y)


def _of_all_pairs(n: int, x: int, y: int, a: Tensor, b: Tensor) -> float:
    """The sign test over all n pairs: those in which both agree count as not in favor of a."""
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(x, y) + 1)) / 2**n)


def _above_one(n: int, x: int, y: int, *_) -> float:
    return 2 * _one_sided(n, x, y)


def _one_term(n: int, x: int, y: int, *_) -> float:
    return min(1.0, 2 * math.comb(x + y, min(x, y)) / 2 ** (x + y))


PAIRED = Exercise(
    _paired_inputs,
    paired,
    [
        (
            _with_error(_unpaired_error),
            "this is the error of two independent shares: p (1 - p) / n of each, added. The pairs "
            "are the same images: use the values 1, 0 and -1 of the differences.",
        ),
        (
            _with_error(_no_root),
            "this is the spread of single images. The error of their mean is smaller by sqrt(n).",
        ),
        (
            _with_error(None, _of_all_pairs),
            "the sign test counts the pairs in which only one of the two is true. Pairs that agree "
            "say nothing about which one is better.",
        ),
        (
            _with_error(None, _one_sided),
            "this p-value is of one side. Either of the two could have won: double it.",
        ),
        (
            _with_error(None, _above_one),
            "a probability is at most 1: with equally many pairs on both sides, the doubled sum "
            "counts the middle twice.",
        ),
        (
            _with_error(None, _one_term),
            "this is the probability of exactly this count. Add those of all smaller counts.",
        ),
        (
            lambda a, b: paired(b, a),
            "the sign is reversed: this is b - a.",
        ),
    ],
)

# ---- collage: the ids that act in a region -------------------------------------------------------


def collage(decode, a: Tensor, b: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    whole, shares, ids = decode(a[None])[0], [], a.clone()
    for j in range(len(a)):
        row = a.clone()
        row[j] = b[j]
        change = (decode(row[None])[0] - whole).abs().mean(0)
        shares.append(change[region].sum() / change.sum())
        if shares[-1] > 0.5:
            ids[j] = b[j]
    return ids, torch.stack(shares)


def _painter(patterns: Tensor):
    """A decoder in which token j adds a pattern of its own (3, H, W), scaled by its id."""

    def decode(ids: Tensor) -> Tensor:
        if ids.ndim != 2 or ids.shape[1] != len(patterns):
            raise ValueError(f"ids have shape {tuple(ids.shape)}: give (n, K)")
        return torch.einsum("nk,kchw->nchw", ids.float() - 2, patterns) / 8

    return decode


def _collage_inputs(g: torch.Generator) -> Iterator[tuple]:
    for k, side in ((3, 4), (8, 6), (12, 8)):
        places = torch.rand(k, 1, side, side, generator=g) ** 6 + 0.02
        patterns = places * torch.randn(k, 3, side, side, generator=g)
        a = torch.randint(5, (k,), generator=g)
        b = (a + 1 + torch.randint(4, (k,), generator=g)) % 5  # another id everywhere
        region = torch.zeros(side, side, dtype=torch.bool)
        region[: side // 2, : side - 1] = True
        yield _painter(patterns), a, b, region


def _collage(
    decode, a: Tensor, b: Tensor, region: Tensor, change, share, inside: bool = True
) -> tuple[Tensor, Tensor]:
    rows = a.repeat(len(a), 1)
    rows.fill_diagonal_(0)
    rows += torch.diag(b)
    shares = share(change(decode(rows) - decode(a[None])), region)
    return torch.where((shares > 0.5) == inside, b, a), shares


def _absolute(x: Tensor) -> Tensor:
    return x.abs().mean(1)


def _share(maps: Tensor, region: Tensor) -> Tensor:
    return maps[:, region].sum(1) / maps.sum((1, 2))


def _all_before(decode, a: Tensor, b: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """The ids stay replaced: image j has the first j ids of b."""
    rows = torch.stack([torch.cat([b[: j + 1], a[j + 1 :]]) for j in range(len(a))])
    shares = _share(_absolute(decode(rows) - decode(a[None])), region)
    return torch.where(shares > 0.5, b, a), shares


COLLAGE = Exercise(
    _collage_inputs,
    collage,
    [
        (
            partial(_collage, change=lambda x: x.mean(1).abs(), share=_share),
            "the mean over the channels comes before abs here, so a change from red to blue "
            "cancels: take absolute values first.",
        ),
        (
            partial(_collage, change=lambda x: x.mean(1), share=_share),
            "these changes have a sign, so brighter and darker pixels cancel: take absolute values "
            "before any sum.",
        ),
        (
            partial(_collage, change=_absolute, share=lambda m, r: m[:, r].sum(1)),
            "this is the sum of the changes in the region. Divide it by that of the whole image: a "
            "token that changes everything a lot is not a token of the region.",
        ),
        (
            partial(_collage, change=_absolute, share=lambda m, r: m[:, r].mean(1)),
            "this is the mean change in the region. Give the share of the token's whole change "
            "that lies there.",
        ),
        (
            partial(_collage, change=_absolute, share=_share, inside=False),
            "the ids of a and b are exchanged: those that act in the region come from b.",
        ),
        (
            _all_before,
            "the ids stay replaced from one token to the next: begin each row with a copy of a.",
        ),
    ],
)

# ---- shortest: the search for the length ---------------------------------------------------------


def shortest(quality, target: float, K: int, meets=operator.ge) -> int:
    if quality(K) < target:
        return K
    low, high = 0, K
    while high - low > 1:
        middle = (low + high) // 2
        if meets(quality(middle), target):
            high = middle
        else:
            low = middle
    return high


def _curve(values: Tensor):
    def quality(k: int) -> float:
        return float(values[k - 1])

    return quality


def _shortest_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield _curve(torch.arange(1, 9) / 8), 0.5, 8  # quality(4) is the target itself
    for K in (1, 8, 16, 32, 32):
        values = torch.rand(K, generator=g).sort().values
        for target in (0.05, 0.5, 0.95):
            yield _curve(values), target, K


def _observe_shortest(f, quality, target: float, K: int) -> Any:
    """The length, and whether the search asked for few qualities."""
    asked = []

    def counted(k: int) -> float:
        if not 1 <= int(k) <= K:
            raise ValueError(f"quality({k}): k is from 1 to {K}")
        asked.append(k)
        return quality(int(k))

    length = f(counted, target, K)
    if isinstance(length, Tensor) and length.numel() == 1:
        length = length.item()
    if not isinstance(length, int):
        return length
    return length, {"at most 2 + log2 K calls": len(asked) <= 2 + math.log2(K)}


def _end_of_search(quality, target: float, K: int) -> int:
    """The search without the case that no length meets the target: K + 1 then."""
    return shortest(quality, target, K) + (quality(K) < target)


# The search that continues in the half that cannot hold the answer.
_wrong_half = partial(shortest, meets=operator.le)


SHORTEST = Exercise(
    _shortest_inputs,
    shortest,
    [
        (
            lambda quality, target, K: next(
                (k for k in range(1, K + 1) if quality(k) >= target), K
            ),
            "the length is right, but every prefix may be decoded here: bisection needs about "
            "log2 K decodes. Halve the range that is still possible at each step.",
        ),
        (
            lambda quality, target, K: max(1, shortest(quality, target, K) - 1),
            "the longest prefix that does *not* meet the target: one token too few.",
        ),
        (
            lambda quality, target, K: shortest(quality, target, K) - (quality(K) >= target),
            "this is the low end of the range, the longest prefix that does *not* meet the target "
            "(0 if the first token meets it): return the other end.",
        ),
        (
            _end_of_search,
            "if not even all K tokens meet the target, the answer is K, not K + 1.",
        ),
        (
            _wrong_half,
            "the search continues in the wrong half: if the middle meets the target, the answer is "
            "the middle or a shorter length.",
        ),
        (
            lambda quality, target, K: min(K, shortest(quality, target, K) + 1),
            "one token too many: the end of the range must be the last length that is known to "
            "meet the target.",
        ),
        (
            lambda quality, target, K: shortest(quality, math.nextafter(target, math.inf), K),
            "a quality equal to the target meets it: compare with >=.",
        ),
        (
            lambda quality, target, K: K,
            "this is K, whatever the target is.",
        ),
    ],
    _observe_shortest,
)

# ---- code_bytes: the size of a file of ids -------------------------------------------------------


def code_bytes(probabilities: Tensor) -> int:
    bits = 0.0
    for p in probabilities.flatten().tolist():
        bits -= math.log2(p)
    return math.ceil(bits / 8)


def _bytes_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield (torch.full((1, 8), 0.5),)
    yield (torch.tensor([[0.5, 0.25], [0.125, 0.5]]),)
    for n, k in ((3, 4), (20, 16), (5, 1)):
        yield (0.001 + 0.9 * torch.rand(n, k, generator=g),)


def _bits(p: Tensor) -> Tensor:
    return -p.double().log2()


CODE_BYTES = Exercise(
    _bytes_inputs,
    code_bytes,
    [
        (
            lambda p: int(_bits(p).ceil().sum() / 8 + 0.999),
            "each id is rounded up to whole bits here (as a Huffman code would). An arithmetic "
            "coder or ANS spends fractions of a bit: round once, at the end.",
        ),
        (
            lambda p: math.ceil(_bits(p).sum().item()),
            "these are bits; a byte has eight.",
        ),
        (
            lambda p: math.ceil(-p.double().log().sum().item() / 8),
            "these are nats: take log2 for bits.",
        ),
        (
            lambda p: int(sum(math.ceil(row.sum().item() / 8) for row in _bits(p))),
            "each image is rounded up to whole bytes here; a file of many images is rounded once.",
        ),
        (
            lambda p: _bits(p).sum().item() / 8,
            "a file has whole bytes: round up, once, at the end.",
        ),
        (
            lambda p: int(_bits(p).sum().item() // 8),
            "the bytes are rounded down: the last bits would be cut off. Round up.",
        ),
        (
            lambda p: int(_bits(p).sum().item() // 8) + 1,
            "one byte too many if the bits fill the last byte exactly: 8 bits are 1 byte.",
        ),
        (
            lambda p: math.ceil(-_bits(p).sum().item() / 8),
            "the logarithm of a probability is negative: the sign is missing.",
        ),
        (
            lambda p: math.ceil(_bits(p).sum(1).mean().item() / 8),
            "this is the mean size of an image. Give the size of the whole file.",
        ),
    ],
)

EXERCISES = {
    "shortest": SHORTEST,
    "paired": PAIRED,
    "collage": COLLAGE,
    "code_bytes": CODE_BYTES,
}
