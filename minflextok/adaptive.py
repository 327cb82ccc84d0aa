"""Adaptive length: for each image the shortest prefix of its ids that is good enough.

The exact search decodes prefixes, by bisection; `LengthHead` predicts its result. Related work
trains the encoder for it. ElasticTok (Yan et al., arXiv 2410.08368) searches alike, after training
with a random number of tokens dropped at the end. ALIT (Duggal et al., arXiv 2411.02393) adds
tokens in recurrent passes of the encoder. KARL (Duggal et al., arXiv 2507.07995) predicts in one
pass, for a given quality, where to halt. STAT (Chen et al., arXiv 2601.14246) gives each token a
probability to be kept, trained to fall along the sequence and to follow the complexity of the
image. Here the tokenizer is an ordinary FlexTok, which never saw a target.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import checks, weights
from .config import LengthConfig
from .draws import seeded_noise

# (images, originals) (B, 3, H, W) in [-1, 1] -> how good each image is, (B,); higher is better.
Metric = Callable[[Tensor, Tensor], Tensor]


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB."""
    error = (images - originals).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


class Adaptive(NamedTuple):
    """What `encode_adaptive` found for B images."""

    ids: list[Tensor]  # (k_i,) int64 each
    values: Tensor  # (B,), the metric of the decoded prefix
    met: Tensor  # (B,) bool; where False, not even all K ids meet the target, and all are kept


@torch.no_grad()
def encode_adaptive(
    tok: Any,
    images: Tensor,
    target: float | Tensor,
    metric: str | Metric = "psnr",
    seed: int = 0,
    batch_size: int = 64,
    **decode_options,
) -> Adaptive:
    """For each image (B, 3, H, W) in [-1, 1] the shortest prefix of its ids whose decoded image
    meets a target: metric(decoded, image) >= target.

    target: a number, or one for each image (B,). metric: "psnr" in dB, or a function of decoded
    images and originals, such as minus a distance of features, or the probability of the right
    class. All prefixes of an image are decoded from the same noise (of `seed`), with
    decode_options (steps, guidance, apg). Bisection: 1 + log2 K decodes for an image. It finds a
    prefix that meets the target while the one shorter by an id does not; where the metric does not
    rise with every id, a still shorter one may meet it too.
    """
    measure = psnr if isinstance(metric, str) and metric == "psnr" else metric
    if not callable(measure):
        raise ValueError(f"metric={checks.show(metric)}: give 'psnr' or a function")
    batch_size = checks.check_count(batch_size, "batch_size", 1)
    x = tok.to_latents(images)
    targets = as_targets(target, len(x))
    noise = seeded_noise(x.shape, checks.check_seed(seed)).to(x.device)
    originals = images.to(x.device)
    ids = tok.encode_latents(x, batch_size=batch_size)
    K = ids.shape[1]

    def values_at(rows: Tensor, keep_k: Tensor) -> Tensor:
        """The metric of images decoded from their first keep_k ids: (n,)."""
        found = []
        for i, k in zip(rows.split(batch_size), keep_k.split(batch_size), strict=True):
            prefixes = [ids[row, :n] for row, n in zip(i.tolist(), k.tolist(), strict=True)]
            decoded = tok.decode(prefixes, noise=noise[i], **decode_options)
            found.append(measured(measure, decoded, originals[i]))
        return torch.cat(found)

    lengths, values, met = shortest(values_at, targets, K)
    return Adaptive([r[:k].cpu() for r, k in zip(ids, lengths.tolist(), strict=True)], values, met)


def shortest(
    values_at: Callable[[Tensor, Tensor], Tensor], targets: Tensor, K: int
) -> tuple[Tensor, Tensor, Tensor]:
    """By bisection, for each of n images a length k whose value meets its target (n,), while that
    of k - 1 does not: lengths (n,) int64, values (n,), and met (n,), False where K does not
    meet it.

    values_at(rows (m,), lengths (m,)) -> the values of these images at these lengths (m,).
    """
    n = len(targets)
    low, high = torch.zeros(n, dtype=torch.long), torch.full((n,), K)
    values = values_at(torch.arange(n), high)
    met = values >= targets
    while len(rows := (met & (high - low > 1)).nonzero()[:, 0]):
        middle = (low[rows] + high[rows]) // 2
        found = values_at(rows, middle)
        enough = found >= targets[rows]
        high[rows[enough]], values[rows[enough]] = middle[enough], found[enough]
        low[rows[~enough]] = middle[~enough]
    return high, values, met


