"""Exercises of notebook 10: FlexTok compared with related tokenizers."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import Exercise, randint

# ---- ★ the token of a pixel ----------------------------------------------------------------------


def pixels(g: torch.Generator) -> Iterator[tuple]:
    yield from ((0, 5, 2, 8), (3, 0, 2, 8), (9, 6, 4, 12))
    for _ in range(5):
        patch, grid = randint(g, 2, 5), randint(g, 3, 7)
        yield randint(g, 0, patch * grid - 1), randint(g, 0, patch * grid - 1), patch, patch * grid


def raster(row: int, column: int, patch: int, width: int) -> int:
    index = 0
    for top in range(0, row + patch, patch):  # patches in row-major order
        for left in range(0, width, patch):
            if top <= row < top + patch and left <= column < left + patch:
                return index
            index += 1
    raise AssertionError("a pixel outside the image")


def down_the_columns(row: int, column: int, patch: int, width: int) -> int:
    return raster(column, row, patch, width)


def pixels_in_a_line(row: int, column: int, patch: int, width: int) -> int:
    return row // patch * width + column // patch


def of_the_pixel_row(row: int, column: int, patch: int, width: int) -> int:
    return row * (width // patch) + column // patch


def patches_in_a_side(row: int, column: int, patch: int, width: int) -> int:
    return row // patch * patch + column // patch


def from_one(row: int, column: int, patch: int, width: int) -> int:
    return raster(row, column, patch, width) + 1


# ---- ★ the rate of a 2D grid ---------------------------------------------------------------------


def grids(g: torch.Generator) -> Iterator[tuple]:
    yield from ((32, 8, 2560), (32, 4, 2560), (256, 16, 64_000))
    for _ in range(3):
        patch = randint(g, 2, 9)
        yield patch * randint(g, 2, 9), patch, randint(g, 3, 9000)


def grid_rate(size: int, patch: int, vocab: int) -> tuple[int, float]:
    tokens = sum(1 for _ in range(0, size, patch) for _ in range(0, size, patch))
    return tokens, tokens * math.log2(vocab) / (size * size)


def one_side(size: int, patch: int, vocab: int) -> tuple[int, float]:
    return size // patch, size // patch * math.log2(vocab) / size**2


def per_value(size: int, patch: int, vocab: int) -> tuple[int, float]:
    return grid_rate(size, patch, vocab)[0], grid_rate(size, patch, vocab)[1] / 3


def per_token(size: int, patch: int, vocab: int) -> tuple[int, float]:
    return grid_rate(size, patch, vocab)[0], math.log2(vocab)


def bytes_per_pixel(size: int, patch: int, vocab: int) -> tuple[int, float]:
    return grid_rate(size, patch, vocab)[0], grid_rate(size, patch, vocab)[1] / 8


# ---- ★★ the best single estimate, and a sample ---------------------------------------------------


def possibilities(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, 0.5])
    yield torch.tensor([[0.0], [1.0]]), torch.tensor([0.75, 0.25])
    for n, D in ((3, 2), (4, 3), (5, 6)):
        p = torch.rand(n, generator=g) + 0.1
        yield torch.randn(n, D, generator=g), p / p.sum()


def squared_error(x: Tensor, p: Tensor, answer: Tensor) -> float:
    """The expected squared error of one estimate (D,): mean over the pixels."""
    return sum(
        float(q)
        * sum((a - b) ** 2 for a, b in zip(y.tolist(), answer.tolist(), strict=True))
        / x.shape[1]
        for y, q in zip(x, p, strict=True)
    )


def weighted_mean(x: Tensor, p: Tensor) -> Tensor:
    return sum(q * y for y, q in zip(x, p, strict=True))


def best_guess(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    mean = weighted_mean(x, p)
    return (
        mean,
        squared_error(x, p, mean),
        sum(float(q) * squared_error(x, p, y) for y, q in zip(x, p, strict=True)),
    )


def equal_weights(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    return best_guess(x, torch.full_like(p, 1 / len(p)))


def plain_mean(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    mean = x.mean(0)
    return mean, squared_error(x, p, mean), best_guess(x, p)[2]


def most_likely(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    mode = x[p.argmax()]
    return mode, squared_error(x, p, mode), best_guess(x, p)[2]


def sample_to_mean(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    mean, error, _ = best_guess(x, p)
    return mean, error, error


def summed(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    mean, error, other = best_guess(x, p)
    return mean, error * x.shape[1], other * x.shape[1]


def never_the_original(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    mean, error, other = best_guess(x, p)
    return mean, error, other / (1 - float(p.square().sum()))


def root(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    mean, error, other = best_guess(x, p)
    return mean, math.sqrt(error), math.sqrt(other)


def equal_errors(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    mean = weighted_mean(x, p)
    error = float((x - mean).square().mean())
    return mean, error, 2 * error


def twice_that_of_the_mode(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    mode, error, _ = most_likely(x, p)
    return mode, error, 2 * error


def equal_draws(x: Tensor, p: Tensor) -> tuple[Tensor, float, float]:
    mean, error, _ = best_guess(x, p)
    return mean, error, sum(squared_error(x, p, y) for y in x) / len(x)


# ---- ★★ the evaluation of one system -------------------------------------------------------------


def toy_encode(images: Tensor) -> Tensor:
    """The brightness of each pixel as an id of 0 to 4: (B, 3, H, W) -> (B, H W)."""
    return ((images.mean(1).flatten(1) + 1) * 2.49).floor().long()


def toy_decode(ids: Tensor) -> Tensor:
    """Gray 2 x 2 images; a missing pixel has brightness 0.1: (B, k) -> (B, 3, 2, 2)."""
    gray = torch.full((len(ids), 4), 0.1)
    gray[:, : ids.shape[1]] = ids / 2 - 1
    return gray.view(-1, 1, 2, 2).expand(-1, 3, -1, -1)


def toy_classify(images: Tensor) -> Tensor:
    """Logits of three classes: the upper, the left and the lower right pixels are bright."""
    x = images.mean(1)
    return torch.stack([x[:, 0].sum(1), 2 * x[:, :, 0].mean(1), 2 * x[:, 1, 1]], 1)


def systems(g: torch.Generator) -> Iterator[tuple]:
    for B, budgets, vocab in ((2, [1, 4], 5), (6, [1, 2, 3, 4], 2560), (9, [2, 4], 8)):
        images = 2 * torch.rand(B, 3, 2, 2, generator=g) - 1
        labels = torch.randint(0, 3, (B,), generator=g)
        yield toy_encode, toy_decode, toy_classify, images, labels, budgets, vocab


Scores = dict[int, tuple[int, float, float]]


def evaluation(
    encode: Callable,
    decode: Callable,
    classify: Callable,
    images: Tensor,
    labels: Tensor,
    budgets: list[int],
    vocab: int,
    *,
    peak: float = 2.0,
    one_mean: bool = False,
    last: bool = False,
    cut: bool = True,
    each_token: bool = False,
    classified: str = "made",
) -> Scores:
    found, ids = {}, encode(images)
    for k in budgets:
        prefix = ids[:, -k:] if last else ids[:, :k] if cut else ids
        made = decode(prefix)
        errors = [float((a - b).square().mean()) for a, b in zip(made, images, strict=True)]
        errors = [sum(errors) / len(errors)] if one_mean else errors
        decibels = [10 * math.log10(peak**2 / e) for e in errors]
        bits = 8 * math.ceil(math.log2(vocab) / 8) * k if each_token else k * math.log2(vocab)
        guess = classify(images if classified == "originals" else made).argmax(1)
        target = classify(images).argmax(1) if classified == "agreement" else labels
        right = [float(i == j) for i, j in zip(guess, target, strict=True)]
        found[k] = math.ceil(bits / 8), sum(decibels) / len(decibels), sum(right) / len(right)
    return found


def peak_of_one(*args) -> Scores:
    return evaluation(*args, peak=1.0)


def peak_of_a_byte(*args) -> Scores:
    return evaluation(*args, peak=255.0)


def decibels_of_the_mean_error(*args) -> Scores:
    return evaluation(*args, one_mean=True)


def last_tokens(*args) -> Scores:
    return evaluation(*args, last=True)


def not_cut(*args) -> Scores:
    return evaluation(*args, cut=False)


def each_token_rounded_up(*args) -> Scores:
    return evaluation(*args, each_token=True)


def originals_classified(*args) -> Scores:
    return evaluation(*args, classified="originals")


def agreement(*args) -> Scores:
    return evaluation(*args, classified="agreement")


# ---- ★★ a regressor and a sampler at every budget ------------------------------------------------


def image_sets(g: torch.Generator) -> Iterator[tuple]:
    """Equally likely images and their ids: some images share a prefix of two or all three ids. k is
    1 or 2 first, then both ends."""
    for n, D, k in ((4, 1, 1), (6, 2, 2), (9, 3, randint(g, 1, 2)), (12, 2, 0), (8, 2, 3)):
        ids = torch.randint(2, (n, 3), generator=g)
        ids[0], ids[1], ids[2], ids[3] = (
            *(torch.tensor(r) for r in ((0, 0, 0), (0, 0, 1), (0, 1, 1), (1, 1, 1))),
        )
        yield torch.randn(n, D, generator=g), ids, k


def prefix_errors(x: Tensor, ids: Tensor, k: int) -> tuple[float, float]:
    regressor = sampler = 0.0
    for i in range(len(x)):
        group = [j for j in range(len(x)) if ids[j, :k].tolist() == ids[i, :k].tolist()]
        p = torch.full((len(group),), 1 / len(group))
        _, of_mean, of_sample = best_guess(x[group], p)
        regressor, sampler = regressor + of_mean / len(x), sampler + of_sample / len(x)
    return regressor, sampler


def without_tokens(x: Tensor, ids: Tensor, k: int) -> tuple[float, float]:
    return prefix_errors(x, 0 * ids, k)


def only_the_kth(x: Tensor, ids: Tensor, k: int) -> tuple[float, float]:
    return prefix_errors(x, ids[:, k - 1 :], 1)


def equal_groups(x: Tensor, ids: Tensor, k: int) -> tuple[float, float]:
    prefixes = {tuple(row) for row in ids[:, :k].tolist()}
    groups = [(ids[:, :k] == torch.tensor(prefix)).all(1) for prefix in sorted(prefixes)]
    each = [prefix_errors(x[rows], ids[rows], k) for rows in groups]
    return tuple(sum(column) / len(each) for column in zip(*each, strict=True))


def sampler_as_good(x: Tensor, ids: Tensor, k: int) -> tuple[float, float]:
    return prefix_errors(x, ids, k)[0], prefix_errors(x, ids, k)[0]


def one_id_more(x: Tensor, ids: Tensor, k: int) -> tuple[float, float]:
    return prefix_errors(x, ids, k + 1)


def unbiased(x: Tensor, ids: Tensor, k: int) -> tuple[float, float]:
    same = [(ids[:, :k] == row[:k]).all(1) for row in ids]
    each = [(x[rows] - x[rows].mean(0)).square().sum(0) / (len(x[rows]) - 1) for rows in same]
    error = float(torch.stack(each).mean())
    return error, 2 * error


EXERCISES = {
    "raster": Exercise(
        pixels,
        raster,
        [
            (
                down_the_columns,
                "row and column are exchanged: patches are in row-major order.",
            ),
            (
                pixels_in_a_line,
                "you multiplied by the number of pixels in a row. A row holds width // patch "
                "patches.",
            ),
            (patches_in_a_side, "a row of patches holds width // patch of them, not patch."),
            (of_the_pixel_row, "the pixel's row was not divided by patch: use the row of PATCHES."),
            (from_one, "token indices start at 0."),
            (
                lambda row, column, patch, width: row // patch + column // patch,
                "a row of patches comes after all patches of the rows above: multiply row // "
                "patch by width // patch.",
            ),
        ],
    ),
    "grid_rate": Exercise(
        grids,
        grid_rate,
        [
            (one_side, "this is one side of the grid; the number of patches is its square."),
            (per_value, "these are bits for each of three color values. A pixel is all three."),
            (per_token, "these are the bits of a token, which represents patch * patch pixels."),
            (bytes_per_pixel, "these are bytes for each pixel; the exercise asks for bits."),
            (
                lambda size, patch, vocab: (
                    grid_rate(size, patch, vocab)[0],
                    grid_rate(size, patch, vocab)[1] * size,
                ),
                "you divided by one side of the image. It has size * size pixels.",
            ),
            (
                lambda size, patch, vocab: (
                    grid_rate(size, patch, vocab)[0],
                    grid_rate(size, patch, vocab)[1] * math.log(2),
                ),
                "the natural logarithm gives nats. Bits need log2.",
            ),
        ],
    ),
    "best_guess": Exercise(
        possibilities,
        best_guess,
        [
            (
                equal_weights,
                "all possible images got the same weight. Weight each by its probability.",
            ),
            (
                plain_mean,
                "your mean gives all possible images the same weight. Weight each by its "
                "probability.",
            ),
            (
                most_likely,
                "you returned the most likely image. The mean has the least squared error, even "
                "if no image looks like it.",
            ),
            (
                sample_to_mean,
                "this is the error between a sample and the MEAN. The original is another draw: "
                "compare two draws.",
            ),
            (summed, "you summed the errors over the pixels; the exercise asks for the mean."),
            (
                equal_draws,
                "all samples got the same weight. A sample is drawn with its probability, too.",
            ),
            (
                never_the_original,
                "you left out the pairs in which the sample is the true image itself. They occur, "
                "and their error is 0.",
            ),
            (root, "this is the square root. The exercise asks for the squared error."),
            (
                equal_errors,
                "the mean is right, but its error gives all possible images the same weight. "
                "Weight each squared error by the probability of its image.",
            ),
            (
                twice_that_of_the_mode,
                "you returned the most likely image. The mean has the least squared error, and a "
                "sample has twice the error of the mean.",
            ),
        ],
    ),
    "evaluation": Exercise(
        systems,
        evaluation,
        [
            (
                peak_of_one,
                "the PSNR is 6.02 dB too low: images run from -1 to 1, so the peak is 2, and its "
                "square 4.",
            ),
            (
                peak_of_a_byte,
                "255 is the peak of 8-bit images. These run from -1 to 1: the peak is 2.",
            ),
            (
                decibels_of_the_mean_error,
                "this is the PSNR of the mean error. The PSNR of each image comes first, then the "
                "mean over images: the logarithm of a mean is not the mean of the logarithms.",
            ),
            (last_tokens, "these are the LAST k tokens. A prefix is the first k: ids[:, :k]."),
            (not_cut, "every budget decodes all tokens. Cut the ids: ids[:, :k]."),
            (
                each_token_rounded_up,
                "each token was rounded up to whole bytes. Add the bits of all k tokens first and "
                "round up once.",
            ),
            (
                originals_classified,
                "this is the accuracy on the ORIGINALS. Classify what was decoded.",
            ),
            (
                agreement,
                "this is the share of images whose class stays that of the original. Compare with "
                "the labels.",
            ),
        ],
    ),
    "prefix_errors": Exercise(
        image_sets,
        prefix_errors,
        [
            (
                without_tokens,
                "the ids were not used: this is the mean of ALL images. Only images with the "
                "same prefix are possible.",
            ),
            (only_the_kth, "you grouped by one id only. A prefix is all of the first k ids."),
            (
                equal_groups,
                "all prefixes got the same weight. A prefix that twice as many images share "
                "occurs twice as often.",
            ),
            (
                sampler_as_good,
                "the error of a sample is twice that of the mean: two draws, each at the same "
                "distance from the mean.",
            ),
            (one_id_more, "off by one: k ids are known, columns 0 to k - 1."),
            (
                unbiased,
                "you divided by n - 1 (the default of torch.var), which gives NaN for a group of "
                "one image. Divide by n.",
            ),
            (
                lambda x, ids, k: tuple(e * x.shape[1] for e in prefix_errors(x, ids, k)),
                "you summed the errors over the pixels. Take the mean.",
            ),
        ],
    ),
}
