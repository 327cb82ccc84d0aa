"""Numbers that say how well images come back and how well the codes are used."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokenizer import FlexTok

# ---- image against image ---------------------------------------------------------------------------------------------


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"images have shapes {tuple(a.shape)} and {tuple(b.shape)}: give (B, C, H, W) twice"
        )


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images in [-1, 1]: (B, C, H, W) twice -> (B,) dB."""
    _check_pair(a, b)
    error = (a.float() - b.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def mae(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of images in [-1, 1]: (B, C, H, W) twice -> (B,) in 0..2."""
    _check_pair(a, b)
    return (a.float() - b.float()).abs().flatten(1).mean(1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images in [-1, 1]: (B, C, H, W) twice -> (B,), 1 for equal images.

    Wang et al. (2004): an 11x11 Gaussian window, sigma 1.5; K1 = 0.01, K2 = 0.03 of the data range 2; population
    variances. The window stays inside the image (no padding); channels are averaged. Images must be 11x11 or larger.
    """
    _check_pair(a, b)
    C, H, W = a.shape[1:]
    if min(H, W) < 11:
        raise ValueError(
            f"images are {H}x{W}: SSIM has an 11x11 window, give images at least as large"
        )
    offsets = torch.arange(11, device=a.device) - 5.0
    g = torch.exp(-offsets.square() / (2 * 1.5**2)).double()
    window = torch.outer(g, g) / g.sum() ** 2  # (11, 11)
    a, b = (
        a.double(),
        b.double(),
    )  # variances are differences of means: float32 loses them where images are flat

    def local_mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window.expand(C, 1, 11, 11), groups=C)  # (B, C, H - 10, W - 10)

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


# ---- set against set -------------------------------------------------------------------------------------------------


class FeatureStats:
    """Mean and covariance of features that come in batches; memory D^2, however many there are.

    Sums are kept in float64 about the mean of the first batch, since sums of squares about a far-off zero lose digits.
    """

    def __init__(self):
        self.count = 0
        self.origin: Tensor | None = None

    def update(self, features: Tensor) -> "FeatureStats":
        """Add features (B, D)."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features have shape {tuple(features.shape)}: give (B >= 1, D)")
        x = features.detach().cpu().double()
        if not bool(x.isfinite().all()):
            raise ValueError("features hold NaN or infinite values")
        if self.origin is None:
            D = x.shape[1]
            self.origin, self.sum, self.squares = x.mean(0), x.new_zeros(D), x.new_zeros(D, D)
        if x.shape[1] != len(self.origin):
            raise ValueError(
                f"features have length {x.shape[1]}, those before {len(self.origin)}: one network for all"
            )
        x = x - self.origin
        self.count += len(x)
        self.sum += x.sum(0)
        self.squares += x.T @ x
        return self

    @property
    def mean(self) -> Tensor:
        """(D,) float64."""
        self._need(1)
        return self.origin + self.sum / self.count

    @property
    def cov(self) -> Tensor:
        """(D, D) float64, the unbiased estimate (divided by count - 1)."""
        self._need(2)
        return (self.squares - torch.outer(self.sum, self.sum) / self.count) / (self.count - 1)

    def _need(self, n: int) -> None:
        if self.count < n:
            raise ValueError(
                f"{self.count} features so far: a {'covariance' if n == 2 else 'mean'} takes at least {n}"
            )


def sqrt_psd(a: Tensor) -> Tensor:
    """The symmetric square root of a symmetric positive semi-definite matrix (D, D)."""
    values, vectors = torch.linalg.eigh(a)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """Squared Frechet distance of two Gaussians (Heusel et al., arXiv 1706.08500): FID, when features are Inception's.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). The eigenvalues of A B are those of A^(1/2) B A^(1/2), which is
    symmetric, so that no complex root can appear, also where the covariances are singular (count <= D).
    It falls with the number of images (the estimate is biased): compare equal counts only.
    """
    if len(a.mean) != len(b.mean):
        raise ValueError(
            f"features of length {len(a.mean)} and {len(b.mean)}: compare those of one network"
        )
    root = sqrt_psd(a.cov)
    product = root @ b.cov @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross
    return max(0.0, distance.item())


def collect(batches: Iterable[Tensor], features: Callable[[Tensor], Tensor]) -> FeatureStats:
    """The statistics of images that come in batches (B, 3, H, W) in [-1, 1]."""
    stats = FeatureStats()
    for images in batches:
        stats.update(features(images))
    return stats


# ---- how sure we are -------------------------------------------------------------------------------------------------


def bootstrap(values: Tensor, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean of per-image values (N,): percentiles of the means of resampled sets."""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values have shape {tuple(values.shape)}: give (N >= 1,)")
    g, x, n = torch.Generator().manual_seed(seed), values.cpu().double(), len(values)
    means = torch.stack([x[torch.randint(n, (n,), generator=g)].mean() for _ in range(resamples)])
    return tuple(means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist())


def bootstrap_frechet(
    a: Tensor, b: Tensor, resamples: int = 20, seed: int = 0
) -> tuple[float, float]:
    """95% interval of the Frechet distance of features a and b (N, D), whose rows are image and reconstruction.

    1.96 standard deviations, over resampled pairs, to each side of the distance: how far another draw of N images would
    move it. The bias of the distance at N is not in it. Needs the features themselves: 10,000 of 128 float32 are 5 MB.
    """
    if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
        raise ValueError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}: give (N >= 2, D) twice"
        )
    g, n = torch.Generator().manual_seed(seed), len(a)

    def distance(i: Tensor) -> float:
        return frechet_distance(
            collect(a[i].split(4096), nn.Identity()), collect(b[i].split(4096), nn.Identity())
        )

    again = torch.tensor(
        [distance(torch.randint(n, (n,), generator=g)) for _ in range(resamples)],
        dtype=torch.float64,
    )
    whole, half = distance(torch.arange(n)), 1.96 * again.std().item()
    return max(0.0, whole - half), whole + half


