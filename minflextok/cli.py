"""The command line: minflextok demo | train | encode | decode | reconstruct | generate."""

import argparse
import dataclasses
import json
import sys
import time
import typing
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .config import PRESETS, PRIOR_PRESETS, PRIOR_RECIPES, RECIPES, TrainConfig, from_dict
from .data import IMG_EXTENSIONS, UNREADABLE, Images, Skipped, load_dataset, open_image, to_float, to_uint8
from .figures import budget_grid, image_grid, save
from .metrics import code_usage, psnr
from .prior import Prior
from .tokenizer import FlexTok
from .vae import VAE

DEFAULT_DATA = {"shapes": "shapes", "cifar10-tiny": "cifar10", "cifar10": "cifar10"}  # of presets

# ---- images and ids on disk ------------------------------------------------------------------------------------------

def read_images(paths: list[str], size: int) -> tuple[Tensor, list[str]]:
    """Image files and folders of them -> (N, 3, size, size) in [-1, 1], and their names."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}")
        files += sorted(f for f in path.rglob("*") if f.suffix.lower() in IMG_EXTENSIONS) if path.is_dir() else [path]
    skipped, images, names = Skipped(), [], []
    for file in files:
        try:
            images.append(open_image(file, size))
            names.append(file.name)
        except UNREADABLE as e:
            skipped(str(file), e)
    if not images:
        raise ValueError(f"no readable image in {', '.join(paths)} ({skipped.count} unreadable)")
    return to_float(torch.from_numpy(np.stack(images))), names


def write_ids(path: Path, ids: Tensor, names: list[str], weights: str) -> None:
    """.npz (arrays ids (N, k), names, weights) or .json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, ids=ids.numpy(), names=np.array(names), weights=np.array(weights))
    else:
        rows = [{"name": n, "ids": i} for n, i in zip(names, ids.tolist(), strict=True)]
        path.write_text(json.dumps({"weights": weights, "images": rows}, indent=1) + "\n")


