"""FlexTok and its baselines under equal conditions: `minflextok compare`.

All systems have the same width, depth, training time and training images, and the same evaluation
on the same test images. Each differs from `flextok` in one thing, which its description below
states. The results of each system are stored in a file as soon as they are there: a stopped
comparison resumes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..config import require
from ..data import Dataset, Stream, in_order, load_dataset, to_float
from ..evaluation.classifier import Classifier
from ..evaluation.figures import image_grid, plural, save
from ..evaluation.reports import write_results
from ..evaluation.scores import image_noise
from ..evaluation.settings import EvaluationSettings
from ..evaluation.tokenizer import Evaluation
from ..presets import PRESETS
from ..tokenizer import FlexTok
from .codecs import codecs
from .equal_time import Setting, config_of, images_seen, recipe_elsewhere, speeds, train_system
from .systems import SYSTEMS


def run(
    name: str,
    setting: Setting,
    steps: int,
    train: Dataset,
    test: Dataset,
    out: Path,
    quiet: bool = False,
) -> dict:
    """Train one system and evaluate it on images of `test`, unless its results are stored."""
    system, file, weights = SYSTEMS[name], out / f"{name}.json", out / "runs" / name
    if found := setting.stored(file):
        return found
    recipe = recipe_elsewhere(system, setting, steps)
    model = train_system(name, setting, recipe, train, weights, quiet, setting.train_on)
    settings = EvaluationSettings(
        num_images=setting.num_images,
        budgets=system.budgets or model.config.budgets,
        classifier=setting.classifier,
        bf16=True,
    )
    found = Evaluation(model, str(weights), test, settings).run(progress=not quiet)
    found["system"] = {
        "name": name,
        "about": system.about,
        "repa": system.repa and setting.teacher is not None,
        "images_seen": images_seen(weights),
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
    }
    found["setting"] = setting.facts
    save(reconstructions(model, test, settings.budgets), out / f"{name}.png")
    write_results(found, file)
    return found


@torch.no_grad()
def reconstructions(model: FlexTok, test: Dataset, budgets: Sequence[int], num: int = 6) -> Figure:
    """The first `num` test images, and their reconstructions from each number of tokens."""
    stored, _ = next(iter(in_order(test, num, num)))
    x = model.to_latents(to_float(stored).to(model.device))
    ids, noise = model.encode_latents(x), image_noise(x.shape, 0, 0).to(model.device)
    rows = {plural(k, "token"): model.decode(ids[:, :k], noise=noise).cpu() for k in budgets}
    return image_grid({"original": to_float(stored)} | rows)


def compare(systems: list[str], setting: Setting, out: Path, quiet: bool = False) -> str:
    """Run the systems; returns a Markdown table, writes figures of all stored results to `out`, and
    a picture of reconstructions for each system that was run."""
    size = PRESETS[setting.preset].image_size
    classifier = Classifier.from_pretrained(setting.classifier)
    require(
        classifier.config.image_size == size,
        f"preset={setting.preset!r} makes {size}-pixel images, {setting.classifier} takes "
        f"{classifier.config.image_size}: give a preset of its size",
    )
    for name in systems:
        config_of(SYSTEMS[name], setting)
    train = load_dataset(setting.data, "train", size)
    test = load_dataset(setting.test_data, "test", size)
    require(
        isinstance(test, Stream) or setting.num_images <= len(test),
        f"num_images={setting.num_images}: {setting.test_data} has {len(test)} test images",
    )
    for name, per_second in speeds(systems, setting, train, out / "speeds.json").items():
        steps = max(1, round(60 * setting.minutes * per_second))
        run(name, setting, steps, train, test, out, quiet)
    file = out / "codecs.json"
    if not setting.stored(file):
        rows = list(codecs(test, setting.num_images, classifier))
        write_results({"setting": setting.facts, "rows": rows}, file)
    results = {name: r for name in SYSTEMS if (r := setting.stored(out / f"{name}.json"))}
    for against in ("tokens", "bytes"):
        save(plot(results, json.loads(file.read_text())["rows"], against), out / f"{against}.png")
    return table(results)


# ---- tables and figures --------------------------------------------------------------------------


def table(results: dict[str, dict]) -> str:
    """Markdown: a row for each system and token count."""
    lines = [
        "| system | tokens | bytes | rFID | PSNR dB | classification accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for k, row in found["tokens"].items():
            accuracy = f"{row['accuracy']['mean']:.1%}" if "accuracy" in row else ""
            lines.append(
                f"| {name} | {k} | {row['bytes']} | {row['rfid']['mean']:.2f} "
                f"| {row['psnr']['mean']:.2f} | {accuracy} |"
            )
    return "\n".join(lines)


STYLES = {  # label, color (safe for color-blind readers), marker, line: distinct even in gray
    "flextok": ("FlexTok", "black", "o", "-"),
    "titok": ("TiTok-style (regression only)", "#0072B2", "s", "--"),
    "one-d-piece": ("One-D-Piece-style (regression only)", "#E69F00", "^", "-."),
    "grid": ("2D grid (regression only)", "#009E73", "D", ":"),
    "no-repa": ("without REPA", "#D55E00", "v", "--"),
    "no-nested": ("without nested dropout", "#CC79A7", "x", ":"),
    "uniform": ("uniform k", "#56B4E9", "<", "-."),
    "full-attention": ("full attention among registers", "#009E73", ">", (0, (5, 1))),
    "regression": ("regression decoder", "#0072B2", "P", (0, (1, 1))),
    "JPEG": ("JPEG", "0.4", "1", ":"),
    "WEBP": ("WebP", "0.4", "+", "--"),
}


def plot(results: dict[str, dict], files: list[dict], against: str = "tokens") -> Figure:
    """rFID, PSNR and classification accuracy against "tokens" or "bytes", with bands for the 95%
    confidence intervals that are stored; more than four bands of accuracy would cover each other
    and are left out.

    Against bytes with the codecs, whose headers are not counted. files: the rows of `codecs`.
    """
    lines: dict[str, list[tuple[float, dict]]] = {}
    for name, found in results.items():
        family = name.split("-")[0] if name.startswith(("titok", "grid")) else name
        lines.setdefault(family, []).extend(
            (int(k) if against == "tokens" else row["bytes"], row)
            for k, row in found["tokens"].items()
        )
    for row in files if against == "bytes" else ():
        lines.setdefault(row["codec"], []).append((max(row["beyond_header"], 1), row))
    fig = Figure(figsize=(11, 4.4), layout="constrained")
    labels = {
        "rfid": "rFID (lower is better)",
        "psnr": "PSNR (dB)",
        "accuracy": "classification accuracy",
    }
    for ax, (key, label) in zip(fig.subplots(1, 3), labels.items(), strict=True):
        for family, points in lines.items():
            shown = sorted((x, row[key]["mean"]) for x, row in points if key in row)
            name, color, marker, style = STYLES[family]
            sure = sorted((x, *row[key]["ci95"]) for x, row in points if "ci95" in row.get(key, {}))
            if sure and (key != "accuracy" or len(lines) <= 4):
                ax.fill_between(*zip(*sure, strict=True), color=color, alpha=0.15, lw=0)
            xy = zip(*shown, strict=True)
            ax.plot(*xy, color=color, marker=marker, ls=style, label=name, ms=6)
        ax.set_xscale("log", base=2)
        ax.set(xlabel={"tokens": "number of tokens k", "bytes": "bytes per image"}[against])
        ax.set_ylabel(label)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.3)
    if against == "bytes":  # the codecs' rFIDs span three orders of magnitude
        fig.axes[0].set_yscale("log", base=2)
        fig.axes[0].yaxis.set_major_formatter("{x:g}")
    handles, names = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=4, fontsize=9)
    return fig
