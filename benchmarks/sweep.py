"""The small experiments behind the recipe: one change at a time, each trained for the same few steps.

    python benchmarks/sweep.py --data cifar10-train.tar.gz [--steps 400]

Scored on training images held out (never the test split) by the one-step PSNR from 1, 4 and K tokens and by the ids that
a register uses. Writes sweep.json, where what was measured before is kept, and sweep.md, the table. One seed each: read
differences below about 0.2 dB as none.
"""

import argparse
import dataclasses
import json
import platform
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from minflextok import PRESETS
from minflextok.data import load_dataset
from minflextok.presets import RECIPES
from minflextok.training.tokenizer import train_tokenizer

CHANGES: dict[str, dict] = {  # fields of the TokenizerConfig or of the TrainConfig
    "recipe": {},
    "another seed": {"seed": 1},
    "learning rate 1e-3": {"lr": 1e-3},
    "learning rate 2e-3": {"lr": 2e-3},
    "learning rate 8e-3": {"lr": 8e-3},
    "warmup 20 steps": {"warmup": 20},
    "no EMA": {
        "ema": 0.0
    },  # its decay rises with the steps, to 0.978 at 400: 0.99 or 0.9999 would change nothing yet
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
    "published start (tokens 0.02, latents 0, no penalty)": {
        "token_std": 0.02,
        "latent_std": 0.0,
        "latent_penalty": 0.0,
    },
    "tokens start at 0.02": {"token_std": 0.02},
    "latents start at 0": {"latent_std": 0.0},
    "no penalty on latents": {"latent_penalty": 0.0},
}


def measure(name: str, preset: str, steps: int, data) -> dict:
    """Train the preset with one change; what its log says at the end."""
    fields = {f.name for f in dataclasses.fields(RECIPES[preset])}
    recipe = dataclasses.replace(
        RECIPES[preset],
        steps=steps,
        minutes=0.0,
        eval_every=steps,
        processor_time=True,
        **{k: v for k, v in CHANGES[name].items() if k in fields},
    )
    config = dataclasses.replace(
        PRESETS[preset], **{k: v for k, v in CHANGES[name].items() if k not in fields}
    )
    out = Path(tempfile.mkdtemp())
    train_tokenizer(config, recipe, data, out, "cpu", quiet=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(out)
    last = next(line for line in reversed(lines) if "psnr" in line)
    return {
        "psnr": last["psnr"],
        "ids": round(float(np.mean(last["ids_used"]))),
        "seconds": round(lines[-2]["seconds"], 1),
    }


def table(found: dict) -> str:
    """sweep.md: a row for each change, with the recipe's own first."""
    s = found["setting"]
    lines = [
        "# Why the recipe is as it is",
        "",
        f"`{s['command']}`: preset `{s['preset']}`, {s['steps']} steps of {RECIPES[s['preset']].batch_size} images, "
        f"each row one change to it and one seed. One-step PSNR (dB) from k tokens and ids used per register on "
        f"{RECIPES[s['preset']].val_images} training images held out; processor time in all. {s['data']}; "
        f"{s['machine']}, one thread, bfloat16 autocast, torch {s['torch']}.",
        "",
        "| change | k = 1 | 4 | K | ids used | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        psnr = list(row["psnr"].items())
        cells = [f"{row['psnr'][k]:.2f}" for k in ("1", "4")] + [
            f"{psnr[-1][1]:.2f} ({psnr[-1][0]})"
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['ids']} | {row['seconds'] / 60:.1f} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", default="cifar10", help="its train split is used (default cifar10)")
    p.add_argument("--preset", default="cifar10-tiny", choices=list(PRESETS))
    p.add_argument("--steps", type=int, default=400)
    p.add_argument(
        "--changes",
        nargs="+",
        default=list(CHANGES),
        choices=list(CHANGES),
        metavar="CHANGE",
        help="default: all",
    )
    p.add_argument(
        "--out",
        default="benchmarks",
        help="directory of sweep.json and sweep.md (default benchmarks)",
    )
    a = p.parse_args(argv)
    torch.set_num_threads(1)
    file, name = Path(a.out) / "sweep.json", Path(a.data).name
    setting = {
        "command": f"python benchmarks/sweep.py --data {name} --steps {a.steps}",
        "preset": a.preset,
        "steps": a.steps,
        "data": name + (" (JPEG re-encoding)" if name.endswith("gz") else ""),
        "machine": platform.machine() + " CPU",
        "torch": torch.__version__,
    }
    found = json.loads(file.read_text()) if file.exists() else {"setting": setting, "rows": {}}
    if found["setting"] != setting:
        raise SystemExit(
            f"{file} was measured otherwise ({found['setting']}): give another --out, or delete it"
        )
    data = load_dataset(a.data, "train", PRESETS[a.preset].image_size)
    for change in a.changes:
        if change not in found["rows"]:
            found["rows"][change] = measure(change, a.preset, a.steps, data)
            found["rows"] = {c: found["rows"][c] for c in CHANGES if c in found["rows"]}
            file.write_text(json.dumps(found, indent=1) + "\n")
            file.with_suffix(".md").write_text(table(found))
            print(change, found["rows"][change], flush=True)


if __name__ == "__main__":
    main()
