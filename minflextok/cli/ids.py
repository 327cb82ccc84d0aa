"""Files of token ids: .npz or .json, written by `encode` and read by `decode`."""

import io
import json
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checks import first_line
from ..weights import read_json, write_atomic

# An .npz file may become this many bytes, or this many times its size, when it is read.
NPZ_BYTES, NPZ_RATIO = 2**26, 50


@dataclass
class IdFile:
    """The contents of a file of ids. tokenizer: the fingerprint of the one that encoded the images;
    None in files of earlier versions."""

    rows: list[Tensor]
    names: list[str]
    weights: str
    tokenizer: str | None


def write_ids(path: Path, ids: Tensor, names: list[str], weights: str, tokenizer: str) -> None:
    """.npz (arrays ids (N, k), names, weights, tokenizer) or .json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        data = io.BytesIO()
        texts = (np.array(x) for x in (names, weights, tokenizer))
        arrays = dict(zip(("names", "weights", "tokenizer"), texts, strict=True))
        np.savez(data, allow_pickle=False, ids=ids.numpy(), **arrays)
        write_atomic(path, data.getvalue())
    else:
        rows = [{"name": n, "ids": i} for n, i in zip(names, ids.tolist(), strict=True)]
        held = {"weights": weights, "tokenizer": tokenizer, "images": rows}
        write_atomic(path, json.dumps(held, indent=1) + "\n")


def read_ids(path: Path) -> IdFile:
    """What `write_ids` wrote; rows of a JSON file may differ in length."""
    try:
        found = (read_npz if path.suffix == ".npz" else read_id_json)(path)
        texts = (*found.names, found.weights, found.tokenizer or "")
        if not all(isinstance(s, str) for s in texts):
            raise ValueError("names, weights and tokenizer must be text")
        if not found.rows or len(found.rows) != len(found.names):
            raise ValueError(f"{len(found.rows)} rows, {len(found.names)} names")
        return found
    except FileNotFoundError:
        raise
    except Exception as e:
        raise ValueError(
            f"{path} does not hold ids ({first_line(e)}): make it with `minflextok encode`"
        ) from None


def read_npz(path: Path) -> IdFile:
    check_npz(path)
    with np.load(path, allow_pickle=False) as f:
        ids = f["ids"]
        if ids.dtype.kind not in "iu" or ids.ndim != 2:
            raise ValueError(f"ids are {ids.dtype} {ids.shape}, not whole numbers (N, k)")
        tokenizer = f["tokenizer"].item() if "tokenizer" in f else None
        rows = list(torch.from_numpy(ids.astype(np.int64)))
        return IdFile(rows, f["names"].tolist(), f["weights"].item(), tokenizer)


def check_npz(path: Path) -> None:
    """ValueError if an archive would become much larger than its file when it is read, or if the
    header of an array claims another size than its data has."""
    with zipfile.ZipFile(path) as archive:
        total, size = sum(i.file_size for i in archive.infolist()), path.stat().st_size
        if total > max(NPZ_BYTES, NPZ_RATIO * size):
            raise ValueError(f"{size} bytes that become {total}: too much to be ids")
        for info in archive.infolist():
            with archive.open(info) as f:
                version = np.lib.format.read_magic(f)
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, _, dtype = read(f)
                claimed = f.tell() + math.prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0 or claimed != info.file_size:
                raise ValueError(f"{info.filename} claims {claimed} bytes, it has {info.file_size}")


def read_id_json(path: Path) -> IdFile:
    path.stat()  # FileNotFoundError
    held = read_json(path)
    if not isinstance(held, dict) or not isinstance(held.get("images"), list):
        raise ValueError("it has no list of images")
    for i, row in enumerate(held["images"]):
        ids = row.get("ids") if isinstance(row, dict) else None
        whole = isinstance(ids, list) and all(type(n) is int and abs(n) < 2**63 for n in ids)
        if not whole or not ids:
            raise ValueError(f"image {i} has no list of ids")
    rows = [torch.tensor(row["ids"]) for row in held["images"]]
    names = [row.get("name") for row in held["images"]]
    return IdFile(rows, names, held["weights"], held.get("tokenizer"))


def file_name(i: int, name: str) -> str:
    """The name of decoded image i: its number, and the name of the image that was encoded, without
    its folder and without characters that a file system or a terminal takes for something else."""
    stem = re.sub(r'[<>:"/\\|?*]', "_", Path(name).stem)
    stem = "".join(c if c.isprintable() else "_" for c in stem)
    return f"{i:04d}_{stem.encode()[:200].decode(errors='ignore')}.png"
