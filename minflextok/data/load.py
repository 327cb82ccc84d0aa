"""Image data sets by name or path: `load_dataset`."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from .. import checks
from ..config import DATA_DIR
from . import folders, shards
from .datasets import Dataset, Folder, Images, Latents, Stream
from .images import UNREADABLE, Skipped, open_image
from .node import once_per_node
from .records import read_record, shard_name
from .remote import REMOTE, TARS, unsigned
from .shapes import make_shapes
from .waiting import limited

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
SHAPES = {"shapes": 20_000, "shapes-100k": 100_000}  # training scenes
IN_MEMORY_BYTES = 2 * 10**9  # decoded; larger sets stay on disk
ENCODINGS = dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), "JPEG")  # else the suffix in capitals


def load_dataset(
    name_or_path: str | Path,
    split: str = "train",
    image_size: int | None = None,
    workers: int = 4,
    latents: bool = False,
    reader_minutes: float = 10.0,
) -> Dataset:
    """Images by name or path.

    "shapes": procedural captioned scenes at image_size 16 (default), 32 or 64: 20,000 and 2,000.
    "shapes-100k": 100,000 training scenes, and the same 2,000 of the test split.
    "cifar10-sample": 4,000 train and 1,000 test images that come with the package.
    "cifar10": all of CIFAR-10 (torchvision downloads it to ~/.cache/minflextok).
    A folder: DIR/CLASS/*.jpg, or DIR/train/CLASS/*.jpg with DIR/test or DIR/val, or images without
    class folders.
    WebDataset shards (.tar, .tar.gz; "train-{000..127}.tar"): images, each with an optional class
    number in a .cls file. Or the directory that `minflextok data shard` wrote them to. Remote ones
    by http:, https:, gs: (with gsutil), or pipe: and a command that writes a shard to its output.
    A directory that `minflextok data cache-latents` wrote, if `latents` of a VAE are asked for.

    The text {split} in a path is replaced by `split`; shards without it are read as they are.
    image_size resizes the short side and crops the center; without it all must have one size.
    reader_minutes: how long the first image of shards is waited for (0: no limit).
    """
    name = str(checks.check_path(name_or_path, "name_or_path"))
    checks.check_choice(split, "split", ("train", "test"))
    if image_size is not None:
        image_size = checks.check_count(image_size, "image_size", 1, 2**14)
    workers = checks.check_count(workers, "workers", 0, 1024)
    checks.check_bools(latents=latents)
    if name in SHAPES:
        return load_shapes(name, split, image_size or 16)
    if name == "cifar10-sample":
        path = str(DATA_DIR / f"cifar10-sample-{split}.tar.gz")
        return load_shards(name, [path], split, image_size, workers, CIFAR10_CLASSES)
    if name == "cifar10":
        return load_cifar10(split, image_size)
    path = name.replace("{split}", split)
    # A URL may have a signature after .tar, and a command may end in anything.
    if path.endswith(TARS) or path.startswith((*REMOTE, "s3:")):
        files = shards.expand(path)
        return load_shards(
            unsigned(path), files, split, image_size, workers, reader_minutes=reader_minutes
        )
    if Path(path).is_dir():
        record = read_record(Path(path), split)
        if record and "latents" in record:
            if not latents:
                raise ValueError(
                    f"{path} holds latents of a VAE, and this needs images: give the data that "
                    "they were computed from"
                )
            return load_latents(Path(path), split, record, workers)
        if record:
            files = written(Path(path), split, record)
            return load_shards(path, files, split, image_size, workers, record["classes"])
        return load_folder(name, split, image_size, workers)
    raise FileNotFoundError(
        f"no data set {name!r}: give shapes, cifar10-sample, cifar10, an existing folder of "
        "images, or .tar/.tar.gz shards (remote: https:, gs: or pipe:)"
    )


def load_shapes(name: str, split: str, size: int) -> Images:
    num, seed = (SHAPES[name], 0) if split == "train" else (2_000, 1)
    images, captions, scenes = make_shapes(num, size, seed)
    return Images(
        name,
        torch.from_numpy(images),
        labels=torch.tensor([len(s) for s in scenes]) - 1,
        classes=["1 thing", "2 things", "3 things", "4 things"],
        captions=captions,
        split=split,
        encoding="drawn here",
    )


def load_cifar10(split: str, size: int | None) -> Images:
    found = once_per_node(("cifar10", split, size), lambda: decoded_cifar10(split, size))
    classes, encoding = CIFAR10_CLASSES, "original pixels"
    return Images("cifar10", **found, classes=classes, split=split, encoding=encoding)


def decoded_cifar10(split: str, size: int | None) -> dict[str, torch.Tensor]:
    from torchvision.datasets import CIFAR10  # three seconds, which all other commands save

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
    return {"images": images, "labels": torch.tensor(raw.targets)}


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
    name: str,
    files: list[str],
    split: str,
    size: int | None,
    workers: int,
    classes: list[str] | None = None,
    reader_minutes: float = 10.0,
) -> Dataset:
    """WebDataset shards: in memory if they fit; else read by position, if they are plain tars on
    disk; else a stream."""
    # A wrong URL must be an error at once when a run starts: without retries.
    found = shards.samples(shards.read_all(files, retries=0))
    first = limited(lambda: next(found, None), name, reader_minutes)
    encoding = encoding_of(first.suffix) if first else "unknown encoding"
    remote = files[0].startswith(REMOTE)
    # JPEGs grow about tenfold in memory.
    if remote or 10 * sum(map(os.path.getsize, files)) >= IN_MEMORY_BYTES:
        if not size:
            raise ValueError(
                f"{name} is too large for memory: give an image_size, so that it can stay on disk"
            )
        if remote or not all(f.endswith(".tar") for f in files):
            return Stream(name, files, size, workers, split, encoding)
        members = shards.by_position(files)
        if not members:
            raise ValueError(f"{name} holds no image")
        labels = checked_labels(name, members.labels)
        check_classes(name, labels, classes)
        return Folder(name, members, labels, classes or [], size, workers, split, encoding)
    all_of_them = ((s.key, s.image, s.label) for s in shards.samples(shards.read_all(files)))
    data = in_memory(name, all_of_them, size)
    check_classes(name, data.labels, classes)
    data.classes = classes or []  # shards that others wrote have numbers, and no names
    data.split, data.encoding = split, encoding
    return data


def check_classes(name: str, labels: torch.Tensor | None, classes: list[str] | None) -> None:
    """ValueError if a label is not the number of one of these classes."""
    if labels is not None and classes and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(
            f"{name} has labels from {labels.min()} to {labels.max()}, and {len(classes)} classes"
        )


def written(directory: Path, split: str, record: dict) -> list[str]:
    """The shards of a split that `minflextok data` wrote, all of them."""
    files = [str(directory / shard_name(split, i)) for i in range(record["shards"])]
    shards.check_whole(files)
    return files


def load_latents(directory: Path, split: str, record: dict, workers: int) -> Latents:
    name, about = str(directory), record["latents"]
    members = shards.by_position(written(directory, split, record))
    if record["images"] not in (None, len(members)):  # None: of a stream
        raise ValueError(f"{name} has {len(members)} latents of {record['images']} images")
    labels = checked_labels(name, members.labels)
    check_classes(name, labels, record["classes"])
    return Latents(
        name,
        members,
        labels,
        record["classes"],
        size=0,
        workers=workers,
        split=split,
        encoding="latents",
        shape=tuple(about["shape"]),
        vae=about["vae"],
        scaling_factor=about["scaling_factor"],
    )


def in_memory(
    name: str, samples: Iterable[tuple[str, str | bytes, int | None]], size: int | None
) -> Images:
    """All samples (name, file or bytes, class) that can be read; all must have a class, or none."""
    return Images(name, **once_per_node((name, size), lambda: decoded(name, samples, size)))


def decoded(
    name: str, samples: Iterable[tuple[str, str | bytes, int | None]], size: int | None
) -> dict[str, torch.Tensor]:
    """The tensors of `in_memory`: images, and labels if there are any."""
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
            f"{name}: {skipped.count} unreadable images skipped, {len(images)} read", stacklevel=7
        )
    found = {"images": torch.from_numpy(np.stack(images))}
    return found if numbers is None else found | {"labels": numbers}


def checked_labels(name: str, labels: list[int | None]) -> torch.Tensor | None:
    """The labels (N,), or None if there are none. ValueError if only some images have one."""
    unlabelled = sum(label is None for label in labels)
    if 0 < unlabelled < len(labels):
        raise ValueError(
            f"{name} is labelled in part: {unlabelled} of {len(labels)} images have no class"
        )
    return None if unlabelled else torch.tensor(labels)
