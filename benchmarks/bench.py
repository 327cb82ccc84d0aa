"""What the exact savings save: this package against the plain path of plain.py, on the same weights, in one run.

Ours and plain take turns, because a machine's clock and its other users change over minutes. A row of the table gives
the medians of both, the ratio of the medians and, in brackets, the lowest and the highest ratio of a turn; the largest
difference of the two outputs, relative to the largest output; and both speeds as shares of the best that one large
matrix product reached between the turns. Memory is the highest beyond what was there before.

Weights are random (those that start at zero too): time does not depend on their values.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import plain
import torch
from flops import decode_flops, encoder_flops
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minflextok import PRESETS, FlexTok
from minflextok.config import TokenizerConfig
from minflextok.training.runtime import peak_memory

GUIDANCE = 3.0
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
Work = dict[str, Callable[[], Tensor]]  # "ours" and "plain", for the same work


def random_tok(c: TokenizerConfig) -> FlexTok:
    torch.manual_seed(0)
    tok = FlexTok(c).eval()
    with torch.no_grad():
        for p in tok.parameters():
            if not p.any():
                p.normal_(std=0.02)
    return tok


def random_images(tok: FlexTok, B: int) -> Tensor:
    c = tok.config
    x = torch.randn(
        B, c.in_channels, c.image_size, c.image_size, generator=torch.Generator().manual_seed(1)
    )
    return x.clamp(-1, 1).to(tok.encoder.registers)


def encoding(tok: FlexTok, B: int, k: int) -> Work:
    """Images to ids. The latents are returned: where one lies on the edge of two ids, rounding errors decide."""
    x = random_images(tok, B)

    @torch.no_grad()
    def quantised(latents: Callable[[], Tensor]) -> Tensor:
        z = latents()
        tok.fsq(z)
        return z

    return {
        "ours": lambda: quantised(lambda: tok.encoder(x, k)),
        "plain": lambda: quantised(lambda: plain.latents(tok, x)[:, :k]),
    }


def decoding(tok: FlexTok, B: int, k: int, steps: int) -> Work:
    """Ids to images, guided."""
    noise = random_images(tok, B).float()
    ids = torch.randint(
        tok.config.vocab_size, (B, k), generator=torch.Generator().manual_seed(2)
    ).to(noise.device)
    return {
        "ours": lambda: tok.decode(ids, steps, GUIDANCE, noise=noise),
        "plain": lambda: plain.decode(tok, ids, steps, GUIDANCE, noise),
    }


def typical_draws(tok: FlexTok, x: Tensor) -> tuple[Tensor, ...]:
    """Of a hundred draws of a training step, the one whose mean keep_k is nearest to the expected one."""
    draws = [tok.draw(x, generator=torch.Generator().manual_seed(seed)) for seed in range(100)]
    expected = torch.cat([d[2] for d in draws]).float().mean()
    return min(draws, key=lambda d: (d[2].float().mean() - expected).abs())


def training(tok: FlexTok, B: int) -> Work:
    """One step: forward, backward, AdamW. With learning rate 0, which costs the same and leaves the weights."""
    x = random_images(tok, B)
    draws = typical_draws(tok, x)
    optimizer = torch.optim.AdamW(tok.parameters(), lr=0.0, fused=True)

    def step(loss: Callable[..., Tensor]) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            value = loss(x, *draws)
        value.backward()
        optimizer.step()
        return value.detach()

    return {
        "ours": lambda: step(tok),
        "plain": lambda: step(lambda *batch: plain.loss(tok, *batch)),
    }


# ---- measuring -------------------------------------------------------------------------------------------------------


def seconds(f: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    """Wall-clock time; for one thread the time on a core, which others who use the machine do not stretch."""

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return (
            time.process_time()
            if device == "cpu" and torch.get_num_threads() == 1
            else time.perf_counter()
        )

    start = now()
    out = f()
    return now() - start, out


def matmul_speed(device: str) -> float:
    """FLOP/s of one large matrix product in the models' precision: the most to hope for from these threads or GPU."""
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a = torch.ones(n, n, device=device, dtype=dtype)
    return 2 * n**3 / seconds(lambda: a @ a, device)[0]


