"""The learner's right answers, stored by `check` as source code and used again in later notebooks.

They are in the folder answers/ beside the notebooks (or in $MINFLEXTOK_ANSWERS), one file for each
exercise: plain Python that anyone can read, edit or delete. An answer is loaded only if `check`'s
inputs still show that it is right; else the package's own function takes its place.
"""

import inspect
import linecache
import math
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import einops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import flow, nested_dropout, patches
from ..decoder import time_features
from ..encoder import prefix_mask
from ..fsq import FSQ
from ..transformer import layer_norm
from ..weights import write_atomic
from . import exercises
from .compare import is_right


class Part(NamedTuple):
    """A function for an exercise, and whose it is: "yours" or "the package's"."""

    function: Callable
    whose: str


def folder() -> Path:
    return Path(os.environ.get("MINFLEXTOK_ANSWERS", "answers"))


def store(name: str, answer: Callable) -> None:
    """Write the source of a right answer, if it was defined in a notebook by `def`.

    Prints a note if the stored source cannot be used again: if it calls a function that is not
    stored itself.
    """
    if getattr(answer, "__module__", None) != "__main__" or answer.__name__ == "<lambda>":
        return
    try:
        source = textwrap.dedent(inspect.getsource(answer))
    except (OSError, TypeError):
        return
    folder().mkdir(parents=True, exist_ok=True)
    write_atomic(folder() / f"{name}.py", source)
    if name in PACKAGE and not _right(name):
        print(
            "Note: notebook 06b cannot use this answer yet, because it needs a function or a value"
        )
        print("from outside. Move everything that it needs into the function, and check it again.")


def answer(name: str) -> Part:
    """The stored answer of an exercise, if it is right; else the package's function.

    ValueError for an exercise that has no function of the package.
    """
    exercises.find(name)
    if name not in PACKAGE:
        raise ValueError(f"name={name!r}: give one of {', '.join(PACKAGE)}")
    yours = _right(name)
    return Part(yours, "yours") if yours else Part(PACKAGE[name], "the package's")


def _right(name: str) -> Callable | None:
    """The stored answer, if it is right."""
    yours = _read(name)
    return yours if yours and is_right(exercises.find(name), yours) else None


def _read(name: str) -> Callable | None:
    """The function in the file of an answer; None if there is no file, or it cannot be run.

    It may call the functions of the other files: an answer often uses an earlier one.
    """
    # What the notebooks' first cells import.
    names: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, "math": math, "einops": einops}
    names |= {"rearrange": einops.rearrange, "repeat": einops.repeat, "layer_norm": layer_norm}
    path = folder() / f"{name}.py"
    others = (other for other in sorted(folder().glob("*.py")) if other != path)
    for file in (*others, path):
        try:
            exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), names)
        except Exception:  # whatever a file that was edited by hand may raise
            if file == path:
                return None
    linecache.checkcache(str(path))
    functions = filter(inspect.isfunction, names.values())
    return next((f for f in functions if f.__code__.co_filename == str(path)), None)


# ---- the package's functions, with the arguments of the exercises --------------------------------


def _positions_2d(table: Tensor) -> Tensor:
    grid, half = table.shape
    rows, columns = table[:, None].expand(grid, grid, half), table.expand(grid, grid, half)
    return torch.cat([rows, columns], dim=-1)


def _axis(length: int, dim: int) -> Tensor:
    return patches.sincos_positions(2 * dim, length)[:, 0, :dim]


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    logits = (q @ k.T / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    return logits.softmax(-1) @ v


def _block(x: Tensor, attn: Callable, mlp: Callable) -> Tensor:
    x = x + attn(layer_norm(x))
    return x + mlp(layer_norm(x))


def _embed(
    projected: Tensor,
    positions: Tensor,
    mask_token: Tensor,
    null_token: Tensor,
    keep_k: Tensor,
    null: Tensor,
) -> Tensor:
    dropout = nested_dropout.NestedDropout(projected.shape[-1])
    inputs = (projected + positions, keep_k)
    registers = torch.func.functional_call(dropout, {"mask_token": mask_token}, inputs)
    return torch.where(null[:, None, None], null_token, registers)


def _adaln_block(x: Tensor, m: Tensor, attn: Callable, mlp: Callable) -> Tensor:
    gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = m
    x = x + gate_attn * attn(layer_norm(x) * (1 + scale_attn) + shift_attn)
    return x + gate_mlp * mlp(layer_norm(x) * (1 + scale_mlp) + shift_mlp)


def _pair(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    t = t[:, None]
    return t * noise + (1 - t) * x, noise - x


def _keep_k(nested: float, u: Tensor, v: Tensor, K: int) -> Tensor:
    return torch.where(u < nested, 1 + (v * K).long(), K)


def _fit(
    tok: Any, draw: Callable, steps: int, rate: float, nested: Callable, watch: Callable
) -> None:
    optimizer = torch.optim.AdamW(tok.parameters(), rate, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 - step / steps)
        loss = tok.loss(draw(), nested(step / steps))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tok.parameters(), 1.0)
        optimizer.step()
        watch(step + 1, loss.item())


PACKAGE: dict[str, Callable] = {
    "patches.patchify": lambda x, p: patches.patchify(x[None], p)[0],
    "patches.unpatchify": lambda rows, p, h, w: patches.unpatchify(rows[None], p, h, w)[0],
    "patches.axis": _axis,
    "patches.positions_2d": _positions_2d,
    "encoder.attention": _attention,
    "encoder.split_heads": lambda x, d: einops.rearrange(x, "n (h d) -> h n d", d=d),
    "encoder.prefix_mask": prefix_mask,
    "encoder.block": _block,
    "fsq.quantize": lambda z, levels: FSQ(levels)(z)[0],
    "fsq.codes_to_ids": lambda codes, levels: FSQ(levels).codes_to_ids(codes),
    "decoder.features": lambda t, n: time_features(t, dim=2 * n),
    "decoder.block": _adaln_block,
    "decoder.embed": _embed,
    "flow.pair": _pair,
    "flow.euler": flow.euler,
    "build.nested": lambda progress, full: min(1.0, progress / full),
    "build.keep_k": _keep_k,
    "build.fit": _fit,
}
