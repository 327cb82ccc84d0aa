"""The exercises of the course, one module a notebook: what goes in, what should come out, and how one goes astray.

The answers here are slow and in plain loops: they judge, they do not teach. A module holds EXERCISES, a dict from
name to Exercise; `check("fsq.bound", f)` takes "bound" of the module `fsq`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch


@dataclass(frozen=True)
class Exercise:
    inputs: Callable[
        [torch.Generator], Iterable[tuple]
    ]  # argument tuples, small ones first: tensors, numbers, functions
    solution: Callable
    misconceptions: list[
        tuple[Callable, str]
    ]  # (a wrong answer, the hint for those who give the same)
    observe: Callable = lambda f, *args: f(
        *args
    )  # what is compared; a dict or tuple names or lists several things
    tolerance: float = 1e-4  # relative and absolute


def find(name: str) -> Exercise:
    """The exercise called "module.exercise"."""
    known = names()
    if name not in known:
        raise ValueError(f"no exercise {name!r}; there are {', '.join(known)}")
    module, exercise = name.split(".")
    return import_module(f"{__name__}.{module}").EXERCISES[exercise]


def names() -> list[str]:
    modules = [m.name for m in iter_modules(__path__)]
    return [
        f"{m}.{exercise}"
        for m in modules
        for exercise in import_module(f"{__name__}.{m}").EXERCISES
    ]


def randint(g: torch.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=g))


def values(f: Callable, *args) -> dict[str, Any]:
    """To observe a differentiable f of one tensor: its value, and the gradient of the value's sum weighted 1, 2, 3, ..."""
    x = args[0].clone().requires_grad_()
    out = f(x, *args[1:])
    if not isinstance(out, torch.Tensor):
        return out
    gradient = torch.zeros_like(x)
    if out.requires_grad:
        weighted = (out.flatten() * torch.arange(1, out.numel() + 1)).sum()
        gradient = torch.autograd.grad(weighted, x, allow_unused=True, materialize_grads=True)[0]
    return {"value": out.detach(), "gradient": gradient}
