"""The checkpoints of a run: out/checkpoints/step_000000012 and the like, of which the last two are
kept.

A checkpoint is a folder of safetensors files, which together hold every tensor once, and of
state.json, which holds the plain values. There is no pickle in it. Under torchrun,
`torch.distributed.checkpoint` writes one file per rank, and each rank reads the rows it needs, so
the number of ranks may change between two runs.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from ..checks import first_line
from ..weights import read_json, read_shapes, write_atomic
from .runtime import Ranks

KEPT = 2
STATE = "state.json"
FORMER = "checkpoint.pt"  # the one file of earlier versions


class Checkpoints:
    """Writes, finds and reads the checkpoints of the run in the directory `out`.

    All ranks call its methods at the same steps. In the background (the default on GPUs under
    torchrun), `save` copies the tensors to the CPU and returns; the files are written while the
    training goes on.
    """

    def __init__(self, out: Path, ranks: Ranks, background: bool | None = None):
        self.folder, self.ranks = out / "checkpoints", ranks
        self.background = ranks.device.type == "cuda" if background is None else background
        # Of its own, because a save in the background communicates beside the training.
        self.group = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        self.saved = -1  # step of the newest checkpoint
        self.writing: Future | None = None
        self.values: dict = {}

    def clean(self) -> None:
        """Remove what a killed run left incomplete. For rank 0, before any rank saves."""
        for part in self.folder.glob(".step_*.part"):
            shutil.rmtree(part, ignore_errors=True)

    def found(self) -> list[Path]:
        """The complete checkpoints, the newest last."""
        names = self.folder.glob("step_*") if self.folder.is_dir() else ()
        return sorted(p for p in names if re.fullmatch(r"step_\d{9}", p.name))

    def save(self, step: int, values: dict, tensors: dict[str, Tensor]) -> None:
        """Write the checkpoint of a step. After a crash or a full disk there is none of this step,
        and the earlier ones are intact (OSError)."""
        if step == self.saved:
            return
        self.finish()
        self.saved, self.values = step, {"step": step, **values, "tensors": len(tensors)}
        tensors = {name: x.detach().contiguous() for name, x in tensors.items()}
        with self.naming():
            if self.group is None:
                self.part.mkdir(parents=True, exist_ok=True)
                save_file(tensors, self.part / "state.safetensors")
            else:
                # Of tensors that all ranks have, each writes its share.
                rank, world = self.ranks.rank, self.ranks.world_size
                tensors = {
                    name: x
                    for i, (name, x) in enumerate(sorted(tensors.items()))
                    if isinstance(x, DTensor) or i % world == rank
                }
                writer = dcp.HuggingFaceStorageWriter(str(self.part), save_distributed=True)
                to: dict[str, Any] = {"storage_writer": writer, "process_group": self.group}
                if self.background:
                    self.writing = dcp.async_save(tensors, **to)
                    return
                dcp.save(tensors, **to)
            self.commit()

    def poll(self) -> None:
        """Complete a save in the background, if its files are written."""
        if self.writing is not None and self.ranks.is_main and self.writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the save in the background, if there is one."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            with self.naming():
                writing.result()
                self.commit()

    @property
    def part(self) -> Path:
        """The folder in which the checkpoint is written before it is complete."""
        return self.folder / f".step_{self.saved:09d}.part"

    def commit(self) -> None:
        """On rank 0: give the complete checkpoint its name, and remove all but the last two."""
        if not self.ranks.is_main:
            return
        files = {f.name: f.stat().st_size for f in sorted(self.part.glob("*.safetensors"))}
        for name in files:
            with open(self.part / name, "rb") as f:
                os.fsync(f.fileno())
        write_atomic(self.part / STATE, json.dumps(self.values | {"files": files}) + "\n")
        target = self.folder / f"step_{self.saved:09d}"
        shutil.rmtree(target, ignore_errors=True)  # a resumed run comes here again
        os.replace(self.part, target)
        for old in self.found()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """A write that fails is an OSError that says which checkpoint is still good."""
        try:
            yield
        except (Exception, CheckpointException) as e:  # the latter is no Exception
            if self.ranks.is_main:
                shutil.rmtree(self.part, ignore_errors=True)
            good = self.found()
            kept = f"{good[-1]} is still the last good one" if good else "there is none yet"
            raise OSError(
                f"could not write checkpoint {self.folder / f'step_{self.saved:09d}'} "
                f"({reason(e)}): is the disk full? {kept}; free some space and start the same run "
                "again to resume"
            ) from None

    def read(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Fill these tensors from the checkpoint `path`, in place. ValueError if it does not hold
        exactly them."""
        with warnings.catch_warnings():  # torch warns that one process reads alone
            warnings.simplefilter("ignore")
            reader = dcp.HuggingFaceStorageReader(str(path))
            try:
                dcp.load(tensors, storage_reader=reader, process_group=self.group)
            except RuntimeError as e:
                if self.group is None:
                    raise
                # What cannot be read is a CheckpointException on all ranks. This is the exchange.
                raise ConnectionError(
                    f"another rank ended while all were reading {path} ({first_line(e)}): see its "
                    "message"
                ) from None
        self.saved = step_of(path)


def step_of(path: Path) -> int:
    """The step of a checkpoint by its name."""
    return int(path.name.removeprefix("step_"))


def reason(e: BaseException) -> str:
    """The first line of an error; of one that torch collected from the ranks, the first rank's."""
    if isinstance(e, CheckpointException):
        e = next((failure[0] for failure in e.failures.values()), e)
    return first_line(cast(Exception, e))


def names_in(path: Path) -> set[str]:
    """The names of all tensors of a checkpoint."""
    return {name for file in path.glob("*.safetensors") for name in read_shapes(file)}


# What state.json holds.
CONTENTS = {
    "step": int,
    "seconds": float,
    "precision": str,
    "window": list,
    "skipped": list,
    "tensors": int,
    "files": dict,
}


@contextmanager
def resuming(path: Path) -> Iterator[dict]:
    """The plain values of a checkpoint, complete and of the right kinds. Whatever else in it does
    not fit inside the block is a ValueError that names the folder. A lost rank and a full memory
    say nothing about the checkpoint."""
    try:
        values = read_json(path / STATE)
        check_values(values)
        for name, size in values["files"].items():
            if Path(name).name != name or (path / name).stat().st_size != size:
                raise ValueError(f"{name} does not have the {size} bytes that were written")
        if len(names_in(path)) != values["tensors"]:
            raise ValueError(f"its files do not hold {values['tensors']} tensors")
        yield values
    except (ConnectionError, torch.OutOfMemoryError):
        raise
    except (Exception, CheckpointException) as e:
        raise ValueError(
            f"{path} is no checkpoint of this run, or damaged ({reason(e)}): delete it to resume "
            "from the one before or, if there is none, to start over; or give another out"
        ) from None


def check_values(values: Any) -> None:
    """Raises ValueError unless these are the values of a state.json."""
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}")
    for name, kind in CONTENTS.items():
        if name not in values:
            raise ValueError(f"it has no {name}")
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise ValueError(f"{name} is a {type(values[name]).__name__}, not a {kind.__name__}")
    for name in ("step", "seconds", "tensors"):
        if not 0 <= values[name] < float("inf"):
            raise ValueError(f"{name}={values[name]}")
    for pair in values["window"]:
        if not (isinstance(pair, list) and [type(x) for x in pair] == [float, float]):
            raise ValueError("window holds something other than losses and gradient norms")
    if any(type(step) is not int for step in values["skipped"]):
        raise ValueError("skipped holds something other than steps")
