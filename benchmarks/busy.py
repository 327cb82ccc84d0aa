"""Training on a machine that does other work, too: `shapes` idle, and beside busy loops.

    python benchmarks/busy.py [--steps 40] [--loops 2]

Each row is a setting of OpenMP; "package" is what `minflextok train` does by itself, and should be
at most 3 times slower beside the loops. Each cell is the speed of a training run of its own,
without its first steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from report import machine

from minflextok.weights import write_atomic

SETTINGS = {
    "package": {},
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(os.cpu_count())},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": str(os.cpu_count())},
}
OURS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def busy(loops: int):
    """Processes that use a core each, and end with this one."""
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    others = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(loops)]
    try:
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()


def images_per_second(setting: dict[str, str], preset: str, steps: int) -> float:
    env = {k: v for k, v in os.environ.items() if k not in OURS} | setting
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "minflextok", "train", "tokenizer", "--preset", preset]
        command += ["--data", "cifar10-sample", "--workers", "0"]  # which load fast
        command += ["--steps", str(steps), "--out", out, "--device", "cpu", "--quiet"]
        command += ["--log-every", str(max(1, steps // 4)), "--val-images", "8"]
        subprocess.run([*command, "--eval-every", str(10 * steps)], env=env, check=True)
        lines = (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "images" in row]
    first, last = rows[0], rows[-1]
    return (last["images"] - first["images"]) / (last["seconds"] - first["seconds"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--preset", default="shapes")
    add("--steps", type=int, default=40)
    add("--loops", type=int, default=os.cpu_count(), help="busy loops beside the training")
    add("--settings", nargs="+", default=list(SETTINGS)[:2], choices=SETTINGS)
    add("--quick", action="store_true", help="4 steps, of the package's setting alone")
    add("--out", type=Path, default=Path(__file__).with_name("busy.json"), help="results as JSON")
    a = parser.parse_args(argv)
    if a.quick:
        a.steps, a.settings = 4, ["package"]
    where = machine("cpu", [])
    where["threads"] = None  # those of the setting
    found = {"machine": where, "cores": os.cpu_count(), "loops": a.loops, "rows": []}
    print(f"{a.preset}, {os.cpu_count()} cores, images/s: idle, and beside {a.loops} busy loops")
    for name in a.settings:
        idle = images_per_second(SETTINGS[name], a.preset, a.steps)
        with busy(a.loops):
            other = images_per_second(SETTINGS[name], a.preset, a.steps)
        found["rows"].append({"setting": name, "idle": idle, "busy": other, "ratio": idle / other})
        print(f"{name:22}{idle:8.0f}{other:8.0f}{idle / other:8.1f} times slower", flush=True)
        write_atomic(a.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
