"""What is trained, on what, and how it is judged meanwhile; the loop itself stands in train.py.

Every draw of step s comes from a generator seeded by (seed, s), and every process takes its share of the same draws.
So a resumed run repeats the uninterrupted one exactly, and two processes repeat one.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import PriorConfig, TokenizerConfig, TrainConfig
from .data import Dataset, Images, Stream, shuffled, to_float
from .figures import budget_grid, save
from .ids import extract_ids
from .metrics import code_usage, health, one_step_psnr
from .prior import Conditions, Prior
from .run import Processes
from .text import words_of
from .tokenizer import FlexTok
from .train import Run, fit
from .vae import VAE


def nested_prob(progress: float, c: TrainConfig) -> float:
    """Share of the images that get nested dropout: 0 until c.nested_from of the run, 1 from c.nested_full on."""
    if progress >= c.nested_full:
        return 1.0
    return max(0.0, (progress - c.nested_from) / (c.nested_full - c.nested_from))


def hold_out(data: Dataset, c: TrainConfig) -> tuple[Dataset, Tensor]:
    """Training images, and the (n, 3, H, W) uint8 that the log is measured on; never the test split."""
    if isinstance(data, Stream):
        warnings.warn("a stream cannot hold images out: PSNR is logged on the first images of its shards", stacklevel=2)
        return data, data.head(c.val_images)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(c.seed))
    n = min(c.val_images, len(data) // 10)
    if n == 0:
        raise ValueError(f"{data.name} has {len(data)} images: training wants at least 10")
    return data.select(order[n:]), data.at(order[:n])


def image_batches(data: Dataset, run: Run) -> Iterator[tuple[Tensor, torch.Generator]]:
    """From run.step on: this process's share of a batch, (B / world, 3, H, W) in [-1, 1] on run.device, half of the
    images mirrored where c.flip says so, and the generator of all further draws of that step."""
    c = run.c
    if isinstance(data, Images):
        data.images = data.images.to(run.device)  # small sets are batched on the device
    for batch in data.batches(c.batch_size, c.seed, run.step, run.procs.rank, run.procs.world):
        x, g = to_float(batch.to(run.device, non_blocking=True)), run.generator()
        if c.flip:
            mirrored = (torch.rand(c.batch_size, generator=g) < 0.5)[run.share].to(run.device, non_blocking=True)
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
        yield x, g


# ---- stage 1: the tokenizer ------------------------------------------------------------------------------------------

@torch.no_grad()
def evaluate_tokenizer(tok: FlexTok, images: Tensor) -> tuple[dict, str]:
    """One-step PSNR against k, and how many ids each register uses, on held-out images or latents."""
    ids = torch.cat([tok.encode(x) for x in images.split(256)])
    psnrs = one_step_psnr(tok, images, ids)
    used, perplexity = code_usage(ids, tok.config.vocab_size)
    found = {"psnr": {str(k): round(v, 3) for k, v in psnrs.items()}, "ids_used": used.tolist(),
             "perplexity": [round(p, 2) for p in perplexity.tolist()],
             "says": health(psnrs, perplexity, tok.config.vocab_size)}
    curve = "  ".join(f"{k}: {v:.1f}" for k, v in psnrs.items())
    return found, (f"one-step PSNR by tokens  {curve} dB  "
                   f"ids used per register {used.double().mean():.0f}  {found['says']}")


def tokenizer_picture(tok: FlexTok, images: Tensor, vae: VAE | None, path: Path, title: str) -> None:
    """Reconstructions of images or latents at rising budgets, all from the same noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    ids = tok.encode(images)
    grid = {k: tok.decode(ids[:, :k], steps=10, noise=noise) for k in tok.config.budgets}
    if vae is not None:
        images, grid = vae.decode(images), {k: vae.decode(x) for k, x in grid.items()}
    save(budget_grid(images, grid, title), path)


def train_tokenizer(config: TokenizerConfig, recipe: TrainConfig, data: Dataset, out: str | Path, device: str | None = None,
                    quiet: bool = False, vae: VAE | None = None) -> FlexTok:
    """Train a FlexTok on uint8 images (by way of a frozen VAE, where in_channels != 3); returns it with averaged weights.

    `out` gets what `fit` writes, samples/*.png, and at the end weights for `FlexTok.from_pretrained(out)`.
    """
    procs, out, c = Processes(device or ("cuda" if torch.cuda.is_available() else "cpu")), Path(out), recipe
    data, val = hold_out(data, c)
    size = config.image_size * (vae.config.downscale if vae else 1)
    if config.in_channels != 3 and vae is None:
        raise ValueError(f"this model takes latents of {config.in_channels} channels: give --vae, weights of a VAE with "
                         f"latent_channels={config.in_channels} (minflextok train vae), or pick a pixel preset")
    if val.shape[-1] != size:
        raise ValueError(f"{data.name} gives {tuple(val.shape[1:])} images, this model takes (3, {size}, {size}): "
                         "load them with this image_size")
    torch.manual_seed(c.seed)
    tok = FlexTok(config)
    if vae is not None:
        tok.attach(vae.to(procs.device)).vae = None  # checks that the two fit; the loop holds the tokenizer alone
    if c.compile:
        tok.encoder.compile(dynamic=True)
        tok.decoder.compile(dynamic=True)

    def latents(x: Tensor) -> Tensor:
        if vae is None:
            return x
        with torch.no_grad(), torch.autocast(procs.device.type, torch.bfloat16, enabled=c.bf16):
            return vae.encode(x).float()

    val = torch.cat([latents(to_float(x).to(procs.device)) for x in val.split(64)])

    def inputs(run: Run) -> Iterator[tuple[Tensor, ...]]:
        for x, g in image_batches(data, run):
            x = latents(x)
            draws = run.model.draw(x[:1].expand(c.batch_size, -1, -1, -1), nested_prob(run.progress, c), g)
            yield x, *(d[run.share] for d in draws)

    def evaluate(tok: FlexTok, step: int) -> tuple[dict, str]:
        tokenizer_picture(tok, val[:8], vae, out / "samples" / f"step_{step:06d}.png", f"step {step}")
        return evaluate_tokenizer(tok, val)

    tok = fit(tok, inputs, evaluate, c, out, data.name, procs, quiet)
    if vae is not None and procs.rank == 0:
        tok.attach(vae).save_pretrained(out)
    return tok


