"""The decoder: a Transformer that tells, for a noised image and some registers, the velocity (paper, sec. 3.2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TokenizerConfig
from .nested_dropout import NestedDropout
from .patches import patchify, sincos_positions, unpatchify
from .transformer import AdaLNBlock, init_linears, layer_norm, zero_init


def time_features(t: Tensor, max_timestep: float = 1.0, dim: int = 256) -> Tensor:
    """t (B,) in [0, max_timestep] -> (B, dim): cosines then sines at periods from 2*pi to 256*2*pi of 1000*t."""
    n = dim // 2
    freqs = (
        1000 / max_timestep * torch.exp(-math.log(256) / n * torch.arange(n, device=t.device))
    )  # (n,)
    angles = t.float()[:, None] * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Decoder(nn.Module):
    def __init__(self, c: TokenizerConfig):
        super().__init__()
        self.patch_size, self.max_timestep, dim = c.patch_size, c.max_timestep, c.dec_dim
        # Registers: codes -> D, plus a position; then nested dropout, then the null condition.
        self.code_proj = nn.Linear(len(c.fsq_levels), dim)
        self.register_positions = nn.Parameter(torch.empty(c.num_registers, dim))
        self.nested_dropout = NestedDropout(dim)
        self.null_token = nn.Parameter(torch.empty(dim)) if c.learned_null else None
        # Patches of the noised image.
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
        """codes (B, m, F), keep_k (B,) int, null (B,) bool -> (B, m, D), and one more register if m < K.

        That one stands for all K - m registers that no image of the batch keeps: they are the same vector.
        """
        m, K = codes.shape[1], len(self.register_positions)
        registers = (
            self.code_proj(codes.to(self.code_proj.weight.dtype)) + self.register_positions[:m]
        )
        registers = self.nested_dropout(F.pad(registers, (0, 0, 0, int(m < K))), keep_k)
        null_token = (
            torch.zeros_like(registers[0, 0]) if self.null_token is None else self.null_token
        )
        return torch.where(null[:, None, None], null_token.to(registers.dtype), registers)

    def modulations(self, t: Tensor) -> list[Tensor]:
        """What the timestep says to each block and to the head, for t (B,), or (1,) where all images share it.

        These matrices are half of the decoder's weights, so a sampler asks once a step, not once a call or an image.
        """
        temb = self.time_mlp(
            time_features(t, self.max_timestep).to(self.patch_proj.weight.dtype)
        )  # (B or 1, D)
        return [*(block.modulation(temb) for block in self.blocks), self.head_adaln(F.silu(temb))]

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | list[Tensor],
        codes: Tensor,
        keep_k: Tensor,
        null: Tensor,
        tap: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The velocity (B, C, H, W) at x_t (B, C, H, W), t (B,) or (1,) with 1 = noise, or the `modulations` of t.

        codes (B, m, F) FSQ values, of which image b shows its first keep_k[b] <= m; null (B,) bool hides all of them.
        tap = i: also the hidden patches (B, P, D) after block i.

        Registers that are dropped (or hidden) are equal at the start and nothing later tells them apart, so they stay
        equal through all layers. K - m of them are carried as ONE, whose attention logit as a key gets log(K - m):
        exp(l + log n) = n exp(l). The result is that of all K, for the cost of P + m + 1 positions.
        """
        h, w = x_t.shape[-2] // self.patch_size, x_t.shape[-1] // self.patch_size
        dtype = self.patch_proj.weight.dtype  # float32, or bfloat16 where the whole model is
        positions = self.positions[:h, :w].flatten(0, 1)  # (P, D)
        patches = self.patch_proj(patchify(x_t.to(dtype), self.patch_size)) + positions  # (B, P, D)
        registers = self.embed_registers(codes, keep_k, null)
        seq = torch.cat([patches, registers], dim=1)  # (B, P + m + 1, D), or P + K
        bias, copies = None, len(self.register_positions) - codes.shape[1]
        if copies > 1:
            bias = F.pad(
                torch.full((1,), math.log(copies), device=seq.device), (seq.shape[1] - 1, 0)
            )  # (N,)
        *modulations, m = t if isinstance(t, list) else self.modulations(t)
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            seq = block(
                seq, modulations[i], h * w, end=h * w if last else None, bias=bias
            )  # the head reads patches alone
            if i == tap:
                hidden = seq[:, : h * w]
        shift, scale = m[:, None].chunk(2, dim=-1)
        out = self.head(layer_norm(seq) * (1 + scale) + shift)  # (B, P, p*p*C)
        v = unpatchify(out, self.patch_size, h, w)
        return v if tap is None else (v, hidden)
