"""FlexTok and its relatives, trained alike and judged alike: `minflextok compare`.

Every system has the same width, depth and training time, sees the same images, and is scored by the same judge on the
same test images; each differs from `flextok` in what its line below says. Results are stored one file a system as they
come, so a comparison that was stopped goes on where it was.
"""

import copy
import dataclasses
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..config import TokenizerConfig
from ..data import Dataset, Stream, in_order, load_dataset, open_image, to_float
from ..evaluation.classifier import Judge
from ..evaluation.figures import save
from ..evaluation.tokenizer import Evaluation, Scores, write
from ..presets import PRESETS, RECIPES
from ..tokenizer import FlexTok
from ..training.tokenizer import train_tokenizer
from .baselines import Grid, Regressor


@dataclass(frozen=True)
class System:
    """What differs from FlexTok. budgets: the token counts that it can be asked for; none: 1, 2, 4, ..., K."""

    about: str
    cls: type[FlexTok] = FlexTok
    model: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    budgets: tuple[int, ...] = ()
    repa: bool = True


ALWAYS_ALL = {"nested_from": 1.0, "nested_full": 1.0}  # no nested dropout


def _titok(length: int) -> System:
    return System(
        f"TiTok: always {length} tokens, regression",
        Regressor,
        {"num_registers": length},
        ALWAYS_ALL,
        (length,),
        repa=False,
    )


def _grid(patch: int, size: int = 32) -> System:
    tokens = (size // patch) ** 2
    return System(
        f"2D grid: one token for each {patch}x{patch} patch, regression",
        Grid,
        {"patch_size": patch, "num_registers": tokens},
        ALWAYS_ALL,
        (tokens,),
        repa=False,
    )


# Changes are to the preset that is compared; grids are for 32x32 images.
SYSTEMS = {
    "flextok": System("FlexTok, with REPA where a teacher is given"),
    "titok-1": _titok(1),
    "titok-4": _titok(4),
    "titok-16": _titok(16),
    "one-d-piece": System(
        "One-D-Piece: tail token drop from the first step, regression",
        Regressor,
        {"keep_k_mode": "uniform"},
        {"nested_from": 0.0, "nested_full": 0.0},
        repa=False,
    ),
    "grid-16": _grid(8),
    "grid-64": _grid(4),
    "no-repa": System("FlexTok without REPA", repa=False),
    "no-nested": System("FlexTok without nested dropout", recipe=ALWAYS_ALL),
    "uniform": System("FlexTok with uniform keep_k", model={"keep_k_mode": "uniform"}),
    "full-attention": System(
        "FlexTok whose registers all see each other", model={"causal_registers": False}
    ),
    "regression": System("FlexTok with a regression decoder", Regressor, repa=False),
}


@dataclass(frozen=True)
class Setting:
    """What all systems of a comparison share; stored results of another setting are not comparable."""

    preset: str
    minutes: float
    data: str
    test_data: str
    num_images: int
    teacher: str | None = None
    device: str = "cpu"
    judge: str = "judge-cifar10"

    def stored(self, file: Path) -> dict | None:
        """What an earlier run left in a file; ValueError if it ran under another setting."""
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
                f"{file} is of another comparison ({'; '.join(differ)}): give its settings, or another --out"
            )
        return found


def config_of(system: System, setting: Setting) -> TokenizerConfig:
    """The system's config; ValueError, before anything is trained, where it cannot be built."""
    config = dataclasses.replace(PRESETS[setting.preset], **system.model)
    with torch.device("meta"):
        system.cls(config)
    return config


def run(
    name: str, setting: Setting, train: Dataset, test: Dataset, out: Path, quiet: bool = False
) -> dict:
    """Train one system and score it on the first images of `test`; what is stored is not done again."""
    system, file, weights = SYSTEMS[name], out / f"{name}.json", out / "runs" / name
    found = setting.stored(file)
    if found:
        return found
    config = config_of(system, setting)
    recipe = dataclasses.replace(
        RECIPES[setting.preset],
        steps=10**9,
        minutes=setting.minutes,
        processor_time=setting.device == "cpu",
        **system.recipe,
    )
    teacher = setting.teacher if system.repa else None
    model = train_tokenizer(
        config, recipe, train, weights, setting.device, quiet, teacher=teacher, cls=system.cls
    )
    budgets = list(system.budgets) or config.budgets
    found = Evaluation(
        model,
        str(weights),
        test,
        num_images=setting.num_images,
        budgets=budgets,
        judge=setting.judge,
        bf16=True,
    ).run(progress=not quiet)
    log = [json.loads(line) for line in (weights / "metrics.jsonl").read_text().splitlines()]
    found["system"] = {
        "name": name,
        "about": system.about,
        "repa": teacher is not None,
        "images_seen": max(line.get("images", 0) for line in log),
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
    }
    found["setting"] = dataclasses.asdict(setting)
    write(found, file)
    return found


