"""The same architecture at growing image sizes: FlexTok's K tokens against a 2D grid of patches.

    python -m minflextok.experiments.resolution [--sizes 32 64 128 256]
    python -m minflextok.experiments.resolution --only trained --minutes 32=10 64=30 \\
        --data 32=TRAIN.tar.gz 64=TRAIN.tar.gz --test 32=TEST.tar.gz 64=TEST.tar.gz

"cost": operations by formula (flops.py), and time and peak memory for one image on random weights,
of encoding, decoding and generating ids with a prior. Patches keep their side in pixels, so their
number P grows with the area; FlexTok keeps K tokens, the grid has P. "trained": see
equal_compute.py. Writes resolution.json, of which the other part stays, and resolution.png.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ..config import PriorConfig, TokenizerConfig
from ..data import load_dataset
from ..evaluation.figures import save
from ..evaluation.reports import setting, write_results
from ..presets import PRESETS, PRIOR_PRESETS
from ..prior import Prior
from ..tokenizer import FlexTok
from ..weights import read_json
from .baselines import Grid
from .equal_compute import GUIDANCE, PRESET, REGISTERS, STEPS, trained
from .flops import decode_flops, encoder_flops, generation_flops, grid_flops


def configs(size: int, preset: str = PRESET) -> dict[str, TokenizerConfig]:
    """The tokenizers of an image size: equal but for what their tokens are."""
    c = replace(PRESETS[preset], image_size=size, num_registers=REGISTERS)
    return {"flextok": c, "grid": replace(c, num_registers=c.grid**2)}


def prior_config(tokens: int, preset: str = PRESET) -> PriorConfig:
    return replace(PRIOR_PRESETS[preset], num_tokens=tokens, dropout=0.0)


def counts(name: str, c: TokenizerConfig) -> dict[str, float]:
    """Tokens, bits and operations of one image."""
    if name == "grid":
        encode, decode = grid_flops(c, 1)
        step = decode
    else:
        encode = encoder_flops(c, 1, c.num_registers)
        decode = decode_flops(c, 1, c.num_registers, STEPS)
        step = decode_flops(c, 1, c.num_registers, 1)
    return {
        "patches": c.grid**2,
        "tokens": c.num_registers,
        "bits": c.num_registers * c.bits_per_token,
        "encode": encode,
        "decode step": step,
        "decode": decode,
        "prior": generation_flops(prior_config(c.num_registers), 1),
    }


# ---- time and memory -----------------------------------------------------------------------------


def seconds(f: Callable[[], Tensor], turns: int) -> float:
    """The median processor time of a call."""
    times = []
    for _ in range(turns):
        start = time.process_time()
        f()
        times.append(time.process_time() - start)
    return median(times)


def peak_bytes(f: Callable[[], Tensor]) -> int:
    """The largest sum of all tensors that a call holds at once, beyond those that exist before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        f()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(held.cumsum(0).max())


@torch.no_grad()
def measure(name: str, c: TokenizerConfig) -> dict[str, dict[str, float]]:
    """Processor time (s) and peak memory (bytes) for one image on random weights.

    The decoder's step is measured with and without a second step, so that what is computed once is
    not counted. The prior's memory is its cache of keys and values.
    """
    torch.manual_seed(0)
    turns = 3 if c.grid <= 16 else 1
    tok = (Grid if name == "grid" else FlexTok)(c).eval()
    x = torch.rand(1, 3, c.image_size, c.image_size) * 2 - 1
    ids = tok.encode(x)
    sampler = {"guidance": GUIDANCE, "noise": torch.randn(x.shape)}

    def decode(steps: int) -> Tensor:
        return tok.decode(ids, steps, **sampler)

    decode(1)
    one = seconds(lambda: decode(1), turns)
    step = one if name == "grid" else max(0.0, seconds(lambda: decode(2), turns) - one)
    p = prior_config(c.num_registers)
    prior = Prior(p).eval()
    label = torch.zeros(1, dtype=torch.long)
    prior.generate(label, num_tokens=2)
    return {
        "seconds": {
            "encode": seconds(lambda: tok.encode(x), turns),
            "decode step": step,
            "decode": one if name == "grid" else one + (STEPS - 1) * step,
            "prior": seconds(lambda: prior.generate(label), 1),
        },
        "bytes": {
            "encode": peak_bytes(lambda: tok.encode(x)),
            "decode": peak_bytes(lambda: decode(1)),
            "prior": prior._empty_cache(x, p.num_tokens).nbytes,
        },
    }


