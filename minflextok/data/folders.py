"""Folders of images: which files are images, which folders are splits, which are classes."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .images import IMG_EXTENSIONS, OTHER_EXTENSIONS

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation"),
}
# Names that look like a split: train2017, test_images, TestSet, dev, images-train.
_WORD = r"(train|test|valid|val|dev|eval|hold_?out)(ing|ation|uation)?(s|set|data|images|imgs)?"
LOOKS_LIKE_SPLIT = re.compile(rf"(.*[^a-z])?{_WORD}([^a-z].*)?")
# Folders that programs leave behind, beside the hidden ones.
LITTER = {"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"}
LITTER |= {"thumbs.db", "desktop.ini", "icon\r"}


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is left behind by a program: .ipynb_checkpoints,
    __MACOSX, ._x.png."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in LITTER


def refuse(error: OSError) -> None:
    """A folder that cannot be listed is an error: its images would be left out."""
    raise OSError(f"cannot list {error.filename!r} ({error.strerror}): allow it, or move it away")


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder but litter, sorted by folder. Links are followed, and no folder is
    read twice."""
    real = Path(os.path.realpath(root))
    seen = {real, *real.parents}  # a link to a parent folder would lead back here
    for folder, below, files in os.walk(root, followlinks=True, onerror=refuse):
        new = []
        for name in sorted(n for n in below if not is_litter(n)):
            target = Path(os.path.realpath(os.path.join(folder, name)))
            if target not in seen:
                seen.add(target)
                new.append(name)
        below[:] = new
        yield from (Path(folder) / name for name in sorted(files) if not is_litter(name))


def sort_out(root: Path) -> tuple[list[str], list[str]]:
    """Paths of the images below a folder, and of the files that are not read; sorted."""
    found: tuple[list[str], list[str]] = [], []
    for file in walk(root):
        found[file.suffix.lower() not in IMG_EXTENSIONS].append(str(file))
    images, others = (sorted(part, key=os.path.split) for part in found)
    return images, others


def warn_of_others(root: Path, others: list[str]) -> None:
    """Count and name files that are not read."""
    if not others:
        return
    suffixes = Counter(os.path.splitext(f)[1].lower() or "no suffix" for f in others)
    kinds = ", ".join(f"{n} {suffix}" for suffix, n in suffixes.most_common(5))
    pictures = [f for f in others if f.lower().endswith(OTHER_EXTENSIONS)]
    advice = ": convert pictures to PNG or JPEG" if pictures else ""
    warnings.warn(
        f"{len(others)} files in {root} are not read ({kinds}), such as "
        f"{(pictures or others)[0]!r}{advice}",
        stacklevel=3,
    )


def find_images(root: Path) -> list[str]:
    """Paths of the images below a folder, sorted. Files that are not read get a warning that counts
    and names them."""
    images, others = sort_out(root)
    warn_of_others(root, others)
    return images


def holds_images(folder: Path) -> bool:
    return any(f.suffix.lower() in IMG_EXTENSIONS for f in walk(folder))


