"""Exercises of notebook 06: training."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import Exercise, randint

# ---- ★★ the loss of one image --------------------------------------------------------------------


def toy_encode(x: Tensor) -> tuple[Tensor, Tensor]:
    """An image -> latents z, some of them beyond 1, and codes, each (4, 2)."""
    z = x.flatten()[:8].view(4, 2) * torch.tensor([[3.0], [2.0], [4.0], [5.0]])
    return z, z.tanh()


def toy_decode(x_t: Tensor, t: Tensor, codes: Tensor, k: int, null: bool) -> Tensor:
    return (1 + t) * x_t.tanh() + (0.3 if null else codes[:k].sum())


def images_and_draws(g: torch.Generator) -> Iterator[tuple]:
    for k, null in ((4, False), (1, False), (2, False), (3, True), (4, True)):
        x, noise = torch.rand(3, 2, 2, generator=g) * 2 - 1, torch.randn(3, 2, 2, generator=g)
        t = 0.1 + 0.8 * torch.rand((), generator=g)
        yield toy_encode, toy_decode, x, noise, t, k, null


def loss(
    encode: Callable,
    decode: Callable,
    x: Tensor,
    noise: Tensor,
    t: Tensor,
    k: int,
    null: bool,
    *,
    scale: float = 0.1,
) -> Tensor:
    """scale: the weight of the penalty."""
    z, codes = encode(x)
    v = decode(t * noise + (1 - t) * x, t, codes, k, null)
    total = ((v - (noise - x)) ** 2).mean()
    for register in [] if null else z[:k]:
        for latent in register:
            excess = (latent.abs() - 1).clamp(min=0)
            total = total + scale * excess**2 / z.numel()
    return total


def flow_loss(*args) -> Tensor:
    """The first term alone."""
    return loss(*args, scale=0.0)


def penalty(*args) -> Tensor:
    """The second term alone."""
    return loss(*args) - flow_loss(*args)


def penalty_under_null(encode, decode, x, noise, t, k, null) -> Tensor:
    of_tokens = penalty(encode, decode, x, noise, t, k, False)
    return flow_loss(encode, decode, x, noise, t, k, null) + of_tokens


def penalty_of_all(encode, decode, x, noise, t, k, null) -> Tensor:
    of_all = penalty(encode, decode, x, noise, t, len(encode(x)[0]), null)
    return flow_loss(encode, decode, x, noise, t, k, null) + of_all


def penalty_of_all_always(encode, decode, x, noise, t, k, null) -> Tensor:
    of_all = penalty(encode, decode, x, noise, t, len(encode(x)[0]), False)
    return flow_loss(encode, decode, x, noise, t, k, null) + of_all


def divided_by_k(encode, decode, x, noise, t, k, null) -> Tensor:
    args = encode, decode, x, noise, t, k, null
    return flow_loss(*args) + penalty(*args) * len(encode(x)[0]) / k


def penalty_not_squared(encode, decode, x, noise, t, k, null) -> Tensor:
    z = encode(x)[0]
    excess = (z[:k].abs() - 1).clamp(min=0).sum() / z.numel()
    return flow_loss(encode, decode, x, noise, t, k, null) + 0.1 * excess * (not null)


def penalty_of_every_size(encode, decode, x, noise, t, k, null) -> Tensor:
    z = encode(x)[0]
    size = (z[:k].abs() - 1).square().sum() / z.numel()
    return flow_loss(encode, decode, x, noise, t, k, null) + 0.1 * size * (not null)


def target_x_minus_noise(encode, decode, x, noise, t, k, null) -> Tensor:
    def opposite(*args) -> Tensor:
        return -decode(*args)

    return loss(encode, opposite, x, noise, t, k, null)


def state_reversed(encode, decode, x, noise, t, k, null) -> Tensor:
    def at_other_end(x_t: Tensor, t: Tensor, *rest) -> Tensor:
        return decode(t * x + (1 - t) * noise, t, *rest)

    return loss(encode, at_other_end, x, noise, t, k, null)


def target_noise(encode, decode, x, noise, t, k, null) -> Tensor:
    def plus_image(*args) -> Tensor:
        return decode(*args) - x

    return loss(encode, plus_image, x, noise, t, k, null)


def only_above_1(encode, decode, x, noise, t, k, null) -> Tensor:
    z = encode(x)[0]
    excess = (z[:k] - 1).clamp(min=0).square().sum() / z.numel()
    return flow_loss(encode, decode, x, noise, t, k, null) + 0.1 * excess * (not null)


def latents_decoded(encode, decode, x, noise, t, k, null) -> Tensor:
    def not_rounded(x: Tensor) -> tuple[Tensor, Tensor]:
        return encode(x)[0], encode(x)[0]

    return loss(not_rounded, decode, x, noise, t, k, null)


def summed_over_values(encode, decode, x, noise, t, k, null) -> Tensor:
    args = encode, decode, x, noise, t, k, null
    return flow_loss(*args) * x.numel() + penalty(*args)


# ---- ★ the learning rate -------------------------------------------------------------------------


def lr_inputs(g: torch.Generator) -> Iterator[tuple]:
    for step in (0, 2, 3, 5, 7, 9):
        yield step, 10, 1.0, 4, 0.1
    for _ in range(6):
        steps = randint(g, 20, 60)
        yield randint(g, 0, steps - 1), steps, 4e-3, randint(g, 5, 15), 0.02


def lr(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    rate = peak * (end + (1 - end) * (1 + math.cos(math.pi * step / steps)) / 2)
    return rate * (step + 1) / warmup if step + 1 < warmup else rate


def no_warmup(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    return lr(step, steps, peak, 1, end)


def from_rate_0(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    return no_warmup(step, steps, peak, warmup, end) * min(1, step / warmup)


def after_warmup(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    return (
        peak * (step + 1) / warmup
        if step < warmup
        else no_warmup(step - warmup, steps - warmup, peak, 1, end)
    )


def ends_at_0(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    return lr(step, steps, peak, warmup, 0)


def end_on_top(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    return lr(step, steps, peak, warmup, 0) + end * peak * min(1, (step + 1) / warmup)


def end_in_full(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    return max(lr(step, steps, peak, warmup, 0), end * peak)


def ends_a_step_early(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    return no_warmup(step, steps - 1, peak, warmup, end) * min(1, (step + 1) / warmup)


def quarter_wave(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    cosine = end + (1 - end) * math.cos(math.pi / 2 * step / steps)
    return peak * cosine * min(1, (step + 1) / warmup)


def not_halved(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    cosine = end + (1 - end) * (1 + math.cos(math.pi * step / steps))
    return peak * cosine * min(1, (step + 1) / warmup)


def warmup_never_ends(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    return no_warmup(step, steps, peak, 1, end) * (step + 1) / warmup


def without_pi(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    cosine = end + (1 - end) * (1 + math.cos(step / steps)) / 2
    return peak * cosine * min(1, (step + 1) / warmup)


def warmup_instead(step: int, steps: int, peak: float, warmup: int, end: float) -> float:
    rate = no_warmup(step, steps, peak, warmup, end)
    return peak * (step + 1) / warmup if step < warmup else rate


# ---- ★★ nested dropout, phased in ----------------------------------------------------------------


def batches(g: torch.Generator) -> Iterator[tuple]:
    for B, K, nested_prob, null_prob in (
        (4, 8, 0.5, 0.3),
        (8, 8, 0.0, 0.5),
        (8, 4, 1.0, 0.5),
        (12, 16, 0.7, 0.4),
    ):
        drawn = torch.randint(1, K, (B,), generator=g)
        coins = torch.linspace(0.05, 0.95, B)[torch.randperm(B, generator=g)]
        yield drawn, coins, torch.rand(B, generator=g), nested_prob, null_prob, K


Mixed = tuple[Tensor, Tensor]


def mix(drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, null_prob: float, K: int) -> Mixed:
    keep_k = [int(drawn[b]) if u[b] < nested_prob else K for b in range(len(drawn))]
    return torch.tensor(keep_k), torch.tensor([bool(w[b] < null_prob) for b in range(len(drawn))])


def other_share(
    drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, null_prob: float, K: int
) -> Mixed:
    return torch.where(u < nested_prob, K, drawn), w < null_prob


def one_coin_a_batch(
    drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, null_prob: float, K: int
) -> Mixed:
    return mix(drawn, u[:1].expand(len(u)), w, nested_prob, null_prob, K)


def one_coin_for_both(
    drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, null_prob: float, K: int
) -> Mixed:
    return mix(drawn, u, u, nested_prob, null_prob, K)


def null_disappears(
    drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, null_prob: float, K: int
) -> Mixed:
    keep_k, null = mix(drawn, u, w, nested_prob, null_prob, K)
    return keep_k, null & (u >= nested_prob)


def null_only_if_cut(
    drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, null_prob: float, K: int
) -> Mixed:
    keep_k, null = mix(drawn, u, w, nested_prob, null_prob, K)
    return keep_k, null & (u < nested_prob)


def null_keeps_none(
    drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, null_prob: float, K: int
) -> Mixed:
    keep_k, null = mix(drawn, u, w, nested_prob, null_prob, K)
    return torch.where(null, 0, keep_k), null


def all_a_little(
    drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, null_prob: float, K: int
) -> Mixed:
    return (K + nested_prob * (drawn - K)).round().long(), w < null_prob


# ---- ★ the moving average of the weights ---------------------------------------------------------


def histories(g: torch.Generator) -> Iterator[tuple]:
    for S, D, decay in ((1, 1, 0.9), (3, 2, 0.9), (20, 2, 0.6), (40, 3, 0.99)):
        yield torch.randn(D, generator=g), torch.randn(S, D, generator=g), decay


def ema(start: Tensor, weights: Tensor, decay: float, first: int = 0, often: int = 1) -> Tensor:
    """first: the number of the first step; often: updates per step."""
    average = start.clone()
    for step in range(len(weights)):
        d = min(decay, (step + first + 1) / (step + first + 10))
        for _ in range(often):
            average = d * average + (1 - d) * weights[step]
    return average


def fixed_decay(start: Tensor, weights: Tensor, decay: float) -> Tensor:
    return ema(start, weights, decay, first=10**9)


def roles_exchanged(start: Tensor, weights: Tensor, decay: float) -> Tensor:
    average = start
    for step, w in enumerate(weights):
        d = min(decay, (step + 1) / (step + 10))
        average = (1 - d) * average + d * w
    return average


def larger_decay(start: Tensor, weights: Tensor, decay: float) -> Tensor:
    average = start
    for step, w in enumerate(weights):
        d = max(decay, (step + 1) / (step + 10))
        average = d * average + (1 - d) * w
    return average


def counts_from_1(start: Tensor, weights: Tensor, decay: float) -> Tensor:
    return ema(start, weights, decay, first=1)


def starts_at_0(start: Tensor, weights: Tensor, decay: float) -> Tensor:
    average = start
    for step, w in enumerate(weights):
        d = min(decay, step / (step + 10))
        average = d * average + (1 - d) * w
    return average


def every_micro_batch(start: Tensor, weights: Tensor, decay: float) -> Tensor:
    return ema(start, weights, decay, often=2)


def plain_mean(start: Tensor, weights: Tensor, decay: float) -> Tensor:
    return weights.mean(0)


# ---- ★★ the PSNR of the one-step estimate --------------------------------------------------------


def estimates(g: torch.Generator) -> Iterator[tuple]:
    for B in (1, 2, 3, 5):
        x, noise = torch.rand(B, 1, 2, 3, generator=g) * 2 - 1, torch.randn(B, 1, 2, 3, generator=g)
        error = torch.randn(B, 1, 2, 3, generator=g) * torch.linspace(0.1, 1, B).view(-1, 1, 1, 1)
        yield x, noise, noise - x - error


def decibels(error: float, peak: float = 2.0) -> float:
    return 10 * math.log10(peak**2 / error)


def errors(x: Tensor, estimate: Tensor) -> list[float]:
    return [((estimate[b] - x[b]) ** 2).mean().item() for b in range(len(x))]


def one_step_psnr(x: Tensor, noise: Tensor, v: Tensor) -> float:
    found = [decibels(e) for e in errors(x, (noise - v).clamp(-1, 1))]
    return sum(found) / len(found)


def not_clipped(x: Tensor, noise: Tensor, v: Tensor) -> float:
    found = [decibels(e) for e in errors(x, noise - v)]
    return sum(found) / len(found)


def wrong_sign(x: Tensor, noise: Tensor, v: Tensor) -> float:
    return one_step_psnr(x, noise, -v)


def peak_1(x: Tensor, noise: Tensor, v: Tensor) -> float:
    return one_step_psnr(x, noise, v) - decibels(1.0)


def peak_255(x: Tensor, noise: Tensor, v: Tensor) -> float:
    return one_step_psnr(x, noise, v) + decibels(4.0, 255)


def psnr_of_mean_error(x: Tensor, noise: Tensor, v: Tensor) -> float:
    found = errors(x, (noise - v).clamp(-1, 1))
    return decibels(sum(found) / len(found))


def natural_logarithm(x: Tensor, noise: Tensor, v: Tensor) -> float:
    return one_step_psnr(x, noise, v) * math.log(10)


# ---- ★★ the lowest possible loss -----------------------------------------------------------------


def spectra(g: torch.Generator) -> Iterator[tuple]:
    for D, T in ((1, 2), (2, 3), (3, 3), (6, 5)):
        variances = 0.05 + 2 * torch.rand(D, generator=g)
        yield variances, torch.linspace(0.1, 1.0, T)


def floor(variances: Tensor, t: Tensor) -> Tensor:
    def one(s2: float, t: float) -> float:
        covariance, of_x_t = t - (1 - t) * s2, t * t + (1 - t) ** 2 * s2
        return 1 + s2 - covariance**2 / of_x_t

    return torch.tensor(
        [sum(one(s2, u) for s2 in variances.tolist()) / len(variances) for u in t.tolist()]
    )


def not_squared(variances: Tensor, t: Tensor) -> Tensor:
    s2, u = variances[None], t[:, None]
    return (1 + s2 - (u - (1 - u) * s2) / (u**2 + (1 - u) ** 2 * s2)).mean(1)


def floor_t_reversed(variances: Tensor, t: Tensor) -> Tensor:
    return floor(variances, 1 - t)


def mean_first(variances: Tensor, t: Tensor) -> Tensor:
    return floor(variances.mean()[None], t)


def summed(variances: Tensor, t: Tensor) -> Tensor:
    return floor(variances, t) * len(variances)


def deviations(variances: Tensor, t: Tensor) -> Tensor:
    return floor(variances**2, t)


def variance_of_image(variances: Tensor, t: Tensor) -> Tensor:
    return t**2 * floor(variances, t)


def variance_of_noise(variances: Tensor, t: Tensor) -> Tensor:
    return (1 - t) ** 2 * floor(variances, t)


def unconditional_variance(variances: Tensor, t: Tensor) -> Tensor:
    return (1 + variances.mean()).expand(len(t))


def covariance_of_sum(variances: Tensor, t: Tensor) -> Tensor:
    s2, u = variances[None], t[:, None]
    return (1 + s2 - (u + (1 - u) * s2) ** 2 / (u**2 + (1 - u) ** 2 * s2)).mean(1)


EXERCISES = {
    "loss": Exercise(
        images_and_draws,
        loss,
        [
            (
                flow_loss,
                "the penalty is missing, or it is on the codes, which are never beyond 1. It is on "
                "the latents z of the first k registers, unless null is true.",
            ),
            (
                penalty_under_null,
                "an image with the null condition has no penalty: its decoder receives no token.",
            ),
            (
                penalty_of_all,
                "your penalty counts all K registers. Only the first k have one: the decoder "
                "receives no others.",
            ),
            (
                penalty_of_all_always,
                "your penalty counts all K registers of every image. Only the first k have one, "
                "and none under the null condition.",
            ),
            (
                divided_by_k,
                "the penalty is a mean over the first k registers here. Divide their sum by K, "
                "the number of rows of z, for every k.",
            ),
            (penalty_not_squared, "the excess max(|z| - 1, 0) is squared."),
            (
                penalty_of_every_size,
                "latents between -1 and 1 have no penalty: clamp |z| - 1 at 0 before you square.",
            ),
            (
                target_x_minus_noise,
                "the target has the wrong sign: the velocity points from the image to the noise, "
                "noise - x.",
            ),
            (
                target_noise,
                "the target is the noise here. A rectified flow predicts the velocity, noise - x.",
            ),
            (
                state_reversed,
                "the state is at the other end of its line: at t = 1 it is the noise, so x_t = "
                "t * noise + (1 - t) * x.",
            ),
            (latents_decoded, "the decoder receives the codes, not the latents z."),
            (
                summed_over_values,
                "the error is the mean over the values of the image, and yours is their sum.",
            ),
            (lambda *args: loss(*args, scale=1.0), "the factor 0.1 of the penalty is missing."),
            (
                lambda *args: loss(*args, scale=0.2),
                "the penalty is a mean over the F channels of a register: the factor 1 / F is "
                "missing.",
            ),
            (
                lambda *args: loss(*args, scale=0.4),
                "the factor 1 / K of the penalty is missing. K is the number of rows of z.",
            ),
            (only_above_1, "latents below -1 have a penalty, too: use |z|."),
        ],
    ),
    "lr": Exercise(
        lr_inputs,
        lr,
        [
            (
                no_warmup,
                "there is no warmup: in the first `warmup` steps, multiply the cosine's rate by "
                "(step + 1) / warmup.",
            ),
            (
                from_rate_0,
                "the first step has rate 0 and trains nothing. Step 0 is the first of `warmup` "
                "steps: use step + 1.",
            ),
            (
                after_warmup,
                "your cosine starts after the warmup. Here it runs over all steps, and the "
                "warmup is a factor.",
            ),
            (ends_at_0, "the rate should end at end * peak, not at 0."),
            (
                end_on_top,
                "end is added, so the rate starts above peak. The factor from 1 to end is end + "
                "(1 - end) * cosine.",
            ),
            (
                end_in_full,
                "you cut off the cosine at end * peak, so the rate is flat there, and in the "
                "warmup too. It should reach end * peak at the end of the run: end + (1 - end) "
                "* cosine.",
            ),
            (
                ends_a_step_early,
                "your cosine ends at the last step. The progress is step / steps: it reaches 1 "
                "after the last step.",
            ),
            (
                quarter_wave,
                "cos(pi / 2 * progress) falls fastest at the end. Use the half wave, (1 + "
                "cos(pi * progress)) / 2.",
            ),
            (
                not_halved,
                "1 + cos falls from 2 to 0, so your rate starts at nearly twice the peak: halve "
                "it.",
            ),
            (
                warmup_never_ends,
                "the warmup factor grows on after the warmup: limit it to 1.",
            ),
            (without_pi, "pi is missing: cos(pi * progress) falls from 1 to -1."),
            (
                warmup_instead,
                "in the warmup you left out the cosine. The warmup is a factor: multiply the two.",
            ),
        ],
    ),
    "mix": Exercise(
        batches,
        mix,
        [
            (
                other_share,
                "the cases are exchanged: with probability nested_prob an image keeps its DRAWN "
                "k, otherwise all K.",
            ),
            (one_coin_a_batch, "this is one coin for the whole batch. Each image has its own u."),
            (
                one_coin_for_both,
                "one coin decides both, so only images with dropped tokens can lose their "
                "condition. Use w for null.",
            ),
            (
                null_disappears,
                "the null condition disappears as nested dropout increases. Guidance needs it "
                "until the end: w is independent of u.",
            ),
            (
                null_only_if_cut,
                "only images with dropped tokens lose their condition. Its coin w is "
                "independent of u.",
            ),
            (
                null_keeps_none,
                "null is not keep_k = 0, which would give the decoder mask tokens. The decoder "
                "has another token for null; keep_k stays as drawn.",
            ),
            (
                all_a_little,
                "this shortens every image a little. Instead, a growing SHARE of the images is "
                "cut to the drawn k.",
            ),
            (
                lambda drawn, u, w, nested_prob, null_prob, K: (drawn, w < null_prob),
                "every image keeps its drawn number here. Only those with u < nested_prob do; the "
                "others keep all K.",
            ),
            (
                lambda drawn, u, w, nested_prob, null_prob, K: (
                    torch.where(u < nested_prob, drawn, K),
                    w >= null_prob,
                ),
                "the share of null conditions is 1 - null_prob here: take w < null_prob.",
            ),
            (
                lambda drawn, u, w, nested_prob, null_prob, K: mix(
                    drawn, w, u, nested_prob, null_prob, K
                ),
                "u and w are exchanged: u decides about nested dropout, w about the null "
                "condition.",
            ),
        ],
    ),
    "ema": Exercise(
        histories,
        ema,
        [
            (
                fixed_decay,
                "the decay is the same from the first step, so the random initialization stays "
                "in the average for 1 / (1 - decay) steps. Use min(decay, (step + 1) / (step + "
                "10)).",
            ),
            (roles_exchanged, "the roles are exchanged: decay is the weight of the OLD average."),
            (
                larger_decay,
                "you took the larger of the two decays. The smaller one forgets the "
                "initialization sooner.",
            ),
            (counts_from_1, "off by one: the first step is step 0, with decay 1 / 10."),
            (
                starts_at_0,
                "your decay is step / (step + 10), which is 0 in the first step. It is (step + 1) "
                "/ (step + 10): 1 / 10 in the first step.",
            ),
            (
                every_micro_batch,
                "this updates twice a step. Update once per optimizer step, for any number of "
                "micro-batches.",
            ),
            (
                plain_mean,
                "this is the mean over all steps. The average should forget: old * decay + new "
                "* (1 - decay).",
            ),
            (
                lambda start, weights, decay: ema(0 * start, weights, decay),
                "the average begins with zeros. Initialize it with `start`.",
            ),
        ],
    ),
    "one_step_psnr": Exercise(
        estimates,
        one_step_psnr,
        [
            (
                not_clipped,
                "the estimate is not an image yet: clamp it to [-1, 1] before you compare.",
            ),
            (wrong_sign, "the sign is wrong: v = noise - x, so x = noise - v."),
            (
                peak_1,
                "pixels range from -1 to 1, so the peak is 2 and its square 4. Your value is 6 "
                "dB too low.",
            ),
            (
                peak_255,
                "255 is the peak of uint8 images. Pixels range from -1 to 1 here: the peak is 2.",
            ),
            (
                psnr_of_mean_error,
                "you averaged the errors and then took the logarithm. Compute the PSNR of each "
                "image, then average.",
            ),
            (natural_logarithm, "decibels use the logarithm to base 10."),
            (
                lambda x, noise, v: torch.tensor(
                    [decibels(e) for e in errors(x, (noise - v).clamp(-1, 1))]
                ),
                "this is one value for each image. Return their mean.",
            ),
            (
                lambda x, noise, v: torch.tensor(
                    [decibels(e) for e in errors(x, (noise - v).clamp(0, 1))]
                ).mean(),
                "you clipped the estimate to [0, 1]. Images are in [-1, 1] here.",
            ),
            (
                lambda x, noise, v: 2 * one_step_psnr(x, noise, v),
                "the factor 20 belongs to a ratio of amplitudes. The error is squared already: "
                "use 10 log10(2**2 / error).",
            ),
            (
                lambda x, noise, v: one_step_psnr(x, noise, v) - decibels(1.0, x[0].numel() ** 0.5),
                "the error is the mean of the squares over an image, and yours is their sum.",
            ),
            (
                lambda x, noise, v: one_step_psnr(x, noise, v) - decibels(2.0),
                "the peak is not squared: log10(2 / error) is 3 dB too low. Use log10(2**2 / "
                "error).",
            ),
            (
                lambda x, noise, v: one_step_psnr(x, noise, v) / 2,
                "10 log10 belongs to the ratio of squares, 2**2 / error. You took the root of the "
                "error: its factor is 20.",
            ),
        ],
    ),
    "floor": Exercise(
        spectra,
        floor,
        [
            (floor_t_reversed, "t is reversed: t = 1 is noise, so x_t = t * noise + (1 - t) * x."),
            (not_squared, "the covariance is squared before it is divided by the variance of x_t."),
            (
                mean_first,
                "you averaged the variances first. The floor is not linear in them: average "
                "over channels last.",
            ),
            (summed, "this is the sum over channels. The loss is a mean."),
            (deviations, "you squared the variances, which are squares already."),
            (
                variance_of_image,
                "this is the remaining variance of x. The loss is about v, whose error is that "
                "of x divided by t.",
            ),
            (
                variance_of_noise,
                "this is the remaining variance of the noise. The loss is about v = noise - x.",
            ),
            (unconditional_variance, "this is the variance of v without knowledge of x_t."),
            (
                covariance_of_sum,
                "the covariance has a minus sign: v = noise - x, while x_t has + (1 - t) x.",
            ),
            (
                lambda variances, t: torch.stack([floor(s2[None], t) for s2 in variances], 1),
                "this is one value for each channel. The loss is a mean: average over the "
                "channels.",
            ),
        ],
    ),
}
