"""The token ids of a whole data set, extracted once by a tokenizer and kept as a memory-mapped
array.

The name of a file is a hash of all that its content depends on: the tokenizer, the precision in
which it computes, the images and their views. Files are written whole or not at all, and never
change.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from ..data import Dataset, Folder, Images, Stream, identity, in_order, to_float
from ..tokenizer import FlexTok
from ..weights import atomic_file

CACHE_DIR = Path.home() / ".cache" / "minflextok" / "ids"


def views(images: Tensor, flip: bool, crops: int) -> Tensor:
    """The views of each image that a prior is trained on: (B, 3, H, W) uint8 -> (B, V, 3, H, W).

    The first view is the image itself. crops = 5 adds the image shifted by 1/16 of its side towards
    each corner, padded by reflection; flip adds the mirror image of each view. V = crops * (1 +
    flip).
    """
    found = [images]
    if crops == 5:
        H, W = images.shape[-2:]
        m = max(1, H // 16)
        padded = F.pad(images.float(), (m, m, m, m), mode="reflect").to(images.dtype)
        found += [padded[..., y : y + H, x : x + W] for y in (0, 2 * m) for x in (0, 2 * m)]
    elif crops != 1:
        raise ValueError(
            f"crops={crops}: give 1 (the image itself) or 5 (and shifted towards each corner)"
        )
    return torch.stack(
        [v for view in found for v in ([view, view.flip(-1)] if flip else [view])], dim=1
    )


def tokenizer_key(tok: FlexTok) -> list:
    """All that ids depend on beside the views: settings and exact weights of the tokenizer (its
    fingerprint rounds them to bfloat16), and the precision of the computation."""
    digest, device = hashlib.sha256(), tok.encoder.registers.device.type
    for name, x in sorted(tok.state_dict().items()):
        if not name.startswith("decoder."):
            digest.update(f"{name} {x.dtype}".encode())
            digest.update(x.cpu().contiguous().flatten().view(torch.uint8).numpy())
    autocast = torch.is_autocast_enabled(device) and str(torch.get_autocast_dtype(device))
    precision = [autocast, torch.get_float32_matmul_precision()]
    return [tok.fingerprint(), digest.hexdigest(), tok.image_size, *precision]


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

    Labels are those of the data set; only those of shards, which are hashed with the images, are
    kept beside the ids. The file is in the directory `cache` (default ~/.cache/minflextok/ids), and
    written if it is not there. Under torchrun one rank writes it and the others wait.
    """
    folder, K, V = Path(cache or CACHE_DIR), tok.config.num_registers, crops * (1 + flip)
    views(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), flip, crops)  # checks `crops` before the work
    key = json.dumps([tokenizer_key(tok), identity(data, content=True), flip, crops])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    label_path = path.with_suffix(".labels.npy")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                with atomic_file(path) as f:
                    labels = write_ids(f, tok, data, flip, crops, quiet, batch_size)
                    # Before the ids, whose presence means that all is there.
                    if isinstance(data, Stream) and labels is not None:
                        with atomic_file(label_path) as g:
                            np.save(g, labels.numpy())
    except OSError as e:
        raise OSError(
            f"could not write ids to {folder} ({e}): is it full or read-only? Give another cache"
        ) from None
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
        if ids.shape[1:] != (V, K):
            raise ValueError(f"its shape is {ids.shape}, not (N, {V}, {K})")
        if not isinstance(data, Stream):
            return ids, data.labels
        if not label_path.exists():
            return ids, None
        return ids, torch.from_numpy(np.load(label_path, allow_pickle=False))
    except ValueError as e:
        raise ValueError(f"{path} is damaged ({e}): delete it, and it is written again") from None


def write_ids(
    f: BinaryIO, tok: FlexTok, data: Dataset, flip: bool, crops: int, quiet: bool, batch_size: int
) -> Tensor | None:
    """Write the ids as an .npy file of the smallest type that represents them; returns the labels
    (N,), if all are known.

    The number of images of a stream is known only at its end, so the header is written twice.
    """
    shape = crops * (1 + flip), tok.config.num_registers
    dtype = np.dtype("<u2" if tok.config.vocab_size <= 2**16 else "<i4")
    labels: list[Tensor | None] = []

    def write_header(n: int) -> int:
        f.seek(0)
        header = {"descr": dtype.str, "fortran_order": False, "shape": (n, *shape)}
        np.lib.format.write_array_header_1_0(f, header)
        return f.tell()

    start, n = write_header(0), 0
    for ids, known in encode_views(tok, data, flip, crops, quiet, batch_size):
        f.write(ids.view(-1, *shape).cpu().numpy().astype(dtype).tobytes())
        labels.append(known)
        n += len(ids) // shape[0]
    if n == 0:
        raise ValueError(f"{data.name} has no readable image")
    if write_header(n) != start:  # numpy reserves space for 20 digits
        raise AssertionError("the header of the ids has grown into them")
    return torch.cat(labels) if all(known is not None for known in labels) else None


def encode_views(
    tok: FlexTok, data: Dataset, flip: bool, crops: int, quiet: bool, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batch by batch: ids of all views of b images, (b * V, K), and their labels (b,) or None."""
    device = tok.encoder.registers.device
    total = len(data) if isinstance(data, Images | Folder) else None
    off = True if quiet else None  # None: no bar where the output is not a terminal
    with tqdm(total=total, desc="ids", unit="image", disable=off, leave=False) as bar:
        for images, known in in_order(data, batch_size):
            x = views(images.to(device), flip, crops).flatten(0, 1)  # (b * V, 3, H, W)
            yield torch.cat([tok.encode(to_float(part)) for part in x.split(batch_size)]), known
            bar.update(len(images))
