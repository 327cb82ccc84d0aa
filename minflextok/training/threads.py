"""The number of CPU threads of a training run: measured once for a model on a machine, recorded,
kept when the run resumes.

A small model gains nothing from more threads, and on a busy machine it loses, because they wait for
each other. Sums over threads depend on their number by rounding, so a run keeps the number that it
began with, and the same run in another directory gets the same number.
"""

import copy
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from ..config import budgets
from ..openmp import FIRST, waiting
from ..precision import autocast
from ..weights import write_atomic
from .run import Run
from .runtime import Log

FILE = "threads.json"
KNOWN = Path.home() / ".cache" / "minflextok" / "threads.json"  # what probes found on this machine
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
TORCH_DEFAULT = torch.get_num_threads() if FIRST else None
SECONDS = 1.0  # of the probe, about; a model that one thread takes longer for uses all of them
GAIN = 1.1  # more threads must be faster by this factor

Batch = tuple[Tensor, ...]


def user_chose() -> bool:
    """Whether the user set the number of threads, or may have done so: before this package was
    imported, `torch.set_num_threads` leaves no trace."""
    return any(name in os.environ for name in VARIABLES) or torch.get_num_threads() != TORCH_DEFAULT


def on_chosen_threads(batches: Iterator[Batch], run: Run, out: Path, log: Log) -> Iterator[Batch]:
    """The batches of a run. Until the iterator is closed, torch uses the number of threads that
    suits the model; only on a CPU, for one process, and unless the user chose it.

    The run directory `out` records the number; a run that is resumed there uses it again.
    """
    if run.device.type != "cpu" or run.ranks.world_size > 1:
        yield from batches
        return
    before, path = torch.get_num_threads(), out / FILE
    threads, why = before, "not probed: the user may have set it"
    if not user_chose():
        if path.exists():
            recorded = json.loads(path.read_text(encoding="utf-8"))["threads"]
            threads, why = min(recorded, before), "as at the start of the run"
        elif run.step == 0 and not run.recipe.compile and not run.recipe.processor_time:
            first = next(batches)
            batches = chain([first], batches)
            threads, why = probed_once(run.model, first, before, run.recipe.bf16)
        else:
            why = "the default of torch"
    if not path.exists():
        write_atomic(path, json.dumps({"threads": threads}) + "\n")
    log.say(f"CPU threads: {threads} of {before} ({why}); {waiting()}")
    torch.set_num_threads(threads)
    try:
        yield from batches
    finally:
        torch.set_num_threads(before)


def probed_once(model: nn.Module, batch: Batch, most: int, bf16: bool) -> tuple[int, str]:
    """`fastest`, and the next time for such a model and batch what it found then, from the file
    KNOWN."""
    shapes = [tuple(x.shape) for x in (*model.parameters(), *batch)]
    key = hashlib.sha256(repr((shapes, most, bf16, torch.__version__)).encode()).hexdigest()[:16]
    try:
        known = json.loads(KNOWN.read_text(encoding="utf-8"))
        if known[key] in range(1, most + 1):
            return known[key], f"as probed before; delete {KNOWN} to probe again"
    except (OSError, ValueError, LookupError, TypeError):
        known = {}
    chosen, why = fastest(model, batch, most, bf16)
    with suppress(OSError):  # a read-only home: it is probed each time
        KNOWN.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(KNOWN, json.dumps(known | {key: chosen}) + "\n")
    return chosen, why


def fastest(model: nn.Module, batch: Batch, most: int, bf16: bool) -> tuple[int, str]:
    """The smallest number of threads, of 1, 2, 4, ..., `most`, that is about as fast as the best,
    and a line that says why. Changes neither the model nor the number of threads."""
    if most == 1:
        return 1, "one core"
    model, before, taken = copy.deepcopy(model), torch.get_num_threads(), {}
    choices = budgets(most)
    try:
        for threads in choices:
            torch.set_num_threads(threads)
            seconds(model, batch, bf16)  # the first one starts the threads
            taken[threads] = median(times(model, batch, bf16, SECONDS / len(choices)))
            if threads == 1 and taken[1] > SECONDS:
                return most, f"a pass of the model takes {taken[1]:.1f} s with 1"
    finally:
        torch.set_num_threads(before)
    least = min(taken.values())
    chosen = min(n for n in choices if taken[n] <= GAIN * least)
    table = ", ".join(f"{1000 * taken[n]:.0f} ms with {n}" for n in choices)
    return chosen, f"a pass of the model takes {table}"


def times(model: nn.Module, batch: Batch, bf16: bool, budget: float) -> list[float]:
    """The seconds of passes of the model: of one or more, until they fill the budget."""
    found = [seconds(model, batch, bf16)]
    while sum(found) + found[-1] <= budget:
        found.append(seconds(model, batch, bf16))
    return found


def seconds(model: nn.Module, batch: Batch, bf16: bool) -> float:
    """Of a forward and a backward pass."""
    start = time.perf_counter()
    with autocast("cpu", bf16):
        loss = model(*batch)
    loss.backward()
    return time.perf_counter() - start
