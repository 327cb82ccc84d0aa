"""What the exact savings save: the same work on the same weights with `tok.savings` on and off.

    python benchmarks/bench.py [--threads 1 --turns 3 --steps 20]   # writes results.json, cost.png

Both sides take turns, because the speed of a machine changes over minutes. A row of the table has
the median time of each side; the ratio of the medians and, in brackets, the lowest and the highest
ratio of a turn; the largest difference of the two outputs, relative to the largest output; and for
each side its operations, its speed, that speed as a share of the highest that one large matrix
product reached between the turns, and its peak memory beyond what was allocated before. "decode, n"
is n Euler steps with guidance; for a training step, k is the mean keep_k.

Weights are random (also those that are initialized to zero): time does not depend on their values.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measure import SIDES, compare, count_flops, seconds
from report import header, line, machine, plot_cost
from torch.nn.attention import SDPBackend, sdpa_kernel
from work import (
    GUIDANCE,
    decoding,
    encoding,
    on_and_off,
    random_ids,
    random_images,
    random_tok,
    training,
    typical_draws,
)

from minflextok import PRESETS, FlexTok, savings
from minflextok.experiments.flops import decode_flops, encoder_flops
from minflextok.training.runtime import peak_memory
from minflextok.weights import write_atomic

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@torch.no_grad()
def cost_of_velocity(tok: FlexTok, turns: int, device: str) -> dict:
    """Seconds of a decoder call at k = 1, 2, 4, ..., K, with a linear fit over the positions."""
    c, x = tok.config, random_images(tok, 1)
    ids = random_ids(tok, 1, c.num_registers)
    calls = {k: on_and_off(tok, lambda k=k: tok.velocity(x, 0.5, ids[:, :k])) for k in c.budgets}
    timed = {k: call["on"] for k, call in calls.items()} | {"off": calls[c.budgets[-1]]["off"]}
    times = {name: [] for name in timed}
    for turn in range(turns + 1):
        for name, call in timed.items():
            taken, _ = seconds(call, device)
            times[name] += [taken] * (turn > 0)  # the first is a warm-up
    positions = [c.grid**2 + min(k + 1, c.num_registers) for k in c.budgets]
    y = [median(times[k]) for k in c.budgets]
    slope, intercept = np.polyfit(positions, y, 1)
    residual = np.array(y) - (slope * np.array(positions) + intercept)
    return {
        "k": c.budgets,
        "positions": positions,
        "seconds": y,
        "off_positions": c.grid**2 + c.num_registers,
        "off_seconds": median(times["off"]),
        "slope_s": slope,
        "intercept_s": intercept,
        "r2": 1 - residual.var() / np.var(y),
        "turns": turns,
    }


def print_peak(preset: str, what: str, B: str, k: str, side: str) -> None:
    """Print the MB that a piece of work takes at its peak, beyond the weights."""
    tok = random_tok(PRESETS[preset])
    if what == "train":
        work = training(tok, int(B))
    else:
        work = {"encode": encoding, "decode": decoding}[what](tok, int(B), int(k))
    before = peak_memory()
    work[side]()
    print(1e3 * (peak_memory() - before))


def cpu_memory(args: argparse.Namespace, what: str, B: int, k: int = 0) -> dict[str, float]:
    """Each side in a process of its own, because a process knows only its highest peak so far."""
    skipped = args.quick and (what, k) != ("encode", 1)
    if args.device != "cpu" or skipped or peak_memory() is None:
        return {}
    command = [sys.executable, __file__, "--preset", args.preset, "--threads", str(args.threads)]
    command += ["--peak", what, str(B), str(k)]
    printed = {
        side: subprocess.run([*command, side], check=True, capture_output=True, text=True).stdout
        for side in SIDES
    }
    return {f"{side}_mb": float(text) for side, text in printed.items()}


def compile_networks(tok: FlexTok) -> None:
    """What the plain path calls, and the functions of savings.py that replace it."""
    tok.encoder.compile()
    tok.decoder.compile()
    for name in ("encode_registers", "modulations", "velocity"):
        setattr(savings, name, torch.compile(getattr(savings, name)))


def results(tok: FlexTok, args: argparse.Namespace) -> Iterator[dict]:
    """The rows of the table: a training step, encoding, decoding."""
    c, device, turns = tok.config, args.device, args.turns

    def row(what: str, B: int, k: int | str, flops: dict[str, int], measured: dict) -> dict:
        return {"what": what, "B": B, "k": k, **{f"{s}_flops": flops[s] for s in SIDES}, **measured}

    if B := args.train_batch:
        memory = cpu_memory(args, "train", B)  # before this process holds an optimizer too
        work = training(tok, B)
        flops = count_flops(work)  # before compilation, which hides the products from the counter
        if device == "cuda":
            compile_networks(tok)
        mean_k = typical_draws(tok, random_images(tok, B))[2].float().mean().item()
        yield row("train", B, f"~{mean_k:.0f}", flops, compare(work, turns, device) | memory)
        del work
        tok.zero_grad()
    elif device == "cuda":
        compile_networks(tok)
    if device == "cuda":
        tok.bfloat16()

    ks = [k for k in (1, 16, 256) if k < c.num_registers] + [c.num_registers]
    cases = [(B, k) for B in ([1] if args.quick else [1, 4]) for k in ks]
    for B, k in cases:
        torch.compiler.reset()  # its cache holds eight shapes
        flops = {side: encoder_flops(c, B, k, side == "on") for side in SIDES}
        measured = compare(encoding(tok, B, k), turns, device)
        yield row("encode", B, k, flops, measured | cpu_memory(args, "encode", B, k))
    for B, k in cases:
        torch.compiler.reset()
        n = max(1, args.steps // B)
        flops = {side: decode_flops(c, B, k, n, side == "on") for side in SIDES}
        measured = compare(decoding(tok, B, k, n), turns, device, decoding(tok, B, k))
        yield row(f"decode, {n}", B, k, flops, measured | cpu_memory(args, "decode", B, k))
    torch.compiler.reset()


def run(args: argparse.Namespace) -> None:
    tok, where = random_tok(PRESETS[args.preset]).to(args.device), machine(args.device, args.sdpa)
    print(f"{args.preset}, {', '.join(f'{k} {v}' for k, v in where.items())}; {args.turns} turns")
    print(f"decode, n: n Euler steps with guidance {GUIDANCE:g}\n\n{header()}", flush=True)
    rows = []
    for row in results(tok, args):
        rows.append(row)
        print(line(row), flush=True)
    cost = cost_of_velocity(tok, 1 if args.quick else 3 * args.turns, args.device)
    print(
        f"\na decoder call at batch 1: {1e3 * cost['intercept_s']:.1f} ms + "
        f"{1e3 * cost['slope_s']:.3f} ms per position (R2 {cost['r2']:.4f}), "
        f"from {min(cost['positions'])} to {max(cost['positions'])} positions"
    )
    found = {"preset": args.preset, "machine": where, "guidance": GUIDANCE, "turns": args.turns}
    found |= {"rows": rows, "cost": cost}
    plot = args.out.with_name("cost.png")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, json.dumps(found, indent=1) + "\n")
    plot_cost(cost, f"{args.preset}, {where.get('gpu', where['cpu'])}", plot)
    print(f"-> {args.out}, {plot}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    cuda, threads = torch.cuda.is_available(), torch.get_num_threads()
    here = Path(__file__).with_name("results.json")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", default="d12-d12", choices=PRESETS)
    add("--turns", type=int, default=3 if cuda else 1, help="turns of each row")
    few = 20 if cuda else 4
    add("--steps", type=int, default=few, help="Euler steps at batch 1; a quarter at batch 4")
    add("--train-batch", type=int, default=4, help="images of a training step; 0: no training row")
    add("--quick", action="store_true", help="1 turn, 2 steps, batch 1, memory of one row only")
    add("--device", default="cuda" if cuda else "cpu", choices=["cpu", "cuda"])
    add("--threads", type=int, default=threads, help="CPU threads; 1: processor time is measured")
    kernels = "attention kernels that a GPU may use (a key bias or a mask rules out flash)"
    add("--sdpa", nargs="+", default=["flash", "cudnn", "efficient"], choices=KERNELS, help=kernels)
    add("--out", type=Path, default=here, help="results as JSON; cost.png is written beside them")
    add("--peak", nargs=4, metavar=("WHAT", "B", "K", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.turns < 1 or args.steps < 4 or args.train_batch < 0 or args.threads < 1:
        parser.error(
            "--turns and --threads must be at least 1, --steps at least 4, --train-batch at least 0"
        )
    if args.quick:
        args.turns, args.steps = 1, 2
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    if args.peak:
        print_peak(args.preset, *args.peak)
    elif args.device == "cpu":
        run(args)
    else:
        with sdpa_kernel([KERNELS[name] for name in args.sdpa]):
            run(args)


if __name__ == "__main__":
    main()
