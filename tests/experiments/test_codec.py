"""Sizes of compressed ids, measured."""

import json

import pytest

from minflextok import FlexTok, Prior
from minflextok.compression import compress
from minflextok.data import load_dataset, to_float
from minflextok.experiments.codec import main, shortened

pytest.importorskip("constriction")


def test_sizes_are_near_the_cross_entropy(tmp_path, capsys):
    main(["--num-images", "40", "--tokens", "1", "4", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "cifar10.json").read_text())
    rows = results["bytes by ids an image"]
    assert results["ids that are equal"] == 40 * 4
    assert list(rows) == ["1", "4"] and results["setting"]["num_images"] == 40
    for row in rows.values():
        assert row["cross-entropy"] < row["file"] < 1.02 * row["cross-entropy"] + 60
        assert row["file of one image"] > row["bytes an image"]
    assert rows["4"]["file"] < rows["4"]["without a prior"] + 60


def test_a_shortened_file_is_the_file_of_shorter_rows():
    tok, prior = FlexTok.from_pretrained("cifar10"), Prior.from_pretrained("cifar10")
    ids = tok.encode(to_float(load_dataset("cifar10-sample", "test").images[:5]), 8)
    data = compress(ids, tok, prior)
    for k in (1, 2, 4, 8):
        assert shortened(data, tok, prior, k) == compress(ids[:, :k], tok, prior)
