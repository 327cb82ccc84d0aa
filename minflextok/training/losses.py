"""What the VAE is trained for: reconstructions that look right, from latents that stay near a standard normal.

The objective of Rombach et al. (arXiv 2112.10752, App. G), in which a perceptual distance and a discriminator
(Esser et al., arXiv 2012.09841, sec. 3.1) make up for the blur that a mean error alone leaves.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import VGG16_Weights, vgg16

from ..config import VAEConfig
from ..vae import VAE, kl_divergence

# ---- how far a reconstruction is from its image ----------------------------------------------------------------------

Distance = Callable[[Tensor, Tensor], Tensor]  # (B, 3, H, W) in [-1, 1], twice -> (B,)


def gradient_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of the steps from pixel to pixel, at full, half and quarter size, summed: edges count twice,
    flat regions do not. (B, 3, H, W) in [-1, 1], twice -> (B,)"""
    difference, total = a - b, 0.0
    for _ in range(3):
        for dim in (2, 3):
            total = total + difference.diff(dim=dim).abs().flatten(1).mean(1)
        difference = F.avg_pool2d(difference, 2)
    return total


def vgg16_distance(device: str | torch.device = "cpu") -> Distance:
    """Squared distance of VGG16's features (ImageNet-1k), unit length at each position, at the ends of its five stages.

    That is LPIPS (Zhang et al., arXiv 1801.03924, eq. 1) with all channels alike: its weights per channel, learned from
    people's judgements, are not used. Downloads 528 MB once, to the cache of torch.hub; raises what that raises.
    """
    cache = Path(torch.hub.get_dir())
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "vgg16.lock"):  # one process downloads, others wait
        tensors = VGG16_Weights.IMAGENET1K_V1.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    with torch.device("meta"):
        net = vgg16().features[:30].requires_grad_(False).eval()
    wanted = {name: tensors[f"features.{name}"] for name in net.state_dict()}
    net.load_state_dict(wanted, assign=True)
    net.to(device).requires_grad_(False)
    mean, std = (
        torch.tensor(v, device=device).view(3, 1, 1)
        for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    def features(x: Tensor) -> list[Tensor]:
        x, found = ((x + 1) / 2 - mean) / std, []
        for i, layer in enumerate(net):
            x = layer(x)
            if i in (3, 8, 15, 22, 29):  # the last ReLU before each pooling
                found.append(F.normalize(x.float(), dim=1))
        return found

    def distance(a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            target = features(b)
        return sum(
            (f - t).square().sum(1).mean((1, 2)) for f, t in zip(features(a), target, strict=True)
        )

    return distance


# ---- the discriminator -----------------------------------------------------------------------------------------------


class Discriminator(nn.Sequential):
    """PatchGAN (Isola et al., arXiv 1611.07004): images (B, 3, H, W) -> (B, 1, h, w), a score for each patch of 70x70
    pixels, high where it looks real. Group norm in place of batch norm, so that an image's score does not depend on
    the others, nor on how they are spread over micro-batches and processes."""

    def __init__(self, width: int = 64):
        layers = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for cin, cout, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [
                nn.Conv2d(cin * width, cout * width, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(32, cout * width),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))


def adversarial_losses(
    discriminator: nn.Module, real: Tensor, fake: Tensor
) -> tuple[Tensor, Tensor]:
    """What the autoencoder and what the discriminator want: -D(fake), and the hinge loss; two scalars.

    The first is computed with D's weights detached, the second with `fake` detached. So their sum may be minimised by
    one optimiser: the autoencoder's gradient is that of its own loss alone, D's that of its own alone, as with two
    optimisers that take turns on one batch and its one set of reconstructions. (Adam treats each weight by itself; what
    the two do share is the learning rate and the norm by which gradients are clipped.)
    """
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    fooled = functional_call(discriminator, frozen, (fake,)).float()
    on_real, on_fake = discriminator(torch.cat([real, fake.detach()])).float().chunk(2)
    return -fooled.mean(), (F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()) / 2


# ---- the objective ---------------------------------------------------------------------------------------------------


class VAEObjective(nn.Module):
    """A VAE with what trains it. Checkpoints hold the discriminator too; `save_pretrained` writes the VAE alone.

    distance: what config.perceptual names. A plain function: neither checkpoint nor averaged weights hold its network.
    """

    def __init__(self, config: VAEConfig, distance: Distance | None = None):
        super().__init__()
        self.config, self.distance = config, distance
        self.vae = VAE(config)
        if config.adversarial_weight:
            self.discriminator = Discriminator()

    def forward(self, images: Tensor, eps: Tensor, adversary: Tensor) -> Tensor:
        """The loss for given draws, a scalar; beside the adversarial terms, a mean over images of

            mean |x' - x| + perceptual_weight * distance(x', x) + kl_weight * KL.

        images (B, 3, H, W) in [-1, 1]; eps (B, latent_channels, h, w), standard normal. adversary (B,), on the CPU: is
        the discriminator in the game yet, the same for all images.

        The error is a mean over values, KL a sum over latents: at the optimum the posterior's noise costs an error of
        about kl_weight times the number of latents of an image.
        """
        c = self.config
        mean, logvar = (m.float() for m in self.vae.posterior(images))
        latents = mean + torch.exp(logvar / 2) * eps
        fake = self.vae.decode(latents * c.scaling_factor).float()
        loss = (fake - images).abs().mean() + c.kl_weight * kl_divergence(mean, logvar).mean()
        if self.distance is not None:
            loss = loss + c.perceptual_weight * self.distance(fake, images).mean()
        if c.adversarial_weight:
            if bool(adversary[0]):
                fool, tell = adversarial_losses(self.discriminator, images, fake)
                loss = loss + c.adversarial_weight * fool + tell
            else:  # processes exchange gradients of all weights, so there must be some
                loss = loss + 0 * sum(p.sum() for p in self.discriminator.parameters())
        return loss

    def save_pretrained(self, directory: str | Path) -> None:
        self.vae.save_pretrained(directory)
