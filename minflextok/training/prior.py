"""Train a prior (stage 2)."""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..config import PriorConfig, TrainConfig
from ..data import Dataset, Folder, Stream, in_order, shuffled, validation_split
from ..data.waiting import each
from ..evaluation.figures import budget_grid
from ..prior import Prior
from ..text import words_of
from ..tokenizer import FlexTok
from .batches import describe_data
from .lock import only_run
from .loop import Task, fit
from .mup import check_base_width, initialize
from .parallel import building, compile_blocks
from .record import compare, describe_run, read_record
from .run import Run
from .runtime import Ranks, check_world_size
from .token_cache import extract_ids


def prior_config(
    config: PriorConfig, tok: FlexTok, data: Dataset, labels: Tensor | None
) -> PriorConfig:
    """The config with the ids of the tokenizer, and the classes or words of the data."""
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
                f"{data.name} has no captions, which a prior with text={c.text!r} needs: give "
                "captioned data (shapes), or a preset that is conditioned on classes"
            )
        return dataclasses.replace(c, words=words_of(captions)) if c.text == "words" else c
    if labels is None:
        raise ValueError(
            f"{data.name} has no labels: put the images of each class into a folder; in shards, "
            "give each image a .cls file of its name with the class number; or give captioned data "
            "and a preset that is conditioned on text"
        )
    classes = len(data.classes) or int(labels.max()) + 1
    return dataclasses.replace(c, num_classes=classes, class_names=tuple(data.classes))


@torch.no_grad()
def evaluate_prior(prior: Prior, ids: Tensor, conditions: Tensor) -> tuple[dict, str]:
    """Bits per token of validation ids (n, K), conditional (by position) and unconditional."""

    def bits(unconditional: bool) -> Tensor:
        """Mean bits by position, (K,)."""
        null = torch.full((64,), unconditional, device=ids.device)
        losses = [
            prior.token_losses(i, c, null[: len(i)])
            for i, c in zip(ids.split(64), conditions.split(64), strict=True)
        ]
        return torch.cat(losses).double().mean(0) / math.log(2)

    conditional, unconditional = bits(False), bits(True).mean().item()
    metrics = {
        "bits": round(conditional.mean().item(), 4),
        "bits_by_position": [round(b, 4) for b in conditional.tolist()],
        "bits_without_condition": round(unconditional, 4),
    }
    curve = "  ".join(f"{k}: {conditional[k - 1]:.2f}" for k in prior.config.budgets)
    return metrics, (
        f"validation bits per token {conditional.mean():.3f} of "
        f"{math.log2(prior.config.vocab_size):.1f} (unconditional {unconditional:.3f})  "
        f"by position  {curve}"
    )


