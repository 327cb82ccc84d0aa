"""JPEG, WebP and AVIF as baselines."""

import json

import pytest
import torch

from minflextok.data import load_dataset
from minflextok.evaluation.classifier import Classifier
from minflextok.experiments.codecs import (
    TERMS,
    codecs,
    encode_image,
    recompress,
    tile,
    untile,
)


def test_jpeg_and_webp_trade_bytes_for_quality():
    test = load_dataset("cifar10-sample", "test")
    rows = list(codecs(test, 60, Classifier.from_pretrained("judge-cifar10"), (5, 70)))
    for poor, good in (rows[:2], rows[2:]):
        assert poor["codec"] == good["codec"] and poor["quality"] == 5
        assert 0 < poor["beyond_header"] < poor["bytes"] < good["bytes"]
        assert (
            poor["psnr"]["mean"] < good["psnr"]["mean"]
            and poor["rfid"]["mean"] > good["rfid"]["mean"]
        )
    json.dumps(rows)


def test_a_mosaic_is_its_tiles_in_order():
    x = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
    mosaic = tile(x, 3)
    assert mosaic.shape == (3, 12, 12)
    for i, image in enumerate(x):
        r, c = divmod(i, 3)
        assert torch.equal(mosaic[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4], image)
    assert not mosaic[:, 8:, 4:].any() and torch.equal(untile(mosaic, 7, 4), x)


@pytest.mark.parametrize("codec", ["JPEG", "WEBP", "AVIF"])
def test_sizes_are_those_of_all_files(codec):
    x = load_dataset("cifar10-sample", "test").images[:9]
    made, size = recompress(x, codec, 30)
    assert size == sum(len(encode_image(image, codec, 30)) for image in x)
    together, shared = recompress(x, codec, 30, TERMS["mosaic"])
    assert shared == len(encode_image(tile(x, 3), codec, 30)) < size
    small, least = recompress(x, codec, 30, TERMS["mosaic, 8 px"])
    assert least < shared and small.shape == together.shape == made.shape == x.shape
    errors = [(y.float() - x.float()).abs().mean().item() for y in (made, together, small)]
    assert errors[0] < 20 and errors[1] < 20 and errors[1] < errors[2] < 60


def test_headers_are_counted_once_a_file():
    test, classifier = (
        load_dataset("cifar10-sample", "test"),
        Classifier.from_pretrained("judge-cifar10"),
    )
    black = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for terms, files in (("file", 10), ("mosaic", 1)):
        (row,) = codecs(test, 10, classifier, (30,), ["WEBP"], terms)
        headers = files * len(encode_image(black, "WEBP", 30))
        assert row["bytes"] - row["beyond_header"] == pytest.approx(headers / 10)
        assert row["terms"] == terms and "ci95" in row["rfid"]
