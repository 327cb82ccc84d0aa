"""JPEG and WebP as baselines: bytes against quality, without any training."""

import io
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..data import Dataset, in_order, open_image, to_float
from ..evaluation.classifier import Classifier, match_classes
from ..evaluation.scores import Scores


def encode_image(image: Tensor, codec: str, quality: int) -> bytes:
    """An image (3, H, W) uint8 as a file; codec "JPEG" or "WEBP"."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, codec, quality=quality)
    return file.getvalue()


@torch.no_grad()
def codecs(
    test: Dataset,
    num_images: int,
    classifier: Classifier,
    qualities: Sequence[int] = (0, 1, 5, 10, 20, 40, 70),
) -> Iterator[dict]:
    """Scores of JPEG and WebP on the first images of `test`, a row for each codec and quality.

    "bytes": mean size of a file; "beyond_header": without the header, which all files share.
    """

    def new_scores() -> Scores:
        return Scores(num_images, classifier.features, classifier, keep_features=False)

    c = classifier.config
    number = match_classes(test, c.class_names, c.num_classes, "the classifier")
    batches = [
        (x, None if labels is None else number(labels))
        for x, labels in in_order(test, 250, num_images)
    ]
    originals = new_scores()
    for stored, labels in batches:
        originals.update(to_float(stored), labels)
    black = torch.zeros_like(batches[0][0][0])
    for codec in ("JPEG", "WEBP"):
        for quality in qualities:
            scores, sizes = new_scores(), []
            for stored, labels in batches:
                files = [encode_image(x, codec, quality) for x in stored]
                sizes += map(len, files)
                made = torch.stack([torch.from_numpy(open_image(f, None).copy()) for f in files])
                scores.update(to_float(made), labels, to_float(stored))
            mean = sum(sizes) / len(sizes)
            yield {
                "codec": codec,
                "quality": quality,
                "bytes": mean,
                "beyond_header": mean - len(encode_image(black, codec, quality)),
                "rfid": scores.distance(originals),
                **scores.summary(),
            }
