"""The encoder: a ViT that writes an image into an ordered row of registers (paper, sec. 3.1)."""

import torch
from torch import Tensor, nn

from .config import TokenizerConfig
from .patches import patchify, sincos_positions
from .transformer import Block, init_linears, layer_norm, zero_init


def prefix_mask(num_patches: int, num_registers: int) -> Tensor:
    """Who sees whom, (N, N) bool with N = P + K, row = query: all see the patches, a register also itself and
    the registers before it. So patches never see a register, and register i does not depend on how many follow.

    This is the definition. The model computes the two patterns apart and never builds the mask.
    """
    i = torch.arange(num_patches + num_registers)
    return (i[None, :] < num_patches) | (i[None, :] <= i[:, None])


class Encoder(nn.Module):
    def __init__(self, c: TokenizerConfig):
        super().__init__()
        self.patch_size, self.causal = c.patch_size, c.causal_registers
        self.patch_proj = nn.Linear(c.patch_size**2 * c.in_channels, c.enc_dim)
        self.register_buffer("positions", sincos_positions(c.enc_dim, c.grid), persistent=False)
        self.registers = nn.Parameter(torch.empty(c.num_registers, c.enc_dim))
        self.blocks = nn.ModuleList(
            Block(c.enc_dim, c.head_dim, c.causal_registers) for _ in range(c.enc_depth)
        )
        self.head = nn.Linear(c.enc_dim, len(c.fsq_levels))
        init_linears(self)
        zero_init(self.head)
        nn.init.normal_(
            self.head.weight, std=c.latent_std * c.enc_dim**-0.5
        )  # its input has unit variance
        nn.init.normal_(self.registers, std=c.token_std)

    def forward(self, x: Tensor, num_registers: int | None = None) -> Tensor:
        """x (B, C, H, W) -> latents before FSQ (B, k, F), for the first k = num_registers (default: all K).

        Registers look only back, so the first k need none of the others (unless c.causal_registers is off).
        """
        h, w = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        patches = self.patch_proj(patchify(x, self.patch_size)) + self.positions[:h, :w].flatten(
            0, 1
        )  # (B, P, D)
        needed = num_registers if self.causal else None
        registers = self.registers[:needed].expand(
            len(x), -1, -1
        )  # (B, k, D), no position but their own value
        seq = torch.cat([patches, registers], dim=1)  # (B, P + k, D)
        for block in self.blocks[:-1]:
            seq = block(seq, prefix=h * w)
        seq = self.blocks[-1](
            seq, prefix=h * w, start=h * w
        )  # (B, k, D): the head reads registers alone
        return self.head(layer_norm(seq))[:, :num_registers]
