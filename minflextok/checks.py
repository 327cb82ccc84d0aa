"""Checks of what users give. A ValueError says what was given, what is allowed, and what to do."""

import os
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
LARGEST = 1e4  # of values, scales and noise: sums of more can overflow
MOST = 2**31 - 1  # of counts without another limit


# ---- values that are no tensors ------------------------------------------------------------------


def first_line(error: Exception) -> str:
    """The first line of an error's text; its type, if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def show(value: object) -> str:
    """A value on one short line, for an error."""
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided and not value.is_nested
        shape = f" {tuple(value.shape)}" if dense else f" {value.layout}"
        return f"{value.dtype}{shape}{' on meta' if value.is_meta else ''}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of whatever class it is; Python refuses to print integers of 4300 digits
        return f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_type(value: Any, kind: type[T], name: str) -> T:
    """Returns value, an instance of `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}={show(value)}: give a {kind.__name__}")
    return value


def check_bools(**values: Any) -> None:
    """Arguments that are switches: bools, not what Python takes for one."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={show(value)}: give True or False")


def check_choice(value: Any, name: str, choices: Sequence[str]) -> str:
    """Returns value, one of a few texts."""
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name}={show(value)}: give {', '.join(others)} or {last}")
    return value


def check_count(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Returns value, an integer (numpy's too, but no bool) from low to high."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= (MOST if high is None else high):
        span = f"from {low} to {high}"
        if high is None:
            span = f"of at least {low}" + (f" and at most {MOST}" if whole and value > 0 else "")
        raise ValueError(f"{name}={show(value)}: give a whole number {span}")
    return int(value)


def check_number(
    value: Any,
    name: str,
    low: float = -LARGEST,
    high: float = LARGEST,
    hint: str | None = None,
    where: str = "",
) -> float:
    """Returns value, an int or float (numpy's too, but no bool) from low to high. where: text that
    follows the value in the error."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        hint = hint or f"a number from {low:g} to {high:g}"
        raise ValueError(f"{name}={show(value)}{where}: give {hint}")
    return float(value)


def check_probability(value: Any, name: str) -> float:
    return check_number(value, name, 0, 1, "a probability from 0 to 1")


def check_guidance(guidance: Any, at: list, name: str) -> list[float]:
    """The guidance scale at each of `at`, timesteps or positions: a number for all, or a function
    of them. name: what precedes their values in the error."""
    hint = (
        f"a finite number up to {LARGEST:g}, or a function of {name.strip(' =')} that returns one"
    )
    scales = []
    for a in at:
        where, scale = f" at {name}{a:g}", guidance
        if callable(guidance):
            try:
                scale = guidance(a)
            except Exception as e:
                problem = f"it fails{where} ({type(e).__name__}: {first_line(e)})"
                raise ValueError(f"guidance={show(guidance)}: {problem}; give {hint}") from e
        scales.append(check_number(scale, "guidance", hint=hint, where=where))
    return scales


def check_path(path: Any, name: str = "name") -> Any:
    """Returns path, a text or a path that can be the name of a file."""
    try:
        text = os.fspath(path)
        usable = isinstance(text, str) and b"\0" not in os.fsencode(text) and bool(text)
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise ValueError(f"{name}={show(path)}: give a path or a name, a str that is not empty")
    return path


def check_dtype(dtype: Any, optional: bool = False) -> torch.dtype:
    """Returns dtype, one that weights are stored and computed in; `optional`: or None."""
    kinds = [torch.float32, torch.bfloat16, torch.float16]
    known = isinstance(dtype, torch.dtype) and dtype in kinds
    if not known and not (dtype is None and optional):
        raise ValueError(
            f"dtype={show(dtype)}: give torch.float32, torch.bfloat16 or torch.float16"
            + (", or None for that of the model" if optional else "")
        )
    return dtype


def check_generator(
    generator: Any, device: str | torch.device | None = None
) -> torch.Generator | None:
    """Returns generator, a torch.Generator (on a device of this type, if one is given) or None."""
    if generator is None:
        return None
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator={show(generator)}: give a torch.Generator, such as "
            "torch.Generator().manual_seed(0), or None"
        )
    kind = None if device is None else torch.device(device).type
    if kind and generator.device.type != kind:
        raise ValueError(f"generator is on {generator.device}: give one on {kind}")
    return generator


def check_seed(seed: Any) -> int:
    return check_count(seed, "seed", 0, 2**63 - 1)


# ---- tensors -------------------------------------------------------------------------------------


def check_tensor(
    x: Any, name: str, dtypes: Sequence[torch.dtype] = FLOATS, give: str = "a float tensor"
) -> Tensor:
    """Returns x, a dense tensor that holds values, of one of these dtypes."""
    be = "are" if name.endswith("s") else "is"
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} {be} {show(x)}, a {type(x).__name__}: give {give}")
    if x.layout != torch.strided or x.is_nested or x.is_meta:  # sparse, ragged, or shapes alone
        raise ValueError(f"{name} {be} {show(x)}: give {give} that is dense and holds values")
    if x.dtype not in dtypes:
        have = "have" if name.endswith("s") else "has"
        raise ValueError(f"{name} {have} dtype {x.dtype}: give {give}")
    return x


def check_values(x: Tensor, name: str, largest: float = LARGEST, always: bool = True) -> Tensor:
    """Returns the float tensor x, without NaN, infinite and huge values. A GPU has to finish its
    work first.

    always=False, for calls that training steps make: not on a GPU, and not if x has a gradient (the
    training loop checks the loss).
    """
    if x.numel() == 0 or not (always or not (x.is_cuda or x.requires_grad)):
        return x
    low, high = (v.item() for v in x.detach().aminmax())
    holds = "hold" if name.endswith("s") else "holds"
    if not -float("inf") < low <= high < float("inf"):
        raise ValueError(f"{name} {holds} NaN or infinite values: clean them first")
    if max(-low, high) >= largest:
        raise ValueError(
            f"{name} {holds} values from {low:.4g} to {high:.4g}: give values below {largest:g}"
        )
    return x


def check_shape(
    x: Any, name: str, channels: int, unit: int, largest: int | None = None, fixed: bool = False
) -> Tensor:
    """Returns x, a float tensor (B >= 1, channels, H, W).

    H and W must be multiples of `unit` up to `largest` (None: no limit), or `largest` itself if
    `fixed`.
    """
    x = check_tensor(x, name, give="a float tensor (uint8 images: x.float() / 127.5 - 1)")
    fits = x.ndim == 4 and len(x) > 0 and x.shape[1] == channels
    if fixed:
        want, fits = f"{largest}, {largest})", fits and x.shape[2:] == (largest, largest)
    else:
        limit = f" up to {largest}" if largest else ""
        want = f"H, W) with H and W multiples of {unit}{limit}"
        fits = fits and all(0 < n <= (largest or n) and n % unit == 0 for n in x.shape[2:])
    if not fits:
        hint = " (resize or crop first)" if channels == 3 else ""
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}: give (B >= 1, {channels}, {want}{hint}"
        )
    return x


def check_range(images: Tensor) -> Tensor:
    """Returns the images, all values in [-1, 1]; a GPU has to finish its work first. Warns if they
    look like [0, 1]."""
    low, high = (v.item() for v in images.detach().aminmax())
    if not max(-low, high) <= 1.01:
        check_values(images, "images", float("inf"))
        raise ValueError(
            f"images range from {low:.4g} to {high:.4g}: scale them to [-1, 1] "
            "(from 0..255: x / 127.5 - 1; from 0..1: x * 2 - 1)"
        )
    if low >= 0 and high > 0.5 and len(images) >= 8:
        warnings.warn(
            "no value in these images is negative: are they in [0, 1]? Give [-1, 1] (x * 2 - 1)",
            stacklevel=4,
        )
    return images


def check_pair(a: Any, b: Any, names: tuple[str, str] = ("a", "b")) -> None:
    """Two batches of images (B, C, H, W), floats of one shape on one device."""
    for x, name in zip((a, b), names, strict=True):
        check_tensor(x, name, give="a float tensor (uint8 images: x.float() / 127.5 - 1)")
    if a.shape != b.shape or a.ndim != 4 or a.numel() == 0:
        raise ValueError(
            f"images have shapes {tuple(a.shape)} and {tuple(b.shape)}: give (B, C, H, W) twice"
        )
    if a.device != b.device:
        raise ValueError(f"images are on {a.device} and {b.device}: move them to one device")
    for x, name in zip((a, b), names, strict=True):
        check_values(x, name)


def check_rows(x: Tensor, name: str, rows: int, other: str) -> Tensor:
    """Returns x, which must have one row for each of the `rows` images of `other`."""
    if len(x) != rows:
        raise ValueError(f"{name} for {len(x)} images, {other} for {rows}: give one row an image")
    return x


def check_between(x: Tensor, name: str, owner: str, num: int) -> Tensor:
    """Returns x, integers from 0 to num - 1."""
    if x.numel():
        low, high = (v.item() for v in x.aminmax())
        if low < 0 or high >= num:
            raise ValueError(f"{name} range from {low} to {high}: {owner} are 0 to {num - 1}")
    return x
