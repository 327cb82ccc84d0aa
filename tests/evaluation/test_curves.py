"""Curves of a run and of a reference: read, plotted, compared in words."""

import dataclasses
import json

import pytest
from conftest import RECIPE, TINY, noise_images

from minflextok.cli.parser import main
from minflextok.evaluation import curves
from minflextok.training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for name, steps in (("short", 8), ("long", 12)):
        train_tokenizer(
            TINY,
            dataclasses.replace(RECIPE, steps=steps),
            noise_images(),
            out / name,
            "cpu",
            quiet=True,
        )
    return out


def test_curves_are_those_of_the_log(runs):
    c = curves.read(runs / "short")
    assert c["loss"][0] == [16, 32, 48, 64] and c["images"] == 64  # every 2 steps of 8 images
    assert (
        list(c["psnr"]) == [1, 2, 4, 6] and c["psnr"][6][0] == [32, 64] and c["ids"][0] == [32, 64]
    )
    assert 0 < c["minutes"] < 5 and 0.1 < c["peak_gb"] < 20
    log = [json.loads(line) for line in (runs / "short/metrics.jsonl").read_text().splitlines()]
    assert c["psnr"][1][1] == [r["psnr"]["1"] for r in log if "psnr" in r]


def test_the_command_draws_and_compares_at_equal_images(runs, tmp_path, capsys):
    main(
        [
            "curves",
            str(runs / "long"),
            "--reference",
            str(runs / "short"),
            "--out",
            str(tmp_path / "c.png"),
        ]
    )
    out = capsys.readouterr().out
    assert (
        "after 64 images" in out
        and "PSNR at 6" in out
        and (tmp_path / "c.png").stat().st_size > 10_000
    )
    loss = curves.read(runs / "long")["loss"][1][3]
    assert f"{loss:8.3f}" in out  # the long run's value at the short one's end
    same = curves.verdict(curves.read(runs / "short"), curves.read(runs / "short"))
    assert same.endswith("no worse than the reference")
    worse = curves.read(runs / "short")
    worse["psnr"][6] = (worse["psnr"][6][0], [v - 1 for v in worse["psnr"][6][1]])
    assert "behind by more than 0.5 dB" in curves.verdict(worse, curves.read(runs / "short"))


def test_what_is_no_run_is_named(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match="no metrics.jsonl"):
        curves.read(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "loss": 1.0, "images": 16, "seconds": 1}\n{"step": 4, "lo'
    )
    with pytest.raises(ValueError, match="no curve yet"):
        curves.read(tmp_path)


GOOD = [
    {"step": 2, "loss": 1.0, "images": 16, "seconds": 1.0},
    {"step": 2, "psnr": {"1": 3.0}, "ids_used": [4, 5]},
]


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        '{"a": 1}',
        '{"step": "x"}',
        '{"step": 0, "loss": 1.0, "images": 1, "seconds": 1}',
        "null",
        "[" * 10**5,
        '{"step": 2, "loss": "x", "images": 16, "seconds": 1}',
        '{"step": 2, "loss": 1.0}',
        '{"step": 2, "psnr": 3, "ids_used": 3}',
        '{"step": 2, "psnr": {"x": 3}, "ids_used": []}',
    ],
)
def test_odd_lines_are_an_error_that_names_the_log(tmp_path, line):
    rows = [json.dumps(row) for row in GOOD]
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join([line, *rows]) + "\n")
    with pytest.raises(ValueError, match="metrics.jsonl") as e:
        curves.read(tmp_path)
    assert "\n" not in str(e.value)
    file.write_text("\n".join(rows) + "\n")
    assert curves.read(tmp_path)["images"] == 16
