"""Floating-point operations by formula: two for each multiply-add of a matrix product, no others.

`savings` selects the computation of savings.py or the plain one: all P + K positions in each block.
A training step is a forward and a backward pass, without what activation checkpointing and the
attention kernels of a GPU compute a second time, and without REPA's teacher and head.
"""

from collections import defaultdict

import torch

from ..config import PriorConfig, TokenizerConfig
from ..nested_dropout import round_up_pow2
from ..savings import group_sizes


def block_flops(d: int, queries: int, keys: int, pairs: int) -> int:
    """One block: outputs at `queries` positions, keys and values at `keys`, `pairs` logits."""
    projections = 2 * d * d * (2 * queries + 2 * keys)  # wq and proj, wk and wv
    attention = 4 * d * pairs  # q k^T, and its product with v
    mlp = 2 * 3 * d * (8 * d // 3) * queries
    return projections + attention + mlp


def encoder_flops(c: TokenizerConfig, B: int, k: int, savings: bool = True) -> int:
    """The first k latents of B images of full size; without savings, all K are computed."""
    P, d = c.grid**2, c.enc_dim
    k = k if savings else c.num_registers
    N = P + k
    block = block_flops(d, N, N, P * P + k * N if savings else N * N)
    last = block_flops(d, k, N, k * N) if savings else block
    ends = 2 * d * (P * c.patch_size**2 * c.in_channels + k * len(c.fsq_levels))
    return B * ((c.enc_depth - 1) * block + last + ends)


def embed_flops(c: TokenizerConfig, B: int) -> int:
    """`Decoder.embed_registers`: the projection of K codes per image."""
    return B * 2 * c.dec_dim * c.num_registers * len(c.fsq_levels)


def decoder_flops(
    c: TokenizerConfig, B: int, k: int, savings: bool = True, timesteps: int = 1
) -> int:
    """One decoder call on B images of k tokens each (0: the null condition), given its registers.

    timesteps: the number of timesteps whose modulations are computed (0: they are given).
    """
    P, K, d = c.grid**2, c.num_registers, c.dec_dim
    N = P + (min(k + 1, K) if savings else K)
    block = block_flops(d, N, N, N * N)
    last = block_flops(d, P, N, P * N) if savings else block
    ends = 2 * 2 * d * P * c.patch_size**2 * c.in_channels
    modulations = c.dec_depth * (2 if c.separate_adaln else 1) * 6 + 2
    time = 2 * d * (256 + d + modulations * d)
    return B * ((c.dec_depth - 1) * block + last + ends) + timesteps * time


def decode_flops(c: TokenizerConfig, B: int, k: int, steps: int, savings: bool = True) -> int:
    """Guided sampling: in each step a conditional and an unconditional decoder call at the same t.

    With savings, the two share their modulations. On a GPU they may also share one batch: the
    unconditional half then has k + 1 registers, instead of the 1 that is counted here.
    """
    conditional = decoder_flops(c, B, k, savings)
    unconditional = decoder_flops(c, B, 0, savings, timesteps=0 if savings else 1)
    return 2 * embed_flops(c, B) + steps * (conditional + unconditional)


def grid_flops(c: TokenizerConfig, B: int) -> tuple[int, int]:
    """Encoding and decoding B images with a `baselines.Grid`, whose tokens are the patches: the
    encoder has no registers, the decoder runs once, without guidance (`decode` embeds the null
    condition in any case)."""
    P, d = c.grid**2, c.enc_dim
    ends = 2 * d * P * (c.patch_size**2 * c.in_channels + len(c.fsq_levels))
    encode = B * (c.enc_depth * block_flops(d, P, P, P * P) + ends)
    return encode, 2 * embed_flops(c, B) + decoder_flops(c, B, c.num_registers)


def generation_flops(c: PriorConfig, B: int) -> int:
    """Generating all ids of B images, given a class, with the KV cache and without guidance."""
    K, D = c.num_tokens, c.dim
    return B * (c.depth * block_flops(D, K, K, K * (K + 1) // 2) + 2 * D * c.vocab_size * K)


# ---- training ------------------------------------------------------------------------------------


def keep_k_choices(mode: str, num_registers: int) -> torch.Tensor:
    """Values of keep_k (n,) int64; `sample_keep_k` draws each of the n with equal probability."""
    K = num_registers
    if mode == "pow2":
        return (2 ** torch.arange((K - 1).bit_length() + 1)).clamp(max=K)
    k = torch.arange(1, K + 1)
    return k if mode == "uniform" else round_up_pow2(k).clamp(max=K)


def group_shares(c: TokenizerConfig, nested_prob: float) -> dict[int, float]:
    """The expected share of the images of a batch in each group of `savings.by_length`, by the
    number of registers that the group computes."""
    P, K = c.grid**2, c.num_registers
    k = keep_k_choices(c.keep_k_mode, K)
    k = torch.cat([k, torch.tensor([1, K])])  # the last two: null images, images without dropout
    nested = (1 - c.null_prob) * nested_prob / (len(k) - 2)
    weights = [nested] * (len(k) - 2) + [c.null_prob, (1 - c.null_prob) * (1 - nested_prob)]
    shares: dict[int, float] = defaultdict(float)
    sizes = group_sizes(k, torch.zeros(len(k), dtype=torch.bool), P, K).tolist()
    for size, weight in zip(sizes, weights, strict=True):
        shares[size] += weight
    return dict(shares)


def tokenizer_training_flops(
    c: TokenizerConfig, nested_prob: float = 1.0, savings: bool = True
) -> float:
    """A training step, an image, in expectation over the draws of keep_k and null."""
    P, D, K = c.grid**2, c.dec_dim, c.num_registers
    shares = group_shares(c, nested_prob) if savings else {K: 1.0}
    networks = {
        k: encoder_flops(c, 1, k, savings) + decoder_flops(c, 1, k, savings) for k in shares
    }
    forward = embed_flops(c, 1) + sum(share * networks[k] for k, share in shares.items())
    # Neither pixels nor time features need a gradient.
    inputs = 2 * P * c.patch_size**2 * c.in_channels * (c.enc_dim + D) + 2 * 256 * D
    return 3 * forward - inputs


def prior_training_flops(c: PriorConfig) -> int:
    """A training step, an image of K ids."""
    K, D, L = c.num_tokens, c.dim, c.text_length
    forward = c.depth * block_flops(D, K, K, K * K) + 2 * D * c.vocab_size * K
    if c.text:
        cross = 2 * D * (2 * D * K + 2 * c.text_dim * L) + 4 * D * K * L
        text = c.text_depth * block_flops(c.text_dim, L, L, L * L)  # of a text of L words
        forward += c.depth * cross + text
    return 3 * forward