def inception() -> Callable[[Tensor], Tensor]:
    """torchvision's Inception-v3 as a feature function: images (B, 3, H, W) in [-1, 1] -> (B, 2048) float32.

    Images are resized to 299x299 (bilinear, antialiased) and normalised as torchvision's weights (IMAGENET1K_V1) want.
    This is NOT the TensorFlow network of published FIDs, whose weights and resize differ: compare these numbers among
    themselves only. The weights (104 MB) are downloaded once to torch hub's cache; OSError where they cannot be had.
    """
    from torchvision.models import Inception_V3_Weights, inception_v3

    try:
        net = inception_v3(weights=Inception_V3_Weights.IMAGENET1K_V1)
    except (OSError, RuntimeError) as e:  # no network (URLError is an OSError); a damaged download
        raise OSError(
            f"torchvision's Inception-v3 weights cannot be had ({e}): put them into "
            f"{torch.hub.get_dir()}/checkpoints, or use --features judge"
        ) from None
    net.fc = nn.Identity()
    net.eval().requires_grad_(False)
    net.transform_input = (
        False  # it would turn ImageNet's normalisation into [-1, 1], which we have
    )

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        net.to(images.device)
        return net(
            F.interpolate(
                images.float(),
                size=(299, 299),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
        )

    return features


# ---- the codes -------------------------------------------------------------------------------------------------------


class CodeCounts:
    """How often each register shows each id, counted over batches."""

    def __init__(self, num_registers: int, vocab_size: int):
        self.counts = torch.zeros(num_registers, vocab_size, dtype=torch.long)

    def update(self, ids: Tensor) -> "CodeCounts":
        """Add ids (B, K)."""
        self.counts += torch.stack(
            [torch.bincount(column, minlength=self.counts.shape[1]) for column in ids.cpu().T]
        )
        return self

    def usage(self) -> tuple[Tensor, Tensor]:
        """Per register the number of distinct ids (K,) and their perplexity exp(entropy) (K,)."""
        p = self.counts.double() / self.counts.sum(1, keepdim=True)
        return (p > 0).sum(1), torch.exp(-torch.xlogy(p, p).sum(1))


def code_usage(ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """ids (B, K) -> per register the number of distinct ids (K,) and their perplexity exp(entropy) (K,)."""
    return CodeCounts(ids.shape[1], vocab_size).update(ids).usage()


@torch.no_grad()
def one_step_psnr(tok: FlexTok, images: Tensor, ids: Tensor, seed: int = 0) -> dict[int, float]:
    """PSNR of the one-step estimate noise - v(noise, t=1) at 1, 2, 4, ..., K tokens.

    One decoder call an image and no sampling: the curve to watch while training. It scores the mean of the images
    that the tokens leave possible, so it is higher than the PSNR of samples.
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(
        images.device
    )

    def estimate(k: int) -> Tensor:
        parts = zip(noise.split(256), ids[:, :k].split(256), strict=True)
        return torch.cat([tok.decode(i, steps=1, noise=n, to_images=False) for n, i in parts])

    bound = 1 if tok.config.in_channels == 3 else float("inf")  # latents have none
    return {
        k: psnr(estimate(k).clamp(-bound, bound), images).mean().item() for k in tok.config.budgets
    }


def health(psnrs: dict[int, float], perplexity: Tensor, vocab_size: int) -> str:
    """What the numbers say, in words; empty while all is well."""
    mean = perplexity.mean().item()
    if mean < 1.5:
        return (
            f"codes have collapsed: a register uses {mean:.1f} of {vocab_size} ids on average; "
            "start again with a lower learning rate"
        )
    first, last = next(iter(psnrs.values())), list(psnrs.values())[-1]
    if len(psnrs) > 1 and last - first < 0.2:
        return f"tokens beyond the first carry nothing yet: PSNR {first:.1f} dB at 1 token, {last:.1f} dB at all"
    return ""
