"""Exercises of notebook 08: the GPT prior."""

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from ... import Prior, PriorConfig
from ...gpt import PriorBlock
from ...transformer import layer_norm
from . import Exercise

# ---- ★ inputs and targets ------------------------------------------------------------------------


def id_rows(g: torch.Generator) -> Iterator[tuple]:
    for B, K in ((1, 3), (2, 4), (3, 1), (2, 6)):
        yield torch.randint(100, (B, K), generator=g), 100 + torch.randint(10, (B,), generator=g)


def shift(ids: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    inputs = [[f, *row[:-1]] for f, row in zip(first.tolist(), ids.tolist(), strict=True)]
    return torch.tensor(inputs), ids


def shift_copies(ids: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    return ids, ids


def shift_without_class(ids: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    return ids[:, :-1], ids[:, 1:]


def shift_whole(ids: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([first[:, None], ids], 1), ids


def shift_wrong_way(ids: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    return ids, torch.cat([first[:, None], ids[:, :-1]], 1)


def shift_around(ids: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    return ids.roll(1, 1), ids


# ---- ★★ causal attention -------------------------------------------------------------------------


def queries(g: torch.Generator) -> Iterator[tuple]:
    for M, N, d in ((2, 2, 2), (1, 3, 2), (2, 4, 3), (5, 5, 4)):
        yield (
            torch.randn(M, d, generator=g),
            torch.randn(N, d, generator=g),
            torch.randn(N, d, generator=g),
        )


def attention(
    q: Tensor, k: Tensor, v: Tensor, beyond: int = 1, first: int | None = None, scaled: bool = True
) -> Tensor:
    """Query m is at position p = first + m and attends to the positions below p + beyond.

    first: by default such that the last query is at N - 1.
    """
    M, N, d = len(q), len(k), q.shape[1]
    at = N - M if first is None else first
    rows = []
    for m in range(M):
        keys = range(max(0, min(N, at + m + beyond)))
        weights = [math.exp(float(q[m] @ k[n]) / (d**0.5 if scaled else 1)) for n in keys]
        rows.append(
            sum(
                (w / sum(weights) * v[n] for w, n in zip(weights, keys, strict=True)),
                torch.zeros(v.shape[1]),
            )
        )
    return torch.stack(rows)


def no_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, beyond=len(k))


def attends_to_next(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, beyond=2)


def excludes_itself(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = attention(q, k, v, beyond=0)
    return (
        rows if len(q) < len(k) else torch.cat([torch.full_like(rows[:1], float("nan")), rows[1:]])
    )


def queries_at_the_start(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, first=0)


def masks_with_zero(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    M, N = len(q), len(k)
    allowed = torch.ones(M, N, dtype=torch.bool).tril(N - M)
    return torch.where(allowed, q @ k.T / q.shape[1] ** 0.5, 0.0).softmax(-1) @ v


def not_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, scaled=False)


def masks_after_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    M, N = len(q), len(k)
    return (q @ k.T / q.shape[1] ** 0.5).softmax(-1).tril(N - M) @ v


def over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    M, N = len(q), len(k)
    later = torch.ones(M, N, dtype=torch.bool).triu(N - M + 1)
    return (q @ k.T / q.shape[1] ** 0.5).masked_fill(later, float("-inf")).softmax(0) @ v


# ---- ★★ a block of the GPT -----------------------------------------------------------------------


class Layers(SimpleNamespace):
    """The layers of a block, which cannot be called as a whole. Printed as one line."""

    def __repr__(self) -> str:
        width = self.attn.proj.in_features
        return (
            f"the layers of a block of width {width} with {self.attn.heads} heads, random weights"
        )


def blocks(g: torch.Generator) -> Iterator[tuple]:
    for B, N, D, H in ((1, 1, 4, 1), (1, 3, 4, 2), (2, 4, 12, 3), (2, 5, 8, 2)):
        block = PriorBlock(PriorConfig(5, N, 2, dim=D, head_dim=D // H)).requires_grad_(False)
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
        attn = SimpleNamespace(wqkv=block.attn.wqkv, proj=block.attn.proj, heads=H)
        mlp = SimpleNamespace(fc1=block.mlp.fc1, fc2=block.mlp.fc2, fc3=block.mlp.fc3)
        yield 2 * torch.randn(B, N, D, generator=g), Layers(attn=attn, mlp=mlp)


def block(x: Tensor, block: Layers, **changes) -> Tensor:
    return torch.stack([one_image(rows, block, **changes) for rows in x])


def one_image(
    x: Tensor,
    block: Layers,
    beyond: int = 1,
    qk_norm: bool = True,
    v_norm: bool = False,
    width: bool = False,
    heads_first: bool = False,
    mixed: bool = False,
    pre_norm: bool = True,
    norm_stays: bool = False,
    residual: bool = True,
    parallel: bool = False,
    gate_of: str = "fc1",
) -> Tensor:
    """A block for x (N, D), one head after the other; the arguments from `beyond` on are errors."""
    N, D = x.shape
    H = block.attn.heads
    d = D // H
    start = x
    y = layer_norm(x) if pre_norm else x
    x = y if norm_stays else x
    projected = block.attn.wqkv(y)
    out = []
    for h in range(H):
        # the columns of q, k and v of this head
        at = [3 * h * d + i * d if heads_first else i * D + h * d for i in range(3)]
        q, k, v = (projected[:, a : a + d] for a in at)
        q, k = (layer_norm(q), layer_norm(k)) if qk_norm else (q, k)
        v = layer_norm(v) if v_norm else v
        q = q * (d / D) ** 0.5 if width else q
        out.append(attention(q, k, v, beyond=beyond))
    joined = torch.stack(out).reshape(N, D) if mixed else torch.cat(out, 1)
    x = residual * x + block.attn.proj(joined)
    z = start if parallel else x
    z = layer_norm(z) if pre_norm else z
    x = z if norm_stays else x
    gate, other = block.mlp.fc1(z), block.mlp.fc3(z)
    gate, other = (gate, other) if gate_of == "fc1" else (other, gate)
    return residual * x + block.mlp.fc2(gate / (1 + (-gate).exp()) * other)


def wrong_block(**changes) -> Callable:
    return lambda x, layers: block(x, layers, **changes)


# ---- ★★ from logits to probabilities -------------------------------------------------------------


def settings(g: torch.Generator) -> Iterator[tuple]:
    for V, temperature, top_k, top_p in (
        (4, 1.0, 4, 1.0),
        (5, 2.0, 5, 1.0),
        (5, 1.0, 2, 1.0),
        (5, 1.0, 5, 0.6),
        (6, 0.5, 6, 0.8),
        (6, 3.0, 4, 0.7),
        (6, 1.0, 3, 0.8),
        (8, 2.0, 5, 0.5),
        (8, 1.0, 8, 0.01),
    ):
        yield 2 * torch.randn(V, generator=g), temperature, top_k, top_p


def softmax(x: list[float]) -> list[float]:
    powers = [math.exp(v) for v in x]
    return [p / sum(powers) for p in powers]


def probabilities(
    logits: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    crossing: bool = True,
    scaled_p: bool = True,
    p_of_all: bool = False,
    renormalized: bool = True,
    after_top_p: bool = True,
) -> Tensor:
    scaled = [x / temperature for x in logits.tolist()]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    best = order[:top_k]
    counted = order if p_of_all else best  # the ids over which top-p is computed
    values = scaled if scaled_p else logits.tolist()
    p = dict(zip(counted, softmax([values[i] for i in counted]), strict=True))
    kept, mass = [], 0.0
    for i in best:
        if mass < top_p if crossing else mass + p[i] <= top_p + 1e-9:
            kept.append(i)
        mass += p[i]
    kept = kept or best[:1]
    p_all = softmax(scaled)
    total = sum(p_all[i] for i in (kept if after_top_p else best)) if renormalized else 1.0
    return torch.tensor([p_all[i] / total if i in kept else 0.0 for i in range(len(scaled))])


def divides_probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return probabilities(logits.softmax(-1), temperature, top_k, top_p)


def multiplies_by_temperature(
    logits: Tensor, temperature: float, top_k: int, top_p: float
) -> Tensor:
    return probabilities(logits, 1 / temperature, top_k, top_p)


def drops_the_crossing_one(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return probabilities(logits, temperature, top_k, top_p, crossing=False)


def top_p_before_temperature(
    logits: Tensor, temperature: float, top_k: int, top_p: float
) -> Tensor:
    return probabilities(logits, temperature, top_k, top_p, scaled_p=False)


def top_p_of_all(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return probabilities(logits, temperature, top_k, top_p, p_of_all=True)


def not_renormalized(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return probabilities(logits, temperature, top_k, top_p, renormalized=False)


def not_renormalized_after_top_p(
    logits: Tensor, temperature: float, top_k: int, top_p: float
) -> Tensor:
    return probabilities(logits, temperature, top_k, top_p, after_top_p=False)


def sorted_output(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return probabilities(logits, temperature, top_k, top_p).sort(descending=True).values


def least_likely(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    order = logits.argsort()
    p = (logits[order[:top_k]] / temperature).softmax(0)
    kept = p.cumsum(0) - p < top_p
    out = torch.zeros_like(logits)
    out[order[:top_k][kept]] = p[kept] / p[kept].sum()
    return out


# ---- ★★ the generation loop ----------------------------------------------------------------------


class Asked(Prior):
    """A small prior with random weights, which prints as one line."""

    def __repr__(self) -> str:
        return f"a prior with random weights, {self.config.vocab_size} ids"


def random_priors(g: torch.Generator) -> Iterator[tuple]:
    for V, K, classes, n in (
        (5, 3, [0, 1], 3),
        (7, 4, [2], 2),
        (9, 5, [1, 0, 2], 5),
        (6, 4, [2], 1),
    ):
        prior = (
            Asked(PriorConfig(V, K, 3, dim=16, depth=1, head_dim=8)).eval().requires_grad_(False)
        )
        for parameter in prior.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
        yield prior, torch.tensor(classes), n


def generate(prior: Prior, labels: Tensor, n: int) -> Tensor:
    return prior.generate(labels, n, temperature=0)


def loop(choose: Callable) -> Callable:
    """A loop that appends choose(logits (B, k + 1, V)) to the ids."""

    def f(prior: Prior, labels: Tensor, n: int) -> Tensor:
        ids = torch.empty(len(labels), 0, dtype=torch.long)
        for _ in range(n):
            ids = torch.cat([ids, choose(prior.logits(ids, labels))[:, None]], 1)
        return ids

    return f


def replaces_the_last(prior: Prior, labels: Tensor, n: int) -> Tensor:
    ids = torch.empty(len(labels), 0, dtype=torch.long)
    found = []
    for _ in range(n):
        ids = prior.logits(ids, labels)[:, -1].argmax(-1)[:, None]  # earlier ids are forgotten
        found.append(ids)
    return torch.cat(found, 1)


def one_too_many(prior: Prior, labels: Tensor, n: int) -> Tensor:
    ids = prior.generate(labels, n, temperature=0)
    return torch.cat([labels[:, None], ids], 1)


def in_front(prior: Prior, labels: Tensor, n: int) -> Tensor:
    ids = torch.empty(len(labels), 0, dtype=torch.long)
    for _ in range(n):
        ids = torch.cat([prior.logits(ids, labels)[:, -1].argmax(-1)[:, None], ids], 1)
    return ids


# ---- ★★ one position at a time, with a KV cache --------------------------------------------------


class Projection:
    """x (D,) -> the query, key and value (d,) of a position. Printed as its three matrices."""

    def __init__(self, wq: Tensor, wk: Tensor, wv: Tensor):
        self.matrices = wq, wk, wv  # (d, D) each
        self.projected: set[tuple] = set()  # the different inputs since the last clear()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        self.projected.add(tuple(x.tolist()))
        return tuple(w @ x for w in self.matrices)

    def __repr__(self) -> str:
        wq, wk, wv = ([[round(v, 3) for v in row] for row in w.tolist()] for w in self.matrices)
        return f"x -> (wq @ x, wk @ x, wv @ x), wq = {wq}, wk = {wk}, wv = {wv}"


Step = Callable[[Tensor, Tensor, Projection, list], Tensor]


def step_inputs(g: torch.Generator) -> Iterator[tuple]:
    for N, D, d in ((1, 2, 2), (2, 2, 2), (5, 3, 2)):
        yield (
            torch.randn(N, D, generator=g),
            torch.randn(N, D, generator=g),
            Projection(*(torch.randn(d, D, generator=g) for _ in range(3))),
        )


def run_steps(step: Step, tokens: Tensor, positions: Tensor, project: Projection) -> dict:
    """The results of `step` for one token after the other, with one cache."""
    cache: list = []
    out, count = [], 0
    for token in tokens:
        project.projected.clear()
        out.append(step(token, positions, project, cache))
        count += len(project.projected)
    if not all(isinstance(x, Tensor) for x in out):
        return out[0]
    return {"outputs": torch.stack(out), "tokens projected": count}


def step(
    token: Tensor,
    positions: Tensor,
    project: Projection,
    cache: list,
    late: bool = False,
    keep: int = 1000,
    scale: float = 1.0,
) -> Tensor:
    q, *new = project(token + positions[len(cache)])
    used = [*cache, *([] if late and cache else [new])][-keep:]
    cache.append(new)
    keys, values = (torch.stack(parts) for parts in zip(*used, strict=True))
    return attention(scale * q[None], keys, values)[0]


def always_position_0(token: Tensor, positions: Tensor, project: Projection, cache: list) -> Tensor:
    return step(token, positions[:1].expand_as(positions), project, cache)


def no_position(token: Tensor, positions: Tensor, project: Projection, cache: list) -> Tensor:
    return step(token, 0 * positions, project, cache)


def position_too_late(token: Tensor, positions: Tensor, project: Projection, cache: list) -> Tensor:
    return step(token, positions.roll(-1, 0), project, cache)


def appends_late(token: Tensor, positions: Tensor, project: Projection, cache: list) -> Tensor:
    return step(token, positions, project, cache, late=True)


def uses_only_the_new_key(
    token: Tensor, positions: Tensor, project: Projection, cache: list
) -> Tensor:
    return step(token, positions, project, cache, keep=1)


def rebinds_the_cache(token: Tensor, positions: Tensor, project: Projection, cache: list) -> Tensor:
    return step(token, positions, project, [*cache])


def not_scaled_step(token: Tensor, positions: Tensor, project: Projection, cache: list) -> Tensor:
    d = len(project.matrices[0])
    return step(token, positions, project, cache, scale=d**0.5)


def divided_by_d(token: Tensor, positions: Tensor, project: Projection, cache: list) -> Tensor:
    d = len(project.matrices[0])
    return step(token, positions, project, cache, scale=d**-0.5)


def scaled_by_width(token: Tensor, positions: Tensor, project: Projection, cache: list) -> Tensor:
    d = len(project.matrices[0])
    return step(token, positions, project, cache, scale=(d / len(token)) ** 0.5)


def projects_all_again(
    token: Tensor, positions: Tensor, project: Projection, cache: list
) -> Tensor:
    cache.append(token + positions[len(cache)])
    queries, keys, values = (torch.stack(x) for x in zip(*map(project, cache), strict=True))
    return attention(queries[-1:], keys, values)[0]


def two_entries_a_token(
    token: Tensor, positions: Tensor, project: Projection, cache: list
) -> Tensor:
    q, k, v = project(token + positions[len(cache)])
    cache += [k, v]
    return attention(q[None], torch.stack(cache[::2]), torch.stack(cache[1::2]))[0]


EXERCISES = {
    "shift": Exercise(
        id_rows,
        shift,
        [
            (
                shift_copies,
                "the input at position i is the id that it should predict, so the model learns "
                "to copy. Put `first` at the beginning and leave out the last id.",
            ),
            (
                shift_without_class,
                "the first id is never predicted, and the class is not an input: put `first` "
                "before the ids.",
            ),
            (
                shift_whole,
                "one input too many: after the last id there is nothing to predict.",
            ),
            (
                shift_wrong_way,
                "shifted in the wrong direction: the INPUTS are delayed by one; the targets are "
                "the ids as they are.",
            ),
            (shift_around, "the last id was moved to the beginning, where the class belongs."),
            (
                lambda ids, first: (torch.cat([first[:, None], ids[:, 1:]], 1), ids),
                "the class replaced the FIRST id. Put it before all ids, and leave out the last "
                "id.",
            ),
        ],
    ),
    "causal_attention": Exercise(
        queries,
        attention,
        [
            (no_mask, "there is no mask: a position attends to later positions."),
            (
                masks_with_zero,
                "masked logits were set to 0, and exp(0) = 1: these positions still get weight. "
                "Set them to minus infinity.",
            ),
            (
                attends_to_next,
                "off by one: position i attends to i + 1, the id that it should predict. The "
                "last position it attends to is i itself.",
            ),
            (
                excludes_itself,
                "off by one: a position also attends to itself (its input is the previous id). "
                "Otherwise the first position has no key, and the softmax over no key is NaN.",
            ),
            (
                queries_at_the_start,
                "right for M = N, but your M queries are at the first M positions. They are the "
                "LAST M: query m is position N - M + m.",
            ),
            (not_scaled, "divide the logits by the square root of d."),
            (
                lambda q, k, v: attention(q / q.shape[1] ** 0.5, k, v),
                "you divided the logits by d. Divide by the square root of d.",
            ),
            (
                masks_after_softmax,
                "masked after the softmax: the remaining weights no longer add up to 1. Mask the "
                "logits, before the softmax.",
            ),
            (
                over_queries,
                "the softmax is over the queries. For each query, the weights of all KEYS add up "
                "to 1.",
            ),
        ],
    ),
    "block": Exercise(
        blocks,
        block,
        [
            (
                wrong_block(beyond=100),
                "there is no mask: a position attends to later positions. Set the logits of later "
                "keys to minus infinity.",
            ),
            (
                wrong_block(mixed=True),
                "the heads are mixed up: from (B, H, N, d) a reshape to (B, N, D) joins different "
                "POSITIONS. Exchange H and N first, with .transpose(1, 2).",
            ),
            (
                wrong_block(residual=False),
                "the input is lost: each branch is ADDED to its input, x = x + ...",
            ),
            (
                wrong_block(norm_stays=True),
                "the branches are added to the normalized x. The layer norm is only for the "
                "branch; add the branch's output to the x before it.",
            ),
            (
                wrong_block(parallel=True),
                "the MLP gets the x from before the attention. Add the attention to x first, and "
                "normalize the new x.",
            ),
            (
                wrong_block(pre_norm=False),
                "the layer norms before the two branches are missing.",
            ),
            (wrong_block(qk_norm=False), "q and k are not normalized (step 2)."),
            (wrong_block(v_norm=True), "v was normalized, too: only q and k are."),
            (
                wrong_block(width=True),
                "you divided the logits by the square root of D. A query of one head has the "
                "length d = D / H.",
            ),
            (
                wrong_block(heads_first=True),
                "the 3 D outputs of wqkv are first all of q, then all of k, then all of v: view "
                "them as (B, N, 3, H, d), not as (B, N, H, 3, d).",
            ),
            (
                wrong_block(gate_of="fc3"),
                "SiLU was applied to fc3(z). Apply it to fc1(z), the gate.",
            ),
        ],
    ),
    "probabilities": Exercise(
        settings,
        probabilities,
        [
            (
                divides_probabilities,
                "the temperature divides logits, not probabilities: apply it before the softmax.",
            ),
            (
                multiplies_by_temperature,
                "you multiplied by the temperature. Divide: a high temperature makes the "
                "probabilities more equal.",
            ),
            (
                drops_the_crossing_one,
                "top-p also keeps the id that crosses the limit: keep an id if the "
                "probabilities BEFORE it add up to less than top_p. Otherwise top_p = 0.8 would "
                "keep nothing if one id has 90%.",
            ),
            (
                top_p_before_temperature,
                "top-p was computed at temperature 1. Apply the temperature first, to "
                "everything that follows.",
            ),
            (
                top_p_of_all,
                "after top-k only k ids are left: renormalize their probabilities to 1 before "
                "top-p.",
            ),
            (not_renormalized, "renormalize the remaining probabilities to 1."),
            (
                not_renormalized_after_top_p,
                "the probabilities add up to 1 after top-k, but not after top-p: renormalize the "
                "remaining ones again.",
            ),
            (
                sorted_output,
                "the probabilities are right, but sorted. Put each back to the place of its id.",
            ),
            (
                least_likely,
                "you sorted in ascending order, and kept the LEAST likely ids: use "
                "descending=True.",
            ),
        ],
    ),
    "generate": Exercise(
        random_priors,
        generate,
        [
            (
                loop(lambda logits: logits[:, 0].argmax(-1)),
                "every id is predicted as if it were the first. Append each new id before you "
                "predict the next one, and use the logits of the LAST position.",
            ),
            (
                loop(lambda logits: logits[:, -1].argmin(-1)),
                "you took the LEAST likely id: use argmax.",
            ),
            (
                replaces_the_last,
                "only the newest id is given to the prior. Give it all ids so far: append, do not "
                "replace.",
            ),
            (in_front, "the new id was put before the earlier ones. Append it at the end."),
            (
                one_too_many,
                "the class is not an id of the image: begin with no ids, (B, 0); `prior.logits` "
                "puts the class in front.",
            ),
        ],
    ),
    "step": Exercise(
        step_inputs,
        step,
        [
            (
                always_position_0,
                "every token was placed at position 0. With a cache, the new token is the only "
                "input, but its position is the length of the cache.",
            ),
            (no_position, "the position is missing: x = token + positions[len(cache)]."),
            (
                position_too_late,
                "off by one: the first token is at position 0. Did you append to the cache "
                "before you took its length?",
            ),
            (
                appends_late,
                "the new key and value were appended after the attention. A position attends to "
                "itself: append first.",
            ),
            (
                uses_only_the_new_key,
                "only the new key is used. The cache holds the keys and values of all previous "
                "tokens: use them all.",
            ),
            (
                rebinds_the_cache,
                "the list that you were given stays empty: `cache = cache + [...]` makes a new "
                "list. Use cache.append(...).",
            ),
            (not_scaled_step, "divide the logits by the square root of d, the length of q."),
            (
                scaled_by_width,
                "you divided the logits by the square root of D, the length of the token. Divide "
                "by the square root of d, the length of q and k.",
            ),
            (divided_by_d, "you divided the logits by d. Divide by the square root of d."),
            (
                projects_all_again,
                "the results are right, but you project all earlier tokens again. Store their "
                "keys and values in the cache; project only the new token.",
            ),
            (
                two_entries_a_token,
                "you appended keys and values as two entries, so len(cache) is twice the "
                "position. Append one entry for each token, the pair (k, v).",
            ),
        ],
        observe=run_steps,
    ),
}
