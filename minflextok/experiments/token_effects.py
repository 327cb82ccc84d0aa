"""What decoded images do when ids change: where a token acts, what is left open, swaps.

All decodes of one image share their noise, so that only the ids differ.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..draws import seeded_noise
from ..evaluation.classifier import Classifier
from ..evaluation.scores import mean_and_interval, share
from ..tokenizer import FlexTok

BATCH = 64


class Decoder(NamedTuple):
    """A tokenizer with the settings of its decodes."""

    tok: FlexTok
    steps: int = 8
    guidance: float = 1.0

    def __call__(self, ids: Tensor, seed: int = 0) -> Tensor:
        """ids (n, k) -> images (n, 3, H, W) in [-1, 1]; image i has the i-th noise of the seed."""
        c = self.tok.config
        noise = seeded_noise((len(ids), c.in_channels, c.image_size, c.image_size), seed)
        return self.tok.decode(
            ids, self.steps, guidance=self.guidance, noise=noise, batch_size=BATCH
        ).cpu()


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference over the channels: (n, 3, H, W) twice -> (n, H, W) in 0..2."""
    return (a - b).abs().mean(1)


def effective_area(maps: Tensor) -> Tensor:
    """The share of the image that a map of changes (..., H, W) covers, (...): 1 for equal values,
    1 / HW for a single pixel. (sum m)^2 / (HW sum m^2), the participation ratio."""
    flat = maps.flatten(-2).double()
    return flat.sum(-1) ** 2 / (flat.shape[-1] * (flat**2).sum(-1)).clamp(min=1e-12)


# ---- where a token acts --------------------------------------------------------------------------


def replaced(ids: Tensor, j: int) -> Tensor:
    """ids (n, K), each row with the id at index j of the next; the last, of the first."""
    out = ids.clone()
    out[:, j] = ids[:, j].roll(-1)
    return out


def token_maps(decode: Decoder, ids: Tensor) -> dict[str, list[Tensor]]:
    """Changes of the image by token, a map (n, H, W) for each of the K tokens.

    "replaced": another image's id at this index, all others kept. "added": from the ids before it
    to the ids with it; for the first token there is none before, and no map.
    """
    K = ids.shape[1]
    whole = decode(ids)
    prefixes = [decode(ids[:, : k + 1]) for k in range(K - 1)] + [whole]
    return {
        "replaced": [difference(decode(replaced(ids, j)), whole) for j in range(K)],
        "added": [difference(a, b) for a, b in pairwise(prefixes)],
    }


def map_summary(maps: list[Tensor], first: int) -> dict:
    """By token, numbered from `first`: the mean change with its interval; the effective area of the
    change of one image (a mean), and of the mean change of all."""
    return {
        str(j): {
            "change": mean_and_interval(m.flatten(1).mean(1)),
            "area of one image": mean_and_interval(effective_area(m)),
            "area of the mean": effective_area(m.mean(0)).item(),
        }
        for j, m in enumerate(maps, start=first)
    }


# ---- what is left open ---------------------------------------------------------------------------


def open_maps(decode: Decoder, ids: Tensor, originals: Tensor, repeats: int) -> dict:
    """By k: the variance of `repeats` decodes with other noise, (n, H, W), a mean over channels;
    and the squared error of their mean, less what the mean still has of that variance.

    The two sum to the expected squared error of one decode.
    """
    found = {}
    for k in decode.tok.config.budgets:
        decoded = torch.stack([decode(ids[:, :k], seed) for seed in range(repeats)])
        variance = decoded.var(0).mean(1)  # (n, H, W)
        bias = (decoded.mean(0) - originals).square().mean(1) - variance / repeats
        found[k] = (variance, bias)
    return found


def open_summary(found: dict) -> dict:
    """By k: the standard deviation of a pixel value in -1..1 (the root of the mean variance), the
    variance and the squared bias with intervals over images, and the share of the variance."""
    out = {}
    for k, (variance, bias) in found.items():
        mean = variance.mean().item()
        out[str(k)] = {
            "standard deviation": mean**0.5,
            "variance": mean_and_interval(variance.flatten(1).mean(1)),
            "squared bias": mean_and_interval(bias.flatten(1).mean(1)),
            "share of variance": mean / (mean + bias.mean().item()),
        }
    return out


# ---- swaps ---------------------------------------------------------------------------------------


def pairs_of_classes(labels: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Positions (m,), (m,) of up to n pairs of images of different classes."""
    a = torch.arange(len(labels))
    b = a.roll(-1)
    differ = labels[a] != labels[b]
    return a[differ][:n], b[differ][:n]


def swaps(decode: Decoder, ids: Tensor, labels: Tensor, classifier: Classifier, n: int) -> dict:
    """The first k ids of an image A, the rest of an image B of another class: which class does the
    classifier see? By k, with 0 (all of B) and K (all of A)."""
    a, b = pairs_of_classes(labels, n)
    found = {}
    for k in [0, *decode.tok.config.budgets]:
        mixed = torch.cat([ids[a, :k], ids[b, k:]], 1)
        predicted = classifier(decode(mixed)).argmax(1)
        found[str(k)] = {
            "A": share((predicted == labels[a]).tolist()),
            "B": share((predicted == labels[b]).tolist()),
        }
    return found
