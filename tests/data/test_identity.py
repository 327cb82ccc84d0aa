"""The identity of a data set: what changes it, and what does not."""

import os

import pytest
import torch
from conftest import noise_images
from image_files import picture, png, shard

from minflextok.data import Folder, Stream, identity, load_dataset


def test_sets_in_memory_are_their_pixels():
    data = noise_images()
    same = noise_images(labels=torch.arange(40), classes=list(map(str, range(40))))
    assert identity(data) == identity(same) and len(identity(data)) == 16
    assert identity(data, conditions=True) != identity(same, conditions=True)
    others = [noise_images(41), noise_images(seed=1), data.select(torch.arange(40).flip(0))]
    others[1].images = data.images.flatten(2).view(40, 3, 4, 16)
    assert len({identity(x) for x in (data, *others)}) == 4


@pytest.mark.parametrize("change", ["add", "replace", "remove", "rename"])
def test_folders_are_their_files(tmp_path, monkeypatch, change):
    monkeypatch.setattr("minflextok.data.load.IN_MEMORY_BYTES", 100)
    for i in range(3):
        picture(tmp_path / f"a/{i}.png", (8, 8))
        picture(tmp_path / f"b/{i}.png", (8, 8))

    def load():
        return load_dataset(tmp_path, image_size=8, workers=0)

    assert isinstance(load(), Folder)
    before = identity(load())
    assert before == identity(load())
    file = tmp_path / "a/1.png"
    if change == "add":
        picture(tmp_path / "a/3.png", (8, 8))
    elif change == "replace":
        picture(file, (8, 8), (1, 2, 3))
        os.utime(file, (2, 2))
    elif change == "remove":
        file.unlink()
    else:
        file.rename(tmp_path / "b/9.png")
    assert before != identity(load())


def test_shards_are_their_files_or_their_content(tmp_path):
    path = tmp_path / "a.tar"
    stream, seen = Stream("s", [str(path)], 8, 0), []
    for value in (1, 2):
        shard(path, {"a.png": png(value), "a.cls": b"%d" % value})
        os.utime(path, (1, 1))
        seen.append((identity(stream), identity(stream, content=True)))
    assert seen[0][0] == seen[1][0] and seen[0][1] != seen[1][1]
    os.utime(path, (2, 2))
    assert identity(stream) != seen[1][0] and identity(stream, content=True) == seen[1][1]