def split_of(name: str) -> str | None:
    """ "train", "test" or "validation" for a folder of that name, in any case."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def subfolders(root: Path) -> list[Path]:
    """Folders directly in this one but litter, and but links to folders in it or around it; sorted
    by name."""
    real, found = Path(os.path.realpath(root)), []
    for folder in (d for d in root.iterdir() if d.is_dir() and not is_litter(d.name)):
        target = Path(os.path.realpath(folder))
        loops = target == real or target in real.parents or real in target.parents
        if not (folder.is_symlink() and loops):
            found.append(folder)
    return sorted(found, key=lambda d: d.name)


def split_folders(root: Path) -> dict[str, Path]:
    """The split folders of a data set; empty if it has none. ValueError where it is not clear which
    these are."""
    splits: dict[str, Path] = {}
    below = subfolders(root)
    for folder in below:
        if split := split_of(folder.name):
            if split in splits:
                raise ValueError(
                    f"{root} has two folders for one split, {splits[split].name} and "
                    f"{folder.name}: merge them, or rename one"
                )
            splits[split] = folder
    alike = [d for d in below if LOOKS_LIKE_SPLIT.fullmatch(d.name.lower())]
    if not alike:
        return {}
    others = [d for d in below if d not in splits.values() and holds_images(d)]
    looks = [d for d in others if d in alike]
    if looks and (splits or looks == others):
        raise ValueError(
            f"{root}: {looks[0].name} looks like a split, but is none of "
            f"{', '.join(n for names in SPLITS.values() for n in names)}: rename it"
        )
    names = ", ".join(d.name for d in others[:5])
    if others and len(splits) == 1:
        (folder,) = splits.values()
        raise ValueError(
            f"{root} holds {folder.name}, which is the name of a split, beside {names}: rename "
            f"{folder.name} if it is a class, or move the other folders away"
        )
    loose = [f.name for f in sorted(root.iterdir()) if f.suffix.lower() in IMG_EXTENSIONS]
    loose = [name for name in loose if not is_litter(name)]
    if splits and (others or loose):
        images = f"{len(loose)} images, such as {loose[0]}" if loose else ""
        left_out = ", ".join(filter(None, (names, images)))
        warnings.warn(f"{root}: not read, beside the splits: {left_out}", stacklevel=4)
    return splits


def find_split(root: Path, split: str) -> tuple[Path, Path]:
    """The folder of a split, and that of the training split. A validation folder stands for a
    missing test split."""
    splits = split_folders(root)
    if not splits:
        if split == "test":
            raise FileNotFoundError(
                f"{root} has no folder test or val: make one, or ask for split 'train'"
            )
        return root, root
    found = splits.get(split) or (splits.get("validation") if split == "test" else None)
    if found is None:
        raise FileNotFoundError(
            f"{root} has no folder {split}: it has {', '.join(d.name for d in splits.values())}"
        )
    return found, splits.get("train", found)


def check_no_splits(folder: Path, files: list[str]) -> None:
    """ValueError where images of a class lie in split folders: CLASS/test/*, or a data set inside
    of a folder."""
    for inner in sorted({os.path.dirname(f) for f in files}):
        split = next((p for p in Path(inner).relative_to(folder).parts if split_of(p)), None)
        if split:
            raise ValueError(
                f"{inner} holds images, and {split} looks like a split inside of the class folder "
                f"{folder}: give the folder that holds the splits, or move them to the top "
                "(train/CLASS/*)"
            )


def check_no_linked_class(root: Path) -> None:
    """ValueError where a class folder is a link to another one beside it."""
    for folder in root.iterdir():
        target = Path(os.path.realpath(folder))
        if (
            folder.is_symlink()
            and folder.is_dir()
            and target.parent == Path(os.path.realpath(root))
        ):
            raise ValueError(
                f"{folder} is a link to class {target.name}: its images would have two classes; "
                "remove the link"
            )


def scan(
    root: Path, names: list[str] | None = None
) -> tuple[list[str], list[int] | None, list[str]]:
    """The image files of one split, sorted; the class of each or None; and the class names.

    names: the classes of the training split, which number those of another split.
    """
    flat = sorted(
        str(f)
        for f in root.iterdir()
        if f.suffix.lower() in IMG_EXTENSIONS and not is_litter(f.name) and f.is_file()
    )
    folders = subfolders(root)
    if not flat and not folders:
        tars = f"; name its shards, such as {root / '*.tar'}" if list(root.glob("*.tar*")) else ""
        raise ValueError(
            f"{root} holds no images ({', '.join(IMG_EXTENSIONS)}) and no class folders{tars}"
        )
    if not folders:
        return find_images(root), None, []
    own = [d.name for d in folders]
    if flat:
        raise ValueError(
            f"{root} holds both images ({len(flat)}, such as {Path(flat[0]).name}) and class "
            f"folders ({', '.join(own[:3])}): move those images into a class folder"
        )
    unknown = sorted(set(own) - set(names or own))
    if unknown:
        raise ValueError(
            f"{root} has class {unknown[0]}, which the training split does not have "
            f"(its classes: {', '.join(names[:10])})"
        )
    classes = names or own
    check_no_linked_class(root)
    files, labels = [], []
    class_of: dict[str, str] = {}  # the class of each folder, wherever links lead to it from
    others = sorted(str(f) for f in root.iterdir() if f.is_file() and not is_litter(f.name))
    for folder in folders:
        found, left_out = sort_out(folder)
        others += left_out
        if not found:
            raise ValueError(
                f"class folder {folder} holds no images ({', '.join(IMG_EXTENSIONS)}): "
                "delete it, or add some"
            )
        check_no_splits(folder, found)
        for inner in {os.path.dirname(f) for f in found}:
            owner = class_of.setdefault(os.path.realpath(inner), folder.name)
            if owner != folder.name:
                raise ValueError(
                    f"{inner} leads to images of class {owner}, through a link: its images would "
                    f"have two classes; remove the link"
                )
        files += found
        labels += [classes.index(folder.name)] * len(found)
    warn_of_others(root, others)
    return files, labels, classes
