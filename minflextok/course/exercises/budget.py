"""Exercises of notebook 07: the token budget."""

import math
import warnings
from collections.abc import Callable, Iterator

import torch
from scipy.linalg import LinAlgWarning, sqrtm
from torch import Tensor

from . import Exercise, randint

# ---- ★ tokens that fit into a file ---------------------------------------------------------------


def sizes(g: torch.Generator) -> Iterator[tuple]:
    yield from ((2, 2560), (46, 2560), (1, 2560), (3, 2), (5, 256), (12, 12_800), (60, 64_000))
    for _ in range(3):
        yield randint(g, 2, 60), randint(g, 3, 9000)


def tokens_in(n: int, vocab: int) -> int:
    k = 0
    while vocab ** (k + 1) <= 256**n:  # exact, with integers
        k += 1
    return k


def rounded_up(n: int, vocab: int) -> int:
    return math.ceil(8 * n / math.log2(vocab))


def not_rounded(n: int, vocab: int) -> float:
    return 8 * n / math.log2(vocab)


def whole_bits_each(n: int, vocab: int) -> int:
    return 8 * n // math.ceil(math.log2(vocab))


def whole_bytes_each(n: int, vocab: int) -> int:
    return n // math.ceil(math.log2(vocab) / 8)


def of_bits(n: int, vocab: int) -> int:
    return int(n / math.log2(vocab))


def natural_logarithm(n: int, vocab: int) -> int:
    return int(8 * n / math.log(vocab))


def bytes_of_tokens(n: int, vocab: int) -> int:
    return math.ceil(n * math.log2(vocab) / 8)


# ---- ★★ bootstrap intervals of two methods and of their difference -------------------------------


def spread_of(x: Tensor) -> Tensor:
    return (x - x.mean()).square().mean().sqrt()


def two_methods(g: torch.Generator) -> Iterator[tuple]:
    for n, resamples, statistic in ((3, 4, torch.mean), (8, 40, torch.mean), (6, 100, spread_of)):
        images = 3 * torch.randn(n, generator=g)  # an image that is hard for one is hard for both
        a, b = (images + shift + torch.rand(n, generator=g) for shift in (10, 11))
        yield statistic, a, b, torch.randint(n, (resamples, n), generator=g)


def resampled(statistic: Callable, rows: Tensor, draws: Tensor) -> list[float]:
    return [float(statistic(torch.stack([rows[i] for i in draw]))) for draw in draws.tolist()]


def ends(values: list[float], cut: float = 0.025) -> Tensor:
    return torch.tensor(values).quantile(torch.tensor([cut, 1 - cut]))


def intervals(
    statistic: Callable, a: Tensor, b: Tensor, draws: Tensor, cut: float = 0.025
) -> dict[str, Tensor]:
    of_a, of_b = (resampled(statistic, rows, draws) for rows in (a, b))
    gaps = [y - x for x, y in zip(of_a, of_b, strict=True)]
    return {"a": ends(of_a, cut), "b": ends(of_b, cut), "b - a": ends(gaps, cut)}


def from_the_ends(statistic: Callable, a: Tensor, b: Tensor, draws: Tensor) -> dict[str, Tensor]:
    x, y = (ends(resampled(statistic, rows, draws)) for rows in (a, b))
    return {"a": x, "b": y, "b - a": torch.stack([y[0] - x[1], y[1] - x[0]])}


def ends_subtracted(statistic: Callable, a: Tensor, b: Tensor, draws: Tensor) -> dict[str, Tensor]:
    x, y = (ends(resampled(statistic, rows, draws)) for rows in (a, b))
    return {"a": x, "b": y, "b - a": y - x}


def other_images(statistic: Callable, a: Tensor, b: Tensor, draws: Tensor) -> dict[str, Tensor]:
    of_a, of_b = resampled(statistic, a, draws), resampled(statistic, b, draws)
    gaps = [y - x for x, y in zip(of_a, of_b[1:] + of_b[:1], strict=True)]
    return {"a": ends(of_a), "b": ends(of_b), "b - a": ends(gaps)}


def of_single_images(statistic: Callable, a: Tensor, b: Tensor, draws: Tensor) -> dict[str, Tensor]:
    return {name: ends(x.tolist()) for name, x in (("a", a), ("b", b), ("b - a", b - a))}


def smallest_and_largest(
    statistic: Callable, a: Tensor, b: Tensor, draws: Tensor
) -> dict[str, Tensor]:
    return intervals(statistic, a, b, draws, 0.0)


def five_percent_each(
    statistic: Callable, a: Tensor, b: Tensor, draws: Tensor
) -> dict[str, Tensor]:
    return intervals(statistic, a, b, draws, 0.05)


