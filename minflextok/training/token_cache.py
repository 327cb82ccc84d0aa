"""The token ids of a whole data set, extracted once by a tokenizer and kept as a memory-mapped
array.

The name of a file is a hash of all that its content depends on: the tokenizer, the precision in
which it computes, the images and their views. Files are written whole or not at all, and never
change. The ids of PART images are written at a time, each part by whichever rank is free, so that
ranks share the work, and a killed extraction goes on with the parts that are missing.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ..data import Dataset, Folder, Images, Latents, Stream, identity, in_order, to_float
from ..tokenizer import FlexTok
from ..weights import atomic_file, fingerprint
from .batches import check_latents

PART = 2048  # images
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

    Labels are those of the data set; only those of a stream, which are hashed with the images, are
    kept beside the ids. The file is in the directory `cache` (default ~/.cache/minflextok/ids), and
    written if it is not there. Under torchrun, the ranks share this work; a stream is read by one
    rank, from its start, while the others wait.
    """
    folder, K, V = Path(cache or CACHE_DIR), tok.config.num_registers, crops * (1 + flip)
    views(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), flip, crops)  # checks `crops` before the work
    if isinstance(data, Latents):
        if tok.vae is None or crops != 1:
            needs = "a tokenizer with its VAE" if tok.vae is None else "crops=1"
            raise ValueError(f"{data.name} holds latents of a VAE: give {needs}")
        check_latents(data, fingerprint(tok.vae.state_dict()), tok.config, flip)
    key = json.dumps([tokenizer_key(tok), identity(data, content=True), flip, crops])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    label_path = path.with_suffix(".labels.npy")
    options = flip, crops, quiet, batch_size
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (path.exists() or isinstance(data, Stream)):
            extract_parts(path, tok, data, *options)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                if isinstance(data, Stream):
                    write_stream(path, label_path, tok, data, *options)
                else:
                    join_parts(path, len(data), (V, K), id_type(tok))
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


def id_type(tok: FlexTok) -> np.dtype:
    """The smallest type that represents the ids of a tokenizer."""
    return np.dtype("<u2" if tok.config.vocab_size <= 2**16 else "<i4")


# ---- sets of known length: in parts --------------------------------------------------------------


def part_path(path: Path, first: int) -> Path:
    """The file of the part of the ids that begins with image `first`."""
    return path.with_suffix(".parts") / f"{first:012d}.npy"


def extract_parts(
    path: Path, tok: FlexTok, data: Images | Folder, flip: bool, crops: int, quiet: bool, size: int
) -> None:
    """Write the parts of the ids that are missing. Returns when all are there: those that another
    process is writing are waited for, and written here if it is killed."""
    starts = range(0, len(data), PART)
    off = True if quiet else None  # None: no bar where the output is not a terminal
    with tqdm(total=len(data), desc="ids", unit="image", disable=off, leave=False) as bar:
        for patience in (0, -1):  # first what is free; then wait for the others
            for first in starts:
                part = part_path(path, first)
                rows = torch.arange(first, min(first + PART, len(data)))
                try:
                    part.parent.mkdir(exist_ok=True)
                    with FileLock(part.with_suffix(".lock"), timeout=patience):
                        if not (part.exists() or path.exists()):
                            found = [
                                encode_views(tok, x, flip, crops, size)
                                for x in read_rows(data, rows, size)
                            ]
                            with atomic_file(part) as f:
                                np.save(f, torch.cat(found).numpy().astype(id_type(tok)))
                            bar.update(len(rows))
                except Timeout:
                    continue
                except OSError:
                    if not path.exists():  # another process has joined and removed the parts
                        raise
                if path.exists():
                    shutil.rmtree(part.parent, ignore_errors=True)
                    return


def read_rows(data: Images | Folder, rows: Tensor, batch_size: int) -> Iterable[Tensor]:
    """The images at these positions (n,) in batches, (B, 3, H, W) uint8."""
    if isinstance(data, Images):
        return (data.at(i) for i in rows.split(batch_size))
    part = Subset(data, rows.tolist())
    return DataLoader(part, batch_size=batch_size, num_workers=data.workers)


def join_parts(path: Path, n: int, shape: tuple[int, int], dtype: np.dtype) -> None:
    """Write the ids of all parts to one file (n, V, K), and remove the parts."""
    with atomic_file(path) as f:
        write_header(f, (n, *shape), dtype)
        for first in range(0, n, PART):
            part = part_path(path, first)
            ids = np.load(part, mmap_mode="r", allow_pickle=False)
            if ids.dtype != dtype or ids.shape != (min(PART, n - first), *shape):
                raise OSError(f"{part} holds no such ids: delete it")
            f.write(ids.tobytes())
    shutil.rmtree(part_path(path, 0).parent, ignore_errors=True)


def write_header(f: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Write the header of an .npy file to the beginning of f; returns its length."""
    f.seek(0)
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(f, header)
    return f.tell()


# ---- streams: as a whole -------------------------------------------------------------------------


def write_stream(
    path: Path,
    label_path: Path,
    tok: FlexTok,
    data: Stream,
    flip: bool,
    crops: int,
    quiet: bool,
    batch_size: int,
) -> None:
    """Write the ids of a stream and, if all are known, its labels (N,)."""
    with atomic_file(path) as f:
        labels = write_ids(f, tok, data, flip, crops, quiet, batch_size)
        # Before the ids, whose presence means that all is there.
        if labels is not None:
            with atomic_file(label_path) as g:
                np.save(g, labels.numpy())


def write_ids(
    f: BinaryIO, tok: FlexTok, data: Stream, flip: bool, crops: int, quiet: bool, batch_size: int
) -> Tensor | None:
    """Write the ids of a stream as an .npy file; returns the labels (N,), if all are known.

    The number of images is known only at the end, so the header is written twice.
    """
    shape, dtype = (crops * (1 + flip), tok.config.num_registers), id_type(tok)
    labels: list[Tensor | None] = []
    start, n = write_header(f, (0, *shape), dtype), 0
    off = True if quiet else None
    with tqdm(desc="ids", unit="image", disable=off, leave=False) as bar:
        for images, known in in_order(data, batch_size):
            ids = encode_views(tok, images, flip, crops, batch_size)
            f.write(ids.numpy().astype(dtype).tobytes())
            labels.append(known)
            n += len(ids)
            bar.update(len(ids))
    if n == 0:
        raise ValueError(f"{data.name} has no readable image")
    if write_header(f, (n, *shape), dtype) != start:  # numpy reserves space for 20 digits
        raise AssertionError("the header of the ids has grown into them")
    return torch.cat(labels) if all(known is not None for known in labels) else None


def encode_views(tok: FlexTok, images: Tensor, flip: bool, crops: int, batch_size: int) -> Tensor:
    """The ids of all views of images (b, 3, H, W) uint8, or of items of `Latents`: (b, V, K) on the
    CPU."""
    images = images.to(tok.device)
    if images.dtype == torch.uint8:
        x = to_float(views(images, flip, crops))  # (b, V, 3, H, W)
    else:  # (b, 1 or 2, 2, C, h, w): the modes of images and of their mirror images
        scaling_factor = 1.0 if tok.vae is None else tok.vae.config.scaling_factor
        x = images[:, : 1 + flip, 0].float() * scaling_factor
    encode = tok.encode if images.dtype == torch.uint8 else tok.encode_latents
    ids = torch.cat([encode(part).cpu() for part in x.flatten(0, 1).split(batch_size)])
    return ids.unflatten(0, x.shape[:2])
