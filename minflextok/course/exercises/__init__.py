"""The exercises of the course, one module per notebook.

Each exercise has seeded inputs, a reference solution and known misconceptions with their hints.
The reference solutions are slow and use plain loops: they check answers and are no example of good
code. A module holds EXERCISES, a dict from name to Exercise; `check("fsq.bound", f)` uses the entry
"bound" of the module `fsq`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch


@dataclass(frozen=True)
class Exercise:
    # tuples of arguments (tensors, numbers, functions), small ones first
    inputs: Callable[[torch.Generator], Iterable[tuple]]
    # the reference solution
    solution: Callable
    # pairs (a wrong solution, the hint for answers that equal it on all inputs)
    misconceptions: list[tuple[Callable, str]]
    # what is compared for f and one input; a dict or a tuple is compared entry by entry
    observe: Callable = lambda f, *args: f(*args)
    # relative and absolute
    tolerance: float = 1e-4


def find(name: str) -> Exercise:
    """The exercise "module.exercise"; ValueError if there is none."""
    known = names()
    if name not in known:
        raise ValueError(f"no exercise {name!r}: give one of {', '.join(known)}")
    module, exercise = name.split(".")
    return import_module(f"{__name__}.{module}").EXERCISES[exercise]


def names() -> list[str]:
    """All exercises, as "module.exercise"."""
    modules = [m.name for m in iter_modules(__path__)]
    return [f"{m}.{e}" for m in modules for e in import_module(f"{__name__}.{m}").EXERCISES]


def misconceptions() -> list[str]:
    """The hints of all exercises, as lines: the errors that a teacher can expect."""
    lines = []
    for name in names():
        lines += ["", name, *(f"  - {hint}" for _, hint in find(name).misconceptions)]
    return lines


def randint(g: torch.Generator, low: int, high: int) -> int:
    """A random integer from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=g))


def value_and_gradient(f: Callable, x: torch.Tensor, *args) -> dict[str, Any]:
    """The value of f(x, ...), and the gradient of its sum weighted by 1, 2, 3, ..."""
    x = x.clone().requires_grad_()
    out = f(x, *args)
    if not isinstance(out, torch.Tensor):
        return out
    gradient = torch.zeros_like(x)
    if out.requires_grad:
        weighted = (out.flatten() * torch.arange(1, out.numel() + 1)).sum()
        gradient = torch.autograd.grad(weighted, x, allow_unused=True, materialize_grads=True)[0]
    return {"value": out.detach(), "gradient": gradient}
