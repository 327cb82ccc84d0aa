"""Train a prior (stage 2)."""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import PriorConfig, TrainConfig
from ..data.datasets import Dataset, held_out, shuffled
from ..evaluation.figures import budget_grid, save
from ..prior import Conditions, Prior
from ..text import words_of
from ..tokenizer import FlexTok
from .loop import Run, fit
from .runtime import Processes
from .token_cache import extract_ids


def prior_config(
    config: PriorConfig, tok: FlexTok, data: Dataset, labels: Tensor | None
) -> PriorConfig:
    """The config with what the tokenizer and the data decide: ids, classes or words."""
    c = dataclasses.replace(
        config,
        vocab_size=tok.config.vocab_size,
        num_tokens=tok.config.num_registers,
        tokenizer=tok.fingerprint(),
    )
    if c.text:
        captions = getattr(data, "captions", None)
        if not captions:
            raise ValueError(
                f"{data.name} has no captions: a prior with text={c.text!r} cannot learn from it; take "
                "captioned data (shapes), or a preset that takes classes"
            )
        return dataclasses.replace(c, words=words_of(captions)) if c.text == "words" else c
    if labels is None:
        raise ValueError(
            f"{data.name} has no labels: put its images into a folder a class, or take captioned data and "
            "a preset that takes text"
        )
    n = len(data.classes) or int(labels.max()) + 1
    return dataclasses.replace(c, num_classes=n, class_names=tuple(data.classes))


@torch.no_grad()
def evaluate_prior(prior: Prior, ids: Tensor, conditions: Tensor) -> tuple[dict, str]:
    """Bits per token of held-out ids (n, K), by position, with their condition and without."""

    def bits(hidden: bool) -> Tensor:
        parts = zip(ids.split(64), conditions.split(64), strict=True)
        null = torch.full((64,), hidden, device=ids.device)
        return torch.cat(
            [prior.token_losses(i, c, null[: len(i)]) for i, c in parts]
        ).double().mean(0) / math.log(2)

    told, untold = bits(False), bits(True).mean().item()
    found = {
        "bits": round(told.mean().item(), 4),
        "bits_by_position": [round(b, 4) for b in told.tolist()],
        "bits_without_condition": round(untold, 4),
    }
    curve = "  ".join(f"{k}: {told[k - 1]:.2f}" for k in prior.config.budgets)
    return found, (
        f"held-out bits a token {told.mean():.3f} of {math.log2(prior.config.vocab_size):.1f} "
        f"(without condition {untold:.3f})  by position  {curve}"
    )


def prior_picture(prior: Prior, tok: FlexTok, labels: Conditions, path: Path, title: str) -> None:
    """A sample for each class or caption, decoded at rising budgets from the same noise."""
    g = torch.Generator().manual_seed(0)
    ids = prior.generate(labels, generator=g)
    side = tok.config.image_size
    noise = torch.randn(len(ids), tok.config.in_channels, side, side, generator=g)
    save(
        budget_grid(
            None,
            {k: tok.decode(ids[:, :k], steps=10, noise=noise) for k in tok.config.budgets},
            title,
        ),
        path,
    )


def train_prior(
    config: PriorConfig,
    recipe: TrainConfig,
    tok: FlexTok,
    data: Dataset,
    out: str | Path,
    device: str | None = None,
    quiet: bool = False,
    crops: int = 1,
    cache: str | Path | None = None,
) -> Prior:
    """Train a Prior on the ids that `tok` gives the images of `data`; returns it with averaged weights.

    What tokenizer and data decide is set in `config`, whatever it says: the ids, the classes or the words. Ids are of
    all views that recipe.flip and `crops` ask for (see `ids.views`), kept in `cache`. `out` gets what `fit` writes,
    samples/*.png, and at the end weights for `Prior.from_pretrained(out)`.
    """
    procs, out, c = Processes(device), Path(out), recipe
    captions = getattr(data, "captions", None)
    if (
        config.text
        and c.flip
        and any(re.search(r"\b(left|right)\b", caption) for caption in captions or [])
    ):
        raise ValueError(
            f"captions of {data.name} say left and right, which flip=True would make wrong: give --no-flip"
        )
    tok = tok.requires_grad_(False).eval().to(procs.device)
    ids, labels = extract_ids(tok, data, c.flip, crops, cache, quiet or procs.rank > 0)  # (N, V, K)
    N, V, _ = ids.shape
    learn, val = held_out(N, c, data.name)
    torch.manual_seed(c.seed)
    prior = Prior(prior_config(config, tok, data, labels))
    conditions = prior.prepare(captions if config.text else labels)  # (N,) or (N, L)
    if c.compile:
        for block in prior.blocks:
            block.compile(dynamic=True)

    def read(rows: Tensor, view: Tensor | int) -> Tensor:
        return torch.from_numpy(ids[rows.numpy(), np.asarray(view)].astype(np.int64))

    def inputs(run: Run) -> Iterator[tuple[Tensor, ...]]:
        for i in shuffled(len(learn), c.batch_size, c.seed, run.step):
            g, rows = run.generator(), learn[i]
            seen = read(rows, torch.randint(V, (c.batch_size,), generator=g))
            batch = seen, conditions[rows], *run.model.draw(c.batch_size, g)
            yield tuple(x[run.share].to(run.device, non_blocking=True) for x in batch)

    shown = [captions[i] for i in val[:8].tolist()] if config.text else labels[val[:8]]
    held = read(val, 0).to(procs.device), conditions[val].to(procs.device)

    def evaluate(prior: Prior, step: int) -> tuple[dict, str]:
        prior_picture(prior, tok, shown, out / "samples" / f"step_{step:06d}.png", f"step {step}")
        return evaluate_prior(prior, *held)

    name = data.name if crops == 1 else f"{data.name}, {crops} crops"
    return fit(prior, inputs, evaluate, c, out, name, procs, quiet)
