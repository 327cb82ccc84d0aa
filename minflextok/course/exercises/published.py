"""Exercises of notebook 11: exact savings and published models."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...config import TokenizerConfig
from ...decoder import Decoder
from ...guidance import cfg
from ...patches import embed_patches
from ...savings import modulations
from . import Exercise, randint

# ---- ★★ one key that represents n equal keys -----------------------------------------------------


def merged_inputs(g: torch.Generator) -> Iterator[tuple]:
    for m, d, n in ((1, 1, 3), (2, 3, 28), (4, 2, 1), (3, 4, 255)):
        yield (
            torch.randn(d, generator=g),
            torch.randn(m + 1, d, generator=g),
            torch.randn(m + 1, 2, generator=g),
            n,
        )


def merged(q: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
    copies = [1] * (len(keys) - 1) + [n]
    total, weight = torch.zeros(values.shape[1]), 0.0
    for key, value, times in zip(keys, values, copies, strict=True):
        for _ in range(times):
            w = math.exp(float(q @ key))
            total, weight = total + w * value, weight + w
    return total / weight


def counted_once(q: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
    return merged(q, keys, values, 1)


def with_last(x: Tensor, f: Callable) -> Tensor:
    return torch.cat([x[:-1], f(x[-1:])])


def n_times_the_logit(q: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
    return with_last(keys @ q, lambda x: n * x).softmax(0) @ values


def scaled(q: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
    """As PyTorch's attention does by default."""
    return merged(q / math.sqrt(len(q)), keys, values, n)


