"""WebDataset shards: tar files of images, each with an optional class number in a .cls file of the
same name.

Plain tars on disk are read by position, in any order (`Members`). Compressed and remote ones can
only be read from their start (`epochs`, `dealt`).
"""

import os
import random
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import IO

import numpy as np
import webdataset as wds
from webdataset.tariterators import tar_file_expander

from ..checks import first_line
from .folders import is_litter
from .images import IMG_EXTENSIONS, OTHER_EXTENSIONS, UNREADABLE, RandomCrop, Skipped, open_image
from .remote import REMOTE, RETRIES, remote_file

LATENTS = ".latents"  # suffix of the latents of an image, in place of the image
MOST_CLS = 64  # bytes of a class number
# Files in stored order: {"fname", "data", "__url__"}; where only the places of images are asked
# for, "at" is their (offset, size). {} ends a shard.
Files = Iterable[dict]


@dataclass
class Sample:
    """An image as stored, and its class."""

    key: str  # its name in the shard, without the extension
    url: str  # the shard
    image: bytes = b""
    suffix: str = ""  # of the image, such as ".jpg"
    label: int | None = None
    at: tuple[int, int] = (0, 0)  # offset and size of the image in the shard, in bytes


@dataclass(eq=False)
class Members(Sequence):
    """The images in plain tars, each read by seeking to it: `members[i]` is its bytes."""

    shards: list[str]
    names: np.ndarray  # (N,) names as bytes, which take less memory than str
    places: np.ndarray  # (N, 3) int64: shard, offset, size
    labels: list[int | None] = field(default_factory=list)  # as many, or left out

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i) -> bytes:
        shard, offset, size = self.places[i].tolist()
        with open(self.shards[shard], "rb") as f:
            f.seek(offset)
            return f.read(size)

    def name(self, i: int) -> str:
        return f"{self.names[i].decode()} in {self.shards[self.places[i, 0]]}"

    def select(self, i: np.ndarray) -> "Members":
        return Members(self.shards, self.names[i], self.places[i])


def expand(pattern: str) -> list[str]:
    """The shards that a name such as "train-{000..127}.tar" means. FileNotFoundError or ValueError
    if one on disk is missing or truncated."""
    if pattern.startswith("s3:"):
        raise ValueError(
            f"{pattern}: shards in S3 are read by a command, or by signed URLs: give "
            f"'pipe:aws s3 cp {pattern} -' (it needs the AWS CLI), or https://..."
        )
    if not pattern.startswith(REMOTE):
        pattern = pattern.replace(os.sep, "/")  # a backslash of Windows would escape braces
    shards = wds.shardlists.expand_urls(pattern)
    if pattern.startswith(REMOTE):
        return shards
    # Only what a caller names may be a URL or run a command, never a part of a list.
    remote = [s for s in shards if s.startswith(REMOTE)]
    if remote:
        raise ValueError(f"{pattern} holds {remote[0]}: give shards of one kind")
    check_whole(shards)
    return shards


def check_whole(shards: list[str]) -> None:
    """FileNotFoundError or ValueError if a shard on disk is missing or truncated."""
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


def is_whole(shard: str) -> bool:
    """A tar ends with two blocks of zeros; one cut between two files would else pass for a shorter
    set."""
    with open(shard, "rb") as f:
        size = f.seek(0, 2)
        f.seek(max(0, size - 1024))
        return size >= 1024 and not any(f.read())


def opened(shard: str, retries: int = RETRIES) -> AbstractContextManager[IO[bytes]]:
    """The bytes of a shard. Of a remote one: see `remote_file`."""
    # By hand: to webdataset, "C:/x.tar" is a URL of the protocol "c".
    return remote_file(shard, retries) if shard.startswith(REMOTE) else open(shard, "rb")


def read_all(shards: Iterable[str], retries: int = RETRIES) -> Files:
    """The files of these shards in stored order."""
    for shard in shards:
        with to_its_end(shard), opened(shard, retries) as stream:
            yield from tar_file_expander([{"url": shard, "stream": stream}])


@contextmanager
def to_its_end(shard: str) -> Iterator[None]:
    """A shard that cannot be read to its end is a ValueError that names it."""
    try:
        yield
    except ConnectionError:  # which says why
        raise
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as e:
        # webdataset adds the stream to the error, as text or as a further argument.
        why = getattr(e, "strerror", None) or first_line(Exception(*e.args[:1])).split(" @ ")[0]
        raise ValueError(
            f"cannot read {shard} to its end ({why}): is it truncated, or no tar?"
        ) from None


def by_position(shards: list[str]) -> Members:
    """The images of plain tars, of which only the headers and the classes are read."""
    numbers = {shard: i for i, shard in enumerate(shards)}
    names, places, labels = [], [], []
    for sample in samples(headers(shards)):
        names.append(sample.key.encode(errors="surrogateescape"))
        places.append((numbers[sample.url], *sample.at))
        labels.append(sample.label)
    return Members(shards, np.array(names), np.array(places, dtype=np.int64).reshape(-1, 3), labels)


def headers(shards: Iterable[str]) -> Files:
    """The files of plain tars in stored order, with the places of images in place of their data."""
    for shard in shards:
        with to_its_end(shard), tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                if member.issparse():
                    raise ValueError(f"{member.name} is a sparse file, write it as it is")
                file = {"fname": member.name, "__url__": shard}
                if member.name.lower().endswith(".cls"):
                    found = tar.extractfile(member)
                    yield file | {"data": found.read(MOST_CLS) if found else b""}
                else:
                    yield file | {"data": b"", "at": (member.offset_data, member.size)}
        yield {}


