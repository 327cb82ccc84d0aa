"""The small experiments behind the recipe: one change at a time, each trained at equal cost.

    python -m minflextok.experiments.sweep --data cifar10-train.tar.gz [--steps 400]
    python -m minflextok.experiments.sweep --data cifar10-train.tar.gz --minutes 10 [--teacher NAME]
    python -m minflextok.experiments.sweep --data cifar10-train.tar.gz --preset cifar10 --sizes

With equal steps, a change is scored by the one-step PSNR. With equal minutes of one processor core,
it is also scored by rFID and classification accuracy of reconstructions, without and with guidance.
Both on validation images of the train split, never on the test split. Results are kept: sweep.json,
sweep_minutes.json or sweep_sizes.json, and the table beside it; a stopped sweep resumes, and
several commands may measure different rows at once. One seed each: differences below about 0.2 dB
are not significant.

With --train-on DEVICE, a row trains there for as many images as this processor sees in the minutes:
--speeds measures its speed for each row first, in turns, on an otherwise idle machine.
"""

import argparse
import copy
import dataclasses
import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import TokenizerConfig, TrainConfig, require
from ..data import Dataset, load_dataset, validation_split
from ..evaluation.figures import save
from ..evaluation.reports import write_results
from ..evaluation.settings import EvaluationSettings
from ..evaluation.tokenizer import Evaluation
from ..precision import precision
from ..presets import PRESETS, RECIPES
from ..tokenizer import FlexTok
from ..training.tokenizer import train_tokenizer
from ..weights import write_atomic
from .equal_time import log_lines, steps_per_second, suited_to
from .sweep_rows import Setting, row_of
from .sweep_tables import plot_sizes, table

# Settings that cost no time: a speed is measured with these.
SAME_COST: dict[str, Any] = {"decay_from": 0.4, "muon_lr": 2.5, "ema": 0.99, "seed": 0}


def measure(
    name: str, setting: Setting, data: Dataset, out: Path, images_per_second: float = 0.0
) -> dict:
    """Train the preset with one change and score it. images_per_second: the speed of the processor
    whose time counts, for a training elsewhere."""
    config, recipe, teacher = row_of(name, setting)
    at_equal_time = recipe.minutes > 0
    if setting.train_on:
        steps = max(1, round(60 * recipe.minutes * images_per_second / recipe.batch_size))
        recipe = dataclasses.replace(
            recipe, steps=steps, eval_every=steps, minutes=0.0, processor_time=False
        )
        recipe = suited_to(setting.train_on, recipe)
    device = setting.train_on or "cpu"
    tok = train_tokenizer(config, recipe, data, out, device, quiet=True, teacher=teacher)
    shutil.rmtree(out / "checkpoints")  # a finished row is not resumed
    found = read_log(out)
    if at_equal_time:
        validation = data.select(validation_split(len(data), recipe, data.name)[1])
        found |= {
            f"guidance {guidance:g}": score(tok, str(out), validation, guidance)
            for guidance in (1.0, 2.0)
        }
    return found


def read_log(run: Path) -> dict:
    """Loss, one-step PSNR and code usage at the end of a run, from its log."""
    lines = log_lines(run)
    losses = [line for line in lines if "loss" in line]
    last = next(line for line in reversed(lines) if "psnr" in line)
    return {
        "psnr": last["psnr"],
        "ids": round(float(np.mean(last["ids_used"]))),
        "loss": round(float(np.mean([line["loss"] for line in losses[-5:]])), 4),
        "images": losses[-1]["images"],
        "seconds": round(losses[-1]["seconds"], 1),
    }


def score(
    tok: FlexTok, weights: str, data: Dataset, guidance: float, features: str = "classifier"
) -> dict:
    """rFID in a space of features and classification accuracy of reconstructions, by token
    budget."""
    budgets = sorted({k for k in (1, 4, 8) if k < tok.config.num_registers})
    settings = EvaluationSettings(
        budgets=[*budgets, tok.config.num_registers],
        steps=8,
        features=features,
        guidance=guidance,
        bf16=True,
    )
    rows = Evaluation(tok, weights, data, settings).run()["tokens"]
    names = ("rfid", "accuracy")
    return {k: {n: round(row[n]["mean"], 4) for n in names} for k, row in rows.items()}


# ---- the command ---------------------------------------------------------------------------------


