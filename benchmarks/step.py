"""The training step of tokenizers and priors: images/s, FLOP/s, share of the peak, memory.

    python benchmarks/step.py [--preset cifar10] [--prior cifar10] [--batch 64] [--plain]

Each model is measured eager and compiled; a tokenizer with the exact savings and without them
("plain", the fastest on a GPU). It has as many blocks as fit in the free memory by the planner's
account; on a CPU, as many as a step of a few seconds has time for.

The peak is that of one large matrix product in the same precision, measured before and after. FLOPs
are those of the drawn batch, as PyTorch counts them. Seconds are processor time on one CPU thread.
Memory is the highest of the process on a CPU, of tensors on a GPU. Each row runs in a process of
its own.
"""

import argparse
import json
import math
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from measure import count_flops, seconds
from report import machine
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from work import random_images, random_tok, training_step, typical_draws

from minflextok import Prior
from minflextok.config import PriorConfig, TokenizerConfig, TrainConfig
from minflextok.experiments.costs import USABLE
from minflextok.experiments.flops import prior_training_flops, tokenizer_training_flops
from minflextok.experiments.footprint import depth_names, works
from minflextok.experiments.plan import STAGES, Plan, memory_of
from minflextok.precision import precision
from minflextok.training.objective import TokenizerObjective
from minflextok.training.parallel import compile_blocks
from minflextok.training.runtime import keep_freed_memory, peak_memory
from minflextok.weights import write_atomic

CPU_FLOPS = 4e11  # of a step on a CPU: a few seconds of one core
CLASS_PRIORS = [name for name, p in STAGES["prior"].items() if not p.model.text]

# ---- as many blocks as fit -----------------------------------------------------------------------


def with_blocks(c: TokenizerConfig | PriorConfig, n: int) -> TokenizerConfig | PriorConfig:
    """The config with n of its blocks; a tokenizer: n of the decoder's, and the same share of the
    encoder's."""
    names = depth_names(c)
    share = n / getattr(c, names[-1])
    return replace(c, **{name: max(1, round(share * getattr(c, name))) for name in names})


def step_bytes(c: TokenizerConfig | PriorConfig, recipe: TrainConfig, batch: int) -> float:
    """Memory of a step by the planner's account, in bfloat16 and without the exact savings. No
    weights are averaged here."""
    recipe = replace(recipe, batch_size=batch, optimizer="adamw")
    memory = Plan(c, recipe, gpus=1, epochs=1).option(False, False, batch).memory()
    return sum(memory.values()) - memory["averaged weights"]


def as_many_blocks_as_fit(
    c: TokenizerConfig | PriorConfig,
    recipe: TrainConfig,
    batch: int,
    memory: float,
    flops: float = math.inf,
) -> TokenizerConfig | PriorConfig:
    """The config with the most blocks, at least one, whose step is within bytes and operations."""

    def exceeds(n: int) -> bool:
        some = with_blocks(c, n)
        prior = isinstance(some, PriorConfig)
        count = prior_training_flops(some) if prior else tokenizer_training_flops(some, 1.0, False)
        return batch * count > flops or (
            works() and step_bytes(some, recipe, batch) > USABLE * memory
        )

    numbers = range(1, getattr(c, depth_names(c)[-1]) + 1)
    return with_blocks(c, max(1, bisect_left(numbers, True, key=exceeds)))


# ---- a measurement -------------------------------------------------------------------------------


def matmul_speed(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    n = 8192 if device == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)  # ones would need less power, and be faster
    return 2 * n**3 / min(seconds(lambda: a @ a, device)[0] for _ in range(3))


def tokenizer_loss(
    c: TokenizerConfig, batch: int, device: str, savings: bool
) -> tuple[nn.Module, Callable[[], Tensor]]:
    tok = random_tok(c).to(device).train()
    tok.savings = savings
    x, objective = random_images(tok, batch), TokenizerObjective(tok)
    draws = typical_draws(tok, x)
    return tok, lambda: objective(x, *draws)


