"""Train a tokenizer: one loop for a laptop, a GPU, or many under torchrun.

Every draw of step s comes from a generator seeded by (seed, s), and every process takes its share of the same draws.
So a resumed run repeats the uninterrupted one exactly, and two processes repeat one.
"""

import copy
import math
import time
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .config import TokenizerConfig, TrainConfig
from .data import Dataset, Images, Stream, to_float
from .figures import budget_grid, save
from .metrics import code_usage, health, one_step_psnr
from .run import Log, Processes, claim_directory, load_checkpoint, save_checkpoint, stop_on_signal
from .tokenizer import FlexTok


def lr_factor(step: int, progress: float, c: TrainConfig) -> float:
    """Linear warmup over c.warmup steps, times a cosine over the run from 1 to c.min_lr."""
    cosine = c.min_lr + (1 - c.min_lr) * (1 + math.cos(math.pi * min(progress, 1))) / 2
    return cosine * min(1, (step + 1) / max(1, c.warmup))


def nested_prob(progress: float, c: TrainConfig) -> float:
    """Share of the images that get nested dropout: 0 until c.nested_from of the run, 1 from c.nested_full on."""
    if progress >= c.nested_full:
        return 1.0
    return max(0.0, (progress - c.nested_from) / (c.nested_full - c.nested_from))


def make_optimizer(model: nn.Module, c: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone; not on tokens, positions and biases."""
    is_matrix = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    groups = [{"params": [p for p in model.parameters() if (id(p) in is_matrix) == decay],
               "weight_decay": c.weight_decay * decay} for decay in (True, False)]
    return torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, c.beta2), fused=True)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Average the weights; the decay grows from 0 with the steps, so that the start is soon forgotten."""
    decay = min(decay, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in model.parameters()], 1 - decay)


@torch.no_grad()
def evaluate(tok: FlexTok, images: Tensor, autocast) -> dict:
    """One-step PSNR against k, and how many ids each register uses, on held-out images."""
    with autocast():
        ids = torch.cat([tok.encode(x) for x in images.split(256)])
        psnrs = one_step_psnr(tok, images, ids)
    used, perplexity = code_usage(ids, tok.config.vocab_size)
    return {"psnr": {str(k): round(v, 3) for k, v in psnrs.items()}, "ids_used": used.tolist(),
            "perplexity": [round(p, 2) for p in perplexity.tolist()],
            "says": health(psnrs, perplexity, tok.config.vocab_size)}


def picture(tok: FlexTok, images: Tensor, path: Path, title: str, autocast) -> None:
    """Reconstructions at rising budgets, all from the same noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with autocast():
        ids = tok.encode(images)
        grid = {k: tok.decode(ids[:, :k], steps=10, noise=noise) for k in tok.config.budgets}
    save(budget_grid(images, grid, title), path)


def hold_out(data: Dataset, c: TrainConfig) -> tuple[Dataset, Tensor]:
    """Training images, and the (n, 3, H, W) uint8 that the log is measured on; never the test split."""
    if isinstance(data, Stream):
        warnings.warn("a stream cannot hold images out: PSNR is logged on the first images of its shards", stacklevel=2)
        return data, data.head(c.val_images)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(c.seed))
    n = min(c.val_images, len(data) // 10)
    if n == 0:
        raise ValueError(f"{data.name} has {len(data)} images: training wants at least 10")
    return data.select(order[n:]), data.at(order[:n])


class Training:
    """All that changes while training, and so all that a checkpoint holds."""

    def __init__(self, config: TokenizerConfig, c: TrainConfig, device: torch.device):
        torch.manual_seed(c.seed)
        self.c, self.device, self.model = c, device, FlexTok(config).to(device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = make_optimizer(self.model, c)
        self.step, self.seconds, self.clock = 0, 0.0, time.perf_counter()
        self.window: list[Tensor] = []  # loss and gradient norm of each step since the last log line

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by the clock."""
        return max(self.step / self.c.steps, self.seconds / (60 * self.c.minutes) if self.c.minutes else 0)

    def tick(self, procs: Processes) -> None:
        """Add the time since the last call; all processes must agree on it where it ends the run."""
        self.seconds, self.clock = self.seconds + time.perf_counter() - self.clock, time.perf_counter()
        if self.c.minutes:
            self.seconds = procs.mean(self.seconds)

    def averages(self, path: Path) -> list[float]:
        """Mean loss and gradient norm since the last log line."""
        loss, norm = torch.stack(self.window).mean(0).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(f"loss is {loss} and gradient norm {norm} at step {self.step}: lower --lr "
                                     f"(now {self.c.lr:g}). {path} holds the last good step, if any")
        return [loss, norm]

    def save(self, path: Path) -> None:
        if self.window:
            self.averages(path)  # never overwrite a good checkpoint by a bad one
        save_checkpoint({"model": self.model.state_dict(), "ema": self.ema.state_dict(), "step": self.step,
                         "optimizer": self.optimizer.state_dict(), "seconds": self.seconds, "window": self.window}, path)

    def load(self, path: Path) -> None:
        saved = load_checkpoint(path)
        for part in ("model", "ema", "optimizer"):
            getattr(self, part).load_state_dict(saved[part])
        self.step, self.seconds, self.window = saved["step"], saved["seconds"], [w.to(self.device) for w in saved["window"]]


