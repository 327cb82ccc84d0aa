"""Checks of what users give. A ValueError says what was given, what is allowed, and what to do."""

import difflib
import warnings
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .config import TokenizerConfig, VAEConfig

Ids: TypeAlias = Tensor | list[Tensor]  # (B, k), or B 1-D tensors of different lengths


def first_line(error: Exception) -> str:
    """The first line of an error's text; its type, if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def check_count(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Returns value, an integer (numpy's too, but no bool) from low to high."""
    whole = not isinstance(value, bool | Tensor) and hasattr(value, "__index__")
    if not whole or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}={value!r}: give a whole number {span}")
    return int(value)


def check_number(
    value: Any,
    name: str,
    low: float = float("-inf"),
    hint: str = "a finite number",
    where: str = "",
) -> float:
    """Returns value, a finite int or float (no bool) of at least low. where: text that follows the
    value in the error."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < float("inf") or value < low:
        raise ValueError(f"{name}={value!r}{where}: give {hint}")
    return value


def check_shape(
    x: Tensor, name: str, channels: int, unit: int, largest: int | None = None, fixed: bool = False
) -> Tensor:
    """Returns x, a float tensor (B >= 1, channels, H, W).

    H and W must be multiples of `unit` up to `largest` (None: no limit), or `largest` itself if
    `fixed`.
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
        holds = "hold" if name.endswith("s") else "holds"
        raise ValueError(f"{name} {holds} NaN or infinite values: clean them first")
    return x


def check_range(images: Tensor) -> Tensor:
    """Returns the images, all values in [-1, 1]; a GPU has to finish its work first. Warns if they
    look like [0, 1]."""
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


def check_ids(ids: Ids, longest: int, vocab_size: int) -> tuple[Tensor, list[int]]:
    """Token ids (B, k), or a list of B 1-D tensors of different lengths -> (B, longest) int64,
    padded with id 0, and the length of each row, all from 1 to `longest`."""
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


def check_vae(vae: VAEConfig, tokenizer: TokenizerConfig) -> None:
    """The latents of the VAE must be the input of the tokenizer."""
    if vae.latent_channels != tokenizer.in_channels or tokenizer.pixels:
        raise ValueError(
            f"a VAE with latent_channels={vae.latent_channels} for a tokenizer with "
            f"in_channels={tokenizer.in_channels}: they must agree, and 3 stands for pixels"
        )


def check_rows(x: Tensor, name: str, rows: int, other: str) -> Tensor:
    """Returns x, which must have one row for each of the `rows` images of `other`."""
    if len(x) != rows:
        raise ValueError(f"{name} for {len(x)} images, {other} for {rows}: give one row an image")
    return x


def check_null(null: bool | Tensor, rows: int) -> Tensor:
    """A bool, or a (B,) bool tensor -> (B,) bool."""
    null = torch.as_tensor(null)
    if null.dtype != torch.bool or null.shape not in ((), (rows,)):
        raise ValueError(
            f"null is {null.dtype} {tuple(null.shape)}: give a bool, or a (B,) bool tensor"
        )
    return null.expand(rows)


def check_timesteps(t: Tensor | float, rows: int) -> Tensor:
    """A number, or a (B,) tensor -> (1,) or (B,) float32, all in [0, 1]."""
    t = torch.as_tensor(t, dtype=torch.float32).reshape(-1)
    if len(t) not in (1, rows):
        raise ValueError(f"t has {len(t)} values for {rows} images: give one, or one an image")
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t={t.tolist()}: give timesteps from 0 (the image) to 1 (noise)")
    return t


def check_guidance(guidance: Any, at: list, name: str) -> list[float]:
    """The guidance scale at each of `at`, timesteps or positions: a number for all, or a function
    of them. name: what precedes their values in the error."""
    scales = [guidance(a) if callable(guidance) else guidance for a in at]
    hint = f"a finite number, or a function of {name.strip(' =')} that returns one"
    for a, scale in zip(at, scales, strict=True):
        check_number(scale, "guidance", hint=hint, where=f" at {name}{a:g}")
    return scales


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """The settings of `prior.sample`."""
    hint = "a number of at least 0 (0 takes the most likely id)"
    check_number(temperature, "temperature", 0, hint)
    if top_k is not None:
        check_count(top_k, "top_k", 1)
    if top_p is not None:
        share = "a share above 0 and up to 1, or None for all ids"
        if not 0 < check_number(top_p, "top_p", hint=share) <= 1:
            raise ValueError(f"top_p={top_p!r}: give {share}")


def check_id_table(ids: Tensor, name: str, rows: int, longest: int, vocab_size: int) -> Tensor:
    """Returns ids, an integer tensor (rows, k) with k from 0 to `longest`."""
    if not is_int_tensor(ids) or ids.ndim != 2 or len(ids) != rows:
        raise ValueError(
            f"{name}: {describe(ids)} for {rows} conditions; give a ({rows}, k) int64 tensor"
        )
    if ids.shape[1] > longest:
        raise ValueError(f"{name}: {ids.shape[1]} ids an image, this prior has at most {longest}")
    if ids.numel() and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(
            f"{name} range from {ids.min()} to {ids.max()}: this prior's are 0 to {vocab_size - 1}"
        )
    return ids


def check_classes(classes: Tensor, num_classes: int) -> Tensor:
    """Returns classes, an integer tensor (B >= 1,)."""
    if not is_int_tensor(classes) or classes.ndim != 1 or len(classes) == 0:
        raise ValueError(
            f"this prior takes classes 0 to {num_classes - 1}, not {describe(classes)}: "
            "give a (B,) int64 tensor"
        )
    low, high = (v.item() for v in classes.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"classes range from {low} to {high}: this prior's are 0 to {num_classes - 1}"
        )
    return classes


def check_captions(captions: list[str]) -> list[str]:
    """Returns captions, a list of strings that is not empty."""
    texts = isinstance(captions, list | tuple) and all(isinstance(x, str) for x in captions)
    if not texts or not captions:
        raise ValueError(
            f"this prior takes text, not {describe(captions)}: give a list of captions"
        )
    return list(captions)


def find_class(name: str, class_names: list[str]) -> int:
    """The number of a class by its name or number."""
    known = {str(i): i for i in range(len(class_names))}
    known |= {known_name: i for i, known_name in enumerate(class_names)}
    if name not in known:
        near = difflib.get_close_matches(name, class_names, n=3, cutoff=0)
        raise ValueError(
            f"no class {name!r}: give a number from 0 to {len(class_names) - 1}, or a name such as "
            f"{', '.join(near)}"
        )
    return known[name]


def describe(x: object) -> str:
    """What was given, for an error."""
    if isinstance(x, str):
        return "one text"
    if isinstance(x, list | tuple) and x and all(isinstance(text, str) for text in x):
        return "text"
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
