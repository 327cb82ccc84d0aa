"""The small experiments behind the recipe: one change at a time, each trained at equal cost.

    python -m minflextok.experiments.sweep --data cifar10-train.tar.gz [--steps 400]
    python -m minflextok.experiments.sweep --data cifar10-train.tar.gz --minutes 10 [--teacher NAME]

With equal steps, a change is scored by the one-step PSNR. With equal minutes of one processor core,
it is also scored by rFID and classification accuracy of reconstructions, without and with guidance.
Both on validation images of the train split, never on the test split. Results are kept: sweep.json
or sweep_minutes.json, and the table beside it; a stopped sweep resumes. One seed each: differences
below about 0.2 dB are not significant.
"""

import argparse
import dataclasses
import json
import platform
import shutil
from pathlib import Path

import numpy as np
import torch

from ..config import TrainConfig, require
from ..data import Dataset, load_dataset, validation_split
from ..evaluation.reports import write_results
from ..evaluation.settings import EvaluationSettings
from ..evaluation.tokenizer import Evaluation
from ..precision import precision
from ..presets import PRESETS, RECIPES
from ..tokenizer import FlexTok
from ..training.tokenizer import train_tokenizer
from ..weights import write_atomic
from .equal_time import log_lines

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
    "no REPA": {"teacher": None},
    "AdamW, batch 64, no REPA (the recipe before)": {
        "optimizer": "adamw",
        "batch_size": 64,
        "teacher": None,
    },
}


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

    def __post_init__(self):
        both = (self.steps, self.minutes)
        require(None in both and both != (None, None), "steps, minutes: give one of them")

    @property
    def changes(self) -> dict[str, dict]:
        if self.steps:
            return AT_EQUAL_STEPS
        return {name: BASE | change for name, change in AT_EQUAL_MINUTES.items()}


def measure(name: str, setting: Setting, data: Dataset, out: Path) -> dict:
    """Train the preset with one change and score it."""
    change = dict(setting.changes[name])
    teacher = change.pop("teacher", setting.teacher)
    preset, fields = setting.preset, {f.name for f in dataclasses.fields(TrainConfig)}
    steps = setting.steps or 10**9
    recipe = dataclasses.replace(
        RECIPES[preset],
        steps=steps,
        minutes=setting.minutes or 0.0,
        eval_every=steps,
        val_images=setting.val_images,
        processor_time=True,
        **{k: v for k, v in change.items() if k in fields},
    )
    model = {k: v for k, v in change.items() if k not in fields}
    config = dataclasses.replace(PRESETS[preset], **model)
    tok = train_tokenizer(config, recipe, data, out, "cpu", quiet=True, teacher=teacher)
    shutil.rmtree(out / "checkpoints")  # a finished row is not resumed
    found = read_log(out)
    if setting.minutes:
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
    recipe = RECIPES[setting.preset]
    cost = f"{setting.steps} steps" if setting.steps else f"{setting.minutes:g} processor minutes"
    head = (
        f"Preset `{setting.preset}`, {cost} of batches of {recipe.batch_size} images unless a row "
        "says otherwise; each row is one change, with one seed. One-step PSNR (dB) from k tokens "
        f"and ids used per register on {setting.val_images} validation images of the train split "
        f"of {setting.data}; {setting.machine}, one thread, {setting.precision}, torch "
        f"{setting.torch}."
    )
    if setting.steps:
        return "\n".join(["# Why the recipe is as it is", "", head, "", *_steps_rows(rows)]) + "\n"
    head += (
        f" rFID and classification accuracy: 8 Euler steps. Teacher: "
        f"{setting.teacher or 'none'}. Base: {BASE}."
    )
    title = "# The recipe at a fixed budget of processor time"
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


# ---- the command ---------------------------------------------------------------------------------


def sweep(setting: Setting, data: Dataset, out: Path, changes: list[str] | None = None) -> None:
    """Measure the changes that `out` has no results of; results are written after each."""
    file = out / ("sweep.json" if setting.steps else "sweep_minutes.json")
    found = {"setting": dataclasses.asdict(setting), "rows": {}}
    if file.exists():
        stored = json.loads(file.read_text())
        require(
            stored["setting"] == found["setting"],
            f"{file} has another setting ({stored['setting']}): give another out, or delete it",
        )
        found = stored
    for change in changes or setting.changes:
        if change in found["rows"]:
            continue
        run = out / "runs" / "".join(c if c.isalnum() else "-" for c in change)
        found["rows"][change] = measure(change, setting, data, run)
        rows = found["rows"] = {c: found["rows"][c] for c in setting.changes if c in found["rows"]}
        write_results(found, file)
        write_atomic(file.with_suffix(".md"), table(setting, rows))
        print(change, rows[change], flush=True)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", default="cifar10", help="its train split is used (default cifar10)")
    p.add_argument("--preset", default="cifar10-tiny", choices=list(PRESETS))
    p.add_argument("--steps", type=int, default=400, help="training steps a row (default 400)")
    p.add_argument("--minutes", type=float, help="in place of steps: processor minutes a row")
    p.add_argument("--teacher", help="weights for REPA (default: no REPA)")
    p.add_argument("--changes", nargs="+", metavar="CHANGE", help="names of rows (default: all)")
    p.add_argument("--out", default="benchmarks", help="directory of results (default benchmarks)")
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    steps = None if a.minutes else a.steps
    data = load_dataset(a.data, "train", PRESETS[a.preset].image_size)
    name = f"{Path(a.data).name} ({data.encoding})"
    used = precision(torch.device("cpu"), RECIPES[a.preset].bf16)
    num = 1000 if a.minutes else 512  # rFID needs more images than PSNR
    setting = Setting(a.preset, name, steps, a.minutes, a.teacher, num, used)
    unknown = [c for c in a.changes or () if c not in setting.changes]
    if unknown:
        p.error(f"--changes {unknown[0]}: there are {', '.join(setting.changes)}")
    sweep(setting, data, Path(a.out), a.changes)


if __name__ == "__main__":
    main()
