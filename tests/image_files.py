"""Image files and shards for tests."""

import io
import tarfile

from PIL import Image


def picture(path, size=(12, 10), color=(200, 30, 30)):
    """An image file of one color; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of the image's file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(value=0, size=(8, 8)) -> bytes:
    """The bytes of a PNG file of one color."""
    return encoded(Image.new("RGB", size, (value, 0, 0)))


def shard(path, members: dict[str, bytes] | list[tuple[str, bytes]]):
    """A tar of these files, in this order; returns its path."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as t:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return path
