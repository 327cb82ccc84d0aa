"""The evaluation of a prior by token budget: `minflextok evaluate-prior`.

Samples are compared with reconstructions of as many real images by the tokenizer at the same
budget. These are a reference and no bound: samples of a prior are typical images, which may be
easier to decode and to recognize than real ones. Samples for classes are scored by the evaluation
classifier, in another feature space without one by gFID alone; samples for captions of `shapes` by
an exact check.
"""

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..config import require
from ..data import Dataset, Stream, in_order, to_float, to_uint8
from ..data.shapes import read_scene
from ..precision import autocast
from ..prior import Prior
from ..tokenizer import FlexTok
from .classifier import Classifier, match_classes
from .prefixes import evaluate_prefixes
from .scores import (
    CaptionScores,
    Scores,
    image_noise,
    other_captions,
    sha256,
    used_precision,
)
from .settings import PriorSettings
from .tokenizer import check_count, feature_space, fitting_classifier

SHOWN = 12  # conditions whose samples are shown in a figure


@dataclass
class Collected:
    """What `PriorEvaluation.collect` finds."""

    original: Any  # Scores, or CaptionScores
    tokenizer: dict[int, Any]  # reconstructions, by token budget
    samples: list[dict[int, Any]]  # by sampler and token budget
    losses: Tensor  # sums (2, K) over real ids: conditional, unconditional
    shown: dict[int, list[Tensor]] = field(default_factory=dict)
    conditions: list = field(default_factory=list)  # of the samples shown


