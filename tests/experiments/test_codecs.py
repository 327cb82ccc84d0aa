"""JPEG and WebP as baselines."""

import json

from minflextok.data import load_dataset
from minflextok.evaluation.classifier import Classifier
from minflextok.experiments.codecs import codecs


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
