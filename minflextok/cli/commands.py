"""What each command of `minflextok` does; cli.py tells their arguments."""

import argparse
import dataclasses
import json
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import TrainConfig, from_dict
from ..data.datasets import (
    IMG_EXTENSIONS,
    UNREADABLE,
    Dataset,
    Images,
    Skipped,
    Stream,
    held_out,
    load_dataset,
    open_image,
    to_float,
    to_uint8,
)
from ..evaluation import curves
from ..evaluation.figures import budget_grid, image_grid, save
from ..evaluation.metrics import code_usage, psnr
from ..evaluation.prior import PriorEvaluation
from ..evaluation.reports import (
    prior_table,
    tokenizer_table,
    write_pictures,
    write_results,
)
from ..evaluation.settings import EvaluationSettings, PriorSettings, Sampler
from ..evaluation.tokenizer import Evaluation
from ..experiments.compare import SYSTEMS, Setting, compare
from ..presets import (
    JUDGE_RECIPE,
    JUDGES,
    PRESETS,
    PRIOR_PRESETS,
    PRIOR_RECIPES,
    RECIPES,
    VAE_PRESETS,
)
from ..prior import Prior
from ..tokenizer import FlexTok
from ..training.classifier import train_classifier as train_judge
from ..training.prior import train_prior
from ..training.tokenizer import train_tokenizer
from ..training.vae import train_vae
from ..vae import VAE

# ---- images and ids on disk ------------------------------------------------------------------------------------------


