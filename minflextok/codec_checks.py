"""Checks of what users give to a tokenizer beside images: ids, codes, a VAE, conditions of the
decoder."""

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .checks import (
    FLOATS,
    INTEGERS,
    check_between,
    check_count,
    check_number,
    check_tensor,
    check_values,
    show,
)
from .config import TokenizerConfig, VAEConfig

Ids: TypeAlias = Tensor | list[Tensor]  # (B, k), or B 1-D tensors of different lengths


def check_ids(ids: Ids, c: TokenizerConfig) -> tuple[Tensor, list[int]]:
    """Token ids (B, k), or a list of B 1-D tensors of different lengths -> (B, K) int64, padded
    with id 0, and the length of each row, all from 1 to K."""
    give = "a (B, k) int64 tensor, or a list of 1-D int64 tensors"
    rows = ids if isinstance(ids, list | tuple) and ids else [ids]
    for row in rows:
        whole = row is ids  # else one image's
        if (
            not isinstance(row, Tensor)
            or row.is_nested
            or row.ndim != 1 + whole
            or (whole and len(row) == 0)
        ):
            raise ValueError(f"ids are {show(ids)}, a {type(ids).__name__}: give {give}")
        check_tensor(row, "ids", INTEGERS, "int64")
        check_count(row.shape[-1], "number of ids k", 1, c.num_registers)
    if isinstance(ids, Tensor):
        padded, lengths = ids, [ids.shape[1]] * len(ids)
    else:
        lengths = [len(row) for row in rows]
        padded = nn.utils.rnn.pad_sequence(
            [row.to(rows[0].device, torch.long) for row in rows], batch_first=True
        )
    padded = nn.functional.pad(padded.long(), (0, c.num_registers - padded.shape[1]))
    return check_between(padded, "ids", "this model's", c.vocab_size), lengths


def check_id_matrix(ids: Any, vocab_size: int, columns: int | None = None) -> Tensor:
    """Returns ids, an integer tensor (B >= 1, K >= 1), of K = columns if given."""
    ids = check_tensor(ids, "ids", INTEGERS, "a (B, K) int64 tensor")
    if ids.ndim != 2 or ids.numel() == 0 or ids.shape[1] != (columns or ids.shape[1]):
        want = f"(B >= 1, {columns or 'K'})"
        raise ValueError(f"ids have shape {tuple(ids.shape)}: give {want}")
    return check_between(ids, "ids", "this model's", vocab_size)


def check_code_ids(ids: Any, vocab_size: int) -> Tensor:
    """Ids of any shape -> int64."""
    ids = check_tensor(ids, "ids", INTEGERS, "an int64 tensor").long()
    return check_between(ids, "ids", "this quantizer's", vocab_size)


def check_levels(levels: Any) -> tuple[int, ...]:
    """Returns the FSQ levels as a tuple: whole numbers of at least 2 whose product fits ids."""
    if not isinstance(levels, list | tuple) or not levels:
        raise ValueError(f"levels={show(levels)}: give a tuple of whole numbers, such as (8, 5, 5)")
    product = 1
    for i, level in enumerate(levels):
        product *= check_count(level, f"levels[{i}]", 2)
        if product > 2**31:
            raise ValueError(f"levels={show(levels)}: they make more than 2^31 ids")
    return tuple(int(level) for level in levels)


def check_channels(z: Any, name: str, channels: int) -> Tensor:
    """Returns z, a float tensor (..., channels) of finite values."""
    z = check_tensor(z, name)
    if z.ndim == 0 or z.shape[-1] != channels:
        raise ValueError(f"{name} has shape {tuple(z.shape)}: give (..., {channels})")
    return check_values(z, name, float("inf"), always=False)


def check_codes(codes: Any, levels: Tensor) -> Tensor:
    """Returns codes (..., F), values that FSQ gives: digit / center - 1."""
    codes = check_channels(codes, "codes", len(levels))
    digits = (codes * (levels // 2)).round() + levels // 2
    if not bool(((digits >= 0) & (digits < levels)).all()):
        low, high = (v.item() for v in codes.aminmax())
        raise ValueError(
            f"codes range from {low:.4g} to {high:.4g}: give those of FSQ, from -1 to 1 "
            "(below 1 for an even number of levels)"
        )
    return codes


def check_vae(vae: Any, tokenizer: TokenizerConfig) -> Any:
    """Returns vae, a VAE whose latents are the input of the tokenizer."""
    config = getattr(vae, "config", None)
    if not isinstance(vae, nn.Module) or not isinstance(config, VAEConfig):
        raise ValueError(f"vae={show(vae)}: give a VAE, such as VAE.from_pretrained(name)")
    if config.latent_channels != tokenizer.in_channels or tokenizer.pixels:
        raise ValueError(
            f"a VAE with latent_channels={config.latent_channels} for a tokenizer with "
            f"in_channels={tokenizer.in_channels}: they must agree, and 3 stands for pixels"
        )
    return vae


def check_null(null: Any, rows: int) -> Tensor:
    """A bool, or a (B,) bool tensor -> (B,) bool."""
    if isinstance(null, bool):
        null = torch.tensor(null)
    give = "a bool, or a (B,) bool tensor"
    if not isinstance(null, Tensor) or null.dtype != torch.bool or null.shape not in ((), (rows,)):
        raise ValueError(f"null is {show(null)}: give {give}")
    return check_tensor(null, "null", [torch.bool], give).expand(rows)


def check_timesteps(t: Any, rows: int) -> Tensor:
    """A number, or a (B,) tensor -> (1,) or (B,) float32, all in [0, 1]."""
    hint = "timesteps from 0 (the image) to 1 (noise)"
    if not isinstance(t, Tensor):
        return torch.tensor([check_number(t, "t", 0, 1, hint)], dtype=torch.float32)
    t = check_tensor(t, "t", (*FLOATS, *INTEGERS), "a number, or a (B,) float tensor")
    t = t.reshape(-1).float()
    if len(t) not in (1, rows):
        raise ValueError(f"t has {len(t)} values for {rows} images: give one, or one an image")
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t={show(t.tolist())}: give {hint}")
    return t
