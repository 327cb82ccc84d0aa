"""FlexTok and its baselines under equal conditions: `minflextok compare`.

All systems have the same width, depth, training time and training images, and the same evaluation
on the same test images. Each differs from `flextok` in one thing, which its description below
states. The results of each system are stored in a file as soon as they are there: a stopped
comparison resumes.
"""

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ..config import TokenizerConfig, require
from ..data import Dataset, Stream, in_order, load_dataset, to_float
from ..evaluation.classifier import Classifier
from ..evaluation.figures import image_grid, plural, save
from ..evaluation.reports import write_results
from ..evaluation.scores import image_noise
from ..evaluation.settings import EvaluationSettings
from ..evaluation.tokenizer import Evaluation
from ..presets import PRESETS, RECIPES
from ..tokenizer import FlexTok
from ..training.tokenizer import train_tokenizer
from .codecs import codecs
from .systems import SYSTEMS, System


@dataclass(frozen=True)
class Setting:
    """What all systems of a comparison share. Results of different settings are not comparable."""

    preset: str
    minutes: float
    data: str
    test_data: str
    num_images: int
    teacher: str | None = None
    device: str = "cpu"
    classifier: str = "judge-cifar10"

    def stored(self, file: Path) -> dict | None:
        """The results in a file, None if there is no file; ValueError if their setting differs."""
        if not file.exists():
            return None
        found = json.loads(file.read_text())
        differ = [
            f"{k}={found['setting'].get(k)!r} there, {v!r} here"
            for k, v in dataclasses.asdict(self).items()
            if found["setting"].get(k) != v
        ]
        if differ:
            raise ValueError(
                f"{file} is of another comparison ({'; '.join(differ)}): give its settings, or "
                "another out"
            )
        return found


def config_of(system: System, setting: Setting) -> TokenizerConfig:
    """The system's config; ValueError where it cannot be built."""
    config = dataclasses.replace(PRESETS[setting.preset], **system.model)
    with torch.device("meta"):
        system.cls(config)
    return config


def train_system(
    name: str, setting: Setting, train: Dataset, out: Path, quiet: bool = False
) -> FlexTok:
    """Train one system for the time of the setting. `out` gets what `training.loop.fit` writes; a
    run in it continues, and a finished one is read."""
    system = SYSTEMS[name]
    recipe = dataclasses.replace(
        RECIPES[setting.preset],
        steps=10**9,
        minutes=setting.minutes,
        processor_time=setting.device == "cpu",
        **system.recipe,
    )
    return train_tokenizer(
        config_of(system, setting),
        recipe,
        train,
        out,
        setting.device,
        quiet,
        teacher=setting.teacher if system.repa else None,
        cls=system.cls,
        objective=system.objective,
    )


def images_seen(out: Path) -> int:
    """The number of images of a training run, by its log."""
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return max(line.get("images", 0) for line in log)


def run(
    name: str, setting: Setting, train: Dataset, test: Dataset, out: Path, quiet: bool = False
) -> dict:
    """Train one system and evaluate it on images of `test`, unless its results are stored."""
    system, file, weights = SYSTEMS[name], out / f"{name}.json", out / "runs" / name
    if found := setting.stored(file):
        return found
    model = train_system(name, setting, train, weights, quiet)
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
    found["setting"] = dataclasses.asdict(setting)
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
    for name in systems:
        run(name, setting, copy.copy(train), test, out, quiet)
    file = out / "codecs.json"
    if not setting.stored(file):
        rows = list(codecs(test, setting.num_images, classifier))
        write_results({"setting": dataclasses.asdict(setting), "rows": rows}, file)
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
        ax.set(xlabel={"tokens": "number of tokens k", "bytes": "bytes an image"}[against])
        ax.set_ylabel(label)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.3)
    if against == "bytes":  # the codecs' rFIDs span three orders of magnitude
        fig.axes[0].set_yscale("log", base=2)
        fig.axes[0].yaxis.set_major_formatter("{x:g}")
    handles, names = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=4, fontsize=9)
    return fig
