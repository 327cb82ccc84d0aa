"""What the first ids of an image determine: continuations of a prefix by an unconditional prior."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import combinations

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import to_float
from ..prior import Prior
from ..tokenizer import FlexTok
from .metrics import mae
from .scores import image_noise, mean_and_interval
from .settings import PriorSettings


def overlap(a: Counter, b: Counter) -> float:
    """Things in both images as a share of things in either; for classes 0 or 1."""
    return (a & b).total() / (a | b).total() if a or b else 1.0


def evaluate_prefixes(
    prior: Prior,
    tok: FlexTok,
    images: Tensor,
    asked: Tensor | list[str],
    settings: PriorSettings,
    decode: Callable[[Tensor, Tensor], Tensor],
    contents: Callable[[Tensor], list[Counter]],
    progress: bool = False,
    each: int = 6,
) -> tuple[dict, dict[int, Tensor]]:
    """Continue the first j ids of images (N, 3, H, W) uint8 `each` times, unconditionally.

    decode: ids, noise -> uint8 images; contents: what each image shows. asked: classes or captions
    of the images, which guidance 0 ignores. By j: "alike", the mean overlap of two continuations of
    a prefix; "original", that of a continuation with the image; "pixels", the mean absolute
    difference of two continuations, in 0..2. And by j the first two images, each before its
    continuations: (2, 1 + each, 3, H, W) uint8.
    """
    n, device = len(images), next(prior.parameters()).device
    x = tok.to_latents(to_float(images).to(device))
    ids, true = tok.encode_latents(x, batch_size=settings.batch_size), contents(images)
    noise = image_noise((n * each, *x.shape[1:]), settings.seed + 2, 0).to(device)
    repeated = [c for c in asked for _ in range(each)]
    conditions = torch.stack(repeated) if isinstance(asked, Tensor) else repeated
    sampler = asdict(settings.samplers[0]) | {"guidance": 0.0}
    found, shown = {}, {}
    lengths = [0, *prior.config.budgets]
    for j in tqdm(lengths, "prefixes", disable=not progress, leave=False):
        prefix = ids[:, :j].repeat_interleave(each, 0)
        g = torch.Generator().manual_seed(settings.seed)
        made = prior.generate(
            conditions, prior.config.num_tokens, **sampler, prefix=prefix, generator=g
        )
        continued = decode(made, noise)
        found[str(j)] = compare(continued.unflatten(0, (n, each)), contents(continued), true)
        shown[j] = torch.cat([images[:2, None], continued.unflatten(0, (n, each))[:2]], 1)
    return {"images": n, "each": each, "by_length": found}, shown


def compare(continued: Tensor, content: list[Counter], true: list[Counter]) -> dict:
    """Scores of continuations (N, each, 3, H, W) uint8, by their and the images' content."""
    n, each = continued.shape[:2]
    rows = [content[i * each : (i + 1) * each] for i in range(n)]
    pairs = list(combinations(range(each), 2))
    alike = [sum(overlap(row[a], row[b]) for a, b in pairs) / len(pairs) for row in rows]
    same = [sum(overlap(c, t) for c in row) / each for row, t in zip(rows, true, strict=True)]
    pixels = [mae(to_float(continued[:, a]), to_float(continued[:, b])) for a, b in pairs]
    return {
        "alike": mean_and_interval(torch.tensor(alike)),
        "original": mean_and_interval(torch.tensor(same)),
        "pixels": mean_and_interval(torch.stack(pixels).mean(0)),
    }
