"""Exercises of notebook 06: training."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

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


# ---- ★★★ the training step -----------------------------------------------------------------------


class Toy(nn.Module):
    """A tokenizer of images (3, 2, 2): 4 registers of 2 channels."""

    def __init__(self, g: torch.Generator):
        super().__init__()
        self.project = nn.Parameter(torch.randn(8, 12, generator=g))
        self.gain = nn.Parameter(torch.randn((), generator=g))
        self.no_token = nn.Parameter(torch.randn((), generator=g))

    def __repr__(self) -> str:
        return "a toy tokenizer"

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x.flatten(1) @ self.project.T).view(-1, 4, 2)
        return z, z.tanh()

    def decode(self, x_t: Tensor, t: Tensor, codes: Tensor, keep_k: Tensor, null: Tensor) -> Tensor:
        kept = torch.arange(4) < keep_k[:, None]
        tokens = torch.where(null, self.no_token, (codes.sum(-1) * kept).sum(1))
        return x_t * self.gain + (tokens * (1 + t)).view(-1, 1, 1, 1)


def training_steps(g: torch.Generator) -> Iterator[tuple]:
    for step, nested_prob in ((0, 1.0), (3, 0.6), (40, 0.6), (5000, 0.0)):
        model = Toy(g)
        average, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.3)
        yield model, average, optimizer, torch.rand(4, 3, 2, 2, generator=g), step, nested_prob


def two_steps(
    f: Callable, model: Toy, average: Toy, optimizer: Any, x: Tensor, step: int, p: float
):
    """The losses of two steps in a row, and the weights and the average after them."""
    losses = []
    for i in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step + i)
            loss = f(model, average, optimizer, x, step + i, p)
        if not isinstance(loss, float | Tensor):
            return loss
        losses.append(float(loss))
    after = {"losses of two steps": torch.tensor(losses)}
    for name, module in {"gain": model, "average of gain": average}.items():
        after[name] = module.gain.detach()
    for name, module in {"weights": model, "average of the weights": average}.items():
        after[name] = module.project.detach()[:2, :4]
    return after


def training_step(
    model: Toy,
    average: Toy,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    step: int,
    nested_prob: float,
    *,
    mix: Callable | None = None,
    loss_of: Callable | None = None,
    zero: bool = True,
    clip: bool = True,
    decay: Callable = lambda step: min(0.999, (step + 1) / (step + 10)),
    average_first: bool = False,
) -> float:
    """mix: keep_k and null of a batch. loss_of: the loss of an image. zero: without the gradients
    of the step before."""

    def update_average() -> None:
        d = decay(step)
        with torch.no_grad():
            for a, w in zip(average.parameters(), model.parameters(), strict=True):
                a.copy_(d * a + (1 - d) * w)

    B, K = len(x), 4
    noise, t = torch.randn_like(x), torch.rand(B).sqrt()
    drawn, u, w = 2 ** torch.randint(K.bit_length(), (B,)), torch.rand(B), torch.rand(B)
    keep_k, null = (mix or mixed)(drawn, u, w, nested_prob, K)

    def decode(x_t: Tensor, t: Tensor, codes: Tensor, k: int, null: bool) -> Tensor:
        return model.decode(
            x_t[None], t[None], codes[None], torch.tensor([k]), torch.tensor([null])
        )[0]

    def encode(image: Tensor) -> tuple[Tensor, Tensor]:
        z, codes = model.encode(image[None])
        return z[0], codes[0]

    total = torch.zeros(())
    for b in range(B):
        draws = x[b], noise[b], t[b], int(keep_k[b]), bool(null[b])
        total = total + (loss_of or loss)(encode, decode, *draws) / B
    if zero:
        optimizer.zero_grad()
    total.backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if average_first:
        update_average()
    optimizer.step()
    if not average_first:
        update_average()
    return total.item()


Mixed = tuple[Tensor, Tensor]


def mixed(drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, K: int) -> Mixed:
    return torch.where(u < nested_prob, drawn, K), w < 0.1


def other_share(drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, K: int) -> Mixed:
    return torch.where(u < nested_prob, K, drawn), w < 0.1


def always_nested(drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, K: int) -> Mixed:
    return drawn, w < 0.1


def one_draw_for_both(drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, K: int) -> Mixed:
    return torch.where(u < nested_prob, drawn, K), u < 0.1


def null_disappears(drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, K: int) -> Mixed:
    between = (u >= nested_prob) & (u < nested_prob + 0.1)
    return torch.where(u < nested_prob, drawn, K), between


def no_null(drawn: Tensor, u: Tensor, w: Tensor, nested_prob: float, K: int) -> Mixed:
    return torch.where(u < nested_prob, drawn, K), torch.zeros_like(w) > 0


def with_(**changes) -> Callable:
    """A training step with an error."""
    return lambda *args: training_step(*args, **changes)


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
    "step": Exercise(
        training_steps,
        training_step,
        [
            (
                with_(zero=False),
                "the gradients of the step before are still there: `backward` adds to them. Call "
                "optimizer.zero_grad() before it.",
            ),
            (
                with_(average_first=True),
                "the average gets the weights from before the step. Update it after "
                "optimizer.step().",
            ),
            (
                with_(decay=lambda step: 0.999),
                "the decay is 0.999 from the first step, so the average stays near the random "
                "initialization. Use min(0.999, (step + 1) / (step + 10)).",
            ),
            (
                with_(decay=lambda step: 1 - min(0.999, (step + 1) / (step + 10))),
                "the roles are exchanged: the decay d is the weight of the OLD average.",
            ),
            (
                with_(decay=lambda step: min(0.999, step / (step + 10))),
                "the decay is (step + 1) / (step + 10), which is 1 / 10 in step 0.",
            ),
            (
                with_(decay=lambda step: 1.0),
                "the average does not change. Inside torch.no_grad(), change its parameters in "
                "place: a.copy_(...).",
            ),
            (
                with_(clip=False),
                "the gradient is not clipped to length 1 when the optimizer uses it: clip between "
                "backward and optimizer.step().",
            ),
            (
                with_(mix=other_share),
                "the cases are exchanged: with probability nested_prob an image keeps its DRAWN "
                "number of tokens, otherwise all K.",
            ),
            (
                with_(mix=always_nested),
                "every image keeps its drawn number of tokens here. Only a share nested_prob of "
                "them does; the others keep all K.",
            ),
            (
                with_(mix=one_draw_for_both),
                "one draw decides both, so only images with dropped tokens can lose their "
                "condition. Draw u and w, and use w for null.",
            ),
            (
                with_(mix=null_disappears),
                "the null condition disappears as nested dropout is phased in. Guidance needs it "
                "until the end: w is independent of u.",
            ),
            (
                with_(mix=no_null),
                "no image gets the null condition. A tenth of them do, where w < 0.1.",
            ),
            (
                with_(loss_of=flow_loss),
                "the penalty is missing. It is on the latents z of the kept registers.",
            ),
            (
                with_(loss_of=penalty_of_all),
                "the penalty counts dropped registers too. Take those with index < keep_k.",
            ),
            (
                with_(loss_of=penalty_under_null),
                "images with the null condition have no penalty: their decoder receives no token.",
            ),
            (
                with_(loss_of=penalty_of_all_always),
                "the penalty counts all registers of all images.",
            ),
            (
                with_(loss_of=divided_by_k),
                "the sum of the penalty over registers is divided by K, not by the number kept.",
            ),
            (with_(loss_of=penalty_not_squared), "the penalty squares what exceeds 1."),
            (with_(loss_of=only_above_1), "latents below -1 are penalized too: take z.abs()."),
            (
                with_(loss_of=target_x_minus_noise),
                "the target has the wrong sign: the velocity is noise - x.",
            ),
            (
                with_(loss_of=state_reversed),
                "the state is reversed: t = 1 is noise, so x_t = t * noise + (1 - t) * x.",
            ),
            (
                with_(loss_of=latents_decoded),
                "the decoder receives the latents z here. It receives the codes.",
            ),
        ],
        observe=two_steps,
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