def read_ids(path: Path) -> tuple[list[Tensor], list[str], str]:
    """What `write_ids` wrote; rows of a JSON file may differ in length."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as f:
                rows, names, weights = list(torch.from_numpy(f["ids"])), f["names"].tolist(), f["weights"].item()
        else:
            held = json.loads(path.read_text())
            rows, names = [torch.tensor(r["ids"]) for r in held["images"]], [r["name"] for r in held["images"]]
            weights = held["weights"]
        if not rows or len(rows) != len(names) or not all(isinstance(s, str) for s in (*names, weights)):
            raise ValueError(f"{len(rows)} rows, {len(names)} names, weights {weights!r}")
        return rows, names, weights
    except FileNotFoundError:
        raise
    except Exception as e:
        raise ValueError(f"{path} does not hold ids ({e}): make it with `minflextok encode`") from None


# ---- commands --------------------------------------------------------------------------------------------------------

def load(a: argparse.Namespace) -> FlexTok:
    if getattr(a, "apg", False) and a.guidance == 1:
        raise ValueError("--apg does nothing at guidance 1: give --guidance 3, say")
    tok = FlexTok.from_pretrained(a.weights).to(a.device)
    if tok.config.in_channels != 3 and tok.vae is None:
        raise ValueError(f"{a.weights} works on {tok.config.in_channels}-channel latents and has no VAE to make them "
                         "from images: put one that `minflextok train vae` made into its folder vae/")
    return tok


def encode(a: argparse.Namespace) -> None:
    if Path(a.out).suffix not in (".npz", ".json"):
        raise ValueError(f"--out {a.out}: ids are saved as .npz or .json")
    tok = load(a)
    images, names = read_images(a.images, tok.image_size)
    ids = torch.cat([tok.encode(x, a.tokens).cpu() for x in images.split(64)])
    write_ids(Path(a.out), ids, names, a.weights)
    print(f"{len(ids)} images -> {a.out}: {ids.shape[1]} ids each, {tok.config.num_bytes(ids.shape[1])} bytes packed")


def decode(a: argparse.Namespace) -> None:
    rows, names, made_with = read_ids(Path(a.ids))
    a.weights = a.weights or made_with
    tok, out = load(a), Path(a.out)
    g = torch.Generator().manual_seed(a.seed)
    least = min(len(r) for r in rows)
    if a.tokens is not None and not 1 <= a.tokens <= least:
        raise ValueError(f"--tokens {a.tokens}: {a.ids} has {least} ids an image; give 1 to {least}")
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), 64):
        batch = [r[: a.tokens] for r in rows[start : start + 64]]
        images = tok.decode(batch, steps=a.steps, guidance=a.guidance, apg=a.apg, generator=g, progress=sys.stderr.isatty())
        for i, image in enumerate(to_uint8(images).cpu(), start):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(out / f"{i:04d}_{Path(names[i]).stem}.png")
    print(f"{len(rows)} images -> {out}/")


def show_budgets(tok: FlexTok, images: Tensor, budgets: list[int], a: argparse.Namespace, show: int = 12) -> None:
    """Encode, decode at each budget, print the table, save the picture of the first `show` images."""
    wrong = [k for k in budgets if not 1 <= k <= tok.config.num_registers]
    if wrong:
        raise ValueError(f"--tokens {wrong[0]}: {a.weights} gives 1 to {tok.config.num_registers} tokens")
    start = time.perf_counter()
    ids = torch.cat([tok.encode(x) for x in images.split(64)])
    encoding = time.perf_counter() - start
    side = tok.config.image_size
    noise = torch.randn(len(images), tok.config.in_channels, side, side, generator=torch.Generator().manual_seed(a.seed))
    print(f"{len(images)} images, {tok.image_size}x{tok.image_size}, encoded in {encoding:.2f} s; decoding: "
          f"{a.steps} Euler steps, guidance {a.guidance:g}{' (APG)' if a.apg else ''}, seed {a.seed}, on {a.device}\n"
          f"{'tokens':>7}{'bytes':>7}{'PSNR dB':>9}{'seconds':>9}")
    grids = {}
    for k in budgets:
        start = time.perf_counter()
        parts = [tok.decode(i, steps=a.steps, guidance=a.guidance, apg=a.apg, noise=n, progress=sys.stderr.isatty())
                 for i, n in zip(ids[:, :k].split(64), noise.split(64), strict=True)]
        grids[k] = torch.cat(parts).cpu()
        print(f"{k:7d}{tok.config.num_bytes(k):7d}{psnr(grids[k], images).mean():9.2f}{time.perf_counter() - start:9.1f}",
              flush=True)
    save(budget_grid(images[:show], {k: g[:show] for k, g in grids.items()}), a.out)
    used, perplexity = code_usage(ids.cpu(), tok.config.vocab_size)
    print(f"ids used per register: {used.min()} to {used.max()} of {tok.config.vocab_size} "
          f"(perplexity {perplexity.min():.0f} to {perplexity.max():.0f})\npicture -> {a.out}")


def reconstruct(a: argparse.Namespace) -> None:
    tok = load(a)
    show_budgets(tok, read_images(a.images, tok.image_size)[0], a.tokens or tok.config.budgets, a)


def demo(a: argparse.Namespace) -> None:
    tok = load(a)
    if a.num_images < 1:
        raise ValueError(f"--num-images {a.num_images}: give at least 1")
    data = load_dataset(a.data, "test", tok.image_size)
    if not isinstance(data, Images):
        raise ValueError(f"{a.data} is too large for memory: give a smaller set")
    images = to_float(data.images[: a.num_images])
    print(f"weights {a.weights}: up to {tok.config.num_registers} tokens of {tok.config.bits_per_token:.1f} bits; "
          f"images: the first {len(images)} of {a.data}, test split")
    show_budgets(tok, images, tok.config.budgets, a)


def recipe_of(a: argparse.Namespace, recipe: TrainConfig) -> TrainConfig:
    """The recipe with the changes that flags ask for; of steps and minutes, the one that is given alone ends the run."""
    given = {f.name: getattr(a, f.name, None) for f in dataclasses.fields(TrainConfig)}
    recipe = dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})
    if a.minutes and a.steps is None:
        return dataclasses.replace(recipe, steps=10**9)
    if a.steps and a.minutes is None:
        return dataclasses.replace(recipe, minutes=0.0)
    return recipe


def config_of(a: argparse.Namespace, preset):
    """The preset with the changes of --model KEY=VALUE."""
    config = dataclasses.asdict(preset)
    for change in a.model:
        key, eq, value = change.partition("=")
        try:
            config[key] = json.loads(value)
        except ValueError:
            config[key] = value
        if not eq:
            raise ValueError(f"--model {change}: give KEY=VALUE")
    return from_dict(type(preset), config)


def train(a: argparse.Namespace) -> None:
    from .stages import train_tokenizer

    recipe, config = recipe_of(a, RECIPES[a.preset]), config_of(a, PRESETS[a.preset])
    default = DEFAULT_DATA.get(a.preset)
    if not (a.data or default):
        raise ValueError(f"preset {a.preset} has no default data: give --data")
    vae = VAE.from_pretrained(a.vae) if a.vae else None
    size = config.image_size * (vae.config.downscale if vae else 1)
    data = load_dataset(a.data or default, "train", size, recipe.workers)
    train_tokenizer(config, recipe, data, a.out, a.device, a.quiet, vae)


def train_a_prior(a: argparse.Namespace) -> None:
    from .stages import train_prior

    recipe, config = recipe_of(a, PRIOR_RECIPES[a.preset]), config_of(a, PRIOR_PRESETS[a.preset])
    if not (a.tokenizer or a.preset in PRESETS):
        raise ValueError(f"preset {a.preset} names no tokenizer: give --tokenizer")
    if not (a.data or a.preset in DEFAULT_DATA):
        raise ValueError(f"preset {a.preset} has no default data: give --data")
    tok = FlexTok.from_pretrained(a.tokenizer or a.preset)
    data = load_dataset(a.data or DEFAULT_DATA[a.preset], "train", tok.image_size, recipe.workers)
    train_prior(config, recipe, tok, data, a.out, a.device, a.quiet, a.crops, a.cache)


def generate(a: argparse.Namespace) -> None:
    if a.tokenizer is None and Path(a.prior).is_dir():
        raise ValueError(f"--prior {a.prior} does not tell its tokenizer: give --tokenizer")
    if a.samples < 1:
        raise ValueError(f"--samples {a.samples}: give at least 1")
    prior, tok = Prior.from_pretrained(a.prior).to(a.device), FlexTok.from_pretrained(a.tokenizer or a.prior).to(a.device)
    prior.check_tokenizer(tok)
    if prior.config.text and not a.text:
        raise ValueError('this prior takes text: give --text "a red circle", say')
    names = a.text or [prior.class_names[i] for i in prior.classes(a.classes or prior.class_names[:10])]
    names = list(dict.fromkeys(names))
    each = [n for n in names for _ in range(a.samples)]
    g, start = torch.Generator().manual_seed(a.seed), time.perf_counter()
    ids = prior.generate(each if a.text else prior.classes(each), a.tokens, a.guidance, a.temperature, a.top_k, a.top_p,
                         generator=g)
    took = time.perf_counter() - start
    parts = [tok.decode(i, steps=a.steps, generator=g, progress=sys.stderr.isatty()) for i in ids.split(64)]
    images = torch.cat(parts).cpu()
    save(image_grid(dict(zip(names, images.split(a.samples), strict=True))), a.out)
    print(f"{len(ids)} images of {ids.shape[1]} tokens: ids in {took:.2f} s, decoded in "
          f"{time.perf_counter() - start - took:.1f} s -> {a.out}")


# ---- arguments -------------------------------------------------------------------------------------------------------

def add_fields(group, cls, skip: tuple[str, ...] = ()) -> None:
    """A flag for each field of a config dataclass, described as there, but for those in `skip`."""
    for f in (f for f in dataclasses.fields(cls) if f.name not in skip):
        flag, kind = "--" + f.name.replace("_", "-"), typing.get_type_hints(cls)[f.name]
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=f.metadata["help"])
        else:
            group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=f.metadata["help"])


def device(name: str) -> str:
    """An argparse type: the name of a device that works here."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:  # torch built without CUDA asserts
        raise argparse.ArgumentTypeError(f"{name!r} does not work here ({str(e).splitlines()[0]}); cpu does") from None
    return name


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("minflextok", description="Images to 1..K ordered tokens and back (FlexTok).")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    auto = "cuda" if torch.cuda.is_available() else "cpu"

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=help, description=help)
        p.set_defaults(run=run)
        return p

    def decoding(p, weights: str | None = "cifar10-tiny", out: str = "outputs/reconstruct.png") -> None:
        p.add_argument("--weights", default=weights, help="shipped weights by name, or a directory"
                       + (f" (default {weights})" if weights else " (default: those that the ids were made with)"))
        p.add_argument("--out", default=out, help=f"where to write (default {out})")
        p.add_argument("--device", type=device, default=auto, help=f"cpu or cuda (here {auto})")
        p.add_argument("--steps", type=int, default=25, help="Euler steps (default 25)")
        p.add_argument("--guidance", type=float, default=1.0, help="guidance scale; 1 is none (default 1)")
        p.add_argument("--apg", action="store_true", help="adaptive projected guidance instead of classifier-free")
        p.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")

    p = command("demo", demo, "Tokenize embedded test images and show them at 1, 2, 4, ..., K tokens.")
    decoding(p, out="outputs/demo.png")
    p.add_argument("--data", default="cifar10-sample", help="a data set; its test split is used (default cifar10-sample)")
    p.add_argument("--num-images", type=int, default=64, help="images that the table averages over (default 64)")

    stages = command("train", None, "Train a model.").add_subparsers(dest="what", required=True, metavar="WHAT")

    def stage(name: str, run, presets: dict, data: str | None, help: str, unused: tuple[str, ...] = ()):
        preset = next(iter(presets))
        p = stages.add_parser(name, help=help, description=f"Train {help}. A run that was stopped goes on when the "
                              "same command is given again. Under torchrun, the same command uses all its processes.")
        p.set_defaults(run=run)
        p.add_argument("--preset", choices=list(presets), default=preset, help=f"model and recipe (default {preset})")
        p.add_argument("--data", default=data, help="shapes, cifar10, cifar10-sample, a folder, or .tar/.tar.gz shards "
                       f"(default: {data or 'as the preset says'})")
        p.add_argument("--out", required=True, help="directory for checkpoint, metrics, pictures and weights")
        p.add_argument("--device", type=device, help=f"cpu or cuda (here {auto})")
        p.add_argument("--quiet", action="store_true", help="no progress bar")
        p.add_argument("--model", action="append", default=[], metavar="KEY=VALUE",
                       help="change a field of the preset's model config, such as --model num_registers=8 (repeatable)")
        add_fields(p.add_argument_group("recipe (defaults: the preset's)"), TrainConfig, unused)
        return p

    p = stage("tokenizer", train, PRESETS, None, "a FlexTok")
    p.add_argument("--vae", help="weights of the VAE whose latents a preset with in_channels != 3 works on")

    p = stage("prior", train_a_prior, PRIOR_PRESETS, None, "a GPT over a tokenizer's ids",
              unused=("nested_from", "nested_full"))
    p.add_argument("--tokenizer", help="its weights by name, or a directory (default: the preset's name)")
    p.add_argument("--crops", type=int, default=1, help="1, or 5: each image also moved towards its corners (default 1)")
    p.add_argument("--cache", help="directory that keeps the ids (default ~/.cache/minflextok/ids)")

    p = command("encode", encode, "Image files or folders to ids, saved as .npz or .json.")
    p.add_argument("images", nargs="+", help="image files, or folders that are searched for them")
    p.add_argument("--weights", default="cifar10-tiny", help="shipped weights by name, or a directory")
    p.add_argument("--tokens", type=int, help="ids an image (default: all K)")
    p.add_argument("--out", default="outputs/ids.npz", help=".npz or .json (default outputs/ids.npz)")
    p.add_argument("--device", type=device, default=auto, help=f"cpu or cuda (here {auto})")

    p = command("decode", decode, "Ids saved by `encode` to PNG files.")
    p.add_argument("ids", help=".npz or .json from `encode`")
    decoding(p, weights=None, out="outputs/decoded")
    p.add_argument("--tokens", type=int, help="use the first so many ids only")

    p = command("reconstruct", reconstruct, "Image files or folders through the tokenizer: a picture and a table.")
    p.add_argument("images", nargs="+", help="image files, or folders that are searched for them")
    decoding(p)
    p.add_argument("--tokens", type=int, nargs="+", help="budgets to show (default 1 2 4 ... K)")

    p = command("generate", generate, "Images from classes or captions, by a prior and its tokenizer.")
    asked = p.add_mutually_exclusive_group()
    asked.add_argument("--classes", nargs="+", metavar="CLASS", help="names or numbers (default: the first ten)")
    asked.add_argument("--text", nargs="+", metavar="CAPTION", help="captions, for a prior that takes text")
    p.add_argument("--prior", default="cifar10", help="shipped weights by name, or a directory (default cifar10)")
    p.add_argument("--tokenizer", help="its weights by name, or a directory (default: the prior's name)")
    p.add_argument("--samples", type=int, default=8, help="images of each class or caption (default 8)")
    p.add_argument("--tokens", type=int, help="ids an image, 1 to K (default: all K)")
    p.add_argument("--guidance", type=float, default=1.0, help="scale of the prior's guidance; 1 is none (default 1)")
    p.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest id each time (default 1)")
    p.add_argument("--top-k", type=int, help="sample from the k likeliest ids (default: all)")
    p.add_argument("--top-p", type=float, help="sample from the likeliest ids that hold this share (default: all)")
    p.add_argument("--steps", type=int, default=25, help="Euler steps of the tokenizer's decoder (default 25)")
    p.add_argument("--seed", type=int, default=0, help="seed of ids and noise (default 0)")
    p.add_argument("--device", type=device, default=auto, help=f"cpu or cuda (here {auto})")
    p.add_argument("--out", default="outputs/generated.png", help="one row a class (default outputs/generated.png)")
    return parser


def main(argv: list[str] | None = None) -> None:
    a = build_parser().parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: print(f"minflextok: warning: {message}", file=sys.stderr)
    try:
        a.run(a)
    except (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError) as e:
        sys.exit(f"minflextok: error: {e}")
