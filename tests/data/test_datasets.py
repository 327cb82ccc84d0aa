"""The three kinds of data sets, and those that come by name."""

from itertools import islice

import numpy as np
import pytest
import torch
from image_files import picture, png, shard
from PIL import Image

from minflextok.data import Folder, Images, Stream, load_dataset


def test_two_processes_share_a_batch():
    data = load_dataset("cifar10-sample", "test")
    whole = next(data.batches(8, 0))
    parts = [next(data.batches(8, 0, rank=r, world=2)) for r in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_embedded_sample_is_real_small_and_split():
    train, test = load_dataset("cifar10-sample", "train"), load_dataset("cifar10-sample", "test")
    assert train.images.shape == (4000, 3, 32, 32) and test.images.shape == (1000, 3, 32, 32)
    assert len(train.classes) == 10 and set(train.labels.tolist()) == set(range(10))
    seen = {i.numpy().tobytes() for i in train.images}
    assert sum(i.numpy().tobytes() in seen for i in test.images) == 0


def test_large_folders_and_shards_stay_on_disk_with_the_same_batches(tmp_path, monkeypatch):
    for i in range(10):
        picture(tmp_path / "big/a" / f"{i}.png", (8, 8), (i, 0, 0))
    memory = next(load_dataset(tmp_path / "big", image_size=8).batches(4, 0, start=2))
    monkeypatch.setattr("minflextok.data.load.IN_MEMORY_BYTES", 100)
    folder = load_dataset(tmp_path / "big", image_size=8, workers=0)
    assert isinstance(folder, Folder) and torch.equal(next(folder.batches(4, 0, start=2)), memory)
    shard(tmp_path / "p.tar", {f"{i}.png": png(i) for i in range(10)})
    plain = load_dataset(tmp_path / "p.tar", image_size=8, workers=0)
    assert isinstance(plain, Folder) and torch.equal(next(plain.batches(4, 0, start=2)), memory)
    shard(tmp_path / "s.tar.gz", {f"{i}.png": png(i) for i in range(7)})
    stream = load_dataset(tmp_path / "s.tar.gz", image_size=8, workers=0)
    assert isinstance(stream, Stream) and stream.head(3).shape == (3, 3, 8, 8)
    first = list(islice(stream.batches(7, 0), 3))
    assert [sorted(x[:, 0, 0, 0].tolist()) for x in first] == [list(range(7))] * 3
    assert all(
        torch.equal(a, b) for a, b in zip(first, islice(stream.batches(7, 0), 3), strict=False)
    )
    with pytest.raises(ValueError, match="image_size"):
        load_dataset(tmp_path / "s.tar.gz")


def test_cifar10_offline_names_the_alternatives(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    with pytest.raises(OSError, match=r"no network.*cifar10-sample.*shapes"):
        load_dataset("cifar10")


def test_a_set_knows_its_split_and_encoding(tmp_path):
    sample = load_dataset("cifar10-sample", "test")
    assert (sample.split, sample.encoding) == ("test", "JPEG")
    part = sample.select(torch.arange(4), split="validation")
    assert (part.split, part.encoding, len(part)) == ("validation", "JPEG", 4)
    shapes = load_dataset("shapes", "test")
    assert (shapes.split, shapes.encoding) == ("test", "drawn here")
    assert Images("mine", sample.images).encoding == "unknown encoding"
    picture(tmp_path / "set/0.jpg")
    assert load_dataset(tmp_path / "set").encoding == "JPEG"
    shard(tmp_path / "s.tar", {"0.webp": png()})
    assert load_dataset(tmp_path / "s.tar", "test").encoding == "WEBP"
    assert load_dataset(tmp_path / "s.tar", "test").split == "test"


def test_random_crops_are_a_function_of_the_step_whatever_the_ranks_and_where_the_images_are(
    tmp_path, monkeypatch
):
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    for i in range(6):
        square = np.full((64, 64, 3), 40 * i, np.uint8)
        square[..., 1], square[..., 2] = ramp[None], ramp[:, None]
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(square).save(tmp_path / "a" / f"{i}.png")

    def batches(data, rank=0, world=1, start=0):
        got = data.batches(4, 0, start, rank, world, crop_scale=0.3)
        return torch.stack(list(islice(got, 4 - start)))

    memory = load_dataset(tmp_path, image_size=64)
    monkeypatch.setattr("minflextok.data.load.IN_MEMORY_BYTES", 100)
    disk = load_dataset(tmp_path, image_size=64, workers=0)
    whole = batches(disk)
    assert torch.equal(batches(disk, start=2), whole[2:])
    ranks = [batches(disk, rank, 2) for rank in range(2)]
    assert torch.equal(torch.stack(ranks, 2).flatten(1, 2), whole)
    assert torch.equal(whole[:, :, 0, 0, 0], batches(memory)[:, :, 0, 0, 0])
    far = (whole.float() - batches(memory).float()).abs()
    assert far.mean() < 2.5  # boxes in memory are whole pixels
    assert whole[0, 0, 1].float().std() < 0.99 * ramp.astype(float).std()  # a part of the ramp
    assert torch.equal(next(memory.batches(4, 0, crop_scale=1.0)), next(disk.batches(4, 0)))
