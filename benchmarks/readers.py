"""Images per second of the readers: a folder, plain tar shards, a stream of .tar.gz shards.

    python benchmarks/readers.py [--workers 0] [--images 128]

The files are made of the embedded images: JPEGs of 32x32 pixels read at 32, and JPEGs of 500x400
(enlarged, with grain, so that they are about as large as photographs) read at 256. With --workers 0
one core reads, and seconds are processor time, which other programs hardly change.

Beside them stands what the training step of the large tokenizers takes on one GPU, with the VAE on
the fly, as `minflextok plan` computes it for a utilization, and the CPU cores that read as much.
"""

import argparse
import io
import json
import math
import tarfile
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from report import machine

from minflextok.config import DATA_DIR
from minflextok.data import shards
from minflextok.data.datasets import Dataset, Folder, Stream
from minflextok.experiments.costs import GPUS
from minflextok.experiments.footprint import works
from minflextok.experiments.plan import plan
from minflextok.weights import write_atomic

BATCH = 32
SHARDS = 4


def jpegs(num: int, enlarged: bool) -> list[bytes]:
    """The first embedded images as JPEG files: as stored, or as 500x400 pixels with grain."""
    path = str(DATA_DIR / "cifar10-sample-train.tar.gz")
    stored = [s.image for s in islice(shards.samples(shards.read_all([path])), num)]
    return [enlarge(image, seed) for seed, image in enumerate(stored)] if enlarged else stored


def enlarge(image: bytes, seed: int) -> bytes:
    big = Image.open(io.BytesIO(image)).resize((500, 400), Image.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, 6, (400, 500, 3))
    pixels = (np.asarray(big) + grain).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_tars(files: list[bytes], folder: Path, suffix: str) -> list[str]:
    paths = [str(folder / f"{i}{suffix}") for i in range(SHARDS)]
    for n, path in enumerate(paths):
        with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as tar:
            for i, content in enumerate(files[n::SHARDS]):
                info = tarfile.TarInfo(f"{n}-{i:06d}.jpg")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return paths


def readers(files: list[bytes], folder: Path, size: int, workers: int) -> dict[str, Dataset]:
    (folder / "images").mkdir(parents=True)
    paths = [str(folder / "images" / f"{i:06d}.jpg") for i in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        Path(path).write_bytes(content)
    members = shards.by_position(write_tars(files, folder, ".tar"))
    return {
        "folder": Folder("folder", paths, None, [], size, workers),
        ".tar": Folder("shards", members, None, [], size, workers),
        ".tar.gz": Stream("stream", write_tars(files, folder, ".tar.gz"), size, workers),
    }


def images_per_second(data: Dataset, images: int) -> float:
    """Of one epoch of shuffled batches, after the first batch."""
    now = time.perf_counter if data.workers else time.process_time
    batches = data.batches(BATCH, seed=0)
    next(batches)
    start, read = now(), 0
    for batch in islice(batches, images // BATCH):
        read += len(batch)
    return read / (now() - start)


def needs(gpu: str, utilization: float) -> dict[str, float]:
    """Images per second of 256 pixels that a training step takes on one GPU, by preset."""
    if not works():
        print("this torch counts no memory of a GPU where there is none: no comparison")
        return {}
    plans = {
        name: plan(name, gpus=1, gpu=gpu, epochs=1, utilization=utilization)
        for name in ("d12-d12", "d18-d28")
    }
    return {name: p.chosen.images_per_second(vae=True) for name, p in plans.items()}


def measured(images: int, workers: int) -> list[dict]:
    """A row for each reader and size."""
    rows = []
    for size in (32, 256):
        files = jpegs(images, enlarged=size > 32)
        kb = sum(map(len, files)) / len(files) / 1000
        with tempfile.TemporaryDirectory() as folder:
            for name, data in readers(files, Path(folder), size, workers).items():
                speed = images_per_second(data, images)
                rows.append({"reader": name, "size": size, "kb": kb, "images_per_s": speed})
                print(f"{size:4} px ({kb:5.1f} kB)  {name:8}{speed:9.0f} images/s", flush=True)
    return rows


def compared(rows: list[dict], wanted: dict[str, float], workers: int) -> list[dict]:
    """For each preset and reader, the cores that read as many images as the step takes."""
    speeds = {r["reader"]: r["images_per_s"] / max(1, workers) for r in rows if r["size"] == 256}
    return [
        {
            "preset": preset,
            "images_per_s": need,
            "cores": {name: math.ceil(need / speed) for name, speed in speeds.items()},
        }
        for preset, need in wanted.items()
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--workers", type=int, default=0, help="reading processes; 0: this one")
    add("--images", type=int, default=128, help="images to write and to read")
    add("--gpu", default="h100", choices=GPUS, help="whose training step needs images")
    add("--utilization", type=float, default=0.4, help="share of its peak that the step reaches")
    add(
        "--out", type=Path, default=Path(__file__).with_name("readers.json"), help="results as JSON"
    )
    a = parser.parse_args(argv)
    if not BATCH <= a.images <= 4000:
        parser.error(f"--images {a.images}: give {BATCH} to 4000")
    torch.set_num_threads(1)
    where = machine("cpu", [])
    try:
        wanted = needs(a.gpu, a.utilization)
    except ValueError as e:  # a utilization out of range, or a GPU that is too small
        parser.error(str(e))
    rows = measured(a.images, a.workers)
    steps = compared(rows, wanted, a.workers)
    for step in steps:
        cores = ", ".join(f"{n} ({name})" for name, n in step["cores"].items())
        print(
            f"{step['preset']} takes {step['images_per_s']:.0f} images/s on one {a.gpu} at "
            f"{a.utilization:.0%} of its peak, VAE on the fly: CPU cores {cores}"
        )
    found = {"machine": where, "workers": a.workers, "rows": rows}
    found |= {"gpu": a.gpu, "utilization": a.utilization, "steps": steps}
    write_atomic(a.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
