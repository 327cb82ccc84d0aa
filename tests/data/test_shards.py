"""WebDataset shards: which files make a sample, and what is refused."""

import tarfile
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch
from conftest import SHARED
from image_files import png, shard

from minflextok.data import Folder, Stream, identity, load_dataset, shards


def test_shards(tmp_path):
    for s in range(2):
        shard(
            tmp_path / f"s-{s}.tar",
            {f"{s}{i}.{e}": c for i in range(3) for e, c in (("png", png(s)), ("cls", b"%d" % s))},
        )
    data = load_dataset(str(tmp_path / "s-{0..1}.tar"))
    assert data.images.shape == (6, 3, 8, 8) and data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(FileNotFoundError, match="s-2.tar"):
        load_dataset(str(tmp_path / "s-{0..2}.tar"))
    for members, match in [
        ({"a.png": png(), "a.cls": b"cat"}, "not a class number"),
        ({"a.png": png(), "a.cls": b"1", "b.png": png()}, "labelled in part"),
        ({"a.txt": b"x"}, "no readable image"),
    ]:
        with pytest.raises(ValueError, match=match):
            load_dataset(shard(tmp_path / "bad.tar.gz", members))
    with pytest.warns(UserWarning, match="bad"):
        assert (
            len(
                load_dataset(
                    shard(tmp_path / "some.tar", {"ok.png": png(), "bad.png": b"\xff\xd8nothing"})
                )
            )
            == 1
        )


@pytest.mark.parametrize("cut", [0, 100, 5000, 20_000])
def test_a_truncated_tar_is_an_error(tmp_path, cut):
    whole = shard(tmp_path / "w.tar", {f"{i}.png": png(i) for i in range(20)}).read_bytes()
    (tmp_path / "w.tar").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match="truncated"):
        load_dataset(tmp_path / "w.tar")
    (tmp_path / "j.tar.gz").write_bytes(b"junk" * 500)
    with pytest.raises(ValueError, match="truncated, or no tar"):
        load_dataset(tmp_path / "j.tar.gz")


def test_a_truncated_shard_is_an_error(tmp_path):
    whole = shard(
        tmp_path / "w.tar.gz", {f"{i}.png": np.random.default_rng(i).bytes(3000) for i in range(20)}
    ).read_bytes()
    (tmp_path / "w.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="truncated"):
        load_dataset(tmp_path / "w.tar.gz")


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"no shards in {SHARED / 'data'}")
def test_shards_outside_the_repository_read_the_same_way():
    sample = load_dataset("cifar10-sample", "test")
    full = load_dataset(f"{SHARED}/data/cifar10-{{split}}.tar.gz", "test")
    assert len(full) == 10_000 and torch.equal(full.images[:1000], sample.images)


# ---- names ---------------------------------------------------------------------------------------


def test_names_may_have_dots(tmp_path):
    members = {
        f"v1.2/frame.{i:04d}.{e}": c
        for i in range(20)
        for e, c in (("cls", b"%d" % i), ("png", png(i)))
    }
    data = load_dataset(shard(tmp_path / "a.tar", members))
    assert data.labels.tolist() == list(range(20)) == data.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    "members, match",
    [
        ([("a.depth.png", png()), ("a.jpg", png())], "a and a.depth look like one sample"),
        ([("a.cls", b"1"), ("a.depth.png", png()), ("a.jpg", png())], "a.cls has no image"),
        ([("a.jpg", png()), ("a.depth.png", png()), ("a.cls", b"1")], "look like one sample"),
        ([("a.jpg", png()), ("a.png", png())], "a.png is a second image of a"),
        ([("a.png", png()), ("a.png", png())], "a.png is a second image of a"),
        ([("a.png", png()), ("b.png", png()), ("a.png", png())], "holds a.png twice"),
        ([("a.png", png()), ("b.png", png()), ("a.cls", b"1")], "a.cls has no image"),
        ([("a.png", png()), ("a.cls", b"1"), ("a.cls", b"2")], "holds a.cls twice"),
        ([("a.png", png()), ("b.heic", b"x")], "cannot read b.heic"),
    ],
)
def test_no_image_is_dropped_without_an_error_that_names_it(tmp_path, members, match):
    with pytest.raises(ValueError, match=match):
        load_dataset(shard(tmp_path / "a.tar", members))


