"""Scores of images, collected batch by batch: against originals and labels, or against captions."""

import hashlib

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from .. import weights
from ..data.shapes import check_scene, parse_caption, read_scene
from ..draws import seeded_noise
from ..precision import precision
from .classifier import Classifier
from .fid import Features, FeatureStats, bootstrap_frechet, frechet_distance
from .metrics import bootstrap, mae, psnr, ssim


def image_noise(shape: tuple[int, ...], seed: int, first: int) -> Tensor:
    """Noise (B, C, H, W) for images first, first + 1, ...: a function of (seed, image number)."""
    numbers = range(first, first + shape[0])
    return torch.stack([seeded_noise(shape[1:], seed * 1_000_003 + i) for i in numbers])


def sha256(name: str, prefix: str = "") -> str:
    """The SHA-256 of a model's weights, as `sha256sum model.safetensors` prints it."""
    file = weights.find(name, prefix) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def used_precision(model: nn.Module, bf16: bool) -> str:
    """The precision that a model computes in under `autocast(device, bf16)`."""
    p = next(model.parameters())
    if p.dtype != torch.float32:
        return str(p.dtype).removeprefix("torch.")
    return precision(p.device, bf16)


def mean_and_interval(values: Tensor) -> dict:
    """The mean of per-image values (N,), with its 95% confidence interval."""
    return {"mean": values.double().mean().item(), "ci95": list(bootstrap(values))}


class Scores:
    """Scores of up to `num` images: Frechet distance, accuracy, and distances to originals."""

    def __init__(
        self,
        num: int,
        features: Features,
        classifier: Classifier | None = None,
        keep_features: bool = True,
    ):
        """keep_features: needed for the confidence interval of the Frechet distance."""
        self.num, self.features, self.classifier = num, features, classifier
        self.keep_features, self.stats, self.count, self.seconds = (
            keep_features,
            FeatureStats(),
            0,
            0.0,
        )
        self.values: dict[str, Tensor] = {}  # by name (num,), one value an image; features (num, D)

    def update(
        self, images: Tensor, labels: Tensor | None = None, originals: Tensor | None = None
    ) -> None:
        """Add images and their originals (B, 3, H, W) in [-1, 1], and labels (B,)."""
        features = self.features(images)
        self.stats.update(features)
        new = {"features": features.float()} if self.keep_features else {}
        if originals is not None:
            new |= {"psnr": psnr(images, originals), "mae": mae(images, originals)}
            if images.shape[-1] >= 11:
                new["ssim"] = ssim(images, originals)
        if self.classifier is not None and labels is not None:
            # Of the classifier's own features, its last layer gives the logits: no second pass.
            own = self.features == getattr(self.classifier, "features", None)
            logits = self.classifier.head(features) if own else self.classifier(images)
            new["accuracy"] = (logits.argmax(1).cpu() == labels).float()
        for name, rows in new.items():
            if name not in self.values:  # allocated once: small tensors would fragment the heap
                self.values[name] = torch.empty(self.num, *rows.shape[1:])
            self.values[name][self.count : self.count + len(rows)] = rows
        self.count += len(images)

    def summary(self) -> dict:
        """Mean and 95% confidence interval of each score of single images."""
        rows = {name: x[: self.count] for name, x in self.values.items() if name != "features"}
        return {name: mean_and_interval(x) for name, x in rows.items()}

    def distance(self, originals: "Scores") -> dict:
        """Frechet distance to the originals; if features are kept, its 95% confidence interval."""
        found: dict = {"mean": frechet_distance(self.stats, originals.stats)}
        if self.keep_features:
            a, b = (s.values["features"][: s.count] for s in (self, originals))
            found["ci95"] = list(bootstrap_frechet(a, b))
        return found


# ---- captions of `shapes` ------------------------------------------------------------------------


def share(hits: list[bool]) -> dict:
    """The share of hits and its Wilson 95% confidence interval, which is valid near 0 and 1 too."""
    low, high = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return {"mean": sum(hits) / len(hits), "ci95": [low, high], "n": len(hits)}


def other_captions(captions: list[str]) -> list[str | None]:
    """A negative control: for each caption the next with as many things, None if there is none."""
    groups: dict[int, list[int]] = {}
    for i, caption in enumerate(captions):
        groups.setdefault(len(parse_caption(caption)[0]), []).append(i)
    after = {
        i: j
        for rows in groups.values()
        for i, j in zip(rows, rows[1:] + rows[:1], strict=True)
        if i != j
    }
    return [captions[after[i]] if i in after else None for i in range(len(captions))]


class CaptionScores:
    """Exact checks of images against captions, by the number of things in a caption."""

    def __init__(self):
        # an image: things in its caption, is it met, share of things found, is another met
        self.rows: list[tuple[int, bool, float, bool | None]] = []

    def update(self, images: Tensor, captions: list[str], others: list[str | None]) -> None:
        """Add images (B, 3, S, S) uint8, their captions, and captions of other images."""
        for image, caption, other in zip(images.numpy(), captions, others, strict=True):
            scene, wanted = read_scene(image), len(parse_caption(caption)[0])
            check = check_scene(scene, caption)
            other_met = None if other is None else check_scene(scene, other).met
            self.rows.append((wanted, check.met, 1 - len(check.missing) / wanted, other_met))

    def summary(self) -> dict:
        """By group, "all" or a number of things in the caption:

        met: share of images that show exactly their caption; things: mean share of the things of
        the caption that are shown; shuffled: share of images that show another image's caption.
        """
        found: dict[str, dict] = {"met": {}, "things": {}, "shuffled": {}}
        for group in ("all", *sorted({row[0] for row in self.rows})):
            rows = [row for row in self.rows if group in ("all", row[0])]
            others = [row[3] for row in rows if row[3] is not None]
            found["met"][str(group)] = share([row[1] for row in rows])
            found["things"][str(group)] = mean_and_interval(torch.tensor([row[2] for row in rows]))
            if others:
                found["shuffled"][str(group)] = share(others)
        return found
