"""Files of ids: whose they are, and what is refused."""

import json
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from conftest import randomised
from PIL import Image

from minflextok import FlexTok
from minflextok.cli import codec
from minflextok.cli.flags import printable
from minflextok.cli.parser import main
from minflextok.data import load_dataset


@pytest.fixture
def ids(weights, photos, tmp_path):
    for suffix in (".npz", ".json"):
        main(["encode", str(photos), "--weights", weights, "--out", str(tmp_path / f"i{suffix}")])
    return tmp_path


def decode(file, out, *more):
    main(["decode", str(file), "--out", str(out), "--steps", "1", *more])


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_ids_of_another_tokenizer_are_refused(ids, tmp_path, suffix):
    randomised(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match=r"holds ids of the tokenizer \w{16} .*other is \w{16}"):
        decode(ids / f"i{suffix}", tmp_path / "out", "--weights", str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_another_decoder_decodes_them(ids, weights, tmp_path):
    tok = FlexTok.from_pretrained(weights)
    tok.decoder.head.bias.data += 0.1
    tok.save_pretrained(tmp_path / "more")
    decode(ids / "i.npz", tmp_path / "out", "--weights", str(tmp_path / "more"))


def test_files_of_earlier_versions_still_read_with_a_warning(ids, tmp_path, capsys):
    held = json.loads((ids / "i.json").read_text())
    assert len(held.pop("tokenizer")) == 16
    (ids / "i.json").write_text(json.dumps(held))
    with np.load(ids / "i.npz") as f:
        arrays = {k: f[k] for k in f if k != "tokenizer"}
    np.savez_compressed(ids / "i.npz", **arrays)
    for suffix in (".npz", ".json"):
        decode(ids / f"i{suffix}", tmp_path / suffix)
        assert "does not say which tokenizer" in capsys.readouterr().err
        assert len(list((tmp_path / suffix).iterdir())) == 3


# ---- hostile and damaged files -------------------------------------------------------------------


def bomb(path, shape, claim=None):
    """An .npz of zeros, with a header that claims another shape if asked."""
    header = {"descr": "<i8", "fortran_order": False, "shape": claim or shape}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("ids.npy", "w", force_zip64=True) as f:
            np.lib.format.write_array_header_1_0(f, header)
            for _ in range(shape[0]):
                f.write(bytes(8 * shape[1]))
        for name in ("names", "weights"):
            with archive.open(f"{name}.npy", "w") as f:
                np.lib.format.write_array(f, np.array(["x"] if name == "names" else "x"))


@pytest.mark.parametrize(
    "shape, claim",
    [((200, 2**17), None), ((1, 4), (2**60, 4)), ((1, 4), (10**9, 16)), ((1, 4), (1, 2))],
)
def test_an_archive_is_refused_by_its_headers(tmp_path, shape, claim):
    resource = pytest.importorskip("resource")
    bomb(tmp_path / "i.npz", shape, claim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"i.npz does not hold ids .*(bytes that become|claims)"):
        codec.read_ids(tmp_path / "i.npz")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert time.perf_counter() - start < 2
    assert grown * (1 if sys.platform == "darwin" else 1024) < 1e8


@pytest.mark.parametrize(
    "change",
    [
        {"images": 3},
        {"images": {}},
        {"images": [3]},
        {"images": [{"name": "a", "ids": 5}]},
        {"images": [{"name": "a", "ids": []}]},
        {"images": [{"name": "a", "ids": [1.5]}]},
        {"images": [{"name": "a", "ids": [True]}]},
        {"images": [{"name": "a", "ids": [[1]]}]},
        {"images": [{"name": "a", "ids": "12"}]},
        {"images": [{"name": "a", "ids": [2**70]}]},
        {"images": [{"name": 3, "ids": [1]}]},
        {"images": [{"ids": [1]}]},
        {"weights": 3},
        {"tokenizer": 3},
    ],
)
def test_json_of_another_form_is_refused(ids, change):
    file = ids / "i.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(SystemExit, match=r"i.json does not hold ids \("):
        decode(file, ids / "out")


@pytest.mark.parametrize("text", ["[" * 10**5, "[]", "null", "3", "", "\xff"])
def test_any_json_ends_in_one_line(tmp_path, text):
    (tmp_path / "i.json").write_text(text, encoding="latin-1")
    with pytest.raises(SystemExit, match="does not hold ids") as e:
        decode(tmp_path / "i.json", tmp_path / "out")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("array", [np.ones((2, 3)), np.array([1, 2]), np.array([["a"]])])
def test_arrays_of_another_kind_are_refused(tmp_path, array):
    np.savez(tmp_path / "i.npz", ids=array, names=["a", "b"], weights="x")
    with pytest.raises(ValueError, match="not whole numbers"):
        codec.read_ids(tmp_path / "i.npz")


def test_nothing_is_unpickled(tmp_path):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    np.savez(tmp_path / "i.npz", ids=np.array([Touch()], dtype=object), names=["a"], weights="x")
    (tmp_path / "executed").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="does not hold ids"):
        codec.read_ids(tmp_path / "i.npz")
    assert not (tmp_path / "executed").exists()


# ---- names ---------------------------------------------------------------------------------------


def test_decoded_images_stay_in_their_folder(ids, tmp_path):
    names = ["../../up.png", "/etc/x", "..", "a\nb\x1b[2J.png", "x" * 300, "é" * 200, "C:\\d|e"]
    held = json.loads((ids / "i.json").read_text())
    row = held["images"][0]["ids"]
    held["images"] = [{"name": n, "ids": row} for n in names]
    (ids / "i.json").write_text(json.dumps(held))
    decode(ids / "i.json", tmp_path / "deep/out")
    made = sorted(p.name for p in (tmp_path / "deep/out").iterdir())
    assert made[:4] == ["0000_up.png", "0001_x.png", "0002_...png", "0003_a_b_[2J.png"]
    assert len(made) == 7 and all(name.isprintable() and len(name) < 220 for name in made)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_control_codes_in_file_names_are_escaped(weights, tmp_path, capsys):
    image = load_dataset("cifar10-sample", "test").images[0].permute(1, 2, 0).numpy()
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in/good.png")
    (tmp_path / "in/a\nminflextok: \x1b[2Jfine.png").write_bytes(b"no image")
    main(["encode", str(tmp_path / "in"), "--weights", weights, "--out", str(tmp_path / "i.json")])
    err = capsys.readouterr().err
    assert "\x1b" not in err and "a\\nminflextok: \\x1b[2Jfine.png" in err
    with pytest.raises(SystemExit) as e:
        main(["encode", str(tmp_path / "none\n\x1b"), "--weights", weights])
    assert "none\\n\\x1b" in str(e.value) and "\n" not in str(e.value)
    assert printable("a\udcff\t\u202eé") == "a\\udcff\\t\\u202eé"


def test_the_meta_device_is_a_usage_error(photos, capsys):
    with pytest.raises(SystemExit):
        main(["encode", str(photos), "--device", "meta"])
    assert "'meta' does not work here" in capsys.readouterr().err


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_one_batch_of_images_is_held(weights, photos, tmp_path, monkeypatch, command):
    alive, most, real = [], [], codec.open_image

    def opened(*args):
        import gc
        import weakref

        gc.collect()
        image = real(*args).copy()
        alive.append(weakref.ref(image))
        most.append(sum(r() is not None for r in alive))
        return image

    monkeypatch.setattr(codec, "open_image", opened)
    monkeypatch.setattr(codec, "BATCH", 2)
    more = ["--steps", "1", "--tokens", "1"] if command == "reconstruct" else []
    out = tmp_path / ("o.png" if more else "o.npz")
    main([command, *[str(photos)] * 4, "--weights", weights, "--out", str(out), *more])
    assert len(most) == 12 and max(most) <= 4


def test_the_noise_does_not_depend_on_the_batch(weights, photos, tmp_path, monkeypatch, capsys):
    shown = []
    for size in (64, 2):
        monkeypatch.setattr(codec, "BATCH", size)
        out = ["--out", str(tmp_path / "o.png"), "--steps", "2", "--tokens", "1", "6"]
        main(["reconstruct", str(photos), "--weights", weights, *out])
        shown.append([line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:4]])
    assert shown[0] == shown[1] and torch.tensor(float(shown[0][1][2])) > 0
