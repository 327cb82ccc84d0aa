"""Exercises of notebook 05b: the decoder."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from ...config import TokenizerConfig
from ...decoder import Decoder
from ...patches import embed_patches
from . import Exercise, randint

Branch = Callable[[Tensor], Tensor]

# ---- ★ time features -----------------------------------------------------------------------------


def timesteps(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([0.0, 0.001, 0.5]), 2
    for B, n in ((1, 3), (4, 4), (3, 8)):
        yield torch.rand(B, generator=g), n


def features(t: Tensor, n: int, scale: float = 1000.0, base: float = 256.0) -> Tensor:
    rows = []
    for s in t.tolist():
        angles = [scale * s * base ** (-j / n) for j in range(n)]
        rows.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    return torch.tensor(rows)


def not_scaled(t: Tensor, n: int) -> Tensor:
    return features(t, n, scale=1.0)


def base_10000(t: Tensor, n: int) -> Tensor:
    return features(t, n, base=10_000.0)


def higher_and_higher(t: Tensor, n: int) -> Tensor:
    return features(t, n, base=1 / 256)


def half_the_exponent(t: Tensor, n: int) -> Tensor:
    return features(t, n, base=16.0)


def last_at_256(t: Tensor, n: int) -> Tensor:
    return features(t, n, base=256.0 ** (n / max(1, n - 1)))


def sines_first(t: Tensor, n: int) -> Tensor:
    return features(t, n).roll(n, dims=1)


def interleaved(t: Tensor, n: int) -> Tensor:
    return features(t, n).view(len(t), 2, n).transpose(1, 2).reshape(len(t), 2 * n)


# ---- ★★ the adaLN-Zero block ---------------------------------------------------------------------


def normalize(row: Tensor) -> Tensor:
    return (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for b in range(len(x)):
        for i in range(x.shape[1]):
            out[b, i] = normalize(x[b, i]) * (1 + scale[b]) + shift[b]
    return out


def mix(y: Tensor) -> Tensor:
    """In place of attention: mixes positions."""
    return y.mean(1, keepdim=True) + 0.5 * y


def squash(y: Tensor) -> Tensor:
    """In place of the MLP: acts on each position alone."""
    return torch.tanh(2 * y)


ONE = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 1.0]).view(6, 1, 1, 1)  # 1 for both scales


def block_inputs(g: torch.Generator) -> Iterator[tuple]:
    for B, N, D in ((1, 2, 3), (2, 3, 4), (3, 5, 8)):
        x = 2 * torch.randn(B, N, D, generator=g)
        yield x, torch.randn(6, B, 1, D, generator=g), mix, squash
    yield x, torch.zeros(6, B, 1, D), mix, squash
    yield x[:1, :2, :3], torch.randn(6, 1, 2, 3, generator=g), mix, squash  # m of each position


def modulate_each(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """shift, scale (B, 1, D), or (B, N, D) if each position has its own."""
    zero = torch.zeros_like(x[:, 0])
    return modulate(x, zero, zero) * (1 + scale) + shift  # with zeros: the layer norm


def block(x: Tensor, m: Tensor, attn: Branch, mlp: Branch) -> Tensor:
    gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = m
    x = x + gate_attn * attn(modulate_each(x, shift_attn, scale_attn))
    return x + gate_mlp * mlp(modulate_each(x, shift_mlp, scale_mlp))


def order_of_dit(x: Tensor, m: Tensor, attn: Branch, mlp: Branch) -> Tensor:
    return block(x, m[[2, 5, 0, 1, 3, 4]], attn, mlp)


def shift_and_scale_swapped(x: Tensor, m: Tensor, attn: Branch, mlp: Branch) -> Tensor:
    return block(x, m[[0, 1, 3, 2, 5, 4]], attn, mlp)


def without_norm(x: Tensor, m: Tensor, attn: Branch, mlp: Branch) -> Tensor:
    gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = m
    x = x + gate_attn * attn(x * (1 + scale_attn) + shift_attn)
    return x + gate_mlp * mlp(x * (1 + scale_mlp) + shift_mlp)


def both_from_the_input(x: Tensor, m: Tensor, attn: Branch, mlp: Branch) -> Tensor:
    off = torch.zeros_like(m[0])
    without_mlp = block(x, torch.stack([m[0], off, *m[2:]]), attn, mlp)
    without_attn = block(x, torch.stack([off, *m[1:]]), attn, mlp)
    return without_mlp + without_attn - x


def without_gates(x: Tensor, m: Tensor, attn: Branch, mlp: Branch) -> Tensor:
    one = torch.ones_like(m[0])
    return block(x, torch.stack([one, one, *m[2:]]), attn, mlp)


def one_plus_gate(x: Tensor, m: Tensor, attn: Branch, mlp: Branch) -> Tensor:
    return block(x, torch.cat([1 + m[:2], m[2:]]), attn, mlp)


def first_modulation_for_all(x: Tensor, m: Tensor, attn: Branch, mlp: Branch) -> Tensor:
    return block(x, torch.cat([m[:2], m[2:, :, :1].expand_as(m[2:])]), attn, mlp)


def gates_the_sum(x: Tensor, m: Tensor, attn: Branch, mlp: Branch) -> Tensor:
    gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = m
    x = gate_attn * (x + attn(modulate_each(x, shift_attn, scale_attn)))
    return gate_mlp * (x + mlp(modulate_each(x, shift_mlp, scale_mlp)))


def without_residual(x: Tensor, m: Tensor, attn: Branch, mlp: Branch) -> Tensor:
    gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = m
    x = gate_attn * attn(modulate_each(x, shift_attn, scale_attn))
    return gate_mlp * mlp(modulate_each(x, shift_mlp, scale_mlp))


# ---- ★★ registers: positions, mask token, null token ---------------------------------------------


def register_inputs(g: torch.Generator) -> Iterator[tuple]:
    for B, K, D in ((1, 3, 2), (3, 4, 2), (4, 6, 3)):
        projected, positions = (torch.randn(*s, generator=g) for s in ((B, K, D), (K, D)))
        mask_token, null_token = (torch.randn(D, generator=g) for _ in range(2))
        keep_k = torch.randint(1, K + 1, (B,), generator=g)
        keep_k[0] = K - 1
        null = torch.arange(B) % 3 == 1
        yield projected, positions, mask_token, null_token, keep_k, null


def embed(
    projected: Tensor,
    positions: Tensor,
    mask_token: Tensor,
    null_token: Tensor,
    keep_k: Tensor,
    null: Tensor,
) -> Tensor:
    out = torch.zeros_like(projected)
    for b in range(len(projected)):
        for i in range(projected.shape[1]):
            kept = projected[b, i] + positions[i] if i < keep_k[b] else mask_token
            out[b, i] = null_token if null[b] else kept
    return out


def mask_with_position(projected, positions, mask_token, null_token, keep_k, null) -> Tensor:
    out = embed(projected, positions, mask_token, null_token, keep_k, null)
    dropped = torch.arange(len(positions)) >= keep_k[:, None]
    return torch.where((dropped & ~null[:, None])[..., None], mask_token + positions, out)


def null_with_position(projected, positions, mask_token, null_token, keep_k, null) -> Tensor:
    out = embed(projected, positions, mask_token, null_token, keep_k, null)
    return torch.where(null[:, None, None], null_token + positions, out)


def all_with_positions(projected, positions, mask_token, null_token, keep_k, null) -> Tensor:
    zeros = torch.zeros_like(positions)
    return embed(projected, zeros, mask_token, null_token, keep_k, null) + positions


def mask_wins(projected, positions, mask_token, null_token, keep_k, null) -> Tensor:
    out = embed(projected, positions, mask_token, null_token, keep_k, null)
    dropped = torch.arange(len(positions)) >= keep_k[:, None]
    return torch.where(dropped[..., None], mask_token, out)


def keeps_one_more(projected, positions, mask_token, null_token, keep_k, null) -> Tensor:
    return embed(projected, positions, mask_token, null_token, keep_k + 1, null)


def zeros_for_dropped(projected, positions, mask_token, null_token, keep_k, null) -> Tensor:
    return embed(projected, positions, 0 * mask_token, null_token, keep_k, null)


def one_length_for_all(projected, positions, mask_token, null_token, keep_k, null) -> Tensor:
    same = keep_k[:1].expand(len(keep_k))
    return embed(projected, positions, mask_token, null_token, same, null)


def without_null(projected, positions, mask_token, null_token, keep_k, null) -> Tensor:
    return embed(projected, positions, mask_token, null_token, keep_k, torch.zeros_like(null))


def kept_and_dropped_exchanged(
    projected, positions, mask_token, null_token, keep_k, null
) -> Tensor:
    kept = torch.arange(len(positions)) < keep_k[:, None]
    registers = torch.where(kept[..., None], mask_token, projected + positions)
    return torch.where(null[:, None, None], null_token, registers)


# ---- ★★★ the decoder, from codes to velocity -----------------------------------------------------


class SmallDecoder(Decoder):
    """A decoder whose every weight matters, with 4 patches and 4 registers."""

    def __init__(self, g: torch.Generator):
        levels, width = (4, 4), 8
        super().__init__(
            TokenizerConfig(
                image_size=4,
                patch_size=2,
                enc_dim=width,
                dec_dim=width,
                head_dim=4,
                dec_depth=2,
                num_registers=4,
                fsq_levels=levels,
            )
        )
        for p in self.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=g)

    def __repr__(self) -> str:
        return "a small decoder"


def decoder_inputs(g: torch.Generator) -> Iterator[tuple]:
    d = SmallDecoder(g)
    for B in (1, 2, 4):
        x_t, codes = torch.randn(B, 3, 4, 4, generator=g), torch.randn(B, 4, 2, generator=g)
        keep_k = torch.randint(1, 4, (B,), generator=g)
        yield (
            d,
            x_t,
            0.1 + 0.8 * torch.rand(B, generator=g),
            codes,
            keep_k,
            torch.arange(B) % 3 == 1,
        )


def detached(v: Any) -> Any:
    return v.detach() if isinstance(v, Tensor) else v


def forward(
    d: Decoder, x_t: Tensor, t: Tensor, codes: Tensor, keep_k: Tensor, null: Tensor
) -> Tensor:
    return d(x_t, t, d.embed_registers(codes, keep_k, null))


def parts_of(d, x_t, t, codes, keep_k, null) -> tuple:
    registers = d.embed_registers(codes, keep_k, null)
    patches = embed_patches(x_t, d.patch_size, d.patch_proj, d.positions)
    return patches, registers, d.embed_time(t), x_t.shape[-1] // d.patch_size


def registers_first(d, x_t, t, codes, keep_k, null) -> Tensor:
    patches, registers, time, side = parts_of(d, x_t, t, codes, keep_k, null)
    P, seq = patches.shape[1], torch.cat([registers, patches], dim=1)
    for layer in d.blocks:
        seq = layer(seq, layer.modulation(time), P)
    return d.output(seq[:, :P], d.head_adaln(silu(time)), side, side)


def reads_the_registers(d, x_t, t, codes, keep_k, null) -> Tensor:
    patches, registers, time, side = parts_of(d, x_t, t, codes, keep_k, null)
    P, seq = patches.shape[1], torch.cat([patches, registers], dim=1)
    for layer in d.blocks:
        seq = layer(seq, layer.modulation(time), P)
    return d.output(seq[:, -P:], d.head_adaln(silu(time)), side, side)


def all_modulated_as_patches(d, x_t, t, codes, keep_k, null) -> Tensor:
    patches, registers, time, side = parts_of(d, x_t, t, codes, keep_k, null)
    P, seq = patches.shape[1], torch.cat([patches, registers], dim=1)
    for layer in d.blocks:
        seq = layer(seq, layer.modulation(time), seq.shape[1])
    return d.output(seq[:, :P], d.head_adaln(silu(time)), side, side)


def head_without_silu(d, x_t, t, codes, keep_k, null) -> Tensor:
    patches, registers, time, side = parts_of(d, x_t, t, codes, keep_k, null)
    P, seq = patches.shape[1], torch.cat([patches, registers], dim=1)
    for layer in d.blocks:
        seq = layer(seq, layer.modulation(time), P)
    return d.output(seq[:, :P], d.head_adaln(time), side, side)


def without_blocks(d, x_t, t, codes, keep_k, null) -> Tensor:
    patches, _, time, side = parts_of(d, x_t, t, codes, keep_k, null)
    return d.output(patches, d.head_adaln(silu(time)), side, side)


def t_reversed(d, x_t, t, codes, keep_k, null) -> Tensor:
    return forward(d, x_t, 1 - t, codes, keep_k, null)


def without_positions(d, x_t, t, codes, keep_k, null) -> Tensor:
    d = copy.deepcopy(d)
    d.positions.zero_()
    return forward(d, x_t, t, codes, keep_k, null)


def all_kept(d, x_t, t, codes, keep_k, null) -> Tensor:
    return forward(d, x_t, t, codes, torch.full_like(keep_k, 4), null)


def never_null(d, x_t, t, codes, keep_k, null) -> Tensor:
    return forward(d, x_t, t, codes, keep_k, torch.zeros_like(null))


def head_not_modulated(d, x_t, t, codes, keep_k, null) -> Tensor:
    patches, registers, time, side = parts_of(d, x_t, t, codes, keep_k, null)
    P, seq = patches.shape[1], torch.cat([patches, registers], dim=1)
    for layer in d.blocks:
        seq = layer(seq, layer.modulation(time), P)
    return d.output(seq[:, :P], torch.zeros(len(t), 2 * seq.shape[-1]), side, side)


def scale_before_shift(d, x_t, t, codes, keep_k, null) -> Tensor:
    patches, registers, time, side = parts_of(d, x_t, t, codes, keep_k, null)
    P, seq = patches.shape[1], torch.cat([patches, registers], dim=1)
    for layer in d.blocks:
        seq = layer(seq, layer.modulation(time), P)
    swapped = d.head_adaln(silu(time)).chunk(2, dim=-1)[::-1]
    return d.output(seq[:, :P], torch.cat(swapped, dim=-1), side, side)


# ---- ★★ REPA -------------------------------------------------------------------------------------


def alignment_inputs(g: torch.Generator) -> Iterator[tuple]:
    for B, D, h, w in ((1, 2, 1, 2), (2, 3, 2, 3), (3, 4, 3, randint(g, 2, 4))):
        predicted = torch.randn(B, h * w, D, generator=g)
        yield predicted, torch.rand(B, D, h, w, generator=g), torch.rand(D, generator=g)


def alignment(predicted: Tensor, features: Tensor, mean: Tensor) -> Tensor:
    B, _, h, w = features.shape
    total = torch.zeros(())
    for b in range(B):
        for i in range(h * w):
            a, target = predicted[b, i], features[b, :, i // w, i % w] - mean
            total += (a @ target) / (a.norm() * target.norm())
    return 1 - total / (B * h * w)


def mean_not_subtracted(predicted: Tensor, features: Tensor, mean: Tensor) -> Tensor:
    return alignment(predicted, features, 0 * mean)


def subtracted_from_both(predicted: Tensor, features: Tensor, mean: Tensor) -> Tensor:
    return alignment(predicted - mean, features, mean)


def columns_first(predicted: Tensor, features: Tensor, mean: Tensor) -> Tensor:
    return alignment(predicted, features.transpose(2, 3), mean)


def scrambled(predicted: Tensor, features: Tensor, mean: Tensor) -> Tensor:
    B, D, h, w = features.shape
    return alignment(predicted, features.reshape(B, h * w, D).mT.reshape(B, D, h, w), mean)


def dot_products(predicted: Tensor, features: Tensor, mean: Tensor) -> Tensor:
    target = features.flatten(2).mT - mean
    return 1 - (predicted * target).sum(-1).mean()


def similarity_itself(predicted: Tensor, features: Tensor, mean: Tensor) -> Tensor:
    return 1 - alignment(predicted, features, mean)


def one_vector_per_image(predicted: Tensor, features: Tensor, mean: Tensor) -> Tensor:
    target = (features - mean[:, None, None]).flatten(2).transpose(1, 2)
    a, b = predicted.flatten(1), target.flatten(1)
    return 1 - torch.nn.functional.cosine_similarity(a, b).mean()


EXERCISES = {
    "features": Exercise(
        timesteps,
        features,
        [
            (
                not_scaled,
                "t itself is between 0 and 1, so most of these angles hardly change. Multiply t "
                "by 1000 first.",
            ),
            (
                base_10000,
                "the frequencies fall from 1 to nearly 1/10000, as for positions in a sentence. "
                "Here they fall to nearly 1/256.",
            ),
            (higher_and_higher, "the frequencies grow with j. The exponent is negative: -j / n."),
            (
                half_the_exponent,
                "you divided j by 2 n. There are n frequencies, and the exponent is -j / n.",
            ),
            (
                last_at_256,
                "you divided j by n - 1, so that the last frequency is 1/256. The exponent is "
                "-j / n.",
            ),
            (sines_first, "the order is: all cosines first, then all sines."),
            (
                interleaved,
                "cosines and sines alternate. The order is: all cosines first, then all sines.",
            ),
            (
                lambda t, n: features(t, n).T,
                "the axes are exchanged: one row for each timestep.",
            ),
            (
                lambda t, n: features(t, n, scale=2000 * math.pi),
                "there is no factor 2 pi: the angles are 1000 * t * f_j.",
            ),
            (
                lambda t, n: features(t, n, scale=1000 * 256 ** (-1 / n)),
                "j runs from 1 to n here. It starts at 0, so the first frequency is 1.",
            ),
            (
                lambda t, n: features(t, n, base=1000.0),
                "the base is 256. The factor 1000 belongs to t, not to the base.",
            ),
            (
                lambda t, n: features(t, n, base=1.0),
                "all frequencies are 1: j // n is 0 for every j. Use j / n.",
            ),
        ],
        tolerance=2e-3,  # angles up to 1000 in float32
    ),
    "block": Exercise(
        block_inputs,
        block,
        [
            (
                order_of_dit,
                "you split m in the order of DiT (shift, scale, gate for each branch). Here the "
                "two gates come first: gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, "
                "scale_mlp.",
            ),
            (
                shift_and_scale_swapped,
                "shift and scale are swapped: in m, each shift comes before its scale.",
            ),
            (
                without_norm,
                "the layer norms are missing: each branch reads the modulated layer norm of x.",
            ),
            (
                both_from_the_input,
                "both branches read the input of the block. The MLP branch reads the result of "
                "the attention branch.",
            ),
            (without_gates, "the gates are missing: multiply each branch by its gate."),
            (
                one_plus_gate,
                "the factor of a branch is 1 + gate. It is the gate itself, so that gates of 0 "
                "make the block the identity.",
            ),
            (
                gates_the_sum,
                "the gate multiplies x, too. It multiplies the branch alone: x + gate * branch.",
            ),
            (without_residual, "x is not added. Each branch is added to x: x + gate * branch."),
            (
                lambda x, m, attn, mlp: block(x, m - ONE, attn, mlp),
                "the factor is scale in place of 1 + scale.",
            ),
            (
                lambda x, m, attn, mlp: block(x, m[[1, 0, 2, 3, 4, 5]], attn, mlp),
                "the two gates are exchanged: gate_attn comes first.",
            ),
            (
                lambda x, m, attn, mlp: block(x, m[[0, 1, 4, 5, 2, 3]], attn, mlp),
                "the modulations of the two branches are exchanged: shift_attn and "
                "scale_attn come before shift_mlp and scale_mlp.",
            ),
            (
                lambda x, m, attn, mlp: block(x, m, mlp, attn),
                "the MLP comes first here. Attention comes first.",
            ),
            (
                first_modulation_for_all,
                "all positions got shift and scale of the first one. Patches and registers have "
                "different ones: let them broadcast, without [:, 0].",
            ),
            (
                lambda x, m, attn, mlp: block(x, m[[0, 1, 2, 4, 3, 5]], attn, mlp),
                "both shifts were taken before both scales. The order is shift_attn, "
                "scale_attn, shift_mlp, scale_mlp.",
            ),
        ],
    ),
    "embed": Exercise(
        register_inputs,
        embed,
        [
            (
                mask_with_position,
                "a dropped register still has its position. The mask token replaces the whole "
                "register, after its position was added.",
            ),
            (
                null_with_position,
                "null registers still have positions. The null token replaces the whole register.",
            ),
            (
                all_with_positions,
                "the positions were added last, so dropped and null registers still have them. "
                "Add the positions first; the two tokens then replace whole registers.",
            ),
            (
                mask_wins,
                "in images with the null condition, the dropped registers are mask tokens. The "
                "null condition overrides nested dropout: all K registers are the null token.",
            ),
            (
                keeps_one_more,
                "one register too many is kept. Registers with index >= keep_k are dropped, and "
                "indices start at 0.",
            ),
            (
                zeros_for_dropped,
                "dropped registers are zeros. They are the mask token, a learned vector.",
            ),
            (one_length_for_all, "all images keep as many registers as the first one."),
            (without_null, "the null condition is not used."),
            (
                lambda p, pos, mask, null_token, k, null: embed(p, pos, null_token, mask, k, null),
                "the two tokens are exchanged.",
            ),
            (
                lambda p, pos, mask, null_token, k, null: embed(
                    p, 0 * pos, mask, null_token, k, null
                ),
                "the kept registers have no position: add the positions first.",
            ),
            (
                lambda p, pos, mask, null_token, k, null: embed(p, pos, mask, null_token, k, ~null),
                "the null condition is inverted: where null is True, all registers are the "
                "null token.",
            ),
            (
                lambda p, pos, mask, null_token, k, null: embed(p, pos, mask, mask, k, null),
                "null images got the mask token. The null token is a vector of its own.",
            ),
            (
                kept_and_dropped_exchanged,
                "kept and dropped registers are exchanged: the first keep_k are kept.",
            ),
        ],
    ),
    "forward": Exercise(
        decoder_inputs,
        forward,
        [
            (
                registers_first,
                "the registers come first in your sequence. The patches do: each block modulates "
                "its first P positions as patches.",
            ),
            (
                reads_the_registers,
                "the head reads the last positions, the registers. It reads the first P.",
            ),
            (
                all_modulated_as_patches,
                "all positions are modulated as patches: the last argument of a block is the "
                "number of patches, P, not the length of the sequence.",
            ),
            (head_without_silu, "the head's modulation is d.head_adaln(F.silu(time))."),
            (head_not_modulated, "the head is not modulated by t: layer norm, scale, shift, head."),
            (scale_before_shift, "the head's first D values are its shift, the last D its scale."),
            (without_blocks, "the blocks do not change the sequence: assign their result."),
            (without_positions, "the patches have no positions: add d.positions.flatten(0, 1)."),
            (all_kept, "keep_k is not used: give it to d.embed_registers."),
            (never_null, "null is not used: give it to d.embed_registers."),
            (t_reversed, "the time embedding is that of 1 - t."),
        ],
        observe=lambda f, *args: detached(f(*args)),
    ),
    "alignment": Exercise(
        alignment_inputs,
        alignment,
        [
            (
                mean_not_subtracted,
                "the mean feature was not subtracted from the teacher's features.",
            ),
            (
                subtracted_from_both,
                "the mean was subtracted from the prediction, too. The prediction is of the "
                "centered features.",
            ),
            (
                columns_first,
                "the features are in the order of columns. Patches are in row-major order: "
                "features.flatten(2) keeps it.",
            ),
            (
                scrambled,
                "reshape to (B, P, D) mixes channels and positions. Flatten the grid, then swap "
                "the last two axes: features.flatten(2).transpose(1, 2).",
            ),
            (
                dot_products,
                "these are dot products. The cosine divides by the lengths of both vectors.",
            ),
            (similarity_itself, "this is the mean similarity. The loss is 1 minus it."),
            (
                one_vector_per_image,
                "you took the cosine similarity of whole images. Take it for each patch, then "
                "the mean.",
            ),
            (
                lambda predicted, features, mean: alignment(predicted, features, -mean),
                "the mean was added. Subtract it.",
            ),
            (
                lambda predicted, features, mean: alignment(predicted, features, mean) - 1,
                "this is minus the mean similarity. The loss is 1 minus it, so that it is 0 "
                "for a perfect prediction.",
            ),
            (
                lambda predicted, features, mean: alignment(
                    predicted, features, features.mean((0, 2, 3))
                ),
                "this subtracts the mean of this batch. Subtract the given mean, which was "
                "computed on many images.",
            ),
            (
                lambda predicted, features, mean: (
                    1
                    - torch.cosine_similarity(
                        predicted, features.flatten(2).transpose(1, 2) - mean, dim=1
                    ).mean()
                ),
                "the cosine is over the patches here. It is over the channels of each patch: "
                "dim=-1.",
            ),
            (
                lambda predicted, features, mean: (
                    (predicted - features.flatten(2).transpose(1, 2) + mean).square().mean()
                ),
                "this is the mean squared error. The loss is 1 minus the cosine similarity, "
                "which ignores the lengths.",
            ),
            (
                lambda predicted, features, mean: (
                    1 - predicted.shape[1] * (1 - alignment(predicted, features, mean))
                ),
                "you summed over the patches. Take their mean.",
            ),
        ],
    ),
}
