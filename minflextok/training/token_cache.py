"""The token ids of a whole data set, extracted once by a tokenizer and kept as a memory-mapped
array.

The name of a file is a hash of all that its content depends on: the tokenizer, the precision in
which it computes, the images and their views. Files are written whole or not at all, and never
change. They are written in parts of PART images, those of a stream in one part for each shard: each
part by whichever rank is free, so that ranks share the work, and a killed extraction goes on with
the parts that are missing.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from ..data import Dataset, Latents, Stream, identity, to_float
from ..data.datasets import LabelledBatches, part_of
from ..data.waiting import each
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
    reader_minutes: float = 10.0,
) -> tuple[np.ndarray, Tensor | None]:
    """Ids of every view of every image, (N, V, K) memory-mapped, and the labels (N,) or None.

    Labels are those of the data set; only those of a stream, which are hashed with the images, are
    kept beside the ids. The file is in the directory `cache` (default ~/.cache/minflextok/ids), and
    written if it is not there. Under torchrun, the ranks share this work, and all must call this.
    ValueError if no batch of images comes for `reader_minutes` (0: no limit).
    """
    folder, K, V = Path(cache or CACHE_DIR), tok.config.num_registers, crops * (1 + flip)
    views(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), flip, crops)  # checks `crops` before the work
    if isinstance(data, Latents):
        if tok.vae is None or crops != 1:
            needs = "a tokenizer with its VAE" if tok.vae is None else "crops=1"
            raise ValueError(f"{data.name} holds latents of a VAE: give {needs}")
        check_latents(data, fingerprint(tok.vae.state_dict()), tok.config, flip)
    images = identity(data, content=True, reader_minutes=reader_minutes)
    key = json.dumps([tokenizer_key(tok), images, flip, crops])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            extract_parts(path, tok, data, flip, crops, quiet, batch_size, reader_minutes)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                join_parts(path, data, (V, K), id_type(tok))
    except ConnectionError:  # a remote shard cannot be read, which is also an OSError
        raise
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
        if not labels_of(path).exists():
            return ids, None
        return ids, torch.from_numpy(np.load(labels_of(path), allow_pickle=False))
    except ValueError as e:
        raise ValueError(f"{path} is damaged ({e}): delete it, and it is written again") from None


def labels_of(path: Path) -> Path:
    """Where the labels of a file of ids are, if they are known."""
    return path.with_suffix(".labels.npy")


def id_type(tok: FlexTok) -> np.dtype:
    """The smallest type that represents the ids of a tokenizer."""
    return np.dtype("<u2" if tok.config.vocab_size <= 2**16 else "<i4")


# ---- in parts ------------------------------------------------------------------------------------


def parts_of(data: Dataset) -> list:
    """The parts: positions (n,) of at most PART images; of a stream, whose length is not known, its
    shards."""
    return data.shards if isinstance(data, Stream) else [*torch.arange(len(data)).split(PART)]


def read_part(
    data: Dataset, part: Tensor | str, batch_size: int, reader_minutes: float
) -> LabelledBatches:
    """The images of a part in batches, (B, 3, H, W) uint8, and the labels (B,) of a stream."""
    batches = each(part_of(data, part).in_order(batch_size), data, reader_minutes)
    return batches if isinstance(data, Stream) else ((images, None) for images, _ in batches)


def part_path(path: Path, number: int) -> Path:
    return path.with_suffix(".parts") / f"{number:012d}.npy"


def extract_parts(
    path: Path,
    tok: FlexTok,
    data: Dataset,
    flip: bool,
    crops: int,
    quiet: bool,
    size: int,
    minutes: float,
) -> None:
    """Write the parts of the ids that are missing. Returns when all are there: those that another
    process is writing are waited for, and written here if it is killed."""
    total = None if isinstance(data, Stream) else len(data)
    off = True if quiet else None  # None: no bar where the output is not a terminal
    with tqdm(total=total, desc="ids", unit="image", disable=off, leave=False) as bar:
        for patience in (0, -1):  # first what is free; then wait for the others
            for number, part in enumerate(parts_of(data)):
                file = part_path(path, number)
                try:
                    file.parent.mkdir(exist_ok=True)
                    with FileLock(file.with_suffix(".lock"), timeout=patience):
                        if not (file.exists() or path.exists()):
                            options = flip, crops, size, minutes
                            bar.update(write_part(file, tok, data, part, *options))
                except Timeout:
                    continue
                except OSError:
                    if not path.exists():  # another process has joined and removed the parts
                        raise
                if path.exists():
                    shutil.rmtree(file.parent, ignore_errors=True)
                    return


def write_part(
    file: Path,
    tok: FlexTok,
    data: Dataset,
    part: Tensor | str,
    flip: bool,
    crops: int,
    size: int,
    minutes: float,
) -> int:
    """Write the ids of a part and, if all are known, the labels of a stream; returns its length."""
    ids = [torch.empty(0, crops * (1 + flip), tok.config.num_registers, dtype=torch.int64)]
    labels: list[Tensor | None] = []
    for images, known in read_part(data, part, size, minutes):
        ids.append(encode_views(tok, images, flip, crops, size))
        labels.append(known)
    if labels and all(known is not None for known in labels):
        with atomic_file(labels_of(file)) as f:  # before the ids: when they are there, all is
            np.save(f, torch.cat(labels).numpy())
    with atomic_file(file) as f:
        np.save(f, torch.cat(ids).numpy().astype(id_type(tok)))
    return sum(map(len, ids))


def join_parts(path: Path, data: Dataset, shape: tuple[int, int], dtype: np.dtype) -> None:
    """Write the ids of all parts to one file (N, V, K), those labels that are known to another, and
    remove the parts."""
    files = [part_path(path, number) for number in range(len(parts_of(data)))]
    # Opened one at a time: the parts of a large set are more than a process may have open.
    lengths = [len(np.load(file, mmap_mode="r", allow_pickle=False)) for file in files]
    n = sum(lengths)
    if n == 0:
        raise ValueError(f"{data.name} has no readable image")
    known = [labels_of(file) for file, length in zip(files, lengths, strict=True) if length]
    if len({file.exists() for file in known}) == 2:
        raise ValueError(f"{data.name} is labelled in part: give all images a class, or none")
    if known[0].exists():
        with atomic_file(labels_of(path)) as f:
            np.save(f, np.concatenate([np.load(file, allow_pickle=False) for file in known]))
    with atomic_file(path) as f:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (n, *shape)}
        np.lib.format.write_array_header_1_0(f, header)
        for file, part, length in zip(files, parts_of(data), lengths, strict=True):
            ids = np.load(file, allow_pickle=False)
            wanted = length if isinstance(data, Stream) else len(part)
            if ids.dtype != dtype or ids.shape != (wanted, *shape):
                raise OSError(f"{file} holds no such ids: delete it")
            f.write(ids.tobytes())
    shutil.rmtree(files[0].parent, ignore_errors=True)


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
