"""Images to train on: embedded, downloaded, or the user's own. One entry: `load_dataset`."""

import io
import random
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from filelock import FileLock
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ..config import DATA_DIR, TrainConfig
from .shapes import make_shapes

CIFAR10_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
)  # what Pillow raises on a broken file
IN_MEMORY_BYTES = 2 * 10**9  # decoded; larger sets stay on disk


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1] -> uint8 0..255, rounded."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def open_image(source: str | Path | bytes, size: int | None) -> np.ndarray:
    """Read an image file or its bytes as RGB (3, H, W) uint8; with `size`, resize the short side and crop the centre."""
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    image = ImageOps.exif_transpose(image)  # phones store their photos sideways
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image, np.int64) // 257).clip(0, 255).astype(np.uint8))
    image = image.convert("RGB")
    if size and image.size != (size, size):
        scale = size / min(image.size)
        w, h = (max(size, round(n * scale)) for n in image.size)
        image = image.resize((w, h), Image.Resampling.BICUBIC)
        left, top = (w - size) // 2, (h - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)


class Skipped:
    """Counts unreadable images, and warns with the name of each of the first few."""

    def __init__(self):
        self.count = 0

    def __call__(self, name: str, error: Exception) -> None:
        self.count += 1
        if self.count <= 5:
            warnings.warn(
                f"skipped unreadable image {name} ({error}); {self.count} so far", stacklevel=3
            )


@dataclass
class Images:
    """A set in memory. images (N, 3, H, W) uint8; labels (N,) int64 or None; captions or None."""

    name: str
    images: Tensor
    labels: Tensor | None = None
    classes: list[str] = field(default_factory=list)
    captions: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def at(self, i: Tensor) -> Tensor:
        return self.images[i.to(self.images.device)]

    def select(self, i: Tensor) -> "Images":
        """The subset at positions i (n,)."""
        return Images(
            self.name,
            self.images[i],
            None if self.labels is None else self.labels[i],
            self.classes,
            None if self.captions is None else [self.captions[j] for j in i.tolist()],
        )

    def batches(
        self, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Tensor]:
        """Endless uint8 batches from step `start` on; of each, this process's share. See `shuffled`."""
        for i in shuffled(len(self), batch_size, seed, start):
            yield self.at(i[rank::world])


class Folder(torch.utils.data.Dataset):
    """A set of image files too large for memory; the same batches as `Images`, decoded by `workers` processes."""

    def __init__(
        self,
        name: str,
        files: list[str],
        labels: Tensor | None,
        classes: list[str],
        size: int,
        workers: int,
    ):
        self.name, self.files, self.labels, self.classes = name, files, labels, classes
        self.size, self.workers, self.skipped = size, workers, Skipped()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        for j in range(i, i + len(self)):  # an unreadable file gives its place to the next
            file = self.files[j % len(self)]
            try:
                return torch.from_numpy(open_image(file, self.size).copy())
            except UNREADABLE as e:
                self.skipped(file, e)
        raise ValueError(f"{self.name}: none of its {len(self)} images can be read")

    def at(self, i: Tensor) -> Tensor:
        return torch.stack([self[j] for j in i.tolist()])

    def select(self, i: Tensor) -> "Folder":
        return Folder(
            self.name,
            [self.files[j] for j in i.tolist()],
            None if self.labels is None else self.labels[i],
            self.classes,
            self.size,
            self.workers,
        )

    def batches(
        self, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Tensor]:
        order = (i[rank::world].tolist() for i in shuffled(len(self), batch_size, seed, start))
        yield from torch.utils.data.DataLoader(
            self,
            batch_sampler=order,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )


