import io
import tarfile
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minflextok.data import (
    Folder,
    Stream,
    load_dataset,
    open_image,
    shuffled,
    to_float,
    to_uint8,
)
from minflextok.data.shapes import (
    Thing,
    caption,
    check,
    holds,
    make_shapes,
    parse_caption,
    random_scene,
    read_scene,
    render,
)

# ---- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side, least", [(16, 0.98), (32, 0.985), (64, 0.99)])
def test_the_checker_reads_what_was_rendered_and_nothing_else(side, least):
    images, captions, _ = make_shapes(200, side, seed=11)
    assert np.mean([check(i, c).met for i, c in zip(images, captions, strict=True)]) >= least
    assert (
        np.mean([check(i, c).met for i, c in zip(images, captions[1:] + captions[:1], strict=True)])
        < 0.02
    )
    noisy = (
        (images + np.random.default_rng(0).normal(0, 10, images.shape))
        .clip(0, 255)
        .astype(np.uint8)
    )
    assert np.mean([check(i, c).met for i, c in zip(noisy, captions, strict=True)]) >= least - 0.03


def test_the_checker_says_what_is_wrong():
    scene = [
        Thing("circle", "red", "small", 0.25, 0.25),
        Thing("square", "blue", "large", 0.25, 0.75),
    ]
    image = render(scene, 32)
    assert check(image, "a small red circle above a large blue square").met
    assert check(image, "A red circle  above a blue square.").met
    for text, field in [
        ("a red circle below a blue square", "wrong_relations"),
        ("a green circle above a blue square", "missing"),
        ("a red circle", "extra"),
        ("a large red circle above a blue square", "missing"),
    ]:
        verdict = check(image, text)
        assert not verdict.met and getattr(verdict, field), text
    assert read_scene(np.full((3, 16, 16), 24, np.uint8)) == []


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_captions_are_true_and_parse_back(seed, sizes):
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    things, relations = parse_caption(caption(scene, sizes, rng))
    assert [(t.shape, t.colour, t.size) for t in things] == [
        (t.shape, t.colour, t.size if sizes else None) for t in scene
    ]
    assert all(holds(a, r, b) for a, r, b in zip(scene[:-1], relations, scene[1:], strict=True))


def test_shapes_are_reproducible_and_splits_differ():
    a, b = make_shapes(20, 16, 0)[0], make_shapes(20, 16, 0)[0]
    assert np.array_equal(a, b)
    train, test = load_dataset("shapes", "train"), load_dataset("shapes", "test")
    assert len(train) == 20_000 and len(test) == 2_000 and len(test.captions) == 2_000
    assert len(np.unique(train.images[:2000].flatten(1).numpy(), axis=0)) > 1900
    assert not any(
        torch.equal(i, j) for i, j in zip(train.images[:50], test.images[:50], strict=True)
    )


def test_shapes_bad_input():
    for text in ("", "a pink circle", "red circle", "a red circle near a blue square"):
        with pytest.raises(ValueError, match="cannot read the caption"):
            parse_caption(text)
    with pytest.raises(ValueError, match="8x8"):
        load_dataset("shapes", image_size=8)
    with pytest.raises(ValueError, match="uint8"):
        read_scene(np.zeros((16, 16, 3)))


