"""One training loop for all models: on a laptop, on a GPU, or on many under torchrun.

`fit` knows nothing about images or tokens. A `Task`, one class per stage (vae.py, tokenizer.py,
prior.py, classifier.py), provides the model whose forward returns the loss, its batches, and its
evaluation.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.waiting import reader_error
from ..evaluation import figures
from ..precision import autocast
from .batches import batch_images
from .checkpoints import FORMER, Checkpoints, step_of
from .lock import only_run
from .optimizers import drop_gradients, update_ema
from .parallel import copies, full
from .record import claim_directory, describe_launch, describe_run
from .run import Run
from .runtime import (
    Log,
    Ranks,
    keep_freed_memory,
    mean_over_ranks,
    next_batch,
    peak_memory,
    stop_on_signal,
)
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

    def images(self, recipe: TrainConfig, step: int) -> list[str] | list[int]:
        """The images of a step, or one before the newest; [] where they are not known."""
        return batch_images(getattr(self, "train", None), recipe, step, self.ranks)

    def evaluate(self, model: nn.Module) -> tuple[dict, str]:
        """Metrics of the averaged model on the validation split, and a line that sums them up."""
        raise NotImplementedError

    def picture(self, model: nn.Module, title: str) -> Figure | None:
        """Sample images of the averaged model."""
        return None


def start(task: Task, recipe: TrainConfig, out: Path) -> tuple[Run, Checkpoints]:
    """A new run in the directory `out`, or the one that was interrupted there."""
    ranks = task.ranks
    checkpoints = Checkpoints(out, ranks)
    with ranks.together():
        out.mkdir(parents=True, exist_ok=True)
        if (out / FORMER).exists():
            raise ValueError(
                f"out={str(out)!r} holds a run of an earlier version of minflextok ({FORMER}), "
                "which cannot be resumed: give another out"
            )
        found = checkpoints.found()
        if ranks.is_main:
            record = describe_run(task.model.config, recipe, task.sources)
            launch = describe_launch(recipe, ranks, step_of(found[-1]) if found else 0)
            claim_directory(out, record, launch, resume=bool(found))
            checkpoints.clean()
    if len(set(ranks.gather(found[-1].name if found else None))) > 1:
        raise ValueError(
            f"the ranks do not see the same checkpoint: out={str(out)!r} must be one shared "
            "directory"
        )
    run = Run(task.model, recipe, ranks)
    if found:
        run.load(checkpoints, found[-1])
    return run, checkpoints


def fit(task: Task, recipe: TrainConfig, out: str | Path, quiet: bool = False) -> nn.Module:
    """Train task.model and return it with averaged weights, in eval mode.

    On rank 0, `out` gets checkpoints (resumed from if there are any), metrics.jsonl, run.json,
    sample images and the weights. quiet: no progress bar and no printed lines. Raises ValueError if
    another run uses `out`, and, after saving, if no more data can be read; FloatingPointError if
    too many losses are not finite; SystemExit(143), after saving, on SIGTERM or SIGINT.
    """
    with ExitStack() as lock:
        with task.ranks.together():
            if task.ranks.is_main:
                lock.enter_context(only_run(Path(out)))
        return train(task, recipe, Path(out), quiet)


def train(task: Task, recipe: TrainConfig, out: Path, quiet: bool) -> nn.Module:
    """`fit`, in a directory that this run has locked."""
    c, ranks = recipe, task.ranks
    if ranks.device.type == "cpu":
        keep_freed_memory()
    run, checkpoints = start(task, c, out)
    with ranks.together():
        log = Log(out / "metrics.jsonl", run.step, ranks.is_main, quiet, c.tensorboard)
    if c.bf16 and run.precision == "float32":
        log.say(f"{run.device} does not compute bfloat16 natively: training in float32")
    if run.skipped:
        log.say(f"resumed at step {run.step}; bad steps so far: {run.skipped}")
    casts = partial(autocast, run.device, c.bf16)
    objective = copies(run.model) if ranks.world_size > 1 and not c.fsdp else run.model

    batches = on_chosen_threads(task.batches(run), run, out, log)
    with stop_on_signal() as signals:
        while (at := run.progress) < 1:
            problem: BaseException | None = None
            try:
                batch = next_batch(batches, signals, 60 * c.reader_minutes)
            except (Exception, KeyboardInterrupt) as e:
                problem = e
            # All ranks learn here what any of them wants. The sum is one of the CPUs, so the GPUs
            # still compute the last step meanwhile.
            stop, save, failed = ranks.sum(
                bool(signals), run.save_is_due, isinstance(problem, Exception)
            )
            if stop or save or (failed and run.step):
                save_run(task, run, log, checkpoints)
            if failed and not stop:
                fail(problem, task, run, checkpoints)
            if stop:
                checkpoints.finish()
                ranks.wait()  # torchrun ends all ranks once one has ended: wait for the checkpoint
                log.say(f"stopped at step {run.step}, saved; start the same run again to resume")
                raise SystemExit(143)
            lr = run.set_learning_rates(at)
            values = training_step(objective, run.optimizers, batch, c, casts)
            update_ema(run.ema, run.model, run.step, c.ema)
            run.step += 1
            run.tick()
            run.note(values)
            report_bad_steps(task, run, log, checkpoints, keep=1 if values.is_cuda else 0)

            if run.step % c.log_every == 0 or run.evaluates:
                log_training(task, run, log, lr, checkpoints)
            if run.evaluates:
                averaged = run.averaged()
                with ranks.together(), casts():
                    if ranks.is_main:
                        evaluate(task, run, averaged, log, out)
                save_run(task, run, log, checkpoints)
            checkpoints.poll()
    checkpoints.finish()
    averaged = run.averaged()
    if ranks.is_main:
        averaged.save_pretrained(out)
        log.say(f"trained: weights in {out}")
    log.close()
    ranks.close()
    return averaged


def fail(problem: BaseException | None, task: Task, run: Run, checkpoints: Checkpoints) -> None:
    """End all ranks, after their checkpoint, with the error of the one that got no batch."""
    checkpoints.finish()
    c, name = run.recipe, task.sources["data"]["name"]
    text = problem and reader_error(problem, name, c.reader_minutes, c.workers)
    texts = [text for text in run.ranks.gather(text) if text is not None]
    if problem is not None and not text:
        raise problem
    saved = f"; step {run.step} is saved: the same command resumes from it" if run.step else ""
    raise ValueError((texts[0] or "another rank failed") + saved) from problem


def training_step(
    objective: nn.Module, optimizers: list, batch: tuple[Tensor, ...], c: TrainConfig, casts
) -> Tensor:
    """One optimizer step in micro-batches -> (2,): loss, and gradient norm before clipping.

    If one of the two is not finite, on any rank, the gradients count as zero.
    """
    rows = len(batch[0])
    parts = list(zip(*(x.split(c.micro_batch or rows) for x in batch), strict=True))
    total = torch.zeros((), device=batch[0].device)
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        with nullcontext() if last or not hasattr(objective, "no_sync") else objective.no_sync():
            with casts():
                loss = objective(*part) * (len(part[0]) / rows)
            loss.backward()
        total += loss.detach()
    params = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    norm = full(nn.utils.clip_grad_norm_(params, c.clip))
    values = torch.stack([mean_over_ranks(total), norm])
    drop_gradients(params, values.isfinite().all())
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return values  # a tensor: reading its values would make a GPU wait


def report_bad_steps(
    task: Task, run: Run, log: Log, checkpoints: Checkpoints, keep: int = 0
) -> None:
    """Warn of steps whose loss or gradient was not finite, of all but the last `keep`, and stop
    after too many of them: FloatingPointError."""
    for step, loss, norm in run.settle(keep):
        images = task.images(run.recipe, step - 1)
        shown = ", ".join(map(str, images[:8])) + (", ..." if len(images) > 8 else "")
        positions = images and isinstance(images[0], int)
        its = "positions of its images in the training split" if positions else "its images"
        where = f"; {its}: {shown}" if images else ""
        problem = f"loss is {loss} and gradient norm {norm} at step {step}"
        if run.ranks.is_main:
            log.write(step=step, bad={"loss": str(loss), "grad_norm": str(norm), "images": images})
            warnings.warn(f"{problem}: its gradient counts as zero{where}", stacklevel=2)
        recent = [s for s in run.skipped if s > step - 100]
        if len(recent) > run.recipe.max_bad_steps:
            found = checkpoints.found()
            raise FloatingPointError(
                f"{problem}: give a smaller lr (now lr={run.recipe.lr:g}) and another out. Bad "
                f"steps among the last 100: {recent}, more than "
                f"max_bad_steps={run.recipe.max_bad_steps}{where}. "
                + (
                    f"{found[-1]} is the last good checkpoint; the same command resumes from it "
                    "and meets the same images again: give "
                    f"max_bad_steps={max(10, 2 * run.recipe.max_bad_steps)} to go on without them"
                    if found
                    else "There is no checkpoint yet"
                )
            )


def log_training(task: Task, run: Run, log: Log, lr: float, checkpoints: Checkpoints) -> None:
    """Log the mean loss and gradient norm of the steps since the last line, over all ranks."""
    report_bad_steps(task, run, log, checkpoints)
    loss, norm = run.averages()
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


def evaluate(task: Task, run: Run, averaged: nn.Module, log: Log, out: Path) -> None:
    """Evaluate the averaged weights: sample images to out/samples, metrics to the log."""
    picture = task.picture(averaged, f"step {run.step}")
    if picture is not None:
        figures.save(picture, out / "samples" / f"step_{run.step:06d}.png")
    log.evaluation(run.step, *task.evaluate(averaged))


def save_run(task: Task, run: Run, log: Log, checkpoints: Checkpoints) -> None:
    """Write a checkpoint. All ranks call this at the same step."""
    report_bad_steps(task, run, log, checkpoints)
    run.save(checkpoints)
