"""The commands that encode images and decode ids: encode, decode, reconstruct, demo."""

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import Images, Skipped, find_images, load_dataset, open_image, to_float, to_uint8
from ..data.images import UNREADABLE
from ..draws import seeded_noise
from ..evaluation.figures import budget_grid, save
from ..evaluation.metrics import code_usage, psnr
from ..tokenizer import FlexTok
from ..weights import write_atomic

BATCH = 64  # images that are encoded or decoded at once

# ---- images and ids on disk ----------------------------------------------------------------------


def read_images(paths: list[str], size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and pixels (3, size, size) uint8 of each image file, one at a time; folders are
    searched."""
    skipped, found = Skipped(), 0
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}")
        for file in find_images(path) if path.is_dir() else [path]:
            try:
                image = open_image(file, size)
            except UNREADABLE as e:
                skipped(str(file), e)
                continue
            found += 1
            yield Path(file).name, image
    if not found:
        raise ValueError(f"no readable image in {', '.join(paths)} ({skipped.count} unreadable)")


def stack(images: list[np.ndarray]) -> Tensor:
    """(N, 3, H, W) in [-1, 1]."""
    return to_float(torch.from_numpy(np.stack(images)))


def write_ids(path: Path, ids: Tensor, names: list[str], weights: str) -> None:
    """.npz (arrays ids (N, k), names, weights) or .json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        data = io.BytesIO()
        np.savez(data, ids=ids.numpy(), names=np.array(names), weights=np.array(weights))
        write_atomic(path, data.getvalue())
    else:
        rows = [{"name": n, "ids": i} for n, i in zip(names, ids.tolist(), strict=True)]
        write_atomic(path, json.dumps({"weights": weights, "images": rows}, indent=1) + "\n")


def read_ids(path: Path) -> tuple[list[Tensor], list[str], str]:
    """Ids, names and weights as `write_ids` wrote them; rows of a JSON file may differ in
    length."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as f:
                rows, names = list(torch.from_numpy(f["ids"])), f["names"].tolist()
                weights = f["weights"].item()
        else:
            held = json.loads(path.read_text(encoding="utf-8"))
            rows = [torch.tensor(r["ids"]) for r in held["images"]]
            names, weights = [r["name"] for r in held["images"]], held["weights"]
        texts = all(isinstance(s, str) for s in (*names, weights))
        if not rows or len(rows) != len(names) or not texts:
            raise ValueError(f"{len(rows)} rows, {len(names)} names, weights {weights!r}")
        return rows, names, weights
    except FileNotFoundError:
        raise
    except Exception as e:
        raise ValueError(
            f"{path} does not hold ids ({e}): make it with `minflextok encode`"
        ) from None


# ---- commands ------------------------------------------------------------------------------------


def load(a: argparse.Namespace) -> FlexTok:
    if getattr(a, "apg", False) and a.guidance == 1:
        raise ValueError("--apg has no effect at guidance 1: give --guidance 3, for example")
    tok = FlexTok.from_pretrained(a.weights).to(a.device)
    if not tok.config.pixels and tok.vae is None:
        raise ValueError(
            f"{a.weights} works on {tok.config.in_channels}-channel latents and has no VAE to "
            "compute them from images: put one from `minflextok train vae` into its folder vae/"
        )
    return tok


def encode(a: argparse.Namespace) -> None:
    if Path(a.out).suffix not in (".npz", ".json"):
        raise ValueError(f"--out {a.out}: ids are saved as .npz or .json")
    tok = load(a)
    images, ids, names = read_images(a.images, tok.image_size), [], []
    while batch := list(islice(images, BATCH)):  # no more than one batch of images is in memory
        names += [name for name, _ in batch]
        ids.append(tok.encode(stack([image for _, image in batch]), a.tokens).cpu())
    ids = torch.cat(ids)
    write_ids(Path(a.out), ids, names, a.weights)
    print(
        f"{len(ids)} images -> {a.out}: {ids.shape[1]} ids each, "
        f"{tok.config.num_bytes(ids.shape[1])} bytes packed"
    )


def decode(a: argparse.Namespace) -> None:
    rows, names, weights = read_ids(Path(a.ids))
    a.weights = a.weights or weights
    tok, out = load(a), Path(a.out)
    g = torch.Generator().manual_seed(a.seed)
    shortest = min(len(r) for r in rows)
    if a.tokens is not None and not 1 <= a.tokens <= shortest:
        raise ValueError(
            f"--tokens {a.tokens}: {a.ids} has {shortest} ids an image; give 1 to {shortest}"
        )
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), BATCH):  # each batch is on disk before the next is decoded
        batch = [r[: a.tokens] for r in rows[start : start + BATCH]]
        images = tok.decode(
            batch, a.steps, a.guidance, a.apg, generator=g, progress=sys.stderr.isatty()
        )
        for i, image in enumerate(to_uint8(images).cpu(), start):
            file = out / f"{i:04d}_{Path(names[i]).stem}.png"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    print(f"{len(rows)} images -> {out}/")


def show_budgets(
    tok: FlexTok, images: Tensor, budgets: list[int], a: argparse.Namespace, show: int = 12
) -> None:
    """Encode, decode at each budget, print a table, save a picture of the first `show` images."""
    wrong = [k for k in budgets if not 1 <= k <= tok.config.num_registers]
    if wrong:
        raise ValueError(
            f"--tokens {wrong[0]}: {a.weights} gives 1 to {tok.config.num_registers} tokens"
        )
    start, c = time.perf_counter(), tok.config
    ids = tok.encode(images, batch_size=BATCH)
    print(
        f"{len(images)} images, {tok.image_size}x{tok.image_size}, encoded in "
        f"{time.perf_counter() - start:.2f} s; decoding: {a.steps} Euler steps, guidance "
        f"{a.guidance:g}{' (APG)' if a.apg else ''}, seed {a.seed}, on {a.device}\n"
        f"{'tokens':>7}{'bytes':>7}{'PSNR dB':>9}{'seconds':>9}"
    )
    noise = seeded_noise((len(images), c.in_channels, c.image_size, c.image_size), a.seed)
    grids = {}
    for k in budgets:
        start = time.perf_counter()
        made = tok.decode(
            ids[:, :k],
            a.steps,
            a.guidance,
            a.apg,
            noise=noise,
            progress=sys.stderr.isatty(),
            batch_size=BATCH,
        ).cpu()
        grids[k] = made[:show]
        print(
            f"{k:7d}{c.num_bytes(k):7d}{psnr(made, images).mean():9.2f}"
            f"{time.perf_counter() - start:9.1f}",
            flush=True,
        )
    save(budget_grid(images[:show], grids), a.out)
    used, perplexity = code_usage(ids.cpu(), c.vocab_size)
    print(
        f"ids used per register: {used.min()} to {used.max()} of {c.vocab_size} "
        f"(perplexity {perplexity.min():.0f} to {perplexity.max():.0f})\npicture -> {a.out}"
    )


def reconstruct(a: argparse.Namespace) -> None:
    tok = load(a)
    images = stack([image for _, image in read_images(a.images, tok.image_size)])
    show_budgets(tok, images, a.tokens or tok.config.budgets, a)


# Shipped weights with their data set and the guidance scale that their cards recommend.
DEMOS = {"shapes": ("shapes", 2.0), "cifar10": ("cifar10-sample", 2.0)}


def demo(a: argparse.Namespace) -> None:
    """Reconstructions by the shipped tokenizers, or by --weights alone."""
    if a.weights is not None:
        return show_demo(a, a.weights, "cifar10-sample", 1.0, Path(a.out))
    for weights, (data, guidance) in DEMOS.items():
        out = Path(a.out)
        show_demo(a, weights, data, guidance, out.with_name(f"{out.stem}-{weights}{out.suffix}"))


def show_demo(a: argparse.Namespace, weights: str, data: str, guidance: float, out: Path) -> None:
    """weights, data, guidance: used where the command does not give its own."""
    own = {"weights": weights, "data": data, "guidance": guidance}
    given = {name: value for name, value in vars(a).items() if value is not None}
    a = argparse.Namespace(**(own | given | {"out": out}))
    tok = load(a)
    if a.num_images < 1:
        raise ValueError(f"--num-images {a.num_images}: give at least 1")
    test = load_dataset(a.data, "test", tok.image_size)
    if not isinstance(test, Images):
        raise ValueError(f"{a.data} is too large for memory: give a smaller set")
    images = to_float(test.images[: a.num_images])
    print(
        f"weights {a.weights}: up to {tok.config.num_registers} tokens of "
        f"{tok.config.bits_per_token:.1f} bits; images: the first {len(images)} of {a.data}, "
        "test split"
    )
    show_budgets(tok, images, tok.config.budgets, a)
