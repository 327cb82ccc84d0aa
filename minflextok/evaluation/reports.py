"""Results of evaluations as tables and files."""

import json
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..data import to_float
from ..weights import write_atomic
from .figures import image_grid, plural, prior_figure, save


def write_results(found: dict, path: str | Path) -> None:
    """Write results as JSON."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(Path(path), json.dumps(found, indent=1) + "\n")


def setting(arguments: dict, **measured) -> dict:
    """The arguments of a command, for its results: of a path the last part, and not where results
    go; with what was measured."""
    named = {k: Path(v).name if isinstance(v, str) else v for k, v in arguments.items()}
    return {k: v for k, v in named.items() if k not in ("out", "runs")} | measured


def cell(value: dict | None, digits: int = 1, scale: float = 1) -> str:
    """A mean and the half width of its 95% confidence interval; `scale` 100 gives percent."""
    if not value:
        return ""
    text = f"{scale * value['mean']:.{digits}f}"
    if "ci95" in value:
        text += f" ±{scale * (value['ci95'][1] - value['ci95'][0]) / 2:.{digits}f}"
    return text


def percent(value: dict | None) -> str:
    return cell(value, 1, 100)


# ---- tokenizers ----------------------------------------------------------------------------------

COLUMNS = {  # name, digits
    "rfid": ("rFID", 2),
    "psnr": ("PSNR dB", 2),
    "ssim": ("SSIM", 3),
    "mae": ("MAE", 3),
    "accuracy": ("accuracy", 3),
}


def tokenizer_table(found: dict) -> str:
    """The results of `Evaluation.run` as text, a row for each number of tokens."""
    rows = found["tokens"]
    shown = {
        key: column for key, column in COLUMNS.items() if any(key in row for row in rows.values())
    }
    head = "".join(f"{name:>15}" for name, _ in shown.values())
    lines = [f"{'tokens':>7}{'bits':>7}{'bytes':>7}{head}{'seconds':>9}"]
    for k, row in rows.items():
        cells = "".join(f"{cell(row[key], digits):>15}" for key, (_, digits) in shown.items())
        lines.append(f"{k:>7}{row['bits']:7.0f}{row['bytes']:7d}{cells}{row['seconds']:9.1f}")
    if "accuracy" in found["originals"]:
        real = cell(found["originals"]["accuracy"], 3)
        lines.append(f"classification accuracy on the originals: {real}")
    codes = found["codes"]
    used, perplexity = codes["ids_used"], codes["perplexity"]
    lines.append(
        f"ids used per register: {min(used)} to {max(used)} of {codes['vocabulary']} "
        f"(perplexity {min(perplexity):.0f} to {max(perplexity):.0f})"
    )
    return "\n".join(lines)


# ---- priors --------------------------------------------------------------------------------------


def prior_table(found: dict) -> str:
    """The results of `PriorEvaluation.run` as text; shares in percent."""
    lines = (_class_rows if found["protocol"]["kind"] == "class" else _caption_rows)(found)
    bits = found["bits"]
    at = "  ".join(f"{k}: {bits['by_position'][int(k) - 1]:.2f}" for k in found["tokenizer"])
    lines.append(
        f"bits a token of {bits['uniform']:.1f}: conditional {fmean(bits['by_position']):.3f}, "
        f"unconditional {fmean(bits['without_condition']):.3f}; conditional at position {at}"
    )
    for j, row in found["prefixes"].get("by_length", {}).items():
        lines.append(
            f"prefix of {j:>3} ids: agreement of two continuations {percent(row['alike'])}%, with "
            f"the image {percent(row['original'])}%; pixel distance {cell(row['pixels'], 3)}"
        )
    return "\n".join(lines)


def _systems(found: dict) -> dict[str, dict]:
    samplers = {s["name"]: s["tokens"] for s in found["samplers"]}
    return {"tokenizer alone": found["tokenizer"]} | samplers


def _class_rows(found: dict) -> list[str]:
    judged = "accuracy" in found["originals"]
    head = f"{'':32}{'tokens':>7}{'FID':>14}{'/ tokenizer':>13}"
    lines = [head + f"{'accuracy %':>14}" * judged]
    for name, rows in _systems(found).items():
        for k, row in rows.items():
            ratio = row["fid"]["mean"] / max(found["tokenizer"][k]["fid"]["mean"], 1e-9)
            line = f"{name:32}{k:>7}{cell(row['fid'], 2):>14}{ratio:12.2f}x"
            lines.append(line + f"{percent(row.get('accuracy')):>14}" * judged)
    real = found["originals"]
    notes = [f"FID of as many other originals {cell(real['fid'], 2)}"] * bool(real["fid"])
    if judged:
        notes.append(f"classification accuracy on the originals {percent(real['accuracy'])}%")
    return [*lines, "; ".join(notes)] if notes else lines


def _caption_rows(found: dict) -> list[str]:
    groups = list(found["originals"]["met"])

    def line(name: str, k: str, row: dict) -> str:
        return f"{name:32}{k:>7}" + "".join(f"{percent(row.get(g)):>13}" for g in groups)

    names = ["all" if g == "all" else plural(g, "thing") for g in groups]
    lines = [f"{'captions met exactly, %':32}{'tokens':>7}" + "".join(f"{n:>13}" for n in names)]
    for name, rows in _systems(found).items():
        lines += [line(name, k, row["met"]) for k, row in rows.items()]
    last, real = found["samplers"][-1], found["originals"]
    largest = list(last["tokens"].values())[-1]
    return [
        *lines,
        line(f"other captions, {last['name']}", "", largest["shuffled"]),
        line("other captions, real images", "", real["shuffled"]),
        line("their own, real images", "", real["met"]),
    ]


def write_pictures(
    found: dict, samples: dict[int, Tensor], continued: dict[int, Tensor], out: Path
) -> None:
    """Figures of what `PriorEvaluation.run` returns: tokens.png, samples.png, prefixes.png."""
    save(prior_figure(found), out / "tokens.png")
    by_condition = torch.stack(list(samples.values()), 1)  # (conditions, budgets, 3, H, W)
    rows = {
        f"{i}. {name}": to_float(images)
        for i, (name, images) in enumerate(zip(found["shown"], by_condition, strict=True), 1)
    }
    columns = [plural(k, "token") for k in samples]
    save(image_grid(rows, found["samplers"][-1]["name"], columns, wrap=46), out / "samples.png")
    if continued:
        each = found["prefixes"]["each"]
        rows = {
            f"prefix of {plural(j, 'id')}": to_float(x.flatten(0, 1)) for j, x in continued.items()
        }
        title = (
            f"first of each {1 + each}: an image; then unconditional continuations of its prefix"
        )
        save(image_grid(rows, title), out / "prefixes.png")
