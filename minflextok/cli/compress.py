"""The commands compress and decompress: images as .ftk files, and back."""

import argparse
from pathlib import Path

import torch

from .. import compression
from ..config import WEIGHTS_DIR
from ..prior import Prior
from ..tokenizer import FlexTok
from ..weights import read_json, write_atomic
from .codec import encode_files, load, write_images
from .flags import say
from .ids import write_ids


def prior_of(a: argparse.Namespace) -> Prior | None:
    """The prior of --prior; by default the shipped one of the tokenizer, if there is one."""
    if a.prior == "none" or (a.prior is None and not (WEIGHTS_DIR / f"prior-{a.weights}").is_dir()):
        return None
    return Prior.from_pretrained(a.prior or a.weights).to(a.device)


def compress(a: argparse.Namespace) -> None:
    if Path(a.out).suffix != ".ftk":
        raise ValueError(f"--out {a.out}: compressed ids are saved as .ftk")
    tok = load(a)
    prior = prior_of(a)
    ids, _ = encode_files(tok, a.images, a.tokens)
    data = compression.compress(ids, tok, prior)
    Path(a.out).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(a.out, data)
    packed = len(ids) * ids.shape[1] * tok.config.bits_per_token / 8
    say(
        f"{len(ids)} images, {ids.shape[1]} ids each -> {a.out}: {len(data)} bytes "
        f"({packed:.0f} without a prior and a header), {len(data) / len(ids):.1f} an image"
    )


def decompress(a: argparse.Namespace) -> None:
    data, out = Path(a.file).read_bytes(), Path(a.out)
    a.weights = a.weights or shipped(data)
    tok = load(a)
    try:
        rows = compression.decompress(data, tok, prior_of(a))
    except ValueError as e:
        raise ValueError(f"{a.file}: {e}") from None
    names = [f"{i:05d}" for i in range(len(rows))]
    if out.suffix in (".npz", ".json"):
        if len({len(r) for r in rows}) > 1:
            raise ValueError(
                f"--out {out}: the images have different numbers of ids: give a folder"
            )
        write_ids(out, torch.stack(rows), names, a.weights, tok.fingerprint())
        say(f"{len(rows)} images -> {out}: {len(rows[0])} ids each")
    else:
        write_images(tok, rows, names, out, a)


def shipped(data: bytes) -> str:
    """The name of the shipped tokenizer that a file was compressed with."""
    found = compression.tokenizer_of(data)
    for config in sorted(WEIGHTS_DIR.glob("*/config.json")):
        name, is_tokenizer = config.parent.name, "fsq_levels" in read_json(config)
        if is_tokenizer and FlexTok.from_pretrained(name).fingerprint() == found:
            return name
    raise ValueError(f"no shipped tokenizer is {found}: give --weights that compressed the images")
