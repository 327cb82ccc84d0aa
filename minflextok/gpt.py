"""The Transformer of the prior: causal self-attention with a KV cache, and cross-attention to a
text."""

import torch
from torch import Tensor, nn

from .config import PriorConfig
from .transformer import MLP, attend, layer_norm

# An encoded text for one block: keys and values (B, H, L, d), mask (B, 1, 1, L), True at its
# tokens.
Context = tuple[Tensor, Tensor, Tensor]


class CausalAttention(nn.Module):
    """Causal multi-head self-attention with QK norm. Keys and values can be kept in a cache."""

    def __init__(self, dim: int, head_dim: int):
        super().__init__()
        self.heads, self.scale = dim // head_dim, head_dim**-0.5
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, cache: Tensor | None = None, start: int = 0) -> Tensor:
        """x (B, M, D), the positions from `start` on -> (B, M, D).

        cache (2, B, H, N, d): holds keys and values of the positions before `start`; those of x are
        written into it.
        """
        B, M, D = x.shape
        qkv = self.wqkv(x).view(B, M, 3, self.heads, -1)
        q, k = layer_norm(qkv[:, :, :2]).permute(2, 0, 3, 1, 4).unbind()  # (B, H, M, d) each
        v = qkv[:, :, 2].transpose(1, 2)
        if cache is not None:
            all_k, all_v = cache[0, :, :, : start + M], cache[1, :, :, : start + M]
            all_k[:, :, start:], all_v[:, :, start:] = k, v
            k, v = all_k, all_v
        mask = None
        if M > 1:  # a single query is the last position, which attends to all
            N = k.shape[2]
            mask = torch.ones(M, N, dtype=torch.bool, device=x.device).tril(N - M)
        return self.proj(attend(q, k, v, self.scale, mask).transpose(1, 2).reshape(B, M, D))


class CrossAttention(nn.Module):
    """Multi-head attention to the embeddings of a text, with QK norm."""

    def __init__(self, dim: int, text_dim: int, head_dim: int):
        super().__init__()
        self.head_dim, self.scale = head_dim, head_dim**-0.5
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wkv = nn.Linear(text_dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def context(self, text: Tensor, mask: Tensor) -> Context:
        """text (B, L, Dt), mask (B, L), True at its tokens -> keys, values and mask, the same for
        all queries."""
        kv = self.wkv(text).unflatten(-1, (2, -1, self.head_dim))  # (B, L, 2, H, d)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind()  # (B, H, L, d) each
        return layer_norm(k), v, mask[:, None, None]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, M, D) -> (B, M, D)."""
        k, v, mask = context
        # (B, H, M, d)
        q = layer_norm(self.wq(x).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        return self.proj(attend(q, k, v, self.scale, mask).transpose(1, 2).flatten(2))


class PriorBlock(nn.Module):
    """A GPT block: causal self-attention, cross-attention if there is a text, SwiGLU."""

    def __init__(self, c: PriorConfig):
        super().__init__()
        self.attn = CausalAttention(c.dim, c.head_dim)
        self.cross = CrossAttention(c.dim, c.text_dim, c.head_dim) if c.text else None
        self.mlp = MLP(c.dim)

    def forward(
        self,
        x: Tensor,
        context: Context | None = None,
        dropout: Tensor | None = None,
        cache: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """x (B, M, D) -> (B, M, D).

        dropout (B, branches, 1, D): factors of the branches' channels. cache and start: see
        `CausalAttention`.
        """

        def drop(y: Tensor, branch: int) -> Tensor:
            return y if dropout is None else y * dropout[:, branch]

        x = x + drop(self.attn(layer_norm(x), cache, start), 0)
        if self.cross is not None and context is not None:
            x = x + drop(self.cross(layer_norm(x), context), 1)
        return x + drop(self.mlp(layer_norm(x)), -1)
