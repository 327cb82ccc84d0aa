"""The small experiments behind the recipe: one change at a time, each trained at equal cost.

    python -m minflextok.experiments.sweep --data cifar10-train.tar.gz [--steps 400]
    python -m minflextok.experiments.sweep --data cifar10-train.tar.gz --minutes 10 [--teacher NAME]

With equal steps, a change is scored by the one-step PSNR. With equal minutes of one processor core,
it is also scored by rFID and classification accuracy of reconstructions, without and with guidance.
Both on validation images of the train split, never on the test split. Results are kept: sweep.json
or sweep_minutes.json, and the table beside it; a stopped sweep resumes, and several commands may
measure different rows at once. One seed each: differences below about 0.2 dB are not significant.

With --train-on DEVICE, a row trains there for as many images as this processor sees in the minutes:
--speeds measures its speed for each row first, in turns, on an otherwise idle machine.
"""

import argparse
import copy
import dataclasses
import json
import platform
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

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

# Fields of the TokenizerConfig or the TrainConfig; "teacher": weights for REPA, None for no REPA.
AT_EQUAL_STEPS: dict[str, dict] = {
    "recipe": {},
    "another seed": {"seed": 1},
    "learning rate 1e-3": {"lr": 1e-3},
    "learning rate 2e-3": {"lr": 2e-3},
    "learning rate 8e-3": {"lr": 8e-3},
    "warmup 20 steps": {"warmup": 20},
    "no EMA": {"ema": 0.0},  # at 400 steps the decay is at most 0.978: 0.99 would change nothing
    "uniform timesteps": {"mode_scale": 0.0},
    "timesteps as published (mode 0.25)": {"mode_scale": 0.25},
    "FSQ 8-5-5-5 (1,000 ids)": {"fsq_levels": (8, 5, 5, 5)},
    "FSQ 8-8-8-5-5 (12,800 ids)": {"fsq_levels": (8, 8, 8, 5, 5)},
    "uniform keep_k": {"keep_k_mode": "uniform"},
    "nested dropout from the first step": {"nested_full": 0.0},
    "no nested dropout": {"nested_from": 1.0, "nested_full": 1.0},
    "8 registers": {"num_registers": 8},
    "32 registers": {"num_registers": 32},
    "patch 2": {"patch_size": 2},
    "patch 8": {"patch_size": 8},
    "initialization as published (tokens 0.02, latents 0, no penalty)": {
        "token_std": 0.02,
        "latent_std": 0.0,
        "latent_penalty": 0.0,
    },
    "tokens initialized at 0.02": {"token_std": 0.02},
    "latents initialized at 0": {"latent_std": 0.0},
    "no penalty on latents": {"latent_penalty": 0.0},
}
BASE = {"optimizer": "muon", "batch_size": 32, "repa_weight": 0.25}  # what all rows share
AT_EQUAL_MINUTES: dict[str, dict] = {
    "base: Muon, batch 32, REPA 0.25": {},
    "base, another seed": {"seed": 1},
    "base, a third seed": {"seed": 2},
    "constant, then linear from 0.5": {"decay_from": 0.5},
    "adaLN matrices under Muon": {"muon_adaln": True},
    "encoder 2, decoder 6 blocks": {"enc_depth": 2, "dec_depth": 6},
    "nested dropout in full from 0.3": {"nested_full": 0.3},
    "width 192, 3 + 4 blocks": {"enc_dim": 192, "dec_dim": 192, "enc_depth": 3},
    "batch 16": {"batch_size": 16},
    "Muon at 1.25 times the rate": {"muon_lr": 1.25},
    "head_dim 32": {"head_dim": 32},
    "EMA 0.998": {"ema": 0.998},
    "REPA in block 2": {"repa_block": 2},
    "FSQ 8-8-8-5-5 (12,800 ids)": {"fsq_levels": (8, 8, 8, 5, 5)},
    "half of the images keep all K (uniform_pow2)": {"keep_k_mode": "uniform_pow2"},
    "32 registers": {"num_registers": 32},
    "depth 6 + 6": {"enc_depth": 6, "dec_depth": 6},
    "REPA weight 0.1": {"repa_weight": 0.1},
    "REPA weight 0.5": {"repa_weight": 0.5},
    "no REPA": {"teacher": None},
    "AdamW, batch 64, no REPA (the recipe before)": {
        "optimizer": "adamw",
        "batch_size": 64,
        "teacher": None,
    },
}


