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


# ---- ★ PSNR --------------------------------------------------------------------------------------


def image_pairs(g: torch.Generator) -> Iterator[tuple]:
    for B in (2, 1, 3, 4):
        a = torch.rand(B, 3, 2, 2, generator=g) * 2 - 1
        yield (
            a,
            (
                a
                + torch.randn(a.shape, generator=g) * torch.linspace(0.1, 0.5, B).view(-1, 1, 1, 1)
            ).clamp(-1, 1),
        )


def psnr(a: Tensor, b: Tensor, peak: float = 4.0) -> Tensor:
    """peak: the numerator, the square of the range."""
    out = []
    for x, y in zip(a, b, strict=True):
        errors = [
            (p - q) ** 2 for p, q in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
        ]
        out.append(10 * math.log10(peak * len(errors) / sum(errors)))
    return torch.tensor(out)


def range_of_one(a: Tensor, b: Tensor) -> Tensor:
    return psnr(a, b, 1.0)


def range_not_squared(a: Tensor, b: Tensor) -> Tensor:
    return psnr(a, b, 2.0)


def range_of_uint8(a: Tensor, b: Tensor) -> Tensor:
    return psnr(a, b, 255.0**2)


def one_error_for_all(a: Tensor, b: Tensor) -> Tensor:
    return psnr(a.flatten()[None], b.flatten()[None])[0]


def inverted_fraction(a: Tensor, b: Tensor) -> Tensor:
    return -psnr(a, b)


def absolute_error(a: Tensor, b: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (a - b).abs().flatten(1).mean(1))


def summed_error(a: Tensor, b: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (a - b).square().flatten(1).sum(1))


def range_of_each(a: Tensor, b: Tensor) -> Tensor:
    ranges = a.flatten(1).amax(1) - a.flatten(1).amin(1)
    return 10 * torch.log10(ranges**2 / (a - b).square().flatten(1).mean(1))


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


RANGE_HINT = (
    "the range was taken from these images. It belongs to the format: values from -1 to 1, so "
    "r = 2."
)


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
    "psnr": Exercise(
        image_pairs,
        psnr,
        [
            (
                range_of_one,
                "6 dB too low: you used a range of 1. Images in [-1, 1] have the range 2, and "
                "its square is 4.",
            ),
            (
                range_not_squared,
                "3 dB too low: the formula has the square of the range, and 2 squared is 4.",
            ),
            (
                range_of_uint8,
                "255 is the range of uint8 images. These images are in [-1, 1]: the range is 2.",
            ),
            (
                one_error_for_all,
                "this is one error for the whole batch. Compute one error per image; average "
                "the decibels afterwards.",
            ),
            (
                inverted_fraction,
                "the fraction is inverted: divide the square of the range by the error, so that "
                "smaller errors give more decibels.",
            ),
            (
                lambda a, b: psnr(a, b) * math.log(10),
                "this is the natural logarithm. Decibels use the logarithm to base 10.",
            ),
            (
                lambda a, b: 2 * psnr(a, b),
                "the factor 20 belongs to a ratio of amplitudes. The error is squared already: "
                "use 10.",
            ),
            (
                lambda a, b: psnr(a, b).mean(),
                "this is the mean over the batch. Return one value for each image.",
            ),
            (absolute_error, "this is the mean ABSOLUTE error. Square the differences first."),
            (summed_error, "this is the sum of the squared errors. Take their mean."),
            (
                lambda a, b: psnr(a, b, (a.max() - a.min()).item() ** 2),
                RANGE_HINT,
            ),
            (range_of_each, RANGE_HINT),
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
