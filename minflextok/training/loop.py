"""One training loop for every model of this package: on a laptop, on a GPU, or on many under torchrun.

`fit` knows nothing of images or tokens: it asks `inputs` for the tensors of the next step and calls the model on them,
which returns the loss. What is trained, and on what, stands in stages.py.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainConfig
from .runtime import (
    Log,
    Processes,
    claim_directory,
    load_checkpoint,
    peak_memory,
    save_checkpoint,
    stop_on_signal,
)


def lr_factor(step: int, progress: float, c: TrainConfig) -> float:
    """Linear warmup over c.warmup steps, times a cosine over the run from 1 to c.min_lr."""
    cosine = c.min_lr + (1 - c.min_lr) * (1 + math.cos(math.pi * min(progress, 1))) / 2
    return cosine * min(1, (step + 1) / max(1, c.warmup))


def make_optimizer(model: nn.Module, c: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels alone; not on tokens, positions, gains and biases."""
    is_matrix = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    groups = [
        {
            "params": [p for p in model.parameters() if (id(p) in is_matrix) == decay],
            "weight_decay": c.weight_decay * decay,
        }
        for decay in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, c.beta2), fused=True)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Average the weights; the decay grows from 0 with the steps, so that the start is soon forgotten."""
    decay = min(decay, (step + 1) / (step + 10))
    torch._foreach_lerp_(
        list(ema.parameters()), [p.detach() for p in model.parameters()], 1 - decay
    )
    for mine, new in zip(ema.buffers(), model.buffers(), strict=True):
        mine.copy_(new)  # running statistics of norms


class Run:
    """All that changes while training, and so all that a checkpoint holds."""

    def __init__(self, model: nn.Module, c: TrainConfig, procs: Processes):
        self.c, self.procs, self.device, self.model = c, procs, procs.device, model.to(procs.device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = make_optimizer(self.model, c)
        self.now = time.process_time if c.processor_time else time.perf_counter
        self.step, self.seconds, self.clock = 0, 0.0, self.now()
        self.window: list[
            Tensor
        ] = []  # loss and gradient norm of each step since the last log line

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by the clock."""
        return max(
            self.step / self.c.steps, self.seconds / (60 * self.c.minutes) if self.c.minutes else 0
        )

    @property
    def share(self) -> slice:
        """The rows of a whole batch that are this process's."""
        return slice(self.procs.rank, None, self.procs.world)

    def generator(self) -> torch.Generator:
        """The source of every draw of this step, on the CPU; the same in all processes."""
        return torch.Generator().manual_seed(self.c.seed * 1_000_003 + self.step)

    def tick(self) -> None:
        """Add the time since the last call; all processes must agree on it where it ends the run."""
        now = self.now()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        if self.c.minutes:
            self.seconds = self.procs.mean(self.seconds)

    def averages(self, path: Path) -> list[float]:
        """Mean loss and gradient norm since the last log line."""
        loss, norm = torch.stack(self.window).mean(0).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"loss is {loss} and gradient norm {norm} at step {self.step}: lower --lr "
                f"(now {self.c.lr:g}). {path} holds the last good step, if any"
            )
        return [loss, norm]

    def save(self, path: Path) -> None:
        if self.window:
            self.averages(path)  # never overwrite a good checkpoint by a bad one
        save_checkpoint(
            {
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "step": self.step,
                "optimizer": self.optimizer.state_dict(),
                "seconds": self.seconds,
                "window": self.window,
            },
            path,
        )

    def load(self, path: Path) -> None:
        saved = load_checkpoint(path)
        for part in ("model", "ema", "optimizer"):
            getattr(self, part).load_state_dict(saved[part])
        self.step, self.seconds, self.window = (
            saved["step"],
            saved["seconds"],
            [w.to(self.device) for w in saved["window"]],
        )


