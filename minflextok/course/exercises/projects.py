"""Exercises of notebook 12: an interval from pairs, a control for information, the oracle."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import Exercise

# ---- paired_interval: the bootstrap of a difference ----------------------------------------------


def paired_interval(a: Tensor, b: Tensor, picks: Tensor) -> tuple[float, float, float]:
    difference = a - b
    means = torch.stack([difference[pick].mean() for pick in picks])
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return difference.mean().item(), low, high


def _paired_inputs(g: torch.Generator) -> Iterator[tuple]:
    for n in (4, 12, 30):
        hard = 4 * torch.randn(n, generator=g)
        a, b = (20 + hard + torch.randn(n, generator=g) for _ in range(2))
        yield a, b - 1, torch.randint(n, (100, n), generator=g)


def _quantiles(x: Tensor, tail: float = 0.025) -> list[float]:
    return x.quantile(torch.tensor([tail, 1 - tail])).tolist()


def _separate(a: Tensor, b: Tensor, picks: Tensor) -> tuple[float, float, float]:
    (low_a, high_a), (low_b, high_b) = (_quantiles(x[picks].mean(1)) for x in (a, b))
    return (a - b).mean().item(), low_a - high_b, high_a - low_b


def _independent(a: Tensor, b: Tensor, picks: Tensor) -> tuple[float, float, float]:
    means = a[picks].mean(1) - b[picks.roll(1, 0)].mean(1)
    return (a - b).mean().item(), *_quantiles(means)


PAIRED = Exercise(
    _paired_inputs,
    paired_interval,
    [
        (
            _separate,
            "these are the ends of two separate intervals. Take the difference of each image "
            "first, and resample the differences.",
        ),
        (
            _independent,
            "a and b are resampled with different images, so the pairs are lost: use the same "
            "picks for both.",
        ),
        (
            lambda a, b, picks: ((a - b).mean().item(), *_quantiles(a - b)),
            "this is the spread of single images. The interval is of their mean: take the mean of "
            "each row of picks first.",
        ),
        (
            lambda a, b, picks: ((a - b).mean().item(), *_quantiles((a - b)[picks].mean(0))),
            "the mean is over the wrong axis: each *row* of picks is one resample of all images.",
        ),
        (
            lambda a, b, picks: ((a - b).mean().item(), *_quantiles((a - b)[picks].mean(1), 0.05)),
            "these quantiles leave 5% on each side: a 95% interval leaves 2.5%.",
        ),
        (
            lambda a, b, picks: paired_interval(b, a, picks),
            "the sign is reversed: this is b - a.",
        ),
    ],
)

# ---- information: the plug-in estimate and its control -------------------------------------------


def _plug_in(ids: list[int], labels: list[int]) -> float:
    pairs, n, total = list(zip(ids, labels, strict=True)), len(ids), 0.0
    for i, c in set(pairs):
        joint = pairs.count((i, c)) / n
        total += joint * math.log2(joint / (ids.count(i) / n * labels.count(c) / n))
    return total


def information(ids: Tensor, labels: Tensor, orders: Tensor) -> tuple[float, Tensor]:
    control = [_plug_in(ids.tolist(), labels[order].tolist()) for order in orders]
    return _plug_in(ids.tolist(), labels.tolist()), torch.tensor(control)


def _information_inputs(g: torch.Generator) -> Iterator[tuple]:
    half = torch.tensor([0, 0, 1, 1])
    yield half, half, torch.tensor([[0, 2, 1, 3], [3, 2, 1, 0]])
    for n, ids, labels in ((12, 3, 2), (40, 6, 4), (30, 25, 3)):
        drawn = torch.randint(ids, (n,), generator=g)
        noisy = torch.where(torch.rand(n, generator=g) < 0.3, 0, drawn % labels)
        orders = torch.stack([torch.randperm(n, generator=g) for _ in range(3)])
        yield drawn, noisy, orders


def _joint(ids: Tensor, labels: Tensor) -> Tensor:
    table = torch.zeros(int(ids.max()) + 1, int(labels.max()) + 1)
    return table.index_put_((ids, labels), torch.ones(len(ids)), accumulate=True) / len(ids)


def _over_all_cells(ids: Tensor, labels: Tensor) -> float:
    p = _joint(ids, labels)
    return (p * (p / (p.sum(1, keepdim=True) * p.sum(0, keepdim=True))).log2()).sum().item()


def _uniform(ids: Tensor, labels: Tensor) -> float:
    """The joint distribution is compared with a uniform one over the table."""
    p = _joint(ids, labels)
    return (torch.xlogy(p, p).sum() / math.log(2) + math.log2(p.numel())).item()


def _both_shuffled(ids: Tensor, labels: Tensor, orders: Tensor) -> tuple[float, Tensor]:
    estimate = information(ids, labels, orders)[0]
    return estimate, torch.full((len(orders),), estimate)


def _with(estimate):
    def wrong(ids: Tensor, labels: Tensor, orders: Tensor) -> tuple[float, Tensor]:
        control = [estimate(ids, labels[order]) for order in orders]
        return estimate(ids, labels), torch.tensor(control)

    return wrong


def _in_nats(ids: Tensor, labels: Tensor) -> float:
    return math.log(2) * _plug_in(ids.tolist(), labels.tolist())


INFORMATION = Exercise(
    _information_inputs,
    information,
    [
        (
            _both_shuffled,
            "the control equals the estimate: ids and labels are shuffled together here, so the "
            "pairs stay as they were. Shuffle the labels alone.",
        ),
        (
            _with(_over_all_cells),
            "0 log 0 is 0, but here it is NaN: sum over the cells with p > 0 only.",
        ),
        (
            _with(_in_nats),
            "this is in nats: take log2 for bits.",
        ),
        (
            _with(_uniform),
            "p is compared with a uniform table. Compare it with the product of its own row and "
            "column sums: what the table would be if ids and labels were independent.",
        ),
        (
            lambda i, c, o: (information(i, c, o)[0], information(i, c, o)[1].mean()),
            "give one control for each order (R,), not their mean: their spread says how far from "
            "it chance can be.",
        ),
        (
            lambda i, c, o: (
                information(i, c, o)[0] - information(i, c, o)[1].mean().item(),
                information(i, c, o)[1],
            ),
            "return the estimate itself; the control is subtracted later.",
        ),
    ],
)

# ---- oracle: the fewest tokens that meet a target ------------------------------------------------


def oracle(quality: Tensor, budgets: list[int], target: float) -> tuple[Tensor, Tensor]:
    tokens, values = [], []
    for row in quality.tolist():
        good = [j for j, value in enumerate(row) if value >= target]
        j = good[0] if good else len(budgets) - 1
        tokens.append(budgets[j])
        values.append(row[j])
    return torch.tensor(tokens), torch.tensor(values)


def _oracle_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [0.0, 1.0, 1.5]]), [1, 2, 4], 2.0
    for n in (5, 8):
        rising = torch.rand(n, 4, generator=g).cumsum(1)
        yield rising, [1, 4, 16, 64], 0.9
    yield torch.rand(6, 4, generator=g), [1, 2, 4, 8], 0.7  # not rising


def _pick(quality: Tensor, budgets: list[int], j: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tensor(budgets)[j], quality.gather(1, j[:, None])[:, 0]


def _never_is_first(quality: Tensor, budgets: list[int], target: float) -> tuple[Tensor, Tensor]:
    return _pick(quality, budgets, (quality >= target).int().argmax(1))


def _counted(quality: Tensor, budgets: list[int], target: float) -> tuple[Tensor, Tensor]:
    """How many lengths miss the target: right only if the quality rises with the tokens."""
    return _pick(quality, budgets, (quality < target).sum(1).clamp(max=len(budgets) - 1))


ORACLE = Exercise(
    _oracle_inputs,
    oracle,
    [
        (
            _never_is_first,
            "an image that never meets the target gets the fewest tokens here: argmax of a row "
            "without any True is 0. Give it all tokens.",
        ),
        (
            _counted,
            "the number of lengths that miss the target is the right one only if the quality "
            "always rises with the tokens. Find the *first* length that meets it.",
        ),
        (
            lambda quality, budgets, target: _pick(quality, budgets, quality.argmax(1)),
            "these are the best lengths, not the shortest good enough.",
        ),
        (
            lambda quality, budgets, target: oracle(
                quality, budgets, math.nextafter(target, math.inf)
            ),
            "a quality equal to the target meets it: compare with >=.",
        ),
    ],
)

EXERCISES = {
    "paired_interval": PAIRED,
    "information": INFORMATION,
    "oracle": ORACLE,
}
