"""The commands that encode images and decode ids: encode, decode, reconstruct, demo."""

import argparse
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import Images, Skipped, find_images, load_dataset, open_image, to_float, to_uint8
from ..data.images import UNREADABLE
from ..evaluation.figures import budget_grid, save
from ..evaluation.metrics import code_usage, psnr
from ..tokenizer import FlexTok
from ..weights import naming
from .flags import say
from .ids import IdFile, file_name, read_ids, write_ids

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


def check_tokenizer(tok: FlexTok, held: IdFile, a: argparse.Namespace) -> None:
    """The ids of one tokenizer mean nothing to another."""
    if held.tokenizer is None:
        warnings.warn(
            f"{a.ids} does not say which tokenizer made its ids (an earlier version wrote it): if "
            f"it is not {a.weights}, the images are nonsense; encode them again to be sure",
            stacklevel=3,
        )
    elif held.tokenizer != (found := tok.fingerprint()):
        raise ValueError(
            f"{a.ids} holds ids of the tokenizer {held.tokenizer} ({held.weights}), and "
            f"{a.weights} is {found}: give --weights that encoded them, or encode the images again"
        )


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
    ids, names = encode_files(tok, a.images, a.tokens)
    write_ids(Path(a.out), ids, names, a.weights, tok.fingerprint())
    say(
        f"{len(ids)} images -> {a.out}: {ids.shape[1]} ids each, "
        f"{tok.config.num_bytes(ids.shape[1])} bytes packed"
    )


def encode_files(tok: FlexTok, paths: list[str], k: int | None) -> tuple[Tensor, list[str]]:
    """The ids (N, k) of image files, and their names."""
    parts, names = [], []
    for some, images in batches_of(read_images(paths, tok.image_size)):
        names += some
        parts.append(tok.encode(images, k).cpu())
    return torch.cat(parts), names


def decode(a: argparse.Namespace) -> None:
    held = read_ids(Path(a.ids))
    rows = held.rows
    a.weights = a.weights or held.weights
    tok, out = load(a), Path(a.out)
    check_tokenizer(tok, held, a)
    shortest = min(len(r) for r in rows)
    if a.tokens is not None and not 1 <= a.tokens <= shortest:
        raise ValueError(
            f"--tokens {a.tokens}: {a.ids} has {shortest} ids an image; give 1 to {shortest}"
        )
    write_images(tok, [r[: a.tokens] for r in rows], held.names, out, a)


def write_images(
    tok: FlexTok, rows: list[Tensor], names: list[str], out: Path, a: argparse.Namespace
) -> None:
    """Decode ids to PNG files in the folder `out`; each batch is on disk before the next is
    decoded."""
    g = torch.Generator().manual_seed(a.seed)
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), BATCH):
        images = tok.decode(
            rows[start : start + BATCH],
            a.steps,
            a.guidance,
            a.apg,
            generator=g,
            progress=sys.stderr.isatty(),
        )
        for i, image in enumerate(to_uint8(images).cpu(), start):
            file = out / file_name(i, names[i])
            with naming(file):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    say(f"{len(rows)} images -> {out}/")


def show_budgets(
    tok: FlexTok,
    batches: Iterable[Tensor],
    budgets: list[int],
    a: argparse.Namespace,
    show: int = 12,
) -> None:
    """Encode batches of images, decode at each budget, print a table, save a picture of the first
    `show` images. No more than one batch is in memory."""
    wrong = [k for k in budgets if not 1 <= k <= tok.config.num_registers]
    if wrong:
        raise ValueError(
            f"--tokens {wrong[0]}: {a.weights} gives 1 to {tok.config.num_registers} tokens"
        )
    c, g = tok.config, torch.Generator().manual_seed(a.seed)
    all_ids, shown, encoded, encoding = [], [], 0, 0.0
    found: dict[int, list[Tensor]] = {k: [] for k in budgets}  # PSNR of each image
    grids: dict[int, list[Tensor]] = {k: [] for k in budgets}
    seconds = dict.fromkeys(budgets, 0.0)
    for images in batches:
        start = time.perf_counter()
        ids = tok.encode(images)
        encoding += time.perf_counter() - start
        # In multiples of 16 values, parts of a random sequence are those of the whole.
        noise = torch.randn((len(images), c.in_channels, c.image_size, c.image_size), generator=g)
        left = max(0, show - encoded)
        shown.append(images[:left].clone())  # a view would keep the whole batch in memory
        encoded += len(images)
        for k in budgets:
            start = time.perf_counter()
            made = tok.decode(
                ids[:, :k], a.steps, a.guidance, a.apg, noise=noise, progress=sys.stderr.isatty()
            ).cpu()
            seconds[k] += time.perf_counter() - start
            found[k].append(psnr(made, images))
            grids[k].append(made[:left].clone())
        all_ids.append(ids.cpu())
    ids = torch.cat(all_ids)
    say(
        f"{len(ids)} images, {tok.image_size}x{tok.image_size}, encoded in {encoding:.2f} s; "
        f"decoding: {a.steps} Euler steps, guidance {a.guidance:g}{' (APG)' if a.apg else ''}, "
        f"seed {a.seed}, on {a.device}\n{'tokens':>7}{'bytes':>7}{'PSNR dB':>9}{'seconds':>9}"
    )
    for k in budgets:
        value = torch.cat(found[k]).mean()
        say(f"{k:7d}{c.num_bytes(k):7d}{value:9.2f}{seconds[k]:9.1f}")
    save(budget_grid(torch.cat(shown), {k: torch.cat(x) for k, x in grids.items()}), a.out)
    used, perplexity = code_usage(ids, c.vocab_size)
    say(
        f"ids used per register: {used.min()} to {used.max()} of {c.vocab_size} "
        f"(perplexity {perplexity.min():.0f} to {perplexity.max():.0f})\npicture -> {a.out}"
    )


def batches_of(images: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[list[str], Tensor]]:
    """Names and images (B <= BATCH, 3, H, W) in [-1, 1]."""
    while batch := list(islice(images, BATCH)):
        yield [name for name, _ in batch], stack([image for _, image in batch])


def reconstruct(a: argparse.Namespace) -> None:
    tok = load(a)
    batches = (images for _, images in batches_of(read_images(a.images, tok.image_size)))
    show_budgets(tok, batches, a.tokens or tok.config.budgets, a)


# Shipped weights with their data set and the guidance scale that their cards recommend.
DEMOS = {"shapes32": ("shapes", 2.0), "cifar10-64": ("cifar10-sample", 1.25)}


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
    say(
        f"weights {a.weights}: up to {tok.config.num_registers} tokens of "
        f"{tok.config.bits_per_token:.1f} bits; images: the first {len(images)} of {a.data}, "
        "test split"
    )
    show_budgets(tok, images.split(BATCH), tok.config.budgets, a)
