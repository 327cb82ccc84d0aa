"""Reconstruction and codebook metrics."""

import torch
from torch import Tensor

from .. import adaptive, checks, codec_checks
from ..draws import seeded_noise
from ..tokenizer import FlexTok

# ---- pairs of images -----------------------------------------------------------------------------


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images in [-1, 1]: (B, C, H, W) twice -> (B,) dB."""
    checks.check_pair(a, b)
    return adaptive.psnr(a.float(), b.float())


def mae(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of images in [-1, 1]: (B, C, H, W) twice -> (B,) in 0..2."""
    checks.check_pair(a, b)
    return (a.float() - b.float()).abs().flatten(1).mean(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images in [-1, 1]: (B, C, H, W) twice -> (B,), 1 for equal images.

    Wang et al. (2004): an 11x11 Gaussian window, sigma 1.5; K1 = 0.01, K2 = 0.03 of the data range
    2; population variances. The window stays inside the image (no padding); channels are averaged.
    Images must be 11x11 or larger.
    """
    checks.check_pair(a, b)
    H, W = a.shape[2:]
    if min(H, W) < 11:
        raise ValueError(
            f"images are {H}x{W}: SSIM has an 11x11 window, give images at least as large"
        )
    offsets = torch.arange(11, device=a.device) - 5.0
    g = torch.exp(-offsets.square() / (2 * 1.5**2)).double()
    g /= g.sum()

    def means_along(n: int) -> Tensor:
        """The matrix (n - 10, n) of the window's means along one side."""
        rows = g.new_zeros(n - 10, n)
        for i, row in enumerate(rows):
            row[i : i + 11] = g
        return rows

    down, across = means_along(H), means_along(W).T
    # A variance is a small difference of means: too small for float32.
    a, b = a.double(), b.double()

    def local_mean(x: Tensor) -> Tensor:
        return down @ x @ across  # (B, C, H - 10, W - 10); twenty times as fast as F.conv2d

    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a**2, local_mean(b * b) - mean_b**2
    cov = local_mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    similarity = (
        (2 * mean_a * mean_b + c1)
        * (2 * cov + c2)
        / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    )
    return similarity.flatten(1).mean(1).float()


# ---- confidence intervals ------------------------------------------------------------------------


def bootstrap(values: Tensor, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95% confidence interval of the mean of values (N,): percentiles of resampled means."""
    kinds = (*checks.FLOATS, *checks.INTEGERS, torch.bool)
    if checks.check_tensor(values, "values", kinds).ndim != 1 or not len(values):
        raise ValueError(f"values have shape {tuple(values.shape)}: give (N >= 1,)")
    checks.check_count(resamples, "resamples", 1, 100_000)
    g = torch.Generator().manual_seed(checks.check_seed(seed))
    x, n = checks.check_values(values.cpu().double(), "values", float("inf")), len(values)
    means = torch.stack([x[torch.randint(n, (n,), generator=g)].mean() for _ in range(resamples)])
    return tuple(means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist())


# ---- codebook ------------------------------------------------------------------------------------


class CodeCounts:
    """How often each register has each id, counted batch by batch."""

    def __init__(self, num_registers: int, vocab_size: int):
        checks.check_count(num_registers, "num_registers", 1)
        checks.check_count(vocab_size, "vocab_size", 1, max(1, 2**28 // num_registers))
        self.counts = torch.zeros(num_registers, vocab_size, dtype=torch.long)

    def update(self, ids: Tensor) -> "CodeCounts":
        """Add ids (B, K)."""
        columns, vocab_size = self.counts.shape
        ids = codec_checks.check_id_matrix(ids, vocab_size, columns)
        self.counts += torch.stack(
            [torch.bincount(column, minlength=vocab_size) for column in ids.cpu().T]
        )
        return self

    def usage(self) -> tuple[Tensor, Tensor]:
        """Per register the number of distinct ids (K,) and their perplexity exp(entropy) (K,)."""
        p = self.counts.double() / self.counts.sum(1, keepdim=True)
        return (p > 0).sum(1), torch.exp(-torch.xlogy(p, p).sum(1))


def code_usage(ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """ids (B, K) -> per register the number of distinct ids (K,) and their perplexity (K,)."""
    ids = codec_checks.check_id_matrix(ids, checks.check_count(vocab_size, "vocab_size", 1))
    return CodeCounts(ids.shape[1], vocab_size).update(ids).usage()


@torch.no_grad()
def one_step_psnr(tok: FlexTok, images: Tensor, ids: Tensor, seed: int = 0) -> dict[int, float]:
    """PSNR of the one-step estimate of the image, noise - v(noise, t=1), by number of tokens.

    images: pixels or latents (B, C, H, W), as the encoder takes them. One decoder call an image and
    no sampling: the curve to watch during training. The estimate is the mean of the images that
    the tokens allow, so its PSNR is higher than that of samples.
    """
    c = checks.check_type(tok, FlexTok, "tok").config
    codec_checks.check_id_matrix(ids, c.vocab_size, c.num_registers)
    checks.check_shape(images, "images", c.in_channels, c.patch_size, c.image_size, c.pixels)
    checks.check_values(images, "images")
    noise = seeded_noise(images.shape, checks.check_seed(seed)).to(images.device)
    found = {}
    for k in tok.config.budgets:
        estimate = tok.decode(ids[:, :k], steps=1, noise=noise, to_images=False, batch_size=256)
        found[k] = psnr(estimate, images).mean().item()
    return found


def health(psnrs: dict[int, float], perplexity: Tensor, vocab_size: int) -> str:
    """A warning about collapsed codes or unused tokens, in words; empty where there is none."""
    mean = perplexity.mean().item()
    if mean < 1.5:
        return (
            f"codes have collapsed: a register uses {mean:.1f} of {vocab_size} ids on average; "
            "restart with a lower learning rate"
        )
    first, last = next(iter(psnrs.values())), list(psnrs.values())[-1]
    if len(psnrs) > 1 and last - first < 0.2:
        return (
            f"tokens beyond the first add nothing yet: PSNR {first:.1f} dB from 1 token, "
            f"{last:.1f} dB from all"
        )
    return ""