def read_images(paths: list[str], size: int) -> tuple[Tensor, list[str]]:
    """Image files and folders of them -> (N, 3, size, size) in [-1, 1], and their names."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}")
        files += (
            sorted(f for f in path.rglob("*") if f.suffix.lower() in IMG_EXTENSIONS)
            if path.is_dir()
            else [path]
        )
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
                rows, names, weights = (
                    list(torch.from_numpy(f["ids"])),
                    f["names"].tolist(),
                    f["weights"].item(),
                )
        else:
            held = json.loads(path.read_text())
            rows, names = (
                [torch.tensor(r["ids"]) for r in held["images"]],
                [r["name"] for r in held["images"]],
            )
            weights = held["weights"]
        if (
            not rows
            or len(rows) != len(names)
            or not all(isinstance(s, str) for s in (*names, weights))
        ):
            raise ValueError(f"{len(rows)} rows, {len(names)} names, weights {weights!r}")
        return rows, names, weights
    except FileNotFoundError:
        raise
    except Exception as e:
        raise ValueError(
            f"{path} does not hold ids ({e}): make it with `minflextok encode`"
        ) from None


# ---- commands --------------------------------------------------------------------------------------------------------


def load(a: argparse.Namespace) -> FlexTok:
    if getattr(a, "apg", False) and a.guidance == 1:
        raise ValueError("--apg does nothing at guidance 1: give --guidance 3, say")
    tok = FlexTok.from_pretrained(a.weights).to(a.device)
    if tok.config.in_channels != 3 and tok.vae is None:
        raise ValueError(
            f"{a.weights} works on {tok.config.in_channels}-channel latents and has no VAE to make them "
            "from images: put one that `minflextok train vae` made into its folder vae/"
        )
    return tok


def encode(a: argparse.Namespace) -> None:
    if Path(a.out).suffix not in (".npz", ".json"):
        raise ValueError(f"--out {a.out}: ids are saved as .npz or .json")
    tok = load(a)
    images, names = read_images(a.images, tok.image_size)
    ids = torch.cat([tok.encode(x, a.tokens).cpu() for x in images.split(64)])
    write_ids(Path(a.out), ids, names, a.weights)
    print(
        f"{len(ids)} images -> {a.out}: {ids.shape[1]} ids each, {tok.config.num_bytes(ids.shape[1])} bytes packed"
    )


def decode(a: argparse.Namespace) -> None:
    rows, names, made_with = read_ids(Path(a.ids))
    a.weights = a.weights or made_with
    tok, out = load(a), Path(a.out)
    g = torch.Generator().manual_seed(a.seed)
    least = min(len(r) for r in rows)
    if a.tokens is not None and not 1 <= a.tokens <= least:
        raise ValueError(
            f"--tokens {a.tokens}: {a.ids} has {least} ids an image; give 1 to {least}"
        )
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), 64):
        batch = [r[: a.tokens] for r in rows[start : start + 64]]
        images = tok.decode(
            batch,
            steps=a.steps,
            guidance=a.guidance,
            apg=a.apg,
            generator=g,
            progress=sys.stderr.isatty(),
        )
        for i, image in enumerate(to_uint8(images).cpu(), start):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(
                out / f"{i:04d}_{Path(names[i]).stem}.png"
            )
    print(f"{len(rows)} images -> {out}/")


def show_budgets(
    tok: FlexTok, images: Tensor, budgets: list[int], a: argparse.Namespace, show: int = 12
) -> None:
    """Encode, decode at each budget, print the table, save the picture of the first `show` images."""
    wrong = [k for k in budgets if not 1 <= k <= tok.config.num_registers]
    if wrong:
        raise ValueError(
            f"--tokens {wrong[0]}: {a.weights} gives 1 to {tok.config.num_registers} tokens"
        )
    start = time.perf_counter()
    ids = torch.cat([tok.encode(x) for x in images.split(64)])
    encoding = time.perf_counter() - start
    side = tok.config.image_size
    noise = torch.randn(
        len(images),
        tok.config.in_channels,
        side,
        side,
        generator=torch.Generator().manual_seed(a.seed),
    )
    print(
        f"{len(images)} images, {tok.image_size}x{tok.image_size}, encoded in {encoding:.2f} s; decoding: "
        f"{a.steps} Euler steps, guidance {a.guidance:g}{' (APG)' if a.apg else ''}, seed {a.seed}, on {a.device}\n"
        f"{'tokens':>7}{'bytes':>7}{'PSNR dB':>9}{'seconds':>9}"
    )
    grids = {}
    for k in budgets:
        start = time.perf_counter()
        parts = [
            tok.decode(
                i,
                steps=a.steps,
                guidance=a.guidance,
                apg=a.apg,
                noise=n,
                progress=sys.stderr.isatty(),
            )
            for i, n in zip(ids[:, :k].split(64), noise.split(64), strict=True)
        ]
        grids[k] = torch.cat(parts).cpu()
        print(
            f"{k:7d}{tok.config.num_bytes(k):7d}{psnr(grids[k], images).mean():9.2f}{time.perf_counter() - start:9.1f}",
            flush=True,
        )
    save(budget_grid(images[:show], {k: g[:show] for k, g in grids.items()}), a.out)
    used, perplexity = code_usage(ids.cpu(), tok.config.vocab_size)
    print(
        f"ids used per register: {used.min()} to {used.max()} of {tok.config.vocab_size} "
        f"(perplexity {perplexity.min():.0f} to {perplexity.max():.0f})\npicture -> {a.out}"
    )


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
    print(
        f"weights {a.weights}: up to {tok.config.num_registers} tokens of {tok.config.bits_per_token:.1f} bits; "
        f"images: the first {len(images)} of {a.data}, test split"
    )
    show_budgets(tok, images, tok.config.budgets, a)


def evaluate(a: argparse.Namespace) -> None:
    if Path(a.out).suffix != ".json":
        raise ValueError(f"--out {a.out}: results are saved as .json")
    tok = load(a)
    data = load_dataset(a.data, a.split, tok.image_size)
    settings = EvaluationSettings(
        num_images=a.num_images,
        budgets=a.tokens,
        steps=a.steps,
        guidance=a.guidance,
        apg=a.apg,
        seed=a.seed,
        features=a.features,
        classifier=a.judge,
        batch_size=a.batch_size,
        bf16=a.bf16,
    )
    work = Evaluation(tok, a.weights, data, settings)
    print(work.protocol_line, flush=True)
    found = work.run(progress=sys.stderr.isatty())
    write_results(found, a.out)
    print(f"{tokenizer_table(found)}\nresults -> {a.out}")


def show_curves(a: argparse.Namespace) -> None:
    run, reference = curves.read(a.directory), curves.read(a.reference) if a.reference else None
    save(curves.plot(run, reference), a.out)
    print((curves.verdict(run, reference) + "\n" if reference else "") + f"picture -> {a.out}")


def compare_systems(a: argparse.Namespace) -> None:
    unknown = [name for name in a.systems if name not in SYSTEMS]
    if unknown:
        raise ValueError(f"--systems {unknown[0]}: there are {', '.join(SYSTEMS)}")
    setting = Setting(
        a.preset, a.minutes, a.data, a.test_data or a.data, a.num_images, a.repa, a.device
    )
    print(compare(a.systems or list(SYSTEMS), setting, Path(a.out)))


def recipe_of(a: argparse.Namespace, recipe: TrainConfig) -> TrainConfig:
    """The recipe with the changes that flags ask for; of steps and minutes, the one that is given alone ends the run."""
    given = {
        f.name: getattr(a, f.name)
        for f in dataclasses.fields(TrainConfig)
        if getattr(a, f.name, None) is not None
    }
    recipe = dataclasses.replace(recipe, **given)
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


def data_of(a: argparse.Namespace, size: int, recipe: TrainConfig) -> Dataset:
    """The train split of --data, or of the data that the preset is meant for."""
    cifar = ("cifar10-tiny", "cifar10", "cifar10-large", "f2-small", *JUDGES)
    default = {"shapes": "shapes", **dict.fromkeys(cifar, "cifar10")}
    if not (a.data or a.preset in default):
        raise ValueError(f"preset {a.preset} has no default data: give --data")
    return load_dataset(a.data or default[a.preset], "train", size, recipe.workers)


def train_a_tokenizer(a: argparse.Namespace) -> None:
    recipe, config = recipe_of(a, RECIPES[a.preset]), config_of(a, PRESETS[a.preset])
    vae = VAE.from_pretrained(a.vae) if a.vae else None
    size = config.image_size * (vae.config.downscale if vae else 1)
    train_tokenizer(
        config, recipe, data_of(a, size, recipe), a.out, a.device, a.quiet, vae, a.repa, init=a.init
    )


def train_a_vae(a: argparse.Namespace) -> None:
    recipe, config = recipe_of(a, RECIPES[a.preset]), config_of(a, VAE_PRESETS[a.preset])
    train_vae(config, recipe, data_of(a, config.image_size, recipe), a.out, a.device, a.quiet)


def train_a_judge(a: argparse.Namespace) -> None:
    recipe, config = recipe_of(a, JUDGE_RECIPE), config_of(a, JUDGES[a.preset])
    train_judge(config, recipe, data_of(a, config.image_size, recipe), a.out, a.device, a.quiet)


def train_a_prior(a: argparse.Namespace) -> None:
    recipe, config = recipe_of(a, PRIOR_RECIPES[a.preset]), config_of(a, PRIOR_PRESETS[a.preset])
    if not (a.tokenizer or a.preset in PRESETS):
        raise ValueError(f"preset {a.preset} names no tokenizer: give --tokenizer")
    tok = FlexTok.from_pretrained(a.tokenizer or a.preset)
    train_prior(
        config,
        recipe,
        tok,
        data_of(a, tok.image_size, recipe),
        a.out,
        a.device,
        a.quiet,
        a.crops,
        a.cache,
    )


def load_prior(a: argparse.Namespace) -> tuple[Prior, FlexTok]:
    if a.tokenizer is None and Path(a.prior).is_dir():
        raise ValueError(f"--prior {a.prior} does not tell its tokenizer: give --tokenizer")
    prior, tok = (
        Prior.from_pretrained(a.prior).to(a.device),
        FlexTok.from_pretrained(a.tokenizer or a.prior).to(a.device),
    )
    prior.check_tokenizer(tok)
    return prior, tok


def evaluate_a_prior(a: argparse.Namespace) -> None:
    prior, tok = load_prior(a)
    name = a.data or ("shapes" if prior.config.text else "cifar10-sample")
    data = load_dataset(name, "test" if a.split == "test" else "train", tok.image_size)
    if a.split == "held-out":
        if isinstance(data, Stream):
            raise ValueError(
                f"--split held-out: {name} streams, and nothing of it is held out; give --split train"
            )
        data = data.select(
            held_out(len(data), TrainConfig(val_images=max(1, a.num_samples)), name)[1]
        )
    samplers = [Sampler(g, t, a.top_k, a.top_p) for g, t in product(a.guidance, a.temperature)]
    settings = PriorSettings(
        num_samples=a.num_samples,
        budgets=a.tokens,
        samplers=samplers,
        steps=a.steps,
        decoder_guidance=a.decoder_guidance,
        seed=a.seed,
        classifier=a.judge,
        batch_size=a.batch_size,
        prefix_images=a.prefix_images,
        bf16=a.bf16,
    )
    work = PriorEvaluation(prior, a.prior, tok, a.tokenizer or a.prior, data, settings)
    print(work.protocol_line, flush=True)
    found, samples, continued = work.run(progress=sys.stderr.isatty())
    write_results(found, Path(a.out) / "results.json")
    write_pictures(found, samples, continued, Path(a.out))
    print(f"{prior_table(found)}\nresults and pictures -> {a.out}/")


def generate(a: argparse.Namespace) -> None:
    if a.samples < 1:
        raise ValueError(f"--samples {a.samples}: give at least 1")
    prior, tok = load_prior(a)
    if prior.config.text and not a.text:
        raise ValueError('this prior takes text: give --text "a red circle", say')
    names = a.text or [
        prior.class_names[i] for i in prior.classes(a.classes or prior.class_names[:10])
    ]
    names = list(dict.fromkeys(names))
    each = [n for n in names for _ in range(a.samples)]
    g, start = torch.Generator().manual_seed(a.seed), time.perf_counter()
    ids = prior.generate(
        each if a.text else prior.classes(each),
        a.tokens,
        a.guidance,
        a.temperature,
        a.top_k,
        a.top_p,
        generator=g,
    )
    took = time.perf_counter() - start
    parts = [
        tok.decode(i, steps=a.steps, generator=g, progress=sys.stderr.isatty())
        for i in ids.split(64)
    ]
    images = torch.cat(parts).cpu()
    save(image_grid(dict(zip(names, images.split(a.samples), strict=True))), a.out)
    print(
        f"{len(ids)} images of {ids.shape[1]} tokens: ids in {took:.2f} s, decoded in "
        f"{time.perf_counter() - start - took:.1f} s -> {a.out}"
    )