def as_targets(target: float | Tensor, n: int) -> Tensor:
    """(n,) on the CPU."""
    if isinstance(target, Tensor) and target.ndim:
        checks.check_values(checks.check_tensor(target, "target"), "target")
        if target.shape != (n,):
            raise ValueError(f"target has shape {tuple(target.shape)}: give ({n},), or a number")
        return target.detach().float().cpu()
    return torch.full((n,), checks.check_number(target, "target", -1e30, 1e30))


def measured(metric: Metric, images: Tensor, originals: Tensor) -> Tensor:
    """The values of a metric, (n,) on the CPU. ValueError if it fails, or gives something else."""
    try:
        values = metric(images, originals)
    except Exception as e:
        raise ValueError(
            f"metric={checks.show(metric)} fails: {checks.first_line(e)}: give a function of "
            "images and originals (n, 3, H, W)"
        ) from e
    if not isinstance(values, Tensor) or values.shape != (len(images),):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"metric gives {shape} for {len(images)} images: give a function to ({len(images)},)"
        )
    return checks.check_values(values.float(), "values of the metric").cpu()


class LengthHead(nn.Module):
    """Predicts the length that `encode_adaptive` finds, from the registers before quantization.

    z (B, K, F) -> logits (B, K): whether the first k ids suffice, for k = 1..K. They rise with k,
    as sums of positive steps. Trained by `python -m minflextok.experiments.length_head`.
    """

    def __init__(self, config: LengthConfig):
        super().__init__()
        c = self.config = checks.check_type(config, LengthConfig, "config")
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(c.num_registers * c.channels, c.width),
            nn.SiLU(),
            nn.Linear(c.width, c.width),
            nn.SiLU(),
            nn.Linear(c.width, c.num_registers),
        )

    def forward(self, z: Tensor) -> Tensor:
        first, *steps = self.mlp(z).split(1, dim=1)
        return torch.cat([first, *map(nn.functional.softplus, steps)], 1).cumsum(1)

    def lengths(self, z: Tensor, confidence: float | None = None) -> Tensor:
        """The shortest length that suffices with this probability (default: the config's), (B,)
        int64; K where none does."""
        confidence = self.config.confidence if confidence is None else confidence
        enough = self(z).sigmoid() >= checks.check_probability(confidence, "confidence")
        return torch.where(enough.any(1), enough.int().argmax(1) + 1, z.shape[1])

    @torch.no_grad()
    def encode(
        self, tok: Any, images: Tensor, confidence: float | None = None, batch_size: int = 64
    ) -> list[Tensor]:
        """For each image (B, 3, H, W) in [-1, 1] its first ids, as many as predicted: (k_i,) int64
        each. Nothing is decoded."""
        self.check_tokenizer(tok)
        found = []
        for part in images.split(checks.check_count(batch_size, "batch_size", 1)):
            z = tok.encode_continuous(part)  # (b, K, F)
            lengths = self.lengths(z.float(), confidence).tolist()
            found += [row[:k].cpu() for row, k in zip(tok.fsq(z)[1], lengths, strict=True)]
        return found

    def check_tokenizer(self, tok: Any) -> None:
        """Raise ValueError unless this head was trained on the lengths of `tok`."""
        want = self.config.tokenizer
        if want and want != (found := weights.fingerprint(tok.state_dict())):
            raise ValueError(
                f"this head predicts lengths for the tokenizer {want}, this is {found}: train one "
                "for it with python -m minflextok.experiments.length_head"
            )

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json."""
        weights.save(self, directory, dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "LengthHead":
        """Load weights: shipped ones by the name of their tokenizer ("cifar10"), or a directory
        written by `save_pretrained`. float32, in eval mode, on the CPU."""
        return weights.load(cls, LengthConfig, weights.find(checks.check_path(name), "lengths-"))
