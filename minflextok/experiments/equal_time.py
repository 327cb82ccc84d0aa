"""Training of the systems of a comparison, each for the same time.

The time counts as steps, by speeds that are measured first, in turns: other work on the machine
delays a comparison and does not change it.
"""

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..config import TokenizerConfig, TrainConfig
from ..data import Dataset
from ..evaluation.reports import write_results
from ..presets import PRESETS, RECIPES
from ..tokenizer import FlexTok
from ..training.tokenizer import train_tokenizer
from .systems import SYSTEMS, System

# What learns most in little time on one core, by benchmarks/sweep_minutes.md.
SHORT = {
    "optimizer": "muon",
    "batch_size": 32,
    "lr": 4e-3,
    "warmup": 100,
    "nested_full": 0.3,
    "eval_every": 1000,
}
REPA_WEIGHT = 0.25  # by the same table


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
    train_on: str = ""  # a device to train on, if not on the one whose time counts
    batch_size: int = 0  # of training; 0: the recipe's

    @property
    def facts(self) -> dict:
        """What the results record: the fields, and what differs from the preset's recipe."""
        return dataclasses.asdict(self) | {"recipe": SHORT if self.device == "cpu" else {}}

    def stored(self, file: Path) -> dict | None:
        """The results in a file, None if there is no file; ValueError if their setting differs."""
        if not file.exists():
            return None
        found = json.loads(file.read_text())
        differ = [
            f"{k}={found['setting'].get(k)!r} there, {v!r} here"
            for k, v in self.facts.items()
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
    config = replace(PRESETS[setting.preset], **({"repa_weight": REPA_WEIGHT} | system.model))
    with torch.device("meta"):
        system.cls(config)
    return config


def recipe_of(system: System, setting: Setting, steps: int = 0) -> TrainConfig:
    """The preset's recipe; on a CPU, what learns most in little time. steps=0: the minutes of the
    setting."""
    on_cpu = setting.device == "cpu"
    length = {"steps": steps or 10**9, "minutes": 0.0 if steps else setting.minutes}
    changes = setting.facts["recipe"] | length | {"processor_time": on_cpu} | system.recipe
    return replace(RECIPES[setting.preset], **changes)


def recipe_elsewhere(system: System, setting: Setting, steps: int) -> TrainConfig:
    """The recipe of `steps` steps, for as many images in batches of setting.batch_size, where
    setting.train_on says."""
    recipe = recipe_of(system, setting, steps)
    size = setting.batch_size or recipe.batch_size
    steps = max(1, round(steps * recipe.batch_size / size))
    return suited_to(setting.train_on, replace(recipe, steps=steps, batch_size=size))


def suited_to(device: str, recipe: TrainConfig) -> TrainConfig:
    """On a GPU, small models are bound by launches: plain and compiled there."""
    return replace(recipe, savings=False, compile=True) if "cuda" in device else recipe


def train_system(
    name: str,
    setting: Setting,
    recipe: TrainConfig,
    train: Dataset,
    out: Path,
    quiet: bool = False,
    device: str = "",
) -> FlexTok:
    """Train one system. `out` gets what `training.loop.fit` writes; a run in it continues, and a
    finished one is read."""
    system = SYSTEMS[name]
    return train_tokenizer(
        config_of(system, setting),
        recipe,
        copy.copy(train),
        out,
        device or setting.device,
        quiet,
        teacher=setting.teacher if system.repa else None,
        cls=system.cls,
        objective=system.objective,
    )


def images_seen(out: Path) -> int:
    """The number of images of a training run, by its log."""
    return max(line.get("images", 0) for line in log_lines(out))


def log_lines(out: Path) -> list[dict]:
    """The log of a training run."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps_per_second(run: Callable[[TrainConfig, Path], object], recipe: TrainConfig) -> float:
    """Speed of a short run of `recipe`, without its first quarter. run: trains by a recipe into a
    directory."""
    recipe = replace(recipe, log_every=1, val_images=recipe.batch_size, minutes=0.0)
    with TemporaryDirectory() as out:
        run(recipe, Path(out))
        at = {line["step"]: line["seconds"] for line in log_lines(Path(out)) if "seconds" in line}
    first = max(1, recipe.steps // 4)
    return (recipe.steps - first) / (at[recipe.steps] - at[first])


def speed(name: str, setting: Setting, train: Dataset, steps: int = 12) -> float:
    """Training steps per second of a system."""
    return steps_per_second(
        lambda recipe, out: train_system(name, setting, recipe, train, out, quiet=True),
        recipe_of(SYSTEMS[name], setting, steps),
    )


def speeds(
    systems: list[str], setting: Setting, train: Dataset, file: Path, turns: int = 3
) -> dict[str, float]:
    """Training steps per second of each system, the best of some turns; those that the file holds
    are not measured again."""
    found = setting.stored(file) or {"setting": setting.facts, "speeds": {}}
    new = [name for name in systems if name not in found["speeds"]]
    measured = [{name: speed(name, setting, train) for name in new} for _ in range(turns)]
    found["speeds"] |= {name: max(turn[name] for turn in measured) for name in new}
    write_results(found, file)
    return {name: found["speeds"][name] for name in systems}
