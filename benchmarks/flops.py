"""Floating-point operations by formula: two for each multiply-add of a matrix product, nothing for the rest."""

from minflextok.config import TokenizerConfig


def block_flops(d: int, queries: int, keys: int, pairs: int) -> int:
    """One block that computes `queries` positions, shows `keys` to them and forms `pairs` attention logits per head."""
    attention = (
        2 * d * d * (2 * queries + 2 * keys) + 4 * d * pairs
    )  # wq, proj and wk, wv; q k^T and its product with v
    return attention + 2 * 3 * d * (8 * d // 3) * queries


def encoder_flops(c: TokenizerConfig, B: int, k: int, plain: bool = False) -> int:
    """The encoder on B images of full size, for the first k latents; the plain one computes all K."""
    P, d = c.grid**2, c.enc_dim
    k = c.num_registers if plain else k
    N = P + k
    block = block_flops(d, N, N, N * N if plain else P * P + k * N)
    last = block if plain else block_flops(d, k, N, k * N)
    ends = 2 * d * (P * c.patch_size**2 * c.in_channels + k * len(c.fsq_levels))
    return B * ((c.enc_depth - 1) * block + last + ends)


def velocity_flops(c: TokenizerConfig, B: int, k: int, plain: bool = False, times: int = 1) -> int:
    """The decoder once on B images of k codes each, with modulations of `times` timesteps (0: they are there already)."""
    P, d = c.grid**2, c.dec_dim
    m = c.num_registers if plain else k
    N = P + (c.num_registers if plain else min(k + 1, c.num_registers))
    block = block_flops(d, N, N, N * N)
    last = block if plain else block_flops(d, P, N, P * N)
    ends = 2 * d * (2 * P * c.patch_size**2 * c.in_channels + m * len(c.fsq_levels))
    modulations = c.dec_depth * (2 if c.separate_adaln else 1) * 6 + 2
    time = 2 * d * (256 + d + modulations * d)
    return B * ((c.dec_depth - 1) * block + last + ends) + times * time


def decode_flops(c: TokenizerConfig, B: int, k: int, steps: int, plain: bool = False) -> int:
    """Guided decoding: a conditional and an unconditional velocity a step, all images and (ours) both at the same t."""
    calls = ((k, B), (0, B)) if plain else ((k, 1), (0, 0))
    return steps * sum(velocity_flops(c, B, kept, plain, times) for kept, times in calls)