BUDGETS = ((30, 64), (120, 128), (480, 512))  # minutes, batch: few large steps would learn little
SIZES: dict[str, dict] = {
    f"width {width}, {enc} + {dec} blocks, {minutes} minutes": {
        "enc_dim": width,
        "dec_dim": width,
        "enc_depth": enc,
        "dec_depth": dec,
        "minutes": minutes,
        "batch_size": batch,
    }
    for width, enc, dec in ((128, 3, 4), (192, 4, 5), (256, 6, 6))
    for minutes, batch in BUDGETS
}
SAME_COST: dict[str, Any] = {"decay_from": 0.4, "muon_lr": 2.5, "ema": 0.99, "seed": 0}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all rows of a sweep share. Rows of different settings are not comparable."""

    preset: str
    data: str  # its name and the encoding of its images
    steps: int | None  # training steps of each row; None: minutes
    minutes: float | None = None  # minutes of one processor core for each row
    teacher: str | None = None  # weights for REPA
    val_images: int = 512
    precision: str = "float32"
    machine: str = platform.machine() + " CPU"
    torch: str = torch.__version__
    train_on: str = ""  # a device to train on, if not on the processor whose time counts

    sizes: bool = False  # rows of three sizes and budgets, which state their own minutes

    def __post_init__(self):
        given = (self.steps is not None, self.minutes is not None, self.sizes)
        require(sum(given) == 1, "steps, minutes, sizes: give one of them")

    @property
    def name(self) -> str:
        """Of the files of results."""
        return "sweep" if self.steps else "sweep_sizes" if self.sizes else "sweep_minutes"

    @property
    def speeds(self) -> str:
        """The file of speeds."""
        return f"{self.name}_speeds.json"

    @property
    def changes(self) -> dict[str, dict]:
        if self.sizes:
            return SIZES
        if self.steps:
            return AT_EQUAL_STEPS
        return {name: BASE | change for name, change in AT_EQUAL_MINUTES.items()}


def row_of(name: str, setting: Setting) -> tuple[TokenizerConfig, TrainConfig, str | None]:
    """A row's model, its recipe for the processor, and the weights of its teacher."""
    change = dict(setting.changes[name])
    teacher = change.pop("teacher", setting.teacher)
    preset, fields = setting.preset, {f.name for f in dataclasses.fields(TrainConfig)}
    minutes = change.pop("minutes", setting.minutes)
    steps = setting.steps or 10**9
    recipe = dataclasses.replace(
        RECIPES[preset],
        steps=steps,
        eval_every=steps,
        minutes=minutes or 0.0,
        val_images=setting.val_images,
        processor_time=True,
        savings=True,
        compile=False,
        **{k: v for k, v in change.items() if k in fields},
    )
    model = {k: v for k, v in change.items() if k not in fields}
    return dataclasses.replace(PRESETS[preset], **model), recipe, teacher


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


def score(tok: FlexTok, weights: str, data: Dataset, guidance: float) -> dict:
    """rFID and classification accuracy of reconstructions, by token budget."""
    budgets = sorted({k for k in (1, 4, 8) if k < tok.config.num_registers})
    settings = EvaluationSettings(
        budgets=[*budgets, tok.config.num_registers], steps=8, guidance=guidance, bf16=True
    )
    rows = Evaluation(tok, weights, data, settings).run()["tokens"]
    names = ("rfid", "accuracy")
    return {k: {n: round(row[n]["mean"], 4) for n in names} for k, row in rows.items()}


# ---- tables --------------------------------------------------------------------------------------


