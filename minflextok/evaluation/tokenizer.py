"""The evaluation of a tokenizer by token budget: `minflextok evaluate`."""

import hashlib
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from ..config import require
from ..data import Dataset, Stream, in_order, to_float, to_uint8
from ..precision import autocast
from ..tokenizer import FlexTok
from .classifier import Classifier, match_classes
from .fid import Features, fidelity_inception, imagenet_network
from .metrics import CodeCounts
from .scores import Scores, image_noise, sha256, used_precision
from .settings import EvaluationSettings, Settings


def feature_space(settings: Settings, classifier: Classifier | None) -> tuple[Features, str]:
    """The features of the Frechet distance, and their description for the protocol."""
    if settings.features == "fidelity":
        return fidelity_inception(), (
            "features of torch-fidelity's Inception-v3 (TensorFlow weights, 2048-d, resized to "
            "299x299; those of published FIDs)"
        )
    if settings.features == "imagenet":
        return imagenet_network(), (
            "features of an EfficientNet-Lite0 trained on ImageNet (1280-d, resized to 128x128)"
        )
    c, name = classifier.config, settings.classifier
    return classifier.features, (
        f"{name} features (sha256 {sha256(name)[:12]}, {c.num_features}-d, "
        f"{c.image_size}x{c.image_size}, not resized)"
    )


def fitting_classifier(
    s: Settings, data: Dataset, weights_name: str, size: int, device: torch.device
) -> tuple[Classifier | None, Callable[[Tensor], Tensor]]:
    """The evaluation classifier, and its class numbers for labels of the data. None and a warning
    if it does not fit images of this size and is needed for the accuracy only."""
    classifier = Classifier.from_pretrained(s.classifier).to(device)
    c = classifier.config
    try:
        require(
            c.image_size == size,
            f"{s.classifier} takes {c.image_size}-pixel images, {weights_name} makes {size}: "
            "give features='imagenet' or 'fidelity', or another classifier",
        )
        return classifier, match_classes(data, c.class_names, c.num_classes, s.classifier)
    except ValueError as e:
        if s.features == "classifier":
            raise
        warnings.warn(f"no accuracy: {e}", stacklevel=3)
        return None, lambda labels: labels


def check_count(argument: str, num: int, data: Dataset) -> None:
    """ValueError where the data is known to hold fewer than `num` images."""
    require(
        isinstance(data, Stream) or num <= len(data),
        f"{argument}={num}: give 2 to {'all' if isinstance(data, Stream) else len(data)} of "
        f"{data.name}, {data.split} split",
    )


class Evaluation:
    """An evaluation of a tokenizer: `protocol_line` describes it; `run` computes the metrics."""

    def __init__(
        self,
        tok: FlexTok,
        weights_name: str,
        data: Dataset,
        settings: EvaluationSettings = EvaluationSettings(),
    ):
        """weights_name: what `tok` was loaded from. Raises ValueError, OSError without weights."""
        s, self.tok, self.data, self.settings = settings, tok, data, settings
        self.device, size = tok.device, tok.image_size
        self.budgets = s.budgets_of(weights_name, tok.config.num_registers, tok.config.budgets)
        most = 10_000 if isinstance(data, Stream) else min(10_000, len(data))
        self.num = most if s.num_images is None else s.num_images
        check_count("num_images", self.num, data)
        self.classifier, self.number = fitting_classifier(s, data, weights_name, size, self.device)
        self.features, space = feature_space(s, self.classifier)
        self.protocol = {
            "weights": weights_name,
            "weights_sha256": sha256(weights_name),
            "data": data.name,
            "split": data.split,
            "encoding": data.encoding,
            "images": self.num,
            "samples_per_image": 1,
            "reference": "the originals",
            "features": space,
            "classifier": s.classifier if self.classifier else None,
            "steps": s.steps,
            "guidance": s.guidance,
            "apg": bool(s.apg),
            "seed": s.seed,
            "device": str(self.device),
            "precision": used_precision(tok, s.bf16),
            "torch": torch.__version__,
        }

    @property
    def protocol_line(self) -> str:
        """The protocol in one line."""
        p = self.protocol
        return (
            f"protocol: rFID of {p['images']} reconstructions (1 sample an image, rounded to 8 "
            f"bits) to their {p['images']} originals, in {p['features']}; data: the first "
            f"{p['images']} of {p['data']}, {p['split']} split, {p['encoding']}; weights "
            f"{p['weights']}, sha256 {p['weights_sha256'][:12]}; {p['steps']} Euler steps, "
            f"guidance {p['guidance']:g}"
            f"{' (APG)' if p['apg'] else ''}, seed {p['seed']}, noise from (seed, image number); "
            f"{p['precision']}, {p['device']}, torch {p['torch']}"
        )

    def scores(self) -> Scores:
        """Empty scores. Short features are kept: 10,000 of 128 float32 take 5 MB a budget."""
        keep = self.settings.features == "classifier"
        return Scores(self.num, self.features, self.classifier, keep)

    @torch.no_grad()
    def run(self, progress: bool = False) -> dict:
        """All metrics, as plain values for JSON. Memory: sums, and a few numbers an image."""
        start, s, c = time.perf_counter(), self.settings, self.tok.config
        original, codes = self.scores(), CodeCounts(c.num_registers, c.vocab_size)
        scores, done, pixels = {k: self.scores() for k in self.budgets}, 0, hashlib.sha256()
        bar = tqdm(total=self.num, desc="evaluate", unit="image", disable=not progress, leave=False)
        for stored, labels in in_order(self.data, s.batch_size, self.num):
            pixels.update(stored.contiguous().numpy().tobytes())
            images = to_float(stored).to(self.device)
            labels = None if labels is None else self.number(labels)
            x = self.tok.to_latents(images)
            ids = self.tok.encode_latents(x)
            noise = image_noise(x.shape, s.seed, done).to(self.device)
            codes.update(ids)
            original.update(images, labels)
            for k, score in scores.items():
                clock = time.perf_counter()
                with autocast(self.device, s.bf16):
                    made = self.tok.decode(ids[:, :k], s.steps, s.guidance, s.apg, noise)
                made = to_uint8(made).cpu()  # a GPU has then done all its work
                score.seconds += time.perf_counter() - clock
                score.update(to_float(made).to(self.device), labels, images)
            done += len(stored)
            bar.update(len(stored))
        bar.close()
        require(done == self.num, f"num_images={self.num}: {self.data.name} has {done} images")
        return {
            "protocol": self.protocol
            | {"line": self.protocol_line, "pixels_sha256": pixels.hexdigest()},
            "originals": original.summary(),
            "tokens": {str(k): self.row(k, score, original) for k, score in scores.items()},
            "codes": code_summary(codes, c.vocab_size),
            "seconds": round(time.perf_counter() - start, 2),
        }

    def row(self, k: int, score: Scores, original: Scores) -> dict:
        """The metrics of one token budget."""
        return {
            "bits": round(k * self.tok.config.bits_per_token, 3),
            "bytes": self.tok.config.num_bytes(k),
            "rfid": score.distance(original),
            **score.summary(),
            "seconds": round(score.seconds, 2),
        }


def code_summary(codes: CodeCounts, vocab_size: int) -> dict:
    """Ids used and perplexity by register, as plain values."""
    used, perplexity = codes.usage()
    return {
        "vocabulary": vocab_size,
        "ids_used": used.tolist(),
        "perplexity": [round(p, 2) for p in perplexity.tolist()],
    }