def test_litter_in_a_shard_is_left_out(tmp_path):
    names = ["./a.png", "__MACOSX/._a.png", "._a.png", "b.PNG", ".ipynb_checkpoints/b.png"]
    assert len(load_dataset(shard(tmp_path / "a.tar", {n: png() for n in names}))) == 2


def test_equal_names_in_two_shards_are_two_images(tmp_path):
    for i in range(2):
        shard(tmp_path / f"{i}.tar", {"a.png": png(i)})
    assert load_dataset(f"{tmp_path}/{{0..1}}.tar").images[:, 0, 0, 0].tolist() == [0, 1]


# ---- plain tars on disk, by position -------------------------------------------------------------


def on_disk(tmp_path, monkeypatch, sizes, workers=0, broken=()):
    """Shards of so many images each, too large for memory; the red of an image is its number."""
    monkeypatch.setattr("minflextok.data.load.IN_MEMORY_BYTES", 100)
    numbers = iter(range(sum(sizes)))
    for i, n in enumerate(sizes):
        members = []
        for k in (next(numbers) for _ in range(n)):
            image = b"broken" if k in broken else png(k)
            members += [(f"v1.2/{k}.png", image), (f"v1.2/{k}.cls", b"%d" % (k % 2))]
        shard(tmp_path / f"{i}.tar", members)
    pattern = f"{tmp_path}/{{0..{len(sizes) - 1}}}.tar" if len(sizes) > 1 else f"{tmp_path}/0.tar"
    return load_dataset(pattern, image_size=8, workers=workers)


def reds(x):
    return x[:, 0, 0, 0].tolist()


def test_shards_on_disk_are_read_as_in_memory(tmp_path, monkeypatch):
    data = on_disk(tmp_path, monkeypatch, [3, 0, 9])
    assert isinstance(data, Folder) and len(data) == 12
    x, labels = next(data.in_order(12))
    assert reds(x) == list(range(12)) and labels.tolist() == [0, 1] * 6
    part = data.select(torch.tensor([11, 2, 5]))
    assert reds(part.at(torch.tensor([0, 1, 2]))) == [11, 2, 5]
    assert part.labels.tolist() == [1, 0, 1] and identity(part) != identity(data)


def test_shards_on_disk_resume_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    data = on_disk(tmp_path, monkeypatch, [5, 8])
    whole = [reds(x) for x in islice(data.batches(4, 0), 7)]
    assert [reds(x) for x in islice(data.batches(4, 0, start=2), 5)] == whole[2:]


def test_a_broken_image_on_disk_is_named_and_replaced_within_its_class(tmp_path, monkeypatch):
    data = on_disk(tmp_path, monkeypatch, [6], broken=(2,))
    with pytest.warns(UserWarning, match=r"v1.2/2 in .*0.tar"):
        assert reds(data.at(torch.tensor([2]))) == [4]


def test_a_class_without_a_readable_image_on_disk_is_named_by_its_number(tmp_path, monkeypatch):
    data = on_disk(tmp_path, monkeypatch, [4], broken=(1, 3))
    with (
        pytest.warns(UserWarning, match="v1.2/3"),
        pytest.raises(ValueError, match="no image of class 1 can be read"),
    ):
        data.at(torch.tensor([1]))


def test_what_is_no_plain_tar_of_files_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("minflextok.data.load.IN_MEMORY_BYTES", 100)
    whole = shard(tmp_path / "a.tar", {"a.png": b"x" * 9000}).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:5000] + bytes(1024))
    with pytest.raises(ValueError, match="truncated"):
        load_dataset(tmp_path / "a.tar", image_size=8)
    with tarfile.open(tmp_path / "b.tar", "w") as t:
        t.addfile(tarfile.TarInfo("folder"))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        t.addfile(link)
    with pytest.raises(ValueError, match="no image"):
        load_dataset(tmp_path / "b.tar", image_size=8)
    shard(tmp_path / "c.tar", [("a.png", png()), ("a.cls", b"1"), ("b.png", png())])
    with pytest.raises(ValueError, match="labelled in part: 1 of 2"):
        load_dataset(tmp_path / "c.tar", image_size=8)
    with pytest.raises(ValueError, match="give an image_size"):
        load_dataset(tmp_path / "c.tar")


# ---- streams -------------------------------------------------------------------------------------