def shuffled(shards: list[str], seed: int, epoch: int = 0) -> Iterator["Sample"]:
    """The samples of an epoch, in random order (in a buffer of 4,096)."""
    order = list(shards)
    random.Random(seed + epoch).shuffle(order)
    rng = random.Random(f"samples {seed} {epoch}")
    return wds.filters.shuffle(4096, rng=rng)(samples(read_all(order)))


def epochs(shards: list[str], seed: int, start: int = 0) -> Iterator[Iterator["Sample"]]:
    """The samples of each epoch, a function of the seed, from position `start` of all epochs on.

    To find a position, the shards are read up to it, or once to learn how many samples they have
    and then from the start of an epoch. Nothing is decoded meanwhile.
    """
    epoch, found = 0, shuffled(shards, seed)
    read = sum(1 for _ in islice(found, start))
    if read < start:
        epoch, start = divmod(start, max(1, read))
        found = islice(shuffled(shards, seed, epoch), start, None)
    yield found
    yield from (shuffled(shards, seed, later) for later in count(epoch + 1))


def dealt(
    shards: list[str], seed: int, epoch: int = 0, reader: int = 0, readers: int = 1
) -> Iterator["Sample"]:
    """One reader's samples of as many shards as there are, in random order (in a buffer of 4,096).

    The shards of all epochs, each in random order, are dealt to the readers in turn, and each reads
    only its own. Readers yield at the same rate, so one with small shards is soon at its next:
    every image is seen equally often in the long run, though readers may be in different epochs.
    """

    def mine() -> Iterator[str]:
        for i in range(epoch * len(shards), (epoch + 1) * len(shards)):
            deal, at = divmod(i * readers + reader, len(shards))
            order = list(shards)
            random.Random(seed + deal).shuffle(order)
            yield order[at]

    rng = random.Random(f"{seed + epoch} {reader}")
    found = (sample for shard in mine() for sample in samples(read_all([shard])))
    return wds.filters.shuffle(4096, rng=rng)(found)


def samples(files: Files) -> Iterator[Sample]:
    """The images and their classes. The files of a sample follow each other, and have one name up
    to the last dot: frame.0001.png and frame.0001.cls. ValueError, which names the file, where a
    sample is not clear, or where a shard holds a name twice."""
    seen: set[str] = set()
    for sample in grouped(files):
        if sample is None:  # the end of a shard
            seen.clear()
        elif sample.key in seen:
            raise ValueError(
                f"{sample.url} holds {sample.key}{sample.suffix} twice: was the tar appended to?"
            )
        else:
            seen.add(sample.key)
            yield sample


def grouped(files: Files) -> Iterator[Sample | None]:
    """The samples of these files; None after each shard."""
    sample, previous = None, None
    for file in files:
        name = file.get("fname", "")  # an empty file ends a shard
        if file and any(is_litter(part) for part in name.split("/")):
            continue
        key, suffix = os.path.splitext(name)
        if sample and (key, file.get("__url__")) != (sample.key, sample.url):
            yield from finished(sample, previous, name)
            sample, previous = None, sample if file else None
        if not file:
            yield None
        if file:
            sample = sample or Sample(key, file["__url__"])
            add(sample, name, suffix.lower(), file["data"], file.get("at", (0, 0)))
    if sample:
        yield from finished(sample, previous, "")


def add(sample: Sample, name: str, suffix: str, data: bytes, at: tuple[int, int]) -> None:
    """Add a file to its sample; files that are neither an image nor a class are left out."""
    if suffix in IMG_EXTENSIONS or suffix == LATENTS:
        if sample.suffix:
            raise ValueError(
                f"{sample.url}: {name} is a second image of {sample.key} (the first is a "
                f"{sample.suffix}): keep one image for each name"
            )
        sample.image, sample.suffix, sample.at = data, suffix, at
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
            image = open_image(sample.image, size)
        except UNREADABLE as e:
            skipped(sample.key, e)
            continue
        yield image, sample.label


def decode_share(
    epochs: Iterable[Iterable[Sample]],
    places: Iterator[tuple[bool, RandomCrop | None]],
    size: int,
    skipped: Skipped,
    most_idle: int,
) -> Iterator[tuple[np.ndarray, str]]:
    """Image (3, size, size) uint8 and name of each sample that is this reader's; `places` says for
    each sample whether it is, and its crop. Ends after `most_idle` epochs without an image.

    An unreadable image is replaced by the next that can be read, also if that is another reader's:
    so the image of a place does not depend on where the reading started.
    """
    waiting: list[RandomCrop | None] = []  # the crops of places that have no image yet
    idle = 0
    for epoch in epochs:
        idle += 1
        for sample, (mine, crop) in zip(epoch, places, strict=False):
            if mine:
                waiting.append(crop)
            try:
                images = [open_image(sample.image, size, crop) for crop in waiting]
            except UNREADABLE as e:
                skipped(sample.key, e)
                continue
            for image in images:
                yield image, f"{sample.key} in {sample.url}"
            waiting, idle = [], 0
        if idle == most_idle:
            return
