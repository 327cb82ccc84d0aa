"""Token ids on disk: the views of the images, and files that are whole or absent."""

import io
import os
import tarfile

import numpy as np
import pytest
import torch
from conftest import TINY, noise_images, on_two_ranks, randomised
from filelock import FileLock
from image_files import png, shard
from PIL import Image

from minflextok import FlexTok
from minflextok.data import Folder, Stream, identity, in_order, load_dataset, to_float
from minflextok.training import token_cache
from minflextok.training.token_cache import extract_ids, views

K = TINY.num_registers


def data(n=40, seed=0, **more):
    return noise_images(n, seed, labels=torch.arange(n) % 5, classes=list("abcde"), **more)


def test_views_are_the_image_its_mirror_and_its_neighbours():
    x = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).remainder(251).to(torch.uint8)
    v = views(x, flip=True, crops=5)
    assert v.shape == (2, 10, 3, 32, 32)
    assert torch.equal(v[:, 0], x) and torch.equal(v[:, 1::2], v[:, ::2].flip(-1))
    moved = {
        tuple(s)
        for i in (2, 4, 6, 8)
        for s in [
            (dy, dx)
            for dy in (-2, 2)
            for dx in (-2, 2)
            if torch.equal(v[:, i, :, 4:28, 4:28], x[:, :, 4 + dy : 28 + dy, 4 + dx : 28 + dx])
        ]
    }
    assert len(moved) == 4
    assert torch.equal(v[0, 2, :, 0, 2:], x[0, :, 2, :30])  # mirrored in at the edge


def test_ids_are_extracted_once_for_each_tokenizer_and_set(tmp_path, monkeypatch):
    calls, real = [], FlexTok.encode
    monkeypatch.setattr(FlexTok, "encode", lambda *a, **k: calls.append(1) or real(*a, **k))
    tok, images = randomised(), data(20)

    def made(*a, **k):
        before = len(calls)
        found = extract_ids(*a, cache=tmp_path, quiet=True, batch_size=8, **k)
        return *found, len(calls) > before

    ids, known, new = made(tok, images, flip=True)
    assert new and ids.shape == (20, 2, K) and isinstance(ids, np.memmap) and ids.dtype == np.uint16
    want = torch.stack([real(tok, to_float(x)) for x in (images.images, images.images.flip(-1))], 1)
    assert torch.equal(torch.from_numpy(ids.astype(np.int64)), want) and torch.equal(
        known, images.labels
    )
    again, _, new = made(tok, data(20), flip=True)
    assert not new and np.array_equal(again, ids)
    assert made(tok, images, flip=False)[2] and made(tok, images, flip=True, crops=5)[2]
    other, _, new = made(randomised(seed=1), images, flip=True)
    assert new and not np.array_equal(other, ids)
    assert made(tok, data(20, seed=1), flip=True)[2]
    assert made(tok, data(20, captions=["x"] * 20), flip=True)[2] is False


def test_half_an_extraction_is_never_trusted(tmp_path, monkeypatch):
    real, calls = FlexTok.encode, []

    def encode(*a, **k):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*a, **k)

    monkeypatch.setattr(FlexTok, "encode", encode)
    monkeypatch.setattr(token_cache, "PART", 8)
    tok, images = randomised(), data(20)
    with pytest.raises(KeyboardInterrupt):
        extract_ids(tok, images, cache=tmp_path, quiet=True, batch_size=4)
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.rglob("*.part"))
    ids, _ = extract_ids(tok, images, cache=tmp_path, quiet=True, batch_size=4)
    assert len(calls) == 3 + 3  # of five batches, the first part's two were kept
    assert not list(tmp_path.glob("*.parts"))
    assert np.array_equal(ids[:, 0], real(tok, to_float(images.images)).numpy())
    path = next(p for p in tmp_path.glob("*.npy") if "labels" not in p.name)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="is damaged .* delete it"):
        extract_ids(tok, images, cache=tmp_path, quiet=True)