def stream(tmp_path, sizes, workers=0):
    """A stream of shards with so many images each; the red of each image is its number."""
    numbers = iter(range(sum(sizes)))
    paths = []
    for i, n in enumerate(sizes):
        paths.append(str(tmp_path / f"{i}.tar"))
        members = [(f"{k}.png", png(k)) for k in (next(numbers) for _ in range(n))]
        shard(tmp_path / f"{i}.tar", members)
    return Stream("s", paths, 8, workers)


@pytest.mark.parametrize("sizes", [[1, 15], [8, 8], [2, 0, 5, 9], [4, 4, 4, 4, 0]])
def test_remote_shards_are_read_by_one_reader_each_with_equal_chances_in_the_long_run(
    tmp_path, sizes
):
    paths, rounds, found = stream(tmp_path, sizes).shards, 2000, Counter()
    opened = Counter()
    for reader in range(2):
        drawn = (s for e in range(rounds) for s in shards.dealt(paths, 0, e, reader, 2))
        found.update(s.key for s in islice(drawn, 4000))
    assert set(found) == {str(i) for i in range(16)}
    assert max(abs(n - 500) for n in found.values()) < 50  # 8,000 draws of 16 images
    for reader in range(2):  # each deal of all shards goes to the two readers once
        for shard_of in shards.dealt(paths, 0, 0, reader, 2):
            opened[shard_of.key] += 1
    assert opened == dict.fromkeys(found, 2)


def steps(stream, num, start=0, world=1):
    """The images of each of so many steps."""
    ranks = (islice(stream.batches(8, 0, start, r, world), num) for r in range(world))
    return [reds(torch.stack(parts, 1).flatten(0, 1)) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("num", [1, 3])
def test_a_stream_may_have_fewer_images_than_readers(tmp_path, num):
    data = stream(tmp_path, [num])
    assert Counter(chain.from_iterable(steps(data, 3 * num, world=4))) == dict.fromkeys(
        range(num), 24
    )


def test_a_broken_image_of_a_stream_is_replaced_by_the_next(tmp_path):
    """Whatever the ranks, and after any resume, also where many follow each other."""
    members = [(f"{i}.png", png(i) if i % 4 == 0 else b"broken") for i in range(20)]
    path = str(shard(tmp_path / "a.tar", members))
    with pytest.warns(UserWarning, match="skipped unreadable image"):
        whole = steps(Stream("s", [path], 8, 0), 10)
        assert steps(Stream("s", [path], 8, 0), 10, world=4) == whole
        for start in range(1, 10):
            assert steps(Stream("s", [path], 8, 0), 10 - start, start) == whole[start:]
    seen = Counter(chain.from_iterable(whole))
    assert set(seen) == {0, 4, 8, 12, 16} and min(seen.values()) >= 4  # in four epochs


@pytest.mark.parametrize("members", [[], [("a.png", b"broken")]])
def test_a_stream_without_readable_images_is_an_error(tmp_path, members):
    path = shard(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match="holds no readable image"):
        next(Stream("s", [str(path)], 8, 0).batches(4, 0))


def test_a_name_that_stands_twice_is_an_error_in_streams_too(tmp_path):
    path = shard(tmp_path / "a.tar", [("a.png", png()), ("b.png", png()), ("a.png", png())])
    with pytest.raises(ValueError, match="holds a.png twice: was the tar appended to"):
        next(Stream("s", [str(path)], 8, 0).batches(4, 0))


@pytest.mark.parametrize("labelled", [0, 3])
def test_a_stream_labelled_in_part_is_an_error(tmp_path, labelled):
    members = [(f"{i}.png", png()) for i in range(6)]
    members.insert(labelled + 1, (f"{labelled}.cls", b"1"))
    path = shard(tmp_path / "a.tar.gz", members)
    for batch_size in (1, 2, 6):
        with pytest.raises(ValueError, match="labelled in part"):
            list(Stream("s", [str(path)], 8, 0).in_order(batch_size))


@pytest.mark.parametrize("pattern", ["a.tar::pipe:touch hit.tar", "{a,pipe:touch hit}.tar"])
def test_a_command_inside_a_list_of_shards_never_runs(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    for name in ("a.tar", "pipe:touch hit.tar"):
        (tmp_path / name).write_bytes(bytes(1024))
    with pytest.raises(ValueError, match="pipe:touch hit.tar: give shards of one kind"):
        load_dataset(pattern, image_size=8)
    assert not (tmp_path / "hit.tar").exists()
