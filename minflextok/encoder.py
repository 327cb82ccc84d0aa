"""The encoder: a ViT with register tokens that outputs K latents (FlexTok, encoder).

The registers, K learned vectors, are appended to the patches. A causal mask among them makes register i independent of
all later ones, so the first k latents do not depend on how many follow.
"""

import torch
from torch import Tensor, nn

from .config import TokenizerConfig
from .patches import patchify, sincos_positions
from .transformer import Block, init_linears, layer_norm, zero_init


def prefix_mask(num_patches: int, num_registers: int, causal: bool = True) -> Tensor:
    """The attention mask (N, N) bool of N = P + K positions, row = query, True where it attends to the column.

    Every position attends to all patches. A register also attends to itself and to earlier registers; with
    causal = False, to all registers. Patches never attend to registers.
    """
    i = torch.arange(num_patches + num_registers)
    query, key = i[:, None], i[None, :]
    registers = (query >= num_patches) & (key >= num_patches)
    return (key < num_patches) | (registers & ((key <= query) | (not causal)))


class Encoder(nn.Module):
    """Images or latents (B, C, H, W) -> latents before FSQ (B, K, F)."""

    def __init__(self, c: TokenizerConfig):
        super().__init__()
        self.patch_size, self.causal = c.patch_size, c.causal_registers
        self.patch_proj = nn.Linear(c.patch_size**2 * c.in_channels, c.enc_dim)
        self.register_buffer("positions", sincos_positions(c.enc_dim, c.grid), persistent=False)
        self.registers = nn.Parameter(torch.empty(c.num_registers, c.enc_dim))
        self.blocks = nn.ModuleList(Block(c.enc_dim, c.head_dim) for _ in range(c.enc_depth))
        self.head = nn.Linear(c.enc_dim, len(c.fsq_levels))
        init_linears(self)
        zero_init(self.head)
        # The head's input is layer-normed, so this gives each latent a standard deviation of latent_std.
        nn.init.normal_(self.head.weight, std=c.latent_std * c.enc_dim**-0.5)
        nn.init.normal_(self.registers, std=c.token_std)

    def embed_patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P, D): projected patches plus their positions."""
        h, w = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        return self.patch_proj(patchify(x, self.patch_size)) + self.positions[:h, :w].flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed_patches(x)  # (B, P, D)
        registers = self.registers.expand(len(x), -1, -1)  # (B, K, D)
        P, K = patches.shape[1], registers.shape[1]
        seq = torch.cat([patches, registers], dim=1)  # (B, P + K, D)
        mask = prefix_mask(P, K, self.causal).to(x.device)
        for block in self.blocks:
            seq = block(seq, mask)
        return self.head(layer_norm(seq[:, P:]))  # (B, K, F)
