"""JPEG, WebP and AVIF as baselines: bytes against quality, without any training.

A file of one small image is mostly header. So each codec works on several terms, see `TERMS`.
"""

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data import Dataset, in_order, open_image, to_float, to_uint8
from ..evaluation.classifier import Classifier, match_classes
from ..evaluation.scores import Scores


class Terms(NamedTuple):
    """How a codec gets the images: a file each, or all as tiles of one mosaic, which share its
    header; size: averaged to this side before, enlarged (bicubic) after (0: as they are)."""

    mosaic: bool = False
    size: int = 0


TERMS = {
    "file": Terms(),
    "mosaic": Terms(mosaic=True),
    "mosaic, 16 px": Terms(mosaic=True, size=16),
    "mosaic, 8 px": Terms(mosaic=True, size=8),
}


def encode_image(image: Tensor, codec: str, quality: int) -> bytes:
    """An image (3, H, W) uint8 as a file; codec "JPEG", "WEBP" or "AVIF"."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, codec, quality=quality)
    return file.getvalue()


def tile(images: Tensor, columns: int, fill: int = 0) -> Tensor:
    """(n, 3, S, S) -> one image (3, rows * S, columns * S), row by row; missing ones are black, or
    of another gray value."""
    S, rows = images.shape[-1], -(-len(images) // columns)
    images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, rows * columns - len(images)), value=fill)
    grid = images.view(rows, columns, 3, S, S)
    return grid.permute(2, 0, 3, 1, 4).reshape(3, rows * S, columns * S)


def untile(mosaic: Tensor, n: int, S: int) -> Tensor:
    """The first n images of a mosaic: the inverse of `tile`."""
    rows, columns = mosaic.shape[1] // S, mosaic.shape[2] // S
    grid = mosaic.view(3, rows, S, columns, S).permute(1, 3, 0, 2, 4)  # (rows, columns, 3, S, S)
    return grid.reshape(-1, 3, S, S)[:n]


def recompress(
    images: Tensor, codec: str, quality: int, terms: Terms = Terms()
) -> tuple[Tensor, int]:
    """Images (n, 3, S, S) uint8 as they are after the codec, and the bytes of all its files."""
    n, S = len(images), images.shape[-1]
    if terms.size:
        images = to_uint8(F.interpolate(to_float(images), size=terms.size, mode="area"))
    whole = [tile(images, max(1, round(n**0.5)))] if terms.mosaic else images
    files = [encode_image(x, codec, quality) for x in whole]
    decoded = [torch.from_numpy(open_image(f, None).copy()) for f in files]
    made = untile(decoded[0], n, images.shape[-1]) if terms.mosaic else torch.stack(decoded)
    if terms.size:
        made = to_uint8(F.interpolate(to_float(made), size=S, mode="bicubic").clamp(-1, 1))
    return made, sum(map(len, files))


@torch.no_grad()
def codecs(
    test: Dataset,
    num_images: int,
    classifier: Classifier,
    qualities: Sequence[int] = (0, 1, 5, 10, 20, 40, 70),
    names: Sequence[str] = ("JPEG", "WEBP"),
    terms: str = "file",
) -> Iterator[dict]:
    """Scores of codecs on the first images of `test`, a row for each codec and quality.

    "bytes": those of all files, an image; "beyond_header": without the header, taken as the size
    of the file of one black image.
    """

    def new_scores() -> Scores:
        return Scores(num_images, classifier.features, classifier)

    c = classifier.config
    number = match_classes(test, c.class_names, c.num_classes, "the classifier")
    batches = [
        (x, None if labels is None else number(labels))
        for x, labels in in_order(test, 250, num_images)
    ]
    originals, images = new_scores(), torch.cat([x for x, _ in batches])
    for stored, labels in batches:
        originals.update(to_float(stored), labels)
    for codec in names:
        for quality in qualities:
            made, size = recompress(images, codec, quality, TERMS[terms])
            scores = new_scores()
            for part, (stored, labels) in zip(made.split(250), batches, strict=True):
                scores.update(to_float(part), labels, to_float(stored))
            header = len(encode_image(torch.zeros_like(images[0]), codec, quality))
            headers = header * (1 if TERMS[terms].mosaic else len(images))
            yield {
                "codec": codec,
                "terms": terms,
                "quality": quality,
                "bytes": size / len(images),
                "beyond_header": (size - headers) / len(images),
                "rfid": scores.distance(originals),
                **scores.summary(),
            }