def one_copy_more(q: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
    return merged(q, keys, values, n + 1)


def log_as_factor(q: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
    return with_last(keys @ q, lambda x: math.log(n) * x).softmax(0) @ values


def n_added(q: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
    return with_last(keys @ q, lambda x: x + n).softmax(0) @ values


def n_times_the_value(q: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
    return (keys @ q).softmax(0) @ with_last(values, lambda x: n * x)


def log_after_the_softmax(q: Tensor, keys: Tensor, values: Tensor, n: int) -> Tensor:
    return with_last((keys @ q).softmax(0), lambda w: w + math.log(n)) @ values


# ---- ★★ one register for all dropped ones --------------------------------------------------------


def register_sets(g: torch.Generator) -> Iterator[tuple]:
    for B, K, D, kept in ((1, 4, 1, 1), (2, 6, 3, 4), (2, 5, 2, 5), (1, 4, 2, 3), (3, 20, 2, 2)):
        registers = torch.randn(B, K, D, generator=g)
        registers[:, kept:] = torch.randn(D, generator=g)
        yield registers, kept


def merge_registers(registers: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    K = registers.shape[1]
    rows = [registers[:, j] for j in range(K) if j <= kept]
    times = [1 if j < kept else K - kept for j in range(len(rows))]
    return torch.stack(rows, dim=1), torch.tensor([math.log(n) for n in times])


def dropped_lost(registers: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    return registers[:, :kept], torch.zeros(kept)


def nothing_merged(registers: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    return registers, torch.zeros(registers.shape[1])


def without_bias(registers: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    short, bias = merge_registers(registers, kept)
    return short, torch.zeros_like(bias)


def counts_as_bias(registers: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    short, bias = merge_registers(registers, kept)
    return short, bias.exp()


def n_as_bias(registers: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    short, bias = merge_registers(registers, kept)
    return short, torch.where(bias > 0, bias.exp(), 0.0)


def one_copy_forgotten(registers: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """log of the copies that are left out, without the one that stays; 0 where there are none."""
    short, bias = merge_registers(registers, kept)
    return short, torch.where(bias > 0, (bias.exp() - 1).log(), bias)


def bias_on_all(registers: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    short, bias = merge_registers(registers, kept)
    return short, bias[-1:].expand(len(bias))


def one_too_many_at_the_end(registers: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    bias = torch.zeros(kept + 1)
    bias[-1] = math.log(max(registers.shape[1] - kept, 1))
    return registers[:, : kept + 1], bias


# ---- ★★ positions of a guided step ---------------------------------------------------------------


def step_sizes(g: torch.Generator) -> Iterator[tuple]:
    yield from ((256, 256, 1), (256, 256, 256), (64, 16, 15))
    for _ in range(4):
        K = randint(g, 3, 40)
        yield randint(g, 4, 80), K, randint(g, 1, K)


def guided_positions(P: int, K: int, k: int) -> int:
    kept, dropped = set(range(k)), set(range(k, K))
    return P + len(kept) + bool(dropped) + P + 1


def dropped_left_out(P: int, K: int, k: int) -> int:
    return 2 * P + k + 1


def one_too_many(P: int, K: int, k: int) -> int:
    return 2 * P + k + 2


def same_size_for_both(P: int, K: int, k: int) -> int:
    return 2 * (P + min(k + 1, K))


def null_register_left_out(P: int, K: int, k: int) -> int:
    return guided_positions(P, K, k) - 1


def null_registers_not_merged(P: int, K: int, k: int) -> int:
    return P + min(k + 1, K) + P + K


def null_registers_as_dropped(P: int, K: int, k: int) -> int:
    return P + K + P + 1


def one_half(P: int, K: int, k: int) -> int:
    return P + min(k + 1, K)


def without_any_extra(P: int, K: int, k: int) -> int:
    return 2 * (P + k)


def everything(P: int, K: int, k: int) -> int:
    return 2 * (P + K)


# ---- ★★★ a guided step -------------------------------------------------------------------------


class TinyDecoder(Decoder):
    """A decoder with random weights that is shown by its name alone."""

    def __repr__(self) -> str:
        return "a small decoder with random weights"


def guided_inputs(g: torch.Generator) -> Iterator[tuple]:
    for B, P, K, kept in ((1, 4, 4, 1), (2, 4, 6, 3), (2, 16, 5, 5), (1, 16, 8, 7)):
        side = 2 * math.isqrt(P)
        c = TokenizerConfig(side, 3, 2, 8, 1, 8, 2, head_dim=4, num_registers=K)
        with torch.random.fork_rng(devices=[]):  # the learner's draws stay as they are
            decoder = TinyDecoder(c).eval().requires_grad_(False)
        for p in decoder.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
        codes = torch.randn(B, K, len(c.fsq_levels), generator=g)
        lengths, everyone = torch.full((B,), kept), torch.ones(B, dtype=torch.bool)
        registers = decoder.embed_registers(codes, lengths, ~everyone)
        null = decoder.embed_registers(codes, lengths, everyone)
        x_t, t = torch.randn(B, 3, side, side, generator=g), torch.rand(1, generator=g)
        yield decoder, x_t, t, registers, kept, null, 2.5


def watched(f: Callable, decoder: Decoder, *args) -> Any:
    """The velocity, the positions of each evaluation, and how many modulations are computed."""
    positions, computed, block = [], [], decoder.blocks[0]
    block.register_forward_pre_hook(lambda _, inputs: positions.append(inputs[0].shape[1]))
    block.adaln.register_forward_hook(lambda *_: computed.append(1))
    velocity = f(decoder, *args)
    if not isinstance(velocity, Tensor):
        return velocity
    found = {"velocity": velocity, "positions": torch.tensor(sorted(positions))}
    return found | {"modulations of block 0": len(computed)}


Guide = Callable[[Tensor, Tensor, float], Tensor]


def guided_step(
    decoder: Decoder,
    x_t: Tensor,
    t: Tensor,
    registers: Tensor,
    kept: int,
    null: Tensor,
    scale: float,
    *,
    merge: Callable = merge_registers,
    kept_of_null: int = 0,
    once: bool = True,
    guide: Guide = cfg,
) -> Tensor:
    h, w = (side // decoder.patch_size for side in x_t.shape[-2:])
    mods, found = modulations(decoder, t), []
    for condition, k in ((registers, kept), (null, kept_of_null)):
        mods = mods if once else modulations(decoder, t)
        short, bias = merge(condition, k)
        patches = embed_patches(x_t, decoder.patch_size, decoder.patch_proj, decoder.positions)
        seq = torch.cat([patches, short], 1)
        mask = torch.cat([torch.zeros(h * w), bias])
        for block, mod in zip(decoder.blocks, mods, strict=False):
            seq = block(seq, mod, h * w, mask)
        found.append(decoder.output(seq[:, : h * w], mods[-1], h, w))
    cond, uncond = found
    return guide(cond, uncond, scale)


def plain_step(*args) -> Tensor:
    return guided_step(*args, merge=nothing_merged)


def null_not_merged(*args) -> Tensor:
    return guided_step(*args, kept_of_null=args[3].shape[1])


def null_like_the_kept(*args) -> Tensor:
    return guided_step(*args, kept_of_null=args[4])


def counted_as_one(*args) -> Tensor:
    return guided_step(*args, merge=without_bias)


def counts_not_logs(*args) -> Tensor:
    return guided_step(*args, merge=counts_as_bias)


def modulations_twice(*args) -> Tensor:
    return guided_step(*args, once=False)


def guided_from_the_condition(*args) -> Tensor:
    return guided_step(*args, guide=lambda v, u, scale: v + scale * (v - u))


def conditions_swapped(*args) -> Tensor:
    return guided_step(*args, guide=lambda v, u, scale: v + scale * (u - v))


# ---- ★ days of a training run --------------------------------------------------------------------


def training_runs(g: torch.Generator) -> Iterator[tuple]:
    yield 768, 12, 512, 4e8, 4e14
    for _ in range(4):
        depth = randint(g, 4, 30)
        yield (
            64 * depth,
            depth,
            randint(g, 100, 900),
            1e6 * randint(g, 1, 900),
            1e12 * randint(g, 1, 900),
        )


def days(
    D: int,
    depth: int,
    N: int,
    images: float,
    speed: float,
    passes: float = 3,
    of_matrix: float = 2,
    pairs: float = 1,
) -> float:
    """of_matrix: operations per weight and position; pairs: share of attention pairs."""
    total = 0.0
    for _ in range(depth):
        total += of_matrix * 12 * D * D * N  # the matrices
        # All pairs of positions: q k^T, and the weights with v.
        total += pairs * 2 * of_matrix * N * N * D
    return passes * total * images / speed / 86400


def forward_only(D: int, depth: int, N: int, images: float, speed: float) -> float:
    return days(D, depth, N, images, speed, passes=1)


def backward_as_forward(D: int, depth: int, N: int, images: float, speed: float) -> float:
    return days(D, depth, N, images, speed, passes=2)


def multiply_adds(D: int, depth: int, N: int, images: float, speed: float) -> float:
    return days(D, depth, N, images, speed, of_matrix=1)


def without_attention(D: int, depth: int, N: int, images: float, speed: float) -> float:
    return days(D, depth, N, images, speed, pairs=0)


def matrices_in_multiply_adds(D: int, depth: int, N: int, images: float, speed: float) -> float:
    matrices = days(D, depth, N, images, speed, pairs=0)
    return days(D, depth, N, images, speed) - matrices / 2


def half_of_attention(D: int, depth: int, N: int, images: float, speed: float) -> float:
    return days(D, depth, N, images, speed, pairs=0.5)


def one_block(D: int, depth: int, N: int, images: float, speed: float) -> float:
    return days(D, 1, N, images, speed)


def seconds(D: int, depth: int, N: int, images: float, speed: float) -> float:
    return 86400 * days(D, depth, N, images, speed)


def of_one_image(D: int, depth: int, N: int, images: float, speed: float) -> float:
    return days(D, depth, N, 1, speed)


def hours(D: int, depth: int, N: int, images: float, speed: float) -> float:
    return 24 * days(D, depth, N, images, speed)


EXERCISES = {
    "merged": Exercise(
        merged_inputs,
        merged,
        [
            (
                counted_once,
                "the last key has the weight of ONE key. n exp(l) = exp(l + log n): add log n "
                "to its logit.",
            ),
            (
                n_times_the_logit,
                "n times the logit gives exp(n l), the n-th POWER. n exp(l) = exp(l + log n).",
            ),
            (
                log_as_factor,
                "the logit is multiplied by log n. n exp(l) = exp(l + log n): ADD log n.",
            ),
            (
                scaled,
                "the logits are divided by sqrt(d), as PyTorch's attention does by default. Here "
                "they are not scaled: pass scale=1.0.",
            ),
            (
                one_copy_more,
                "the last key counts n + 1 times. n is the number of all copies, with the one "
                "that is kept.",
            ),
            (n_added, "n was added to the logit instead of log n."),
            (
                n_times_the_value,
                "the weights no longer sum to 1: the last one (or its value) was multiplied by n "
                "after the softmax. Weight the key: add log n to its logit, before the softmax.",
            ),
            (
                log_after_the_softmax,
                "log n was added to the weight. Add it to the logit, before the softmax.",
            ),
        ],
    ),
    "merge_registers": Exercise(
        register_sets,
        merge_registers,
        [
            (
                dropped_lost,
                "the dropped registers are gone. One of them must stay: it is a key for all.",
            ),
            (nothing_merged, "all registers are still there. One of the dropped ones is enough."),
            (
                without_bias,
                "the bias is 0 everywhere, so the last register counts once. It represents "
                "K - kept registers: its bias is the log of this number.",
            ),
            (counts_as_bias, "these are the counts. The bias on a logit is the log of the count."),
            (n_as_bias, "the bias of the last register is n. It should be log n."),
            (
                one_copy_forgotten,
                "n is the number of all dropped registers, with the one that stays.",
            ),
            (bias_on_all, "each kept register occurs once: its bias is log 1 = 0."),
            (
                one_too_many_at_the_end,
                "for kept = K no register is dropped: there are K registers, and K values of the "
                "bias, all 0.",
            ),
        ],
    ),
    "guided_positions": Exercise(
        step_sizes,
        guided_positions,
        [
            (
                dropped_left_out,
                "the dropped registers need one position that represents all of them (none if k "
                "= K).",
            ),
            (one_too_many, "for k = K no register is dropped, so there is no extra position."),
            (
                same_size_for_both,
                "the unconditional half has no visible register: all K are equal, and one "
                "position represents them.",
            ),
            (
                null_register_left_out,
                "the unconditional evaluation has registers, too: K equal ones, which need one "
                "position.",
            ),
            (
                null_registers_not_merged,
                "the K registers of the unconditional evaluation are all equal: one position "
                "represents them.",
            ),
            (
                null_registers_as_dropped,
                "the conditional evaluation needs k kept registers, and one for the dropped ones "
                "if there are any, not all K.",
            ),
            (one_half, "guidance evaluates the decoder twice: with the tokens and without."),
            (
                without_any_extra,
                "the dropped registers need one position (none if k = K), and the unconditional "
                "evaluation keeps no register: one position represents all of them.",
            ),
            (everything, "this is the plain computation, with K registers in both halves."),
        ],
    ),
    "guided_step": Exercise(
        guided_inputs,
        guided_step,
        [
            (
                plain_step,
                "the velocity is right, but all K registers are computed. Merge the equal ones: "
                "m = min(kept + 1, K) registers, and one for the null condition.",
            ),
            (
                null_not_merged,
                "the velocity is right, but the null condition computes K registers. They are all "
                "equal, so one of them, with log K as its bias, is enough.",
            ),
            (
                null_like_the_kept,
                "the velocity is right, but the null condition computes kept + 1 registers. None "
                "of its registers is kept: one is enough.",
            ),
            (
                modulations_twice,
                "the velocity is right, but the modulations are computed for each condition. They "
                "depend on t alone: compute them once, before the loop.",
            ),
            (
                counted_as_one,
                "the merged register counts once. It represents K - kept registers (K of the null "
                "condition): the bias of its key is the log of this number.",
            ),
            (
                counts_not_logs,
                "the bias is the count of each key. It should be the log of the count: 0 for a "
                "patch and for a kept register.",
            ),
            (
                guided_from_the_condition,
                "guidance starts from the UNCONDITIONAL velocity: uncond + scale (cond - uncond).",
            ),
            (
                conditions_swapped,
                "the conditional and the unconditional velocity are exchanged.",
            ),
        ],
        observe=watched,
    ),
    "days": Exercise(
        training_runs,
        days,
        [
            (
                forward_only,
                "this is the forward pass. The backward pass costs twice as much, so the total "
                "is 3 times the forward pass.",
            ),
            (
                backward_as_forward,
                "the backward pass has two gradients for each product, of the weights and of "
                "the inputs: it costs twice the forward pass.",
            ),
            (multiply_adds, "one multiply-add is two operations."),
            (
                matrices_in_multiply_adds,
                "12 D^2 N are the multiply-adds of the matrices. One multiply-add is two "
                "operations.",
            ),
            (without_attention, "the attention products are missing: 4 N^2 D for each block."),
            (
                half_of_attention,
                "attention has two products of N x N x D: q k^T, and the weights with v.",
            ),
            (hours, "this is the number of hours."),
            (seconds, "this is the number of seconds; a day has 86,400."),
            (one_block, "this is one block; there are `depth` of them."),
            (of_one_image, "this is the time of one image."),
        ],
    ),
}