def prior_loss(c: PriorConfig, batch: int, device: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    prior = Prior(c).to(device).train()
    ids = torch.randint(c.vocab_size, (batch, c.num_tokens)).to(device)
    classes = prior.prepare(torch.arange(batch) % c.num_classes)
    draws = [draw.to(device) for draw in prior.draw(batch)]
    return prior, lambda: prior(ids, classes, *draws)


def measured(
    preset: str,
    batch: int,
    device: str,
    stage: str = "tokenizer",
    blocks: list[int] | None = None,
    savings: bool = False,
    compiled: bool = False,
    steps: int = 5,
    profiled: bool = False,
) -> dict:
    """blocks: of encoder and decoder, or of a prior; default: those of the preset."""
    if device == "cpu":
        keep_freed_memory()  # as training does
    c = STAGES[stage][preset].model
    c = replace(c, **dict(zip(depth_names(c), blocks, strict=True))) if blocks else c
    if isinstance(c, PriorConfig):
        model, loss = prior_loss(c, batch, device)
    else:
        model, loss = tokenizer_loss(c, batch, device, savings)
    step = training_step(model, loss, bf16=True)
    flops = count_flops({"step": step})["step"]
    if compiled:
        compile_blocks(model)
    dtype = getattr(torch, precision(device, True))
    before = matmul_speed(device, dtype)
    for _ in range(2):
        step()
    taken = median(seconds(step, device)[0] for _ in range(steps))
    peak = max(before, matmul_speed(device, dtype))
    memory = peak_memory(device)
    if profiled:
        print_profile(step, device)
        if device == "cpu" and not compiled:  # it keeps all factors: on a GPU, memory is scarce
            share = flops / seconds_of_products(step, device) / peak
            print(f"Its matrix products alone: {share:.0%} of the peak.", file=sys.stderr)
    return {
        "stage": stage,
        "preset": preset,
        "depth": [getattr(c, name) for name in depth_names(c)],
        "batch": batch,
        "savings": savings,
        "compiled": compiled,
        "precision": precision(device, True),
        "images_per_s": batch / taken,
        "flops": flops,
        "flops_per_s": flops / taken,
        "share_of_peak": flops / taken / peak,
        "peak_gb": memory,
    }


class Products(TorchDispatchMode):
    """Keeps the matrix products of what runs inside, with their factors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket in flop_registry:
            self.calls.append((operation, args, kwargs or {}))
        return operation(*args, **kwargs or {})

    @torch.no_grad()
    def again(self) -> None:
        for product, args, kwargs in self.calls:
            product(*args, **kwargs)


def seconds_of_products(step: Callable[[], Tensor], device: str) -> float:
    """The time of the matrix products of a step that is not compiled, without the rest of it."""
    with Products() as products:
        step()
    products.again()
    return min(seconds(products.again, device)[0] for _ in range(3))


def print_profile(step: Callable[[], Tensor], device: str) -> None:
    """The operations of a step (on a GPU: its kernels) that take most time, on stderr."""
    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as found:
        step()
    by = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=20), file=sys.stderr)


# ---- the rows ------------------------------------------------------------------------------------


def model_settings(a: argparse.Namespace, stage: str, preset: str) -> dict:
    """The size of a model and its batch, for this machine."""
    c, recipe = STAGES[stage][preset].model, STAGES[stage][preset].recipe
    if a.device == "cuda":
        batch = a.batch or recipe.micro_batch or recipe.batch_size
        memory, flops = torch.cuda.mem_get_info()[0], math.inf
    else:
        batch = a.batch or (4 if recipe.micro_batch else 64)  # large models train in micro-batches
        memory, flops = memory_of(a.device), CPU_FLOPS
    fitting = c if a.depth else as_many_blocks_as_fit(c, recipe, batch, memory, flops)
    blocks = a.depth or [getattr(fitting, name) for name in depth_names(c)]
    return {"stage": stage, "preset": preset, "batch": batch, "blocks": blocks}


def row(a: argparse.Namespace, settings: dict) -> dict | None:
    """A measurement in a process of its own; None if it fails, as without a compiler."""
    settings |= {"device": a.device, "steps": a.steps, "profiled": a.profile}
    command = [sys.executable, __file__, "--threads", str(a.threads), "--one", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if a.profile:
        print(done.stderr)
    if done.returncode:
        print(f"{settings['preset']}: failed: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def line(found: dict) -> str:
    c = STAGES[found["stage"]][found["preset"]].model
    whole = [getattr(c, name) for name in depth_names(c)]
    blocks, of = ("+".join(map(str, depth)) for depth in (found["depth"], whole))
    side = "" if found["stage"] == "prior" else "savings" if found["savings"] else "plain"
    return (
        f"{found['stage']:10}{found['preset']:14}{blocks + ' of ' + of:14}{found['batch']:5}  "
        f"{side:8}{'compiled' if found['compiled'] else 'eager':9}{found['precision']}  "
        f"{found['images_per_s']:8.1f} images/s{found['flops_per_s'] / 1e9:9.1f} GFLOP/s  "
        f"{found['share_of_peak']:4.0%} of the peak{found['peak_gb'] or 0:8.2f} GB"
    )


def rows(a: argparse.Namespace) -> list[dict]:
    """All measurements, each printed when it is there."""
    models = [("tokenizer", name) for name in a.preset] + [("prior", name) for name in a.prior]
    found = []
    print(f"{'stage':10}{'preset':14}{'blocks':14}batch")
    for stage, preset in models:
        settings = model_settings(a, stage, preset)
        for savings in (True, False) if stage == "tokenizer" and not a.plain else (False,):
            for compiled in (False,) if a.eager else (False, True):
                if one := row(a, settings | {"savings": savings, "compiled": compiled}):
                    found.append(one)
                    print(line(one), flush=True)
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--preset", nargs="+", choices=STAGES["tokenizer"], help="tokenizers")
    add("--prior", nargs="+", choices=CLASS_PRIORS, help="priors")
    add("--batch", type=int, help="images of a step (default: for each model)")
    add("--steps", type=int, default=5, help="steps that are timed")
    add("--device", default="cuda" if cuda else "cpu", choices=["cpu", "cuda"])
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--eager", action="store_true", help="without the compiled rows")
    add("--plain", action="store_true", help="without the rows with the exact savings")
    add("--quick", action="store_true", help="1 step, eager and plain, of 2 images")
    add("--depth", type=int, nargs="+", metavar="BLOCKS", help="of encoder and decoder; of a prior")
    add("--profile", action="store_true", help="print what takes most time, too")
    add("--out", type=Path, default=Path(__file__).with_name("step.json"), help="results as JSON")
    add("--one", type=json.loads, help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if not (a.preset or a.prior):
        large = a.device == "cuda"
        a.preset = ["cifar10", "d12-d12"] + ["d18-d28"] * large
        a.prior = ["cifar10", "ar-49m"] + ["ar-1.33b"] * large
    a.preset, a.prior = a.preset or [], a.prior or []
    if a.depth and (bool(a.preset), len(a.depth)) not in ((True, 2), (False, 1)):
        parser.error(f"--depth {a.depth}: give two numbers for tokenizers, or one for priors")
    if a.quick:
        a.steps, a.eager, a.plain, a.batch = 1, True, True, 2
    return a


def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    torch.set_num_threads(a.threads)
    if a.one:
        print(json.dumps(measured(**a.one)))
        return
    where = machine(a.device, ["default"]) | {"precision": precision(a.device, True)}
    write_atomic(a.out, json.dumps({"machine": where, "rows": rows(a)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
