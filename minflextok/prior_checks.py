"""Checks of what users give to a prior: conditions, ids, and the settings of sampling."""

import difflib
from typing import Any

import torch
from torch import Tensor

from .checks import INTEGERS, MOST, check_between, check_count, check_number, check_tensor, show
from .config import PriorConfig


def check_sampling(
    temperature: Any, top_k: Any, top_p: Any
) -> tuple[float, int | None, float | None]:
    """Returns the settings of `prior.sample`."""
    hint = "a number of at least 0 (0, the most likely id) and at most 10000"
    temperature = check_number(temperature, "temperature", 0, hint=hint)
    if top_k is not None:
        top_k = check_count(top_k, "top_k", 1)
    if top_p is not None:
        share = "a share above 0 and up to 1, or None for all ids"
        if check_number(top_p, "top_p", 0, 1, share) == 0:
            raise ValueError(f"top_p={top_p!r}: give {share}")
        top_p = float(top_p)
    return temperature, top_k, top_p


def check_id_table(ids: Any, name: str, rows: int, longest: int, vocab_size: int) -> Tensor:
    """Returns ids, an integer tensor (rows, k) with k from 0 to `longest`."""
    give = f"a ({rows}, k) int64 tensor"
    if not isinstance(ids, Tensor) or ids.is_nested or ids.ndim != 2 or len(ids) != rows:
        raise ValueError(f"{name}: {describe(ids)} for {rows} conditions; give {give}")
    check_tensor(ids, name, INTEGERS, give)
    if ids.shape[1] > longest:
        raise ValueError(f"{name}: {ids.shape[1]} ids an image, this prior has at most {longest}")
    return check_between(ids, name, "this prior's", vocab_size)


def check_classes(classes: Any, num_classes: int) -> Tensor:
    """Returns classes, an integer tensor (B >= 1,)."""
    integers = isinstance(classes, Tensor) and classes.dtype in INTEGERS
    if not integers or classes.ndim != 1 or len(classes) == 0:
        raise ValueError(
            f"this prior takes classes 0 to {num_classes - 1}, not {describe(classes)}: "
            "give a (B,) int64 tensor"
        )
    check_tensor(classes, "classes", INTEGERS)
    return check_between(classes, "classes", "this prior's", num_classes)


def check_captions(captions: Any) -> list[str]:
    """Returns captions, a list of texts that is not empty."""
    texts = isinstance(captions, list | tuple) and all(isinstance(x, str) for x in captions)
    if not texts or not captions:
        raise ValueError(
            f"this prior takes text, not {describe(captions)}: give a list of captions"
        )
    for caption in captions:
        try:
            caption.encode()
        except UnicodeEncodeError:  # half of a character of UTF-16
            raise ValueError(
                f"caption {show(caption)} is no valid Unicode: decode it anew"
            ) from None
    return list(captions)


def find_class(name: str, class_names: list[str]) -> int:
    """The number of a class by its name or number."""
    known = {str(i): i for i in range(len(class_names))}
    known |= {known_name: i for i, known_name in enumerate(class_names)}
    if name not in known:
        near = difflib.get_close_matches(name[:99], class_names, n=3, cutoff=0)
        raise ValueError(
            f"no class {show(name)}: give a number from 0 to {len(class_names) - 1}, or a name "
            f"such as {', '.join(near)}"
        )
    return known[name]


def find_classes(names: Any, class_names: list[str]) -> Tensor:
    """Names or numbers (as texts) of classes -> (B >= 1,) int64."""
    texts = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not texts or not names:
        raise ValueError(f'names={show(names)}: give a list of class names, such as ["0", "1"]')
    return torch.tensor([find_class(name, class_names) for name in names])


def check_logits(c: PriorConfig, ids: Any, conditions: Any, null: Any, keep: Any) -> None:
    """The arguments of `Prior.logits`: ids (B, k) with k < K; conditions (B,), or (B, L) for a
    prior that takes text; null (B,) bool or None; keep from `Prior.draw` or None."""
    give = "a (B,) int64 tensor of classes" if not c.text else "the (B, L) output of `prepare`"
    conditions = check_tensor(conditions, "conditions", INTEGERS, give)
    B, width = len(conditions) if conditions.ndim else 0, c.text_length
    if (
        conditions.ndim != (2 if c.text else 1)
        or B == 0
        or (c.text and not 1 <= conditions.shape[1] <= width)
    ):
        raise ValueError(f"conditions are {show(conditions)}: give {give}")
    num = c.num_classes if not c.text else {"words": 1 + len(c.words), "bytes": 257}.get(c.text)
    check_between(conditions, "conditions", "this prior's", num or MOST)
    check_id_table(ids, "ids", B, c.num_tokens - 1, c.vocab_size)
    shape = (B, c.depth, 3 if c.text else 2, c.dim)
    for x, name, shapes in ((null, "null", [(B,)]), (keep, "keep", [(B, 0), shape])):
        if x is not None:
            give = f"a {shapes[-1]} bool tensor, or None"
            if check_tensor(x, name, [torch.bool], give).shape not in shapes:
                raise ValueError(f"{name} is {show(x)}: give {give}")


def describe(x: object) -> str:
    """What was given, for an error."""
    if isinstance(x, str):
        return f"one text, {show(x)}"
    if isinstance(x, list | tuple) and x and all(isinstance(text, str) for text in x):
        return "text"
    return show(x) if isinstance(x, Tensor) else f"a {type(x).__name__}, {show(x)}"
