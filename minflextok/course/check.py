"""`check`: compares a learner's function with the reference solution of an exercise."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_type
from . import exercises
from .answers import store
from .compare import different, floats_for_integers, inputs, results

STUB = "...  # your code here"  # what the student notebooks hold in place of a solution


def check(name: str, answer: Callable) -> bool:
    """Run `answer` on seeded inputs, compare it with the reference solution and print the result.

    For a wrong answer, the first wrong input is shown, and a hint if the error is a known one.
    Returns whether all inputs are right. A right answer is stored: see answers.py. Exceptions of
    `answer` are caught and shown; an unknown exercise name is a ValueError.
    """
    exercise = exercises.find(check_type(name, str, "name"))
    cases = inputs(exercise)
    yours, target = results(exercise, answer, cases), results(exercise, exercise.solution, cases)
    values_differ = different(exercise, yours, target)
    wrong = values_differ or floats_for_integers(yours, target)
    if not wrong:
        print(f"passed: {name}, {len(cases)} inputs")
        store(name, answer)
        return True
    a, b = yours[wrong[0]], target[wrong[0]]
    if _unsolved(answer, a):
        print(f"not solved yet: {name} needs your code in place of the `...`")
        return False
    print(f"not right yet: {name}, right for {len(cases) - len(wrong)} of {len(cases)} inputs. For")
    arguments = inspect.signature(exercise.solution).parameters
    for argument, value in zip(arguments, cases[wrong[0]], strict=False):
        print(f"  {argument} = {_show(value)}")
    print(f"yours:\n  {_show(a)}\ntarget:\n  {_show(b)}")
    if not values_differ:
        print("Hint: the values are right, but the dtype is not: these are floating-point numbers,")
        print("and the target holds integers or booleans. Convert them, for example with .long().")
        return False
    if isinstance(a, RuntimeError) and "must match" in str(a):
        print("Hint: these shapes do not broadcast. PyTorch compares them from the last axis on:")
        print("t[:, None] gives a tensor t of shape (B,) the shape (B, 1).")
        return False
    for misconception, hint in exercise.misconceptions:
        if not different(exercise, yours, results(exercise, misconception, cases)):
            print(f"Hint: {hint}")
            break
    return False


def _unsolved(answer: Callable, result: Any) -> bool:
    """Whether the stub was not replaced: it returns nothing, or the `...` raised an exception."""
    if result is None or result is ...:
        return True
    if isinstance(result, Exception) and "ellipsis" in str(result).lower():
        return True
    try:
        return STUB in inspect.getsource(answer)
    except (OSError, TypeError):
        return False


def _show(x: Any) -> str:
    """A value as text, short enough to compare by eye."""
    if isinstance(x, Exception):
        return f"{type(x).__name__}: {x}"
    if isinstance(x, dict):
        return "\n  ".join(f"{key}: {_show(value)}" for key, value in x.items())
    if isinstance(x, tuple | list) and any(isinstance(part, Tensor) for part in x):
        return "\n  ".join(map(_show, x))
    if isinstance(x, Tensor):
        x = x.int() if x.dtype == torch.bool else x  # 0 and 1 are easier to read than True, False
        text = np.array2string(
            x.detach().cpu().numpy(),
            precision=3,
            suppress_small=True,
            max_line_width=110,
            threshold=100,
        )
        return f"{tuple(x.shape)} {text}".replace("\n", "\n  ") if x.ndim else text
    return getattr(x, "__name__", repr(x))
