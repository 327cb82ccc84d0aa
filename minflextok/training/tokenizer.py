"""Train a FlexTok (stage 1)."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..config import TokenizerConfig, TrainConfig
from ..data.datasets import Dataset, to_float
from ..evaluation.figures import budget_grid, save
from ..evaluation.metrics import code_usage, health, one_step_psnr
from ..tokenizer import FlexTok
from ..vae import VAE
from ..weights import fingerprint, start_from
from .batches import hold_out, image_batches
from .loop import Run, fit
from .repa import Repa, Teacher, load_teacher
from .runtime import Processes


def nested_prob(progress: float, c: TrainConfig) -> float:
    """Share of the images that get nested dropout: 0 until c.nested_from of the run, 1 from c.nested_full on."""
    if c.nested_from < progress < c.nested_full:
        return (progress - c.nested_from) / (c.nested_full - c.nested_from)
    return float(progress >= c.nested_full)


@torch.no_grad()
def evaluate_tokenizer(tok: FlexTok, images: Tensor) -> tuple[dict, str]:
    """One-step PSNR against k, and how many ids each register uses, on held-out images or latents."""
    ids = torch.cat([tok.encode(x) for x in images.split(256)])
    psnrs = one_step_psnr(tok, images, ids)
    used, perplexity = code_usage(ids, tok.config.vocab_size)
    found = {
        "psnr": {str(k): round(v, 3) for k, v in psnrs.items()},
        "ids_used": used.tolist(),
        "perplexity": [round(p, 2) for p in perplexity.tolist()],
        "says": health(psnrs, perplexity, tok.config.vocab_size),
    }
    curve = "  ".join(f"{k}: {v:.1f}" for k, v in psnrs.items())
    return found, (
        f"one-step PSNR by tokens  {curve} dB  "
        f"ids used per register {used.double().mean():.0f}  {found['says']}"
    )


def tokenizer_picture(
    tok: FlexTok, images: Tensor, vae: VAE | None, path: Path, title: str
) -> None:
    """Reconstructions of images or latents at rising budgets, all from the same noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    ids = tok.encode(images)
    grid = {k: tok.decode(ids[:, :k], steps=10, noise=noise) for k in tok.config.budgets}
    if vae is not None:
        images, grid = vae.decode(images), {k: vae.decode(x) for k, x in grid.items()}
    save(budget_grid(images, grid, title), path)


def train_tokenizer(
    config: TokenizerConfig,
    recipe: TrainConfig,
    data: Dataset,
    out: str | Path,
    device: str | None = None,
    quiet: bool = False,
    vae: VAE | None = None,
    teacher: Teacher | str | None = None,
    cls: type[FlexTok] = FlexTok,
    init: str | None = None,
) -> FlexTok:
    """Train a FlexTok on uint8 images (by way of a frozen VAE, where in_channels != 3); returns it with averaged weights.

    teacher: aligns the decoder with its features of the images (REPA); as for `load_teacher`, or a function. cls: the
    model, FlexTok or a baseline. init: weights to start from, of a model that may differ in its number of registers.
    `out` gets what `fit` writes, samples/*.png, and at the end weights for `FlexTok.from_pretrained(out)`.
    """
    procs, out, c = Processes(device), Path(out), recipe
    data, val = hold_out(data, c)
    size = config.image_size * (vae.config.downscale if vae else 1)
    if config.in_channels != 3 and vae is None:
        raise ValueError(
            f"this model takes latents of {config.in_channels} channels: give --vae, weights of a VAE with "
            f"latent_channels={config.in_channels} (minflextok train vae), or pick a pixel preset"
        )
    if val.shape[-1] != size:
        raise ValueError(
            f"{data.name} gives {tuple(val.shape[1:])} images, this model takes (3, {size}, {size}): "
            "load them with this image_size"
        )
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
            raise ValueError(
                f"repa_block={config.repa_block}: this decoder's blocks are 0 to {config.dec_depth - 1}"
            )
        with torch.no_grad():
            means = [
                teacher(to_float(x).to(procs.device)).float().mean((0, 2, 3)) for x in val.split(64)
            ]
        tok.repa = Repa(config.dec_dim, torch.stack(means).mean(0))
    if vae is not None:
        tok.attach(
            vae.to(procs.device)
        ).vae = None  # checks that the two fit; the loop holds the tokenizer alone
        told += f" through VAE {fingerprint(vae.state_dict())} scaled by {vae.config.scaling_factor:.6g}"
    if c.compile:
        tok.encoder.compile(dynamic=True)
        tok.decoder.compile(dynamic=True)

    autocast = partial(torch.autocast, procs.device.type, torch.bfloat16, enabled=c.bf16)

    def latents(x: Tensor) -> Tensor:
        if vae is None:
            return x
        with torch.no_grad(), autocast():
            return (
                vae.posterior(x)[0] * vae.config.scaling_factor
            ).float()  # vae.encode, whose checks make a GPU wait

    val = torch.cat([latents(to_float(x).to(procs.device)) for x in val.split(64)])

    def inputs(run: Run) -> Iterator[tuple[Tensor, ...]]:
        for x, g in image_batches(data, run):
            with torch.no_grad(), autocast():
                features = () if teacher is None else (teacher(x).float(),)
            x = latents(x)
            draws = run.model.draw(
                x[:1].expand(c.batch_size, -1, -1, -1), nested_prob(run.progress, c), g
            )
            yield x, *(d[run.share] for d in draws), *features

    def evaluate(tok: FlexTok, step: int) -> tuple[dict, str]:
        tokenizer_picture(
            tok, val[:8], vae, out / "samples" / f"step_{step:06d}.png", f"step {step}"
        )
        return evaluate_tokenizer(tok, val)

    tok = fit(tok, inputs, evaluate, c, out, told, procs, quiet)
    tok.repa = None
    if vae is not None:
        tok.attach(vae)
        if procs.rank == 0:
            tok.save_pretrained(out)
    return tok
