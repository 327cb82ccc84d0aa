"""Checks of what users give. A ValueError says what was given, what is allowed, and what to do."""

import warnings

import torch
from torch import Tensor, nn


def first_line(error: Exception) -> str:
    """The first line of an error's text; its type, if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def check_count(value: object, name: str, low: int, high: int | None = None) -> int:
    """Returns value, an integer (numpy's too, but no bool) from low to high."""
    whole = not isinstance(value, bool | Tensor) and hasattr(value, "__index__")
    if not whole or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}={value!r}: give a whole number {span}")
    return int(value)


def check_number(
    value: object, name: str, low: float = float("-inf"), hint: str = "a finite number"
) -> float:
    """Returns value, a finite int or float (no bool) of at least low."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < float("inf") or value < low:
        raise ValueError(f"{name}={value!r}: give {hint}")
    return value


def check_shape(
    x: Tensor, name: str, channels: int, unit: int, largest: int | None = None, fixed: bool = False
) -> Tensor:
    """Returns x, a float tensor (B >= 1, channels, H, W).

    H and W must be multiples of `unit` up to `largest` (None: no limit), or `largest` itself if `fixed`.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{name} is {kind}: give a float tensor (uint8 images: x.float() / 127.5 - 1)"
        )
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


def check_finite(x: Tensor, name: str) -> Tensor:
    """Returns x, without NaN and infinite values."""
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} hold NaN or infinite values: clean them first")
    return x


def check_range(images: Tensor) -> Tensor:
    """Returns the images, all values in [-1, 1]; a GPU has to finish its work first. Warns if they look like [0, 1]."""
    low, high = (v.item() for v in check_finite(images, "images").detach().aminmax())
    if max(-low, high) > 1.01:
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


def is_int_tensor(x: object) -> bool:
    """Whether x is a tensor of integers (bools do not count)."""
    return isinstance(x, Tensor) and not (
        x.is_floating_point() or x.is_complex() or x.dtype == torch.bool
    )


def check_ids(
    ids: Tensor | list[Tensor], longest: int, vocab_size: int
) -> tuple[Tensor, list[int]]:
    """Token ids (B, k), or a list of B 1-D tensors of different lengths -> (B, longest) int64, padded with id 0, and
    the length of each row, all from 1 to `longest`."""
    rows = list(ids) if isinstance(ids, Tensor | list | tuple) else None
    if not rows or not all(isinstance(row, Tensor) and row.ndim == 1 for row in rows):
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(
            f"ids are {got}: give a (B, k) int64 tensor, or a list of 1-D int64 tensors"
        )
    for row in rows:
        if not is_int_tensor(row):
            raise ValueError(f"ids have dtype {row.dtype}: give int64")
        check_count(len(row), "number of ids k", 1, longest)
    lengths = [len(row) for row in rows]
    padded = ids if isinstance(ids, Tensor) else nn.utils.rnn.pad_sequence(rows, batch_first=True)
    padded = nn.functional.pad(padded.long(), (0, longest - padded.shape[1]))
    low, high = (v.item() for v in padded.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"ids range from {low} to {high}: this model's are 0 to {vocab_size - 1}")
    return padded, lengths
