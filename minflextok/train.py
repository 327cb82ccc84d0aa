"""Train a tokenizer: one loop for a laptop, a GPU, or many under torchrun.

Every draw of step s comes from a generator seeded by (seed, s), and every process takes its share of the same draws.
So a resumed run repeats the uninterrupted one exactly, and two processes repeat one.
"""

import copy
import json
import math
import os
import signal
import time
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .config import TokenizerConfig, TrainConfig, to_json
from .data import Dataset, Stream, to_float
from .figures import budget_grid, save
from .metrics import code_usage, health, one_step_psnr
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
        raise OSError(f"could not write checkpoint {path} ({str(e).splitlines()[0]}): is the disk full? "
                      f"{kept}; free some space and give the same command to resume") from None


def load_checkpoint(path: Path) -> dict:
    """Read with weights_only, which takes tensors and plain values and runs no code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise ValueError(f"{path} cannot be read ({str(e).splitlines()[0]}): delete it to start over") from None


@contextmanager
def stop_on_signal():
    """Yields a list that gets an item once SIGTERM or SIGINT asks this process to end."""
    asked = []
    before = {s: signal.signal(s, lambda number, _: asked.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class Processes:
    """Who we are among the processes that torchrun started; alone without it."""

    def __init__(self, device: str):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        self.device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item() / self.world


def claim_directory(out: Path, model: TokenizerConfig, recipe: TrainConfig, data: str, resume: bool) -> None:
    """Note in run.json what runs here; a checkpoint of another run is an error that names the differences."""
    mine = {"data": data, "model": json.loads(to_json(model)), "train": json.loads(to_json(recipe))}
    if resume:
        theirs = json.loads((out / "run.json").read_text())
        differ = [f"{part}.{key}={theirs[part].get(key)!r} there, {value!r} here" for part in ("model", "train")
                  for key, value in mine[part].items() if theirs[part].get(key) != value]
        differ += [f"data={theirs['data']!r} there, {data!r} here"] * (theirs["data"] != data)
        if differ:
            raise ValueError(f"{out} holds another run ({'; '.join(differ)}): give its settings, or another --out")
    (out / "run.json").write_text(json.dumps(mine, indent=2) + "\n")


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


def train_tokenizer(config: TokenizerConfig, recipe: TrainConfig, data: Dataset, out: str | Path,
                    device: str | None = None, quiet: bool = False) -> FlexTok:
    """Train a FlexTok on uint8 images and return it with averaged weights; on rank 0, `out` gets

    checkpoint.pt (resumed from when it is there), metrics.jsonl, samples/*.png, run.json, and at the end
    model.safetensors and config.json for `FlexTok.from_pretrained(out)`.
    Raises FloatingPointError on a loss that is not finite; SystemExit(143) after saving on SIGTERM or SIGINT.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    procs, out, c = Processes(device), Path(out), recipe
    device, main = procs.device, procs.rank == 0
    if c.batch_size % procs.world:
        raise ValueError(f"batch_size={c.batch_size} is not a multiple of the {procs.world} processes")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "checkpoint.pt"
    data, val = hold_out(data, c)
    if config.in_channels != 3 or val.shape[-1] != config.image_size:
        raise ValueError(f"{data.name} gives {tuple(val.shape[1:])} images, this model takes ({config.in_channels}, "
                         f"{config.image_size}, {config.image_size}): set image_size, or pick another preset")
    val = to_float(val).to(device)

    torch.manual_seed(c.seed)
    model = FlexTok(config).to(device)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = make_optimizer(model, c)
    step, seconds, window = 0, 0.0, []
    saved = load_checkpoint(path) if path.exists() else None
    if main:
        claim_directory(out, config, c, data.name, resume=saved is not None)
    if saved:
        model.load_state_dict(saved["model"])
        ema.load_state_dict(saved["ema"])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds, window = saved["step"], saved["seconds"], saved["window"]
    log = Log(out / "metrics.jsonl", step, main, quiet)

    objective = DistributedDataParallel(model) if procs.world > 1 else model
    if c.compile:
        objective = torch.compile(objective)

    def autocast():
        return torch.autocast(device.type, torch.bfloat16, enabled=c.bf16)

    def checkpoint() -> None:
        if main:
            save_checkpoint({"model": model.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict(),
                             "step": step, "seconds": seconds, "window": window}, path)

    def progress() -> float:
        return max(step / c.steps, seconds / (60 * c.minutes) if c.minutes else 0)

    if isinstance(getattr(data, "images", None), Tensor):
        data.images = data.images.to(device)  # small sets are batched on the device
    batches = data.batches(c.batch_size, c.seed, step, procs.rank, procs.world)
    share = slice(procs.rank, None, procs.world)
    with stop_on_signal() as asked:
        while (at := procs.mean(progress()) if c.minutes else progress()) < 1:
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = c.lr * lr_factor(step, at, c)
            x = to_float(next(batches).to(device, non_blocking=True))  # (B / world, 3, H, W)
            g = torch.Generator(device).manual_seed(c.seed * 1_000_003 + step)
            draws = model.draw(x[:1].expand(c.batch_size, -1, -1, -1), nested_prob(at, c), g)  # of the whole batch
            if c.flip:
                mirrored = torch.rand(c.batch_size, device=device, generator=g)[share] < 0.5
                x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
            window.append(training_step(objective, optimizer, x, [d[share] for d in draws], c, autocast))
            update_ema(ema, model, step, c.ema)
            step += 1
            done = progress() >= 1
            evaluating = step % c.eval_every == 0 or done
            if step % c.log_every == 0 or evaluating:
                loss, norm = (procs.mean(v) for v in torch.stack(window).mean(0).tolist())
                window = []
                if not math.isfinite(loss):
                    raise FloatingPointError(f"loss is {loss} at step {step}: lower --lr (now {c.lr:g}). "
                                             f"{path} holds the last good step")
            seconds += time.perf_counter() - began
            if step % c.log_every == 0 or evaluating:
                log.line(step, at=progress(), loss=loss, grad_norm=norm, lr=optimizer.param_groups[0]["lr"],
                         nested=nested_prob(at, c), images=step * c.batch_size, seconds=seconds)
            if evaluating:
                if main:
                    log.evaluation(step, evaluate(ema, val, autocast))
                    picture(ema, val[:8], out / "samples" / f"step_{step:06d}.png", f"step {step}", autocast)
                checkpoint()
            elif (procs.world == 1 or step % 10 == 0) and procs.mean(float(bool(asked))) > 0:
                checkpoint()
                log.say(f"stopped at step {step}, saved; give the same command to go on")
                raise SystemExit(143)
    if main:
        ema.save_pretrained(out)
    log.close()
    return ema


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


class Log:
    """A progress bar, and JSON lines; lines past the step that a run resumes from are dropped."""

    def __init__(self, path: Path, step: int, main: bool, quiet: bool):
        self.main, self.quiet, self.file = main, quiet, None
        self.first = None
        if not main:
            return
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step] if path.exists() else []
        path.write_text("".join(line + "\n" for line in kept if step))
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 (open as long as the run)
        self.bar = tqdm(total=1.0, disable=True if quiet else None, bar_format="{percentage:3.0f}%|{bar:20}| {desc}")

    def line(self, step: int, at: float, loss: float, images: int, seconds: float, **rest) -> None:
        if not self.main:
            return
        self.first = self.first or (images, seconds)
        speed = (images - self.first[0]) / max(seconds - self.first[1], 1e-9) or images / seconds
        left = seconds * (1 / at - 1) if at > 0 else 0
        self.bar.n = min(at, 1.0)
        self.bar.set_description_str(f"step {step}  loss {loss:.4f}  {speed:.0f} images/s  {left / 60:.1f} min left")
        self.write(step=step, loss=loss, images=images, seconds=round(seconds, 2), images_per_s=round(speed, 1), **rest)

    def evaluation(self, step: int, found: dict) -> None:
        self.write(step=step, **found)
        curve = "  ".join(f"{k}: {v:.1f}" for k, v in found["psnr"].items())
        used = sum(found["ids_used"]) / len(found["ids_used"])
        self.say(f"step {step}  one-step PSNR by tokens  {curve} dB  ids used per register {used:.0f}  {found['says']}")

    def write(self, **values) -> None:
        self.file.write(json.dumps({k: v if not isinstance(v, float) else float(f"{v:.9g}") for k, v in values.items()})
                        + "\n")

    def say(self, text: str) -> None:
        if self.main and not self.quiet:
            tqdm.write(text)

    def close(self) -> None:
        if self.main:
            self.bar.close()
            self.file.close()