# ---- order -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_each_epoch_shows_each_image_once_and_resuming_changes_nothing(n, batch, start):
    steps = list(islice(shuffled(n, batch, seed=3), 30))
    flat = torch.cat(steps)
    for epoch in range(len(flat) // n):
        assert sorted(flat[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
    resumed = list(islice(shuffled(n, batch, seed=3, start=start), 5))
    assert all(torch.equal(a, b) for a, b in zip(resumed, steps[start:], strict=False))


def test_two_processes_share_a_batch():
    data = load_dataset("cifar10-sample", "test")
    whole = next(data.batches(8, 0))
    parts = [next(data.batches(8, 0, rank=r, world=2)) for r in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


# ---- embedded and own images -----------------------------------------------------------------------------------------


def test_embedded_sample_is_real_small_and_split():
    train, test = load_dataset("cifar10-sample", "train"), load_dataset("cifar10-sample", "test")
    assert train.images.shape == (4000, 3, 32, 32) and test.images.shape == (1000, 3, 32, 32)
    assert len(train.classes) == 10 and set(train.labels.tolist()) == set(range(10))
    seen = {i.numpy().tobytes() for i in train.images}
    assert sum(i.numpy().tobytes() in seen for i in test.images) == 0


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"no shards in {SHARED / 'data'}")
def test_shards_outside_the_repository_read_the_same_way():
    sample = load_dataset("cifar10-sample", "test")
    full = load_dataset(f"{SHARED}/data/cifar10-{{split}}.tar.gz", "test")
    assert len(full) == 10_000 and torch.equal(full.images[:1000], sample.images)


def test_uint8_round_trip():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(x)), x)


def picture(path, size=(12, 10), colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def shard(path, members: dict[str, bytes]):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as t:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return path


def jpeg(value=0, size=(8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


def test_folders(tmp_path):
    for i in range(3):
        picture(tmp_path / "set/train/cat" / f"{i}.png", (12 + i, 10))
        picture(tmp_path / "set/val/dog" / f"{i}.jpg")
        picture(tmp_path / "flat" / f"{i}.png")
    (tmp_path / "set/train/cat/broken.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"broken.png|1 unreadable images skipped, 3 read"):
        train = load_dataset(tmp_path / "set", "train", image_size=8)
    assert (
        train.images.shape == (3, 3, 8, 8)
        and train.classes == ["cat"]
        and train.labels.tolist() == [0, 0, 0]
    )
    assert load_dataset(tmp_path / "set", "test", image_size=8).classes == ["dog"]
    assert load_dataset(tmp_path / "flat").labels is None
    with pytest.raises(ValueError, match=r"1.png is 10x13, others 10x12: give an image_size"):
        load_dataset(tmp_path / "set", "train")
    with pytest.raises(FileNotFoundError, match="no folder test or val"):
        load_dataset(tmp_path / "flat", "test")


def test_bad_sets_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_text("x")
    (tmp_path / "rotten").mkdir()
    (tmp_path / "rotten/a.png").write_bytes(b"")
    (tmp_path / "hollow/cat").mkdir(parents=True)
    picture(tmp_path / "hollow/dog/1.png")
    picture(tmp_path / "mixed/cat/1.png")
    picture(tmp_path / "mixed/2.png")
    for name, match in [
        ("empty", "holds no images"),
        ("text", "holds no images"),
        ("hollow", "cat"),
        ("mixed", "2.png"),
    ]:
        with pytest.raises(ValueError, match=match):
            load_dataset(tmp_path / name)
    with (
        pytest.warns(UserWarning, match="a.png"),
        pytest.raises(ValueError, match="no readable image"),
    ):
        load_dataset(tmp_path / "rotten")
    with pytest.raises(FileNotFoundError, match="no data set 'nonsense': give shapes"):
        load_dataset("nonsense")
    with pytest.raises(ValueError, match="split='valid'"):
        load_dataset("shapes", "valid")


def test_shards(tmp_path):
    for s in range(2):
        shard(
            tmp_path / f"s-{s}.tar",
            {f"{s}{i}.{e}": c for i in range(3) for e, c in (("png", jpeg(s)), ("cls", b"%d" % s))},
        )
    data = load_dataset(str(tmp_path / "s-{0..1}.tar"))
    assert data.images.shape == (6, 3, 8, 8) and data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(FileNotFoundError, match="s-2.tar"):
        load_dataset(str(tmp_path / "s-{0..2}.tar"))
    for members, match in [
        ({"a.png": jpeg(), "a.cls": b"cat"}, "not a class number"),
        ({"a.png": jpeg(), "a.cls": b"1", "b.png": jpeg()}, "labelled in part"),
        ({"a.txt": b"x"}, "no readable image"),
    ]:
        with pytest.raises(ValueError, match=match):
            load_dataset(shard(tmp_path / "bad.tar.gz", members))
    with pytest.warns(UserWarning, match="bad"):
        assert (
            len(
                load_dataset(
                    shard(tmp_path / "some.tar", {"ok.png": jpeg(), "bad.png": b"\xff\xd8nothing"})
                )
            )
            == 1
        )


@pytest.mark.parametrize("cut", [0, 100, 5000, 20_000])
def test_a_truncated_tar_is_an_error(tmp_path, cut):
    whole = shard(tmp_path / "w.tar", {f"{i}.png": jpeg(i) for i in range(20)}).read_bytes()
    (tmp_path / "w.tar").write_bytes(whole[:cut])
    with pytest.raises(ValueError, match="truncated"):
        load_dataset(tmp_path / "w.tar")
    (tmp_path / "j.tar.gz").write_bytes(b"junk" * 500)
    with pytest.raises(ValueError, match="truncated, or no tar"):
        load_dataset(tmp_path / "j.tar.gz")


def test_hidden_folders_do_not_shift_the_labels(tmp_path):
    for name in (".thumbs", "cat", "dog"):
        picture(tmp_path / name / "1.png")
    data = load_dataset(tmp_path)
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 1]


def test_photos_are_turned_upright_and_16_bits_are_scaled(tmp_path):
    sideways = Image.new("RGB", (8, 4))
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg", None).shape == (3, 8, 4)
    Image.fromarray(np.arange(0, 65280, 1020, dtype=np.uint16).reshape(8, 8)).save(
        tmp_path / "b.png"
    )
    assert len(np.unique(open_image(tmp_path / "b.png", None))) > 60


def test_a_truncated_shard_is_an_error(tmp_path):
    whole = shard(
        tmp_path / "w.tar.gz", {f"{i}.png": np.random.default_rng(i).bytes(3000) for i in range(20)}
    ).read_bytes()
    (tmp_path / "w.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="truncated"):
        load_dataset(tmp_path / "w.tar.gz")


def test_large_folders_and_shards_stay_on_disk_with_the_same_batches(tmp_path, monkeypatch):
    for i in range(10):
        picture(tmp_path / "big/a" / f"{i}.png", (8, 8), (i, 0, 0))
    memory = next(load_dataset(tmp_path / "big", image_size=8).batches(4, 0, start=2))
    monkeypatch.setattr("minflextok.data.datasets.IN_MEMORY_BYTES", 100)
    folder = load_dataset(tmp_path / "big", image_size=8, workers=0)
    assert isinstance(folder, Folder) and torch.equal(next(folder.batches(4, 0, start=2)), memory)
    shard(tmp_path / "s.tar", {f"{i}.png": jpeg(i) for i in range(7)})
    stream = load_dataset(tmp_path / "s.tar", image_size=8, workers=0)
    assert isinstance(stream, Stream) and stream.head(3).shape == (3, 3, 8, 8)
    first = list(islice(stream.batches(7, 0), 3))
    assert [sorted(x[:, 0, 0, 0].tolist()) for x in first] == [list(range(7))] * 3
    assert all(
        torch.equal(a, b) for a, b in zip(first, islice(stream.batches(7, 0), 3), strict=False)
    )
    with pytest.raises(ValueError, match="image_size"):
        load_dataset(tmp_path / "s.tar")


def test_open_image_crops_the_centre():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    out = io.BytesIO()
    Image.fromarray(wide).save(out, "PNG")
    assert open_image(out.getvalue(), 10).min() == 255
    assert open_image(out.getvalue(), None).shape == (3, 10, 30)


def test_cifar10_offline_names_the_alternatives(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("minflextok.data.datasets.CIFAR10", offline)
    with pytest.raises(OSError, match=r"no network.*cifar10-sample.*shapes"):
        load_dataset("cifar10")
