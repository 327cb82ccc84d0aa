"""Sets in memory, held once by the ranks of a node. Two ranks are simulated one after the other."""

import sys
import tempfile
from pathlib import Path

import pytest
import torch
from image_files import picture, png, shard

from minflextok import TrainConfig
from minflextok.data import load, load_dataset, node
from minflextok.training.batches import split_validation


@pytest.fixture
def two_ranks(tmp_path, monkeypatch):
    """Calls a function as each of two ranks, and returns both results; files of the node are in
    tmp_path/shared."""
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "shared"))

    def both(call):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCAL_WORLD_SIZE", "2")
            found = []
            for _ in range(2):
                node.CALLS.clear()
                found.append(call())
        return found

    return both


@pytest.fixture
def decodings(monkeypatch):
    """The names of the sets that were decoded."""
    found, real = [], load.decoded
    monkeypatch.setattr(load, "decoded", lambda *a: found.append(a[0]) or real(*a))
    return found


def left(tmp_path):
    return [p.name for p in (tmp_path / "shared").rglob("*") if p.is_file() and p.suffix != ".lock"]


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be removed")


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_the_ranks_of_a_node_decode_a_set_once_and_map_one_file(
    tmp_path, two_ranks, decodings, kind
):
    for i in range(20):
        picture(tmp_path / "set" / f"class{i % 2}" / f"{i}.png", (8, 8), (9 * i, 0, 0))
    path = tmp_path / "set"
    if kind == "shards":
        members = [(f"{i}.{e}", c) for i in range(20) for e, c in (("png", png(i)), ("cls", b"1"))]
        path = shard(tmp_path / "a.tar", members)
    alone = load_dataset(path)
    assert len(decodings) == 1
    sets = two_ranks(lambda: load_dataset(path))
    assert len(decodings) == 2 and left(tmp_path) == []
    for data in sets:
        assert torch.equal(data.images, alone.images) and torch.equal(data.labels, alone.labels)
        assert data.classes == alone.classes
    if sys.platform == "linux":
        assert Path("/proc/self/maps").read_text().count(f"{tmp_path}/shared") >= 2
    recipe = TrainConfig(val_images=4, seed=3)
    for train, val in two_ranks(lambda: split_validation(sets[0], recipe)):
        same = split_validation(alone, recipe)
        assert torch.equal(train.images, same[0].images) and torch.equal(val, same[1])
        assert torch.equal(train.labels, same[0].labels)
    assert left(tmp_path) == []


def test_a_rank_that_loads_more_sets_than_another_gets_what_it_asked_for(tmp_path, two_ranks):
    sets = [{"images": torch.full((4,), i)} for i in range(2)]
    calls = [[0, 1], [1]]  # the second rank does not load the first set
    rank = iter(calls)
    for asked, found in zip(
        calls,
        two_ranks(lambda: [node.once_per_node((i,), lambda i=i: sets[i]) for i in next(rank)]),
        strict=True,
    ):
        assert [int(x["images"][0]) for x in found] == asked


def test_without_space_each_rank_has_its_own(tmp_path, two_ranks, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node, "save_file", full)
    made = []
    for found in two_ranks(
        lambda: node.once_per_node((), lambda: made.append(1) or {"x": torch.ones(2)})
    ):
        assert found["x"].tolist() == [1, 1]
    assert len(made) == 2 and left(tmp_path) == []


def test_one_process_makes_no_file(tmp_path, two_ranks, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert node.once_per_node((), lambda: {"x": torch.ones(1)})["x"].item() == 1
    assert list((tmp_path / "shared").iterdir()) == []
