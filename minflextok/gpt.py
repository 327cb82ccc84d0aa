"""The Transformer of the prior: causal attention that can remember, attention to a text."""

import copy

import torch
from torch import Tensor, nn

from .config import PriorConfig
from .transformer import MLP, attend, layer_norm

Context = tuple[
    Tensor, Tensor, Tensor
]  # a text as one block sees it: keys and values (B, H, L, d), bias (B, 1, 1, L)


class CausalAttention(nn.Module):
    """Multi-head attention to oneself and what came before, with QK norm; keys and values can be kept in a cache."""

    def __init__(self, dim: int, head_dim: int):
        super().__init__()
        self.heads, self.scale = dim // head_dim, head_dim**-0.5
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, cache: Tensor | None = None, at: int = 0) -> Tensor:
        """x (B, M, D), positions `at` to at + M -> (B, M, D).

        cache (2, B, H, N, d): keys and values of the positions before `at`; those of x are written into it.
        """
        B, M, D = x.shape
        qkv = self.wqkv(x).view(B, M, 3, self.heads, -1)
        q, k = layer_norm(qkv[:, :, :2]).permute(2, 0, 3, 1, 4).unbind()  # (B, H, M, d) each
        v = qkv[:, :, 2].transpose(1, 2)
        if cache is not None:
            past_k, past_v = cache[0, :, :, : at + M], cache[1, :, :, : at + M]
            past_k[:, :, at:], past_v[:, :, at:] = k, v
            k, v = past_k, past_v
        return self.proj(attend(q, k, v, self.scale, causal=True).transpose(1, 2).reshape(B, M, D))


class CrossAttention(nn.Module):
    """Multi-head attention to the embeddings of a text, with QK norm."""

    def __init__(self, dim: int, text_dim: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wkv = nn.Linear(text_dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def context(self, text: Tensor, mask: Tensor) -> Context:
        """text (B, L, Dt) and mask (B, L), True at words -> what `forward` attends to; the same for all positions."""
        k, v = (
            self.wkv(text).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()
        )  # (B, H, L, d)
        bias = torch.zeros(mask.shape, dtype=k.dtype, device=k.device).masked_fill(
            ~mask, float("-inf")
        )
        return layer_norm(k), v, bias[:, None, None]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, M, D) -> (B, M, D)."""
        k, v, bias = context
        q = layer_norm(self.wq(x).unflatten(-1, (-1, self.head_dim))).transpose(
            1, 2
        )  # (B, H, M, d)
        return self.proj(attend(q, k, v, self.head_dim**-0.5, bias).transpose(1, 2).flatten(2))


class PriorBlock(nn.Module):
    """A GPT block: causal attention, attention to the text if there is one, SwiGLU."""

    def __init__(self, c: PriorConfig):
        super().__init__()
        self.attn = CausalAttention(c.dim, c.head_dim)
        self.cross = CrossAttention(c.dim, c.text_dim, c.head_dim) if c.text else None
        self.mlp = MLP(c.dim)

    def forward(
        self,
        x: Tensor,
        context: Context | None = None,
        keep: Tensor | None = None,
        cache: Tensor | None = None,
        at: int = 0,
    ) -> Tensor:
        """x (B, M, D) -> (B, M, D); cache and `at` as in CausalAttention. keep (B, branches, 1, D): factors (dropout)."""

        def dropped(y: Tensor, branch: int) -> Tensor:
            return y if keep is None else y * keep[:, branch]

        x = x + dropped(self.attn(layer_norm(x), cache, at), 0)
        if self.cross is not None:
            x = x + dropped(self.cross(layer_norm(x), context), 1)
        return x + dropped(self.mlp(layer_norm(x)), -1)


class PackedLinear(nn.Module):
    """A Linear without bias for inference on a CPU, its weight stored so that the product of a few rows is fast.

    Such a product waits for the weights to come from memory. Several rows are about twice as fast when these lie in the
    blocks of oneDNN; a single row, for which those take too long to start, by a tenth to a half when they are transposed.
    """

    def __init__(self, weight: Tensor, rows: int):
        super().__init__()
        weight = weight.detach()
        self.transposed = weight.t().contiguous() if rows == 1 else None
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if rows > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D')."""
        if self.transposed is not None:
            return x @ self.transposed
        return torch.ops.mkldnn._linear_pointwise(x, self.blocks, None, "none", [], "")


def can_pack(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def packed(module: nn.Module, rows: int) -> nn.Module:
    """A copy whose Linears are packed, best for so many rows at a time; all else is shared."""
    if isinstance(module, nn.Linear):
        return PackedLinear(module.weight, rows)
    twin = copy.copy(module)
    twin._modules = {name: child and packed(child, rows) for name, child in module._modules.items()}
    return twin
