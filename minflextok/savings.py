"""The exact savings: the same results for less work, up to rounding. `tok.savings = False` turns
all of them off.

Read encoder.py, decoder.py and tokenizer.py first: they are the algorithm. Each saving below has
its proof and a test against the plain path (tests/test_savings.py). `python benchmarks/bench.py`
measures what they save.

Notation: P patches, K registers, of which the first m <= K are kept.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .decoder import Decoder
from .encoder import Encoder
from .nested_dropout import round_up_pow2
from .patches import embed_patches
from .transformer import AdaLNBlock, Attention, Block, attend, layer_norm


def _queries(attn: Attention, x: Tensor) -> Tensor:
    return layer_norm(attn.heads(attn.wq(x)))  # (B, H, N, d)


def _keys_values(attn: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    return layer_norm(attn.heads(attn.wk(x))), attn.heads(attn.wv(x))


def _project(attn: Attention, x: Tensor) -> Tensor:
    return attn.proj(x.transpose(1, 2).flatten(2))  # (B, H, N, d) -> (B, N, D)


# ---- encoder: only the requested registers, and a smaller mask -----------------------------------
#
# Patches do not attend to registers, and under the causal mask no register attends to later ones.
# So (1) later registers can be left out without changing earlier ones, and (2) two attention calls
# replace one with an (N, N) mask: patches to patches, without a mask; registers to everything, with
# an (m, P + m) mask. (3) The head reads registers only, so of the patches in the last block only
# keys and values are needed.


def _prefix_attention(
    attn: Attention, x: Tensor, P: int, causal: bool, only_registers: bool = False
) -> Tensor:
    """Attention under `prefix_mask`: x (B, P + m, D) -> (B, P + m, D), or (B, m, D) of the
    registers."""
    k, v = _keys_values(attn, x)
    q = _queries(attn, x[:, P:] if only_registers else x)
    m = x.shape[1] - P
    mask = torch.ones(m, P + m, dtype=torch.bool, device=x.device).tril(P) if causal else None
    out = attend(q[:, :, -m:], k, v, attn.scale, mask)
    if not only_registers:
        out = torch.cat([attend(q[:, :, :P], k[:, :, :P], v[:, :, :P], attn.scale), out], dim=2)
    return _project(attn, out)


def _prefix_block(
    block: Block, x: Tensor, P: int, causal: bool, only_registers: bool = False
) -> Tensor:
    """`block(x, mask)` under `prefix_mask`; shapes as in `_prefix_attention`."""
    attention = _prefix_attention(block.attn, layer_norm(x), P, causal, only_registers)
    x = (x[:, P:] if only_registers else x) + attention
    return x + block.mlp(layer_norm(x))


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One graph for all blocks and sizes."""
    return torch.compile(function, dynamic=True)


def _run(function: Callable[..., Tensor], block: nn.Module, *inputs) -> Tensor:
    """function(block, *inputs). In training it is compiled if the block is, and if the block
    checkpoints its activations, the backward pass computes them again."""
    if not torch.is_grad_enabled():
        return function(block, *inputs)
    if getattr(block, "compiled", False):
        function = _compiled(function)
    if getattr(block, "recompute", False):
        return checkpoint(function, block, *inputs, use_reentrant=False)
    return function(block, *inputs)


def encode_registers(encoder: Encoder, x: Tensor, num_registers: int) -> Tensor:
    """`encoder(x)[:, :num_registers]`: (B, C, H, W) -> (B, m, F). Without the causal mask, all
    K registers must be computed."""
    patches = embed_patches(x, encoder.patch_size, encoder.patch_proj, encoder.positions)
    P = patches.shape[1]
    needed = num_registers if encoder.causal else len(encoder.registers)
    registers = encoder.registers[:needed].expand(len(x), -1, -1)  # (B, m, D)
    seq = torch.cat([patches, registers], dim=1)  # (B, P + m, D)
    blocks: list[Block] = list(encoder.blocks)
    for block in blocks[:-1]:
        seq = _run(_prefix_block, block, seq, P, encoder.causal)
    seq = _run(_prefix_block, blocks[-1], seq, P, encoder.causal, True)
    return encoder.head(layer_norm(seq))[:, :num_registers]


# ---- decoder: equal registers as one -------------------------------------------------------------
#
# Dropped registers enter as n = K - m equal vectors, and every layer treats them alike, so they
# stay equal. As keys, n equal logits l contribute n exp(l) = exp(l + log n) to the softmax: one
# register with log n added to its logit.


def merge_dropped(registers: Tensor, kept: int) -> tuple[Tensor, Tensor | None]:
    """registers (B, K, D), the same vector from index `kept` on -> (B, kept + 1, D), and the bias
    (kept + 1,) of each as a key. With fewer than two equal ones: as they are, without a bias."""
    n = registers.shape[1] - kept
    if n <= 1:
        return registers, None
    bias = torch.zeros(kept + 1, device=registers.device)
    bias[-1] = math.log(n)
    return registers[:, : kept + 1], bias


# ---- decoder: last block where it is read, modulations once a step -------------------------------
#
# The head reads patches only, so of the registers in the last block only keys and values are
# needed. The modulations depend on t alone, so they are computed once for the conditional and the
# unconditional call of a step.


def modulations(decoder: Decoder, t: Tensor) -> list[Tensor]:
    """The modulation of each block and, last, of the head, for t (B,) or (1,)."""
    time = decoder.embed_time(t)
    return [*(block.modulation(time) for block in decoder.blocks), decoder.head_adaln(F.silu(time))]


