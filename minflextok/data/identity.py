"""What a data set consists of, as a hash: for the cache of token ids and the record of a run."""

import hashlib
import os
from collections.abc import Iterator

import torch.distributed as dist

from .datasets import Dataset, Folder, Images
from .remote import unsigned
from .shards import opened
from .waiting import each


def identity(
    data: Dataset, conditions: bool = False, content: bool = False, reader_minutes: float = 0
) -> str:
    """16 hexadecimal digits that identify the images of a data set, in their order (SHA-256).

    A set in memory is identified by its pixels, one on disk by names, sizes and dates of its files.
    conditions: labels, class names and captions count too. content: the shards of a stream are
    read as a whole, because dates do not identify them where they are remote; about a second per
    gigabyte from a local disk. Under torchrun the ranks share this work, so all must call this.
    reader_minutes: how long they wait for the bytes of a shard (0: no limit).
    """
    digest = hashlib.sha256(str(getattr(data, "size", None)).encode())
    if isinstance(data, Images):
        digest.update(str(tuple(data.images.shape)).encode())
        digest.update(data.images.cpu().contiguous().numpy())
    elif isinstance(data, Folder) and isinstance(data.files, list):
        digest.update("\n".join(map(describe_file, data.files)).encode(errors="surrogateescape"))
    elif isinstance(data, Folder):  # shards, and which of their images
        digest.update("\n".join(map(describe_file, data.files.shards)).encode())
        digest.update(data.files.places.tobytes())
    elif content:
        digest.update("\n".join(hashes(data.shards, reader_minutes)).encode())
    else:
        digest.update("\n".join(map(describe_file, data.shards)).encode())
    if conditions:
        labels = getattr(data, "labels", None)
        words = data.classes, getattr(data, "captions", None)
        digest.update(repr((None if labels is None else labels.tolist(), words)).encode())
    return digest.hexdigest()[:16]


def hashes(shards: list[str], reader_minutes: float) -> list[str]:
    """The SHA-256 of the content of each shard. Each rank reads an equal share of them."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = [hash_of(shard, reader_minutes) for shard in shards[rank::world]]
    if world == 1:
        return mine
    shares: list = [None] * world
    dist.all_gather_object(shares, mine)
    return [shares[i % world][i // world] for i in range(len(shards))]


def hash_of(shard: str, reader_minutes: float) -> str:
    def chunks() -> Iterator[bytes]:
        with opened(shard) as stream:
            while chunk := stream.read(2**20):
                yield chunk

    digest = hashlib.sha256()
    for chunk in each(chunks(), unsigned(shard), reader_minutes):
        digest.update(chunk)
    return digest.hexdigest()


def describe_file(path: str) -> str:
    """Name, size and date of a file; of a remote shard, the name."""
    stat = os.stat(path) if os.path.exists(path) else None
    return f"{unsigned(path)} {stat and (stat.st_size, stat.st_mtime_ns)}"