def cost(sizes: list[int], quiet: bool = False) -> dict:
    """By image size and system: counts, seconds, bytes."""
    found: dict[str, dict] = {}
    for size in sizes:
        found[str(size)] = {}
        for name, c in configs(size).items():
            found[str(size)][name] = {"count": counts(name, c), **measure(name, c)}
            if not quiet:
                print(size, name, found[str(size)][name], flush=True)
    return found


# ---- the figure and the command ------------------------------------------------------------------

COLORS = {"flextok": "#0072B2", "grid": "#D55E00"}
LINES = {"encode": ("o", "-"), "decode": ("s", "--"), "prior": ("^", ":")}


def plot(found: dict) -> Figure:
    """Tokens, operations, time and memory against the side of the image."""
    sizes = [int(s) for s in found]
    fig = Figure(figsize=(11, 3.7), layout="constrained")
    axes = fig.subplots(1, 4)
    panels = (("count", 1e9, "GFLOP"), ("seconds", 1, "processor time (s)"), ("bytes", 1e6, "MB"))
    for name, color in COLORS.items():
        rows = [found[str(s)][name] for s in sizes]
        y = [row["count"]["tokens"] for row in rows]
        axes[0].plot(sizes, y, color=color, marker="o", label=name)
        for ax, (part, unit, _) in zip(axes[1:], panels, strict=True):
            for what, (marker, line) in LINES.items():
                y = [row[part][what] / unit for row in rows]
                ax.plot(sizes, y, color=color, marker=marker, ls=line, label=f"{name}: {what}")
    for ax, label in zip(axes, ("tokens", *(p[2] for p in panels)), strict=True):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(sizes, [str(s) for s in sizes])
        ax.set_xlabel("side of the image (px)", fontsize=10)
        ax.set_ylabel(f"{label} an image", fontsize=10)
        ax.tick_params(labelsize=9)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=9)
    fig.legend(
        *axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9
    )
    return fig


def by_size(pairs: list[str]) -> dict[int, str]:
    """ "32=VALUE" -> {32: VALUE}."""
    found = {}
    for pair in pairs:
        size, _, value = pair.partition("=")
        if not size.isdigit() or not value:
            raise SystemExit(f"{pair!r}: give SIZE=VALUE, such as 64=train.tar.gz")
        found[int(size)] = value
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--only", choices=("cost", "trained"), default="cost")
    parser.add_argument(
        "--minutes",
        nargs="+",
        default=["32=10"],
        help="SIZE=MINUTES ..., of processor time",
    )
    parser.add_argument("--data", nargs="+", default=["32=cifar10-sample"], help="SIZE=PATH ...")
    parser.add_argument("--test", nargs="+", default=["32=cifar10-sample"], help="SIZE=PATH ...")
    parser.add_argument("--num-images", type=int, default=500, help="test images")
    parser.add_argument("--runs", default="runs/resolution")
    parser.add_argument("--out", default="data/resolution")
    a = parser.parse_args(argv)
    file = Path(a.out) / "resolution.json"
    found = read_json(file) if file.exists() else {}
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if a.only == "cost":
        found["cost"] = {"setting": {"preset": PRESET, "steps": STEPS} | machine, **cost(a.sizes)}
        sizes = {size: row for size, row in found["cost"].items() if size != "setting"}
        save(plot(sizes), Path(a.out) / "resolution.png")
    else:
        data, test, minutes = by_size(a.data), by_size(a.test), by_size(a.minutes)
        if not set(data) == set(test) == set(minutes):
            raise SystemExit("--data, --test and --minutes: give the same sizes in each")
        names, tests = ({n: Path(p).name for n, p in x.items()} for x in (data, test))
        found["trained"] = {"setting": setting(vars(a), data=names, test=tests, **machine)}
        for size in data:
            train = load_dataset(data[size], "train", size)
            real = load_dataset(test[size], "test", size)
            found["trained"][str(size)] = trained(
                configs(size), train, real, float(minutes[size]), a.num_images, Path(a.runs)
            )
            write_results(found, file)
    write_results(found, file)


if __name__ == "__main__":
    main()
