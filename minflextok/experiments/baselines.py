"""Baselines of FlexTok, from the same parts: another objective, another place for the tokens.

TiTok (Yu et al., arXiv 2406.07550) has a fixed number of 1D tokens and a deterministic decoder: a
`Regressor` trained on all K registers, one model for each length. (The published TiTok adds the
codes of a pretrained VQGAN and perceptual and adversarial losses. Here every system has the plain
squared error, so that systems differ in one thing.)

One-D-Piece (Miwa et al., arXiv 2501.10064) is TiTok with tail token drop: a `Regressor` trained
with nested dropout.

A 2D-grid tokenizer has one token for each patch, in raster order: a `Grid`.
"""

import torch
from torch import Tensor

from ..codec_checks import Ids
from ..config import TokenizerConfig
from ..draws import Draws, draw
from ..encoder import Encoder
from ..patches import embed_patches
from ..tokenizer import FlexTok
from ..training.objective import TokenizerObjective
from ..transformer import layer_norm


def draw_regression(
    config: TokenizerConfig, x: Tensor, nested_prob: float, generator: torch.Generator | None
) -> Draws:
    """The draws with which the flow loss is the squared error of the image: noise 0, t = 1.

    There x_t = 0, and the target noise - x is -x. No image is unconditional.
    """
    noise, t, keep_k, null = draw(config, x, nested_prob, generator)
    return Draws(torch.zeros_like(noise), torch.ones_like(t), keep_k, torch.zeros_like(null))


class RegressionObjective(TokenizerObjective):
    """The training objective of a `Regressor`: the squared error of the image."""

    def draw(
        self, x: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None
    ) -> Draws:
        return draw_regression(self.config, x, nested_prob, generator)


class Regressor(FlexTok):
    """FlexTok's tokens with a deterministic decoder, trained by `RegressionObjective`.

    The decoder sees x_t = 0, patches with nothing but positions (mask tokens). One Euler step from
    the noise 0 at t = 1 gives the image.
    """

    def loss(
        self, images: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """The training objective on images (B, 3, H, W) with fresh draws: a scalar."""
        x = self.to_latents(images)
        draws = draw_regression(self.config, x, nested_prob, generator)
        return self.flow_loss(x, draws.to(x.device))

    def decode(
        self,
        ids: Ids,
        steps: int = 1,
        guidance: float = 1.0,
        apg: bool = False,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        to_images: bool = True,
        batch_size: int | None = None,
    ) -> Tensor:
        """ids -> images (B, C, H, W). Nothing is sampled: sampler settings have no effect."""
        c = self.config
        shape = (len(ids), c.in_channels, c.image_size, c.image_size)
        zero = torch.zeros(shape if noise is None else noise.shape)
        return super().decode(ids, 1, noise=zero, to_images=to_images, batch_size=batch_size)


class GridEncoder(Encoder):
    """A ViT without registers: token i is the output at patch i, in raster order."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> latents before FSQ (B, P, F)."""
        seq = embed_patches(x, self.patch_size, self.patch_proj, self.positions)  # (B, P, D)
        for block in self.blocks:
            seq = block(seq)
        return self.head(layer_norm(seq))


class Grid(Regressor):
    """A 2D-grid tokenizer: as many tokens as patches, trained and decoded with all of them."""

    def __init__(self, config: TokenizerConfig):
        if config.num_registers != config.grid**2:
            raise ValueError(
                f"num_registers={config.num_registers}: a grid tokenizer has one token for each "
                f"patch, {config.grid**2}"
            )
        super().__init__(config)
        self.encoder = GridEncoder(config)
        self.encoder.registers.requires_grad_(False)  # unused

    def _encode_registers(self, x: Tensor, num_registers: int) -> Tensor:
        return self.encoder(x)[:, :num_registers]
