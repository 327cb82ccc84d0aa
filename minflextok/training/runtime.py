"""The surroundings of a training run: ranks and devices, signals, memory, the log."""

import atexit
import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from ..checks import first_line
from ..data.waiting import on_main_thread, wait_for
from ..weights import naming, write_atomic

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class Ranks:
    """The distributed context: rank and world size (0 and 1 without torchrun), and the device."""

    def __init__(self, device: str | None = None):
        """device: "cpu", "cuda" (the GPU of this rank) or a device by number; default: a GPU if
        there is one. ValueError for a device that does not work here."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device
        try:
            self.device = torch.device(name)
            torch.zeros(1, device=self.device).item()  # the device "meta" has no values
        except Exception as e:  # each backend of torch raises an error of its own
            raise ValueError(
                f"device={device!r} does not work here ({first_line(e)}): give 'cpu'"
            ) from None
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world_size > 1 and not dist.is_initialized():
            # Numbers on the CPU go through gloo beside the GPUs' NCCL, so that no GPU waits.
            backend = "gloo" if self.device.type == "cpu" else "cpu:gloo,cuda:nccl"
            # torchrun's store outlives a restart, with the addresses of the ranks that ended.
            store, _, _ = next(dist.rendezvous("env://"))
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.world_size
            )
            # Also after an error: an open group can abort the process at its end.
            atexit.register(self.close)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which evaluates, logs and saves."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """The mean of a number over all ranks."""
        if self.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item() / self.world_size

    def sum(self, *values: float) -> list[float]:
        """The sums of numbers over all ranks."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Return when all ranks have come here."""
        self.mean(0.0)

    def gather(self, value: Any) -> list:
        """The values of all ranks, on each of them."""
        if self.world_size == 1:
            return [value]
        found = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """If one rank fails inside, all do, with the text of the first: else the others would wait
        for it, and report a lost connection. Inside, no rank may wait for another."""
        error: Exception | None = None
        try:
            yield
        except (ValueError, OSError, ImportError) as e:
            error = e
        texts = [text for text in self.gather(error and str(error)) if text is not None]
        if error is not None:
            raise error
        if texts:
            raise ValueError(texts[0])

    def close(self) -> None:
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def check_world_size(batch_size: int) -> None:
    """ValueError unless the ranks can share a batch. It needs no `Ranks`, so it can come before the
    models and the data."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if batch_size % world_size:
        raise ValueError(
            f"batch_size={batch_size} is not a multiple of the world size {world_size}: give "
            "one that is, or start another number of processes"
        )


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, on its device; x itself where there is one process."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
        x = x / dist.get_world_size()
    return x


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Yields a list of the signals SIGTERM and SIGINT that this process received, in place of
    ending it.

    Python allows signal handlers on the main thread only; on another thread the list stays empty.
    """
    received: list[int] = []
    if not on_main_thread():
        yield received
        return
    previous = {
        s: signal.signal(s, lambda number, _: received.append(number))
        for s in (signal.SIGTERM, signal.SIGINT)
    }
    # A DataLoader raises the death of a worker from this signal, wherever the training is, such as
    # in half an optimizer step. Without it, the death is an error of the next batch.
    if hasattr(signal, "SIGCHLD"):
        previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield received
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def next_batch(batches: Iterator[Any], received: list[int], seconds: float) -> Any:
    """next(batches), inside of `stop_on_signal`: see `wait_for`."""
    return wait_for(lambda: next(batches), seconds, (signal.SIGTERM, signal.SIGINT), received)


def keep_freed_memory() -> None:
    """Let the process keep the memory that a step on a CPU frees, for the next step.

    By default, glibc returns it to the system, which must clear each page before it gives it again:
    5 to 10% of the time of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never return memory
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: reuse blocks up to 32 MiB, the most there is


def peak_memory(device: torch.device | str = "cpu") -> float | None:
    """The largest memory used so far in GB: of tensors on a GPU, else of the process (or None)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "linux":  # where getrusage includes the memory of the parent at the fork
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e9
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


class Log:
    """metrics.jsonl, a JSON object per line, and a progress bar; with `tensorboard`, its numbers as
    TensorBoard files, too. All on rank 0 only.

    A run that resumes from a step drops the later lines, which it computes again.
    """

    def __init__(
        self, path: Path, step: int, is_main: bool, quiet: bool, tensorboard: bool = False
    ):
        self.is_main, self.quiet = is_main, quiet
        self.first: tuple[int, float] | None = None  # images and seconds at the first line
        self.path = path
        self.board = board(path.parent, step) if tensorboard and is_main else None
        if not is_main:
            return
        lines = (
            path.read_text(encoding="utf-8", errors="replace").splitlines()
            if path.exists() and step
            else []
        )
        kept = [line for line in lines if self.step_of(line) <= step]
        write_atomic(path, "".join(line + "\n" for line in kept))
        self.file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (open during the run)
        self.bar = tqdm(
            total=1.0,
            disable=True if quiet else None,
            bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
        )

    @staticmethod
    def step_of(line: str) -> float:
        """The step of a line; infinite for one that is not of a log, such as the incomplete last
        line of a killed run."""
        try:
            return float(json.loads(line)["step"])
        except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
            return float("inf")

    def training(
        self, step: int, progress: float, loss: float, images: int, seconds: float, **rest
    ) -> None:
        """Log the state of the training: images and seconds since its start, and other values."""
        if not self.is_main:
            return
        self.first = self.first or (images, seconds)
        speed = (images - self.first[0]) / max(seconds - self.first[1], 1e-9) or images / seconds
        left = seconds * (1 / progress - 1) if progress > 0 else 0
        self.bar.n = min(progress, 1.0)
        self.bar.set_description_str(
            f"step {step}  loss {loss:.4f}  {speed:.0f} images/s  {left / 60:.1f} min left"
        )
        self.write(
            step=step,
            loss=loss,
            images=images,
            seconds=round(seconds, 2),
            images_per_s=round(speed, 1),
            **rest,
        )

    def evaluation(self, step: int, metrics: dict, line: str) -> None:
        """Log the metrics of an evaluation, and print the line that sums them up."""
        self.write(step=step, **metrics)
        self.say(f"step {step}  {line}")

    def write(self, **values) -> None:
        """Add a line to metrics.jsonl, with 9 significant digits."""
        rounded = {k: float(f"{v:.9g}") if isinstance(v, float) else v for k, v in values.items()}
        with naming(self.path):
            self.file.write(json.dumps(rounded) + "\n")
        if self.board is not None:
            step = rounded.pop("step")
            for name, value in numbers(rounded):
                self.board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.is_main and not self.quiet:
            tqdm.write(text)

    def close(self) -> None:
        if self.is_main:
            self.bar.close()
            self.file.close()
        if self.board is not None:
            self.board.close()


def board(folder: Path, step: int):
    """A writer of TensorBoard files that hides what it wrote for later steps before a resume."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # it loads for seconds
    except ImportError:
        raise ValueError(
            "tensorboard=True, but TensorBoard is not installed: "
            'pip install "minflextok[tensorboard]", or give tensorboard=False'
        ) from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def numbers(values: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a log line by name: {"psnr": {"1": 12.9}} -> ("psnr/1", 12.9)."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, value
