"""Exercises of notebook 10b: the VAE."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import Exercise

Decode = Callable[[Tensor], Tensor]


def posteriors(g: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for shape in ((1, 1, 1, 2), (2, 2, 1, 2), (3, 4, 2, 2)):
        mean, logvar = (torch.randn(shape, generator=g) for _ in range(2))
        yield mean, logvar - 1


# ---- ★ a sample of the posterior -----------------------------------------------------------------


def sample_inputs(g: torch.Generator) -> Iterator[tuple]:
    for mean, logvar in posteriors(g):
        yield mean, logvar, torch.randn(mean.shape, generator=g)


def sample(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    values = torch.stack([mean.flatten(), logvar.flatten(), eps.flatten()], dim=1).tolist()
    return torch.tensor([m + math.sqrt(math.exp(v)) * e for m, v, e in values]).view(mean.shape)


def variance_as_std(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return sample(mean, 2 * logvar, eps)


def logvar_as_std(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return mean + logvar * eps


def logvar_as_variance(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return mean + logvar.abs().sqrt() * eps


def unit_noise(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return mean + eps


def fresh_noise(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return sample(mean, logvar, torch.randn(mean.shape, generator=g))


def eps_left_out(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return sample(mean, logvar, torch.ones_like(eps))


def mean_alone(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    return mean.clone()


# ---- ★★ KL divergence ----------------------------------------------------------------------------


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    out = []
    for m, v in zip(mean.flatten(1).tolist(), logvar.flatten(1).tolist(), strict=True):
        out.append(sum((a * a + math.exp(b) - 1 - b) / 2 for a, b in zip(m, v, strict=True)))
    return torch.tensor(out)


def mean_over_latents(mean: Tensor, logvar: Tensor) -> Tensor:
    return kl(mean, logvar) / mean[0].numel()


def without_half(mean: Tensor, logvar: Tensor) -> Tensor:
    return 2 * kl(mean, logvar)


def without_minus_one(mean: Tensor, logvar: Tensor) -> Tensor:
    return kl(mean, logvar) + mean[0].numel() / 2


def wrong_sign(mean: Tensor, logvar: Tensor) -> Tensor:
    return -kl(mean, logvar)


def logvar_is_log_std(mean: Tensor, logvar: Tensor) -> Tensor:
    return kl(mean, 2 * logvar)


def of_the_whole_batch(mean: Tensor, logvar: Tensor) -> Tensor:
    return kl(mean, logvar).sum()


def mean_of_everything(mean: Tensor, logvar: Tensor) -> Tensor:
    return kl(mean, logvar).sum() / mean.numel()


def mean_not_squared(mean: Tensor, logvar: Tensor) -> Tensor:
    return kl(mean.abs().sqrt(), logvar)


def logvar_as_variance_in_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """The first term of the formula with logvar in place of the variance."""
    return kl(mean, logvar) + (logvar - logvar.exp()).flatten(1).sum(1) / 2


def logvar_added(mean: Tensor, logvar: Tensor) -> Tensor:
    return kl(mean, logvar) + logvar.flatten(1).sum(1)


def summed_over_channels(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)


def other_way_round(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of the standard normal from the posterior."""
    terms = (1 + mean.square()) / logvar.exp() - 1 + logvar
    return terms.flatten(1).sum(1) / 2


# ---- ★★ the objective ----------------------------------------------------------------------------


def double(z: Tensor) -> Tensor:
    """In place of a decoder: twice as many rows and columns, three channels."""
    out = torch.tanh(z.mean(1, keepdim=True)).repeat(1, 3, 1, 1)
    return out.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def objective_inputs(g: torch.Generator) -> Iterator[tuple]:
    for (mean, logvar), kl_weight in zip(posteriors(g), (0.1, 1e-2, 0.5), strict=True):
        B, _, h, w = mean.shape
        images = torch.rand(B, 3, 2 * h, 2 * w, generator=g) * 2 - 1
        yield images, mean, logvar, torch.randn(mean.shape, generator=g), double, kl_weight