def measure_speeds(setting: Setting, data: Dataset, out: Path, turns: int = 2) -> None:
    """Training images per second of each row on this processor, the best of some turns."""
    best: dict[tuple, float] = {}

    def short(name: str) -> tuple[TokenizerConfig, TrainConfig, str | None]:
        config, recipe, teacher = row_of(name, setting)
        if config.repa_weight:
            config = dataclasses.replace(config, repa_weight=1.0)
        size = min(recipe.batch_size, 64)  # larger batches are no faster on a CPU
        recipe = dataclasses.replace(
            recipe, **SAME_COST, steps=8, eval_every=8, minutes=0.0, batch_size=size
        )
        return config, recipe, teacher

    for _ in range(turns):
        for config, recipe, teacher in dict.fromkeys(map(short, setting.changes)):
            run = partial(_short_run, config, data, teacher)
            speed = recipe.batch_size * steps_per_second(run, recipe)
            best[config, recipe, teacher] = max(best.get((config, recipe, teacher), 0.0), speed)
    rows = {name: round(best[short(name)], 1) for name in setting.changes}
    found = {"machine": setting.machine, "precision": setting.precision, "images_per_second": rows}
    write_results(found, out / setting.speeds)


def _short_run(
    config: TokenizerConfig, data: Dataset, teacher: str | None, recipe: TrainConfig, out: Path
) -> None:
    train_tokenizer(config, recipe, copy.copy(data), out, "cpu", quiet=True, teacher=teacher)


def read_speeds(setting: Setting, out: Path) -> dict[str, float]:
    """The speeds that `measure_speeds` stored; ValueError if there are none."""
    file = out / setting.speeds
    require(file.exists(), f"{file} is missing: run with --speeds first")
    return json.loads(file.read_text())["images_per_second"]


def sweep(setting: Setting, data: Dataset, out: Path, changes: list[str] | None = None) -> None:
    """Measure the changes that `out` has no results of; results are written after each, to a file
    of its own and to that of all rows."""
    name, here = setting.name, dataclasses.asdict(setting)
    all_rows, runs = out / f"{name}.json", out / "runs" / name
    speeds = read_speeds(setting, out) if setting.train_on else {}
    for change in changes or setting.changes:
        if change in stored_rows(all_rows, runs, here):
            continue
        row = measure(change, setting, data, runs / slug(change), speeds.get(change, 0.0))
        rows = store_row(change, row, all_rows, runs, here, setting.changes)
        write_atomic(all_rows.with_suffix(".md"), table(setting, rows))
        if setting.sizes:
            save(plot_sizes(rows), all_rows.with_suffix(".png"))
        print(change, row, flush=True)


def slug(name: str) -> str:
    """A row's name as that of a file."""
    return "".join(c if c.isalnum() else "-" for c in name)


def store_row(
    name: str, row: dict, file: Path, runs: Path, setting: dict, order: Iterable[str]
) -> dict[str, dict]:
    """Write a row to a file of its own in `runs`, and all rows to `file`, in this order; returns
    them."""
    write_results({"setting": setting, "rows": {name: row}}, runs / f"{slug(name)}.json")
    rows = stored_rows(file, runs, setting)
    rows = {n: rows[n] for n in order if n in rows}
    write_results({"setting": setting, "rows": rows}, file)
    return rows


def stored_rows(file: Path, runs: Path, setting: dict) -> dict[str, dict]:
    """The results in `file` and in the files of single rows; ValueError if their setting is
    another."""
    rows: dict[str, dict] = {}
    for path in (file, *runs.glob("*.json")):
        if path.exists():
            stored = json.loads(path.read_text())
            require(
                stored["setting"] == setting,
                f"{path} has another setting ({stored['setting']}): give another out, or delete it",
            )
            rows |= stored["rows"]
    return rows


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", default="cifar10", help="its train split is used (default cifar10)")
    p.add_argument("--preset", default="cifar10-tiny", choices=list(PRESETS))
    p.add_argument("--steps", type=int, default=400, help="training steps a row (default 400)")
    p.add_argument("--minutes", type=float, help="in place of steps: processor minutes a row")
    p.add_argument("--sizes", action="store_true", help="three sizes, each for three budgets")
    p.add_argument("--teacher", help="weights for REPA (default: no REPA)")
    p.add_argument("--changes", nargs="+", metavar="CHANGE", help="names of rows (default: all)")
    p.add_argument("--train-on", default="", metavar="DEVICE", help="train the rows there")
    p.add_argument("--speeds", action="store_true", help="measure the speeds of all rows, and stop")
    p.add_argument("--out", default="benchmarks", help="directory of results (default benchmarks)")
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    steps = None if a.minutes or a.sizes else a.steps
    data = load_dataset(a.data, "train", PRESETS[a.preset].image_size)
    name = f"{Path(a.data).name} ({data.encoding})"
    used = precision(torch.device(a.train_on or "cpu"), RECIPES[a.preset].bf16)
    num = 512 if steps else 1000  # rFID needs more images than PSNR
    setting = Setting(
        a.preset, name, steps, a.minutes, a.teacher, num, used, train_on=a.train_on, sizes=a.sizes
    )
    if a.speeds:
        return measure_speeds(setting, data, Path(a.out))
    unknown = [c for c in a.changes or () if c not in setting.changes]
    if unknown:
        p.error(f"--changes {unknown[0]}: there are {', '.join(setting.changes)}")
    return sweep(setting, data, Path(a.out), a.changes)


if __name__ == "__main__":
    main()