def train_tokenizer(config: TokenizerConfig, recipe: TrainConfig, data: Dataset, out: str | Path,
                    device: str | None = None, quiet: bool = False) -> FlexTok:
    """Train a FlexTok on uint8 images and return it with averaged weights; on rank 0, `out` gets

    checkpoint.pt (resumed from when it is there), metrics.jsonl, samples/*.png, run.json, and at the end
    model.safetensors and config.json for `FlexTok.from_pretrained(out)`.
    Raises FloatingPointError on a loss that is not finite; SystemExit(143) after saving on SIGTERM or SIGINT.
    """
    procs, out, c = Processes(device or ("cuda" if torch.cuda.is_available() else "cpu")), Path(out), recipe
    device, main, share = procs.device, procs.rank == 0, slice(procs.rank, None, procs.world)
    if c.batch_size % procs.world:
        raise ValueError(f"batch_size={c.batch_size} is not a multiple of the {procs.world} processes")
    data, val = hold_out(data, c)
    if config.in_channels != 3 or val.shape[-1] != config.image_size:
        hint = ("load them with this image_size" if config.in_channels == 3 else
                "it works on the latents of a VAE, which is not part of this package yet; pick a pixel preset")
        raise ValueError(f"{data.name} gives {tuple(val.shape[1:])} images, this model takes ({config.in_channels}, "
                         f"{config.image_size}, {config.image_size}): {hint}")
    val = to_float(val).to(device)
    if isinstance(data, Images):
        data.images = data.images.to(device)  # small sets are batched on the device
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=c.bf16)

    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.pt"
    run = Training(config, c, device)
    if main:
        claim_directory(out, config, c, data.name, resume=path.exists())
    if path.exists():
        run.load(path)
    if procs.mean(run.step) != run.step:
        raise ValueError(f"the processes do not see the same checkpoint: --out {out} must be one shared directory")
    log = Log(out / "metrics.jsonl", run.step, main, quiet)
    objective = DistributedDataParallel(run.model) if procs.world > 1 else run.model
    if c.compile:
        objective = torch.compile(objective)

    batches = data.batches(c.batch_size, c.seed, run.step, procs.rank, procs.world)
    with stop_on_signal() as asked:
        while (at := run.progress) < 1:
            for group in run.optimizer.param_groups:
                group["lr"] = c.lr * lr_factor(run.step, at, c)
            x = to_float(next(batches).to(device, non_blocking=True))  # (B / world, 3, H, W)
            g = torch.Generator(device).manual_seed(c.seed * 1_000_003 + run.step)
            draws = run.model.draw(x[:1].expand(c.batch_size, -1, -1, -1), nested_prob(at, c), g)  # of the whole batch
            if c.flip:
                mirrored = torch.rand(c.batch_size, device=device, generator=g)[share] < 0.5
                x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
            run.window.append(training_step(objective, run.optimizer, x, [d[share] for d in draws], c, autocast))
            update_ema(run.ema, run.model, run.step, c.ema)
            run.step += 1
            run.tick(procs)

            evaluating = run.step % c.eval_every == 0 or run.step == min(100, c.eval_every) or run.progress >= 1
            if run.step % c.log_every == 0 or evaluating:
                loss, norm = map(procs.mean, run.averages(path))
                run.window = []
                log.line(run.step, at=run.progress, loss=loss, grad_norm=norm, lr=run.optimizer.param_groups[0]["lr"],
                         nested=nested_prob(at, c), images=run.step * c.batch_size, seconds=run.seconds)
            if evaluating and main:
                log.evaluation(run.step, evaluate(run.ema, val, autocast))
                picture(run.ema, val[:8], out / "samples" / f"step_{run.step:06d}.png", f"step {run.step}", autocast)
                run.save(path)
            if (procs.world == 1 or run.step % 10 == 0) and procs.mean(bool(asked)) > 0 and run.progress < 1:
                if main:
                    run.save(path)
                procs.mean(0.0)  # torchrun ends all processes once one has gone: wait for the save
                log.say(f"stopped at step {run.step}, saved; give the same command to go on")
                raise SystemExit(143)
    if main:
        run.ema.save_pretrained(out)
        log.say(f"trained: FlexTok.from_pretrained({str(out)!r}), or minflextok reconstruct --weights {out} ...")
    log.close()
    procs.close()
    return run.ema


def training_step(objective: nn.Module, optimizer, x: Tensor, draws: list[Tensor], c: TrainConfig, autocast
                  ) -> Tensor:
    """One optimiser step on x (B, 3, H, W) in micro-batches -> (2,): the loss, and the gradient norm before clipping."""
    size = c.micro_batch or len(x)
    parts = list(zip(x.split(size), *(d.split(size) for d in draws), strict=True))
    total = 0.0
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        with nullcontext() if last or not hasattr(objective, "no_sync") else objective.no_sync():
            with autocast():
                loss = objective(*part) * (len(part[0]) / len(x))
            loss.backward()
        total += loss.detach()
    norm = nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), c.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack([total, norm])  # tensors: reading their values would make a GPU wait


