"""FlexTok and a 2D grid at one image size, trained for the same processor time."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import TokenizerConfig
from ..data import Dataset, in_order, to_float, to_uint8
from ..evaluation.classifier import Classifier
from ..evaluation.scores import Scores, image_noise
from ..presets import RECIPES
from ..tokenizer import FlexTok
from ..training.tokenizer import train_tokenizer
from .equal_time import SHORT, images_seen
from .systems import SYSTEMS, grid

PRESET, REGISTERS = "cifar10-tiny", 32  # a size that a CPU can train
STEPS, GUIDANCE = 12, 2.0  # the sampler that the card of cifar10 recommends


@torch.no_grad()
def score(
    tok: FlexTok, test: Dataset, num: int, budgets: list[int], classifier: Classifier
) -> dict:
    """By number of tokens: PSNR, SSIM and rFID, of images sampled without guidance.

    The classifier's features, of images averaged to the size that it takes.
    """
    side = classifier.config.image_size

    def features(x: Tensor) -> Tensor:
        return classifier.features(F.interpolate(x, size=side, mode="area"))

    original, made = Scores(num, features), {k: Scores(num, features) for k in budgets}
    done = 0
    for stored, _ in in_order(test, 32, num):
        images = to_float(stored)
        original.update(images)
        ids, noise = tok.encode(images), image_noise(images.shape, 0, done)
        for k, scores in made.items():
            decoded = tok.decode(ids[:, :k], STEPS, noise=noise)
            scores.update(to_float(to_uint8(decoded)), None, images)
        done += len(images)
    return {
        str(k): {
            "bits": k * tok.config.bits_per_token,
            "rfid": scores.distance(original),
            **scores.summary(),
        }
        for k, scores in made.items()
    }


def trained(
    configs: dict[str, TokenizerConfig],
    train: Dataset,
    test: Dataset,
    minutes: float,
    num: int,
    runs: Path,
    quiet: bool = False,
) -> dict:
    """Both systems, "flextok" and "grid", trained and scored. A run that was stopped resumes."""
    classifier, found = Classifier.from_pretrained("judge-cifar10"), {}
    for name, c in configs.items():
        size = c.image_size
        system = SYSTEMS["no-repa"] if name == "flextok" else grid(c.patch_size, size)
        timed = {"steps": 10**9, "minutes": minutes, "processor_time": True}
        recipe = replace(RECIPES[PRESET], **(timed | SHORT | system.recipe))
        out = runs / f"{name}-{size}"
        tok = train_tokenizer(
            c,
            recipe,
            copy.copy(train),
            out,
            "cpu",
            quiet,
            cls=system.cls,
            objective=system.objective,
        )
        budgets = system.budgets or (1, 8, c.num_registers)
        found[name] = {
            "about": system.about,
            "images_seen": images_seen(out),
            "parameters": sum(p.numel() for p in tok.parameters()),
            "tokens": score(tok, test, num, [*budgets], classifier),
        }
        if not quiet:
            print(size, name, found[name], flush=True)
    return found
