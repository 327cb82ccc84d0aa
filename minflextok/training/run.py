"""The state of a training run."""

import copy
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..precision import precision
from .checkpoints import Checkpoints, names_in, resuming
from .optimizers import create_state, lr_factor, make_optimizers
from .parallel import checkpoint_activations, fill, full, local, set_aside, shard, share_buffers
from .runtime import Ranks


class Run:
    """The state of a training run. A checkpoint holds all of it that changes."""

    def __init__(self, model: nn.Module, recipe: TrainConfig, ranks: Ranks):
        self.recipe, self.ranks, self.device = recipe, ranks, ranks.device
        self.precision = precision(self.device, recipe.bf16)
        values = set_aside(model, self.device) if recipe.fsdp else {}
        self.model = model if recipe.fsdp else model.to(self.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        if recipe.checkpoint_activations:
            checkpoint_activations(self.model)
        if recipe.fsdp:
            self.unsharded = copy.deepcopy(self.ema)
            for part in (self.model, self.ema):
                shard(part, half=self.precision == "bfloat16")
            fill(self.model, values)
            shards = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            self.ema.load_state_dict(shards, strict=False, assign=True)
        self.optimizers = make_optimizers(self.model, recipe)
        self.now = time.process_time if recipe.processor_time else time.perf_counter
        self.step, self.seconds, self.clock = 0, 0.0, self.now()
        self.saved_at = time.monotonic()
        # Loss and gradient norm of the steps since the last log line, and of those on their way
        # from the GPU: (step, values, event).
        self.window: list[Tensor] = []
        self.arriving: list[tuple[int, Tensor, torch.cuda.Event | None]] = []
        self.skipped: list[int] = []  # steps whose loss or gradient was not finite

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

    @property
    def save_is_due(self) -> bool:
        """Whether save_minutes have passed since the last checkpoint, by the clock of rank 0."""
        limit = 60 * self.recipe.save_minutes
        return self.ranks.is_main and limit > 0 and time.monotonic() - self.saved_at >= limit

    def generator(self) -> torch.Generator:
        """The source of all random draws of this step, on the CPU; the same on all ranks."""
        return torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)

    def set_learning_rates(self, progress: float) -> float:
        """Set the learning rate of all parameter groups; returns that of AdamW (of the base
        width)."""
        factor = lr_factor(self.step, progress, self.recipe)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        return self.recipe.lr * factor

    def tick(self) -> None:
        """Add the time since the last call. All ranks use the mean, if time can end the run."""
        now = self.now()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        if self.recipe.minutes:
            self.seconds = self.ranks.mean(self.seconds)

    # ---- loss and gradient norm of each step -----------------------------------------------------

    def note(self, values: Tensor) -> None:
        """Take loss and gradient norm (2,) of the last step. They are copied from a GPU when it has
        computed them, and nothing waits."""
        event = torch.cuda.Event() if values.is_cuda else None
        self.arriving.append((self.step, values.detach().to("cpu", non_blocking=True), event))
        if event is not None:
            event.record()

    def settle(self, keep: int = 0) -> list[tuple[int, float, float]]:
        """Wait for the values of all steps but the last `keep`. Returns step, loss and gradient
        norm of those that are not finite."""
        bad = []
        while len(self.arriving) > keep:
            step, values, event = self.arriving.pop(0)
            if event is not None:
                event.synchronize()
            if bool(values.isfinite().all()):
                self.window.append(values)
            else:
                self.skipped.append(step)
                bad.append((step, *values.tolist()))
        return bad

    def averages(self) -> list[float]:
        """Mean loss and gradient norm of the finite steps since the last log line (NaN if none)."""
        if not self.window:
            return [float("nan")] * 2
        return torch.stack(self.window).mean(0).tolist()

    # ---- averaged weights and checkpoints --------------------------------------------------------

    def averaged(self) -> nn.Module:
        """The model with averaged weights, whole and in eval mode. All ranks must call this: with
        FSDP, they exchange their shards."""
        if not self.recipe.fsdp:
            return self.ema
        model = copy.deepcopy(self.unsharded)
        model.load_state_dict({k: full(x) for k, x in self.ema.state_dict().items()}, assign=True)
        return model.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by name, in their own memory."""
        found = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        found |= {f"ema.{name}": x for name, x in self.ema.state_dict().items()}
        names = {p: name for name, p in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for p, state in optimizer.state.items():
                found |= {f"optimizer.{names[p]}.{key}": x for key, x in state.items()}
        return {name: x if x.ndim else x.view(1) for name, x in found.items()}

    def save(self, checkpoints: Checkpoints) -> None:
        """Write the checkpoint of this step; never one with weights that are not finite."""
        weights = [local(p.detach()) for p in (*self.model.parameters(), *self.ema.parameters())]
        weights = [x for x in weights if x.numel()]  # a shard may be empty
        finite = torch.stack(torch._foreach_norm(weights, float("inf"))).isfinite().all().item()
        if self.ranks.mean(finite) < 1:
            found = checkpoints.found()
            raise FloatingPointError(
                f"weights are not finite at step {self.step}: give a smaller lr "
                f"(now lr={self.recipe.lr:g}). "
                + (f"{found[-1]} is the last good checkpoint" if found else "No checkpoint is left")
            )
        share_buffers(self.model)
        share_buffers(self.ema)
        values = {
            "seconds": self.seconds,
            "precision": self.precision,
            "window": [pair.tolist() for pair in self.window],
            "skipped": self.skipped,
        }
        checkpoints.save(self.step, values, self.tensors())
        self.saved_at = time.monotonic()

    def load(self, checkpoints: Checkpoints, path: Path) -> None:
        """Continue from a checkpoint."""
        with resuming(path) as saved:
            create_state(self.optimizers)
            self.drop_state(names_in(path))
            checkpoints.read(path, self.tensors())
            self.step, self.seconds, self.skipped = (
                saved[name] for name in ("step", "seconds", "skipped")
            )
            self.window = [torch.tensor(pair) for pair in saved["window"]]
        if saved["precision"] != self.precision:
            warnings.warn(
                f"{path} was trained in {saved['precision']}, this device continues in "
                f"{self.precision}: the result will differ slightly",
                stacklevel=4,
            )

    def drop_state(self, held: set[str]) -> None:
        """Make the names of this state those of a checkpoint: a parameter that never had a gradient
        has no optimizer state. ValueError if they differ in anything else."""
        names = {p: name for name, p in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for p in list(optimizer.state):
                if not any(f"optimizer.{names[p]}.{key}" in held for key in optimizer.state[p]):
                    del optimizer.state[p]
        own = self.tensors().keys()
        if own != held:
            missing, extra = sorted(own - held), sorted(held - own)
            raise ValueError(f"it lacks {missing[:3]} and has unknown {extra[:3]}")