class Stream(torch.utils.data.IterableDataset):
    """WebDataset shards too large for memory. The order is shuffled in a buffer, and each process reads its own
    shards; a resumed run goes on with a fresh shuffle (so only sets in memory or in folders resume bit for bit)."""

    def __init__(self, name: str, shards: list[str], size: int, workers: int):
        self.name, self.shards, self.size, self.workers = name, shards, size, workers
        self.classes, self.skipped, self.seed = [], Skipped(), 0

    def __iter__(self) -> Iterator[Tensor]:
        for epoch in range(10**9):
            shards = wds.WebDataset(
                self.shards,
                shardshuffle=len(self.shards),
                detshuffle=True,
                empty_check=False,
                seed=self.seed + epoch,
                nodesplitter=wds.split_by_node,
            )
            shards = shards.shuffle(4096, rng=random.Random(self.seed + epoch))
            count = 0
            for sample in shards:
                for image, _ in decode_samples([sample], self.size, self.skipped):
                    count += 1
                    yield torch.from_numpy(image.copy())
            if not count:
                raise ValueError(
                    f"{self.name}: a process found no image in its share of {len(self.shards)} shards"
                )

    def head(self, n: int) -> Tensor:
        """The first n images in stored order, (n, 3, H, W) uint8."""
        found = [
            image
            for image, _ in islice(decode_samples(read_all(self.shards), self.size, Skipped()), n)
        ]
        if not found:
            raise ValueError(f"{self.name} holds no readable image")
        return torch.from_numpy(np.stack(found))

    def batches(
        self, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Tensor]:
        if len(self.shards) < world:
            raise ValueError(
                f"{len(self.shards)} shards for {world} processes: give each process at least one"
            )
        self.seed = seed + 1_000_003 * start
        workers = min(self.workers, len(self.shards) // world)
        yield from torch.utils.data.DataLoader(
            self,
            batch_size=batch_size // world,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )


def shuffled(n: int, batch_size: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Endless positions (batch_size,) of a set of n: epoch after epoch, each in an order of its own.

    The batch of step s depends on (seed, s) alone, so a run that resumes at `start` sees what it would have seen.
    """
    orders = {}
    position = start * batch_size
    while True:
        first, last = (
            position // n,
            (position + batch_size - 1) // n,
        )  # the epochs that this batch touches
        orders = {e: orders.get(e) for e in range(first, last + 1)}
        for e in (e for e, order in orders.items() if order is None):
            orders[e] = torch.randperm(
                n, generator=torch.Generator().manual_seed(seed * 1_000_003 + e)
            )
        at = position - first * n
        yield torch.cat(list(orders.values()))[at : at + batch_size]
        position += batch_size


Dataset = Images | Folder | Stream


def load_dataset(
    name_or_path: str | Path, split: str = "train", image_size: int | None = None, workers: int = 4
) -> Dataset:
    """Images by name or path.

    "shapes": procedural captioned scenes at image_size 16 (default), 32 or 64; 20,000 train, 2,000 test.
    "cifar10-sample": 4,000 train and 1,000 test images that come with the package.
    "cifar10": all of CIFAR-10 (torchvision downloads it to ~/.cache/minflextok).
    A folder in ImageFolder layout (DIR/class/*.jpg, or DIR/train/class/*.jpg with DIR/test or DIR/val), or a flat
    folder of images. WebDataset shards (.tar, .tar.gz; "train-{000..127}.tar"): images with an optional .cls; the
    text {split} in a path is replaced by `split`, and a path without it is read as it is.

    image_size resizes the short side and crops the centre; without it all images must have one size.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: give 'train' or 'test'")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size}: give a positive number of pixels")
    name = str(name_or_path)
    if name == "shapes":
        num, seed = (20_000, 0) if split == "train" else (2_000, 1)
        images, captions, scenes = make_shapes(num, image_size or 16, seed)
        labels = torch.tensor([len(s) for s in scenes]) - 1
        return Images(
            name,
            torch.from_numpy(images),
            labels,
            ["1 thing", *(f"{n} things" for n in (2, 3, 4))],
            captions,
        )
    if name == "cifar10-sample":
        sample = _load_shards(str(DATA_DIR / f"cifar10-sample-{split}.tar.gz"), image_size, workers)
        return Images(name, sample.images, sample.labels, CIFAR10_CLASSES)
    if name == "cifar10":
        return _load_cifar10(split, image_size)
    path = name.replace("{split}", split)
    if path.endswith((".tar", ".tar.gz", ".tgz")):
        return _load_shards(path, image_size, workers)
    if Path(path).is_dir():
        return _load_folder(Path(path), split, image_size, workers)
    raise FileNotFoundError(
        f"no data set {name!r}: give shapes, cifar10-sample, cifar10, an existing folder of images, "
        "or .tar/.tar.gz shards"
    )


def _load_cifar10(split: str, image_size: int | None) -> Images:
    root = Path.home() / ".cache" / "minflextok"
    try:  # one process downloads, others wait; torchvision checks the archive's MD5 before it reads its pickles
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "cifar10.lock"):
            raw = CIFAR10(root, train=split == "train", download=True)
    except (OSError, RuntimeError) as e:
        raise OSError(
            f"cannot download CIFAR-10 to {root} ({e}). Offline, use --data cifar10-sample (embedded), "
            "shapes (procedural), or a folder or shards of your own"
        ) from None
    images = torch.from_numpy(raw.data).permute(0, 3, 1, 2).contiguous()
    if image_size not in (None, 32):
        images = torch.nn.functional.interpolate(
            images, size=(image_size, image_size), mode="bicubic", antialias=True
        )
    return Images("cifar10", images, torch.tensor(raw.targets), CIFAR10_CLASSES)


def _load_folder(root: Path, split: str, size: int | None, workers: int) -> Images | Folder:
    names = ("train",) if split == "train" else ("test", "val", "validation")
    inside = next((root / n for n in names if (root / n).is_dir()), None)
    if inside is None and split == "test":
        raise FileNotFoundError(
            f"{root} has no folder test or val: make one, or ask for split 'train'"
        )
    folder = inside or root
    flat = sorted(str(f) for f in folder.iterdir() if f.suffix.lower() in IMG_EXTENSIONS)
    classes = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    if not flat and not classes:
        tars = (
            "; name its shards, such as " + str(folder / "*.tar")
            if list(folder.glob("*.tar*"))
            else ""
        )
        raise ValueError(
            f"{folder} holds no images ({', '.join(IMG_EXTENSIONS)}) and no class folders{tars}"
        )
    if flat and classes:
        raise ValueError(
            f"{folder} holds both images ({len(flat)}, such as {Path(flat[0]).name}) and class folders "
            f"({', '.join(classes[:3])}): are those images labelled? Move them into a class folder"
        )
    labels = None
    files = flat
    if classes:
        try:
            samples = make_dataset(
                str(folder), {name: i for i, name in enumerate(classes)}, IMG_EXTENSIONS
            )
        except FileNotFoundError as e:  # names the classes without images
            raise ValueError(f"{folder}: {str(e).splitlines()[0]}") from None
        files, labels = [f for f, _ in samples], torch.tensor([i for _, i in samples])
    if size and len(files) * 3 * size**2 > IN_MEMORY_BYTES:
        return Folder(str(folder), files, labels, classes, size, workers)
    return _in_memory(
        str(folder),
        ((f, f, None if labels is None else int(labels[i])) for i, f in enumerate(files)),
        size,
        classes,
    )


def _load_shards(pattern: str, size: int | None, workers: int) -> Images | Stream:
    if pattern.startswith(("pipe:", "http:", "https:", "s3:", "gs:")):
        shards, total = wds.shardlists.expand_urls(pattern), IN_MEMORY_BYTES  # not for us to weigh
    else:
        shards = wds.shardlists.expand_urls(pattern)
        absent = [s for s in shards if not Path(s).exists()]
        if absent:
            raise FileNotFoundError(
                f"no shard {absent[0]} ({len(absent)} of {len(shards)} are missing)"
            )
        for shard in shards:
            if shard.endswith(".tar") and not _is_whole_tar(shard):
                raise ValueError(
                    f"{shard} does not end as a tar does: it is truncated, or no tar; copy it again"
                )
        total = 10 * sum(Path(s).stat().st_size for s in shards)  # JPEGs grow about tenfold
    if total >= IN_MEMORY_BYTES:
        if not size:
            raise ValueError(
                f"{pattern} is too large for memory: give an image_size, so that it can stream"
            )
        return Stream(pattern, shards, size, workers)
    return _in_memory(pattern, _samples(read_all(shards)), size, [])


def _is_whole_tar(shard: str) -> bool:
    """A tar ends with two blocks of zeros; one cut between two files would else pass for a shorter set."""
    with open(shard, "rb") as f:
        size = f.seek(0, 2)
        f.seek(max(0, size - 1024))
        return size >= 1024 and not any(f.read())


def read_all(shards: list[str]) -> wds.WebDataset:
    """The shards in stored order, all of them in every process."""
    return wds.WebDataset(
        shards, shardshuffle=False, empty_check=False, nodesplitter=lambda every: every
    )


def _samples(shards) -> Iterator[tuple[str, bytes, int | None]]:
    """(name, image bytes, label) of each sample with an image; labels must be whole numbers."""
    samples = iter(shards)
    while True:
        try:
            sample = next(samples)
        except StopIteration:
            return
        except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as e:
            raise ValueError(
                f"cannot read a shard to its end ({e}): is it truncated, or no tar?"
            ) from None
        image = next(
            (v for k, v in sample.items() if "." + k.split(".")[-1].lower() in IMG_EXTENSIONS), None
        )
        if image is None:
            continue
        label = sample.get("cls")
        if label is not None and not label.strip().isdigit():
            raise ValueError(
                f"{sample['__url__']}: {sample['__key__']}.cls holds {label[:20]!r}, not a class number"
            )
        yield sample["__key__"], image, None if label is None else int(label)


def decode_samples(shards, size: int, skipped: Skipped) -> Iterator[tuple[np.ndarray, int | None]]:
    """Image (3, size, size) uint8 and label of each sample that can be read."""
    for key, image, label in _samples(shards):
        try:
            yield open_image(image, size), label
        except UNREADABLE as e:
            skipped(key, e)


def _in_memory(
    name: str,
    samples: Iterator[tuple[str, str | bytes, int | None]],
    size: int | None,
    classes: list[str],
) -> Images:
    skipped, images, labels = Skipped(), [], []
    for key, source, label in samples:
        try:
            image = open_image(source, size)
        except UNREADABLE as e:
            skipped(key, e)
            continue
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{name}: {key} is {image.shape[1]}x{image.shape[2]}, others {images[0].shape[1]}x"
                f"{images[0].shape[2]}: give an image_size, so that all are resized and cropped to it"
            )
        images.append(image)
        labels.append(label)
    if not images:
        raise ValueError(f"{name} holds no readable image ({skipped.count} unreadable)")
    unlabelled = sum(label is None for label in labels)
    if 0 < unlabelled < len(labels):
        raise ValueError(
            f"{name} is labelled in part: {unlabelled} of {len(labels)} images have no class"
        )
    if skipped.count:
        warnings.warn(
            f"{name}: {skipped.count} unreadable images skipped, {len(images)} read", stacklevel=3
        )
    known = None if unlabelled else torch.tensor(labels)
    if known is not None and not classes:
        classes = [str(i) for i in range(int(known.max()) + 1)]
    return Images(name, torch.from_numpy(np.stack(images)), known, classes)


def in_order(
    data: Dataset, batch_size: int, num: int | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The first `num` images (default: all) in stored order: uint8 (b, 3, H, W), and labels (b,) or None."""
    if isinstance(data, Images | Folder):
        rows = torch.arange(min(len(data), len(data) if num is None else num))
        images = (data.at(i) for i in rows.split(batch_size))
        if isinstance(data, Folder):
            some = torch.utils.data.Subset(data, rows.tolist())
            images = torch.utils.data.DataLoader(
                some, batch_size=batch_size, num_workers=data.workers
            )
        for i, x in zip(rows.split(batch_size), images, strict=True):
            yield x, None if data.labels is None else data.labels[i]
        return
    samples = islice(decode_samples(read_all(data.shards), data.size, Skipped()), num)
    while batch := list(islice(samples, batch_size)):
        labels = [label for _, label in batch]
        known = None if None in labels else torch.tensor(labels)
        yield torch.from_numpy(np.stack([image for image, _ in batch])), known


def held_out(num: int, c: TrainConfig, name: str) -> tuple[Tensor, Tensor]:
    """Positions of a training set of `num` images, at random: those to learn from, and those that the log measures on."""
    order = torch.randperm(num, generator=torch.Generator().manual_seed(c.seed))
    n = min(c.val_images, num // 10)
    if n == 0:
        raise ValueError(f"{name} has {num} images: training wants at least 10")
    return order[n:], order[:n]