def a_minus_b(statistic: Callable, a: Tensor, b: Tensor, draws: Tensor) -> dict[str, Tensor]:
    found = intervals(statistic, a, b, draws)
    return found | {"b - a": -found["b - a"].flip(0)}


def mean_in_place(statistic: Callable, a: Tensor, b: Tensor, draws: Tensor) -> dict[str, Tensor]:
    return intervals(torch.mean, a, b, draws)


def of_the_gaps(statistic: Callable, a: Tensor, b: Tensor, draws: Tensor) -> dict[str, Tensor]:
    return intervals(statistic, a, b, draws) | {"b - a": ends(resampled(statistic, b - a, draws))}


def two_deviations(statistic: Callable, a: Tensor, b: Tensor, draws: Tensor) -> dict[str, Tensor]:
    of_a, of_b = (torch.tensor(resampled(statistic, rows, draws)) for rows in (a, b))
    rows = {"a": of_a, "b": of_b, "b - a": of_b - of_a}
    return {name: x.mean() + x.std() * torch.tensor([-1.96, 1.96]) for name, x in rows.items()}


# ---- ★★ ids as bytes that can be truncated -------------------------------------------------------


def id_rows(g: torch.Generator) -> Iterator[tuple]:
    yield [1, 2], 4
    yield [5], 12
    for n, bits in ((3, 12), (4, 5), (7, 10)):
        yield [randint(g, 0, 2**bits - 1) for _ in range(n)], bits


def pack(ids: list[int], bits: int) -> list[int]:
    return from_digits("".join(format(i, f"0{bits}b") for i in ids))


def from_digits(digits: str) -> list[int]:
    digits += "0" * (-len(digits) % 8)
    return [int(digits[i : i + 8], 2) for i in range(0, len(digits), 8)]


def lowest_bit_first(ids: list[int], bits: int) -> list[int]:
    return from_digits("".join(format(i, f"0{bits}b")[::-1] for i in ids))


def bytes_of_each(ids: list[int], bits: int) -> list[int]:
    return [byte for i in ids for byte in pack([i], 8 * math.ceil(bits / 8))]


def padded_in_front(ids: list[int], bits: int) -> list[int]:
    digits = "".join(format(i, f"0{bits}b") for i in ids)
    return from_digits("0" * (-len(digits) % 8) + digits)


def no_leading_zeros(ids: list[int], bits: int) -> list[int]:
    return from_digits("".join(format(i, "b") for i in ids))


def last_first(ids: list[int], bits: int) -> list[int]:
    return pack(ids[::-1], bits)


def as_list(f: Callable, ids: list[int], bits: int):
    """The answer as a list, whether it is a list or bytes."""
    out = f(ids, bits)
    return list(out) if isinstance(out, bytes | bytearray | tuple) else out


# ---- ★★ the Fréchet distance of two Gaussians ----------------------------------------------------