def fit(
    model: nn.Module,
    inputs: Callable[[Run], Iterator[tuple[Tensor, ...]]],
    evaluate: Callable[[nn.Module, int], tuple[dict, str]],
    c: TrainConfig,
    out: str | Path,
    data_name: str,
    procs: Processes,
    quiet: bool = False,
) -> nn.Module:
    """Train `model` and return it with averaged weights, in eval mode.

    model: its forward takes the tensors of a batch and returns the mean loss over their first axis; its `config` is
    noted in run.json, its `save_pretrained(out)` writes the weights at the end.
    inputs(run): endless; from step run.step on, this process's share (run.share) of each batch, on run.device.
    evaluate(averaged model, step) -> values for the log, and the same in words. Called on rank 0.

    On rank 0, `out` gets checkpoint.pt (resumed from when it is there), metrics.jsonl and run.json.
    Raises FloatingPointError on a loss that is not finite; SystemExit(143) after saving on SIGTERM or SIGINT.
    """
    out, main = Path(out), procs.rank == 0
    if c.batch_size % procs.world:
        raise ValueError(
            f"batch_size={c.batch_size} is not a multiple of the {procs.world} processes"
        )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.pt"
    run = Run(model, c, procs)
    if main:
        claim_directory(out, model.config, c, data_name, resume=path.exists())
    if path.exists():
        run.load(path)
    if procs.mean(run.step) != run.step:
        raise ValueError(
            f"the processes do not see the same checkpoint: --out {out} must be one shared directory"
        )
    log = Log(out / "metrics.jsonl", run.step, main, quiet)
    autocast = partial(torch.autocast, run.device.type, torch.bfloat16, enabled=c.bf16)
    objective = DistributedDataParallel(run.model) if procs.world > 1 else run.model

    batches = inputs(run)
    with stop_on_signal() as asked:
        while (at := run.progress) < 1:
            for group in run.optimizer.param_groups:
                group["lr"] = c.lr * lr_factor(run.step, at, c)
            run.window.append(training_step(objective, run.optimizer, next(batches), c, autocast))
            update_ema(run.ema, run.model, run.step, c.ema)
            run.step += 1
            run.tick()

            evaluating = (
                run.step % c.eval_every == 0
                or run.step == min(100, c.eval_every)
                or run.progress >= 1
            )
            if run.step % c.log_every == 0 or evaluating:
                loss, norm = map(procs.mean, run.averages(path))
                run.window = []
                log.line(
                    run.step,
                    at=run.progress,
                    loss=loss,
                    grad_norm=norm,
                    lr=run.optimizer.param_groups[0]["lr"],
                    images=run.step * c.batch_size,
                    seconds=run.seconds,
                    peak_gb=peak_memory(run.device),
                )
            if evaluating and main:
                with autocast():
                    log.evaluation(run.step, *evaluate(run.ema, run.step))
                run.save(path)
            if (
                (procs.world == 1 or run.step % 10 == 0)
                and procs.mean(bool(asked)) > 0
                and run.progress < 1
            ):
                if main:
                    run.save(path)
                procs.mean(0.0)  # torchrun ends all processes once one has gone: wait for the save
                log.say(f"stopped at step {run.step}, saved; give the same command to go on")
                raise SystemExit(143)
    if main:
        run.ema.save_pretrained(out)
        log.say(f"trained: weights in {out}")
    log.close()
    procs.close()
    return run.ema


def training_step(
    objective: nn.Module, optimizer, batch: tuple[Tensor, ...], c: TrainConfig, autocast
) -> Tensor:
    """One optimiser step in micro-batches -> (2,): the loss, and the gradient norm before clipping."""
    rows = len(batch[0])
    parts = list(zip(*(x.split(c.micro_batch or rows) for x in batch), strict=True))
    total = 0.0
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        with nullcontext() if last or not hasattr(objective, "no_sync") else objective.no_sync():
            with autocast():
                loss = objective(*part) * (len(part[0]) / rows)
            loss.backward()
        total += loss.detach()
    norm = nn.utils.clip_grad_norm_(
        (p for group in optimizer.param_groups for p in group["params"]), c.clip
    )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack([total, norm])  # tensors: reading their values would make a GPU wait
