"""The ids of a whole data set, extracted once by a tokenizer and kept as a memory-mapped array.

A file is named by all that decides its content: the tokenizer's fingerprint, the images and the views of them. It
appears when it is whole, and never changes.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from ..data.datasets import Dataset, Folder, Images, in_order, to_float
from ..tokenizer import FlexTok

CACHE_DIR = Path.home() / ".cache" / "minflextok" / "ids"


def views(images: Tensor, flip: bool, crops: int) -> Tensor:
    """The views that an image is learned from: (B, 3, H, W) uint8 -> (B, V, 3, H, W), the image itself first.

    crops = 5 adds the image moved by 1/16 of its side towards each corner, with its edges mirrored into the gap;
    flip adds the mirror of each. V = crops * (1 + flip).
    """
    found = [images]
    if crops == 5:
        H, W = images.shape[-2:]
        m = max(1, H // 16)
        wide = F.pad(images.float(), (m, m, m, m), mode="reflect").to(images.dtype)
        found += [wide[..., y : y + H, x : x + W] for y in (0, 2 * m) for x in (0, 2 * m)]
    elif crops != 1:
        raise ValueError(
            f"crops={crops}: give 1 (the image alone) or 5 (and moved towards each corner)"
        )
    return torch.stack(
        [v for view in found for v in ([view, view.flip(-1)] if flip else [view])], dim=1
    )


def identity(data: Dataset) -> str:
    """Changes when the images of a data set do: a hash of pixels, or of files' names, sizes and dates."""
    digest = hashlib.sha256(f"{data.name} {getattr(data, 'size', None)}".encode())
    if isinstance(data, Images):
        digest.update(data.images.cpu().contiguous().numpy())
    else:
        for file in data.files if isinstance(data, Folder) else data.shards:
            stat = (
                os.stat(file) if os.path.exists(file) else None
            )  # a shard may be a web address or a pipe
            digest.update(f"{file} {stat and (stat.st_size, stat.st_mtime_ns)}".encode())
    return digest.hexdigest()


def extract_ids(
    tok: FlexTok,
    data: Dataset,
    flip: bool = False,
    crops: int = 1,
    cache: str | Path | None = None,
    quiet: bool = False,
    batch_size: int = 128,
) -> tuple[np.ndarray, Tensor | None]:
    """Ids of every view of every image, (N, V, K) memory-mapped, and the labels (N,) or None.

    The file lies in `cache` (default ~/.cache/minflextok/ids) and is made when it is not there. Under torchrun one
    process makes it and the others wait.
    """
    folder, K = Path(cache or CACHE_DIR), tok.config.num_registers
    views(
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8), flip, crops
    )  # a wrong `crops` shows before the work
    key = json.dumps([tok.fingerprint(), identity(data), tok.image_size, flip, crops])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    label_path = path.with_suffix(".labels.npy")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                write_ids_array(path, label_path, tok, data, flip, crops, quiet, batch_size)
    except OSError as e:
        raise OSError(
            f"could not put ids into {folder} ({e}): is it full or read-only? Another --cache may do"
        ) from None
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
        labels = (
            torch.from_numpy(np.load(label_path, allow_pickle=False))
            if label_path.exists()
            else None
        )
        if ids.shape[1:] != (crops * (1 + flip), K):
            raise ValueError(f"shape {ids.shape}")
    except ValueError as e:
        raise ValueError(
            f"{path} does not hold the ids that it should ({e}): delete it, and it is made again"
        ) from None
    return ids, labels


def write_ids_array(
    path: Path,
    label_path: Path,
    tok: FlexTok,
    data: Dataset,
    flip: bool,
    crops: int,
    quiet: bool,
    batch_size: int,
) -> None:
    """An .npy file of ids in the least type that holds them, whole or not at all, and beside it one of labels.

    How many images a stream has is known at its end: only then does the header get the true N.
    """
    V, K, device = crops * (1 + flip), tok.config.num_registers, tok.encoder.registers.device
    dtype = np.dtype("<u2" if tok.config.vocab_size <= 2**16 else "<i4")
    part, label_part = path.with_suffix(".part"), label_path.with_suffix(".part")
    labels: list[Tensor | None] = []

    def header(f, n: int) -> int:
        f.seek(0)
        np.lib.format.write_array_header_1_0(
            f, {"descr": dtype.str, "fortran_order": False, "shape": (n, V, K)}
        )
        return f.tell()

    try:
        total = len(data) if isinstance(data, Images | Folder) else None
        bar = tqdm(
            total=total, desc="ids", unit="image", disable=True if quiet else None, leave=False
        )
        with open(part, "wb") as f, bar:
            start, n = header(f, 0), 0
            for images, known in in_order(data, batch_size):
                x = views(images.to(device), flip, crops).flatten(0, 1)  # (b * V, 3, H, W)
                ids = torch.cat([tok.encode(to_float(y)) for y in x.split(batch_size)])
                f.write(ids.view(-1, V, K).cpu().numpy().astype(dtype).tobytes())
                labels.append(known)
                n += len(images)
                bar.update(len(images))
            if n == 0:
                raise ValueError(f"{data.name} holds no readable image")
            if header(f, n) != start:  # numpy leaves room for 20 digits
                raise AssertionError("the header of the ids has grown into them")
            f.flush()
            os.fsync(f.fileno())
        if all(known is not None for known in labels):
            with open(label_part, "wb") as f:
                np.save(f, torch.cat(labels).numpy())
            os.replace(label_part, label_path)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        label_part.unlink(missing_ok=True)
