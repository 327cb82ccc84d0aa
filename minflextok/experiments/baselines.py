"""What FlexTok must be compared with, from the same parts: other training objectives and other places for the tokens.

TiTok (Yu et al., arXiv 2406.07550): a fixed number of 1D tokens, and a decoder that tells the image at once. That is a
`Regressor` that always keeps all K registers; one model for each length. (The published TiTok adds a pretrained VQGAN's
codes, perceptual and adversarial losses; here every system has the plain squared error, so that one thing differs.)

One-D-Piece (Miwa et al., arXiv 2501.10064): TiTok with tail token drop. That is a `Regressor` with nested dropout.

A 2D-grid tokenizer: one token a patch, in raster order. That is a `Grid`.
"""

import torch
from torch import Tensor

from ..config import TokenizerConfig
from ..encoder import Encoder
from ..patches import patchify
from ..tokenizer import FlexTok, Ids
from ..transformer import layer_norm


class Regressor(FlexTok):
    """FlexTok's tokens with a deterministic decoder.

    From the noise 0 at t = 1 the decoder sees x_t = 0 (patches that say only where they stand: mask tokens) and its
    target is -x: the flow's loss is the squared error of the image, and one Euler step gives that image.
    """

    def draw(
        self, x: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        noise, t, keep_k, null = super().draw(x, nested_prob, generator)
        return torch.zeros_like(noise), torch.ones_like(t), keep_k, torch.zeros_like(null)

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
    ) -> Tensor:
        """ids -> images (B, C, H, W); there is nothing to sample, so all sampler settings are ignored."""
        c = self.config
        shape = (
            (len(ids), c.in_channels, c.image_size, c.image_size) if noise is None else noise.shape
        )
        return super().decode(ids, steps=1, noise=torch.zeros(shape), to_images=to_images)


class GridEncoder(Encoder):
    """The same ViT, but token i is read off patch i (row-major); there are no registers in the sequence."""

    def forward(self, x: Tensor, num_registers: int | None = None) -> Tensor:
        """x (B, C, H, W) -> latents before FSQ (B, k, F) of the first k = num_registers patches (default: all P)."""
        P = self.positions.shape[0] * self.positions.shape[1]
        seq = self.patch_proj(patchify(x, self.patch_size)) + self.positions.flatten(
            0, 1
        )  # (B, P, D)
        for block in self.blocks:
            seq = block(seq, prefix=P)
        return self.head(layer_norm(seq))[:, :num_registers]


class Grid(Regressor):
    """A 2D-grid tokenizer: as many tokens as patches. It is trained on all of them, so only all of them make sense."""

    def __init__(self, config: TokenizerConfig):
        if config.num_registers != config.grid**2:
            raise ValueError(
                f"num_registers={config.num_registers}: a grid tokenizer has one a patch, {config.grid**2}"
            )
        super().__init__(config)
        self.encoder = GridEncoder(config)
        self.encoder.registers.requires_grad_(False)  # unused
