"""What is trained, on what, and how it is judged meanwhile; the loop itself stands in train.py.

Every draw of step s comes from a generator seeded by (seed, s), and every process takes its share of the same draws.
So a resumed run repeats the uninterrupted one exactly, and two processes repeat one.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import PriorConfig, TokenizerConfig, TrainConfig, VAEConfig
from .data import Dataset, Images, Stream, shuffled, to_float
from .figures import budget_grid, image_grid, save
from .ids import extract_ids
from .metrics import code_usage, health, one_step_psnr, psnr
from .prior import Conditions, Prior
from .repa import Repa, Teacher, load_teacher
from .run import Processes, first_line
from .text import words_of
from .tokenizer import FlexTok
from .train import Run, fit, held_out
from .vae import VAE, kl_divergence
from .vae_loss import Distance, VAEObjective, gradient_distance, vgg16_distance
from .weights import fingerprint, start_from


def nested_prob(progress: float, c: TrainConfig) -> float:
    """Share of the images that get nested dropout: 0 until c.nested_from of the run, 1 from c.nested_full on."""
    if c.nested_from < progress < c.nested_full:
        return (progress - c.nested_from) / (c.nested_full - c.nested_from)
    return float(progress >= c.nested_full)


def hold_out(data: Dataset, c: TrainConfig) -> tuple[Dataset, Tensor]:
    """Training images, and the (n, 3, H, W) uint8 that the log is measured on; never the test split."""
    if isinstance(data, Stream):
        warnings.warn("a stream cannot hold images out: PSNR is logged on the first images of its shards", stacklevel=2)
        return data, data.head(c.val_images)
    learn, val = held_out(len(data), c, data.name)
    return data.select(learn), data.at(val)


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


# ---- stage 0: the VAE ------------------------------------------------------------------------------------------------

def perceptual_distance(config: VAEConfig, procs: Processes) -> tuple[VAEConfig, Distance | None]:
    """What config.perceptual names; where VGG16 cannot be had, `gradients` in its place, which the config then says."""
    distance, problem = {"gradients": gradient_distance}.get(config.perceptual), "another process could not"
    if config.perceptual == "vgg16":
        try:
            distance = vgg16_distance(procs.device)
        except Exception as e:  # no connection, no space, a damaged file, ...
            problem = first_line(e)
        if procs.mean(distance is not None) < 1:
            warnings.warn(f"VGG16 could not be downloaded ({problem}): trains on perceptual='gradients' instead, which is "
                          "no match for it. Put vgg16-397923af.pth into ~/.cache/torch/hub/checkpoints", stacklevel=3)
            config, distance = dataclasses.replace(config, perceptual="gradients"), gradient_distance
    return config, distance


@torch.no_grad()
def evaluate_vae(vae: VAE, images: Tensor) -> tuple[dict, str]:
    """PSNR of reconstructions from the mode, KL in nats an image, and the unscaled latents' std, over all and by channel.
    images (n, 3, H, W) uint8."""
    means, kls, psnrs = [], [], []
    for part in images.split(32):
        x = to_float(part).to(vae.quant_conv.weight.device)
        mean, logvar = (m.float() for m in vae.posterior(x))
        means.append(mean.cpu())
        kls.append(kl_divergence(mean, logvar))
        psnrs.append(psnr(vae.decode(mean * vae.config.scaling_factor).clamp(-1, 1), x))
    latents = torch.cat(means)  # (n, C, h, w)
    found = {"psnr": torch.cat(psnrs).mean().item(), "kl": torch.cat(kls).mean().item(), "latent_std": latents.std().item(),
             "channel_std": [round(s, 4) for s in latents.std((0, 2, 3)).tolist()]}
    return found, (f"PSNR {found['psnr']:.2f} dB  KL {found['kl']:.0f} nats an image  "
                   f"std of the latents {found['latent_std']:.3f}")


def train_vae(config: VAEConfig, recipe: TrainConfig, data: Dataset, out: str | Path, device: str | None = None,
              quiet: bool = False) -> VAE:
    """Train a VAE on uint8 images; returns it with averaged weights, and with the scaling_factor that gives latents of
    held-out training images a standard deviation of 1.

    `out` gets what `fit` writes, samples/*.png, and at the end weights for `VAE.from_pretrained(out)`.
    """
    procs, out, c = Processes(device), Path(out), recipe
    data, val = hold_out(data, c)
    if val.shape[1:] != (3, config.image_size, config.image_size):
        raise ValueError(f"{data.name} gives {tuple(val.shape[1:])} images, image_size={config.image_size} says otherwise: "
                         "load them with this image_size")
    config, distance = perceptual_distance(config, procs)
    torch.manual_seed(c.seed)
    objective = VAEObjective(config, distance)
    if c.compile:
        objective.vae.encoder.compile()
        objective.vae.decoder.compile()
    side = config.image_size // config.downscale

    def inputs(run: Run) -> Iterator[tuple[Tensor, ...]]:
        for x, g in image_batches(data, run):
            on_device = torch.Generator(x.device).manual_seed(int(torch.randint(2**62, (), generator=g)))
            eps = torch.randn((c.batch_size, config.latent_channels, side, side), device=x.device, generator=on_device)
            yield x, eps[run.share], torch.full((len(x),), run.progress >= config.adversarial_from)

    def evaluate(objective: VAEObjective, step: int) -> tuple[dict, str]:
        vae, x = objective.vae, to_float(val[:8]).to(procs.device)
        with torch.no_grad():
            rows = {"original": x, "decoded": vae.decode(vae.encode(x))}
        save(image_grid(rows, f"step {step}"), out / "samples" / f"step_{step:06d}.png")
        return evaluate_vae(vae, val)

    vae = fit(objective, inputs, evaluate, c, out, data.name, procs, quiet).vae
    vae.config = dataclasses.replace(vae.config, scaling_factor=1 / evaluate_vae(vae, val)[0]["latent_std"])
    if procs.rank == 0:
        vae.save_pretrained(out)
    return vae


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
                    quiet: bool = False, vae: VAE | None = None, teacher: Teacher | str | None = None,
                    cls: type[FlexTok] = FlexTok, init: str | None = None) -> FlexTok:
    """Train a FlexTok on uint8 images (by way of a frozen VAE, where in_channels != 3); returns it with averaged weights.

    teacher: aligns the decoder with its features of the images (REPA); as for `load_teacher`, or a function. cls: the
    model, FlexTok or a baseline. init: weights to start from, of a model that may differ in its number of registers.
    `out` gets what `fit` writes, samples/*.png, and at the end weights for `FlexTok.from_pretrained(out)`.
    """
    procs, out, c = Processes(device), Path(out), recipe
    data, val = hold_out(data, c)
    size = config.image_size * (vae.config.downscale if vae else 1)
    if config.in_channels != 3 and vae is None:
        raise ValueError(f"this model takes latents of {config.in_channels} channels: give --vae, weights of a VAE with "
                         f"latent_channels={config.in_channels} (minflextok train vae), or pick a pixel preset")
    if val.shape[-1] != size:
        raise ValueError(f"{data.name} gives {tuple(val.shape[1:])} images, this model takes (3, {size}, {size}): "
                         "load them with this image_size")
    torch.manual_seed(c.seed)
    tok = cls(config)
    told = data.name  # what a resumed run must have in common, beside the configs
    if init is not None:
        start_from(tok, cls.from_pretrained(init), init)
        told += f" from {init} {tok.fingerprint()}"
    if teacher is not None:
        told += f" with REPA by {teacher if isinstance(teacher, str) else 'a function'}"
        teacher = load_teacher(teacher, procs.device) if isinstance(teacher, str) else teacher
        if config.repa_block >= config.dec_depth:
            raise ValueError(f"repa_block={config.repa_block}: this decoder's blocks are 0 to {config.dec_depth - 1}")
        with torch.no_grad():
            means = [teacher(to_float(x).to(procs.device)).float().mean((0, 2, 3)) for x in val.split(64)]
        tok.repa = Repa(config.dec_dim, torch.stack(means).mean(0))
    if vae is not None:
        tok.attach(vae.to(procs.device)).vae = None  # checks that the two fit; the loop holds the tokenizer alone
        told += f" through VAE {fingerprint(vae.state_dict())} scaled by {vae.config.scaling_factor:.6g}"
    if c.compile:
        tok.encoder.compile(dynamic=True)
        tok.decoder.compile(dynamic=True)

    autocast = partial(torch.autocast, procs.device.type, torch.bfloat16, enabled=c.bf16)

    def latents(x: Tensor) -> Tensor:
        if vae is None:
            return x
        with torch.no_grad(), autocast():
            return (vae.posterior(x)[0] * vae.config.scaling_factor).float()  # vae.encode, whose checks make a GPU wait

    val = torch.cat([latents(to_float(x).to(procs.device)) for x in val.split(64)])

    def inputs(run: Run) -> Iterator[tuple[Tensor, ...]]:
        for x, g in image_batches(data, run):
            with torch.no_grad(), autocast():
                features = () if teacher is None else (teacher(x).float(),)
            x = latents(x)
            draws = run.model.draw(x[:1].expand(c.batch_size, -1, -1, -1), nested_prob(run.progress, c), g)
            yield x, *(d[run.share] for d in draws), *features

    def evaluate(tok: FlexTok, step: int) -> tuple[dict, str]:
        tokenizer_picture(tok, val[:8], vae, out / "samples" / f"step_{step:06d}.png", f"step {step}")
        return evaluate_tokenizer(tok, val)

    tok = fit(tok, inputs, evaluate, c, out, told, procs, quiet)
    tok.repa = None
    if vae is not None:
        tok.attach(vae)
        if procs.rank == 0:
            tok.save_pretrained(out)
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
    procs, out, c = Processes(device), Path(out), recipe
    captions = getattr(data, "captions", None)
    if config.text and c.flip and any(re.search(r"\b(left|right)\b", caption) for caption in captions or []):
        raise ValueError(f"captions of {data.name} say left and right, which flip=True would make wrong: give --no-flip")
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
