"""Exercises of notebook 07: the token budget."""

import math
from collections.abc import Callable, Iterator

import torch
from scipy.linalg import sqrtm
from torch import Tensor

from . import Exercise, randint

# ---- ★ bytes of k ids ----------------------------------------------------------------------------


def budget_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield from ((1, 2560), (16, 2560), (3, 2), (32, 12_800), (256, 64_000), (5, 256))
    for _ in range(3):
        yield randint(g, 2, 60), randint(g, 3, 9000)


def num_bytes(k: int, vocab: int) -> int:
    n = 0
    while 256**n < vocab**k:  # exact, with integers
        n += 1
    return n


def whole_bytes_each(k: int, vocab: int) -> int:
    return k * num_bytes(1, vocab)


def whole_bits_each(k: int, vocab: int) -> int:
    return math.ceil(k * math.ceil(math.log2(vocab)) / 8)


def rounded_down(k: int, vocab: int) -> int:
    return math.floor(k * math.log2(vocab) / 8)


def not_rounded(k: int, vocab: int) -> float:
    return k * math.log2(vocab) / 8


def in_bits(k: int, vocab: int) -> int:
    return math.ceil(k * math.log2(vocab))


def natural_logarithm(k: int, vocab: int) -> int:
    return math.ceil(k * math.log(vocab) / 8)


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


def root(a: Tensor) -> Tensor:
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
    "num_bytes": Exercise(
        budget_inputs,
        num_bytes,
        [
            (
                whole_bytes_each,
                "each id was rounded up to whole bytes. Ids that are packed together share "
                "bytes: round up once, at the end.",
            ),
            (
                whole_bits_each,
                "each id was rounded up to whole bits. One of 2,560 ids holds 11.3 bits, not "
                "12. As digits of one large number, k ids take k log2(vocab) bits, and only "
                "this total is rounded up.",
            ),
            (
                rounded_down,
                "rounded down: the last bits do not fit. A file holds whole bytes, so round up.",
            ),
            (not_rounded, "a file holds whole bytes: round up."),
            (in_bits, "this is the number of bits; a byte has eight."),
            (natural_logarithm, "the natural logarithm gives nats. Bits need log2."),
            (
                lambda k, vocab: math.ceil(math.log2(k * vocab) / 8),
                "k ids have vocab**k combinations, not k * vocab: their bits add up to k "
                "log2(vocab).",
            ),
            (
                lambda k, vocab: math.floor(k * math.log2(vocab) / 8) + 1,
                "one byte too many where the bits fill the last byte exactly: round up, with "
                "math.ceil.",
            ),
            (
                lambda k, vocab: round(k * math.log2(vocab) / 8),
                "rounding to the nearest number loses the last bits in half of the cases: round "
                "up.",
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
        ],
    ),
}
