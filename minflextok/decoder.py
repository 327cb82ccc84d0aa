"""The decoder: a Transformer that predicts the velocity noise - x from the state x_t, the timestep
t and the registers of the image x (FlexTok, decoder)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TokenizerConfig
from .nested_dropout import NestedDropout
from .patches import embed_patches, sincos_positions, unpatchify
from .transformer import AdaLNBlock, init_linears, layer_norm


def time_features(t: Tensor, max_timestep: float = 1.0, dim: int = 256) -> Tensor:
    """t (B,) -> (B, dim): cosines, then sines, of f_j * 1000 t / max_timestep at n = dim/2
    frequencies f_j = 256^(-j/n)."""
    n = dim // 2
    frequencies = torch.exp(-math.log(256) / n * torch.arange(n, device=t.device))  # (n,)
    angles = t.float()[:, None] * (1000 / max_timestep * frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Decoder(nn.Module):
    """State x_t (B, C, H, W), timestep t and registers (B, K, D) -> velocity (B, C, H, W)."""

    def __init__(self, c: TokenizerConfig):
        super().__init__()
        self.patch_size, self.max_timestep, dim = c.patch_size, c.max_timestep, c.dec_dim
        # Registers: projected codes plus positions; then nested dropout; then, for null images, the
        # null token.
        self.code_proj = nn.Linear(len(c.fsq_levels), dim)
        self.register_positions = nn.Parameter(torch.empty(c.num_registers, dim))
        self.nested_dropout = NestedDropout(dim)
        self.null_token = nn.Parameter(torch.empty(dim)) if c.learned_null else None
        # Patches of the state, and the timestep.
        self.patch_proj = nn.Linear(c.patch_size**2 * c.in_channels, dim)
        self.register_buffer("positions", sincos_positions(dim, c.grid), persistent=False)
        self.time_mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        parts = 2 if c.separate_adaln else 1
        self.blocks = nn.ModuleList(AdaLNBlock(dim, c.head_dim, parts) for _ in range(c.dec_depth))
        self.head_adaln = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, c.patch_size**2 * c.in_channels)
        init_linears(self)
        for linear in (self.head, self.head_adaln, *(block.adaln for block in self.blocks)):
            # adaLN-Zero: each block starts as the identity, the velocity as 0.
            nn.init.zeros_(linear.weight)
        for token in (self.register_positions, self.nested_dropout.mask_token, self.null_token):
            if token is not None:
                nn.init.normal_(token, std=c.token_std)

    def embed_registers(self, codes: Tensor, keep_k: Tensor, null: Tensor) -> Tensor:
        """codes (B, K, F), keep_k (B,) int, null (B,) bool -> (B, K, D).

        Registers with index >= keep_k become the mask token. Where null is True, all K become the
        null token.
        """
        registers = self.code_proj(codes.to(self.code_proj.weight.dtype)) + self.register_positions
        registers = self.nested_dropout(registers, keep_k)
        null_token = (
            torch.zeros_like(registers[0, 0]) if self.null_token is None else self.null_token
        )
        return torch.where(null[:, None, None], null_token.to(registers.dtype), registers)

    def embed_time(self, t: Tensor) -> Tensor:
        """t (B,), from 0 (image) to 1 (noise) -> (B, D)."""
        return self.time_mlp(time_features(t, self.max_timestep).to(self.patch_proj.weight.dtype))

    def output(self, patches: Tensor, modulation: Tensor, h: int, w: int) -> Tensor:
        """patches (B, h*w, D) after the last block, head_adaln's output (B, 2D) -> velocity (B, C,
        H, W)."""
        shift, scale = modulation[:, None].chunk(2, dim=-1)
        out = self.head(layer_norm(patches) * (1 + scale) + shift)  # (B, P, p*p*C)
        return unpatchify(out, self.patch_size, h, w)

    def forward(
        self, x_t: Tensor, t: Tensor, registers: Tensor, hidden: list | None = None
    ) -> Tensor:
        """x_t (B, C, H, W), t (B,) or (1,) for all, registers (B, K, D) from `embed_registers` ->
        velocity (B, C, H, W).

        hidden: a list to which the patches (B, P, D) after each block are appended; REPA (arXiv
        2410.06940) reads one.
        """
        h, w = x_t.shape[-2] // self.patch_size, x_t.shape[-1] // self.patch_size
        patches = embed_patches(x_t, self.patch_size, self.patch_proj, self.positions)  # (B, P, D)
        seq = torch.cat([patches, registers], dim=1)  # (B, P + K, D)
        time = self.embed_time(t)  # (B, D)
        for block in self.blocks:
            seq = block(seq, block.modulation(time), h * w)
            if hidden is not None:
                hidden.append(seq[:, : h * w])
        return self.output(seq[:, : h * w], self.head_adaln(F.silu(time)), h, w)
