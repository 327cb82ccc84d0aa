"""Exercises of notebook 02: attention, registers, the attention mask."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import Exercise, randint

# ---- attention: one head, masked -----------------------------------------------------------------


def _attention_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield (
        torch.eye(2),
        2 * torch.eye(2),
        torch.tensor([[1.0, 0.0], [0.0, 10.0]]),
        torch.ones(2, 2).tril().bool(),
    )
    for _ in range(6):
        N, d = randint(g, 3, 6), randint(g, 2, 5)
        mask = (torch.rand(N, N, generator=g) < 0.6) | torch.eye(N, dtype=torch.bool)
        yield *(torch.randn(N, d, generator=g) for _ in range(3)), mask


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, masked_after: bool = False
) -> Tensor:
    out = torch.zeros(len(q), v.shape[1])
    for i in range(len(q)):
        weights = [
            math.exp(scale * sum(a * b for a, b in zip(q[i].tolist(), key.tolist(), strict=True)))
            for key in k
        ]
        total = sum(w for j, w in enumerate(weights) if masked_after or mask[i, j])
        for j in range(len(k)):
            if mask[i, j]:
                out[i] += weights[j] / total * v[j]
    return out


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return _attention(q, k, v, mask, q.shape[1] ** -0.5)


ATTENTION = Exercise(
    _attention_inputs,
    attention,
    [
        (
            lambda q, k, v, mask: _attention(q, k, v, mask, 1.0),
            "the logits are not scaled: divide q k^T by the square root of the width d.",
        ),
        (
            lambda q, k, v, mask: _attention(q, k, v, mask, 1 / q.shape[1]),
            "the logits are divided by d: divide by the square root of d.",
        ),
        (
            lambda q, k, v, mask: (
                (q @ k.T / q.shape[1] ** 0.5).masked_fill(mask, float("-inf")).softmax(-1) @ v
            ),
            "the mask is inverted: True means that the query attends to the key, so ~mask "
            "gets -inf. (A row of nan is a query without any key.)",
        ),
        (
            lambda q, k, v, mask: _attention(q, k, v, mask, q.shape[1] ** -0.5, masked_after=True),
            "masked after the softmax: the weights of a row no longer add up to 1. Set the "
            "logits to -inf before the softmax.",
        ),
        (
            lambda q, k, v, mask: (
                (q @ k.T / q.shape[1] ** 0.5).masked_fill(~mask, float("-inf")).softmax(0) @ v
            ),
            "the softmax is over the queries. The weights of each query (row) add up to 1 "
            "over the keys: the last axis.",
        ),
        (lambda q, k, v, mask: attention(q, k, v, torch.ones_like(mask)), "the mask is not used."),
        (
            lambda q, k, v, mask: attention(q, k, v, mask.T),
            "the mask is transposed: rows are queries, columns are keys.",
        ),
        (
            lambda q, k, v, mask: (
                (q @ k.T / q.shape[1] ** 0.5).masked_fill(~mask, 0.0).softmax(-1) @ v
            ),
            "a logit of 0 does not remove a key: exp(0) = 1. Masked keys get -inf.",
        ),
        (
            lambda q, k, v, mask: _attention(q, k, v, mask, q.shape[1] ** 0.5),
            "the logits are multiplied by the square root of d. Divide by it.",
        ),
        (
            lambda q, k, v, mask: _attention(q, k, v, mask, 1.0) / q.shape[1] ** 0.5,
            "the result is divided by the square root of d. Divide the logits, before the softmax.",
        ),
        (
            lambda q, k, v, mask: attention(k, q, v, mask),
            "queries and keys are exchanged: row i has the logits of query i, q @ k.T.",
        ),
        (
            lambda q, k, v, mask: (q @ k.T / q.shape[1] ** 0.5).masked_fill(~mask, 0.0) @ v,
            "the softmax is missing: the weights of a query are positive and add up to 1.",
        ),
        (
            lambda q, k, v, mask: attention(q, k, torch.eye(len(k)), mask),
            "these are the weights. The result is their mean of the values: weights @ v.",
        ),
    ],
)


# ---- split_heads ---------------------------------------------------------------------------------


def _heads_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.arange(8.0).view(2, 4), 2
    for _ in range(4):
        N, H, d = randint(g, 2, 5), randint(g, 2, 4), randint(g, 2, 4)
        yield torch.randn(N, H * d, generator=g), d


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    N, D = x.shape
    out = torch.empty(D // head_dim, N, head_dim)
    for n in range(N):
        for m in range(D):
            out[m // head_dim, n, m % head_dim] = x[n, m]
    return out


SPLIT_HEADS = Exercise(
    _heads_inputs,
    split_heads,
    [
        (
            lambda x, head_dim: x.reshape(-1, len(x), head_dim),
            "the shape is right, the contents are not: a view straight to (H, N, d) mixes "
            "positions into one head. First view as (N, H, d), then swap the axes.",
        ),
        (
            lambda x, head_dim: split_heads(x, head_dim).transpose(0, 1),
            "this is (N, H, d): swap the first two axes, so that each head has its own (N, "
            "d) matrix.",
        ),
        (
            lambda x, head_dim: x.reshape(len(x), head_dim, -1).permute(2, 0, 1),
            "each head takes every H-th channel. Head h takes the consecutive channels h * "
            "d to (h + 1) * d.",
        ),
        (
            lambda x, head_dim: split_heads(x, head_dim).transpose(1, 2),
            "each head is transposed: a head is (N, d), with one row for each position.",
        ),
        (
            lambda x, head_dim: x.T.reshape(-1, len(x), head_dim),
            "the shape is right, the contents are not: after x.T, reshape puts numbers "
            "of one channel side by side. View x as (N, H, d) first, then swap the first "
            "two axes.",
        ),
        (
            lambda x, head_dim: split_heads(x, x.shape[1] // head_dim),
            "head_dim is the width d of a head, not the number of heads.",
        ),
    ],
)


# ---- prefix_mask ---------------------------------------------------------------------------------


def prefix_mask(P: int, K: int) -> Tensor:
    mask = torch.zeros(P + K, P + K, dtype=torch.bool)
    for query in range(P + K):
        for key in range(P + K):
            mask[query, key] = key < P or (query >= P and key <= query)
    return mask


def _masked(rule: Callable[[int, int, int], bool]):
    return lambda P, K: torch.tensor([[rule(q, k, P) for k in range(P + K)] for q in range(P + K)])


PREFIX_MASK = Exercise(
    lambda g: [(2, 2)] + [(randint(g, 2, 6), randint(g, 2, 5)) for _ in range(5)],
    prefix_mask,
    [
        (
            _masked(lambda q, k, P: k <= q),
            "causal everywhere: a patch attends only to earlier patches. All patches attend "
            "to all patches; only registers are ordered.",
        ),
        (
            _masked(lambda q, k, P: k <= P or k <= q),
            "off by one: all patches attend to register 0, at index P. The patches are the "
            "indices below P.",
        ),
        (
            _masked(lambda q, k, P: q < P or k <= q),
            "the rows of the patches are all True, so patches attend to registers. Every "
            "position attends to the patches: these are columns.",
        ),
        (
            _masked(lambda q, k, P: k < P),
            "registers attend only to patches. A register also attends to itself and to the "
            "registers before it.",
        ),
        (
            _masked(lambda q, k, P: k < P or k < q),
            "a register also attends to itself: key <= query.",
        ),
        (
            _masked(lambda q, k, P: k < P or q >= P),
            "registers attend to all registers, including later ones. Then the first ids "
            "would depend on the number of registers after them.",
        ),
        (
            _masked(lambda q, k, P: True),
            "every position attends to every position: the registers have no order, and "
            "patches attend to registers.",
        ),
        (
            _masked(lambda q, k, P: q < P or q <= k),
            "rows and columns are exchanged: a row is a query, and its True entries are the "
            "keys it attends to.",
        ),
        (
            _masked(lambda q, k, P: not (k < P or (q >= P and k <= q))),
            "the mask is inverted: True means that the row attends to the column.",
        ),
        (
            _masked(lambda q, k, P: (k < P) == (q < P) and (q < P or k <= q)),
            "registers do not attend to patches here. Every position, also a register, "
            "attends to all patches.",
        ),
        (
            _masked(lambda q, k, P: k < P or k - P <= q),
            "the triangle of the registers starts in row 0, so patches attend to registers. "
            "It starts in row P: use .tril(-P), or build it as (K, K).",
        ),
        (
            _masked(lambda q, k, P: k < P or k == q),
            "a register attends only to itself among the registers. It also attends to "
            "the registers before it.",
        ),
        (
            _masked(lambda q, k, P: k < P or (q >= P and k >= q)),
            "registers attend to the registers AFTER them: this is an upper triangle. "
            "Use the lower one, key <= query.",
        ),
    ],
)


# ---- block: pre-norm residual --------------------------------------------------------------------


def _norm(x: Tensor) -> Tensor:
    rows = []
    for row in x.tolist():
        mean = sum(row) / len(row)
        variance = sum((v - mean) ** 2 for v in row) / len(row)
        rows.append([(v - mean) / math.sqrt(variance + 1e-5) for v in row])
    return torch.tensor(rows)


def _block_inputs(g: torch.Generator) -> Iterator[tuple]:
    for N, D in ((2, 3), (3, 4), (4, 6)):
        mix, wide = torch.randn(N, N, generator=g), torch.randn(D, D, generator=g)

        def attn(h: Tensor, mix: Tensor = mix) -> Tensor:
            return mix @ h

        def mlp(h: Tensor, wide: Tensor = wide) -> Tensor:
            return (h @ wide).relu()

        yield 3 * torch.randn(N, D, generator=g) + 1, attn, mlp


def block(x: Tensor, attn: Callable, mlp: Callable) -> Tensor:
    x = x.clone()
    for branch in (attn, mlp):
        added = branch(_norm(x))
        for i in range(len(x)):
            for j in range(x.shape[1]):
                x[i, j] += added[i, j]
    return x


def _post_norm(x: Tensor, attn: Callable, mlp: Callable) -> Tensor:
    x = _norm(x + attn(x))
    return _norm(x + mlp(x))


def _normed_residual(x: Tensor, attn: Callable, mlp: Callable) -> Tensor:
    h = _norm(x)
    h = _norm(h + attn(h))
    return h + mlp(h)


def _parallel(x: Tensor, attn: Callable, mlp: Callable) -> Tensor:
    return x + attn(_norm(x)) + mlp(_norm(x))


def _no_norm(x: Tensor, attn: Callable, mlp: Callable) -> Tensor:
    x = x + attn(x)
    return x + mlp(x)


def _no_residual(x: Tensor, attn: Callable, mlp: Callable) -> Tensor:
    return mlp(_norm(attn(_norm(x))))


BLOCK = Exercise(
    _block_inputs,
    block,
    [
        (
            _no_norm,
            "the norm is missing, or it was computed and not used: the branches take "
            "layer_norm(x), not x.",
        ),
        (
            _post_norm,
            "this is post-norm: the sum is normalized. In pre-norm only the input of each "
            "branch is normalized, and x itself is passed on unchanged.",
        ),
        (
            _normed_residual,
            "the residual is normalized too: x + attn(layer_norm(x)), where the first x is "
            "not normalized.",
        ),
        (
            _parallel,
            "the MLP reads the x from before the attention. It comes after the attention "
            "and reads its result.",
        ),
        (_no_residual, "the residual connections are missing: x + branch(layer_norm(x)), twice."),
        (
            lambda x, attn, mlp: (lambda y: y + _norm(mlp(y)))(x + _norm(attn(x))),
            "the outputs of the branches are normalized. Normalize their inputs.",
        ),
        (
            lambda x, attn, mlp: (lambda y: y + mlp(y))(x + attn(_norm(x))),
            "the second layer norm is missing: the MLP reads layer_norm(x), too.",
        ),
        (
            lambda x, attn, mlp: block(x, mlp, attn),
            "the MLP comes first here. Attention comes first.",
        ),
        (
            lambda x, attn, mlp: mlp(_norm(x + attn(_norm(x)))),
            "the second residual connection is missing: x + mlp(layer_norm(x)).",
        ),
    ],
)


# ---- reach: which output depends on which input after several blocks -----------------------------


def _reach_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]]).bool(), 2
    for _ in range(5):
        N = randint(g, 4, 6)
        yield torch.rand(N, N, generator=g) < 0.25, randint(g, 2, 3)
    yield prefix_mask(3, 3), 4


def reach(mask: Tensor, depth: int) -> Tensor:
    N = len(mask)
    out = torch.zeros(N, N, dtype=torch.bool)
    for i in range(N):
        known = {i}
        for _ in range(depth):
            known |= {j for q in known for j in range(N) if mask[q, j]}
        out[i, list(known)] = True
    return out


def _power(mask: Tensor, depth: int) -> Tensor:
    return torch.linalg.matrix_power(mask.double(), depth) > 0


def _any_power(mask: Tensor, depth: int) -> Tensor:
    return torch.stack([_power(mask, d) for d in range(1, depth + 1)]).any(0)


REACH = Exercise(
    _reach_inputs,
    reach,
    [
        (
            lambda mask, depth: mask,
            "this is one block. A position that i attends to in block 2 has attended to "
            "others in block 1.",
        ),
        *(
            (
                f,
                "the residual is missing: x + ... passes on each position's own content, so "
                "each position also depends on itself. Add the diagonal first.",
            )
            for f in (_power, _any_power)
        ),
        (
            lambda mask, depth: reach(mask, 1),
            "this is one block with the residual. Apply it `depth` times.",
        ),
        (
            lambda mask, depth: reach(mask, depth).T,
            "transposed: row i marks the inputs that output i depends on.",
        ),
        (
            lambda mask, depth: reach(mask, len(mask)),
            "this has no limit on the number of steps: through `depth` blocks, content "
            "passes through at most `depth` attention steps.",
        ),
        (
            lambda mask, depth: torch.linalg.matrix_power(reach(mask, 1).double(), depth),
            "these are numbers of paths. Compare them with 0: at least one path is enough.",
        ),
        (
            lambda mask, depth: mask | (mask.double() @ mask.double() > 0),
            "this is for two blocks, and without the residual. Add the diagonal, and "
            "apply the step `depth` times.",
        ),
        (
            lambda mask, depth: reach(mask, depth - 1),
            "one block too few: after `depth` blocks there are `depth` attention steps.",
        ),
        (
            lambda mask, depth: _power(mask, depth) | torch.eye(len(mask), dtype=torch.bool),
            "the diagonal was added after the power. The residual acts in every block, "
            "so add it to the mask first: a path may also stay where it is in some "
            "blocks.",
        ),
    ],
)


# ---- the covering test: which ids depend on which patch? -----------------------------------------


def _encoder(weight: Tensor) -> Callable:
    """A toy encoder: images (B, C, H, W) to B ids of each of K registers; weight (K, C, H, W)."""

    def encode(images: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", images, weight).round().long()

    return encode


def _covering_inputs(g: torch.Generator) -> Iterator[tuple]:
    for B, C, h, w, p, K in ((2, 1, 1, 2, 1, 2), (4, 2, 2, 3, 2, 3), (5, 3, 3, 2, 2, 4)):
        images = 2 * torch.rand(B, C, h * p, w * p, generator=g) - 1
        weight = torch.randn(K, C, h * p, w * p, generator=g)
        weight[-1, :, :, p:] = 0  # the last register depends on the first column of patches only
        yield _encoder(weight), images, p


def _covering(
    encode: Callable,
    images: Tensor,
    p: int,
    gray: float = 0.0,
    channels: slice = slice(None),
    fresh: bool = True,
    by_columns: bool = False,
    others: bool = False,
) -> Tensor:
    """(K, B, P): whether an id changes."""
    _, _, H, W = images.shape
    base, covered, changes = encode(images), images.clone(), []
    corners = [(top, left) for top in range(0, H, p) for left in range(0, W, p)]
    for top, left in sorted(corners, key=lambda c: c[::-1]) if by_columns else corners:
        covered = images.clone() if fresh else covered
        if others:
            covered[:] = gray
        window = (slice(None), channels, slice(top, top + p), slice(left, left + p))
        covered[window] = images[window] if others else gray
        changes.append((encode(covered) != base).T)
    return torch.stack(changes, dim=-1)


def covering(encode: Callable, images: Tensor, p: int) -> Tensor:
    return _covering(encode, images, p).float().mean(1)


def _sizes_of_changes(encode: Callable, images: Tensor, p: int) -> Tensor:
    base, changes = encode(images), []
    for top in range(0, images.shape[2], p):
        for left in range(0, images.shape[3], p):
            covered = images.clone()
            covered[:, :, top : top + p, left : left + p] = 0
            changes.append((encode(covered) - base).abs().float().mean(0))
    return torch.stack(changes, dim=1)


COVERING = Exercise(
    _covering_inputs,
    covering,
    [
        (
            lambda encode, images, p: _covering(encode, images, p, fresh=False).float().mean(1),
            "the patches stay covered from one step to the next, so the last step covers the "
            "whole image. Begin each step with a fresh copy: images.clone().",
        ),
        (
            _sizes_of_changes,
            "this is how far the ids move. An id is a name: ids 811 and 812 need not be similar. "
            "Count whether it changes (!=).",
        ),
        (
            lambda encode, images, p: 1 - covering(encode, images, p),
            "this is the share of images in which the id stays the same.",
        ),
        (
            lambda encode, images, p: covering(encode, images, p).T,
            "transposed: one row for each register, one column for each patch.",
        ),
        (
            lambda encode, images, p: _covering(encode, images, p).any(1).float(),
            "this is 1 if the id changes in at least one image. Take the share of the images.",
        ),
        (
            lambda encode, images, p: _covering(encode, images, p).float().mean(0),
            "this is the mean over the registers. Keep the registers apart, and take the mean "
            "over the images.",
        ),
        (
            lambda encode, images, p: _covering(encode, images, p, gray=-1.0).float().mean(1),
            "the patches are covered with black (-1). Gray is 0.",
        ),
        (
            lambda encode, images, p: (
                _covering(encode, images, p, channels=slice(0, 1)).float().mean(1)
            ),
            "only the first channel is covered, so a part of the patch's information is left.",
        ),
        (
            lambda encode, images, p: _covering(encode, images, p, by_columns=True).float().mean(1),
            "the patches are in column-major order. Go through them row by row.",
        ),
        (
            lambda encode, images, p: _covering(encode, images, p, others=True).float().mean(1),
            "everything but the patch is covered. Cover the patch and leave the rest.",
        ),
    ],
)


EXERCISES = {
    "attention": ATTENTION,
    "split_heads": SPLIT_HEADS,
    "prefix_mask": PREFIX_MASK,
    "block": BLOCK,
    "reach": REACH,
    "covering": COVERING,
}
