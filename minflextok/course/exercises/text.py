"""Exercises of notebook 09: text conditioning."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from types import SimpleNamespace

import torch
from torch import Tensor

from ...gpt import CrossAttention
from ...transformer import layer_norm
from . import Exercise, randint

Words = tuple[str, ...]
Named = tuple[str | None, str, str]  # size or None, color, shape

# ---- ★ words to word ids -------------------------------------------------------------------------


def captions(g: torch.Generator) -> Iterator[tuple]:
    words = ("a", "above", "blue", "circle", "red", "square")
    yield ["a red circle", "a circle"], words
    yield ["a red circle", "a blue square above a red circle"], words
    yield ["A Blue square, above a red circle.", "red"], words
    yield ["square circle"], words


def tokenize(
    texts: list[str],
    words: Words,
    start: int = 1,
    keep_case: bool = False,
    left: bool = False,
    short: bool = False,
) -> Tensor:
    rows = []
    for text in texts:
        clean = "".join(c if c.isalnum() else " " for c in (text if keep_case else text.lower()))
        rows.append([words.index(w) + start for w in clean.split()])
    longest = (min if short else max)(map(len, rows))
    zeros = [[0] * (longest - len(row)) for row in rows]
    return torch.tensor(
        [z + row if left else row[:longest] + z for row, z in zip(rows, zeros, strict=True)]
    )


def numbers_from_0(texts: list[str], words: Words) -> Tensor:
    return tokenize(texts, words, start=0)


def pads_in_front(texts: list[str], words: Words) -> Tensor:
    return tokenize(texts, words, left=True)


def cuts_to_the_shortest(texts: list[str], words: Words) -> Tensor:
    return tokenize(texts, words, short=True)


def bag_of_words(texts: list[str], words: Words) -> Tensor:
    return tokenize(
        [
            " ".join(sorted("".join(c if c.isalnum() else " " for c in t.lower()).split()))
            for t in texts
        ],
        words,
    )


def drops_unknown(texts: list[str], words: Words, lower: bool = True) -> Tensor:
    known = [[w for w in (t.lower() if lower else t).split() if w in words] for t in texts]
    return tokenize([" ".join(row) for row in known], words)


def keeps_case_and_punctuation(texts: list[str], words: Words) -> Tensor:
    rows = [[words.index(w) + 1 for w in text.split()] for text in texts]
    return pad(rows)


def keeps_punctuation(texts: list[str], words: Words) -> Tensor:
    rows = [[words.index(w) + 1 for w in text.lower().split()] for text in texts]
    return pad(rows)


def looked_up_in_a_dict(texts: list[str], words: Words, lower: bool = False) -> Tensor:
    number = {w: i for i, w in enumerate(words, start=1)}
    return pad([[number[w] for w in (t.lower() if lower else t).split()] for t in texts])


def not_padded(texts: list[str], words: Words) -> Tensor:
    return torch.tensor(
        [row[row > 0].tolist() for row in tokenize(texts, words)]  # a ValueError where lengths vary
    )


def pad(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


# ---- ★★ cross-attention --------------------------------------------------------------------------


class Layer(SimpleNamespace):
    """The linear layers of a cross-attention, which cannot be called as a whole."""

    def __repr__(self) -> str:
        d, D = self.head_dim, self.proj.in_features
        return f"layers of random weights, D = {D}, {D // d} heads of d = {d}"


def attention_inputs(g: torch.Generator) -> Iterator[tuple]:
    for B, M, L, D, Dt, d, words in (
        (1, 1, 1, 4, 3, 4, [1]),
        (1, 2, 3, 4, 3, 2, [2]),
        (2, 3, 4, 8, 5, 4, [4, 2]),
        (3, 2, 5, 12, 4, 4, [1, 5, 3]),
    ):
        parts = CrossAttention(D, Dt, d).requires_grad_(False)
        for parameter in parts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
        layer = Layer(wq=parts.wq, wkv=parts.wkv, proj=parts.proj, head_dim=d)
        x, text = torch.randn(B, M, D, generator=g), torch.randn(B, L, Dt, generator=g)
        yield x, text, torch.arange(L) < torch.tensor(words)[:, None], layer


def cross_attention(x: Tensor, text: Tensor, mask: Tensor, layer: Layer, **changes) -> Tensor:
    rows = zip(x, text, mask, strict=True)
    return torch.stack([one_caption(*row, layer, **changes) for row in rows])


def one_caption(
    x: Tensor,
    text: Tensor,
    mask: Tensor,
    layer: Layer,
    padding: str = "no weight",
    normed: str = "qk",
    power: float = 0.5,
    divided_by: str = "d",
    heads_first: bool = False,
    exchanged: bool = False,
    mixed: bool = False,
    over_queries: bool = False,
) -> Tensor:
    """x (M, D), text (L, Dt), mask (L,) -> (M, D), one head after the other; the arguments from
    `padding` on are errors."""
    (M, D), d = x.shape, layer.head_dim
    projected, out = layer.wkv(text), []
    for h in range(D // d):
        at = [2 * h * d, 2 * h * d + d] if heads_first else [h * d, D + h * d]
        q = layer.wq(x)[:, h * d : (h + 1) * d]
        k, v = (projected[:, a : a + d] for a in (at[::-1] if exchanged else at))
        q, k, v = (
            layer_norm(part) if name in normed else part
            for name, part in (("q", q), ("k", k), ("v", v))
        )
        logits = (q @ k.T) / (d if divided_by == "d" else D) ** power  # (M, L)
        if padding == "zero":
            logits = logits * mask
        elif padding == "no weight":
            logits = logits.masked_fill(~mask, float("-inf"))
        elif padding == "inverted":
            logits = logits.masked_fill(mask, float("-inf"))
        powers = logits.exp()
        weights = powers / powers.sum(0 if over_queries else 1, keepdim=True)
        weights = weights.nan_to_num() if over_queries else weights
        out.append((weights * mask if padding == "late" else weights) @ v)
    joined = torch.stack(out).reshape(M, D) if mixed else torch.cat(out, 1)
    return layer.proj(joined)


def wrong_attention(**changes) -> Callable:
    return lambda x, text, mask, layer: cross_attention(x, text, mask, layer, **changes)


# ---- ★★ does the image match the caption? --------------------------------------------------------


def pictures(g: torch.Generator) -> Iterator[tuple]:
    red, blue = ("small", "red", "circle"), ("large", "blue", "square")
    crossed = [("small", "red", "square"), ("large", "blue", "circle")]
    yield [red], [red]
    yield [red], [(None, "red", "circle")]
    yield [("large", "red", "circle")], [red]
    yield [red, blue], [blue, red]
    yield [red, blue], [red]
    yield [red], [red, blue]
    yield crossed, [(None, "red", "circle"), (None, "blue", "square")]
    yield [red, red], [(None, "red", "circle")]
    yield [("large", "red", "circle"), red], [(None, "red", "circle"), ("large", "red", "circle")]
    yield [], [red]
    yield [red, blue], [red, (None, "red", "circle")]
    yield [red, red, blue], [red, blue, blue]


def shows_exactly(found: list[Named], wanted: list[Named]) -> bool:
    rest = list(found)
    for size, color, shape in sorted(wanted, key=lambda w: w[0] is None):  # those with a size first
        fits = [t for t in rest if t[1:] == (color, shape) and size in (None, t[0])]
        if not fits:
            return False
        rest.remove(fits[0])
    return not rest


def extras_allowed(found: list[Named], wanted: list[Named]) -> bool:
    return all(any(t[1:] == w[1:] and w[0] in (None, t[0]) for t in found) for w in wanted)


def missing_allowed(found: list[Named], wanted: list[Named]) -> bool:
    return all(any(t[1:] == w[1:] and w[0] in (None, t[0]) for w in wanted) for t in found)


def none_is_a_size(found: list[Named], wanted: list[Named]) -> bool:
    return Counter(found) == Counter(wanted)


def sizes_ignored(found: list[Named], wanted: list[Named]) -> bool:
    return Counter(t[1:] for t in found) == Counter(t[1:] for t in wanted)


def attributes_separately(found: list[Named], wanted: list[Named]) -> bool:
    sizes = [w[0] for w in wanted if w[0]]
    return (
        Counter(t[1] for t in found) == Counter(t[1] for t in wanted)
        and Counter(t[2] for t in found) == Counter(t[2] for t in wanted)
        and all([t[0] for t in found].count(s) >= sizes.count(s) for s in sizes)
    )


def in_given_order(found: list[Named], wanted: list[Named]) -> bool:
    rest = list(found)
    for size, color, shape in wanted:
        fits = [t for t in rest if t[1:] == (color, shape) and size in (None, t[0])]
        if not fits:
            return False
        rest.remove(fits[0])
    return not rest


def order_matters(found: list[Named], wanted: list[Named]) -> bool:
    return len(found) == len(wanted) and all(
        shows_exactly([t], [w]) for t, w in zip(found, wanted, strict=True)
    )


# ---- ★★ a negative control -----------------------------------------------------------------------


def caption_sizes(g: torch.Generator) -> Iterator[tuple]:
    yield ([1, 1],)
    yield ([1, 2, 1, 2, 1],)
    yield (torch.arange(1, 5).repeat(randint(g, 3, 5))[torch.randperm(12, generator=g)].tolist(),)


def properties(f: Callable, counts: list[int]) -> dict:
    """Many answers are right; these are the properties that they share."""
    others = f(counts)
    if not isinstance(others, list | tuple | Tensor):
        return others
    others = [int(i) for i in others]
    return {
        "every caption is used once": sorted(others) == list(range(len(counts))),
        "no image has its own caption": all(i != j for i, j in enumerate(others)),
        "as many objects": [counts[j] for j in others] == counts,
    }


def others(counts: list[int]) -> list[int]:
    found = list(range(len(counts)))
    for n in set(counts):
        rows = [i for i, c in enumerate(counts) if c == n]
        for i, j in zip(rows, rows[1:] + rows[:1], strict=True):
            found[i] = j
    return found


def same_captions(counts: list[int]) -> list[int]:
    return list(range(len(counts)))


def the_next_one(counts: list[int]) -> list[int]:
    return [(i + 1) % len(counts) for i in range(len(counts))]


def first_of_its_kind(counts: list[int]) -> list[int]:
    return [counts.index(c) for c in counts]


def in_reverse(counts: list[int]) -> list[int]:
    rows = {n: [i for i, c in enumerate(counts) if c == n] for n in counts}
    return [rows[c][::-1][rows[c].index(i)] for i, c in enumerate(counts)]


# ---- ★★ the best of n samples --------------------------------------------------------------------


def counts(g: torch.Generator) -> Iterator[tuple]:
    yield 1, 2, 1
    yield 1, 2, 2
    yield 2, 4, 2
    yield 6, 8, 1
    yield 6, 8, 2
    yield 6, 8, 3  # only two of the eight fail
    yield 0, 8, 4
    yield 8, 8, 4
    for _ in range(4):
        total = randint(g, 5, 12)
        yield randint(g, 1, total - 1), total, randint(g, 2, total)


def best_of(right: int, total: int, n: int) -> float:
    groups = list(combinations(range(total), n))  # samples 0 to right - 1 match
    return sum(any(i < right for i in group) for group in groups) / len(groups)


def with_replacement(right: int, total: int, n: int) -> float:
    return 1 - (1 - right / total) ** n


def none_matches(right: int, total: int, n: int) -> float:
    return 1 - best_of(right, total, n)


def all_match(right: int, total: int, n: int) -> float:
    return math.comb(right, n) / math.comb(total, n)


def n_times(right: int, total: int, n: int) -> float:
    return min(1.0, n * right / total)


def one_sample(right: int, total: int, n: int) -> float:
    return right / total


# ---- ★ the shortest prefix that reaches 90% of the last value ------------------------------------


def curves(g: torch.Generator) -> Iterator[tuple]:
    yield [0.2, 0.5, 0.46, 0.5], [1, 2, 4, 8]
    yield [0.1, 0.25, 0.23, 0.25], [1, 2, 4, 8]
    yield [0.0, 0.3, 0.56, 0.7, 0.6], [1, 3, 4, 8, 16]  # higher before the end
    yield [0.1, 0.58, 0.2, 0.4, 0.6], [1, 2, 4, 8, 16]  # falls below 90% again
    yield [0.4, 0.4], [2, 16]
    yield [0.1, 0.2, 0.32, 0.4], [1, 2, 4, 8]  # 90% of 0.4 is more than 0.4 - 0.1
    yield [0.2, 0.45, 0.5], [1, 2, 4]  # exactly 90%
    yield [0.2, 0.5, 0.7, 0.95], [1, 2, 9, 10]
    for _ in range(3):
        yield torch.rand(6, generator=g).tolist(), [1, 2, 4, 8, 16, 32]


def k_at_90(curve: list[float], ks: list[int], plateau: float | None = None) -> int:
    plateau = curve[-1] if plateau is None else plateau
    for k, value in zip(ks, curve, strict=True):
        if value >= 0.9 * plateau:
            return k
    return ks[-1]


def of_the_highest(curve: list[float], ks: list[int]) -> int:
    return k_at_90(curve, ks, max(curve))


def of_one(curve: list[float], ks: list[int]) -> int:
    return k_at_90(curve, ks, 1.0)


def its_index(curve: list[float], ks: list[int]) -> int:
    return ks.index(k_at_90(curve, ks))


def stays_above(curve: list[float], ks: list[int]) -> int:
    found = ks[-1]
    for k, value in zip(reversed(ks), reversed(curve), strict=True):
        if value < 0.9 * curve[-1]:
            break
        found = k
    return found


def last_below(curve: list[float], ks: list[int]) -> int:
    return max([1, *(k for k in ks if k < k_at_90(curve, ks))])


def nine_tenths_of_the_tokens(curve: list[float], ks: list[int]) -> int:
    return next(k for k in ks if k >= 0.9 * ks[-1])


NOT_FOUND = (
    "a word was not found in `words`: use lower(), and remove punctuation, before you look it up."
)


EXERCISES = {
    "tokenize": Exercise(
        captions,
        tokenize,
        [
            (
                numbers_from_0,
                "0 is the padding. If words are numbered from 0, the first word and the padding "
                "are the same.",
            ),
            (pads_in_front, "pad after the words: position 0 is the first word of every caption."),
            (cuts_to_the_shortest, "captions were cut to the shortest. Pad all to the LONGEST."),
            (
                bag_of_words,
                "the words are sorted, so the order of the objects is lost (what is above "
                "what). Keep the order of the words.",
            ),
            (
                drops_unknown,
                "words followed by a comma or a full stop are missing. Remove punctuation before "
                "you look a word up.",
            ),
            (
                lambda texts, words: drops_unknown(texts, words, lower=False),
                "words with a capital letter, a comma or a full stop are missing. Use lower(), "
                "and remove punctuation.",
            ),
            (keeps_case_and_punctuation, NOT_FOUND),
            (keeps_punctuation, NOT_FOUND),
            (looked_up_in_a_dict, NOT_FOUND),
            (lambda texts, words: looked_up_in_a_dict(texts, words, lower=True), NOT_FOUND),
            (
                not_padded,
                "the rows have different lengths, and a tensor needs equal ones: pad with 0 up to "
                "the longest.",
            ),
        ],
    ),
    "cross_attention": Exercise(
        attention_inputs,
        cross_attention,
        [
            (
                wrong_attention(padding="some weight"),
                "the padding is attended to: give it the logit -inf before the softmax.",
            ),
            (
                wrong_attention(padding="inverted"),
                "the mask is True at words. You masked the words and attended to the padding.",
            ),
            (
                wrong_attention(padding="late"),
                "masked after the softmax: the weights of the words no longer add up to 1. Mask "
                "the logits.",
            ),
            (
                wrong_attention(padding="zero"),
                "a logit of 0 does not remove a key: exp(0) = 1. Use -inf.",
            ),
            (
                wrong_attention(over_queries=True),
                "the softmax is over the queries. For each query, the weights of all WORDS add "
                "up to 1.",
            ),
            (
                wrong_attention(mixed=True),
                "the heads are mixed up: from (B, H, M, d) a reshape to (B, M, D) joins different "
                "POSITIONS. Exchange H and M first, with .transpose(1, 2).",
            ),
            (
                wrong_attention(heads_first=True),
                "the 2 D outputs of wkv are first all keys, then all values: view them as (B, L, "
                "2, H, d), not as (B, L, H, 2, d).",
            ),
            (
                wrong_attention(exchanged=True),
                "keys and values are exchanged: the first D outputs of wkv are the keys.",
            ),
            (wrong_attention(normed=""), "q and k are not normalized (over d, in each head)."),
            (wrong_attention(normed="qkv"), "v was normalized, too: only q and k are."),
            (
                wrong_attention(divided_by="D"),
                "you divided the logits by the square root of D. A query of one head has the "
                "length d.",
            ),
            (
                wrong_attention(power=0.0),
                "divide the logits by the square root of d, the length of q and k in a head.",
            ),
            (
                wrong_attention(power=1.0),
                "you divided the logits by d. Divide by the square root of d.",
            ),
        ],
    ),
    "shows_exactly": Exercise(
        pictures,
        shows_exactly,
        [
            (
                extras_allowed,
                "the image must show nothing else. Otherwise an image with every possible "
                "object would match every caption.",
            ),
            (
                missing_allowed,
                "every object in the image was asked for, but not every requested object is "
                "there: an empty image passes your test.",
            ),
            (
                none_is_a_size,
                "None means that the caption does not state a size: any size matches.",
            ),
            (sizes_ignored, "if the caption states a size, the size must match."),
            (
                attributes_separately,
                "colors and shapes are counted separately, so a red square and a blue circle "
                "match a red circle and a blue square. The hard part for a model is which color "
                "belongs to which shape: test it.",
            ),
            (order_matters, "an image has no first object: the order of the list must not matter."),
            (
                in_given_order,
                "a request without a size took the object that another request needs for its "
                "size. Match the requests with a size first.",
            ),
            (
                lambda found, wanted: len(found) == len(wanted) and extras_allowed(found, wanted),
                "one object may serve two requests in your test. Remove an object from the list "
                "once it has met a request.",
            ),
            (
                lambda found, wanted: (
                    extras_allowed(found, wanted) and missing_allowed(found, wanted)
                ),
                "two equal objects count as one in your test. Remove an object from the list once "
                "it has met a request.",
            ),
            (
                lambda found, wanted: (
                    len(found) == len(wanted)
                    and extras_allowed(found, wanted)
                    and missing_allowed(found, wanted)
                ),
                "the numbers of equal objects are not compared. Remove an object from the list "
                "once it has met a request.",
            ),
        ],
    ),
    "others": Exercise(
        caption_sizes,
        others,
        [
            (same_captions, "every image keeps its own caption, so there is no control."),
            (
                the_next_one,
                "the next caption may have more or fewer objects than the image's own, and may "
                "fail for this reason alone: choose one with the same number.",
            ),
            (
                first_of_its_kind,
                "the first caption of each complexity still gets itself, and the other captions "
                "are not used.",
            ),
            (
                in_reverse,
                "in an odd number of captions one still gets itself (as in a reversed list, or in "
                "pairs). Give each the next one, and the last one the first.",
            ),
        ],
        observe=properties,
    ),
    "k_at_90": Exercise(
        curves,
        k_at_90,
        [
            (
                of_the_highest,
                "the plateau is the value at all tokens, the LAST one. You took 90% of the highest "
                "value.",
            ),
            (
                of_one,
                "you compare with 0.9. Compare with 90% of the curve's own last value: a curve "
                "that ends at 0.5 needs 0.45.",
            ),
            (its_index, "this is the index of the prefix in the list. Return its length, ks[i]."),
            (
                stays_above,
                "you require all longer prefixes to reach 90%, too. Return the first length that "
                "does.",
            ),
            (
                lambda curve, ks: next(
                    k for k, v in zip(ks, curve, strict=True) if v >= curve[-1] - 0.1
                ),
                "you subtracted 0.1. Take 90% of the last value, a fraction: then half of a curve "
                "gives the same k.",
            ),
            (
                lambda curve, ks: next(
                    k for k, v in zip(ks, curve, strict=True) if v > 0.9 * curve[-1]
                ),
                "at least 90%: a value of exactly 90% is enough, so compare with >=.",
            ),
            (last_below, "this is the last length below 90%. Return the one after it."),
            (
                nine_tenths_of_the_tokens,
                "you took 90% of the tokens. Take 90% of the value at all tokens.",
            ),
        ],
    ),
    "best_of": Exercise(
        counts,
        best_of,
        [
            (
                with_replacement,
                "this draws with replacement: the same sample may be drawn twice. Count the groups "
                "of n DIFFERENT samples, math.comb(total, n).",
            ),
            (
                none_matches,
                "this is the share of groups in which no sample matches. Subtract it from 1.",
            ),
            (all_match, "you require all n samples to match. One is enough."),
            (
                n_times,
                "probabilities of events that can happen together do not add up. Count the groups "
                "in which every sample fails.",
            ),
            (one_sample, "this is the share for a single sample; it does not depend on n."),
        ],
    ),
}
