"""The files that a run resumes from: its checkpoint, and run.json, the record of its settings."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..checks import first_line
from ..config import to_json
from ..weights import atomic_file, read_json, write_atomic

FREE = ("train.workers", "train.log_every", "train.compile")  # settings that may change on a resume


def save_checkpoint(state: dict, path: Path) -> None:
    """Write a checkpoint whole or not at all: after a crash or a full disk the old one is
    intact."""
    try:
        with atomic_file(path) as f:
            torch.save(state, f)
    except (OSError, RuntimeError) as e:  # torch reports a failed write as a RuntimeError
        kept = f"{path} is still the last good one" if path.exists() else "there is none yet"
        raise OSError(
            f"could not write checkpoint {path} ({first_line(e)}): is the disk full? {kept}; free "
            "some space and start the same run again to resume"
        ) from None


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint with weights_only: tensors and plain values, without running code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise ValueError(
            f"{path} cannot be read ({first_line(e)}): delete it to start over"
        ) from None


# What a checkpoint of a run holds.
CONTENTS = {
    "model": dict,
    "ema": dict,
    "optimizers": list,
    "precision": str,
    "step": int,
    "seconds": float,
    "window": list,
}


@contextmanager
def resuming(path: Path) -> Iterator[dict]:
    """The checkpoint of a run, complete and of the right kinds. Whatever else in it does not fit
    inside the block is a ValueError that names the file."""
    saved = load_checkpoint(path)
    try:
        if not isinstance(saved, dict):
            raise ValueError(f"it holds a {type(saved).__name__}")
        for name, kind in CONTENTS.items():
            if name not in saved:
                raise ValueError(f"it has no {name}")
            if not isinstance(saved[name], kind) or isinstance(saved[name], bool):
                raise ValueError(f"{name} is a {type(saved[name]).__name__}, not a {kind.__name__}")
        for name in ("step", "seconds"):
            if not 0 <= saved[name] < float("inf"):
                raise ValueError(f"{name}={saved[name]}")
        for values in saved["window"]:  # loss and gradient norm
            if not isinstance(values, Tensor) or values.shape != (2,):
                raise ValueError("window holds something other than losses and gradient norms")
        yield saved
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as e:
        raise ValueError(
            f"{path} is no checkpoint of this run ({first_line(e)}): delete it to start over, or "
            "give another out"
        ) from None


def describe_run(model_config, recipe, sources: dict) -> dict:
    """The contents of run.json: the configs of model and training, and what the run is trained on.

    sources: plain values for JSON. "data" has the name, size and identity of the data set;
    "teacher", "init", "vae" and "tokenizer" name the other networks that the result depends on,
    with their fingerprints.
    """
    model, train = (json.loads(to_json(c)) for c in (model_config, recipe))
    return {"model": model, "train": train} | sources


def claim_directory(out: Path, record: dict, resume: bool) -> None:
    """Write run.json; on a resume, check that the run in this directory is the same one, on the
    same data.

    Raises ValueError that names the differences between the two. What the stored "data" does not
    have is not compared, but added: the record of an earlier version, or one that a person emptied
    to accept other data.
    """
    path = out / "run.json"
    if not resume:
        write_atomic(path, json.dumps(record, indent=2) + "\n")
        return
    try:
        stored = read_json(path)
        if not isinstance(stored, dict):
            raise ValueError(f"it holds a {type(stored).__name__}, not the record of a run")
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
    there, here = flatten(stored), flatten(record)
    unknown = [f"data.{key}" for key in record["data"] if key not in stored["data"]]
    differences = {
        key: f"{key}={there.get(key)!r} there, {here.get(key)!r} here"
        for key in here | there
        if there.get(key) != here.get(key) and key not in (*FREE, *unknown)
    }
    changed = [text for key, text in differences.items() if key.startswith("data.")]
    if changed and len(changed) == len(differences) and "data.name" not in differences:
        raise ValueError(
            f"the data {record['data']['name']!r} has changed since the run in out={str(out)!r} "
            f"began ({'; '.join(changed)}): resumed, it would train on images of its validation "
            f"split. Restore the data; or give another out; or accept the new data: set "
            f'"data": {{}} in {path}'
        )
    if differences:
        raise ValueError(
            f"out={str(out)!r} holds another run ({'; '.join(differences.values())}): give its "
            "settings, or another out"
        )
    if unknown:
        warnings.warn(
            f"{path} does not say what data the run began with ({', '.join(unknown)}): it goes on "
            "with the data of now",
            stacklevel=2,
        )
        stored["data"] = record["data"]
        write_atomic(path, json.dumps(stored, indent=2) + "\n")


def flatten(record: dict, prefix: str = "") -> dict:
    """{"train": {"lr": 0.1}} -> {"train.lr": 0.1}."""
    flat = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
