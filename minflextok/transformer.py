"""The Transformer that encoder and decoder ride on. Nothing here knows about tokens or flow."""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def layer_norm(x: Tensor) -> Tensor:
    """Normalise the last axis, computed in float32: no learned gain or bias, eps 1e-5."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-5).to(x.dtype)


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None, causal: bool = False
) -> Tensor:
    """softmax(scale * q k^T + bias) v for q (B, H, M, d), k and v (B, H, N, d); bias is added per key, (N,) or
    (B, 1, 1, N).

    causal: the queries are the last M of the N positions, and none looks past itself.
    """
    M, N = q.shape[-2], k.shape[-2]
    if causal and M > 1:  # the very last position may see everything
        bias = torch.full((M, N), float("-inf"), dtype=q.dtype, device=q.device).triu(N - M + 1)
    if q.is_cuda or not (torch.is_grad_enabled() and N <= 512):
        if bias is not None:
            bias = bias.to(q.dtype).expand(len(bias) if bias.ndim > 2 else 1, 1, M, N)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    # Spelt out, short sequences train 2.6 times faster on a CPU than with torch's fused kernel (its backward is slow).
    logits = (q * scale) @ k.transpose(-1, -2)  # (B, H, M, N)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head attention whose queries and keys are layer-normed per head (QK norm). No biases.

    causal: whether, in prefix attention, a position beyond the prefix sees only earlier ones.
    """

    def __init__(self, dim: int, head_dim: int, causal: bool = True):
        super().__init__()
        self.head_dim, self.causal = head_dim, causal
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim, bias=False)
        self.wv = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        start: int = 0,
        end: int | None = None,
        prefix: int | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, D) -> (B, M, D), for the queries at positions start to end (default: all N).

        prefix = P: the first P positions see each other only, a later one sees them, itself and what lies between.
        bias, (N,) or (B, 1, 1, N): added to the logit of each key.
        """
        q, k, v = (
            rearrange(w(h), "b n (h d) -> b h n d", d=self.head_dim)
            for w, h in ((self.wq, x[:, start:end]), (self.wk, x), (self.wv, x))
        )
        q, k = layer_norm(q), layer_norm(k)
        # The published scale is 8/head_dim, the muP form of 1/sqrt(head_dim); they agree at head_dim 64.
        see = partial(attend, scale=8 / self.head_dim)
        if prefix is None:
            out = see(q, k, v, bias=bias)
        else:
            inside = max(0, prefix - start)  # queries that belong to the prefix
            out = see(q[:, :, inside:], k, v, causal=self.causal)
            if inside:
                out = torch.cat(
                    [see(q[:, :, :inside], k[:, :, :prefix], v[:, :, :prefix]), out], dim=2
                )
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    """SwiGLU with 2/3 of the usual fourfold width, so that three matrices cost what two did. No biases."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = 2 * 4 * dim // 3
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc3 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class Block(nn.Module):
    """Pre-norm Transformer block with prefix attention."""

    def __init__(self, dim: int, head_dim: int, causal: bool = True):
        super().__init__()
        self.attn = Attention(dim, head_dim, causal)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor, prefix: int, start: int = 0) -> Tensor:
        """x (B, N, D) -> (B, N - start, D): positions before `start` are seen, but not computed further."""
        x = x[:, start:] + self.attn(layer_norm(x), start, prefix=prefix)
        return x + self.mlp(layer_norm(x))


class AdaLNBlock(nn.Module):
    """A block steered by a condition (adaLN-Zero, DiT sec. 3.2): the identity at initialisation.

    With `parts` = 2 the first P positions (patches) and the rest (registers) get modulations of their own.
    """

    def __init__(self, dim: int, head_dim: int, parts: int):
        super().__init__()
        self.parts = parts
        self.attn = Attention(dim, head_dim)
        self.mlp = MLP(dim)
        self.adaln = nn.Linear(dim, parts * 6 * dim)

    def modulation(self, temb: Tensor) -> Tensor:
        """temb (B, D), or (1, D) where all images share one condition -> two gates, then shift and scale, twice:
        (6, B or 1, parts, D)."""
        return rearrange(
            self.adaln(F.silu(temb)), "b (parts six d) -> six b parts d", parts=self.parts, six=6
        )

    def forward(
        self,
        x: Tensor,
        m: Tensor,
        num_patches: int,
        end: int | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, D); m as `modulation` gives it; bias (N,) as in `attend`.

        -> (B, end, D) (default: N): positions from `end` on are seen, but not computed further.
        """
        if self.parts == 2:  # to one row per position: (6, B, N, D)
            sizes = (num_patches, x.shape[1] - num_patches)
            m = torch.cat(
                [m[:, :, i : i + 1].expand(-1, -1, n, -1) for i, n in enumerate(sizes)], dim=2
            )
        _, _, shift, scale, _, _ = m
        seen = layer_norm(x) * (1 + scale) + shift
        gate_attn, gate_mlp, _, _, shift, scale = m[:, :, :end]
        x = x[:, :end] + gate_attn * self.attn(seen, end=end, bias=bias)
        return x + gate_mlp * self.mlp(layer_norm(x) * (1 + scale) + shift)


def init_linears(module: nn.Module) -> None:
    """Every Linear Xavier-uniform with zero bias; call before zeroing the ones that start at zero."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def zero_init(*linears: nn.Linear) -> None:
    for linear in linears:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
