"""The curves of a training run, alone or beside those of a reference run: `minflextok curves`."""

import json
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .. import weights
from ..checks import first_line
from .figures import plural


def read(name: str | Path) -> dict:
    """The curves of a training run, from the metrics.jsonl in its directory.

    "loss": images seen, losses. "psnr", by number of tokens: images seen, one-step PSNR. "ids":
    images seen, mean number of ids that a register uses. "minutes", "peak_gb" (None if not logged),
    "images".
    """
    file = weights.find(name) / "metrics.jsonl"
    if not file.exists():
        raise FileNotFoundError(
            f"{file.parent} has no metrics.jsonl: give the directory of a training run"
        )
    try:
        return {"name": str(name), **curves_of(read_lines(file))}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise ValueError(
            f"{file} has no curve of a tokenizer's training ({first_line(e)}): give the directory "
            "of a run that reached its first evaluation"
        ) from None


def read_lines(file: Path) -> list[dict]:
    """The lines of a log, without the incomplete last one of a killed run."""
    texts = file.read_text(encoding="utf-8").splitlines()
    lines = []
    for i, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            if i == len(texts):
                break
            raise ValueError(f"line {i} is not JSON") from None
        if not isinstance(line, dict) or type(line.get("step")) is not int or line["step"] < 1:
            raise ValueError(f"line {i} is no object with a step")
        lines.append(line)
    return lines


def curves_of(lines: list[dict]) -> dict:
    losses = [r for r in lines if "loss" in r]
    found = [r for r in lines if "psnr" in r and "ids_used" in r]
    if not losses or not found:
        raise ValueError("no curve yet")
    size = losses[0]["images"] / losses[0]["step"]  # images a step
    seen = [r["step"] * size for r in found]
    peak = losses[-1].get("peak_gb")
    return {
        "loss": ([float(r["images"]) for r in losses], [float(r["loss"]) for r in losses]),
        "psnr": {int(k): (seen, [float(r["psnr"][k]) for r in found]) for k in found[0]["psnr"]},
        "ids": (seen, [float(np.mean(r["ids_used"])) for r in found]),
        "minutes": losses[-1]["seconds"] / 60,
        "peak_gb": None if peak is None else float(peak),
        "images": int(losses[-1]["images"]),
    }


def plot(run: dict, reference: dict | None = None) -> Figure:
    """Loss, one-step PSNR and ids used against images seen; the reference is dashed."""
    fig = Figure(figsize=(12, 3.6), layout="constrained")
    loss, psnr, ids = fig.subplots(1, 3)
    for curves, style in ((run, "-"), *([(reference, "--")] if reference else ())):
        loss.plot(*curves["loss"], "k" + style, label=curves["name"])
        ids.plot(*curves["ids"], "k" + style, marker="o", ms=3)
        for i, (k, curve) in enumerate(curves["psnr"].items()):
            shade = f"{0.75 * (1 - (i + 1) / len(curves['psnr'])):.2f}"
            label = plural(k, "token") if style == "-" else None
            psnr.plot(*curve, style, color=shade, marker="o", ms=3, label=label)
    loss.set(ylabel="loss", yscale="log")
    psnr.set(ylabel="one-step PSNR (dB), validation split")
    ids.set(ylabel="ids used per register")
    for ax in (loss, psnr, ids):
        ax.set_xlabel("images seen")
        ax.grid(alpha=0.3)
    loss.legend(fontsize=8)
    psnr.legend(fontsize=7)
    return fig


def verdict(run: dict, reference: dict) -> str:
    """A comparison of both runs after the same number of images, in words."""
    at = min(run["images"], reference["images"])

    def value(curves: dict, curve) -> float:
        return float(np.interp(at, *curve(curves)))

    rows: dict = {"loss": lambda c: c["loss"], "ids used per register": lambda c: c["ids"]}
    common = [k for k in run["psnr"] if k in reference["psnr"]]
    rows |= {f"PSNR at {k}": partial(lambda k, c: c["psnr"][k], k) for k in common}
    lines = [f"after {at:,} images, {run['name']} against {reference['name']}:"]
    lines += [
        f"  {name:22} {value(run, curve):8.3f} {value(reference, curve):8.3f}"
        for name, curve in rows.items()
    ]
    for c in (run, reference):
        memory = f", peak memory {c['peak_gb']:.2f} GB" if c["peak_gb"] else ""
        lines.append(f"  {c['name']}: {c['images']:,} images in {c['minutes']:.1f} minutes{memory}")
    if common:
        behind = [
            value(reference, rows[f"PSNR at {k}"]) - value(run, rows[f"PSNR at {k}"])
            for k in common
        ]
        lines.append(
            "no worse than the reference"
            if max(behind) <= 0.5
            else "behind by more than 0.5 dB: check learning rate, range of the data, ids used"
        )
    return "\n".join(lines)
