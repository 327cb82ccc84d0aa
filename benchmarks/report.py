"""The table and the plot of bench.py, and the description of the machine."""

import os
import platform
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from measure import SIDES


def machine(device: str, kernels: list[str]) -> dict:
    """What the times depend on. kernels: the attention kernels that a GPU may use. load: processes
    that ran on the whole machine in the last minute, on average."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":")[1].strip() for line in lines if "model name" in line]
        cpu = models[0] if models else cpu
    gpu = {}
    if device == "cuda":
        gpu = {"gpu": torch.cuda.get_device_name(), "attention": kernels, "compiled": True}
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        **gpu,
        "torch": torch.__version__,
        "precision": "bfloat16" if gpu else "float32",
    }


def header() -> str:
    work = f"{'work':12}{'B':>4}{'k':>6}"
    times = f"{'on s':>9}{'off s':>9}  {'off s / on s':24}  {'differ':7}"
    sides = [f"{side + ' GFLOP':>11} {'GFLOP/s':>8}  peak      MB" for side in SIDES]
    return "  ".join([work + times, *sides])


def line(row: dict) -> str:
    """A row of the results as text."""
    work = f"{row['what']:12}{row['B']:4}{row['k']:>6}"
    ratio = f"{row['ratio']:.2f}x [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
    times = f"{row['on_s']:9.3g}{row['off_s']:9.3g}  {ratio:24}  {row['difference']:.1e}"
    return "  ".join([work + times, *(_speed(row, side) for side in SIDES)])


def _speed(row: dict, side: str) -> str:
    """Of one side: GFLOP, GFLOP/s, the share of the matrix product's speed, and MB."""
    flops, memory = row[f"{side}_flops"], row.get(f"{side}_mb")
    speed = flops / row[f"{side}_s"]
    mb = " " * 8 if memory is None else f"{memory:8.0f}"
    return f"{flops / 1e9:11.0f} {speed / 1e9:8.0f} {speed / row['peak_flops']:5.0%}{mb}"


def plot_cost(cost: dict, title: str, path: Path) -> None:
    """Time of a decoder call against its number of positions."""
    ax = (fig := Figure(figsize=(6, 4), layout="constrained")).subplots()
    ends = np.array([min(cost["positions"]), cost["off_positions"]])
    fit = 1e3 * (cost["slope_s"] * ends + cost["intercept_s"])
    ax.plot(ends, fit, "-", color="0.6", label=f"linear fit to savings on, R² {cost['r2']:.3f}")
    ks = ", ".join(map(str, cost["k"]))
    ms = 1e3 * np.array(cost["seconds"])
    ax.plot(cost["positions"], ms, "o", label=f"savings on, k = {ks}")
    ax.plot(cost["off_positions"], 1e3 * cost["off_seconds"], "x", label="savings off, any k")
    ax.set(
        xlabel="positions: P + k + 1, at most P + K",
        ylabel="ms per decoder call",
        ylim=(0, None),
        title=title,
    )
    ax.legend(fontsize=8)
    fig.savefig(path, dpi=120)
