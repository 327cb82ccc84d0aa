"""Train a VAE (stage 0)."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..config import TrainConfig, VAEConfig
from ..data.datasets import Dataset, to_float
from ..evaluation.figures import image_grid, save
from ..evaluation.metrics import psnr
from ..vae import VAE, kl_divergence
from .batches import hold_out, image_batches
from .loop import Run, fit
from .losses import Distance, VAEObjective, gradient_distance, vgg16_distance
from .runtime import Processes, first_line


def perceptual_distance(config: VAEConfig, procs: Processes) -> tuple[VAEConfig, Distance | None]:
    """What config.perceptual names; where VGG16 cannot be had, `gradients` in its place, which the config then says."""
    distance, problem = (
        {"gradients": gradient_distance}.get(config.perceptual),
        "another process could not",
    )
    if config.perceptual == "vgg16":
        try:
            distance = vgg16_distance(procs.device)
        except Exception as e:  # no connection, no space, a damaged file, ...
            problem = first_line(e)
        if procs.mean(distance is not None) < 1:
            warnings.warn(
                f"VGG16 could not be downloaded ({problem}): trains on perceptual='gradients' instead, which is "
                "no match for it. Put vgg16-397923af.pth into ~/.cache/torch/hub/checkpoints",
                stacklevel=3,
            )
            config, distance = (
                dataclasses.replace(config, perceptual="gradients"),
                gradient_distance,
            )
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
    found = {
        "psnr": torch.cat(psnrs).mean().item(),
        "kl": torch.cat(kls).mean().item(),
        "latent_std": latents.std().item(),
        "channel_std": [round(s, 4) for s in latents.std((0, 2, 3)).tolist()],
    }
    return found, (
        f"PSNR {found['psnr']:.2f} dB  KL {found['kl']:.0f} nats an image  "
        f"std of the latents {found['latent_std']:.3f}"
    )


def train_vae(
    config: VAEConfig,
    recipe: TrainConfig,
    data: Dataset,
    out: str | Path,
    device: str | None = None,
    quiet: bool = False,
) -> VAE:
    """Train a VAE on uint8 images; returns it with averaged weights, and with the scaling_factor that gives latents of
    held-out training images a standard deviation of 1.

    `out` gets what `fit` writes, samples/*.png, and at the end weights for `VAE.from_pretrained(out)`.
    """
    procs, out, c = Processes(device), Path(out), recipe
    data, val = hold_out(data, c)
    if val.shape[1:] != (3, config.image_size, config.image_size):
        raise ValueError(
            f"{data.name} gives {tuple(val.shape[1:])} images, image_size={config.image_size} says otherwise: "
            "load them with this image_size"
        )
    config, distance = perceptual_distance(config, procs)
    torch.manual_seed(c.seed)
    objective = VAEObjective(config, distance)
    if c.compile:
        objective.vae.encoder.compile()
        objective.vae.decoder.compile()
    side = config.image_size // config.downscale

    def inputs(run: Run) -> Iterator[tuple[Tensor, ...]]:
        for x, g in image_batches(data, run):
            on_device = torch.Generator(x.device).manual_seed(
                int(torch.randint(2**62, (), generator=g))
            )
            eps = torch.randn(
                (c.batch_size, config.latent_channels, side, side),
                device=x.device,
                generator=on_device,
            )
            yield x, eps[run.share], torch.full((len(x),), run.progress >= config.adversarial_from)

    def evaluate(objective: VAEObjective, step: int) -> tuple[dict, str]:
        vae, x = objective.vae, to_float(val[:8]).to(procs.device)
        with torch.no_grad():
            rows = {"original": x, "decoded": vae.decode(vae.encode(x))}
        save(image_grid(rows, f"step {step}"), out / "samples" / f"step_{step:06d}.png")
        return evaluate_vae(vae, val)

    vae = fit(objective, inputs, evaluate, c, out, data.name, procs, quiet).vae
    vae.config = dataclasses.replace(
        vae.config, scaling_factor=1 / evaluate_vae(vae, val)[0]["latent_std"]
    )
    if procs.rank == 0:
        vae.save_pretrained(out)
    return vae