def gaussians(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([1.0]), torch.tensor([[4.0]]), torch.tensor([3.0]), torch.tensor([[9.0]])
    for D in (2, 2, 3, 4):
        a, b = (torch.randn(D, D + 2, generator=g) for _ in range(2))
        yield torch.randn(D, generator=g), a @ a.T / D, torch.randn(D, generator=g), b @ b.T / D
    for D in (6, 8):  # fewer vectors than dimensions: rounded eigenvalues below 0
        a, b = (torch.randn(D, 2, generator=g).double() for _ in range(2))
        yield torch.zeros(D).double(), a @ a.T, torch.ones(D).double(), b @ b.T


def root(a: Tensor) -> Tensor:
    with warnings.catch_warnings():  # some scipy versions warn of singular matrices, meant here
        warnings.simplefilter("ignore", LinAlgWarning)
        return torch.as_tensor(sqrtm(a.double().numpy()).real)


def frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    return of_covariances(mean_a, mean_b, cov_a + cov_b - 2 * root(cov_a @ cov_b))


def of_covariances(mean_a: Tensor, mean_b: Tensor, difference: Tensor) -> Tensor:
    far = sum((x - y) ** 2 for x, y in zip(mean_a.tolist(), mean_b.tolist(), strict=True))
    return far + sum(difference[i, i] for i in range(len(difference)))


def no_root(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    return of_covariances(mean_a, mean_b, cov_a + cov_b - 2 * cov_a @ cov_b)


def root_of_each_entry(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    return of_covariances(mean_a, mean_b, cov_a + cov_b - 2 * (cov_a @ cov_b).sqrt())


def product_of_roots(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    return of_covariances(mean_a, mean_b, cov_a + cov_b - 2 * root(cov_a) @ root(cov_b))


def diagonals(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    return product_of_roots(mean_a, cov_a.diag().diag(), mean_b, cov_b.diag().diag())


def not_doubled(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    return of_covariances(mean_a, mean_b, cov_a + cov_b - root(cov_a @ cov_b))


def length_not_squared(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    return (mean_a - mean_b).norm() + frechet(mean_a, cov_a, mean_a, cov_b)


def its_root(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    return frechet(mean_a, cov_a, mean_b, cov_b).sqrt()


def eigenvalues_of_symmetric(
    mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor
) -> Tensor:
    roots = torch.linalg.eigvalsh(cov_a @ cov_b).clamp(min=0).sqrt()
    return of_covariances(mean_a, mean_b, cov_a + cov_b) - 2 * roots.sum()


def eigenvalues_of_each(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    a, b = (torch.linalg.eigvalsh(cov).clamp(min=0) for cov in (cov_a, cov_b))
    return of_covariances(mean_a, mean_b, cov_a + cov_b) - 2 * (a * b).sqrt().sum()


def not_clamped(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.sqrt()
    return of_covariances(mean_a, mean_b, cov_a + cov_b) - 2 * roots.sum()


def root_of_the_sum(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    return of_covariances(mean_a, mean_b, cov_a + cov_b) - 2 * (cov_a @ cov_b).trace().sqrt()


# ---- ★ the variance between samples of one image -------------------------------------------------


def repeated_samples(g: torch.Generator) -> Iterator[tuple]:
    for M, B in ((2, 3), (4, 2), (5, 2), (3, 4)):
        yield (
            torch.randn(1, B, 3, 2, 2, generator=g)
            + torch.rand(B, 1, 1, 1, generator=g) * torch.randn(M, B, 3, 2, 2, generator=g),
        )


def spread(samples: Tensor, less: int = 1) -> Tensor:
    M, out = len(samples), []
    for image in samples.flatten(2).transpose(0, 1).tolist():  # M rows of pixels
        pixels = [[image[m][i] for m in range(M)] for i in range(len(image[0]))]
        each = [sum((v - sum(p) / M) ** 2 for v in p) / (M - less) for p in pixels]
        out.append(sum(each) / len(each))
    return torch.tensor(out)


def divided_by_m(samples: Tensor) -> Tensor:
    return spread(samples, less=0)


def between_images(samples: Tensor) -> Tensor:
    return samples.transpose(0, 1).var(0).flatten(1).mean(1)


def pixels_too(samples: Tensor) -> Tensor:
    return samples.transpose(0, 1).flatten(1).var(1)


def of_the_mean_pixel(samples: Tensor) -> Tensor:
    return samples.flatten(2).mean(2).var(0)


def deviation(samples: Tensor) -> Tensor:
    return samples.std(0).flatten(1).mean(1)


EXERCISES = {
    "tokens_in": Exercise(
        sizes,
        tokens_in,
        [
            (rounded_up, "rounded up: the last id does not fit completely. Round down."),
            (
                not_rounded,
                "this is not a whole number of tokens. A part of an id cannot be decoded: round "
                "down.",
            ),
            (
                lambda n, vocab: round(8 * n / math.log2(vocab)),
                "rounding to the nearest number counts an id that does not fit completely: round "
                "down.",
            ),
            (
                whole_bits_each,
                "each id was given whole bits. One of 2,560 ids takes 11.3 bits, not 12: as "
                "digits of one large number, k ids take k log2(vocab) bits in total.",
            ),
            (
                whole_bytes_each,
                "each id was given whole bytes. Ids that are packed together share bytes: k ids "
                "take k log2(vocab) bits in total.",
            ),
            (of_bits, "n counts bytes, and a byte has eight bits: the file has 8 n bits."),
            (natural_logarithm, "the natural logarithm gives nats. Bits need log2."),
            (
                bytes_of_tokens,
                "this is the number of bytes that n tokens take. Here n is the number of bytes: "
                "solve the formula for k.",
            ),
        ],
    ),
    "intervals": Exercise(
        two_methods,
        intervals,
        [
            (
                from_the_ends,
                "the interval of the difference was computed from the ends of the two other "
                "intervals, as if the low end of b met the high end of a. Both methods were "
                "measured on the same images: take the difference in each resample.",
            ),
            (
                ends_subtracted,
                "low minus low and high minus high is not an interval of the difference. Take the "
                "difference in each resample, then the percentiles of these differences.",
            ),
            (
                other_images,
                "a and b were resampled with different draws. Then images that are hard for both "
                "no longer cancel: use the same row of `draws` for both.",
            ),
            (
                of_single_images,
                "this is the interval that holds 95% of the IMAGES. Asked is the interval of the "
                "statistic: compute it for each row of `draws`, then take percentiles.",
            ),
            (
                smallest_and_largest,
                "these are the smallest and the largest value of all resamples, and they grow "
                "apart with the number of resamples. Leave out 2.5% at each end.",
            ),
            (
                five_percent_each,
                "5% were left out at each end: a 90% interval. Leave out 2.5% at each end.",
            ),
            (a_minus_b, "the sign: b - a is positive where b is larger."),
            (
                mean_in_place,
                "the mean was taken in place of `statistic`. Call statistic(rows): it may be any "
                "function of the rows.",
            ),
            (
                of_the_gaps,
                "this is the statistic of the differences. Asked is the difference of the "
                "statistics; they are equal for the mean, and not in general.",
            ),
            (
                two_deviations,
                "mean plus and minus 1.96 standard deviations supposes a normal distribution. Use "
                "the percentiles of the resampled values.",
            ),
        ],
    ),
    "pack": Exercise(
        id_rows,
        pack,
        [
            (
                lowest_bit_first,
                "the lowest bit of each id came first. The highest bit comes first, as in a "
                "written number.",
            ),
            (
                bytes_of_each,
                "each id was stored in whole bytes. The next id starts at the next BIT.",
            ),
            (
                padded_in_front,
                "the zeros that complete the last byte are at the beginning, so every id is "
                "shifted. Put them at the end.",
            ),
            (
                no_leading_zeros,
                "leading zeros are missing: each id takes exactly `bits` bits. Otherwise a "
                "reader cannot know where the next id starts.",
            ),
            (
                last_first,
                "the last id came first. A file that is truncated must keep the first ids.",
            ),
            (
                lambda ids, bits: pack(ids, bits)[::-1],
                "the last byte came first (little-endian). The first byte holds the first bits of "
                "the first id: big-endian.",
            ),
        ],
        observe=as_list,
    ),
    "frechet": Exercise(
        gaussians,
        frechet,
        [
            (no_root, "the square root of the product is missing: tr(A + B - 2 (A B)^(1/2))."),
            (
                root_of_each_entry,
                "this is the square root of each entry. The root of a matrix is the matrix R "
                "with R R = A B; its trace is the sum of the roots of the eigenvalues.",
            ),
            (
                product_of_roots,
                "A^(1/2) B^(1/2) equals (A B)^(1/2) only if A and B commute. Take the root of "
                "the product.",
            ),
            (
                diagonals,
                "only the variances were used. Features are correlated, and the distance "
                "depends on the whole covariance.",
            ),
            (not_doubled, "the root has the factor 2."),
            (length_not_squared, "the distance of the means is squared."),
            (
                its_root,
                "this is the distance. The number called FID is its square, without a root at "
                "the end.",
            ),
            (
                eigenvalues_of_symmetric,
                "eigvalsh reads one triangle only, and is for symmetric matrices. A B is not "
                "symmetric: use eigvals.",
            ),
            (
                eigenvalues_of_each,
                "the eigenvalues of A B are not the products of those of A and B. Multiply the "
                "matrices first.",
            ),
            (
                not_clamped,
                "by rounding, some eigenvalues are slightly below 0, and their root is NaN: clamp "
                "them at 0.",
            ),
            (
                root_of_the_sum,
                "this is the root of the sum of the eigenvalues. Take the root of each eigenvalue "
                "first, then the sum.",
            ),
        ],
        tolerance=1e-3,
    ),
    "spread": Exercise(
        repeated_samples,
        spread,
        [
            (
                divided_by_m,
                "divided by M. The mean was estimated from the same samples, so divide by M - "
                "1: the difference matters with few samples.",
            ),
            (
                between_images,
                "this is the variance between the B images. The samples of one image are on the "
                "first axis: take the variance over it.",
            ),
            (
                pixels_too,
                "all pixels of all samples went into one variance, which includes the contrast "
                "of the image itself. Take the variance over the samples first, for each pixel; "
                "then the mean over the pixels.",
            ),
            (
                of_the_mean_pixel,
                "the pixels were averaged first, which removes all changes inside the image. "
                "Take the variance first.",
            ),
            (
                deviation,
                "this is the mean standard deviation. Variances add up, standard deviations do "
                "not.",
            ),
            (
                lambda samples: samples.var(0).flatten(1).sum(1),
                "this is the sum over the pixels. Take the mean.",
            ),
            (
                lambda samples: samples.flatten(2).var(2).mean(0),
                "this is the variance over the pixels of each sample, its contrast. Take the "
                "variance over the samples, for each pixel.",
            ),
        ],
    ),
}
