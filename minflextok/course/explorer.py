"""The data of the explorer, a static page that shows token budgets, swaps and samples of the prior.

`make explorer` writes docs/explorer/data.js, and sheets of tiles that the shipped weights decoded,
beside the page's own files. The page needs no server and no network.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..data import load_dataset, to_float, to_uint8
from ..draws import seeded_noise
from ..evaluation.figures import plural
from ..prior import Prior
from ..tokenizer import FlexTok
from ..weights import write_atomic
from .style import k_color

PREFIXES = (0, 1, 2, 4, 8, 16)  # shared tokens of the prior's samples
BRANCHES = 6  # samples of a condition and prefix
SWAPS = 6  # images whose tokens are swapped


@dataclass(frozen=True)
class Gallery:
    """A tokenizer with its prior, the images of its gallery, and the samplers of their cards."""

    name: str  # of the weights
    title: str
    data: str
    conditions: tuple[str, ...]  # classes or captions
    num_images: int = 16  # the first of the test split
    noises: int = 2
    steps: int = 12
    guidance: float = 2.0
    prior_guidance: float = 4.0
    temperature: float = 0.8


GALLERIES = (
    Gallery(
        "shapes32",
        "Scenes (16 tokens)",
        "shapes",
        (
            "a red circle",
            "a large blue square",
            "a green triangle above a white circle",
            "a small yellow square to the left of a large purple circle",
        ),
        noises=3,
        prior_guidance=2.0,
        temperature=0.6,
    ),
    Gallery(
        "cifar10",
        "Photographs (32 tokens)",
        "cifar10-sample",
        (
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    ),
)


def write_explorer(out: str | Path, galleries: Sequence[Gallery] = GALLERIES) -> list[Path]:
    """Write the data of the page to the directory `out`; return the files."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    longest = 0
    sets = []
    for gallery in galleries:
        found, sheets = explore(gallery)
        longest = max(longest, len(found["ids"][0]))
        for name, tiles in sheets.items():
            path = out / f"{gallery.name}-{name}.webp"
            columns = sheet(tiles, path)
            found.setdefault("sheets", {})[name] = {"columns": columns}
            files.append(path)
        sets.append(found)
    colors = [k_color(k) for k in range(1, longest + 1)]
    data = {"sets": sets, "colors": colors, "light": [k > 12 for k in range(1, longest + 1)]}
    write_atomic(out / "data.js", f"const EXPLORER = {json.dumps(data)};\n")
    return [*files, out / "data.js"]


@torch.no_grad()
def explore(w: Gallery) -> tuple[dict, dict[str, Tensor]]:
    """What the page says about a gallery, and its tiles: (n, 3, H, W) by name of the sheet."""
    tok = FlexTok.from_pretrained(w.name)
    data = load_dataset(w.data, "test", tok.image_size)
    x = to_float(data.images[: w.num_images])
    ids, K, S = tok.encode(x), tok.config.num_registers, tok.image_size
    noise = seeded_noise((w.noises, 3, S, S), 0)

    def decode(rows: list[Tensor], noise: Tensor) -> Tensor:
        return tok.decode(rows, w.steps, w.guidance, noise=noise, batch_size=64)

    rows = [row[:k] for row in ids for _ in range(w.noises) for k in range(1, K + 1)]
    repeated = noise.repeat_interleave(K, 0).repeat(len(x), 1, 1, 1)
    lengths = [0, *(k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k < K), K]
    n = min(SWAPS, len(x))
    swaps = [torch.cat([a[:k], b[k:]]) for a in ids[:n] for b in ids[:n] for k in lengths]
    prefixes = [j for j in PREFIXES if j < K]
    branches = samples(tok, w, prefixes)
    sheets = {
        "originals": x,
        "decoded": decode(rows, repeated),
        "swaps": decode(swaps, noise[:1].expand(len(swaps), -1, -1, -1)),
        "branches": decode(list(branches), noise[:1].expand(len(branches), -1, -1, -1)),
    }
    about = (
        f"Weights {w.name}; the first {len(x)} images of the test split, which training did not "
        f"use, as they come; {w.steps} Euler steps, guidance {w.guidance:g}. Prior: guidance "
        f"{w.prior_guidance:g}, temperature {w.temperature:g}."
    )
    found = {
        "name": w.name,
        "title": w.title,
        "size": S,
        "bits": tok.config.bits_per_token,
        "ids": ids.tolist(),
        "labels": names(data, len(x)),
        "noises": w.noises,
        "swap_lengths": lengths,
        "swap_images": n,
        "conditions": list(w.conditions),
        "prefix_lengths": prefixes,
        "branches": BRANCHES,
        "about": about,
    }
    return found, sheets


def samples(tok: FlexTok, w: Gallery, prefixes: list[int]) -> Tensor:
    """Ids for each condition and number of shared ids: (conditions * prefixes * BRANCHES, K)."""
    prior = Prior.from_pretrained(w.name)
    prior.check_tokenizer(tok)
    by_text = prior.text_encoder is not None
    found = []
    for i, condition in enumerate(w.conditions):
        wanted = [condition] * BRANCHES
        c = wanted if by_text else prior.classes(wanted)
        options = {"guidance": w.prior_guidance, "temperature": w.temperature}
        first = prior.generate(c, generator=torch.Generator().manual_seed(i), **options)[:1]
        for j in prefixes:
            shared = first[:, :j].expand(BRANCHES, -1)
            g = torch.Generator().manual_seed(100 + i)
            ids = prior.generate(c, prefix=shared, generator=g, **options)
            ids[0] = first[0]
            found.append(ids)
    return torch.cat(found)


def names(data, n: int) -> list[str]:
    """A word or a caption for each of the first n images."""
    if data.captions is not None:
        return list(data.captions[:n])
    return [data.classes[label] for label in data.labels[:n].tolist()]


def sheet(tiles: Tensor, path: Path, columns: int = 32) -> int:
    """Write tiles (n, 3, H, W) in rows as lossless WebP; return the number of tiles in a row."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    size = tiles.shape[-1]
    canvas = Image.new("RGB", (columns * size, rows * size))
    for i, pixels in enumerate(to_uint8(tiles).permute(0, 2, 3, 1).cpu().numpy()):
        canvas.paste(Image.fromarray(pixels), (i % columns * size, i // columns * size))
    canvas.save(path, "WEBP", lossless=True, method=6)
    return columns


def summary(files: list[Path]) -> list[str]:
    """One line for each file, and their total size."""
    total = sum(path.stat().st_size for path in files)
    return [*map(str, files), f"{plural(len(files), 'file')}, {total / 1e6:.1f} MB"]
