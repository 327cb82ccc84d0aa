"""The commands on real files."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TINY, randomised
from PIL import Image

from minflextok.cli.parser import main
from minflextok.data import load_dataset


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    randomised().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(load_dataset("cifar10-sample", "test").images[:3]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((40, 30 + i)).save(
            folder / f"{i}.png"
        )
    return folder


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
        rows = json.loads(file.read_text())["images"]
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


def test_demo(tmp_path, capsys):
    main(["demo", "--steps", "1", "--num-images", "4", "--out", str(tmp_path / "demo.png")])
    assert (tmp_path / "demo.png").stat().st_size > 5000 and "PSNR" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, match",
    [
        (["encode", "nowhere.png"], "no file or folder nowhere.png"),
        (["encode", "{photos}", "--tokens", "99"], "num_tokens=99: give a whole number from 1 to"),
        (["encode", "{photos}", "--weights", "nothing"], "no weights 'nothing': shipped are"),
        (["encode", "{photos}", "--out", "ids.txt"], "saved as .npz or .json"),
        (["encode", "{text}"], "no readable image"),
        (["decode", "{text}"], "does not hold ids"),
        (["decode", "nowhere.npz"], "nowhere.npz"),
        (["reconstruct", "{photos}", "--steps", "0"], "steps=0"),
        (
            ["reconstruct", "{photos}", "--tokens", "4", "99"],
            "--tokens 99: cifar10-tiny gives 1 to 16",
        ),
        (["reconstruct", "{photos}", "--apg"], "--apg does nothing at guidance 1"),
        (["evaluate", "--out", "results.txt"], "saved as .json"),
        (
            ["evaluate", "--num-images", "2000"],
            "--num-images 2000: give 2 to 1000 of cifar10-sample",
        ),
        (
            ["train", "tokenizer", "--out", "{tmp}", "--model", "patch_size=5"],
            "not a multiple of patch_size=5",
        ),
        (
            ["train", "tokenizer", "--out", "{tmp}", "--model", "nonsense=5"],
            "unknown TokenizerConfig key 'nonsense'",
        ),
        (["train", "tokenizer", "--out", "{tmp}", "--preset", "d12-d12"], "no default data"),
        (["train", "tokenizer", "--out", "{tmp}", "--lr", "-1"], "lr=-1"),
        (
            [
                "train",
                "tokenizer",
                "--out",
                "{tmp}",
                "--preset",
                "tiny-imagenet",
                "--data",
                "cifar10-sample",
            ],
            "latents of 8 channels: give --vae",
        ),
        (["train", "vae", "--out", "{tmp}", "--preset", "f8"], "preset f8 has no default data"),
        (
            ["train", "vae", "--out", "{tmp}", "--model", "in_channels=5"],
            "unknown VAEConfig key 'in_channels'",
        ),
    ],
)
def test_errors_are_one_line(tmp_path, photos, args, match, capsys):
    (tmp_path / "text.json").write_text("{}")
    args = [
        a.format(photos=photos, text=tmp_path / "text.json", tmp=tmp_path / "run") for a in args
    ]
    with pytest.raises(SystemExit) as e:
        main(args)
    assert (
        re.match("minflextok: error: ", str(e.value))
        and re.search(match, str(e.value))
        and "\n" not in str(e.value)
    )


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


def test_a_device_that_is_not_there_is_a_usage_error(photos, capsys):
    with pytest.raises(SystemExit):
        main(["encode", str(photos), "--device", "nonsense"])
    assert "'nonsense' does not work here" in capsys.readouterr().err


def test_ids_of_a_longer_vocabulary_are_refused(tmp_path, weights):
    np.savez(
        tmp_path / "i.npz",
        ids=np.full((1, 2), 500),
        names=np.array(["x"]),
        weights=np.array(weights),
    )
    with pytest.raises(SystemExit, match="500.*0 to 119"):
        main(["decode", str(tmp_path / "i.npz"), "--out", str(tmp_path)])


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["train"],
        ["train", "tokenizer"],
        ["train", "vae"],
        ["train", "judge"],
        ["encode"],
        ["decode"],
        ["reconstruct"],
        ["evaluate"],
        ["evaluate-prior"],
        ["compare"],
        ["train", "prior"],
        ["generate"],
        ["curves"],
    ],
)
def test_help_describes_every_flag(command, capsys):
    with pytest.raises(SystemExit) as e:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert e.value.code == 0 and "usage: minflextok" in out
    flags = re.findall(r"^  (--[\w-]+)(.*(?:\n {10,}.*)*)", out, re.M)
    assert all(len(text.split()) > 2 for _, text in flags), flags


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "minflextok", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "reconstruct" in done.stdout


def test_ids_do_not_depend_on_the_batch(weights, photos, tmp_path):
    for name, source in (("one", [str(photos / "1.png")]), ("all", [str(photos)])):
        main(["encode", *source, "--weights", weights, "--out", str(tmp_path / f"{name}.json")])
    one, every = (
        json.loads((tmp_path / f"{n}.json").read_text())["images"] for n in ("one", "all")
    )
    assert one[0] == every[1]
    assert torch.tensor(every[0]["ids"]).shape == (6,)