def test_folders_and_streams_are_read_in_order(tmp_path):
    images = data(7).images
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, image in enumerate(images):
            file = tmp_path / f"{i}.png"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
            for name, content in (
                (f"{i}.png", file.read_bytes()),
                (f"{i}.cls", str(i % 5).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    files = [str(tmp_path / f"{i}.png") for i in range(7)]
    tok = randomised()
    want, known = extract_ids(tok, data(7), cache=tmp_path / "c", quiet=True)
    for source in (
        Folder("f", files, torch.arange(7) % 5, list("abcde"), 8, 0),
        Stream("s", [str(tmp_path / "a.tar")], 8, 0),
    ):
        found = list(in_order(source, 3))
        assert [len(x) for x, _ in found] == [3, 3, 1] and torch.equal(
            torch.cat([x for x, _ in found]), images
        )
        ids, labels = extract_ids(tok, source, cache=tmp_path / "c", quiet=True, batch_size=3)
        assert np.array_equal(ids, want) and torch.equal(labels, known)


def stream_of(tmp_path, *labels):
    """A stream of shards, one for each list of labels (None: no class)."""
    shards = []
    for s, of_shard in enumerate(labels):
        shards.append(str(tmp_path / f"{s}.tar"))
        labelled_shard(tmp_path / f"{s}.tar", of_shard, first=5 * s)
    return Stream("s", shards, 8, 0)


def test_a_stream_is_extracted_shard_by_shard_and_goes_on_where_it_was_killed(
    tmp_path, monkeypatch
):
    stream = stream_of(tmp_path, [0, 1, 2], [], [3, 4], [1])
    real, seen = FlexTok.encode, []

    def encode(self, x, *a, **k):
        seen.append(len(x))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, x, *a, **k)

    monkeypatch.setattr(FlexTok, "encode", encode)
    tok = randomised()
    with pytest.raises(KeyboardInterrupt):
        extract_ids(tok, stream, cache=tmp_path / "c", quiet=True)
    ids, labels = extract_ids(tok, stream, cache=tmp_path / "c", quiet=True)
    assert seen == [3, 2, 1, 1] and labels.tolist() == [0, 1, 2, 3, 4, 1]
    images = torch.cat([x for x, _ in in_order(stream, 4)])
    assert np.array_equal(ids[:, 0], real(tok, to_float(images)).numpy())
    assert not list((tmp_path / "c").glob("*.parts"))


def test_a_remote_shard_that_fails_is_no_full_disk(tmp_path, monkeypatch):
    paths = stream_of(tmp_path, [0], [1]).shards
    stream = Stream("s", [f"pipe:cat {path}" for path in paths], 8, 0)
    monkeypatch.setattr(token_cache, "identity", lambda *_, **__: "known")
    (tmp_path / "1.tar").unlink()
    with pytest.raises(ConnectionError, match="^cannot read pipe:cat .*1.tar: the command ended"):
        extract_ids(randomised(), stream, cache=tmp_path / "c", quiet=True)


HASH = """
from minflextok.data import Stream, identity
from minflextok.training.runtime import Ranks

ranks = Ranks("cpu")
urls = [f"pipe:echo {ranks.rank} >> {path}.read; cat {path}" for path in SHARDS]
found = identity(Stream("s", urls, 8, 0), content=True)
assert found == ALONE, (found, ALONE)
ranks.close()
"""


def test_ranks_share_the_hashing_of_a_stream(tmp_path):
    """Each shard is read once, by one of the ranks, and the hash is that of a single process."""
    paths = stream_of(tmp_path, [0], [1, 2], [], [3, 4], [1]).shards
    alone = identity(Stream("s", paths, 8, 0), content=True)
    (tmp_path / "hash.py").write_text(f"SHARDS, ALONE = {paths}, {alone!r}\n{HASH}")
    on_two_ranks(tmp_path / "hash.py")
    readers = [(tmp_path / f"{i}.tar.read").read_text().split() for i in range(5)]
    assert readers == [["0"], ["1"], ["0"], ["1"], ["0"]]


def test_a_set_may_have_more_parts_than_a_process_may_open_files(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource", reason="only POSIX limits the open files")
    monkeypatch.setattr(token_cache, "PART", 1)
    tok, images = randomised(), data(80)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(tmp_path / "x", "wb") as f:  # its number is that of the open files, or more
        resource.setrlimit(resource.RLIMIT_NOFILE, (f.fileno() + 40, hard))
    try:
        ids, _ = extract_ids(tok, images, cache=tmp_path, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert np.array_equal(ids[:, 0], tok.encode(to_float(images.images)).numpy())


def test_a_part_that_another_process_writes_is_left_to_it(tmp_path, monkeypatch):
    """The first shard is taken by another process until all others are written."""
    stream, tok, order = stream_of(tmp_path, [0], [1], [2]), randomised(), []
    real = token_cache.write_part

    def write_part(file, tok, data, part, *options):
        order.append(data.shards.index(part))
        if len(order) == 2:
            taken.release()
        return real(file, tok, data, part, *options)

    extract_ids(tok, stream, cache=tmp_path / "a", quiet=True)
    name = next(p for p in (tmp_path / "a").glob("*.npy") if "labels" not in p.name).name
    first = token_cache.part_path(tmp_path / "b" / name, 0)
    first.parent.mkdir(parents=True)
    monkeypatch.setattr(token_cache, "write_part", write_part)
    with FileLock(first.with_suffix(".lock"), thread_local=False) as taken:
        extract_ids(tok, stream, cache=tmp_path / "b", quiet=True)
    assert order == [1, 2, 0]


def test_streams_without_images_or_labelled_in_part_are_refused(tmp_path):
    tok = randomised()
    with pytest.raises(ValueError, match="no readable image"):
        extract_ids(tok, stream_of(tmp_path, [], []), cache=tmp_path / "c", quiet=True)
    with pytest.raises(ValueError, match="labelled in part"):
        extract_ids(tok, stream_of(tmp_path, [0], [None]), cache=tmp_path / "c", quiet=True)


# ---- what a cache depends on ---------------------------------------------------------------------


def labelled_shard(path, labels, first=0):
    members = [(f"{i}.png", png(10 * (first + i))) for i in range(len(labels))]
    members += [(f"{i}.cls", str(k).encode()) for i, k in enumerate(labels) if k is not None]
    shard(path, sorted(members))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("first", [[0, 1, 2, 0], [None] * 4])
@pytest.mark.parametrize("remote", [False, True])
def test_corrected_and_added_labels_are_used(tmp_path, monkeypatch, streamed, first, remote):
    if streamed:
        monkeypatch.setattr("minflextok.data.load.IN_MEMORY_BYTES", 100)
    path = tmp_path / "a.tar"
    name = f"pipe:cat {path}" if remote else str(path)
    tok, found = randomised(), []
    for labels in (first, [2, 1, 0, 1]):
        labelled_shard(path, labels)
        os.utime(path, (1, 1))  # the same date, and often the same size
        data = Stream(name, [name], 8, 0) if streamed else load_dataset(name, image_size=8)
        if isinstance(data, Stream) != (streamed or remote):
            pytest.skip("shards behind a pipe are streamed")
        found.append(extract_ids(tok, data, cache=tmp_path / "c", quiet=True))
    assert found[1][1].tolist() == [2, 1, 0, 1]
    assert found[0][1] is None if first[0] is None else found[0][1].tolist() == first
    assert np.array_equal(found[0][0], found[1][0])


def test_labels_of_folders_are_those_of_the_folders(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(50 * i))
    files, tok = [str(tmp_path / f"{i}.png") for i in range(4)], randomised()
    for labels in (torch.arange(4), torch.tensor([3, 3, 0, 0]), None):
        folder = Folder("f", files, labels, list("abcd"), 8, 0)
        found = extract_ids(tok, folder, cache=tmp_path / "c", quiet=True)[1]
        assert found is None if labels is None else torch.equal(found, labels)
    assert len(list((tmp_path / "c").glob("*.npy"))) == 1


def test_ids_of_one_precision_are_not_served_to_another(tmp_path):
    images, exact = data(20), randomised()
    rounded = randomised().to(torch.bfloat16).float()
    assert exact.fingerprint() == rounded.fingerprint()

    def cached(tok):
        ids, _ = extract_ids(tok, images, cache=tmp_path, quiet=True)
        want = tok.encode(to_float(images.images)).numpy()
        assert np.array_equal(ids[:, 0], want)
        return len(list(tmp_path.glob("*.npy")))

    assert [cached(exact), cached(exact), cached(rounded)] == [1, 1, 2]
    assert cached(randomised().to(torch.bfloat16)) == 3
    with torch.autocast("cpu", torch.bfloat16):
        assert cached(exact) == 4
