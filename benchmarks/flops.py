"""Floating-point operations by formula: two for each multiply-add of a matrix product, no others.

`savings` selects the computation of savings.py or the plain one: all P + K positions in each block.
"""

from minflextok.config import TokenizerConfig


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
