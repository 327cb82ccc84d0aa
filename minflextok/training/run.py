"""The state of a training run."""

import copy
import math
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..precision import precision
from .checkpoints import resuming, save_checkpoint
from .optimizers import lr_factor, make_optimizers
from .runtime import Ranks


class Run:
    """The state of a training run. A checkpoint holds all of it that changes."""

    def __init__(self, model: nn.Module, recipe: TrainConfig, ranks: Ranks):
        self.recipe, self.ranks, self.device = recipe, ranks, ranks.device
        self.model = model.to(self.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizers = make_optimizers(self.model, recipe)
        self.precision = precision(self.device, recipe.bf16)
        self.now = time.process_time if recipe.processor_time else time.perf_counter
        self.step, self.seconds, self.clock = 0, 0.0, self.now()
        self.window: list[
            Tensor
        ] = []  # loss and gradient norm of the steps since the last log line

    @property
    def progress(self) -> float:
        """The share of the run that is done, by steps or by time."""
        limit = 60 * self.recipe.minutes
        return max(self.step / self.recipe.steps, self.seconds / limit if limit else 0)

    @property
    def share(self) -> slice:
        """This rank's rows of a whole batch."""
        return slice(self.ranks.rank, None, self.ranks.world_size)

    @property
    def evaluates(self) -> bool:
        """Whether to evaluate after this step: every eval_every steps, early on, and at the end."""
        every = self.recipe.eval_every
        return self.step % every == 0 or self.step == min(100, every) or self.progress >= 1

    def generator(self) -> torch.Generator:
        """The source of all random draws of this step, on the CPU; the same on all ranks."""
        return torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)

    def set_learning_rates(self, progress: float) -> float:
        """Set the learning rate of all parameter groups; returns that of AdamW."""
        factor = lr_factor(self.step, progress, self.recipe)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        return self.optimizers[0].param_groups[0]["lr"]

    def tick(self) -> None:
        """Add the time since the last call. All ranks use the mean, if time can end the run."""
        now = self.now()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        if self.recipe.minutes:
            self.seconds = self.ranks.mean(self.seconds)

    def averages(self, path: Path) -> list[float]:
        """Mean loss and gradient norm since the last log line; FloatingPointError if not finite."""
        loss, norm = torch.stack(self.window).mean(0).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"loss is {loss} and gradient norm {norm} at step {self.step}: give a smaller lr "
                f"(now lr={self.recipe.lr:g}). {path} holds the last good step, if there was one"
            )
        return [loss, norm]

    def save(self, path: Path) -> None:
        """Write the checkpoint; never overwrite a good one with weights that are not finite."""
        if self.window:
            self.averages(path)
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "precision": self.precision,
            "step": self.step,
            "seconds": self.seconds,
            "window": self.window,
        }
        save_checkpoint(state, path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        with resuming(path) as saved:
            self.model.load_state_dict(saved["model"])
            self.ema.load_state_dict(saved["ema"])
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.step, self.seconds = saved["step"], saved["seconds"]
            self.window = [w.to(self.device) for w in saved["window"]]
        if saved["precision"] != self.precision:
            warnings.warn(
                f"{path} was trained in {saved['precision']}, this device continues in "
                f"{self.precision}: the result will differ slightly",
                stacklevel=4,
            )
