"""The losses of the VAE: reconstruction, perceptual distance, KL divergence, adversarial loss.

The objective of Rombach et al. (arXiv 2112.10752, App. G). A perceptual distance and a
discriminator (Esser et al., arXiv 2012.09841, sec. 3.1) counter the blur of reconstructions that
minimize a mean error.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn
from torch.func import functional_call

from ..config import VAEConfig
from ..vae import VAE, kl_divergence

# ---- distances between a reconstruction and its image --------------------------------------------

Distance = Callable[[Tensor, Tensor], Tensor]  # two (B, 3, H, W) in [-1, 1] -> (B,)


def gradient_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighboring pixels, summed over three sizes.

    The sizes are full, half and quarter. It counts errors at edges, and none of a constant offset.
    Two (B, 3, H, W) in [-1, 1] -> (B,).
    """
    difference, total = a - b, 0.0
    for _ in range(3):
        for dim in (2, 3):
            total = total + difference.diff(dim=dim).abs().flatten(1).mean(1)
        difference = F.avg_pool2d(difference, 2)
    return total


def lpips_distance(device: str | torch.device = "cpu") -> Distance:
    """LPIPS (Zhang et al., arXiv 1801.03924) with VGG16, as its authors' package `lpips` computes
    it.

    Downloads VGG16 once (528 MB, to the cache of torch.hub). Raises ImportError without the
    package, and what the download raises.
    """
    from lpips import LPIPS

    cache = Path(torch.hub.get_dir())
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "vgg16.lock"):  # one rank downloads, the others wait
        net = LPIPS(net="vgg", verbose=False)
    net.to(device).requires_grad_(False).eval()
    return lambda a, b: net(a, b).flatten()


# ---- the discriminator ---------------------------------------------------------------------------


class Discriminator(nn.Sequential):
    """PatchGAN (Isola et al., arXiv 1611.07004): images (B, 3, H, W) -> (B, 1, h, w), one logit per
    patch of 70x70 pixels, high for real images.

    Group norm in place of batch norm, so that the logits of an image depend neither on the other
    images nor on their distribution over micro-batches and ranks.
    """

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
    """The loss of the autoencoder, -D(fake), and the hinge loss of the discriminator; two scalars.

    The first is computed with D's weights detached, the second with `fake` detached. So one
    optimizer can minimize their sum: the gradient of each network is that of its own loss, as with
    two optimizers that alternate on the same batch and the same reconstructions. (AdamW updates
    each weight by itself; the two networks share only the learning rate and the norm for gradient
    clipping.)
    """
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    on_fake = functional_call(discriminator, frozen, (fake,)).float()
    hinge_real, hinge_fake = discriminator(torch.cat([real, fake.detach()])).float().chunk(2)
    hinge = (F.relu(1 - hinge_real).mean() + F.relu(1 + hinge_fake).mean()) / 2
    return -on_fake.mean(), hinge


# ---- the objective -------------------------------------------------------------------------------


class VAEObjective(nn.Module):
    """A VAE with its losses. Checkpoints hold the discriminator too; `save_pretrained` writes the
    VAE alone.

    distance: what config.perceptual names. It is a plain function, so neither checkpoints nor
    averaged weights hold its network.
    """

    def __init__(self, config: VAEConfig, distance: Distance | None = None):
        super().__init__()
        self.config, self.distance = config, distance
        self.vae = VAE(config)
        if config.adversarial_weight:
            self.discriminator = Discriminator()

    def forward(self, images: Tensor, eps: Tensor, adversarial: Tensor) -> Tensor:
        """The loss for given draws, a scalar: a mean over images of

            mean |x' - x| + perceptual_weight * distance(x', x) + kl_weight * KL

        plus the adversarial losses, if they are active.

        images (B, 3, H, W) in [-1, 1]; eps (B, latent_channels, h, w), standard normal. adversarial
        (B,) bool on the CPU: whether the adversarial losses are active, the same for all images.

        The error is a mean over values, KL a sum over latents: at the optimum the posterior's noise
        increases the error by about kl_weight times the number of latents per image.
        """
        c = self.config
        mean, logvar = (m.float() for m in self.vae.posterior(images))
        latents = mean + torch.exp(logvar / 2) * eps
        fake = self.vae.decode(latents * c.scaling_factor).float()
        loss = (fake - images).abs().mean() + c.kl_weight * kl_divergence(mean, logvar).mean()
        if self.distance is not None:
            loss = loss + c.perceptual_weight * self.distance(fake, images).mean()
        if c.adversarial_weight:
            if bool(adversarial[0]):
                generator_loss, hinge = adversarial_losses(self.discriminator, images, fake)
                loss = loss + c.adversarial_weight * generator_loss + hinge
            else:  # ranks exchange the gradients of all weights, so all must have one
                loss = loss + 0 * sum(p.sum() for p in self.discriminator.parameters())
        return loss

    def save_pretrained(self, directory: str | Path) -> None:
        self.vae.save_pretrained(directory)
