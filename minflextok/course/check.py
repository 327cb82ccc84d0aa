"""`check`: compares a learner's function with the reference solution of an exercise."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_type
from . import exercises

STUB = "...  # your code here"  # what the student notebooks hold in place of a solution


def check(name: str, answer: Callable) -> bool:
    """Run `answer` on seeded inputs, compare it with the reference solution and print the result.

    For a wrong answer, the first wrong input is shown, and a hint if the error is a known one.
    Returns whether all inputs are right. Exceptions of `answer` are caught and shown; an unknown
    exercise name is a ValueError.
    """
    exercise = exercises.find(check_type(name, str, "name"))
    cases = list(exercise.inputs(torch.Generator().manual_seed(0)))

    def results(f: Callable) -> list:
        return [_result(exercise.observe, f, case) for case in cases]

    def same(a: Any, b: Any) -> bool:
        return _same_values(a, b, exercise.tolerance)

    yours, target = results(answer), results(exercise.solution)
    pairs = list(zip(yours, target, strict=True))
    values_differ = [i for i, (a, b) in enumerate(pairs) if not same(a, b)]
    wrong = values_differ or [i for i, pair in enumerate(pairs) if _float_for_integer(*pair)]
    if not wrong:
        print(f"passed: {name}, {len(cases)} inputs")
        return True
    a, b = pairs[wrong[0]]
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
    for misconception, hint in exercise.misconceptions:
        if all(map(same, yours, results(misconception))):
            print(f"Hint: {hint}")
            break
    return False


def _result(observe: Callable, f: Callable, case: tuple) -> Any:
    """What f gives for one input, or the exception it raises."""
    try:
        return observe(f, *copy.deepcopy(case))  # a copy: f may change its arguments in place
    except Exception as e:
        return e


def _same_values(a: Any, b: Any, tolerance: float) -> bool:
    """Whether a has the structure, the shapes and (within the tolerance) the values of b."""
    if isinstance(b, dict):
        return (
            isinstance(a, dict)
            and a.keys() == b.keys()
            and all(_same_values(a[k], b[k], tolerance) for k in b)
        )
    if isinstance(b, tuple):
        return (
            isinstance(a, tuple | list)
            and len(a) == len(b)
            and all(_same_values(x, y, tolerance) for x, y in zip(a, b, strict=True))
        )
    try:
        if torch.as_tensor(a).is_complex() and not torch.as_tensor(b).is_complex():
            return False
        a, b = (torch.as_tensor(x).detach().cpu().double() for x in (a, b))
    except (TypeError, ValueError, RuntimeError):
        return False
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def _float_for_integer(a: Any, b: Any) -> bool:
    """Whether a holds floats where b holds integers or booleans; both have the same structure."""
    if isinstance(b, dict):
        return any(_float_for_integer(a[k], b[k]) for k in b)
    if isinstance(b, tuple):
        return any(map(_float_for_integer, a, b))
    return torch.as_tensor(a).is_floating_point() and not torch.as_tensor(b).is_floating_point()


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