def table(setting: Setting, rows: dict[str, dict]) -> str:
    """Markdown: a row for each change."""
    if setting.sizes:
        title, cost = "# Size against budget", "minutes of one core as each row says"
        cost += f"; batches of {', '.join(str(b) for _, b in BUDGETS)} images"
    elif setting.steps:
        title, batch = "# Why the recipe is as it is", RECIPES[setting.preset].batch_size
        cost = f"{setting.steps} steps of batches of {batch} images unless a row says otherwise"
    else:
        title = "# The recipe at a fixed budget of processor time"
        cost = f"{setting.minutes:g} processor minutes. Base: {BASE}"
    head = (
        f"Preset `{setting.preset}`, {cost}; each row is one change, with one seed. One-step PSNR "
        f"(dB) from k tokens and ids used per register on {setting.val_images} validation images "
        f"of the train split of {setting.data}; {setting.machine}, one thread, "
        f"{setting.precision}, torch {setting.torch}."
    )
    if setting.train_on:
        head += (
            f" Trained on {setting.train_on}, with as many images as one core of that processor "
            f"sees in the minutes ({setting.speeds})."
        )
    if setting.steps:
        return "\n".join([title, "", head, "", *_steps_rows(rows)]) + "\n"
    head += (
        f" rFID and classification accuracy: 8 Euler steps. Teacher: {setting.teacher or 'none'}."
    )
    return "\n".join([title, "", head, "", *_minutes_rows(rows)]) + "\n"


def _psnr(row: dict) -> list[str]:
    largest, value = list(row["psnr"].items())[-1]
    return [*(f"{row['psnr'][k]:.2f}" for k in ("1", "4")), f"{value:.2f} ({largest})"]


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _steps_rows(rows: dict[str, dict]) -> list[str]:
    lines = [_line("change", "k = 1", 4, "K", "ids used", "minutes"), "|---" * 6 + "|"]
    for name, row in rows.items():
        lines.append(_line(name, *_psnr(row), row["ids"], f"{row['seconds'] / 60:.1f}"))
    return lines


def _minutes_rows(rows: dict[str, dict]) -> list[str]:
    names = ["change", "images seen", "loss", "PSNR at k = 1", 4, "K", "ids used"]
    names += ["rFID at 1 / 4 / 8 / K", "with guidance 2", "accuracy with guidance 2"]
    lines = [_line(*names), "|---" * len(names) + "|"]
    for name, row in rows.items():
        plain, guided = row["guidance 1"].values(), row["guidance 2"].values()
        lines.append(
            _line(
                name,
                f"{row['images']:,}",
                f"{row['loss']:.3f}",
                *_psnr(row),
                row["ids"],
                " / ".join(f"{x['rfid']:.1f}" for x in plain),
                " / ".join(f"{x['rfid']:.1f}" for x in guided),
                " / ".join(f"{x['accuracy']:.0%}" for x in guided),
            )
        )
    return lines


def plot_sizes(rows: dict[str, dict]) -> Figure:
    """rFID from 1 and from all tokens (guidance 2), and one-step PSNR from all, against the budget:
    a line for each size."""
    fig = Figure(figsize=(11, 3.8), layout="constrained")
    axes = fig.subplots(1, 3)
    kinds = dict.fromkeys(name.rsplit(", ", 1)[0] for name in rows)
    styles = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("black", "^", ":"))
    for kind, (color, marker, line) in zip(kinds, styles, strict=False):
        for ax, value in zip(
            axes,
            (
                lambda row: row["guidance 2"]["1"]["rfid"],
                lambda row: list(row["guidance 2"].values())[-1]["rfid"],
                lambda row: list(row["psnr"].values())[-1],
            ),
            strict=True,
        ):
            found = {m: rows[name] for m, _ in BUDGETS if (name := f"{kind}, {m} minutes") in rows}
            ax.plot(
                [m / 60 for m in found],
                [value(row) for row in found.values()],
                color=color,
                marker=marker,
                ls=line,
                label=kind,
            )
    for ax, label in zip(
        axes, ("rFID, 1 token", "rFID, all tokens", "one-step PSNR (dB), all tokens"), strict=True
    ):
        ax.set_xscale("log", base=2)
        ax.set(xlabel="hours of one core", ylabel=label)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=9)
    return fig


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
        slug = "".join(c if c.isalnum() else "-" for c in change)
        row = measure(change, setting, data, runs / slug, speeds.get(change, 0.0))
        write_results({"setting": here, "rows": {change: row}}, runs / f"{slug}.json")
        rows = stored_rows(all_rows, runs, here)
        rows = {c: rows[c] for c in setting.changes if c in rows}
        write_results({"setting": here, "rows": rows}, all_rows)
        write_atomic(all_rows.with_suffix(".md"), table(setting, rows))
        if setting.sizes:
            save(plot_sizes(rows), all_rows.with_suffix(".png"))
        print(change, row, flush=True)


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
