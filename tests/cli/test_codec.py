"""encode, decode, reconstruct and demo on real files."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from minflextok.cli import codec
from minflextok.cli.parser import main


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_encode_then_decode(tmp_path, weights, photos, suffix, capsys):
    file = tmp_path / f"ids{suffix}"
    main(
        [
            "encode",
            str(photos),
            str(photos / "0.png"),
            "--weights",
            weights,
            "--tokens",
            "4",
            "--out",
            str(file),
        ]
    )
    assert "4 images" in capsys.readouterr().out
    if suffix == ".json":
        rows = json.loads(file.read_text(encoding="utf-8"))["images"]
        ids, names = np.array([r["ids"] for r in rows]), [r["name"] for r in rows]
    else:
        with np.load(file, allow_pickle=False) as f:
            ids, names = f["ids"], f["names"].tolist()
    assert (
        ids.shape == (4, 4)
        and names == ["0.png", "1.png", "2.png", "0.png"]
        and (ids[0] == ids[3]).all()
    )
    main(["decode", str(file), "--out", str(tmp_path / "out"), "--steps", "2"])
    made = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert made == ["0000_0.png", "0001_1.png", "0002_2.png", "0003_0.png"]
    assert Image.open(tmp_path / "out/0001_1.png").size == (TINY.image_size,) * 2


def test_reconstruct_prints_a_table_and_saves_a_picture(tmp_path, weights, photos, capsys):
    main(
        [
            "reconstruct",
            str(photos),
            "--weights",
            weights,
            "--steps",
            "2",
            "--tokens",
            "1",
            "6",
            "--out",
            str(tmp_path / "a/r.png"),
        ]
    )
    rows = re.findall(r"^ +(\d+) +(\d+) +([\d.]+) +([\d.]+)$", capsys.readouterr().out, re.M)
    assert [(int(k), int(b)) for k, b, _, _ in rows] == [(1, 1), (6, 6)]
    assert Image.open(tmp_path / "a/r.png").size[0] > 100


def test_bad_ids_files(tmp_path, weights):
    good = {"weights": weights, "images": [{"name": "a", "ids": [1, 2]}]}
    for change, match in [
        ({"weights": None}, "does not hold ids"),
        ({"images": []}, "0 rows"),
        ({"images": [{}]}, "ids"),
    ]:
        (tmp_path / "i.json").write_text(json.dumps(good | change))
        with pytest.raises(SystemExit, match=match):
            main(["decode", str(tmp_path / "i.json"), "--out", str(tmp_path)])
    (tmp_path / "i.json").write_text(json.dumps(good))
    for k in ("0", "-1", "3"):
        with pytest.raises(SystemExit, match=rf"--tokens {k}: .* give 1 to 2"):
            main(["decode", str(tmp_path / "i.json"), "--out", str(tmp_path), "--tokens", k])


def test_ids_of_a_longer_vocabulary_are_refused(tmp_path, weights):
    np.savez(
        tmp_path / "i.npz",
        ids=np.full((1, 2), 500),
        names=np.array(["x"]),
        weights=np.array(weights),
    )
    with pytest.raises(SystemExit, match="500.*0 to 119"):
        main(["decode", str(tmp_path / "i.npz"), "--out", str(tmp_path)])


def test_ids_do_not_depend_on_the_batch(weights, photos, tmp_path):
    for name, source in (("one", [str(photos / "1.png")]), ("all", [str(photos)])):
        main(["encode", *source, "--weights", weights, "--out", str(tmp_path / f"{name}.json")])
    one, every = (
        json.loads((tmp_path / f"{n}.json").read_text(encoding="utf-8"))["images"]
        for n in ("one", "all")
    )
    assert one[0] == every[1]
    assert torch.tensor(every[0]["ids"]).shape == (6,)


def test_encode_holds_one_batch_of_images(weights, photos, tmp_path, monkeypatch):
    """Ids are the same whatever the size of the batches, and unreadable files leave no gap."""
    main(["encode", str(photos), "--weights", weights, "--out", str(tmp_path / "all.json")])
    monkeypatch.setattr(codec, "BATCH", 2)
    main(["encode", str(photos), "--weights", weights, "--out", str(tmp_path / "two.json")])
    a, b = ((tmp_path / f"{n}.json").read_text(encoding="utf-8") for n in ("all", "two"))
    assert a == b and len(json.loads(a)["images"]) == 3


def test_a_photo_with_a_broken_file_beside_it_is_encoded(weights, photos, tmp_path, capsys):
    Image.open(photos / "0.png").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "._good.png").write_bytes(b"litter")
    main(["encode", str(tmp_path), "--weights", weights, "--out", str(tmp_path / "i.json")])
    assert re.search("warning: skipped unreadable image .*bad.png", capsys.readouterr().err)
    rows = json.loads((tmp_path / "i.json").read_text(encoding="utf-8"))["images"]
    assert [r["name"] for r in rows] == ["good.png"]


def test_demo_shows_the_shipped_tokenizers_at_their_samplers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["demo", "--steps", "1", "--num-images", "2"])
    out = capsys.readouterr().out
    assert re.findall(r"guidance ([\d.]+)", out) == ["2", "1.25"]
    for name in ("shapes32", "cifar10-64"):
        assert (tmp_path / f"outputs/demo-{name}.png").stat().st_size > 5000


def test_demo_of_weights_shows_these_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["demo", "--weights", "cifar10-tiny", "--steps", "1", "--num-images", "4"])
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["demo.png"]
    out = capsys.readouterr().out
    assert "PSNR" in out and "guidance 1" in out and "the first 4 of cifar10-sample" in out
