"""WebDataset shards: tar files of images, each with an optional class number in a .cls file of the
same name."""

import os
import random
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset as wds
from webdataset.tariterators import tar_file_expander

from ..checks import first_line
from .folders import is_litter
from .images import IMG_EXTENSIONS, OTHER_EXTENSIONS, UNREADABLE, Skipped, open_image

REMOTE = ("pipe:", "http:", "https:", "s3:", "gs:")
Files = Iterable[dict]  # files in stored order: {"fname", "data", "__url__"}; {} ends a shard


@dataclass
class Sample:
    """An image as stored, and its class."""

    key: str  # its name in the shard, without the extension
    url: str  # the shard
    image: bytes = b""
    suffix: str = ""  # of the image, such as ".jpg"
    label: int | None = None


def expand(pattern: str) -> tuple[list[str], int | None]:
    """The shards that a name such as "train-{000..127}.tar" means, and their size in bytes (None:
    remote)."""
    if not pattern.startswith(REMOTE):
        pattern = pattern.replace(os.sep, "/")  # a backslash of Windows would escape braces
    shards = wds.shardlists.expand_urls(pattern)
    if pattern.startswith(REMOTE):
        return shards, None
    absent = [s for s in shards if not Path(s).exists()]
    if absent:
        raise FileNotFoundError(
            f"no shard {absent[0]} ({len(absent)} of {len(shards)} are missing)"
        )
    for shard in shards:
        if shard.endswith(".tar") and not is_whole(shard):
            raise ValueError(
                f"{shard} does not end as a tar does: it is truncated, or no tar; copy it again"
            )
    return shards, sum(os.path.getsize(s) for s in shards)


def is_whole(shard: str) -> bool:
    """A tar ends with two blocks of zeros; one cut between two files would else pass for a shorter
    set."""
    with open(shard, "rb") as f:
        size = f.seek(0, 2)
        f.seek(max(0, size - 1024))
        return size >= 1024 and not any(f.read())


def opened(shards: Iterable[str]) -> Iterator[dict]:
    for shard in shards:
        if shard.startswith(REMOTE):
            yield {"url": shard, "stream": wds.gopen(shard)}
        else:  # by hand: to webdataset, "C:/x.tar" is a URL of the protocol "c"
            with open(shard, "rb") as stream:
                yield {"url": shard, "stream": stream}


def read_all(shards: Iterable[str]) -> Files:
    """The files of these shards in stored order."""
    return tar_file_expander(opened(shards))


def shuffled(shards: list[str], seed: int) -> Iterator["Sample"]:
    """The samples of this rank's and worker's shards, in random order (in a buffer of 4,096)."""
    mine = wds.split_by_worker(wds.split_by_node({"url": s} for s in shards))
    mine = wds.filters.detshuffle(len(shards), seed=seed).run(mine)
    files = read_all(s["url"] for s in mine)
    return wds.filters.shuffle(4096, rng=random.Random(seed))(samples(files))


def read_files(files: Files) -> Iterator[dict]:
    try:
        yield from files
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as e:
        raise ValueError(
            f"cannot read a shard to its end ({first_line(e)}): is it truncated, or no tar?"
        ) from None


def samples(files: Files) -> Iterator[Sample]:
    """The images and their classes. The files of a sample follow each other, and have one name up
    to the last dot: frame.0001.png and frame.0001.cls. ValueError, which names the file, where a
    sample is not clear."""
    sample, previous = None, None
    for file in read_files(files):
        name = file.get("fname", "")  # an empty file ends a shard
        if file and any(is_litter(part) for part in name.split("/")):
            continue
        key, suffix = os.path.splitext(name)
        if sample and (key, file.get("__url__")) != (sample.key, sample.url):
            yield from finished(sample, previous, name)
            sample, previous = None, sample if file else None
        if file:
            sample = sample or Sample(key, file["__url__"])
            add(sample, name, suffix.lower(), file["data"])
    if sample:
        yield from finished(sample, previous, "")


def add(sample: Sample, name: str, suffix: str, data: bytes) -> None:
    """Add a file to its sample; files that are neither an image nor a class are left out."""
    if suffix in IMG_EXTENSIONS:
        if sample.suffix:
            raise ValueError(
                f"{sample.url}: {name} is a second image of {sample.key} (the first is a "
                f"{sample.suffix}): keep one image for each name"
            )
        sample.image, sample.suffix = data, suffix
    elif suffix in OTHER_EXTENSIONS:
        raise ValueError(f"{sample.url}: cannot read {name}: convert it to PNG or JPEG")
    elif suffix == ".cls":
        if not data.strip().isdigit():
            raise ValueError(f"{sample.url}: {name} holds {data[:20]!r}, not a class number")
        if sample.label is not None:
            raise ValueError(f"{sample.url} holds {name} twice")
        sample.label = int(data)


def finished(sample: Sample, previous: Sample | None, following: str) -> Iterator[Sample]:
    """The sample, if it is one: files without an image and a class are none."""
    if sample.suffix:
        keys = sorted((sample.key, previous.key if previous else ""))
        if keys[0] and keys[1].startswith(keys[0] + "."):
            raise ValueError(
                f"{sample.url}: {' and '.join(keys)} look like one sample with several images "
                "(such as a photo and its depth map): keep one image for each name"
            )
        yield sample
    elif sample.label is not None:
        near = f"; is {following} its image?" if following.startswith(sample.key) else ""
        raise ValueError(f"{sample.url}: {sample.key}.cls has no image beside it{near}")


def decode(
    found: Iterable[Sample], size: int, skipped: Skipped
) -> Iterator[tuple[np.ndarray, int | None]]:
    """Image (3, size, size) uint8 and class of each sample that can be read."""
    for sample in found:
        try:
            yield open_image(sample.image, size), sample.label
        except UNREADABLE as e:
            skipped(sample.key, e)