def compare(systems: list[str], setting: Setting, out: Path, quiet: bool = False) -> str:
    """All of it -> a table in Markdown; pictures of all stored results go into `out`."""
    size, judge = PRESETS[setting.preset].image_size, Judge.from_pretrained(setting.judge)
    if judge.config.image_size != size:
        raise ValueError(
            f"--preset {setting.preset} makes {size}-pixel images, {setting.judge} takes "
            f"{judge.config.image_size}: give a preset of its size"
        )
    for name in systems:
        config_of(SYSTEMS[name], setting)
    train, test = (
        load_dataset(setting.data, "train", size),
        load_dataset(setting.test_data, "test", size),
    )
    if not isinstance(test, Stream) and setting.num_images > len(test):
        raise ValueError(
            f"--num-images {setting.num_images}: {setting.test_data} has {len(test)} test images"
        )
    for name in systems:
        run(name, setting, copy.copy(train), test, out, quiet)
    files = out / "codecs.json"
    if not setting.stored(files):
        write(
            {
                "setting": dataclasses.asdict(setting),
                "rows": list(codecs(test, setting.num_images, judge)),
            },
            files,
        )
    results = {name: r for name in SYSTEMS if (r := setting.stored(out / f"{name}.json"))}
    for against in ("tokens", "bytes"):
        save(plot(results, json.loads(files.read_text())["rows"], against), out / f"{against}.png")
    return table(results)


# ---- what needs no training ------------------------------------------------------------------------------------------


def encode_image(image: Tensor, codec: str, quality: int) -> bytes:
    """A uint8 (3, H, W) as a file of "JPEG" or "WEBP"."""
    held = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(held, codec, quality=quality)
    return held.getvalue()


@torch.no_grad()
def codecs(
    test: Dataset,
    num_images: int,
    judge: Judge,
    qualities: tuple[int, ...] = (0, 1, 5, 10, 20, 40, 70),
) -> Iterator[dict]:
    """JPEG and WebP files of the same images: mean bytes, all of them and without the header that every file repeats."""
    batches = list(in_order(test, 250, num_images))
    originals = Scores(num_images, keep_features=False)
    for stored, labels in batches:
        x = to_float(stored)
        originals.update(x, None, labels, judge.features(x), judge(x))
    for codec in ("JPEG", "WEBP"):
        for quality in qualities:
            scores, sizes = Scores(num_images, keep_features=False), []
            header = len(
                encode_image(torch.zeros_like(batches[0][0][0]), codec, quality)
            )  # of a black image
            for stored, labels in batches:
                files = [encode_image(x, codec, quality) for x in stored]
                sizes += map(len, files)
                made = to_float(
                    torch.stack([torch.from_numpy(open_image(f, None).copy()) for f in files])
                )
                scores.update(made, to_float(stored), labels, judge.features(made), judge(made))
            mean = sum(sizes) / len(sizes)
            yield {
                "codec": codec,
                "quality": quality,
                "bytes": mean,
                "beyond_header": mean - header,
                "rfid": scores.distance(originals),
                **scores.summary(),
            }


# ---- what came out ---------------------------------------------------------------------------------------------------


def table(results: dict[str, dict]) -> str:
    """Markdown: a row for each system and token count."""
    lines = [
        "| system | tokens | bytes | rFID | PSNR dB | label agreement |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for k, row in found["tokens"].items():
            agreement = f"{row['agreement']['mean']:.1%}" if "agreement" in row else ""
            lines.append(
                f"| {name} | {k} | {row['bytes']} | {row['rfid']['mean']:.2f} | {row['psnr']['mean']:.2f} "
                f"| {agreement} |"
            )
    return "\n".join(lines)


STYLES = {  # colour, marker, line: each tells without the others
    "flextok": ("k", "o", "-"),
    "titok": ("C0", "s", "--"),
    "one-d-piece": ("C1", "^", "-."),
    "grid": ("C2", "D", ":"),
    "no-repa": ("C3", "v", "--"),
    "no-nested": ("C4", "x", ":"),
    "uniform": ("C5", "<", "-."),
    "full-attention": ("C6", ">", (0, (5, 1))),
    "regression": ("C8", "P", (0, (1, 1))),
    "JPEG": ("0.5", "1", ":"),
    "WEBP": ("0.5", "+", "--"),
}


def plot(results: dict[str, dict], files: list[dict], against: str = "tokens") -> Figure:
    """rFID, PSNR and label agreement against "tokens" or "bytes" (there with JPEG and WebP, headers left out)."""
    lines: dict[str, list[tuple[float, dict]]] = {}
    for name, found in results.items():
        family = name.split("-")[0] if name.startswith(("titok", "grid")) else name
        lines.setdefault(family, []).extend(
            (int(k) if against == "tokens" else row["bytes"], row)
            for k, row in found["tokens"].items()
        )
    for row in files if against == "bytes" else ():
        lines.setdefault(row["codec"], []).append((max(row["beyond_header"], 1), row))
    fig = Figure(figsize=(12, 3.8), layout="constrained")
    for ax, (key, label) in zip(
        fig.subplots(1, 3),
        {
            "rfid": "rFID (judge), lower is better",
            "psnr": "PSNR (dB)",
            "agreement": "label agreement",
        }.items(),
        strict=True,
    ):
        for family, points in lines.items():
            shown = sorted((x, row[key]["mean"]) for x, row in points if key in row)
            colour, marker, style = STYLES[family]
            ax.plot(
                *zip(*shown, strict=True), color=colour, marker=marker, ls=style, label=family, ms=5
            )
        ax.set_xscale("log", base=2)
        ax.set(xlabel=against, ylabel=label)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.3)
    fig.axes[0].set_yscale("log", base=2)
    fig.axes[0].yaxis.set_major_formatter("{x:g}")
    fig.axes[-1].legend(fontsize=7)
    return fig