# ---- stage 2: the prior ----------------------------------------------------------------------------------------------

def prior_config(config: PriorConfig, tok: FlexTok, data: Dataset, labels: Tensor | None) -> PriorConfig:
    """The config with what the tokenizer and the data decide: ids, classes or words."""
    c = dataclasses.replace(config, vocab_size=tok.config.vocab_size, num_tokens=tok.config.num_registers,
                            tokenizer=tok.fingerprint())
    if c.text:
        captions = getattr(data, "captions", None)
        if not captions:
            raise ValueError(f"{data.name} has no captions: a prior with text={c.text!r} cannot learn from it; take "
                             "captioned data (shapes), or a preset that takes classes")
        return dataclasses.replace(c, words=words_of(captions)) if c.text == "words" else c
    if labels is None:
        raise ValueError(f"{data.name} has no labels: put its images into a folder a class, or take captioned data and "
                         "a preset that takes text")
    n = len(data.classes) or int(labels.max()) + 1
    return dataclasses.replace(c, num_classes=n, class_names=tuple(data.classes))


@torch.no_grad()
def evaluate_prior(prior: Prior, ids: Tensor, conditions: Tensor) -> tuple[dict, str]:
    """Bits per token of held-out ids (n, K), by position, with their condition and without."""
    def bits(hidden: bool) -> Tensor:
        parts = zip(ids.split(64), conditions.split(64), strict=True)
        null = torch.full((64,), hidden, device=ids.device)
        return torch.cat([prior.token_losses(i, c, null[: len(i)]) for i, c in parts]).double().mean(0) / math.log(2)

    told, untold = bits(False), bits(True).mean().item()
    found = {"bits": round(told.mean().item(), 4), "bits_by_position": [round(b, 4) for b in told.tolist()],
             "bits_without_condition": round(untold, 4)}
    curve = "  ".join(f"{k}: {told[k - 1]:.2f}" for k in prior.config.budgets)
    return found, (f"held-out bits a token {told.mean():.3f} of {math.log2(prior.config.vocab_size):.1f} "
                   f"(without condition {untold:.3f})  by position  {curve}")


def prior_picture(prior: Prior, tok: FlexTok, labels: Conditions, path: Path, title: str) -> None:
    """A sample for each class or caption, decoded at rising budgets from the same noise."""
    g = torch.Generator().manual_seed(0)
    ids = prior.generate(labels, generator=g)
    side = tok.config.image_size
    noise = torch.randn(len(ids), tok.config.in_channels, side, side, generator=g)
    save(budget_grid(None, {k: tok.decode(ids[:, :k], steps=10, noise=noise) for k in tok.config.budgets}, title), path)


def train_prior(config: PriorConfig, recipe: TrainConfig, tok: FlexTok, data: Dataset, out: str | Path,
                device: str | None = None, quiet: bool = False, crops: int = 1, cache: str | Path | None = None) -> Prior:
    """Train a Prior on the ids that `tok` gives the images of `data`; returns it with averaged weights.

    What tokenizer and data decide is set in `config`, whatever it says: the ids, the classes or the words. Ids are of
    all views that recipe.flip and `crops` ask for (see `ids.views`), kept in `cache`. `out` gets what `fit` writes,
    samples/*.png, and at the end weights for `Prior.from_pretrained(out)`.
    """
    procs, out, c = Processes(device or ("cuda" if torch.cuda.is_available() else "cpu")), Path(out), recipe
    captions = getattr(data, "captions", None)
    if config.text and c.flip and any(re.search(r"\b(left|right)\b", caption) for caption in captions or []):
        raise ValueError(f"captions of {data.name} say left and right, which flip=True would make wrong: give --no-flip")
    tok = tok.requires_grad_(False).eval().to(procs.device)
    ids, labels = extract_ids(tok, data, c.flip, crops, cache, quiet or procs.rank > 0)  # (N, V, K)
    N, V, _ = ids.shape
    order = torch.randperm(N, generator=torch.Generator().manual_seed(c.seed))
    n = min(c.val_images, N // 10)
    if n == 0:
        raise ValueError(f"{data.name} has {N} images: training wants at least 10")
    val, learn = order[:n], order[n:]
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
