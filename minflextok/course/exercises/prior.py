"""08 the GPT prior."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import Exercise

# ---- ★ what goes in, what should come out ------------------------------------------------------------------------------


def rows_of_ids(g: torch.Generator) -> Iterator[tuple]:
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


# ---- ★★ who sees whom --------------------------------------------------------------------------------------------------


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
    """Query m stands at position first + m (default: the last of them at N - 1) and sees positions below that + beyond."""
    M, N, d = len(q), len(k), q.shape[1]
    at = N - M if first is None else first
    rows = []
    for m in range(M):
        seen = range(max(0, min(N, at + m + beyond)))
        weights = [math.exp(float(q[m] @ k[n]) / (d**0.5 if scaled else 1)) for n in seen]
        rows.append(
            sum(
                (w / sum(weights) * v[n] for w, n in zip(weights, seen, strict=True)),
                torch.zeros(v.shape[1]),
            )
        )
    return torch.stack(rows)


def sees_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, beyond=len(k))


def sees_next(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, beyond=2)


def sees_only_before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = attention(q, k, v, beyond=0)
    return (
        rows if len(q) < len(k) else torch.cat([torch.full_like(rows[:1], float("nan")), rows[1:]])
    )


def queries_at_the_start(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, first=0)


def not_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, scaled=False)


# ---- ★★ from logits to probabilities -----------------------------------------------------------------------------------


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
    heated_p: bool = True,
    whole_p: bool = False,
    renormalised: bool = True,
) -> Tensor:
    heated = [x / temperature for x in logits.tolist()]
    order = sorted(range(len(heated)), key=lambda i: -heated[i])
    best = order[:top_k]
    seen = heated if heated_p else logits.tolist()
    p = dict(
        zip(
            order if whole_p else best,
            softmax([seen[i] for i in (order if whole_p else best)]),
            strict=True,
        )
    )
    kept, held = [], 0.0
    for i in best:
        if held < top_p if crossing else held + p[i] <= top_p + 1e-9:
            kept.append(i)
        held += p[i]
    kept = kept or best[:1]
    whole = softmax(heated)
    total = sum(whole[i] for i in kept) if renormalised else 1.0
    return torch.tensor([whole[i] / total if i in kept else 0.0 for i in range(len(heated))])


def cools_probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return probabilities(logits.softmax(-1), temperature, top_k, top_p)


def heats_instead(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return probabilities(logits, 1 / temperature, top_k, top_p)


def drops_the_crossing_one(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return probabilities(logits, temperature, top_k, top_p, crossing=False)


def top_p_before_temperature(
    logits: Tensor, temperature: float, top_k: int, top_p: float
) -> Tensor:
    return probabilities(logits, temperature, top_k, top_p, heated_p=False)


def top_p_of_all(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return probabilities(logits, temperature, top_k, top_p, whole_p=True)


def not_renormalised(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    return probabilities(logits, temperature, top_k, top_p, renormalised=False)


# ---- ★★★ one position at a time ----------------------------------------------------------------------------------------

Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, list], Tensor]


def sentences(g: torch.Generator) -> Iterator[tuple]:
    for N, D in ((1, 2), (2, 2), (5, 3)):
        yield (
            torch.randn(N, D, generator=g),
            torch.randn(N, D, generator=g),
            *(torch.randn(D, D, generator=g) for _ in range(3)),
        )


def walk(
    step: Step, tokens: Tensor, positions: Tensor, wq: Tensor, wk: Tensor, wv: Tensor
) -> Tensor:
    """What a learner's step gives for token after token, with one cache."""
    cache: list = []
    out = [step(token, positions, wq, wk, wv, cache) for token in tokens]
    return torch.stack(out) if all(isinstance(x, Tensor) for x in out) else out[0]


def step(
    token: Tensor,
    positions: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    cache: list,
    late: bool = False,
    keep: int = 1000,
) -> Tensor:
    x = token + positions[len(cache)]
    new = (wk @ x, wv @ x)
    seen = [*cache, *([] if late and cache else [new])][-keep:]
    cache.append(new)
    return attention(
        (wq @ x)[None], torch.stack([k for k, _ in seen]), torch.stack([v for _, v in seen])
    )[0]


def always_position_0(
    token: Tensor, positions: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cache: list
) -> Tensor:
    return step(token, positions[:1].expand_as(positions), wq, wk, wv, cache)


