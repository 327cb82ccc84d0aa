"""The training step of tokenizers: images/s, FLOP/s, share of the peak, memory; eager and compiled.

    python benchmarks/step.py [--preset cifar10] [--batch 64] [--plain] [--profile]

The peak is that of one large matrix product in the same precision, measured before and after. FLOPs
are those of the drawn batch, as PyTorch counts them. Memory is the highest of the process on a CPU,
of tensors on a GPU. Each row runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from measure import count_flops, seconds
from report import machine
from torch.profiler import ProfilerActivity, profile
from work import random_images, random_tok, typical_draws

from minflextok import PRESETS
from minflextok.precision import autocast, precision
from minflextok.training.objective import TokenizerObjective
from minflextok.training.runtime import peak_memory
from minflextok.training.tokenizer import compile_blocks
from minflextok.weights import write_atomic


def matmul_speed(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    n = 8192 if device == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)  # ones would need less power, and be faster
    return 2 * n**3 / min(seconds(lambda: a @ a, device)[0] for _ in range(3))


def measured(
    preset: str,
    batch: int,
    device: str,
    compiled: bool,
    steps: int,
    plain: bool = False,
    profiled: bool = False,
    depth: Sequence[int] = (),
) -> dict:
    config = PRESETS[preset]
    if depth:  # encoder, decoder
        config = replace(config, enc_depth=depth[0], dec_depth=depth[1])
    tok = random_tok(config).to(device).train()
    tok.savings = not plain
    x, objective = random_images(tok, batch), TokenizerObjective(tok)
    draws = typical_draws(tok, x)
    optimizer = torch.optim.AdamW(tok.parameters(), lr=0.0, fused=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with autocast(device, True):
            loss = objective(x, *draws)
        loss.backward()
        optimizer.step()
        return loss.detach()

    flops = count_flops({"step": step})["step"]
    if compiled:
        compile_blocks(tok)
    dtype = getattr(torch, precision(device, True))
    before = matmul_speed(device, dtype)
    for _ in range(2):
        step()
    taken = median(seconds(step, device)[0] for _ in range(steps))
    peak = max(before, matmul_speed(device, dtype))
    if profiled:
        print_profile(step, device)
    return {
        "preset": preset,
        "depth": [config.enc_depth, config.dec_depth],
        "batch": batch,
        "compiled": compiled,
        "precision": precision(device, True),
        "images_per_s": batch / taken,
        "flops": flops,
        "flops_per_s": flops / taken,
        "share_of_peak": flops / taken / peak,
        "peak_gb": peak_memory(device),
    }


def print_profile(step: Callable[[], torch.Tensor], device: str) -> None:
    """The operations of a step (on a GPU: its kernels) that take most time, on stderr."""
    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as found:
        step()
    by = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=20), file=sys.stderr)


def row(a: argparse.Namespace, preset: str, compiled: bool) -> dict | None:
    """A measurement in a process of its own; None if it fails, as without a compiler."""
    command = [sys.executable, __file__, "--preset", preset, "--batch", str(a.batch)]
    command += ["--device", a.device, "--steps", str(a.steps), "--threads", str(a.threads)]
    command += ["--one", "compiled" if compiled else "eager"]
    command += ["--plain"] * a.plain + ["--profile"] * a.profile
    command += ["--depth", *map(str, a.depth)] if a.depth else []
    done = subprocess.run(command, capture_output=True, text=True)
    if a.profile:
        print(done.stderr)
    if done.returncode:
        print(f"{preset}: failed: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    presets = ["cifar10", "d12-d12", "d18-d28"] if cuda else ["cifar10"]
    add("--preset", nargs="+", default=presets, choices=PRESETS)
    add("--batch", type=int, default=8 if cuda else 64, help="images of a step")
    add("--steps", type=int, default=5, help="steps that are timed")
    add("--device", default="cuda" if cuda else "cpu", choices=["cpu", "cuda"])
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--eager", action="store_true", help="without the compiled rows")
    add("--plain", action="store_true", help="without the exact savings")
    add("--depth", type=int, nargs=2, metavar="BLOCKS", help="encoder and decoder blocks instead")
    add("--profile", action="store_true", help="print what takes most time, too")
    add("--out", type=Path, default=Path(__file__).with_name("step.json"), help="results as JSON")
    add("--one", choices=["eager", "compiled"], help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    torch.set_num_threads(a.threads)
    if a.one:
        found = measured(
            a.preset[0],
            a.batch,
            a.device,
            a.one == "compiled",
            a.steps,
            a.plain,
            a.profile,
            a.depth or (),
        )
        return print(json.dumps(found))
    rows = []
    for preset in a.preset:
        for compiled in (False,) if a.eager else (False, True):
            if found := row(a, preset, compiled):
                rows.append(found)
                print(
                    f"{preset:10}{'compiled' if compiled else 'eager':>9}  {found['precision']}  "
                    f"{found['images_per_s']:8.1f} images/s  {found['flops_per_s'] / 1e9:8.1f} "
                    f"GFLOP/s  {found['share_of_peak']:4.0%} of the peak  "
                    f"{found['peak_gb'] or 0:.2f} GB",
                    flush=True,
                )
    where = machine(a.device, ["default"]) | {"precision": precision(a.device, True)}
    write_atomic(a.out, json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
