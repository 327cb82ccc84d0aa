"""What every training run needs, whatever it trains: checkpoints, signals, processes, a log."""

import json
import os
import re
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from ..config import TrainConfig, to_json


def first_line(e: Exception) -> str:
    return (str(e) or type(e).__name__).splitlines()[0]


def peak_memory(device: torch.device | str = "cpu") -> float:
    """The most GB that this process has held so far: on a GPU its tensors there, else all its memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "linux":  # where getrusage also counts what the parent held at the fork
        return (
            1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e9
        )
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / 1e9
    )


def save_checkpoint(state: dict, path: Path) -> None:
    """Write whole or not at all: a crash or a full disk leaves the previous checkpoint as it was."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as e:  # torch reports a failed write as a RuntimeError
        part.unlink(missing_ok=True)
        kept = f"{path} is still the last good one" if path.exists() else "there is none yet"
        raise OSError(
            f"could not write checkpoint {path} ({first_line(e)}): is the disk full? "
            f"{kept}; free some space and give the same command to resume"
        ) from None


def load_checkpoint(path: Path) -> dict:
    """Read with weights_only, which takes tensors and plain values and runs no code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise ValueError(
            f"{path} cannot be read ({first_line(e)}): delete it to start over"
        ) from None


@contextmanager
def stop_on_signal():
    """Yields a list that gets an item once SIGTERM or SIGINT asks this process to end."""
    asked = []
    before = {
        s: signal.signal(s, lambda number, _: asked.append(number))
        for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class Processes:
    """Who we are among the processes that torchrun started; alone without it."""

    def __init__(self, device: str | None = None):
        """device: "cpu", "cuda" (this process's own) or a certain one; by default a GPU where there is one."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        self.device = torch.device(
            f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device
        )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item() / self.world


def claim_directory(out: Path, model, recipe: TrainConfig, data: str, resume: bool) -> None:
    """Note in run.json what runs here; a checkpoint of another run is an error that names the differences."""
    harmless = ("workers", "log_every", "compile")
    mine = {"data": data, "model": json.loads(to_json(model)), "train": json.loads(to_json(recipe))}
    if resume:
        try:
            theirs = json.loads((out / "run.json").read_text())
        except (OSError, ValueError) as e:
            raise ValueError(
                f"{out} has a checkpoint, but its run.json cannot be read ({first_line(e)}): "
                "give another --out"
            ) from None
        differ = [
            f"{part}.{key}={theirs[part].get(key)!r} there, {value!r} here"
            for part in ("model", "train")
            for key, value in mine[part].items()
            if theirs[part].get(key) != value and key not in harmless
        ]
        differ += [f"data={theirs['data']!r} there, {data!r} here"] * (theirs["data"] != data)
        if differ:
            raise ValueError(
                f"{out} holds another run ({'; '.join(differ)}): give its settings, or another --out"
            )
        return
    part = out / "run.json.part"
    part.write_text(json.dumps(mine, indent=2) + "\n")
    os.replace(part, out / "run.json")


class Log:
    """A progress bar, and JSON lines; lines past the step that a run resumes from are dropped."""

    def __init__(self, path: Path, step: int, main: bool, quiet: bool):
        self.main, self.quiet, self.file = main, quiet, None
        self.first = None
        if not main:
            return
        old = path.read_text().splitlines() if path.exists() and step else []
        kept = [line for line in old if self.step_of(line) <= step]
        path.write_text("".join(line + "\n" for line in kept))
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 (open as long as the run)
        self.bar = tqdm(
            total=1.0,
            disable=True if quiet else None,
            bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
        )

    @staticmethod
    def step_of(line: str) -> float:
        """Its step; infinite for the torn last line of a killed run."""
        try:
            return json.loads(line)["step"]
        except ValueError:
            return float("inf")

    def line(self, step: int, at: float, loss: float, images: int, seconds: float, **rest) -> None:
        if not self.main:
            return
        self.first = self.first or (images, seconds)
        speed = (images - self.first[0]) / max(seconds - self.first[1], 1e-9) or images / seconds
        left = seconds * (1 / at - 1) if at > 0 else 0
        self.bar.n = min(at, 1.0)
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

    def evaluation(self, step: int, found: dict, words: str) -> None:
        self.write(step=step, **found)
        self.say(f"step {step}  {words}")

    def write(self, **values) -> None:
        self.file.write(
            json.dumps(
                {k: v if not isinstance(v, float) else float(f"{v:.9g}") for k, v in values.items()}
            )
            + "\n"
        )

    def say(self, text: str) -> None:
        if self.main and not self.quiet:
            tqdm.write(text)

    def close(self) -> None:
        if self.main:
            self.bar.close()
            self.file.close()