def compare(work: Work, repeats: int, device: str, warm: Work | None = None) -> dict:
    """Time both in turns, after one warm-up each (which compiles, on a GPU)."""
    sides, best = ("ours", "plain"), matmul_speed(device)
    times, out, memory = {side: [] for side in sides}, {}, {}
    for side in sides:
        (warm or work)[side]()
    for _ in range(repeats):
        for side in sides:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            taken, out[side] = seconds(work[side], device)
            times[side].append(taken)
            if device == "cuda":
                memory[f"{side}_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
            best = max(best, matmul_speed(device))
    ours, theirs = (out[side].double() for side in sides)
    ratios = [b / a for a, b in zip(times["ours"], times["plain"], strict=True)]
    medians = {f"{side}_s": median(times[side]) for side in sides}
    return {
        **medians,
        "ratio": medians["plain_s"] / medians["ours_s"],
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "peak_flops": best,
        **memory,
        "difference": ((ours - theirs).abs().max() / theirs.abs().max()).item(),
    }


def count_flops(work: Work) -> dict[str, int]:
    """What PyTorch counts, for what has no formula: a step with gradients, whose attention it sees."""
    counted = {}
    for side, f in work.items():
        with FlopCounterMode(display=False) as counter:
            f()
        counted[side] = counter.get_total_flops()
    return counted


def cpu_memory(preset: str, *case: str | int) -> dict[str, float]:
    """MB beyond the weights, each in a process of its own: a process knows only its highest peak so far."""

    def run(side: str) -> float:
        command = [sys.executable, __file__, "--preset", preset, "--peak", *map(str, case), side]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    return {f"{side}_mb": run(side) for side in ("ours", "plain")}


def print_peak(preset: str, what: str, B: str, k: str, side: str) -> None:
    tok = random_tok(PRESETS[preset])
    work = {
        "encode": lambda: encoding(tok, int(B), int(k)),
        "decode": lambda: decoding(tok, int(B), int(k), 1),
        "train": lambda: training(tok, int(B)),
    }[what]()[side]
    before = peak_memory()
    work()
    print(1e3 * (peak_memory() - before))


@torch.no_grad()
def cost_of_velocity(tok: FlexTok, repeats: int, device: str) -> dict:
    """Seconds of one velocity at k = 1, 2, 4, ..., K, with the line that fits them best against positions."""
    c, x = tok.config, random_images(tok, 1)
    ids = torch.randint(
        c.vocab_size, (1, c.num_registers), generator=torch.Generator().manual_seed(2)
    ).to(x.device)
    codes, t, null = (
        tok.fsq.ids_to_codes(ids),
        torch.full((1,), 0.5).to(x.device),
        torch.zeros_like(ids[:, 0]).bool(),
    )
    calls = {
        k: lambda k=k: tok.decoder(x, t, codes[:, :k], torch.full_like(ids[:, 0], k), null)
        for k in c.budgets
    }
    whole = lambda: plain.velocity(tok, x, t, codes, torch.ones_like(ids[:, 0]), null)  # noqa: E731
    times = {k: [] for k in (*calls, "plain")}
    for turn in range(repeats + 1):
        for k, call in (*calls.items(), ("plain", whole)):
            taken, _ = seconds(call, device)
            times[k] += [taken] * (turn > 0)  # the first warms up
    N = [c.grid**2 + min(k + 1, c.num_registers) for k in c.budgets]
    y = [median(times[k]) for k in c.budgets]
    slope, intercept = np.polyfit(N, y, 1)
    left = np.array(y) - (slope * np.array(N) + intercept)
    return {
        "k": c.budgets,
        "positions": N,
        "seconds": y,
        "plain_positions": c.grid**2 + c.num_registers,
        "plain_seconds": median(times["plain"]),
        "slope_s": slope,
        "intercept_s": intercept,
        "r2": 1 - left.var() / np.var(y),
        "turns": repeats,
    }


def plot_cost(cost: dict, title: str, path: Path) -> None:
    fig = Figure(figsize=(6, 4), layout="constrained")
    ax = fig.subplots()
    N = np.array([min(cost["positions"]), cost["plain_positions"]])
    ax.plot(
        N,
        1e3 * (cost["slope_s"] * N + cost["intercept_s"]),
        "-",
        color="0.6",
        label=f"line through ours, R² {cost['r2']:.3f}",
    )
    ax.plot(
        cost["positions"],
        1e3 * np.array(cost["seconds"]),
        "o",
        label=f"ours, k = {', '.join(map(str, cost['k']))}",
    )
    ax.plot(cost["plain_positions"], 1e3 * cost["plain_seconds"], "x", label="plain, any k")
    ax.set(
        xlabel="positions: P + k + 1, at most P + K",
        ylabel="ms per velocity",
        ylim=(0, None),
        title=title,
    )
    ax.legend(fontsize=8)
    fig.savefig(path, dpi=120)


# ---- the run ---------------------------------------------------------------------------------------------------------


def machine(device: str, backends: list[str]) -> dict:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = [
            line.split(":")[1]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        cpu = models[0].strip() if models else cpu
    gpu = (
        {"gpu": torch.cuda.get_device_name(), "attention": backends, "compiled": True}
        if device == "cuda"
        else {}
    )
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        **gpu,
        "torch": torch.__version__,
        "precision": "bfloat16" if gpu else "float32",
    }


def table(rows: list[dict]) -> str:
    def cell(row: dict, side: str) -> str:
        flops, memory = row[f"{side}_flops"], row.get(f"{side}_mb")
        speed = flops / row[f"{side}_s"]
        return f"{flops / 1e9:11.0f} {speed / 1e9:8.0f} {speed / row['peak_flops']:5.0%}" + (
            " " * 8 if memory is None else f"{memory:8.0f}"
        )

    lines = [
        f"{'what':12}{'B':>4}{'k':>6}{'ours s':>9}{'plain s':>9}  {'plain s / ours s':24}  {'differ':7}"
        + "".join(
            f"  {side + ' GFLOP':>11} {'a second':>8}  peak      MB" for side in ("ours", "plain")
        )
    ]
    for r in rows:
        ratio = f"{r['ratio']:.2f}x [{r['ratio_low']:.2f}, {r['ratio_high']:.2f}]"
        lines.append(
            f"{r['what']:12}{r['B']:4}{r['k']:>6}{r['ours_s']:9.3g}{r['plain_s']:9.3g}  {ratio:24}  "
            f"{r['difference']:.1e}  {cell(r, 'ours')}  {cell(r, 'plain')}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="d12-d12", choices=PRESETS)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each row")
    parser.add_argument(
        "--steps", type=int, default=20, help="Euler steps at batch 1, a quarter at batch 4"
    )
    parser.add_argument(
        "--train-batch",
        type=int,
        default=4,
        help="images of a training step; 0: leave training out",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one turn, two steps, batch 1, one peak of memory"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="CPU threads; 1: times are those on the core, which suits a machine that others use",
    )
    parser.add_argument(
        "--sdpa",
        nargs="+",
        default=["flash", "cudnn", "efficient"],
        choices=BACKENDS,
        help="attention kernels that a GPU may use (a key bias or a mask rules out flash)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_name("results.json"),
        help="JSON file; cost.png goes beside it",
    )
    parser.add_argument(
        "--peak", nargs=4, metavar=("WHAT", "B", "K", "SIDE"), help=argparse.SUPPRESS
    )
    args = parser.parse_args(argv)
    if args.repeats < 1 or args.steps < 4 or args.train_batch < 0 or args.threads < 1:
        parser.error(
            "give --repeats and --threads of at least 1, --steps of at least 4 and --train-batch of at least 0"
        )
    torch.set_num_threads(args.threads)
    if args.peak:
        return print_peak(args.preset, *args.peak)
    if args.device == "cpu":
        return run(args)
    with sdpa_kernel([BACKENDS[name] for name in args.sdpa]):
        run(args)


def run(args: argparse.Namespace) -> None:
    c, device = PRESETS[args.preset], args.device
    repeats, steps, batches = (1, 2, [1]) if args.quick else (args.repeats, args.steps, [1, 4])
    ks = [k for k in (1, 16, 256) if k < c.num_registers] + [c.num_registers]
    tok, rows = random_tok(c).to(device), []

    def memory(what: str, B: int, k: int) -> dict:
        wanted = not args.quick or (what, k) == ("encode", 1)
        return cpu_memory(args.preset, what, B, k) if wanted and device == "cpu" else {}

    def row(what: str, B: int, k: int | str, flops: dict, measured: dict) -> None:
        rows.append(
            {
                "what": what,
                "B": B,
                "k": k,
                **{f"{side}_flops": n for side, n in flops.items()},
                **measured,
            }
        )
        print(table(rows[-1:]).splitlines()[-1], flush=True)

    if args.train_batch:
        peaks = memory("train", args.train_batch, 0)  # before this process holds an optimizer too
        work = training(tok, args.train_batch)
        kept = typical_draws(tok, random_images(tok, args.train_batch))[2].float().mean().item()
        flops = count_flops(
            work
        )  # before anything is compiled, which hides the products from the counter
    if device == "cuda":
        tok.encoder.compile()
        tok.decoder.compile()
        plain.latents, plain.velocity = torch.compile(plain.latents), torch.compile(plain.velocity)
    if args.train_batch:
        row(
            "train", args.train_batch, f"~{kept:.0f}", flops, compare(work, repeats, device) | peaks
        )
        del work
        tok.zero_grad()
    if device == "cuda":
        tok.bfloat16()
    for B in batches:
        for k in ks:
            torch.compiler.reset()  # else its cache ends at the eighth shape
            flops = {side: encoder_flops(c, B, k, side == "plain") for side in ("ours", "plain")}
            row(
                "encode",
                B,
                k,
                flops,
                compare(encoding(tok, B, k), repeats, device) | memory("encode", B, k),
            )
    for B in batches:
        n = max(1, steps // B)
        for k in ks:
            torch.compiler.reset()
            flops = {side: decode_flops(c, B, k, n, side == "plain") for side in ("ours", "plain")}
            row(
                f"decode, {n}",
                B,
                k,
                flops,
                compare(decoding(tok, B, k, n), repeats, device, warm=decoding(tok, B, k, 1))
                | memory("decode", B, k),
            )
    torch.compiler.reset()
    cost = cost_of_velocity(tok, 1 if args.quick else 3 * repeats, device)
    where = machine(device, args.sdpa)
    print(
        f"\n{args.preset}, {', '.join(f'{k} {v}' for k, v in where.items())}\n"
        f"decode, n: n Euler steps with guidance {GUIDANCE:g}; train: k is the mean keep_k; {repeats} turns\n\n"
        f"{table(rows)}\n\n"
        f"a velocity at batch 1: {1e3 * cost['intercept_s']:.1f} ms + {1e3 * cost['slope_s']:.3f} ms a position "
        f"(R2 {cost['r2']:.4f}), from {min(cost['positions'])} to {max(cost['positions'])} positions"
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps(
            {
                "preset": args.preset,
                "machine": where,
                "guidance": GUIDANCE,
                "turns": repeats,
                "rows": rows,
                "cost": cost,
            },
            indent=1,
        )
        + "\n"
    )
    plot_cost(
        cost, f"{args.preset}, {where.get('gpu', where['cpu'])}", args.out.with_name("cost.png")
    )
    print(f"-> {args.out}, {args.out.with_name('cost.png')}")


if __name__ == "__main__":
    main()
