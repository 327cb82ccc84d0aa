"""Stage 0: the convolutional KL autoencoder whose latents the published FlexToks work on.

Its layout and names are those of diffusers' AutoencoderKL, so published weights load without
renaming. Kingma & Welling (arXiv 1312.6114) for the idea, Rombach et al. (arXiv 2112.10752) for the
network.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from . import checks, published, weights
from .config import VAEConfig

AT_ONCE = 8  # images: at 256x256 the published VAE takes 0.3 GB for each


class ResBlock(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = (
            nn.GroupNorm(groups, cin, eps=1e-6),
            nn.Conv2d(cin, cout, 3, padding=1),
        )
        self.norm2, self.conv2 = (
            nn.GroupNorm(groups, cout, eps=1e-6),
            nn.Conv2d(cout, cout, 3, padding=1),
        )
        if cin != cout:
            self.conv_shortcut = nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class SpatialAttention(nn.Module):
    """One head over all positions."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = rearrange(self.group_norm(x), "b c h w -> b 1 (h w) c")
        h = self.to_out[0](F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h)))
        return x + rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2])


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Resample(nn.Module):
    """Half the size by a strided convolution, or twice the size by repetition and a convolution."""

    def __init__(self, channels: int, up: bool):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        # Right and bottom.
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Residual blocks at one size; then, unless it is the last, to the next size."""

    def __init__(self, cin: int, cout: int, layers: int, groups: int, up: bool, last: bool):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResBlock(cin if i == 0 else cout, cout, groups) for i in range(layers)
        )
        self.name = "upsamplers" if up else "downsamplers"
        setattr(self, self.name, nn.ModuleList([] if last else [Resample(cout, up)]))

    def forward(self, x: Tensor) -> Tensor:
        for module in (*self.resnets, *getattr(self, self.name)):
            x = module(x)
        return x


class VAEEncoder(nn.Module):
    def __init__(self, c: VAEConfig):
        super().__init__()
        w, n = c.widths, len(c.widths)
        self.conv_in = nn.Conv2d(3, w[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(w[max(0, i - 1)], w[i], c.layers, c.groups, up=False, last=i == n - 1)
            for i in range(n)
        )
        self.mid_block = Middle(w[-1], c.groups)
        self.conv_norm_out = nn.GroupNorm(c.groups, w[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(w[-1], 2 * c.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class VAEDecoder(nn.Module):
    def __init__(self, c: VAEConfig):
        super().__init__()
        w, n = c.widths[::-1], len(c.widths)
        self.conv_in = nn.Conv2d(c.latent_channels, w[0], 3, padding=1)
        self.mid_block = Middle(w[0], c.groups)
        self.up_blocks = nn.ModuleList(
            Level(w[max(0, i - 1)], w[i], c.layers + 1, c.groups, up=True, last=i == n - 1)
            for i in range(n)
        )
        self.conv_norm_out = nn.GroupNorm(c.groups, w[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(w[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] <-> scaled latents (B, latent_channels, H / downscale, W /
    downscale)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = checks.check_type(config, VAEConfig, "config")
        self.encoder, self.decoder = VAEEncoder(config), VAEDecoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (clamped to [-30, 20]) of the unscaled latents. The range of images
        is not checked."""
        images = checks.check_shape(images, "images", 3, self.config.downscale)
        images = checks.check_values(images, "images", always=False).to(self.quant_conv.weight)
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def encode(
        self, images: Tensor, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Scaled latents (B, latent_channels, h, w) of images: the mode of the posterior, or a
        sample of it."""
        checks.check_bools(sample=sample)
        checks.check_generator(generator)
        images = checks.check_shape(images, "images", 3, self.config.downscale)
        images = checks.check_range(images.to(self.quant_conv.weight))
        parts = [self.posterior(x) for x in images.split(AT_ONCE)]
        mean, logvar = (torch.cat(x) for x in zip(*parts, strict=True))
        if sample:
            device = generator.device if generator else mean.device
            eps = torch.randn(mean.shape, generator=generator, device=device)
            mean = mean + torch.exp(logvar / 2) * eps.to(mean)
        return mean * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, latent_channels, h, w) -> images (B, 3, H, W), not clamped."""
        latents = checks.check_shape(latents, "latents", self.config.latent_channels, 1)
        latents = checks.check_values(latents, "latents", always=False)
        z = latents.to(self.post_quant_conv.weight) / self.config.scaling_factor
        return torch.cat([self.decoder(self.post_quant_conv(part)) for part in z.split(AT_ONCE)])

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json; each appears whole or not
        at all."""
        path = checks.check_path(directory, "directory")
        weights.save(self, path, checks.check_dtype(dtype, optional=True))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "VAE":
        """Load weights, float32 and in eval mode: a directory written by `save_pretrained` or a
        training run, those of a tokenizer on latents, by directory or shipped name ("imagenet64"),
        or the published ones (diffusers' format), a directory or "EPFL-VILAB/flextok_vae_c16"."""
        directory = weights.find(checks.check_path(name))
        if (directory / "vae").is_dir():  # of a tokenizer
            directory = directory / "vae"
        if not published.is_published(directory):
            return weights.load(cls, VAEConfig, directory)
        return cls.build(published.read_vae(directory))

    @classmethod
    def build(cls, found: published.Published) -> "VAE":
        """The VAE of a published file."""
        return weights.build(cls, found.vae_config, found.vae_tensors, found.file)


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence from the standard normal, summed over channels and positions: (B,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
