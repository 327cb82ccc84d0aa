"""Comparison of a learner's function with the reference solution of an exercise."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from .exercises import Exercise


def inputs(exercise: Exercise) -> list[tuple]:
    """The seeded inputs of an exercise, the same at each call."""
    return list(exercise.inputs(torch.Generator().manual_seed(0)))


def results(exercise: Exercise, f: Callable, cases: list[tuple]) -> list:
    """What f gives for each input: a value, or the exception it raises."""
    return [_result(exercise.observe, f, case) for case in cases]


def different(exercise: Exercise, yours: list, target: list) -> list[int]:
    """The inputs, by number, whose results differ in structure, shape or value."""
    pairs = enumerate(zip(yours, target, strict=True))
    return [i for i, (a, b) in pairs if not _same_values(a, b, exercise.tolerance)]


def floats_for_integers(yours: list, target: list) -> list[int]:
    """The inputs, by number, where yours has floats and the target has integers or booleans."""
    pairs = enumerate(zip(yours, target, strict=True))
    return [i for i, pair in pairs if _float_for_integer(*pair)]


def is_right(exercise: Exercise, answer: Callable) -> bool:
    """Whether an answer gives the reference solution's values on all inputs."""
    cases = inputs(exercise)
    yours, target = results(exercise, answer, cases), results(exercise, exercise.solution, cases)
    return not different(exercise, yours, target) and not floats_for_integers(yours, target)


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
    if isinstance(b, str):
        return isinstance(a, str) and a == b
    if isinstance(b, Exception):  # of a misconception
        return type(a) is type(b) and str(a) == str(b)
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
    if isinstance(b, str):
        return False
    return torch.as_tensor(a).is_floating_point() and not torch.as_tensor(b).is_floating_point()
