"""Exercises of notebook 06b: nested dropout and the training loop of a tokenizer of one's own."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import Exercise

# ---- keep_k: how many tokens each image keeps ----------------------------------------------------


def keep_k(nested: float, u: Tensor, v: Tensor, K: int) -> Tensor:
    out = []
    for chance, uniform in zip(u.tolist(), v.tolist(), strict=True):
        out.append(1 + int(uniform * K) if chance < nested else K)
    return torch.tensor(out)


def _keep_k_inputs(g: torch.Generator) -> Iterator[tuple]:
    for nested, n, K in ((1.0, 4, 4), (0.5, 8, 8), (0.0, 4, 8), (0.3, 32, 16)):
        yield nested, torch.rand(n, generator=g), torch.rand(n, generator=g), K


KEEP_K = Exercise(
    _keep_k_inputs,
    keep_k,
    [
        (
            lambda nested, u, v, K: torch.where(u < nested, (v * K).long(), K),
            "keep_k is drawn from 0 to K - 1 here: an image without any token teaches the encoder "
            "nothing, and K is never drawn. Add 1.",
        ),
        (
            lambda nested, u, v, K: torch.where(u < nested, K, 1 + (v * K).long()),
            "the two cases are exchanged: with probability `nested` the number is random, and "
            "otherwise all K are kept.",
        ),
        (
            lambda nested, u, v, K: torch.where(u < nested, (1 + v * (K - 1)).long(), K),
            "K itself is never drawn: v is below 1, so v * (K - 1) is below K - 1.",
        ),
        (
            lambda nested, u, v, K: 1 + (v * K).long(),
            "all images draw a random number here, whatever `nested` is.",
        ),
        (
            lambda nested, u, v, K: torch.where(u < nested, (v * (K + 1)).long(), K),
            "keep_k is drawn from 0 to K here, but an image keeps at least one token: use 1 + (v "
            "* K).long().",
        ),
        (
            lambda nested, u, v, K: torch.where(u < nested, (v * K).round().long(), K),
            "rounding to the nearest integer gives 0 and K half as often as the other numbers. "
            "Round down and add 1.",
        ),
    ],
)


# ---- fit: the training loop ----------------------------------------------------------------------


class Line(nn.Module):
    """A model with `loss(batch, nested)`: a linear fit, with a larger loss for a larger nested."""

    def __init__(self, g: torch.Generator):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, generator=g))
        self.b = nn.Parameter(torch.zeros(1))

    def loss(self, batch: Tensor, nested: float) -> Tensor:
        error = batch[:, :3] @ self.w + self.b - batch[:, 3]
        return (1 + nested) * error.square().mean() + 20 * nested * self.w[0] ** 2


class Batches:
    """A function that returns the next batch, over and over."""

    def __init__(self, batches: list[Tensor]):
        self.batches, self.calls = batches, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.batches[(self.calls - 1) % len(self.batches)]


def _halfway(progress: float) -> float:
    return min(1.0, 2 * progress)


def _fit_inputs(g: torch.Generator) -> Iterator[tuple]:
    for steps, rate in ((3, 0.1), (8, 0.05), (53, 0.02)):
        batches = [torch.randn(4, 4, generator=g) for _ in range(5)]
        yield Line(g), Batches(batches), steps, rate, _halfway, None


def fit(
    tok: Any,
    draw: Callable,
    steps: int,
    rate: float,
    nested: Callable,
    watch: Callable,
    slope: Callable = lambda step, steps: min(1.0, (step + 1) / 50) * (1 - step / steps),
    clip: bool = True,
    zero: bool = True,
    progress: Callable = lambda step, steps: step / steps,
    first: int = 1,
    optimizer: type = torch.optim.AdamW,
    betas: tuple = (0.9, 0.95),
) -> None:
    """The arguments after `watch` make the known errors."""
    parameters = list(tok.parameters())
    opt = optimizer(parameters, lr=rate, betas=betas)
    for step in range(steps):
        opt.param_groups[0]["lr"] = rate * slope(step, steps)
        loss = tok.loss(draw(), nested(progress(step, steps)))
        if zero:
            for p in parameters:
                p.grad = None
        loss.backward()
        norm = sum(float(p.grad.square().sum()) for p in parameters) ** 0.5
        if clip and norm > 1:
            for p in parameters:
                p.grad /= norm
        opt.step()
        watch(step + first, loss.item())


def _trained(
    f: Callable,
    tok: Line,
    draw: Batches,
    steps: int,
    rate: float,
    nested: Callable,
    watch: Callable | None,
) -> dict | None:
    """What is compared: the losses that `watch` was given, the number of batches, the weights."""
    given: list[tuple[int, float]] = []
    before = [p.detach().clone() for p in tok.parameters()]
    out = f(tok, draw, steps, rate, nested, lambda step, loss: given.append((step, float(loss))))
    after = [p.detach() for p in tok.parameters()]
    same = all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    if not given and same and (out is None or out is ...):
        return None  # nothing was done: the exercise is not solved
    return {
        "steps given to watch": torch.tensor([step for step, _ in given]),
        "losses given to watch": torch.tensor([loss for _, loss in given]),
        "batches drawn": draw.calls,
        "weights at the end": torch.cat([p.flatten() for p in after]),
    }


FIT = Exercise(
    _fit_inputs,
    fit,
    [
        (
            partial(fit, zero=False),
            "the gradients of earlier steps were added to the new ones: backward() accumulates. "
            "Set them to zero before each backward().",
        ),
        (
            partial(fit, clip=False),
            "the gradients were not clipped, or clipped after the step, where it has no effect. "
            "Clip them to norm 1 after backward() and before the step of the optimizer.",
        ),
        (
            partial(fit, slope=lambda step, steps: 1.0),
            "the learning rate stayed at `rate`. Write the rate of this step into "
            'group["lr"] of each group in optimizer.param_groups.',
        ),
        (
            partial(fit, slope=lambda step, steps: 1 - step / steps),
            "the warmup is missing: in the first 50 steps the rate is multiplied by (step + 1) / "
            "50.",
        ),
        (
            partial(fit, slope=lambda step, steps: min(1.0, (step + 1) / 50)),
            "the decay is missing: multiply the rate by 1 - step / steps.",
        ),
        (
            partial(fit, slope=lambda step, steps: min(1.0, step / 50) * (1 - step / steps)),
            "the first step has the rate 0. The warmup is (step + 1) / 50 with steps from 0 on.",
        ),
        (
            partial(fit, progress=lambda step, steps: step),
            "nested() takes the finished fraction of the training, step / steps, not the number of "
            "the step.",
        ),
        (
            partial(fit, progress=lambda step, steps: (step + 1) / steps),
            "the fraction that is finished before step number 0 is 0: nested(step / steps).",
        ),
        (
            partial(fit, first=0),
            "watch() receives the number of finished steps: step + 1, from 1 on.",
        ),
        (
            partial(fit, betas=(0.9, 0.999)),
            "these are the default betas of AdamW; asked are (0.9, 0.95).",
        ),
    ],
    observe=_trained,
)

# ---- nested: how nested dropout begins -----------------------------------------------------------


def nested(progress: float, full: float) -> float:
    return 1.0 if progress >= full else progress / full


NESTED = Exercise(
    lambda g: [(p, full) for full in (0.5, 2 / 3, 1.0) for p in (0.0, 0.2, 0.5, 0.9, 1.0)],
    nested,
    [
        (
            lambda progress, full: progress / full,
            "a probability cannot be above 1: after `full` it stays at 1.",
        ),
        (
            lambda progress, full: progress,
            "this reaches 1 only at the end of the training. It must reach 1 at `full`.",
        ),
        (
            lambda progress, full: max(0.0, 1 - progress / full),
            "the wrong direction: training begins with all K tokens (probability 0) and ends with "
            "nested dropout for every image.",
        ),
        (
            lambda progress, full: float(progress >= full),
            "this is a step from 0 to 1; the probability grows linearly up to `full`.",
        ),
        (
            lambda progress, full: progress if progress < full else 1.0,
            "this jumps from `full` to 1. Divide progress by `full`, so that it grows to 1 "
            "without a jump.",
        ),
        (
            lambda progress, full: min(1.0, progress * full),
            "you multiplied by `full`. At progress = full the probability must be 1: divide.",
        ),
    ],
)

# ---- best_loss: the smallest loss that tokens allow ----------------------------------------------


def best_loss(variances: Tensor, explained: Tensor) -> float:
    """A sum over 1,000 values of t and over the channels."""
    total = 0.0
    for s2, share in zip(variances.tolist(), explained.tolist(), strict=True):
        left = (1 - share) * s2
        for i in range(1000):
            t = (i + 0.5) / 1000
            total += left / (t**2 + (1 - t) ** 2 * left) / 1000
    return total / len(variances)


def _best_loss_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.ones(1), torch.zeros(1)
    yield torch.tensor([0.25]), torch.tensor([0.5])
    for n in (3, 5):
        yield 0.05 + torch.rand(n, generator=g), 0.9 * torch.rand(n, generator=g)


BEST_LOSS = Exercise(
    _best_loss_inputs,
    lambda variances, explained: torch.tensor(best_loss(variances, explained)),
    [
        (
            lambda variances, explained: (variances * (1 - explained)).mean(),
            "this is the loss at t = 1 alone, the variance that the tokens leave. The loss is its "
            "mean over all t from 0 to 1.",
        ),
        (
            lambda variances, explained: math.pi / 2 * (variances * (1 - explained)).mean(),
            "a root is missing: substitute w = t / (1 - t), and the integral of s^2 / (w^2 + s^2) "
            "over w from 0 to infinity is pi / 2 times s, not s^2.",
        ),
        (
            lambda variances, explained: math.pi * (variances * (1 - explained)).sqrt().mean(),
            "twice too large: the integral of 1 / (1 + w^2) from 0 to infinity is pi / 2.",
        ),
        (
            lambda variances, explained: math.pi / 2 * (variances * explained).sqrt().mean(),
            "`explained` is the share that the tokens determine. The share that is left is 1 - "
            "explained.",
        ),
        (
            lambda variances, explained: math.pi / 2 * (variances.sqrt() * (1 - explained)).mean(),
            "the tokens reduce the variance, not the standard deviation, by the factor 1 - "
            "explained: take the root last.",
        ),
        (
            lambda variances, explained: math.pi / 2 * (variances * (1 - explained)).mean().sqrt(),
            "you averaged the variances first. Compute the loss of each channel, then the mean: "
            "the root of a mean is not the mean of the roots.",
        ),
        (
            lambda variances, explained: math.pi / 2 * (variances * (1 - explained)).sqrt().sum(),
            "this is the sum over the channels; the loss is their mean.",
        ),
    ],
)

EXERCISES = {"nested": NESTED, "keep_k": KEEP_K, "fit": FIT, "best_loss": BEST_LOSS}
