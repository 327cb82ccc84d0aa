"""The three kinds of image data sets: in memory, on disk, streamed. See load.py for
`load_dataset`."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from .. import checks
from . import shards
from .images import UNREADABLE, RandomCrop, Skipped, open_image
from .order import random_crops, shuffled
from .remote import REMOTE
from .workers import end_with_parent

LATENTS = shards.LATENTS  # suffix of an item in shards
Batches = Iterator[Tensor]  # (B, 3, H, W) uint8
LabelledBatches = Iterator[tuple[Tensor, Tensor | None]]  # the same, and labels (B,) or None


@dataclass
class Images:
    """A set in memory. images (N, 3, H, W) uint8; labels (N,) int64 or None; captions or None."""

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)
    captions: list[str] | None = None
    split: str = "train"
    encoding: str = (
        "unknown encoding"  # how the images were stored: a lossy format limits all metrics
    )

    def __post_init__(self):
        checks.check_type(self.name, str, "name")
        names = checks.check_type(self.classes, list, "classes")
        give = "a (N, 3, H, W) uint8 tensor"
        x = checks.check_tensor(self.images, "images", [torch.uint8], give)
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape[2:]:
            raise ValueError(f"images have shape {tuple(x.shape)}: give {give}")
        if self.labels is not None:
            give = f"a ({len(x)},) int64 tensor, one label an image"
            labels = checks.check_tensor(self.labels, "labels", checks.INTEGERS, give)
            if labels.shape != (len(x),):
                raise ValueError(f"labels have shape {tuple(labels.shape)}: give {give}")
            checks.check_between(labels, "labels", "classes", len(names) or checks.MOST)
        texts = self.captions
        if texts is not None and len(checks.check_type(texts, list, "captions")) != len(x):
            raise ValueError(f"{len(texts)} captions for {len(x)} images: give one each")
        for text in texts or []:
            checks.check_type(text, str, "captions: one")

    def __len__(self) -> int:
        return len(self.images)

    def at(self, i: Tensor) -> Tensor:
        """The images at positions i (n,)."""
        return self.images[self._positions(i).to(self.images.device)]

    def _positions(self, i: Tensor) -> Tensor:
        i = checks.check_tensor(i, "i", checks.INTEGERS, "positions, an (n,) int64 tensor")
        if i.ndim != 1:
            raise ValueError(f"i has shape {tuple(i.shape)}: give (n,)")
        return checks.check_between(i.long(), "i", "positions", len(self))

    def select(self, i: Tensor, split: str | None = None, images: Tensor | None = None) -> "Images":
        """The subset at positions i (n,); `split` names it. images: those at i, if at hand."""
        i = self._positions(i)
        return Images(
            self.name,
            self.images[i] if images is None else images,
            None if self.labels is None else self.labels[i],
            self.classes,
            None if self.captions is None else [self.captions[j] for j in i.tolist()],
            split or self.split,
            self.encoding,
        )

    def batches(
        self,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        crop_scale: float = 1.0,
    ) -> Batches:
        """Endless training batches from step `start` on: this rank's share of each. See
        `shuffled` and, for crop_scale < 1, `random_crops`."""
        crops = random_crops(batch_size, seed, crop_scale, start)
        for i, c in zip(shuffled(len(self), batch_size, seed, start), crops, strict=False):
            x = self.at(i[rank::world])
            yield torch.stack([*map(cropped, x, c[rank::world])]) if crop_scale < 1 else x

    def in_order(self, batch_size: int, num: int | None = None) -> LabelledBatches:
        for i in torch.arange(len(self))[:num].split(batch_size):
            yield self.at(i), None if self.labels is None else self.labels[i]


@dataclass(eq=False)
class Folder(torch.utils.data.Dataset):
    """A set of image files too large for memory, in a folder or in plain tars, decoded by worker
    processes. Its batches are those of `Images`.

    An unreadable file is replaced by the next readable one of its class, so that no image has a
    wrong label.
    """

    name: str
    files: list[str] | shards.Members
    labels: Tensor | None
    classes: list[str]
    size: int
    workers: int
    split: str = "train"
    encoding: str = "unknown encoding"

    def __post_init__(self):
        self.skipped = Skipped()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int | tuple[int, RandomCrop | None]) -> Tensor:
        i, crop = item if isinstance(item, tuple) else (item, None)
        for j in (j % len(self) for j in range(i, i + len(self))):
            if self.labels is not None and self.labels[j] != self.labels[i]:
                continue
            try:
                return torch.from_numpy(open_image(self.files[j], self.size, crop).copy())
            except UNREADABLE as e:
                self.skipped(self.name_of(j), e)
        which = self.name
        if self.labels is not None:
            label = int(self.labels[i])
            which = f"class {self.classes[label] if self.classes else label}"  # shards: no names
        raise ValueError(f"{self.name}: no image of {which} can be read")

    def name_of(self, i: int) -> str:
        """Where image i is: its file, or its name in a shard."""
        return self.files[i] if isinstance(self.files, list) else self.files.name(i)

    def at(self, i: Tensor) -> Tensor:
        return torch.stack([self[j] for j in i.tolist()])

    def select(self, i: Tensor, split: str | None = None) -> "Folder":
        files = self.files
        return replace(
            self,
            files=[files[j] for j in i.tolist()]
            if isinstance(files, list)
            else files.select(i.numpy()),
            labels=None if self.labels is None else self.labels[i],
            split=split or self.split,
        )

    def batches(
        self,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        crop_scale: float = 1.0,
    ) -> Batches:
        order = shuffled(len(self), batch_size, seed, start)
        crops = random_crops(batch_size, seed, crop_scale, start)
        yield from DataLoader(
            self,
            batch_sampler=(
                list(zip(i.tolist(), c, strict=True))[rank::world]
                for i, c in zip(order, crops, strict=False)
            ),
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=end_with_parent,
        )

    def in_order(self, batch_size: int, num: int | None = None) -> LabelledBatches:
        rows = torch.arange(len(self))[:num]
        images = DataLoader(
            Subset(self, rows.tolist()),
            batch_size=batch_size,
            num_workers=self.workers,
            worker_init_fn=end_with_parent,
        )
        for i, x in zip(rows.split(batch_size), images, strict=True):
            yield x, None if self.labels is None else self.labels[i]


@dataclass(eq=False)
class Latents(Folder):
    """The latents of images by a VAE, on disk: see `cache_latents`.

    An item holds mean and log-variance (bfloat16) of the posterior of an image and, if views = 2,
    of its mirror image.
    """

    shape: tuple[int, ...] = ()  # of an item: (views, 2, C, h, w)
    vae: str = ""  # the fingerprint of the VAE
    scaling_factor: float = 1.0  # which it multiplies latents by

    def __getitem__(self, item: int | tuple[int, RandomCrop | None]) -> Tensor:
        i = item[0] if isinstance(item, tuple) else item
        content = self.files[i]
        if not isinstance(content, bytes) or len(content) != 2 * math.prod(self.shape):
            raise ValueError(f"{self.name_of(i)} holds no latents of shape {self.shape}")
        return torch.frombuffer(bytearray(content), dtype=torch.bfloat16).view(self.shape)


@dataclass(eq=False)
class Stream(IterableDataset):
    """Remote or compressed WebDataset shards too large for memory, shuffled in a buffer.

    Each worker of each rank reads all shards in one order and decodes the images of its steps and
    rows: the batches are a function of seed and step, as those of `Folder`, and the files are read
    once for each worker. Remote shards, if there is one for each worker, are dealt to the workers
    and read once: every image is seen equally often only in the long run (`shards.dealt`), and a
    resumed run continues with a new shuffle.

    An unreadable image is replaced by the next one that can be read.
    """

    name: str
    shards: list[str]
    size: int
    workers: int
    split: str = "train"
    encoding: str = "unknown encoding"

    def __post_init__(self):
        self.classes: list[str] = []
        self.skipped, self.crop_scale = Skipped(), 1.0
        self.batch_size, self.seed, self.start, self.rank, self.world = 1, 0, 0, 0, 1
        self.names: dict[int, list[str]] = {}  # of this rank's images of the last two steps

    def __iter__(self) -> Iterator[tuple[Tensor, str]]:
        """Endless images (3, H, W) uint8 of one worker of `batches`, and their names."""
        worker = torch.utils.data.get_worker_info()
        id, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        reader, readers = self.rank * workers + id, self.world * workers
        epochs: Iterator[Iterator[shards.Sample]]
        places: Iterator[tuple[bool, RandomCrop | None]]
        if readers <= len(self.shards) and self.shards[0].startswith(REMOTE):
            seed = self.seed + 1_000_003 * self.start
            epochs = (shards.dealt(self.shards, seed, e, reader, readers) for e in count())
            crops = chain.from_iterable(random_crops(64, seed, self.crop_scale, 2**20 * reader))
            places = ((True, crop) for crop in crops)
        else:
            epochs = shards.epochs(self.shards, self.seed, self.start * self.batch_size)
            places = self.places(id, workers)
        found = shards.decode_share(epochs, places, self.size, self.skipped, 10 * readers)
        for image, name in found:
            yield torch.from_numpy(image.copy()), name
        raise ValueError(f"{self.name} holds no readable image")

    def places(self, id: int, workers: int) -> Iterator[tuple[bool, RandomCrop | None]]:
        """For each image from step `start` on: whether this worker decodes it, and its crop. The
        DataLoader takes a batch from each worker in turn."""
        crops = random_crops(self.batch_size, self.seed, self.crop_scale, self.start)
        for step, batch in enumerate(crops):
            for row, crop in enumerate(batch):
                yield step % workers == id and row % self.world == self.rank, crop

    def head(self, n: int) -> Tensor:
        """The first n images in stored order, (n, 3, H, W) uint8."""
        images, _ = next(self.in_order(n, n), (None, None))
        if images is None:
            raise ValueError(f"{self.name} holds no readable image")
        return images

    def batches(
        self,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        crop_scale: float = 1.0,
    ) -> Batches:
        reader = replace(self)
        reader.batch_size, reader.seed, reader.start = batch_size, seed, start
        reader.rank, reader.world, reader.crop_scale = rank, world, crop_scale
        found = DataLoader(
            reader,
            batch_size=batch_size // world,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=end_with_parent,
        )
        for step, (images, names) in enumerate(found, start):
            # A GPU's loss is known one step later.
            self.names = {step - 1: self.names.get(step - 1, []), step: list(names)}
            yield images

    def in_order(self, batch_size: int, num: int | None = None) -> LabelledBatches:
        found = shards.samples(shards.read_all(self.shards))
        decoded = islice(shards.decode(found, self.size, Skipped()), num)
        labelled: bool | None = None  # whether the first image has a class
        while batch := list(islice(decoded, batch_size)):
            labels = [label for _, label in batch]
            labelled = labels[0] is not None if labelled is None else labelled
            if {label is not None for label in labels} != {labelled}:
                raise ValueError(
                    f"{self.name} is labelled in part: give all images a class, or none"
                )
            known = torch.tensor(labels) if labelled else None
            yield torch.from_numpy(np.stack([image for image, _ in batch])), known


def cropped(image: Tensor, crop: RandomCrop | None) -> Tensor:
    """A random crop of an image (3, H, W) uint8, resized to its size."""
    if crop is None:
        return image
    size = image.shape[-2:]
    left, top, right, bottom = (round(n) for n in crop.box(size[1], size[0]))
    part = image[None, :, top : max(bottom, top + 1), left : max(right, left + 1)].float()
    resized = F.interpolate(part, size, mode="bicubic", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


Dataset = Images | Folder | Stream  # Latents are a Folder


def part_of(data: Dataset, part: Tensor | str) -> Dataset:
    """The images at positions (n,); of a stream, those of one of its shards."""
    return replace(data, shards=[part]) if isinstance(data, Stream) else data.select(part)


def in_order(data: Dataset, batch_size: int, num: int | None = None) -> LabelledBatches:
    """The first `num` images (default: all) in stored order: uint8 (B, 3, H, W), and labels (B,) or
    None."""
    return data.in_order(batch_size, num)
