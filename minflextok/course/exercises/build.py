"""Exercises of notebook 06b: nested dropout and the loss of a tokenizer of one's own."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

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


# ---- loss: the flow's objective on images --------------------------------------------------------


def loss(velocity, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    total = torch.zeros(())
    states = [s * n + (1 - s) * image for s, n, image in zip(t, noise, x, strict=True)]
    for v, n, image in zip(velocity(torch.stack(states), t), noise, x, strict=True):
        total = total + ((v - (n - image)) ** 2).mean()
    return total / len(x)


def _velocity(x_t: Tensor, t: Tensor) -> Tensor:
    if t.ndim != 1:
        raise ValueError(f"t has shape {tuple(t.shape)}: give the velocity t of shape (B,)")
    return torch.tanh(x_t) * (1 + t.view(-1, 1, 1, 1))


def _loss_inputs(g: torch.Generator) -> Iterator[tuple]:
    for shape in ((1, 1, 2, 2), (3, 3, 4, 4), (2, 3, 4, 6)):
        x, noise = (torch.randn(shape, generator=g) for _ in range(2))
        yield _velocity, x, noise, torch.rand(shape[0], generator=g)


def _state(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    t = t.view(-1, 1, 1, 1)
    return t * noise + (1 - t) * x


LOSS = Exercise(
    _loss_inputs,
    loss,
    [
        (
            lambda velocity, x, noise, t: (
                (velocity(_state(x, noise, t), t) - (x - noise)).square().mean()
            ),
            "the target has the wrong sign: the velocity points from the image to the noise, "
            "noise - x.",
        ),
        (
            lambda velocity, x, noise, t: (
                (velocity(_state(noise, x, t), t) - (noise - x)).square().mean()
            ),
            "the state runs the other way: at t = 1 it must be the noise, at t = 0 the image.",
        ),
        (
            lambda velocity, x, noise, t: (
                (velocity(_state(x, noise, t), t) - (noise - x)).square().sum()
            ),
            "this is the sum of the squared errors; the loss is their mean, so that it does not "
            "depend on the number of images and pixels.",
        ),
        (
            lambda velocity, x, noise, t: (
                (velocity(_state(x, noise, t), t) - noise).square().mean()
            ),
            "the target here is the noise (as in DDPM); a rectified flow predicts noise - x.",
        ),
        (
            lambda velocity, x, noise, t: (velocity(x, t) - (noise - x)).square().mean(),
            "the velocity is evaluated at the image. Evaluate it at the state x_t.",
        ),
        (
            lambda velocity, x, noise, t: (
                (velocity(_state(x, noise, t), t) - (noise - x)).square().flatten(1).mean(1)
            ),
            "this is one loss for each image. Return the mean over the batch.",
        ),
        (
            lambda velocity, x, noise, t: (
                (velocity(_state(x, noise, t), t) - (noise - x)).abs().mean()
            ),
            "this is the absolute error. The squared error makes the best velocity the "
            "conditional mean (notebook 05).",
        ),
    ],
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

EXERCISES = {"nested": NESTED, "keep_k": KEEP_K, "loss": LOSS, "best_loss": BEST_LOSS}
