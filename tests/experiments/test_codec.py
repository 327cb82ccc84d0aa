"""Sizes of compressed ids, measured."""

import json

import pytest

from minflextok.experiments.codec import main

pytest.importorskip("constriction")


def test_sizes_are_near_the_cross_entropy(tmp_path, capsys):
    main(["--num-images", "40", "--tokens", "1", "4", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "cifar10.json").read_text())
    rows = results["bytes by ids an image"]
    assert list(rows) == ["1", "4"] and results["setting"]["num_images"] == 40
    for row in rows.values():
        assert row["cross-entropy"] < row["file"] < 1.02 * row["cross-entropy"] + 60
        assert row["file of one image"] > row["bytes an image"]
    assert rows["4"]["file"] < rows["4"]["without a prior"] + 60
