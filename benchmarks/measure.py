"""Time, memory and floating-point operations of two ways to do the same work."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

SIDES = ("on", "off")  # with the savings, and without
Work = dict[str, Callable[[], Tensor]]  # the same work for each side


def seconds(f: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    """Seconds that a call takes, and its result.

    On one CPU thread this is processor time, which other processes hardly change; else wall-clock
    time.
    """
    one_thread = device == "cpu" and torch.get_num_threads() == 1

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if one_thread else time.perf_counter()

    start = now()
    out = f()
    return now() - start, out


def matmul_speed(device: str) -> float:
    """FLOP/s of one large matrix product in the models' precision: about the most to be reached."""
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a = torch.ones(n, n, device=device, dtype=dtype)
    return 2 * n**3 / seconds(lambda: a @ a, device)[0]


def compare(work: Work, turns: int, device: str, warm_up: Work | None = None) -> dict:
    """Time both sides in turns, after one warm-up of each (which compiles, on a GPU)."""
    times, out, memory = {side: [] for side in SIDES}, {}, {}
    fastest = matmul_speed(device)
    for side in SIDES:
        (warm_up or work)[side]()
    for _ in range(turns):
        for side in SIDES:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            taken, out[side] = seconds(work[side], device)
            times[side].append(taken)
            if device == "cuda":
                memory[f"{side}_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
            fastest = max(fastest, matmul_speed(device))
    on, off = (out[side].double() for side in SIDES)
    ratios = [off_s / on_s for on_s, off_s in zip(times["on"], times["off"], strict=True)]
    return {
        "on_s": median(times["on"]),
        "off_s": median(times["off"]),
        "ratio": median(times["off"]) / median(times["on"]),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "peak_flops": fastest,
        **memory,
        "difference": ((on - off).abs().max() / off.abs().max()).item(),
    }


def count_flops(work: Work) -> dict[str, int]:
    """Operations as PyTorch counts them, for a training step, which has no formula here.

    Without gradients it would overlook the attention of a CPU.
    """
    counted = {}
    for side, f in work.items():
        with FlopCounterMode(display=False) as counter:
            f()
        counted[side] = counter.get_total_flops()
    return counted
