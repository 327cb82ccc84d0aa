"""The order of training batches, and the validation split."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import picture, png, shard

from minflextok import TrainConfig
from minflextok.data import Folder, Images, Stream, load_dataset, shuffled, validation_split


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
    """A data set in folders or shards of so many images; the red of an image is its number."""
    if kind != "memory":
        monkeypatch.setattr("minflextok.data.load.IN_MEMORY_BYTES", 100)
    numbers, tars = iter(range(sum(sizes))), kind.startswith(".tar")
    for i, n in enumerate(sizes):
        part = [next(numbers) for _ in range(n)]
        if tars:
            shard(tmp_path / f"{i}{kind}", {f"{k}.png": png(k) for k in part})
        for k in () if tars else part:
            picture(tmp_path / f"class{i}" / f"{k:02d}.png", (8, 8), (k, 0, 0))
    path = f"{tmp_path}/{{0..{len(sizes)}}}{kind}" if tars else tmp_path
    if tars:
        shard(tmp_path / f"{len(sizes)}{kind}", {})  # an empty one
    return load_dataset(path, image_size=8, workers=workers)


KINDS = [("memory", Images), ("folder", Folder), (".tar", Folder), (".tar.gz", Stream)]


@pytest.mark.parametrize("kind, cls", KINDS)
@pytest.mark.parametrize("workers, world", [(0, 1), (2, 1), (0, 2), (3, 4)])
def test_each_epoch_has_each_image_once_over_ranks_and_workers(
    tmp_path, monkeypatch, kind, cls, workers, world
):
    """13 images in folders or shards of unequal size, and batches of 8: an epoch ends inside of a
    batch. The batches are the same for any number of ranks and workers, and after a resume."""
    data = numbered(tmp_path, monkeypatch, kind, [1, 9, 3], workers)
    assert type(data) is cls

    def batches(data, start=0, world=1):
        ranks = (data.batches(8, 0, start, rank, world) for rank in range(world))
        parts = zip(*(islice(rank, 5 - start) for rank in ranks), strict=True)
        return torch.cat([torch.stack(part, 1).flatten(0, 1) for part in parts])[:, 0, 0, 0]

    seen = batches(data, world=world)
    assert [sorted(e.tolist()) for e in seen.split(13)[:3]] == [list(range(13))] * 3
    assert len({tuple(e.tolist()) for e in seen.split(13)[:3]}) == 3  # in another order each
    assert torch.equal(batches(data, 2, world), seen[16:])
    assert torch.equal(batches(numbered(tmp_path, monkeypatch, kind, [1, 9, 3], 0)), seen)


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
