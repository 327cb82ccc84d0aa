"""Exercises of notebook 14: information about classes, merged tokens, lengths, bits of a code."""

import math
import operator
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import Exercise, randint

# ---- information: the plug-in estimate of the mutual information ---------------------------------


def information(ids: Tensor, labels: Tensor) -> float:
    pairs = list(zip(ids.tolist(), labels.tolist(), strict=True))
    total, n = 0.0, len(pairs)
    for i, c in set(pairs):
        joint = pairs.count((i, c)) / n
        p, q = ids.tolist().count(i) / n, labels.tolist().count(c) / n
        total += joint * math.log2(joint / (p * q))
    return total


def _information_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
    yield torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    for n, ids, labels in ((12, 3, 2), (40, 6, 4), (30, 30, 3)):
        yield (
            torch.randint(ids, (n,), generator=g),
            torch.randint(labels, (n,), generator=g),
        )


def _entropy(x: Tensor) -> Tensor:
    p = x.bincount() / len(x)
    return -torch.xlogy(p, p).sum()


def _joint(ids: Tensor, labels: Tensor) -> Tensor:
    return _entropy(ids * (int(labels.max()) + 1) + labels)


def _over_all_cells(ids: Tensor, labels: Tensor) -> float:
    """The sum over all cells of the table of ids and labels: NaN if one of them is empty."""
    table = torch.zeros(int(ids.max()) + 1, int(labels.max()) + 1)
    table.index_put_((ids, labels), torch.ones(len(ids)), accumulate=True)
    p = table / len(ids)
    return (p * (p / (p.sum(1, keepdim=True) * p.sum(0, keepdim=True))).log2()).sum().item()


INFORMATION = Exercise(
    _information_inputs,
    information,
    [
        (
            lambda i, c: (_entropy(i) + _entropy(c) - _joint(i, c)).item(),
            "this is in nats: divide by ln 2, or take log2, for bits.",
        ),
        (
            lambda i, c: ((_joint(i, c) - _entropy(i)) / math.log(2)).item(),
            "this is H(class | id), the uncertainty that is left; the information is what the id "
            "removes: H(class) - H(class | id).",
        ),
        (
            lambda i, c: (_joint(i, c) / math.log(2)).item(),
            "this is the entropy of the pair; subtract it from the sum of the two entropies.",
        ),
        (
            lambda i, c: (_entropy(c) / math.log(2)).item(),
            "this is H(class), the uncertainty before the id is known; subtract what is left when "
            "it is known.",
        ),
        (
            lambda i, c: (_entropy(i) / math.log(2)).item(),
            "this is H(id), the entropy of the ids; the classes are not used.",
        ),
        (
            lambda i, c: ((_joint(i, c) - _entropy(c)) / math.log(2)).item(),
            "this is H(id | class), the uncertainty about the id that is left when the class is "
            "known; subtract it from H(id).",
        ),
        (
            lambda i, c: ((_entropy(i) + _entropy(c) - _entropy(i + c)) / math.log(2)).item(),
            "ids + labels gives different pairs the same number: use ids * classes + labels.",
        ),
        (
            _over_all_cells,
            "0 log 0 is 0, but here it is NaN: sum over the pairs that occur only.",
        ),
        (
            lambda i, c: -information(i, c),
            "the sign is wrong: information is never negative.",
        ),
    ],
)

# ---- merge: the mean of two vectors that stand for several patches each --------------------------


def merge_pair(x: Tensor, sizes: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
    vectors, counts = [], []
    for n in range(len(x)):
        if n == j:
            continue
        vector, count = x[n], sizes[n]
        if n == i:
            vector = (sizes[i] * x[i] + sizes[j] * x[j]) / (sizes[i] + sizes[j])
            count = sizes[i] + sizes[j]
        vectors.append(vector)
        counts.append(count)
    return torch.stack(vectors), torch.stack(counts)


def _merge_inputs(g: torch.Generator) -> Iterator[tuple]:
    for n, i, j in ((2, 0, 1), (4, 1, 3), (5, 4, 0), (6, 3, 1)):
        sizes = torch.tensor([float(randint(g, 1, 5)) for _ in range(n)])
        yield torch.randn(n, 3, generator=g), sizes, i, j


def _merged(x: Tensor, sizes: Tensor, i: int, j: int, vector: Tensor, size: Tensor) -> tuple:
    x, sizes = x.clone(), sizes.clone()
    x[i], sizes[i] = vector, size
    kept = torch.arange(len(x)) != j
    return x[kept], sizes[kept]


def _written_after_removal(x: Tensor, sizes: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
    """j is removed first, and then index i is used for the shorter tensors."""
    size = sizes[i] + sizes[j]
    vector = (sizes[i] * x[i] + sizes[j] * x[j]) / size
    kept = torch.arange(len(x)) != j
    x, sizes = x[kept], sizes[kept]
    x[i], sizes[i] = vector, size
    return x, sizes


def _at_the_end(x: Tensor, sizes: Tensor, i: int) -> tuple[Tensor, Tensor]:
    order = [n for n in range(len(x)) if n != i] + [i]
    return x[order], sizes[order]


MERGE = Exercise(
    _merge_inputs,
    merge_pair,
    [
        (
            lambda x, s, i, j: _merged(x, s, i, j, (x[i] + x[j]) / 2, s[i] + s[j]),
            "the plain mean of the two vectors: a vector that stands for five patches must weigh "
            "five times as much as one that stands for one.",
        ),
        (
            lambda x, s, i, j: _merged(x, s, i, j, s[i] * x[i] + s[j] * x[j], s[i] + s[j]),
            "this is the weighted sum; divide by the sum of the sizes for the mean.",
        ),
        (
            lambda x, s, i, j: _merged(
                x, s, i, j, (s[i] * x[i] + s[j] * x[j]) / (s[i] + s[j]), s[i]
            ),
            "the merged vector now stands for the patches of both: its size is the sum.",
        ),
        (
            lambda x, s, i, j: _merged(x, s, i, j, x[i], s[i]),
            "vector j is dropped here, not merged.",
        ),
        (
            lambda x, s, i, j: merge_pair(x, s, j, i),
            "the merged vector is in the place of j, and i is removed. Put it in the place of i, "
            "and remove j.",
        ),
        (
            lambda x, s, i, j: _at_the_end(*merge_pair(x, s, i, j), i - (j < i)),
            "the merged vector is at the end. Put it in the place of i.",
        ),
        (
            lambda x, s, i, j: _merged(
                x, s, i, j, ((s[i] + s[j]) * x[i] + s[j] * x[j]) / (s[i] + 2 * s[j]), s[i] + s[j]
            ),
            "the size of vector i was changed before the mean was taken: use the old sizes as "
            "weights.",
        ),
        (
            _written_after_removal,
            "after j is removed, vector i is at index i - 1 if j < i: write the merged vector "
            "first, and remove j afterwards.",
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
    "information": INFORMATION,
    "merge_pair": MERGE,
    "shortest": SHORTEST,
    "code_bytes": CODE_BYTES,
}
