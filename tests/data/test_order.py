"""The order of training batches, and the validation split."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import picture, png, shard

from minflextok import TrainConfig
from minflextok.data import Folder, Images, load_dataset, shuffled, validation_split


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_each_epoch_shows_each_image_once_and_resuming_changes_nothing(n, batch, start):
    steps = list(islice(shuffled(n, batch, seed=3), 30))
    flat = torch.cat(steps)
    for epoch in range(len(flat) // n):
        assert sorted(flat[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
    resumed = list(islice(shuffled(n, batch, seed=3, start=start), 5))
    assert all(torch.equal(a, b) for a, b in zip(resumed, steps[start:], strict=False))


def numbered(tmp_path, monkeypatch, kind, sizes, workers):
    """A data set in folders or shards of so many images; the red of each image is its number."""
    if kind != "memory":
        monkeypatch.setattr("minflextok.data.load.IN_MEMORY_BYTES", 100)
    numbers = iter(range(sum(sizes)))
    for i, n in enumerate(sizes):
        part = [next(numbers) for _ in range(n)]
        if kind == "tars":
            shard(tmp_path / f"{i}.tar", {f"{k}.png": png(k) for k in part})
        for k in () if kind == "tars" else part:
            picture(tmp_path / f"class{i}" / f"{k:02d}.png", (8, 8), (k, 0, 0))
    path = f"{tmp_path}/{{0..{len(sizes) - 1}}}.tar" if kind == "tars" else tmp_path
    return load_dataset(path, image_size=8, workers=workers)


@pytest.mark.parametrize("kind, cls", [("memory", Images), ("folder", Folder), ("tars", Folder)])
@pytest.mark.parametrize("workers, world", [(0, 1), (2, 1), (0, 2), (3, 4)])
def test_each_epoch_has_each_image_once_over_ranks_and_workers(
    tmp_path, monkeypatch, kind, cls, workers, world
):
    """13 images in folders or shards of unequal size, and batches of 8: an epoch ends inside of a
    batch. The batches are the same for any number of ranks and workers."""
    sizes = [1, 0, 9, 3] if kind == "tars" else [1, 9, 3]
    data = numbered(tmp_path, monkeypatch, kind, sizes, workers)
    assert type(data) is cls
    shares = [islice(data.batches(8, 0, rank=r, world=world), 5) for r in range(world)]
    batches = [torch.stack(parts, 1).flatten(0, 1) for parts in zip(*shares, strict=True)]
    seen = torch.cat(batches)[:, 0, 0, 0]
    assert [sorted(e.tolist()) for e in seen.split(13)[:3]] == [list(range(13))] * 3
    assert seen.tolist() == torch.cat([*islice(shuffled(13, 8, 0), 5)]).tolist()


@given(st.integers(10, 200), st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_the_validation_split_is_random_repeatable_and_apart(n, val_images):
    recipe = TrainConfig(val_images=val_images, seed=n)
    train, val = validation_split(n, recipe, "x")
    assert sorted(torch.cat([train, val]).tolist()) == list(range(n))
    assert len(val) == min(val_images, n // 10)
    assert torch.equal(val, validation_split(n, recipe, "x")[1])


def test_a_set_too_small_for_a_validation_split_is_an_error():
    with pytest.raises(ValueError, match="x has 9 images: training wants at least 10"):
        validation_split(9, TrainConfig(), "x")
