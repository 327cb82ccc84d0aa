"""Image data sets by name or path: `load_dataset`."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torchvision.datasets import CIFAR10

from .. import checks
from ..config import DATA_DIR
from . import folders, shards
from .datasets import Dataset, Folder, Images, Stream
from .images import UNREADABLE, Skipped, open_image
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
]  # in the order of their numbers
IN_MEMORY_BYTES = 2 * 10**9  # decoded; larger sets stay on disk
ENCODINGS = dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), "JPEG")  # else the suffix in capitals
TARS = (".tar", ".tar.gz", ".tgz")


def load_dataset(
    name_or_path: str | Path, split: str = "train", image_size: int | None = None, workers: int = 4
) -> Dataset:
    """Images by name or path.

    "shapes": procedural captioned scenes at image_size 16 (default), 32 or 64: 20,000 and 2,000.
    "cifar10-sample": 4,000 train and 1,000 test images that come with the package.
    "cifar10": all of CIFAR-10 (torchvision downloads it to ~/.cache/minflextok).
    A folder: DIR/CLASS/*.jpg, or DIR/train/CLASS/*.jpg with DIR/test or DIR/val, or images without
    class folders.
    WebDataset shards (.tar, .tar.gz; "train-{000..127}.tar"): images, each with an optional class
    number in a .cls file.

    The text {split} in a path is replaced by `split`; shards without it are read as they are.
    image_size resizes the short side and crops the center; without it all must have one size.
    """
    name = str(checks.check_path(name_or_path, "name_or_path"))
    checks.check_choice(split, "split", ("train", "test"))
    if image_size is not None:
        image_size = checks.check_count(image_size, "image_size", 1, 2**14)
    workers = checks.check_count(workers, "workers", 0, 1024)
    if name == "shapes":
        return load_shapes(split, image_size or 16)
    if name == "cifar10-sample":
        path = str(DATA_DIR / f"cifar10-sample-{split}.tar.gz")
        return load_shards(path, split, image_size, workers, name, CIFAR10_CLASSES)
    if name == "cifar10":
        return load_cifar10(split, image_size)
    path = name.replace("{split}", split)
    if path.endswith(TARS):
        return load_shards(path, split, image_size, workers)
    if Path(path).is_dir():
        return load_folder(name, split, image_size, workers)
    raise FileNotFoundError(
        f"no data set {name!r}: give shapes, cifar10-sample, cifar10, an existing folder of "
        "images, or .tar/.tar.gz shards"
    )


def load_shapes(split: str, size: int) -> Images:
    num, seed = (20_000, 0) if split == "train" else (2_000, 1)
    images, captions, scenes = make_shapes(num, size, seed)
    return Images(
        "shapes",
        torch.from_numpy(images),
        labels=torch.tensor([len(s) for s in scenes]) - 1,
        classes=["1 thing", "2 things", "3 things", "4 things"],
        captions=captions,
        split=split,
        encoding="drawn here",
    )


def load_cifar10(split: str, size: int | None) -> Images:
    root = Path.home() / ".cache" / "minflextok"
    try:  # one process downloads, others wait; torchvision checks the MD5 before it unpickles
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "cifar10.lock"):
            raw = CIFAR10(root, train=split == "train", download=True)
    except (OSError, RuntimeError) as e:
        raise OSError(
            f"cannot download CIFAR-10 to {root} ({e}). Offline, use cifar10-sample (embedded), "
            "shapes (procedural), or a folder or shards of your own"
        ) from None
    images = torch.from_numpy(raw.data).permute(0, 3, 1, 2).contiguous()
    if size not in (None, 32):
        images = torch.nn.functional.interpolate(
            images, size=(size, size), mode="bicubic", antialias=True
        )
    labels = torch.tensor(raw.targets)
    return Images(
        "cifar10", images, labels, CIFAR10_CLASSES, split=split, encoding="original pixels"
    )


def encoding_of(suffix: str) -> str:
    """The format of images by the suffix of the first: "JPEG", "PNG", ..."""
    suffix = suffix.lower().lstrip(".")
    return ENCODINGS.get(suffix, suffix.upper())


def load_folder(name: str, split: str, size: int | None, workers: int) -> Images | Folder:
    """A folder of splits, or one with {split} in its name. Classes are numbered as in training."""
    if "{split}" in name:
        root, train = Path(name.replace("{split}", split)), Path(name.replace("{split}", "train"))
    else:
        root, train = folders.find_split(Path(name), split)
    trained = [d.name for d in folders.subfolders(train)] if train.is_dir() else []
    files, numbers, classes = folders.scan(root, trained)
    labels = None if numbers is None else torch.tensor(numbers)
    encoding = encoding_of(Path(files[0]).suffix)
    if size and len(files) * 3 * size**2 > IN_MEMORY_BYTES:
        return Folder(str(root), files, labels, classes, size, workers, split, encoding)
    classed: list[int | None] = [*numbers] if numbers else [None] * len(files)
    data = in_memory(str(root), zip(files, files, classed, strict=True), size)
    data.classes, data.split, data.encoding = classes, split, encoding
    return data


def load_shards(
    pattern: str,
    split: str,
    size: int | None,
    workers: int,
    name: str | None = None,
    classes: list[str] | None = None,
) -> Dataset:
    """WebDataset shards: in memory if they fit; else read by position, if they are plain tars on
    disk; else a stream. name, classes: of a known data set."""
    files, num_bytes = shards.expand(pattern)
    first = next(shards.samples(shards.read_all(files)), None)
    encoding = encoding_of(first.suffix) if first else "unknown encoding"
    if num_bytes is None or 10 * num_bytes >= IN_MEMORY_BYTES:  # JPEGs grow about tenfold
        if not size:
            raise ValueError(
                f"{pattern} is too large for memory: give an image_size, so that it can stream"
            )
        if num_bytes is None or not all(f.endswith(".tar") for f in files):
            return Stream(pattern, files, size, workers, split, encoding)
        members = shards.by_position(files)
        if not members:
            raise ValueError(f"{pattern} holds no image")
        labels = checked_labels(pattern, members.labels)
        return Folder(pattern, members, labels, [], size, workers, split, encoding)
    found = ((s.key, s.image, s.label) for s in shards.samples(shards.read_all(files)))
    data = in_memory(name or pattern, found, size)
    data.classes = classes or []  # shards have numbers, and no names
    data.split, data.encoding = split, encoding
    return data


def in_memory(
    name: str, samples: Iterable[tuple[str, str | bytes, int | None]], size: int | None
) -> Images:
    """All samples (name, file or bytes, class) that can be read; all must have a class, or none."""
    skipped, images, labels = Skipped(), [], []
    for key, source, label in samples:
        try:
            image = open_image(source, size)
        except UNREADABLE as e:
            skipped(key, e)
            continue
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{name}: {key} is {image.shape[1]}x{image.shape[2]}, others "
                f"{images[0].shape[1]}x{images[0].shape[2]}: give an image_size, so that all are "
                "resized and cropped to it"
            )
        images.append(image)
        labels.append(label)
    if not images:
        raise ValueError(f"{name} holds no readable image ({skipped.count} unreadable)")
    numbers = checked_labels(name, labels)
    if skipped.count:
        warnings.warn(
            f"{name}: {skipped.count} unreadable images skipped, {len(images)} read", stacklevel=4
        )
    return Images(name, torch.from_numpy(np.stack(images)), numbers)


def checked_labels(name: str, labels: list[int | None]) -> torch.Tensor | None:
    """The labels (N,), or None if there are none. ValueError if only some images have one."""
    unlabelled = sum(label is None for label in labels)
    if 0 < unlabelled < len(labels):
        raise ValueError(
            f"{name} is labelled in part: {unlabelled} of {len(labels)} images have no class"
        )
    return None if unlabelled else torch.tensor(labels)
