"""Train a VAE (stage 0)."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..checks import first_line
from ..config import TrainConfig, VAEConfig
from ..data import Dataset, to_float
from ..evaluation.figures import image_grid
from ..evaluation.metrics import psnr
from ..vae import VAE, kl_divergence
from .batches import check_image_size, describe_data, image_batches, split_validation
from .loop import Task, fit
from .losses import Distance, VAEObjective, gradient_distance, lpips_distance
from .pixel_metric import use_pixel_metric
from .run import Run
from .runtime import Ranks, check_world_size
from .wavelet import begin_as_wavelet


def perceptual_distance(config: VAEConfig, ranks: Ranks) -> tuple[VAEConfig, Distance | None]:
    """The distance that config.perceptual names. If LPIPS cannot be loaded on all ranks,
    `gradients` takes its place, and the returned config says so."""
    if config.perceptual != "lpips":
        return config, gradient_distance if config.perceptual == "gradients" else None
    distance, problem = None, "another rank could not load it"
    try:
        distance = lpips_distance(ranks.device)
    except Exception as e:  # not installed, no connection, no space, a damaged file, ...
        problem = first_line(e)
    if ranks.mean(distance is not None) == 1:
        return config, distance
    warnings.warn(
        f"perceptual='lpips' cannot be used ({problem}): training with 'gradients' instead, which "
        'gives blurrier images. Install the package with pip install "minflextok[lpips]"; offline, '
        "put "
        "vgg16-397923af.pth into ~/.cache/torch/hub/checkpoints",
        stacklevel=4,
    )
    return dataclasses.replace(config, perceptual="gradients"), gradient_distance


@torch.no_grad()
def evaluate_vae(vae: VAE, images: Tensor) -> tuple[dict, str]:
    """PSNR of reconstructions from the mode, KL in nats per image, and the standard deviation of
    the unscaled latents, overall and per channel. images: (n, 3, H, W) uint8."""
    means, kls, psnrs = [], [], []
    for part in images.split(32):
        x = to_float(part).to(vae.quant_conv.weight.device)
        mean, logvar = (m.float() for m in vae.posterior(x))
        means.append(mean.cpu())
        kls.append(kl_divergence(mean, logvar))
        psnrs.append(psnr(vae.decode(mean * vae.config.scaling_factor).clamp(-1, 1), x))
    latents = torch.cat(means)  # (n, C, h, w)
    metrics = {
        "psnr": torch.cat(psnrs).mean().item(),
        "kl": torch.cat(kls).mean().item(),
        "latent_std": latents.std().item(),
        "channel_std": [round(s, 4) for s in latents.std((0, 2, 3)).tolist()],
    }
    return metrics, (
        f"PSNR {metrics['psnr']:.2f} dB  KL {metrics['kl']:.0f} nats per image  "
        f"std of the latents {metrics['latent_std']:.3f}"
    )


class VAETask(Task):
    """A VAE with its losses, on uint8 images of config.image_size."""

    def __init__(self, config: VAEConfig, recipe: TrainConfig, data: Dataset, ranks: Ranks):
        self.ranks, self.sources = ranks, {"data": describe_data(data)}
        self.train, self.val = split_validation(data, recipe)
        check_image_size(data, self.val, config.image_size)
        self.config, distance = perceptual_distance(config, ranks)
        torch.manual_seed(recipe.seed)
        self.model = VAEObjective(self.config, distance)
        if config.wavelet_start:
            begin_as_wavelet(self.model.vae)
        if recipe.compile:
            self.model.vae.encoder.compile()
            self.model.vae.decoder.compile()

    def batches(self, run: Run) -> Iterator[tuple[Tensor, ...]]:
        """Images, the noise of their latents, and whether the adversarial loss is active."""
        c, B = self.config, run.recipe.batch_size
        side = c.image_size // c.downscale
        for x, g in image_batches(self.train, run):
            on_device = torch.Generator(x.device)
            on_device.manual_seed(int(torch.randint(2**62, (), generator=g)))
            eps = torch.randn(
                (B, c.latent_channels, side, side), device=x.device, generator=on_device
            )
            adversarial = torch.full((len(x),), run.progress >= c.adversarial_from)
            yield x, eps[run.share], adversarial

    def evaluate(self, model: VAEObjective) -> tuple[dict, str]:
        return evaluate_vae(model.vae, self.val)

    def picture(self, model: VAEObjective, title: str) -> Figure:
        x = to_float(self.val[:8]).to(self.ranks.device)
        with torch.no_grad():
            reconstructions = model.vae.decode(model.vae.encode(x))
        return image_grid({"original": x, "decoded": reconstructions}, title)


def train_vae(
    config: VAEConfig,
    recipe: TrainConfig,
    data: Dataset,
    out: str | Path,
    device: str | None = None,
    quiet: bool = False,
) -> VAE:
    """Train a VAE on uint8 images; returns it with averaged weights.

    Its scaling_factor gives the latents of the validation images a standard deviation of 1. `out`
    gets what `fit` writes; its weights load with `VAE.from_pretrained(out)`.
    """
    check_world_size(recipe.batch_size)
    task = VAETask(config, recipe, data, Ranks(device))
    vae = fit(task, recipe, out, quiet).vae
    if config.pixel_metric:
        use_pixel_metric(vae, to_float(task.val[:64]).to(task.ranks.device))
    std = evaluate_vae(vae, task.val)[0]["latent_std"]
    vae.config = dataclasses.replace(vae.config, scaling_factor=1 / std)
    if task.ranks.is_main:
        vae.save_pretrained(out)
    return vae
