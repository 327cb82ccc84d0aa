"""Shards of image files that are written here."""

import json

import pytest
import torch
from image_files import picture

from minflextok.data import Folder, Images, load_dataset, shard_folder


@pytest.fixture
def photos(tmp_path):
    """7 cats, 4 dogs; the red of an image is its number. And 2 dogs to test on."""
    for i in range(11):
        picture(tmp_path / f"set/train/{'cat' if i < 7 else 'dog'}/{i:02}.png", (8, 8), (i, 0, 0))
    for i in range(2):
        picture(tmp_path / f"set/test/dog/{i}.jpg", (8, 8))
    return tmp_path / "set"


def reds(data):
    return data.at(torch.arange(len(data)))[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("limit", [10**9, 100])  # in memory, on disk
def test_shards_of_a_folder_hold_it_shuffled(photos, tmp_path, monkeypatch, limit):
    assert shard_folder(photos, tmp_path / "out", per_shard=4, quiet=True) == 3
    monkeypatch.setattr("minflextok.data.load.IN_MEMORY_BYTES", limit)
    data = load_dataset(tmp_path / "out", image_size=8, workers=0)
    assert isinstance(data, Images if limit > 100 else Folder)
    order = reds(data)
    assert sorted(order) == list(range(11)) != order
    assert data.labels.tolist() == [int(i >= 7) for i in order]
    assert data.classes == ["cat", "dog"] and data.encoding == "PNG"
    sizes = [len(load_dataset(tmp_path / f"out/train-{i:05}.tar", image_size=8)) for i in range(3)]
    assert sizes == [4, 4, 3]


def test_splits_share_the_numbers_of_their_classes(photos, tmp_path):
    for split in ("train", "test"):
        shard_folder(photos, tmp_path / "out", split, quiet=True)
    test = load_dataset(tmp_path / "out", "test")
    assert test.labels.tolist() == [1, 1] and test.classes == ["cat", "dog"]
    assert test.encoding == "JPEG" and test.split == "test"


def test_interrupted_sharding_goes_on_to_the_same_files(photos, tmp_path):
    shard_folder(photos, tmp_path / "whole", per_shard=4, quiet=True)
    shard_folder(photos, tmp_path / "out", per_shard=4, quiet=True)
    (tmp_path / "out/train-00001.tar").unlink()
    with pytest.raises(FileNotFoundError, match="train-00001.tar"):
        load_dataset(tmp_path / "out")
    shard_folder(photos, tmp_path / "out", per_shard=4, quiet=True)
    assert reds(load_dataset(tmp_path / "out")) == reds(load_dataset(tmp_path / "whole"))


def test_other_shards_are_never_mixed(photos, tmp_path):
    out = tmp_path / "out"
    shard_folder(photos, out, quiet=True)
    with pytest.raises(ValueError, match="differ in seed.*give another out"):
        shard_folder(photos, out, seed=1, quiet=True)
    picture(photos / "train/cat/99.png", (8, 8))
    with pytest.raises(ValueError, match="differ in images, identity"):
        shard_folder(photos, out, quiet=True)
    (out / "train.json").unlink()
    with pytest.raises(ValueError, match="without their record"):
        shard_folder(photos, out, quiet=True)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        shard_folder(tmp_path / "none", out)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"shards": 0, "classes": []}', '{"shards": 1}', '{"shards": 1, "classes": 3}'],
)
def test_a_damaged_record_is_an_error_that_names_it(photos, tmp_path, text):
    shard_folder(photos, tmp_path / "out", quiet=True)
    (tmp_path / "out/train.json").write_text(text)
    with pytest.raises(ValueError, match="train.json"):
        load_dataset(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no shards of split test: it has train"):
        load_dataset(tmp_path / "out", "test")


def test_classes_that_do_not_cover_the_labels_are_an_error(photos, tmp_path):
    shard_folder(photos, tmp_path / "out", quiet=True)
    record = json.loads((tmp_path / "out/train.json").read_text())
    (tmp_path / "out/train.json").write_text(json.dumps(record | {"classes": ["cat"]}))
    with pytest.raises(ValueError, match="labels from 0 to 1, and 1 classes"):
        load_dataset(tmp_path / "out")
