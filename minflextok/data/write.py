"""Writing WebDataset shards: of the image files in a folder, or of the latents of a data set.

A directory gets SPLIT-00000.tar, SPLIT-00001.tar, ... and SPLIT.json, the record of what they hold.
`load_dataset(DIRECTORY)` reads them.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import checks
from ..precision import autocast
from ..vae import VAE
from ..weights import atomic_file, fingerprint
from . import folders
from .datasets import LATENTS, Folder, Images, Latents, Stream, part_of
from .identity import identity
from .images import to_float
from .order import permutation
from .records import claim, shard_name
from .waiting import each

Files = dict[str, bytes]  # the files of one sample by suffix, such as {".jpg": ..., ".cls": b"3"}


def shard_folder(
    directory: str | Path,
    out: str | Path,
    split: str = "train",
    per_shard: int = 10_000,
    seed: int = 0,
    quiet: bool = False,
) -> int:
    """Write the image files of one split of a folder as shards, unchanged; returns the number of
    shards.

    The images are shuffled once, and all shards have the same number of them, at most `per_shard`,
    or one less. Interrupted, the same call goes on. Raises ValueError where `out` holds other
    shards of this split; see `folders.scan` for layouts that are refused.
    """
    source = Path(checks.check_path(directory, "directory"))
    checks.check_choice(split, "split", ("train", "test"))
    per_shard = checks.check_count(per_shard, "per_shard", 1, checks.MOST)
    seed = checks.check_count(seed, "seed", 0, 2**63 - 1)
    if not source.is_dir():
        raise FileNotFoundError(f"directory={str(source)!r}: there is no such folder")
    root, train = folders.find_split(source, split)
    trained = [d.name for d in folders.subfolders(train)]
    files, labels, classes = folders.scan(root, trained)
    order = permutation(len(files), seed)
    named = torch.tensor(labels) if labels is not None else None
    data = Folder(str(root), files, named, classes, size=1, workers=0)
    record = {"images": len(files), "classes": classes, "seed": seed, "identity": identity(data)}

    def read(rows: list[int]) -> Iterator[Files]:
        for i in rows:
            image = Path(files[i])
            yield {image.suffix.lower(): image.read_bytes()} | label_file(data.labels, i)

    return write_shards(Path(out), split, equal_parts(order, per_shard), record, read, quiet=quiet)


@torch.no_grad()
def cache_latents(
    data: Images | Folder | Stream,
    vae: VAE,
    out: str | Path,
    flip: bool = True,
    per_shard: int = 10_000,
    batch_size: int = 32,
    bf16: bool = False,
    rank: int = 0,
    world: int = 1,
    quiet: bool = False,
    reader_minutes: float = 10.0,
) -> int:
    """Write the latents of all images of a data set as shards, for training without pixels; returns
    the number of shards.

    Each sample holds mean and log-variance of the VAE's posterior of an image and, with `flip`, of
    its mirror image: (1 or 2, 2, C, h, w) bfloat16, in stored order of the data set. bf16: compute
    in bfloat16 where that is native. Of `world` ranks, each writes its share of the shards. A
    stream is read once: each of its shards becomes one, whatever `per_shard`, without the images
    that cannot be read. Interrupted, the same call goes on. Raises ValueError where `out` holds
    other shards, or if no batch of images comes for `reader_minutes` (0: no limit).
    """
    checks.check_type(vae, VAE, "vae")
    if not isinstance(data, Images | Folder | Stream) or isinstance(data, Latents):
        raise ValueError(f"data is a {type(data).__name__}: give a data set of images")
    checks.check_bools(flip=flip, bf16=bf16, quiet=quiet)
    world = checks.check_count(world, "world", 1, checks.MOST)
    rank = checks.check_count(rank, "rank", 0, world - 1)
    batch_size = checks.check_count(batch_size, "batch_size", 1, checks.MOST)
    per_shard = checks.check_count(per_shard, "per_shard", 1, checks.MOST)
    device = vae.quant_conv.weight.device
    vae = vae.eval()

    def encode(images: Tensor) -> Tensor:
        """(b, 3, H, W) uint8 -> (b, 2, C, h, w) bfloat16."""
        with autocast(device, bf16):
            posterior = vae.posterior(to_float(images).to(device))
        return torch.stack(posterior, 1).bfloat16().cpu()

    def read(part: list) -> Iterator[Files]:
        source = part_of(data, part[0] if isinstance(data, Stream) else torch.tensor(part))
        for images, labels in each(source.in_order(batch_size), data, reader_minutes):
            both = [images, images.flip(-1)] if flip else [images]
            for i, z in enumerate(torch.stack([encode(x) for x in both], 1)):
                yield {LATENTS: to_bytes(z)} | label_file(labels, i)

    first, _ = next(each(data.in_order(1, 1), data, reader_minutes), (None, None))
    if first is None:
        raise ValueError(f"{data.name} holds no readable image")
    z = encode(first)
    record = {
        "images": None if isinstance(data, Stream) else len(data),  # not known before it is read
        "classes": data.classes,
        "identity": identity(data, conditions=True),
        "latents": {
            "shape": [1 + flip, *z.shape[1:]],
            "vae": fingerprint(vae.state_dict()),
            "scaling_factor": vae.config.scaling_factor,
            "computed_in": "bfloat16" if bf16 else "float32",
        },
    }
    if isinstance(data, Stream):
        parts: list[list] = [[shard] for shard in data.shards]
    else:
        parts = equal_parts(torch.arange(len(data)), per_shard)
    return write_shards(Path(out), data.split, parts, record, read, rank, world, quiet=quiet)


def label_file(labels: Tensor | None, i: int) -> Files:
    return {} if labels is None else {".cls": str(int(labels[i])).encode()}


def to_bytes(z: Tensor) -> bytes:
    return z.contiguous().view(torch.uint8).numpy().tobytes()


def equal_parts(order: Tensor, per_shard: int) -> list[list]:
    """Positions (N,) in parts of equal size (or one less), at most `per_shard`."""
    return [part.tolist() for part in order.tensor_split(-(-len(order) // per_shard))]


def write_shards(
    out: Path,
    split: str,
    parts: list[list],
    record: dict,
    read: Callable[[list], Iterator[Files]],
    rank: int = 0,
    world: int = 1,
    quiet: bool = False,
) -> int:
    """Write the samples `read(part)` of each part as a shard; returns the number of shards. A part
    is the positions of its samples, or a shard of a stream. Shards that are there already are left
    as they are."""
    claim(out, split, {"shards": len(parts)} | record)
    mine = range(rank, len(parts), world)
    starts = [0, *accumulate(map(len, parts))]
    for s in tqdm(mine, desc=split, unit="shard", disable=True if quiet else None):
        path = out / shard_name(split, s)
        if not path.exists():
            with atomic_file(path) as f, tarfile.open(fileobj=f, mode="w") as tar:
                for number, files in enumerate(read(parts[s]), starts[s]):
                    for suffix, content in files.items():
                        info = tarfile.TarInfo(f"{number:08d}{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    return len(parts)