def _last_block(block: AdaLNBlock, x: Tensor, mod: Tensor, P: int, bias: Tensor | None) -> Tensor:
    """`block(x, mod, P, bias)[:, :P]`."""
    mod = block.per_position(mod, P, x.shape[1])
    _, _, shift, scale, _, _ = mod
    modulated = layer_norm(x) * (1 + scale) + shift
    q, (k, v) = _queries(block.attn, modulated[:, :P]), _keys_values(block.attn, modulated)
    attention = _project(block.attn, attend(q, k, v, block.attn.scale, bias))
    gate_attn, gate_mlp, _, _, shift, scale = mod[:, :, :P]
    x = x[:, :P] + gate_attn * attention
    return x + gate_mlp * block.mlp(layer_norm(x) * (1 + scale) + shift)


def velocity(
    decoder: Decoder,
    x_t: Tensor,
    mods: list[Tensor],
    registers: Tensor,
    bias: Tensor | None = None,
    hidden: list[Tensor] | None = None,
) -> Tensor:
    """`decoder(x_t, t, registers, hidden)`, given the `modulations` of t, and registers (B, M, D)
    with the bias (M,) of `merge_dropped`."""
    h, w = x_t.shape[-2] // decoder.patch_size, x_t.shape[-1] // decoder.patch_size
    P = h * w
    patches = embed_patches(x_t, decoder.patch_size, decoder.patch_proj, decoder.positions)
    seq = torch.cat([patches, registers], dim=1)  # (B, P + M, D)
    mask = None if bias is None else F.pad(bias, (P, 0))  # (P + M,), one value per key
    *block_mods, head_mod = mods
    blocks: list[AdaLNBlock] = list(decoder.blocks)
    for block, mod in zip(blocks[:-1], block_mods[:-1], strict=True):
        seq = block(seq, mod, P, mask)
        if hidden is not None:
            hidden.append(seq[:, :P])
    patches = _run(_last_block, blocks[-1], seq, block_mods[-1], P, mask)
    if hidden is not None:
        hidden.append(patches)
    return decoder.output(patches, head_mod, h, w)


# ---- sampling: guidance in one batch -------------------------------------------------------------
#
# Images of a batch do not interact, so the conditional and the unconditional velocity can be
# computed as one batch of twice the size. That is faster on a GPU, unless many registers are kept.
# On a CPU two calls are faster, because the unconditional one has only P + 1 positions.


def one_batch_pays(x_t: Tensor, num_kept: int, num_patches: int) -> bool:
    """Whether two conditions are faster as one batch."""
    return x_t.is_cuda and num_kept <= num_patches // 2


def velocities(
    decoder: Decoder,
    x_t: Tensor,
    t: Tensor,
    conditions: list[Tensor],
    kept: list[int],
    hidden: list[Tensor] | None = None,
) -> list[Tensor]:
    """`[decoder(x_t, t, registers, hidden) for registers in conditions]`. Of condition i (B, K, D),
    the registers from kept[i] on are equal."""
    mods = modulations(decoder, t)
    P = x_t.shape[-1] * x_t.shape[-2] // decoder.patch_size**2
    alone = len(conditions) == 1 or len(t) > 1 or hidden is not None
    if alone or not one_batch_pays(x_t, max(kept), P):
        merged = [merge_dropped(r, k) for r, k in zip(conditions, kept, strict=True)]
        return [velocity(decoder, x_t, mods, registers, bias, hidden) for registers, bias in merged]
    n = len(conditions)
    registers, bias = merge_dropped(torch.cat(conditions), max(kept))
    return list(velocity(decoder, x_t.repeat(n, 1, 1, 1), mods, registers, bias).chunk(n))


# ---- training: images that keep similar numbers of registers are grouped -------------------------
#
# The loss is a mean over images, so it is the mean of the losses of groups, weighted by their
# sizes. A group whose images keep at most m registers costs P + m + 1 positions instead of P + K.
# m is rounded up to a power of two and is at least P/8, because a smaller group costs more in
# overhead than it saves. If K <= P/4, all images form one group.


def group_sizes(keep_k: Tensor, null: Tensor, P: int, K: int) -> Tensor:
    """The number of registers m that is computed for each image, (B,)."""
    needed = torch.where(null, 1, keep_k)  # null images need no register; m is at least 1
    smallest = P // 8 if K > P // 4 else K
    return round_up_pow2(needed).clamp(min=smallest, max=K)


def by_length(
    group_loss: Callable[..., Tensor],
    keep_k: Tensor,
    null: Tensor,
    P: int,
    K: int,
    *tensors: Tensor | None,
) -> Tensor:
    """The mean over all images of group_loss(m, keep_k, null, *tensors), called on groups that keep
    at most m registers. `training.objective` calls it.

    keep_k (B,), null (B,): on the CPU, to lay out the groups without waiting for a GPU; tensors:
    (B, ...) or None.
    """
    device = next(x.device for x in tensors if x is not None)
    sizes = group_sizes(keep_k, null, P, K)
    total = torch.zeros((), device=device)
    for m in sizes.unique().tolist():
        i = (sizes == m).nonzero()[:, 0].to(device, non_blocking=True)
        k = keep_k.clamp(max=m).to(device, non_blocking=True)[i]
        is_null = null.to(device, non_blocking=True)[i]
        rows = [None if x is None else x[i] for x in tensors]
        total = total + group_loss(m, k, is_null, *rows) * len(i)
    return total / len(keep_k)