def no_position(
    token: Tensor, positions: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cache: list
) -> Tensor:
    return step(token, 0 * positions, wq, wk, wv, cache)


def position_too_late(
    token: Tensor, positions: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cache: list
) -> Tensor:
    return step(token, positions.roll(-1, 0), wq, wk, wv, cache)


def forgets_itself(
    token: Tensor, positions: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cache: list
) -> Tensor:
    return step(token, positions, wq, wk, wv, cache, late=True)


def forgets_the_past(
    token: Tensor, positions: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cache: list
) -> Tensor:
    return step(token, positions, wq, wk, wv, cache, keep=1)


def not_scaled_step(
    token: Tensor, positions: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cache: list
) -> Tensor:
    return step(token, positions, wq * len(token) ** 0.5, wk, wv, cache)


def transposed(
    token: Tensor, positions: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cache: list
) -> Tensor:
    return step(token, positions, wq.T, wk.T, wv.T, cache)


# ---- ★ guidance --------------------------------------------------------------------------------------------------------


def two_answers(g: torch.Generator) -> Iterator[tuple]:
    for B, V, scale in ((1, 3, 1.0), (1, 3, 0.0), (2, 4, 3.0), (2, 4, 1.5)):
        yield torch.randn(B, V, generator=g), torch.randn(B, V, generator=g), scale


def guided(told: Tensor, untold: Tensor, scale: float) -> Tensor:
    return torch.tensor(
        [
            [b + scale * (a - b) for a, b in zip(*rows, strict=True)]
            for rows in zip(told.tolist(), untold.tolist(), strict=True)
        ]
    )


def adds_s(told: Tensor, untold: Tensor, scale: float) -> Tensor:
    return guided(told, untold, scale + 1)


def from_told(told: Tensor, untold: Tensor, scale: float) -> Tensor:
    return guided(untold, told, scale)


def from_untold_with_less(told: Tensor, untold: Tensor, scale: float) -> Tensor:
    return guided(told, untold, scale - 1)


def scales_told(told: Tensor, untold: Tensor, scale: float) -> Tensor:
    return scale * told


EXERCISES = {
    "shift": Exercise(
        rows_of_ids,
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
        ],
    ),
    "causal_attention": Exercise(
        queries,
        attention,
        [
            (sees_all, "there is no mask: a position attends to later positions."),
            (
                sees_next,
                "off by one: position i attends to i + 1, the id that it should predict. The "
                "last position it attends to is i itself.",
            ),
            (
                sees_only_before,
                "off by one: a position also attends to itself (its input is the previous id). "
                "Otherwise the first position has no key, and the softmax over no key is NaN.",
            ),
            (
                queries_at_the_start,
                "right for M = N, but your M queries are at the first M positions. They are the "
                "LAST M: query m is position N - M + m.",
            ),
            (not_scaled, "divide the logits by the square root of d."),
        ],
    ),
    "probabilities": Exercise(
        settings,
        probabilities,
        [
            (
                cools_probabilities,
                "the temperature divides logits, not probabilities: apply it before the softmax.",
            ),
            (
                heats_instead,
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
            (not_renormalised, "renormalize the remaining probabilities to 1."),
        ],
    ),
    "step": Exercise(
        sentences,
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
                forgets_itself,
                "the new key and value were appended after the attention. A position attends to "
                "itself: append first.",
            ),
            (
                forgets_the_past,
                "only the new key is used. The cache holds the keys and values of all previous "
                "tokens: use them all.",
            ),
            (not_scaled_step, "divide the logits by the square root of D."),
            (transposed, "this is x @ w, with the transposed matrix. Here q = wq @ x."),
        ],
        observe=walk,
    ),
    "guided": Exercise(
        two_answers,
        guided,
        [
            (
                adds_s,
                "guidance must change nothing at scale 1: start from the unconditional logits, "
                "or add scale - 1 times the difference to the conditional ones.",
            ),
            (
                from_told,
                "the conditional and the unconditional logits are exchanged: guidance moves "
                "from unconditional past conditional.",
            ),
            (
                from_untold_with_less,
                "the factor scale - 1 belongs to a start from the conditional logits. From the "
                "unconditional logits the factor is scale.",
            ),
            (
                scales_told,
                "the unconditional logits are not used: guidance adds the difference between both.",
            ),
        ],
    ),
}
