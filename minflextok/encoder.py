"""The encoder: a ViT with register tokens (FlexTok, encoder).

K learned vectors, the registers, are appended to the patches. After the last block, a linear layer
maps each register to F values z, which FSQ quantizes. A causal mask among the registers makes each
independent of all later ones: the first k tokens of an image are the same, however many follow.
"""

import torch
from torch import Tensor, nn

from .config import TokenizerConfig
from .patches import embed_patches, sincos_positions
from .transformer import Block, init_linears, layer_norm


def prefix_mask(num_patches: int, num_registers: int, causal: bool = True) -> Tensor:
    """The attention mask (N, N) bool of N = P + K positions: mask[q, k] is True if position q
    attends to position k.

    Every position attends to all patches. A register also attends to itself and to earlier
    registers (with causal = False, to all registers). Patches do not attend to registers. For P =
    2, K = 3:

        patches    1 1 0 0 0
                   1 1 0 0 0
        registers  1 1 1 0 0
                   1 1 1 1 0
                   1 1 1 1 1
    """
    i = torch.arange(num_patches + num_registers)
    q, k = i[:, None], i[None, :]
    to_registers = (q >= num_patches) & (k <= q) if causal else q >= num_patches
    return (k < num_patches) | to_registers


class Encoder(nn.Module):
    """Images, or latents of a VAE, (B, C, H, W) -> the values of all registers before FSQ, z (B, K,
    F)."""

    def __init__(self, c: TokenizerConfig):
        super().__init__()
        self.patch_size, self.causal = c.patch_size, c.causal_registers
        self.patch_proj = nn.Linear(c.patch_size**2 * c.in_channels, c.enc_dim)
        self.register_buffer("positions", sincos_positions(c.enc_dim, c.grid), persistent=False)
        self.registers = nn.Parameter(torch.empty(c.num_registers, c.enc_dim))
        self.blocks = nn.ModuleList(Block(c.enc_dim, c.head_dim) for _ in range(c.enc_depth))
        self.head = nn.Linear(c.enc_dim, len(c.fsq_levels))
        init_linears(self)
        # The head's input is layer-normed, so each value of z starts with a standard deviation of
        # latent_std.
        nn.init.normal_(self.head.weight, std=c.latent_std * c.enc_dim**-0.5)
        nn.init.normal_(self.registers, std=c.token_std)

    def forward(self, x: Tensor) -> Tensor:
        patches = embed_patches(x, self.patch_size, self.patch_proj, self.positions)  # (B, P, D)
        registers = self.registers.expand(len(x), -1, -1)  # (B, K, D)
        P, K = patches.shape[1], registers.shape[1]
        seq = torch.cat([patches, registers], dim=1)  # (B, P + K, D)
        mask = prefix_mask(P, K, self.causal).to(x.device)
        for block in self.blocks:
            seq = block(seq, mask)
        return self.head(layer_norm(seq[:, P:]))  # (B, K, F)
