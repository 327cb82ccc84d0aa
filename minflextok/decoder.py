"""The decoder: a Transformer that predicts the velocity of a noised image, given its registers (FlexTok, decoder)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TokenizerConfig
from .nested_dropout import NestedDropout
from .patches import patchify, sincos_positions, unpatchify
from .transformer import AdaLNBlock, init_linears, layer_norm, zero_init


def time_features(t: Tensor, max_timestep: float = 1.0, dim: int = 256) -> Tensor:
    """t (B,) in [0, max_timestep] -> (B, dim): cosines, then sines, of 1000*t at periods from 2*pi to 256*2*pi."""
    n = dim // 2
    scale = 1000 / max_timestep
    frequencies = scale * torch.exp(-math.log(256) / n * torch.arange(n, device=t.device))  # (n,)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Decoder(nn.Module):
    """Noised image (B, C, H, W), timestep and registers (B, K, D) -> velocity (B, C, H, W)."""

    def __init__(self, c: TokenizerConfig):
        super().__init__()
        self.patch_size, self.max_timestep, dim = c.patch_size, c.max_timestep, c.dec_dim
        # Registers: projected codes plus positions; then nested dropout; then the null condition.
        self.code_proj = nn.Linear(len(c.fsq_levels), dim)
        self.register_positions = nn.Parameter(torch.empty(c.num_registers, dim))
        self.nested_dropout = NestedDropout(dim)
        self.null_token = nn.Parameter(torch.empty(dim)) if c.learned_null else None
        # Patches of the noised image, and the timestep.
        self.patch_proj = nn.Linear(c.patch_size**2 * c.in_channels, dim)
        self.register_buffer("positions", sincos_positions(dim, c.grid), persistent=False)
        self.time_mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        parts = 2 if c.separate_adaln else 1
        self.blocks = nn.ModuleList(AdaLNBlock(dim, c.head_dim, parts) for _ in range(c.dec_depth))
        self.head_adaln = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, c.patch_size**2 * c.in_channels)
        init_linears(self)
        zero_init(self.head, self.head_adaln, *(block.adaln for block in self.blocks))
        for token in (self.register_positions, self.nested_dropout.mask_token, self.null_token):
            if token is not None:
                nn.init.normal_(token, std=c.token_std)

    def embed_registers(self, codes: Tensor, keep_k: Tensor, null: Tensor) -> Tensor:
        """codes (B, K, F), keep_k (B,) int, null (B,) bool -> (B, K, D).

        Registers from keep_k on become the mask token; where null is True, all K become the null token.
        """
        registers = self.code_proj(codes.to(self.code_proj.weight.dtype)) + self.register_positions
        registers = self.nested_dropout(registers, keep_k)
        null_token = (
            self.null_token if self.null_token is not None else torch.zeros_like(registers[0, 0])
        )
        return torch.where(null[:, None, None], null_token.to(registers.dtype), registers)

    def embed_patches(self, x_t: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P, D)."""
        h, w = x_t.shape[-2] // self.patch_size, x_t.shape[-1] // self.patch_size
        patches = self.patch_proj(patchify(x_t.to(self.patch_proj.weight.dtype), self.patch_size))
        return patches + self.positions[:h, :w].flatten(0, 1)

    def embed_time(self, t: Tensor) -> Tensor:
        """t (B,) in [0, max_timestep], 1 is noise -> (B, D)."""
        return self.time_mlp(time_features(t, self.max_timestep).to(self.patch_proj.weight.dtype))

    def output(self, patches: Tensor, modulation: Tensor, h: int, w: int) -> Tensor:
        """patches (B, h*w, D) after the last block, head_adaln's output (B, 2D) -> velocity (B, C, H, W)."""
        shift, scale = modulation[:, None].chunk(2, dim=-1)
        out = self.head(layer_norm(patches) * (1 + scale) + shift)  # (B, P, p*p*C)
        return unpatchify(out, self.patch_size, h, w)

    def forward(
        self, x_t: Tensor, t: Tensor, registers: Tensor, hidden: list[Tensor] | None = None
    ) -> Tensor:
        """x_t (B, C, H, W), t (B,) or (1,) for all, registers (B, K, D) from `embed_registers` -> velocity (B, C, H, W).

        hidden: a list to which the patches (B, P, D) after each block are appended (REPA reads one of them).
        """
        h, w = x_t.shape[-2] // self.patch_size, x_t.shape[-1] // self.patch_size
        P = h * w
        seq = torch.cat([self.embed_patches(x_t), registers], dim=1)  # (B, P + K, D)
        time = self.embed_time(t)  # (B, D)
        for block in self.blocks:
            seq = block(seq, block.modulation(time), P)
            if hidden is not None:
                hidden.append(seq[:, :P])
        return self.output(seq[:, :P], self.head_adaln(F.silu(time)), h, w)