class PriorEvaluation:
    """An evaluation of a prior: `protocol_line` describes it; `run` computes the metrics."""

    def __init__(
        self,
        prior: Prior,
        prior_name: str,
        tok: FlexTok,
        tok_name: str,
        data: Dataset,
        settings: PriorSettings = PriorSettings(),
    ):
        """Names: what the models were loaded from. Raises ValueError, OSError without weights."""
        prior.check_tokenizer(tok)
        s, c = settings, prior.config
        self.prior, self.tok, self.data, self.settings = prior, tok, data, s
        self.device, self.num = next(prior.parameters()).device, s.num_samples
        self.budgets = s.budgets_of(prior_name, c.num_tokens, c.budgets)
        check_count("num_samples", self.num, data)
        self.text = bool(c.text)
        self.classifier: Classifier | None = None
        scored = self.read_captions() if self.text else self.read_classes(prior_name)
        self.protocol = {
            "kind": "text" if self.text else "class",
            "prior": prior_name,
            "prior_sha256": sha256(prior_name, "prior-"),
            "tokenizer": tok_name,
            "tokenizer_sha256": sha256(tok_name),
            "data": data.name,
            "split": data.split,
            "encoding": data.encoding,
            "samples": self.num,
            "samplers": [str(sampler) for sampler in s.samplers],
            "scored": scored,
            "steps": s.steps,
            "decoder_guidance": s.decoder_guidance,
            "precision": used_precision(tok, s.bf16),
            "seed": s.seed,
            "device": str(self.device),
            "torch": torch.__version__,
        }

    def read_captions(self) -> str:
        """Prepare the captions; returns how samples are scored."""
        captions = getattr(self.data, "captions", None)
        require(
            bool(captions),
            f"{self.data.name} has no captions, and this prior takes text: give shapes",
        )
        self.captions = captions[: self.num]
        self.others = other_captions(self.captions)  # ValueError for a caption that cannot be read
        return (
            "each image checked exactly against its caption (minflextok.data.shapes), and against "
            "another's"
        )

    def read_classes(self, prior_name: str) -> str:
        """Prepare features and, if it fits, the classifier; returns how samples are scored."""
        c, s = self.prior.config, self.settings
        require(
            isinstance(self.data, Stream) or self.data.labels is not None,
            f"{self.data.name} has no labels, and this prior takes classes: give labeled images",
        )
        self.condition = match_classes(self.data, c.class_names, c.num_classes, prior_name)
        self.classifier, self.number = fitting_classifier(
            s, self.data, prior_name, self.tok.image_size, self.device
        )
        self.features, space = feature_space(s, self.classifier)
        scored = f"gFID to the {self.num} originals of those classes in {space}"
        if self.classifier is None:
            return scored
        classes = self.classifier.config.num_classes
        require(
            classes == c.num_classes,
            f"{s.classifier} has {classes} classes, {prior_name} {c.num_classes}: give a "
            "classifier made by `minflextok train classifier`",
        )
        return (
            f"{scored}, and accuracy: the share that {s.classifier} assigns to the class asked for"
        )

    @property
    def protocol_line(self) -> str:
        """The protocol in one line."""
        p = self.protocol
        each = "caption" if p["kind"] == "text" else "label"
        return (
            f"protocol: {p['samples']} samples (1 a {each}, rounded to 8 bits) of prior "
            f"{p['prior']}, sha256 {p['prior_sha256'][:12]}, by {' | '.join(p['samplers'])}; "
            f"tokenizer {p['tokenizer']}, sha256 {p['tokenizer_sha256'][:12]}, {p['steps']} Euler "
            f"steps, guidance {p['decoder_guidance']:g}, {p['precision']}; conditions of the first "
            f"{p['samples']} of {p['data']}, {p['split']} split, {p['encoding']}; {p['scored']}; "
            f"beside reconstructions of the same images; seed {p['seed']}; {p['device']}, torch "
            f"{p['torch']}"
        )

    # ---- parts of a run --------------------------------------------------------------------------

    def decode(self, ids: Tensor, noise: Tensor) -> Tensor:
        """ids (B, k), noise (B, C, H, W) -> images (B, 3, H, W) uint8 on the CPU."""
        s = self.settings
        with autocast(self.device, s.bf16):
            images = self.tok.decode(
                ids, s.steps, s.decoder_guidance, noise=noise, batch_size=s.batch_size
            )
        return to_uint8(images).cpu()

    def scores(self) -> Any:
        """Empty scores."""
        if self.text:
            return CaptionScores()
        keep = self.settings.features == "classifier"
        return Scores(self.num, self.features, self.classifier, keep)

    def score(self, scores: Any, images: Tensor, labels: Tensor | None, rows: slice) -> None:
        """Add images (B, 3, H, W) uint8, made for these rows of the data, to their scores."""
        if self.text:
            scores.update(images, self.captions[rows], self.others[rows])
        else:
            labels = None if labels is None else self.number(labels)
            scores.update(to_float(images).to(self.device), labels)

    def add_losses(self, losses: Tensor, ids: Tensor, conditions: Tensor) -> None:
        """Add losses of real ids (B, K) by position, conditional and unconditional, to (2, K)."""
        for row, unconditional in zip(losses, (False, True), strict=True):
            null = torch.full((len(ids),), unconditional, device=self.device)
            row += self.prior.token_losses(ids, conditions, null).double().sum(0).cpu()

    def summary(self, by_budget: dict[int, Any], original: Any) -> dict:
        """The metrics of each token budget."""
        return {
            str(k): scores.summary() | ({} if self.text else {"fid": scores.distance(original)})
            for k, scores in by_budget.items()
        }

    def floor(self, original: Any) -> dict:
        """FID between two disjoint sets of real images: the floor at this sample size."""
        others, done = self.scores(), 0
        for stored, _ in in_order(self.data, self.settings.batch_size, 2 * self.num):
            fresh = stored[max(0, self.num - done) :]
            done += len(stored)
            if len(fresh):
                others.update(to_float(fresh).to(self.device))
        return others.distance(original) if done == 2 * self.num else {}

    # ---- the run ---------------------------------------------------------------------------------

    def collect(self, progress: bool) -> "Collected":
        """Score originals, reconstructions and samples, batch by batch."""
        s, done = self.settings, 0
        found = Collected(
            self.scores(),
            {k: self.scores() for k in self.budgets},
            [{k: self.scores() for k in self.budgets} for _ in s.samplers],
            torch.zeros(2, self.prior.config.num_tokens, dtype=torch.float64),
        )
        generators = [torch.Generator().manual_seed(s.seed) for _ in s.samplers]
        bar = tqdm(total=self.num, desc="evaluate", unit="image", disable=not progress, leave=False)
        for stored, labels in in_order(self.data, s.batch_size, self.num):
            require(
                self.text or labels is not None,
                f"{self.data.name} has images without a label: give labeled images",
            )
            rows = slice(done, done + len(stored))
            asked = self.captions[rows] if self.text else self.condition(labels)
            x = self.tok.to_latents(to_float(stored).to(self.device))
            ids = self.tok.encode_latents(x)
            self.add_losses(found.losses, ids, self.prior.prepare(asked))
            self.score(found.original, stored, labels, rows)
            noise = image_noise(x.shape, s.seed, done).to(self.device)
            for k, scores in found.tokenizer.items():
                self.score(scores, self.decode(ids[:, :k], noise), labels, rows)
            noise = image_noise(x.shape, s.seed + 1, done).to(self.device)
            for sampler, g, by_budget in zip(s.samplers, generators, found.samples, strict=True):
                made = self.prior.generate(asked, max(self.budgets), **asdict(sampler), generator=g)
                for k, scores in by_budget.items():
                    images = self.decode(made[:, :k], noise)
                    self.score(scores, images, labels, rows)
                    if by_budget is found.samples[-1] and done < SHOWN:
                        found.shown.setdefault(k, []).append(images[: SHOWN - done])
            found.conditions += list(asked[: max(0, SHOWN - done)])
            done += len(stored)
            bar.update(len(stored))
        bar.close()
        require(done == self.num, f"num_samples={self.num}: {self.data.name} has {done} images")
        return found

    @torch.no_grad()
    def run(self, progress: bool = False) -> tuple[dict, dict[int, Tensor], dict[int, Tensor]]:
        """All metrics, as plain values for JSON; and uint8 images for figures.

        By token budget, samples of the last sampler for the first 12 conditions (12, 3, H, W); by
        length of prefix, the images of `prefixes`.
        """
        start, found = time.perf_counter(), self.collect(progress)
        conditional, unconditional = (found.losses / self.num / math.log(2)).tolist()
        originals = found.original.summary()
        if not self.text:
            originals["fid"] = self.floor(found.original)
        samplers = [
            asdict(s) | {"name": str(s), "tokens": self.summary(scores, found.original)}
            for s, scores in zip(self.settings.samplers, found.samples, strict=True)
        ]
        judged = self.settings.prefix_images and (self.text or self.classifier)
        prefixes, continued = self.prefixes(progress) if judged else ({}, {})
        names = found.conditions
        if not self.text:
            names = [self.prior.class_names[i] for i in names]
        results = {
            "protocol": self.protocol | {"line": self.protocol_line},
            "bits": {
                "by_position": conditional,
                "without_condition": unconditional,
                "uniform": math.log2(self.prior.config.vocab_size),
            },
            "originals": originals,
            "tokenizer": self.summary(found.tokenizer, found.original),
            "samplers": samplers,
            "prefixes": prefixes,
            "shown": names,
            "seconds": round(time.perf_counter() - start, 2),
        }
        return results, {k: torch.cat(parts) for k, parts in found.shown.items()}, continued

    def contents(self, images: Tensor) -> list[Counter]:
        """What each image (B, 3, H, W) uint8 shows: its predicted class, or its kinds of things."""
        if self.classifier is None:
            return [Counter((t.color, t.shape) for t in read_scene(x)) for x in images.numpy()]
        predicted = self.classifier(to_float(images).to(self.device)).argmax(1)
        return [Counter([i]) for i in predicted.tolist()]

    @torch.no_grad()
    def prefixes(self, progress: bool = False) -> tuple[dict, dict[int, Tensor]]:
        """Unconditional continuations of the first ids of real images: see `evaluate_prefixes`."""
        s = self.settings
        batches = zip(*in_order(self.data, s.batch_size, s.prefix_images), strict=True)
        stored, labels = (torch.cat(x) if x[0] is not None else None for x in batches)
        images = torch.as_tensor(stored)
        asked = self.captions[: len(images)] if self.text else self.condition(labels)
        return evaluate_prefixes(
            self.prior, self.tok, images, asked, s, self.decode, self.contents, progress
        )
