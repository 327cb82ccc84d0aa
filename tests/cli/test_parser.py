"""Arguments, help and errors of the command line."""

import re
import subprocess
import sys

import pytest

from minflextok.cli.parser import build_parser, main, with_flags


@pytest.mark.parametrize(
    "args, match",
    [
        (["encode", "nowhere.png"], "no file or folder nowhere.png"),
        (["encode", "{photos}", "--tokens", "99"], "--tokens 99: give a whole number from 1 to"),
        (["encode", "{photos}", "--weights", "nothing"], "no weights 'nothing': shipped are"),
        (["encode", "{photos}", "--out", "ids.txt"], "saved as .npz or .json"),
        (["encode", "{text}"], "no readable image"),
        (["decode", "{text}"], "does not hold ids"),
        (["decode", "nowhere.npz"], "nowhere.npz"),
        (["reconstruct", "{photos}", "--steps", "0"], "--steps 0: give a whole number"),
        (
            ["reconstruct", "{photos}", "--tokens", "4", "99"],
            "--tokens 99: cifar10-tiny gives 1 to 16",
        ),
        (["reconstruct", "{photos}", "--apg"], "--apg has no effect at guidance 1"),
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
        (
            ["train", "tokenizer", "--out", "{tmp}", "--lr", "-1"],
            "--lr -1.0: give a positive number",
        ),
        (
            [
                "train",
                "tokenizer",
                "--out",
                "{tmp}",
                "--preset",
                "imagenet64",
                "--data",
                "cifar10-sample",
            ],
            "latents of 16 channels: give --vae",
        ),
        (["train", "vae", "--out", "{tmp}", "--preset", "f8"], "preset f8 has no default data"),
        (
            ["train", "vae", "--out", "{tmp}", "--model", "in_channels=5"],
            "unknown VAEConfig key 'in_channels'",
        ),
    ],
)
def test_errors_are_one_line(tmp_path, photos, args, match, capsys):
    (tmp_path / "text.json").write_text("{}", encoding="utf-8")
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


def test_a_device_that_is_not_there_is_a_usage_error(photos, capsys):
    with pytest.raises(SystemExit):
        main(["encode", str(photos), "--device", "nonsense"])
    assert "'nonsense' does not work here" in capsys.readouterr().err


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


def test_arguments_in_errors_become_flags_of_the_command():
    known = {"steps", "num_images", "tokens", "vae"}
    for message, want in [
        ("steps=0: give a whole number", "--steps 0: give a whole number"),
        ("num_images=7: give 2 to 5", "--num-images 7: give 2 to 5"),
        ("num_tokens=99: give 1 to 16", "--tokens 99: give 1 to 16"),
        ("budgets=99: x gives 1 to 16", "--tokens 99: x gives 1 to 16"),
        (
            "this takes latents: give vae, a VAE with x=8",
            "this takes latents: give --vae, a VAE with x=8",
        ),
        ("patch_size=5 does not divide image_size=8", "patch_size=5 does not divide image_size=8"),
        ("train.steps=5 there, 6 here", "train.steps=5 there, 6 here"),
        ("no file /a/steps=3/x.png", "no file /a/steps=3/x.png"),
        ("https://h/a.tar?steps=3&vae=4: no", "https://h/a.tar?steps=3&vae=4: no"),
    ]:
        assert with_flags(message, known) == want


def test_former_names_still_work():
    parse = build_parser().parse_args
    new = parse(["train", "classifier", "--preset", "classifier", "--out", "x"])
    old = parse(["train", "judge", "--preset", "judge", "--out", "x"])
    assert (old.run, old.preset) == (new.run, new.preset)
    a = parse(["evaluate", "--judge", "mine", "--features", "judge"])
    assert (a.classifier, a.features) == ("mine", "classifier")
    assert parse(["evaluate-prior", "--prior", "x", "--split", "held-out"]).split == "validation"
