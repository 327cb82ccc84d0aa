"""FlexTok without the savings: the yardstick of `bench.py`, on the weights of a `minflextok.FlexTok`.

It computes what the published code does. All P + K positions are there in every block of both networks: the encoder
under a dense boolean mask, the decoder with each dropped register as a copy of the mask token (and K copies of the
null token for guidance, which is a call of its own), and the last blocks compute everything. Modulations are one row
per position.

It is not made slow on purpose. The published code packs a batch into one masked sequence, whose attention grows
quadratically with the batch; here images are a batch axis. The modulation's Linear sees each image once, its rows are
expanded to positions after it. Attention is torch's fused kernel; where gradients are wanted on a CPU, it is spelt out,
which is the faster there (for plain and ours alike).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minflextok import FlexTok
from minflextok.decoder import time_features
from minflextok.encoder import prefix_mask
from minflextok.flow import cfg, euler, interpolate
from minflextok.patches import patchify, unpatchify
from minflextok.transformer import AdaLNBlock, Attention, layer_norm


def attention(a: Attention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """x (B, N, D) -> (B, N, D); mask (N, N) bool, row = query."""
    q, k, v = (rearrange(w(x), "b n (h d) -> b h n d", d=a.head_dim) for w in (a.wq, a.wk, a.wv))
    q, k, scale = layer_norm(q), layer_norm(k), 8 / a.head_dim
    if torch.is_grad_enabled() and not x.is_cuda:
        logits = (q * scale) @ k.transpose(-1, -2)
        out = (logits if mask is None else logits.masked_fill(~mask, float("-inf"))).softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return a.proj(rearrange(out, "b h n d -> b n (h d)"))


def latents(tok: FlexTok, x: Tensor) -> Tensor:
    """All K latents before FSQ: (B, C, H, W) -> (B, K, F)."""
    enc = tok.encoder
    h, w = x.shape[-2] // enc.patch_size, x.shape[-1] // enc.patch_size
    patches = enc.patch_proj(patchify(x, enc.patch_size)) + enc.positions[:h, :w].flatten(0, 1)
    seq = torch.cat([patches, enc.registers.expand(len(x), -1, -1)], dim=1)  # (B, P + K, D)
    mask = prefix_mask(h * w, len(enc.registers)).to(x.device)
    for block in enc.blocks:
        seq = seq + attention(block.attn, layer_norm(seq), mask)
        seq = seq + block.mlp(layer_norm(seq))
    return enc.head(layer_norm(seq[:, h * w :]))


@torch.no_grad()
def encode(tok: FlexTok, x: Tensor, k: int) -> Tensor:
    """The first k ids, out of all K: (B, C, H, W) -> (B, k)."""
    return tok.fsq(latents(tok, x))[1][:, :k]


def adaln_block(block: AdaLNBlock, x: Tensor, temb: Tensor, P: int) -> Tensor:
    """x (B, N, D), temb (B, D) -> (B, N, D)."""
    m = rearrange(block.adaln(F.silu(temb)), "b (parts m) -> b parts m", parts=block.parts)
    m = torch.cat(
        [m[:, :1].expand(-1, P, -1), m[:, -1:].expand(-1, x.shape[1] - P, -1)], dim=1
    )  # (B, N, 6D)
    gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = m.chunk(
        6, dim=-1
    )  # each (B, N, D)
    x = x + gate_attn * attention(block.attn, layer_norm(x) * (1 + scale_attn) + shift_attn)
    return x + gate_mlp * block.mlp(layer_norm(x) * (1 + scale_mlp) + shift_mlp)


def velocity(
    tok: FlexTok, x_t: Tensor, t: Tensor, codes: Tensor, keep_k: Tensor, null: Tensor
) -> Tensor:
    """x_t (B, C, H, W), t (B,), codes (B, K, F), keep_k (B,), null (B,) bool -> (B, C, H, W)."""
    dec = tok.decoder
    h, w = x_t.shape[-2] // dec.patch_size, x_t.shape[-1] // dec.patch_size
    dtype = dec.patch_proj.weight.dtype
    patches = dec.patch_proj(patchify(x_t.to(dtype), dec.patch_size)) + dec.positions[
        :h, :w
    ].flatten(0, 1)
    registers = dec.nested_dropout(
        dec.code_proj(codes.to(dtype)) + dec.register_positions, keep_k
    )  # (B, K, D)
    null_token = torch.zeros_like(registers[0, 0]) if dec.null_token is None else dec.null_token
    registers = torch.where(null[:, None, None], null_token.to(registers.dtype), registers)
    seq = torch.cat([patches, registers], dim=1)  # (B, P + K, D)
    temb = dec.time_mlp(time_features(t, dec.max_timestep).to(dtype))  # (B, D)
    for block in dec.blocks:
        seq = adaln_block(block, seq, temb, h * w)
    shift, scale = dec.head_adaln(F.silu(temb))[:, None].chunk(2, dim=-1)
    return unpatchify(
        dec.head(layer_norm(seq[:, : h * w]) * (1 + scale) + shift), dec.patch_size, h, w
    )


@torch.no_grad()
def decode(tok: FlexTok, ids: Tensor, steps: int, guidance: float, noise: Tensor) -> Tensor:
    """ids (B, k), padded to K with id 0 (which the mask token replaces) -> (B, C, H, W)."""
    B, k = ids.shape
    codes = tok.fsq.ids_to_codes(F.pad(ids, (0, tok.config.num_registers - k)))
    keep_k = torch.full((B,), k, device=ids.device)
    null = torch.zeros(B, dtype=torch.bool, device=ids.device)

    def guided(x: Tensor, t: float) -> Tensor:
        time = torch.full((B,), t, device=ids.device)
        cond, uncond = (
            velocity(tok, x, time, codes, keep_k, hidden).float() for hidden in (null, ~null)
        )
        return cfg(cond, uncond, guidance)

    images = euler(guided, noise, steps)
    return images.clamp(-1, 1) if tok.config.in_channels == 3 else images


def loss(tok: FlexTok, x: Tensor, noise: Tensor, t: Tensor, keep_k: Tensor, null: Tensor) -> Tensor:
    """The training objective for given draws: a scalar."""
    keep_k, null = keep_k.to(x.device), null.to(x.device)
    z = latents(tok, x)
    v = velocity(tok, interpolate(x, noise, t), t, tok.fsq(z)[0], keep_k, null)
    over = (z.float().abs() - 1).clamp(min=0).square().mean(-1)  # (B, K)
    kept = torch.arange(z.shape[1], device=x.device) < torch.where(null, 0, keep_k)[:, None]
    return F.mse_loss(v.float(), noise - x) + tok.config.latent_penalty * (over * kept).mean()
