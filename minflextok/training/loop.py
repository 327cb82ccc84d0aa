"""One training loop for all models: on a laptop, on a GPU, or on many under torchrun.

`fit` knows nothing about images or tokens. A `Task`, one class per stage (vae.py, tokenizer.py,
prior.py, classifier.py), provides the model whose forward returns the loss, its batches, and its
evaluation.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import TrainConfig
from ..evaluation import figures
from ..precision import autocast
from .checkpoints import claim_directory, describe_run
from .lock import only_run
from .optimizers import update_ema
from .run import Run
from .runtime import Log, Ranks, peak_memory, stop_on_signal
from .threads import on_chosen_threads


class Task:
    """What a stage trains, and on what. Its four subclasses override the methods.

    model: its forward takes the tensors of a batch and returns the mean loss over their first axis;
    its `config` is recorded in run.json, its `save_pretrained(out)` writes the weights at the end.
    sources: what the result depends on, for run.json; see `describe_run`.
    """

    model: nn.Module
    ranks: Ranks
    sources: dict

    def batches(self, run: Run) -> Iterator[tuple[Tensor, ...]]:
        """Endless, from step run.step on: the tensors of a batch, this rank's rows (run.share) of
        them, on run.device."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module) -> tuple[dict, str]:
        """Metrics of the averaged model on the validation split, and a line that sums them up."""
        raise NotImplementedError

    def picture(self, model: nn.Module, title: str) -> Figure | None:
        """Sample images of the averaged model."""
        return None


def start(task: Task, recipe: TrainConfig, out: Path) -> Run:
    """A new run in the directory `out`, or the one that was interrupted there."""
    ranks, path = task.ranks, out / "checkpoint.pt"
    if recipe.batch_size % ranks.world_size:
        raise ValueError(
            f"batch_size={recipe.batch_size} is not a multiple of the world size {ranks.world_size}"
        )
    out.mkdir(parents=True, exist_ok=True)
    run, resume = Run(task.model, recipe, ranks), path.exists()
    if ranks.is_main:
        record = describe_run(task.model.config, recipe, task.sources)
        claim_directory(out, record, resume)
    if resume:
        run.load(path)
    if ranks.mean(run.step) != run.step:
        raise ValueError(
            f"the ranks do not see the same checkpoint: out={str(out)!r} must be one shared "
            "directory"
        )
    return run


def fit(task: Task, recipe: TrainConfig, out: str | Path, quiet: bool = False) -> nn.Module:
    """Train task.model and return it with averaged weights, in eval mode.

    On rank 0, `out` gets checkpoint.pt (resumed from if it exists), metrics.jsonl, run.json, sample
    images and the weights. quiet: no progress bar and no printed lines. Raises ValueError if
    another run uses `out`; FloatingPointError if the loss is not finite; SystemExit(143), after
    saving, on SIGTERM or SIGINT.
    """
    with only_run(Path(out)) if task.ranks.is_main else nullcontext():
        return train(task, recipe, Path(out), quiet)


def train(task: Task, recipe: TrainConfig, out: Path, quiet: bool) -> nn.Module:
    """`fit`, in a directory that this run has locked."""
    c, ranks = recipe, task.ranks
    run, path = start(task, c, out), out / "checkpoint.pt"
    log = Log(out / "metrics.jsonl", run.step, ranks.is_main, quiet)
    if c.bf16 and run.precision == "float32":
        log.say(f"{run.device} does not compute bfloat16 natively: training in float32")
    casts = partial(autocast, run.device, c.bf16)
    objective = DistributedDataParallel(run.model) if ranks.world_size > 1 else run.model

    batches = on_chosen_threads(task.batches(run), run, out, log)
    with stop_on_signal() as signals:
        while (at := run.progress) < 1:
            lr = run.set_learning_rates(at)
            run.window.append(training_step(objective, run.optimizers, next(batches), c, casts))
            update_ema(run.ema, run.model, run.step, c.ema)
            run.step += 1
            run.tick()

            if run.step % c.log_every == 0 or run.evaluates:
                log_training(run, log, lr, path)
            if run.evaluates and ranks.is_main:
                with casts():
                    evaluate(task, run, log, out)
                run.save(path)
            if stops_here(run, signals):
                if ranks.is_main:
                    run.save(path)
                ranks.wait()  # torchrun ends all ranks once one has ended: wait for the checkpoint
                log.say(f"stopped at step {run.step}, saved; start the same run again to resume")
                raise SystemExit(143)
    if ranks.is_main:
        run.ema.save_pretrained(out)
        log.say(f"trained: weights in {out}")
    log.close()
    ranks.close()
    return run.ema


def training_step(
    objective: nn.Module, optimizers: list, batch: tuple[Tensor, ...], c: TrainConfig, casts
) -> Tensor:
    """One optimizer step in micro-batches -> (2,): loss, and gradient norm before clipping."""
    rows = len(batch[0])
    parts = list(zip(*(x.split(c.micro_batch or rows) for x in batch), strict=True))
    total = 0.0
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        with nullcontext() if last or not hasattr(objective, "no_sync") else objective.no_sync():
            with casts():
                loss = objective(*part) * (len(part[0]) / rows)
            loss.backward()
        total += loss.detach()
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    norm = nn.utils.clip_grad_norm_((p for group in groups for p in group["params"]), c.clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.stack([total, norm])  # tensors: reading their values would make a GPU wait


def log_training(run: Run, log: Log, lr: float, path: Path) -> None:
    """Log the mean loss and gradient norm of the steps since the last line, over all ranks."""
    loss, norm = map(run.ranks.mean, run.averages(path))
    run.window = []
    log.training(
        run.step,
        progress=run.progress,
        loss=loss,
        images=run.step * run.recipe.batch_size,
        seconds=run.seconds,
        grad_norm=norm,
        lr=lr,
        peak_gb=peak_memory(run.device),
        precision=run.precision,
    )


def evaluate(task: Task, run: Run, log: Log, out: Path) -> None:
    """Evaluate the averaged weights: sample images to out/samples, metrics to the log."""
    picture = task.picture(run.ema, f"step {run.step}")
    if picture is not None:
        figures.save(picture, out / "samples" / f"step_{run.step:06d}.png")
    log.evaluation(run.step, *task.evaluate(run.ema))


def stops_here(run: Run, signals: list[int]) -> bool:
    """Whether a signal asked any rank to stop. Several ranks agree on that every ten steps only."""
    if run.ranks.world_size > 1 and run.step % 10:
        return False
    return run.ranks.mean(bool(signals)) > 0 and run.progress < 1