def objective(
    images: Tensor,
    mean: Tensor,
    logvar: Tensor,
    eps: Tensor,
    decode: Decode,
    kl_weight: float,
    error: Callable[[Tensor, Tensor], Tensor] = lambda a, b: (a - b).abs().mean(),
) -> Tensor:
    fake, total = decode(sample(mean, logvar, eps)), torch.zeros(())
    for b in range(len(images)):
        divergence = kl(mean[b : b + 1], logvar[b : b + 1])[0]
        total += (error(fake[b], images[b]) + kl_weight * divergence) / len(images)
    return total


def kl_as_a_mean(images, mean, logvar, eps, decode, kl_weight) -> Tensor:
    return objective(images, mean, logvar, eps, decode, kl_weight / mean[0].numel())


def kl_of_the_batch(images, mean, logvar, eps, decode, kl_weight) -> Tensor:
    without = objective(images, mean, logvar, eps, decode, 0.0)
    return without + kl_weight * kl(mean, logvar).sum()


def error_summed(images, mean, logvar, eps, decode, kl_weight) -> Tensor:
    def error(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().sum()

    return objective(images, mean, logvar, eps, decode, kl_weight, error)


def squared_error(images, mean, logvar, eps, decode, kl_weight) -> Tensor:
    def error(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean()

    return objective(images, mean, logvar, eps, decode, kl_weight, error)


def decodes_the_mean(images, mean, logvar, eps, decode, kl_weight) -> Tensor:
    return objective(images, mean, logvar, 0 * eps, decode, kl_weight)


def kl_not_weighted(images, mean, logvar, eps, decode, kl_weight) -> Tensor:
    return objective(images, mean, logvar, eps, decode, 1.0)


def kl_subtracted(images, mean, logvar, eps, decode, kl_weight) -> Tensor:
    return objective(images, mean, logvar, eps, decode, -kl_weight)


def noise_not_scaled(images, mean, logvar, eps, decode, kl_weight) -> Tensor:
    without = objective(images, mean, torch.zeros_like(logvar), eps, decode, 0.0)
    return without + kl_weight * kl(mean, logvar).mean()


def without_kl(images, mean, logvar, eps, decode, kl_weight) -> Tensor:
    return objective(images, mean, logvar, eps, decode, 0.0)


# ---- ★★★ the optimum of a linear VAE -------------------------------------------------------------


def optimum_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([4.0, 1.0, 0.1]), 0.5
    for n, kl_weight in ((4, 0.2), (5, 1.0), (6, 3.0)):
        yield 3 * torch.rand(n, generator=g) + 0.02, kl_weight


def optimum(variances: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    noise = torch.tensor([min(1.0, kl_weight / (2 * s)) for s in variances.tolist()])
    return noise, variances * noise


def not_clipped(variances: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    return kl_weight / (2 * variances), torch.full_like(variances, kl_weight / 2)


def factor_two(variances: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    return optimum(variances, 2 * kl_weight)


def standard_deviation(variances: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    noise, error = optimum(variances, kl_weight)
    return noise.sqrt(), error


def factor_four(variances: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    return optimum(variances, kl_weight / 2)


def variance_of_the_means(variances: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    noise, error = optimum(variances, kl_weight)
    return 1 - noise, error


def swapped(variances: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    noise, error = optimum(variances, kl_weight)
    return error, noise


def error_of_all(variances: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    noise, _ = optimum(variances, kl_weight)
    return noise, torch.full_like(variances, kl_weight / 2)


# ---- ★★ vector quantization by k-means -----------------------------------------------------------


def cloud_inputs(g: torch.Generator) -> Iterator[tuple]:
    """Few vectors at first, and codes so far away that they lose all their vectors."""
    yield torch.tensor([[0.0], [2.2], [9.0], [10.0]]), torch.tensor([[0.0], [4.0]]), 1
    for N, D, n, steps in ((6, 2, 2, 1), (12, 2, 4, 3), (30, 3, 5, 8)):
        vectors = torch.randn(N, D, generator=g) * torch.tensor([3.0, *[1.0] * (D - 1)])
        codebook = torch.cat([vectors[: n - 1] + 0.1, torch.full((1, D), 50.0)])
        yield vectors, codebook, steps


def k_means(
    vectors: Tensor,
    codebook: Tensor,
    steps: int,
    empty: str = "stays",
    final: bool = True,
) -> tuple[Tensor, Tensor]:
    def nearest(codes: list[Tensor]) -> list[int]:
        gaps = [[float((v - c).square().sum()) for c in codes] for v in vectors]
        return [row.index(min(row)) for row in gaps]

    codes = list(codebook)
    index = nearest(codes)
    for _ in range(steps):
        index = nearest(codes)
        for j in range(len(codes)):
            own = [v for v, i in zip(vectors, index, strict=True) if i == j]
            if own:
                codes[j] = sum(own) / len(own)
            elif empty == "nan":
                codes[j] = torch.full_like(codes[j], math.nan)
            elif empty == "zero":
                codes[j] = torch.zeros_like(codes[j])
    return torch.stack(codes), torch.tensor(nearest(codes) if final else index)


def empty_codes_are_nan(vectors: Tensor, codebook: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    codebook = k_means(vectors, codebook, steps, empty="nan")[0]
    return codebook, torch.cdist(vectors, codebook).argmin(1)  # nan counts as the least


def empty_codes_are_zero(vectors: Tensor, codebook: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    return k_means(vectors, codebook, steps, empty="zero")


def index_of_the_last_codebook(
    vectors: Tensor, codebook: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    return k_means(vectors, codebook, steps, final=False)


def one_step(vectors: Tensor, codebook: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    return k_means(vectors, codebook, 1)


def never_moved(vectors: Tensor, codebook: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    return k_means(vectors, codebook, 0)


def rounded_vectors(vectors: Tensor, codebook: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    codes, index = k_means(vectors, codebook, steps)
    return codes, codes[index]


def medians(vectors: Tensor, codebook: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    codes = codebook.clone()
    for _ in range(steps):
        index = k_means(vectors, codes, 0)[1]
        for j in index.unique():
            codes[j] = vectors[index == j].median(0).values
    return codes, k_means(vectors, codes, 0)[1]


EXERCISES = {
    "sample": Exercise(
        sample_inputs,
        sample,
        [
            (
                variance_as_std,
                "you multiplied eps by the variance exp(logvar). Multiply it by the standard "
                "deviation, the square root of the variance: exp(logvar / 2).",
            ),
            (
                logvar_as_std,
                "you multiplied eps by logvar, the logarithm of the variance. The standard "
                "deviation is exp(logvar / 2).",
            ),
            (
                logvar_as_variance,
                "you took the square root of logvar. The variance is exp(logvar), and its square "
                "root is exp(logvar / 2).",
            ),
            (unit_noise, "logvar is not used: eps has variance 1. Scale it."),
            (fresh_noise, "the noise is a new draw. Use the given eps."),
            (eps_left_out, "eps is not used: this is mean + sigma. Multiply sigma by eps."),
            (
                mean_alone,
                "this is the mean of the posterior, the same for every eps. A sample is "
                "mean + exp(logvar / 2) * eps.",
            ),
        ],
    ),
    "kl": Exercise(
        posteriors,
        kl,
        [
            (
                mean_over_latents,
                "you took the mean over the latents of an image. The KL divergence of independent "
                "latents is a sum.",
            ),
            (without_half, "the factor 1/2 is missing."),
            (without_minus_one, "the -1 is missing: at mean 0 and variance 1 the result is 0."),
            (wrong_sign, "the sign is wrong. A KL divergence is never negative."),
            (
                logvar_is_log_std,
                "you took logvar for the logarithm of the standard deviation. exp(logvar) is the "
                "variance.",
            ),
            (of_the_whole_batch, "you summed over the batch, too. Give one number per image."),
            (
                mean_of_everything,
                "this is one mean over the whole batch. Give one number per image, the sum over "
                "its latents.",
            ),
            (mean_not_squared, "the means are not squared."),
            (
                logvar_as_variance_in_kl,
                "you took logvar itself for the variance. The variance is exp(logvar).",
            ),
            (logvar_added, "logvar has the wrong sign: the formula has minus log-variance."),
            (
                summed_over_channels,
                "you summed over the channels only. Sum over all latents of an image: channels, "
                "rows and columns.",
            ),
            (
                other_way_round,
                "this is the KL divergence of the standard normal from the posterior. It is wanted "
                "the other way round.",
            ),
        ],
    ),
    "objective": Exercise(
        objective_inputs,
        objective,
        [
            (
                kl_as_a_mean,
                "the KL divergence of an image is a mean over latents. It is a sum over them; only "
                "the error is a mean.",
            ),
            (
                kl_of_the_batch,
                "the KL divergences of the batch were added. Take their mean over images.",
            ),
            (
                error_summed,
                "the absolute error was summed over the values of an image. Take the mean.",
            ),
            (squared_error, "the error is squared. This objective has the absolute error."),
            (
                decodes_the_mean,
                "you decoded the mean of the posterior. Training decodes a sample of it: "
                "mean + exp(logvar / 2) * eps.",
            ),
            (kl_subtracted, "the KL divergence is a penalty: add it."),
            (
                noise_not_scaled,
                "eps is not multiplied by the standard deviation exp(logvar / 2) before it is "
                "added to the mean.",
            ),
            (kl_not_weighted, "the KL divergence is not multiplied by kl_weight."),
            (without_kl, "the KL divergence is missing."),
        ],
    ),
    "optimum": Exercise(
        optimum_inputs,
        optimum,
        [
            (
                not_clipped,
                "for small variances your posterior variance is above 1, the prior's. There the "
                "best choice is exactly 1, and the error is the whole variance of the coordinate.",
            ),
            (
                factor_two,
                "a factor 2 is missing: the derivative of -(kl_weight / 2) log v is "
                "-kl_weight / (2 v).",
            ),
            (
                factor_four,
                "your posterior variance is half of the right one. The KL divergence is "
                "-log(v) / 2, so minimize s^2 v - (kl_weight / 2) log v.",
            ),
            (
                variance_of_the_means,
                "this is a^2 s^2 = 1 - v, the variance of the means. Give v, the variance of the "
                "posterior.",
            ),
            (swapped, "the two results are in the wrong order: give the variances first."),
            (
                standard_deviation,
                "you gave the standard deviation of the posterior. Give its variance.",
            ),
            (
                error_of_all,
                "the error of an unused coordinate is its whole variance, which is less than "
                "kl_weight / 2.",
            ),
        ],
    ),
    "k_means": Exercise(
        cloud_inputs,
        k_means,
        [
            (
                empty_codes_are_nan,
                "a code without any vector became nan: the mean of nothing. It stays where it is.",
            ),
            (
                empty_codes_are_zero,
                "a code without any vector moved to 0. It stays where it is.",
            ),
            (
                index_of_the_last_codebook,
                "the codebook is right, but the indices are those before its last change. Find "
                "the nearest codes once more after the loop.",
            ),
            (one_step, "only one step was made. Repeat both parts `steps` times."),
            (never_moved, "the codes have not moved. Each becomes the mean of its vectors."),
            (
                rounded_vectors,
                "you returned the rounded vectors. Return the number of the nearest code (N,).",
            ),
            (medians, "the codes are medians. The squared error is least at the mean."),
        ],
    ),
}