class PriorTask(Task):
    """A Prior on the ids of a tokenizer, of all views of the images that recipe.flip and `crops`
    ask for.

    The ids are computed once, see `token_cache.views` and `extract_ids`.
    """

    def __init__(
        self,
        config: PriorConfig,
        recipe: TrainConfig,
        tok: FlexTok,
        data: Dataset,
        ranks: Ranks,
        crops: int = 1,
        cache: str | Path | None = None,
        quiet: bool = False,
    ):
        if recipe.mup_base_width:
            check_base_width(config, recipe.mup_base_width)
        captions = getattr(data, "captions", None)
        if config.text and recipe.flip:
            check_captions(data.name, captions or [])
        # Its errors come before ids are extracted.
        prior_config(config, tok, data, known_labels(data, recipe.reader_minutes))
        self.ranks, self.tok = ranks, tok.requires_grad_(False).eval().to(ranks.device)
        self.ids, labels = extract_ids(  # (N, V, K) on disk
            self.tok,
            data,
            recipe.flip,
            crops,
            cache,
            quiet or not ranks.is_main,
            reader_minutes=recipe.reader_minutes,
        )
        self.sources = describe_sources(data, tok, crops, len(self.ids))
        self.train, val = validation_split(len(self.ids), recipe, data.name)
        stored = f"image {{}} of {data.name}".format  # its place in stored order
        self.name_of = data.name_of if isinstance(data, Folder) else stored
        torch.manual_seed(recipe.seed)
        config = prior_config(config, tok, data, labels)
        with building(recipe, ranks):
            self.model = initialize(Prior(config), recipe.mup_base_width)
        conditions = self.model.tokenize(captions if config.text else labels)
        self.conditions = conditions  # (N,) or (N, L)
        self.val = self.read(val, 0).to(ranks.device), conditions[val].to(ranks.device)
        self.shown = [captions[i] for i in val[:8].tolist()] if config.text else labels[val[:8]]
        if recipe.compile:
            compile_blocks(self.model)

    def read(self, rows: Tensor, view: Tensor | int) -> Tensor:
        """The ids of one view of each of these images: (n,) -> (n, K) int64."""
        return torch.from_numpy(self.ids[rows.numpy(), np.asarray(view)].astype(np.int64))

    def batches(self, run: Run) -> Iterator[tuple[Tensor, ...]]:
        """Ids of a random view of each image, their conditions, and the draws of the prior."""
        c, num_views = run.recipe, self.ids.shape[1]
        for i in shuffled(len(self.train), c.batch_size, c.seed, run.step):
            g, rows = run.generator(), self.train[i]
            ids = self.read(rows, torch.randint(num_views, (c.batch_size,), generator=g))
            batch = ids, self.conditions[rows], *self.model.draw(c.batch_size, g)
            yield tuple(x[run.share].to(run.device, non_blocking=True) for x in batch)

    def images(self, recipe: TrainConfig, step: int) -> list[str] | list[int]:
        i = next(shuffled(len(self.train), recipe.batch_size, recipe.seed, step))
        return [*map(self.name_of, self.train[i].tolist())]

    def evaluate(self, model: Prior) -> tuple[dict, str]:
        return evaluate_prior(model, *self.val)

    def picture(self, model: Prior, title: str) -> Figure:
        """Samples for 8 validation conditions, decoded from more and more tokens, from equal
        noise."""
        c, g = self.tok.config, torch.Generator().manual_seed(0)
        ids = model.generate(self.shown, generator=g)
        noise = torch.randn(len(ids), c.in_channels, c.image_size, c.image_size, generator=g)
        grid = {k: self.tok.decode(ids[:, :k], steps=10, noise=noise) for k in c.budgets}
        return budget_grid(None, grid, title)


def known_labels(data: Dataset, reader_minutes: float) -> Tensor | None:
    """The labels of a data set, as far as they are known before its images are read: of a stream,
    that of its first image."""
    if isinstance(data, Stream):
        first = each(in_order(data, 1, 1), data, reader_minutes)
        return next(first, (None, None))[1]
    return data.labels


def describe_sources(data: Dataset, tok: FlexTok, crops: int, images: int | None) -> dict:
    """What a prior is trained on, for run.json."""
    described = describe_data(data, conditions=True) | {"images": images, "crops": crops}
    return {"data": described, "tokenizer": {"fingerprint": tok.fingerprint()}}


def check_resumes(
    config: PriorConfig, recipe: TrainConfig, tok: FlexTok, data: Dataset, out: Path, crops: int
) -> None:
    """Raises ValueError if `out` has a checkpoint of another run. Compares what is known before the
    ids are extracted: of a stream, neither the number of images nor that of classes."""
    if not any((out / "checkpoints").glob("step_*")):
        return
    stored = read_record(out / "run.json", out)
    images = stored["data"].get("images") if isinstance(data, Stream) else len(data)
    record = describe_run(
        prior_config(config, tok, data, known_labels(data, recipe.reader_minutes)),
        recipe,
        describe_sources(data, tok, crops, images),
    )
    if isinstance(data, Stream):
        record["model"]["num_classes"] = stored["model"].get("num_classes")
    compare(stored, record, out)


def check_captions(name: str, captions: list[str]) -> None:
    """Raises ValueError if captions would be wrong for mirrored images."""
    if any(re.search(r"\b(left|right)\b", caption) for caption in captions):
        raise ValueError(
            f"captions of {name} contain left or right, which flip=True would make wrong: "
            "give flip=False"
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
    """Train a Prior on the ids of the images of `data`; returns it with averaged weights.

    The ids are those of `tok`, kept in the directory `cache`; vocabulary, classes and words of
    `config` are set to those of tokenizer and data. crops: 1, or 5 to train on shifted images too.
    `out` gets what `fit` writes; its weights load with `Prior.from_pretrained(out)`.
    """
    check_world_size(recipe.batch_size)
    ranks = Ranks(device)
    with ranks.together():
        if ranks.is_main:
            with only_run(Path(out)):  # a directory in use, or of another run, costs no extraction
                check_resumes(config, recipe, tok, data, Path(out), crops)
    task = PriorTask(config, recipe, tok, data, ranks, crops, cache, quiet)
    return fit(task, recipe, out, quiet)
