"""Token ids on disk: the views of the images, and files that are whole or absent."""

import io
import tarfile

import numpy as np
import pytest
import torch
from conftest import TINY, noise_images, randomised
from PIL import Image

from minflextok import FlexTok
from minflextok.data import Folder, Stream, in_order, to_float
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
    tok, images = randomised(), data(20)
    with pytest.raises(KeyboardInterrupt):
        extract_ids(tok, images, cache=tmp_path, quiet=True, batch_size=4)
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob("*.part"))
    ids, _ = extract_ids(tok, images, cache=tmp_path, quiet=True, batch_size=4)
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
