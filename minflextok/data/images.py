"""Opening one image file: the one place for color modes, bit depths, transparency, orientation and
crops."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .. import checks

# Formats of pictures. Those that this Pillow reads are read: AVIF from Pillow 11.3 on, HEIC with
# the plugin of pillow-heif. The others are counted and named, or refused.
_PICTURES = (
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .avif .tif .tiff .bmp .dib .ppm .pgm .pbm "
    ".pnm .pfm .jp2 .j2k .jpc .jpf .jpx .j2c .tga .ico .pcx .psd .sgi .qoi .dds .heic .heif .jxl "
    ".svg .eps .raw .dng .cr2 .nef .arw .exr .hdr"
)
Image.preinit()  # first, so that Pillow tries common formats before the others that are known next
_READ = {e for e, kind in Image.registered_extensions().items() if kind in {*Image.OPEN, "MPO"}}
_READ -= {".eps", ".hdr"}  # Pillow calls Ghostscript, or reads the header alone
IMG_EXTENSIONS = tuple(e for e in _PICTURES.split() if e in _READ)
OTHER_EXTENSIONS = tuple(e for e in _PICTURES.split() if e not in _READ)
UNREADABLE = (OSError, ValueError)  # what `open_image` raises on a broken file

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    checks.check_tensor(images, "images", [torch.uint8], "a uint8 tensor of values 0..255")
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1] -> uint8 0..255, rounded."""
    checks.check_values(checks.check_tensor(images, "images"), "images")
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class RandomCrop(NamedTuple):
    """A crop of random area, aspect ratio and place, resized to a square (Szegedy et al., arXiv
    1409.4842): the smallest share of the image's area, and four uniform draws."""

    scale: float
    area: float
    ratio: float
    x: float
    y: float

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in an image of this size, in pixels. The aspect ratio is between
        3:4 and 4:3, or what fits."""
        area = (self.scale + (1 - self.scale) * self.area) * width * height
        ratio = (4 / 3) ** (2 * self.ratio - 1)
        w, h = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
        left, top = self.x * (width - w), self.y * (height - h)
        return left, top, left + w, top + h


def open_image(
    source: str | Path | bytes, size: int | None, crop: RandomCrop | None = None
) -> np.ndarray:
    """Read an image file or its bytes as RGB (3, H, W) uint8; with `size`, resize the short side
    and crop the center, or crop at random and resize.

    Photos are turned upright, transparency is composited on white, an animation gives its first
    frame. Raises OSError or ValueError for a file that is broken or whose values have no known
    range.
    """
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        image = decode(data)
        image = on_white(eight_bits(upright(image)))
        if size and crop:
            image = image.resize((size, size), Image.Resampling.BICUBIC, crop.box(*image.size))
        elif size:
            image = resize_and_crop(image, size)
        return np.asarray(image).transpose(2, 0, 1)
    except UnidentifiedImageError:
        raise ValueError("it is no image, or of a format that Pillow does not read") from None
    except (*UNREADABLE, MemoryError):
        raise
    except Exception as e:  # Pillow raises many kinds on broken files
        raise ValueError(f"{type(e).__name__}: {e}") from None


def decode(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:  # a malformed EXIF block can make Pillow refuse a JPEG
        image = Image.open(io.BytesIO(without_exif(data)))
    image.load()
    return image


def without_exif(data: bytes) -> bytes:
    """The bytes of a JPEG file without its APP1 segments, which hold EXIF; of other files, all."""
    if not data.startswith(b"\xff\xd8"):
        return data
    kept, at = data[:2], 2
    while data[at : at + 1] == b"\xff" and 0xE0 <= data[at + 1] <= 0xEF:  # APP0 to APP15
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        kept += b"" if data[at + 1] == 0xE1 else data[at:end]
        at = end
    return kept + data[at:]


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says. Only this tag is read; a broken one counts as none."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever a malformed EXIF block makes Pillow raise
        turn = None
    return image if turn is None else image.transpose(turn)


def eight_bits(image: Image.Image) -> Image.Image:
    """Gray images of more than 8 bits, scaled to 8; ValueError where the range of the values is not
    known."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())  # NaN if any value is
    kind = f"{image.mode} pixels from {low:g} to {high:g}"
    if image.mode == "F":
        if not 0 <= low <= high <= 255:
            raise ValueError(f"{kind}: the range is unknown; scale them to 0..1 or 0..255")
        white = 1.0 if high <= 1 else 255.0
    else:
        found = white_of(image, low, high)
        if found is None:
            raise ValueError(f"{kind}: the bit depth is unknown; scale them to 8 or 16 bits")
        white = found
    scaled = values.astype(np.float64) * (255 / white)
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def white_of(image: Image.Image, low: float, high: float) -> float | None:
    """The value of white in an image of whole numbers of more than 8 bits; None if it cannot be
    known."""
    tags = getattr(image, "tag_v2", {})  # of TIFF files
    bits = max(tags.get(258, (0,)))
    if 8 < bits < 16 or 281 in tags:  # BitsPerSample, MaxSampleValue
        return float(max(tags[281])) if 281 in tags else 2.0**bits - 1
    if low < 0 or high > 65535:
        return None
    if image.mode == "I" and image.format == "TIFF" and high <= 255:
        return 255.0
    if 0 < high < 4096:  # 10 or 12 bits stored in 16, or a very dark image
        return None
    return 65535.0


def on_white(image: Image.Image) -> Image.Image:
    """RGB, where transparent pixels show a white ground: their hidden colors are not part of the
    image."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The short side resized to `size`, bicubic, and the center (size, size) of the result.

    Of a very long image only the part that is kept is resized: all of it could take gigabytes.
    """
    if image.size == (size, size):
        return image
    scale = size / min(image.size)
    w, h = (max(size, round(n * scale)) for n in image.size)  # the size of the whole, resized
    left, top = (w - size) // 2, (h - size) // 2
    if max(w, h) <= 16 * size:
        whole = image.resize((w, h), Image.Resampling.BICUBIC)
        return whole.crop((left, top, left + size, top + size))
    x, y = image.width / w, image.height / h
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return image.resize((size, size), Image.Resampling.BICUBIC, box)


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
