"""run.json, the record of a run: its settings, its data, and how each of its parts was started."""

import dataclasses
import json
import platform
import shlex
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..checks import first_line
from ..config import TrainConfig, to_json
from ..weights import read_json, write_atomic
from .runtime import Ranks

# Settings that may change on a resume: the result does not depend on them, up to rounding.
FREE = {f"train.{f.name}" for f in dataclasses.fields(TrainConfig) if f.metadata.get("free")}
# Packages whose version is recorded: what the numbers and the images depend on.
PACKAGES = ("minflextok", "numpy", "safetensors", "webdataset", "Pillow")
LENGTH = ("train.steps", "train.minutes")  # may grow on a resume with extend=True


def describe_run(model_config, recipe: TrainConfig, sources: dict) -> dict:
    """What defines a run: the configs of model and training, and what the run is trained on.

    sources: plain values for JSON. "data" has the name, size and identity of the data set;
    "teacher", "init", "vae" and "tokenizer" name the other networks that the result depends on,
    with their fingerprints.
    """
    model, train = (json.loads(to_json(c)) for c in (model_config, recipe))
    return {"model": model, "train": train} | sources


def describe_launch(recipe: TrainConfig, ranks: Ranks, step: int) -> dict:
    """How a run was started or resumed at a step: all else that one needs to repeat it. Never
    compared on a resume."""
    return {
        "step": step,
        "at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.orig_argv),
        "commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,  # that torch was built for; None for a CPU alone
        }
        | {name.lower(): version_of(name) for name in PACKAGES},
        "seed": recipe.seed,
        "world_size": ranks.world_size,
        "device": ranks.device.type,
        "free": {name.removeprefix("train."): value_of(recipe, name) for name in sorted(FREE)},
    }


def value_of(recipe: TrainConfig, name: str):
    return getattr(recipe, name.removeprefix("train."))


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout that this package is in, with "+changes" if files differ from it;
    None outside of a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def claim_directory(out: Path, record: dict, launch: dict, resume: bool) -> None:
    """Write run.json; on a resume, check that the run in this directory is the same one, on the
    same data, and add `launch` to its launches.

    Raises ValueError that names the differences between the two. What the stored "data" does not
    have is not compared, but added: the record of an earlier version, or one that a person emptied
    to accept other data.
    """
    path = out / "run.json"
    launches: list = []
    if resume:
        stored = read_record(path, out)
        compare(stored, record, out)
        unknown = [f"data.{key}" for key in record["data"] if key not in stored["data"]]
        if unknown:
            warnings.warn(
                f"{path} does not say what data the run began with ({', '.join(unknown)}): it goes "
                "on with the data of now",
                stacklevel=2,
            )
        launches = stored.get("launches", [])
        record = stored | {"train": record["train"], "data": record["data"]}
    record = record | {"launches": [*launches, launch]}
    write_atomic(path, json.dumps(record, indent=2) + "\n")


def read_record(path: Path, out: Path) -> dict:
    """The run.json of a run that has a checkpoint."""
    try:
        stored = read_json(path)
        if not isinstance(stored, dict):
            raise ValueError(f"it holds a {type(stored).__name__}, not the record of a run")
        if not isinstance(stored.get("launches", []), list):
            raise ValueError("its launches are no list")
    except ValueError as e:
        raise ValueError(
            f"out={str(out)!r} has a checkpoint, but its run.json cannot be read "
            f"({first_line(e)}): give another out"
        ) from None
    if not isinstance(stored.get("data"), dict):
        raise ValueError(
            f"out={str(out)!r} holds a run of an earlier version of minflextok, which cannot be "
            "resumed: give another out"
        )
    return stored


def compare(stored: dict, record: dict, out: Path) -> None:
    """Raises ValueError unless both records define the same run."""
    # A setting that the earlier version did not have is at its default.
    defaults = {"train": dataclasses.asdict(TrainConfig())}
    there, here = flatten(defaults) | flatten(stored), flatten(record)
    unknown = [f"data.{key}" for key in record["data"] if key not in stored["data"]]
    differences = {
        key: f"{key}={there.get(key)!r} there, {here.get(key)!r} here"
        for key in here | there
        if there.get(key) != here.get(key) and key not in (*FREE, *unknown, "launches")
    }
    changed = [text for key, text in differences.items() if key.startswith("data.")]
    if changed and len(changed) == len(differences) and "data.name" not in differences:
        raise ValueError(
            f"the data {record['data']['name']!r} has changed since the run in out={str(out)!r} "
            f"began ({'; '.join(changed)}): resumed, it would train on images of its validation "
            f"split. Restore the data; or give another out; or accept the new data: set "
            f'"data": {{}} in {out / "run.json"}'
        )
    if not differences:
        return
    if differences.keys() <= set(LENGTH) and longer(there, here):
        if here.get("train.extend"):
            return
        raise ValueError(
            f"out={str(out)!r} holds a shorter run ({'; '.join(differences.values())}): give "
            "extend=True to go on with it. Its schedules (learning rate, nested dropout) are then "
            "those of the longer run from here on, so the learning rate rises again and the result "
            "is not that of a run that was this long from the start. Or give the settings it has, "
            "or another out"
        )
    raise ValueError(
        f"out={str(out)!r} holds another run ({'; '.join(differences.values())}): give its "
        "settings, or another out"
    )


def longer(there: dict, here: dict) -> bool:
    """Whether the second record has at least the length of the first. minutes=0: no limit."""

    def limits(flat: dict) -> list[float]:
        steps, minutes = (flat.get(name) for name in LENGTH)
        if not isinstance(steps, int | float) or not isinstance(minutes, int | float):
            return [float("inf"), float("inf")]  # a record that was changed by hand: refused
        return [steps, minutes or float("inf")]

    return all(b >= a for a, b in zip(limits(there), limits(here), strict=True))


def flatten(record: dict, prefix: str = "") -> dict:
    """{"train": {"lr": 0.1}} -> {"train.lr": 0.1}."""
    flat = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
