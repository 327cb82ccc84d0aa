"""The settings of an evaluation, checked when they are made. Errors name the arguments."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import require


@dataclass(frozen=True)
class Settings:
    """What the evaluations of a tokenizer and of a prior have in common."""

    budgets: Sequence[int] | None = None  # numbers of tokens (None: 1, 2, 4, ..., K)
    steps: int = 25  # Euler steps of the tokenizer's decoder
    seed: int = 0
    # Space of the Frechet distance: "classifier", "imagenet" or "fidelity" (fid.py).
    features: str = "classifier"
    classifier: str = "judge-cifar10"  # weights of the evaluation classifier
    batch_size: int = 64
    bf16: bool = False  # decode under bfloat16 autocast, where the device has it

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"{name}={value}: give a whole number of at least 1")
        require(
            self.features in ("classifier", "imagenet", "fidelity"),
            f"features={self.features!r}: give 'classifier', 'imagenet' or 'fidelity'",
        )

    def budgets_of(self, model: str, largest: int, default: list[int]) -> list[int]:
        """The budgets; ValueError where `model` does not have so many tokens."""
        for k in self.budgets or ():
            require(1 <= k <= largest, f"budgets={k}: {model} gives 1 to {largest} tokens")
        return list(self.budgets or default)


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """The settings of an evaluation of a tokenizer."""

    num_images: int | None = None  # the first images of the data (None: all, at most 10,000)
    guidance: float = 1.0
    apg: bool = False  # adaptive projected guidance

    def __post_init__(self):
        super().__post_init__()
        require(
            self.num_images is None or self.num_images >= 2,
            f"num_images={self.num_images}: give at least 2",
        )
        require(math.isfinite(self.guidance), f"guidance={self.guidance}: give a finite number")


@dataclass(frozen=True)
class Sampler:
    """How a prior's ids are sampled: arguments of `Prior.generate`."""

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        require(math.isfinite(self.guidance), f"guidance={self.guidance}: give a finite number")
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"temperature={self.temperature}: give a number of at least 0",
        )
        require(
            self.top_k is None or self.top_k >= 1,
            f"top_k={self.top_k}: give a whole number of at least 1, or None for all ids",
        )
        require(
            self.top_p is None or 0 < self.top_p <= 1,
            f"top_p={self.top_p}: give a share above 0 and up to 1, or None for all ids",
        )

    def __str__(self) -> str:
        parts = [f"guidance {self.guidance:g}"]
        if self.temperature != 1:
            parts.append(f"temperature {self.temperature:g}")
        if self.top_k:
            parts.append(f"top-k {self.top_k}")
        if self.top_p:
            parts.append(f"top-p {self.top_p:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class PriorSettings(Settings):
    """The settings of an evaluation of a prior: a sample for each image's class or caption."""

    num_samples: int = 1000  # samples of each sampler, for the first images of the data
    samplers: Sequence[Sampler] = (Sampler(1.0), Sampler(3.0))
    decoder_guidance: float = 1.0
    prefix_images: int = 24  # images whose first ids are continued (0: none)

    def __post_init__(self):
        super().__post_init__()
        require(self.num_samples >= 2, f"num_samples={self.num_samples}: give at least 2")
        require(len(self.samplers) > 0, "samplers is empty: give at least one")
        require(
            0 <= self.prefix_images <= self.num_samples,
            f"prefix_images={self.prefix_images}: give 0 to {self.num_samples} (num_samples)",
        )
        require(
            math.isfinite(self.decoder_guidance),
            f"decoder_guidance={self.decoder_guidance}: give a finite number",
        )
