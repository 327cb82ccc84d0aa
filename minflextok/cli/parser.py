"""The arguments of the command line; what each command does is in codec.py, evaluate.py and
train.py."""

import argparse
import dataclasses
import os
import re
import sys
import time
import typing
import warnings

import torch

from ..config import TrainConfig
from ..experiments.costs import GPUS
from ..experiments.plan import STAGES
from ..presets import CLASSIFIERS, PRIORS, TOKENIZERS, VAES, Preset
from . import codec, compress, data, evaluate, plan, train
from .flags import (
    AUTO,
    DATA,
    IMAGES,
    WEIGHTS,
    add_batches,
    add_decoding,
    add_device,
    add_prior,
    add_scores,
    choice,
    device,
    flag,
    printable,
)

PATIENCE = 10.0  # seconds for rank 0 to end with its message

# ---- train ---------------------------------------------------------------------------------------


def add_recipe(p, skip: tuple[str, ...]) -> None:
    """A flag for each field of TrainConfig, with the help of the field."""
    group = p.add_argument_group("recipe (defaults: the preset's)")
    kinds = typing.get_type_hints(TrainConfig)
    for f in dataclasses.fields(TrainConfig):
        name, text = "--" + f.name.replace("_", "-"), f.metadata["help"]
        if f.name in skip:
            continue
        if kinds[f.name] is bool:
            group.add_argument(name, action=argparse.BooleanOptionalAction, help=text)
        else:
            metavar = kinds[f.name].__name__.upper()
            group.add_argument(name, type=kinds[f.name], metavar=metavar, help=text)


def add_train(command) -> None:
    stages = command("train", None, "Train a model.").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )

    def stage(name, run, presets: dict[str, Preset], default, about, skip=(), aliases=()):
        p = stages.add_parser(
            name,
            aliases=aliases,
            help=about,
            description=f"Train {about}. The same command resumes a run that was stopped. Under "
            "torchrun, the same command uses all processes.",
        )
        p.set_defaults(run=run)
        help = "model, recipe and default data"
        flag(p, "--preset", type=choice, choices=list(presets), default=default, help=help)
        flag(p, "--data", help=f"{DATA} (default: the preset's own)")
        flag(p, "--out", required=True, help="directory for checkpoint, log, pictures and weights")
        flag(p, "--device", type=device, help=f"cpu or cuda (here {AUTO})")
        p.add_argument("--quiet", action="store_true", help="print no progress bar")
        fields = ", ".join(f.name for f in dataclasses.fields(presets[default].model))
        flag(
            p,
            "--model",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"change a field of the preset's model config, repeatable: {fields}",
        )
        add_recipe(p, skip)
        return p

    nested = ("nested_from", "nested_full")  # fields for tokenizers only
    stage(
        "vae",
        train.vae,
        VAES,
        "f2-small",
        "a VAE, stage 0 of models on latents",
        (*nested, "sample_latents", "mup_base_width"),
    )
    stage(
        "classifier",
        train.classifier,
        CLASSIFIERS,
        "classifier",
        "an evaluation classifier, or a teacher for --repa",
        skip=(*nested, "compile", "crop_scale", "sample_latents", "mup_base_width"),
        aliases=("judge",),
    )
    p = stage("tokenizer", train.tokenizer, TOKENIZERS, "shapes", "a FlexTok")
    flag(
        p,
        "--repa",
        metavar="TEACHER",
        help="align the decoder with a teacher's features: dinov2-l (the paper's), dinov2-b, or "
        "weights of `minflextok train classifier --preset teacher` (default: no teacher)",
    )
    flag(
        p,
        "--init",
        metavar="WEIGHTS",
        help="initial weights, by name or directory; their K may differ (default: random)",
    )
    flag(
        p,
        "--vae",
        help="weights of the VAE, or of a tokenizer with one, for a preset with in_channels != 3",
    )
    p = stage(
        "prior",
        train.prior,
        PRIORS,
        "cifar10-tiny",
        "a GPT over a tokenizer's ids",
        (*nested, "crop_scale", "sample_latents"),
    )
    flag(p, "--tokenizer", help=f"{WEIGHTS} (default: the preset's)")
    flag(p, "--crops", type=int, default=1, help="1, or 5: also shifted towards the four corners")
    flag(p, "--cache", help="directory that keeps the ids (default ~/.cache/minflextok/ids)")


def add_curves_and_compare(command) -> None:
    p = command("curves", train.show_curves, "Plot a training run against a reference.")
    p.add_argument("directory", help="the --out of a tokenizer's training run")
    flag(p, "--reference", help="another run, or shipped weights by name (default: none)")
    flag(p, "--out", default="outputs/curves.png", help="picture")

    p = command(
        "compare", train.compare_systems, "Train and evaluate FlexTok and related tokenizers alike."
    )
    flag(p, "--systems", nargs="+", default=[], help="names of systems; empty: all")
    flag(p, "--preset", choices=list(TOKENIZERS), default="cifar10-tiny", help="of FlexTok")
    flag(p, "--minutes", type=float, default=20.0, help="training time of each system")
    flag(p, "--data", default="cifar10", help="a data set; its train split trains")
    flag(p, "--test-data", help="a data set; its test split evaluates (default: as --data)")
    flag(p, "--num-images", type=int, default=2000, help="test images")
    flag(p, "--repa", metavar="TEACHER", help="teacher of the systems with REPA (default: none)")
    flag(
        p,
        "--train-on",
        type=device,
        metavar="DEVICE",
        help="train there, for as many images as the CPU sees in --minutes (default: on --device)",
    )
    flag(p, "--batch-size", type=int, default=0, help="of training (0: the recipe's)")
    flag(p, "--out", default="data/compare", help="directory for JSON files and pictures")
    add_device(p)


# ---- data ----------------------------------------------------------------------------------------


def add_data(command) -> None:
    kinds = command("data", None, "Prepare data: shards, latents of a VAE.").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )

    def add(name: str, run, about: str) -> argparse.ArgumentParser:
        p = kinds.add_parser(name, help=about, description=about)
        p.set_defaults(run=run)
        flag(p, "--out", required=True, help="directory for the shards and their record")
        flag(p, "--split", default="train", choices=["train", "test"], help="of the data")
        flag(
            p, "--per-shard", type=int, default=10_000, help="the largest number of images of each"
        )
        return p

    p = add("shard", data.shard, "Write the images of a folder as shuffled shards, unchanged.")
    p.add_argument("directory", help="DIR/CLASS/*, or DIR/train/CLASS/*: see docs/data.md")
    flag(p, "--seed", type=int, default=0, help="of the order")

    p = add("cache-latents", data.latents, "Write the latents of a VAE as shards, to train on.")
    flag(p, "--vae", required=True, help="weights of the VAE, or of a tokenizer with one")
    flag(p, "--data", required=True, help=DATA)
    flag(p, "--image-size", type=int, help="of the images in pixels (default: the VAE's)")
    on = argparse.BooleanOptionalAction
    p.add_argument("--flip", action=on, default=True, help="of mirror images too (default)")
    p.add_argument("--bf16", action=on, default=False, help="compute in bfloat16 where native")
    flag(p, "--batch-size", type=int, default=32, help="images that the VAE takes at once")
    flag(p, "--workers", type=int, default=4, help="processes that decode image files")
    minutes = "minutes to wait for a batch of images (0: no limit)"
    flag(p, "--reader-minutes", type=float, default=10.0, help=minutes)
    add_device(p)


def add_plan(command) -> None:
    about = "What a training run costs: operations, memory, hours; and settings with which it fits."
    p = command("plan", plan.show_plan, about)
    flag(p, "--preset", required=True, help="a tokenizer, a prior or a VAE")
    flag(p, "--stage", choices=list(STAGES), help="of the preset (default: the first that has it)")
    flag(p, "--gpus", type=int, default=8, help="number of GPUs")
    flag(p, "--gpu", default="h100", help=f"one of {', '.join(GPUS)}")
    flag(p, "--epochs", type=float, help="epochs (default: as many as the recipe has steps for)")
    flag(p, "--images", type=int, help="training images (default: the preset's, or ImageNet's)")
    flag(p, "--batch-size", type=int, help="images per step (default: the recipe's)")
    flag(p, "--optimizer", choices=["adamw", "muon"], help="(default: the recipe's)")
    reached = "share of the GPU's peak that training reaches"
    flag(p, "--utilization", type=float, default=0.4, help=reached)
    flag(p, "--network", type=float, default=50.0, help="GB/s between nodes of 8, of each GPU")


# ---- encode, decode ------------------------------------------------------------------------------


def add_codec(command) -> None:
    p = command(
        "demo", codec.demo, "Encode test images and decode them from 1, 2, 4, ..., K tokens."
    )
    flag(p, "--weights", help=f"{WEIGHTS} (default: shapes32, then cifar10-64)")
    flag(p, "--data", help="a data set; its test split is used (default: that of the weights)")
    out = "picture; without --weights demo-shapes32.png and demo-cifar10-64.png"
    flag(p, "--out", default="outputs/demo.png", help=out)
    flag(p, "--num-images", type=int, default=16, help="images that the table averages over")
    add_decoding(p, guidance=None)

    p = command("encode", codec.encode, "Encode image files or folders as ids: .npz or .json.")
    p.add_argument("images", nargs="+", help=IMAGES)
    flag(p, "--weights", default="cifar10-tiny", help=WEIGHTS)
    flag(p, "--tokens", type=int, help="ids per image (default: all K)")
    flag(p, "--out", default="outputs/ids.npz", help=".npz or .json file")
    add_device(p)

    p = command("decode", codec.decode, "Decode ids saved by `encode` to PNG files.")
    p.add_argument("ids", help=".npz or .json file of `encode`")
    flag(p, "--weights", help=f"{WEIGHTS} (default: those that encoded)")
    flag(p, "--tokens", type=int, help="use only the first ids of each image (default: all)")
    flag(p, "--out", default="outputs/decoded", help="directory for PNG files")
    add_decoding(p)

    p = command("reconstruct", codec.reconstruct, "Encode and decode images: a table, a picture.")
    p.add_argument("images", nargs="+", help=IMAGES)
    flag(p, "--weights", default="cifar10-tiny", help=WEIGHTS)
    flag(p, "--tokens", type=int, nargs="+", help="token budgets to show (default 1 2 4 ... K)")
    flag(p, "--out", default="outputs/reconstruct.png", help="picture")
    add_decoding(p)


def add_compress(command) -> None:
    prior = "weights of the prior, or none (default: the shipped one of the tokenizer, or none)"
    p = command("compress", compress.compress, "Encode images as entropy-coded ids: .ftk.")
    p.add_argument("images", nargs="+", help=IMAGES)
    flag(p, "--weights", default="cifar10", help=WEIGHTS)
    flag(p, "--prior", help=prior)
    flag(p, "--tokens", type=int, help="ids per image (default: all K)")
    flag(p, "--out", default="outputs/images.ftk", help=".ftk file")
    add_device(p)

    p = command("decompress", compress.decompress, "Decode a .ftk file, or its beginning.")
    p.add_argument("file", help=".ftk file of `compress`")
    flag(p, "--weights", help=f"{WEIGHTS} (default: the shipped ones that compressed)")
    flag(p, "--prior", help=prior)
    out = "directory for PNG files, or a .npz or .json file for the ids"
    flag(p, "--out", default="outputs/decompressed", help=out)
    add_decoding(p)


# ---- evaluate, generate --------------------------------------------------------------------------


def add_evaluate(command) -> None:
    budgets = "token budgets to evaluate (default 1 2 4 ... K)"
    p = command(
        "evaluate",
        evaluate.evaluate,
        "Metrics of a tokenizer by token budget: rFID, PSNR, SSIM, MAE, classification accuracy.",
    )
    flag(p, "--weights", default="cifar10-tiny", help=WEIGHTS)
    flag(p, "--data", default="cifar10-sample", help=DATA)
    flag(p, "--split", default="test", choices=["train", "test"], help="of the data")
    flag(p, "--num-images", type=int, help="the first images only (default: all, at most 10,000)")
    flag(p, "--tokens", type=int, nargs="+", help=budgets)
    add_scores(p)
    add_batches(p)
    flag(p, "--out", default="outputs/results.json", help="JSON file")
    add_decoding(p)

    p = command(
        "evaluate-prior",
        evaluate.evaluate_prior,
        "Metrics of a prior by token budget, beside reconstructions by its tokenizer: gFID and "
        "classification accuracy, or exactly checked captions; bits by position; shared prefixes.",
    )
    add_prior(p)
    flag(p, "--data", help="data set of the conditions (default cifar10-sample; for text, shapes)")
    flag(
        p,
        "--split",
        type=choice,
        default="test",
        choices=["train", "validation", "test"],
        help="of the data; choose samplers on train, or on validation (the images that training "
        "with seed 0 does not use), never on test",
    )
    flag(p, "--num-samples", type=int, default=1000, help="samples of each sampler")
    flag(p, "--tokens", type=int, nargs="+", help=budgets)
    flag(
        p,
        "--guidance",
        type=float,
        nargs="+",
        default=[1.0, 3.0],
        help="guidance scales of the prior",
    )
    flag(
        p,
        "--temperature",
        type=float,
        nargs="+",
        default=[1.0],
        help="each is combined with each guidance scale",
    )
    flag(p, "--decoder-guidance", type=float, default=1.0, help="guidance scale of the decoder")
    flag(p, "--prefix-images", type=int, default=24, help="images whose first ids are continued")
    add_scores(p)
    add_batches(p)
    flag(p, "--out", default="outputs/prior", help="directory for results.json and pictures")


def add_generate(command) -> None:
    p = command(
        "generate", evaluate.generate, "Generate images for classes or captions with a prior."
    )
    asked = p.add_mutually_exclusive_group()
    classes = "names or numbers (default: the first ten classes)"
    flag(asked, "--classes", nargs="+", metavar="CLASS", help=classes)
    captions = "captions, for a prior conditioned on text"
    flag(asked, "--text", nargs="+", metavar="CAPTION", help=captions)
    add_prior(p)
    flag(p, "--samples", type=int, default=8, help="images per class or caption")
    flag(p, "--tokens", type=int, help="ids per image, 1 to K (default: all K)")
    flag(p, "--guidance", type=float, default=1.0, help="guidance scale of the prior; 1 is none")
    flag(p, "--temperature", type=float, default=1.0, help="0 always takes the most probable id")
    flag(p, "--out", default="outputs/generated.png", help="picture, one row per class")


# ---- main ----------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "minflextok", description="FlexTok: images as 1 to K ordered tokens, and back."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, about: str) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=about, description=about)
        p.set_defaults(run=run)
        return p

    add_codec(command)
    add_compress(command)
    add_data(command)
    add_train(command)
    add_evaluate(command)
    add_generate(command)
    add_curves_and_compare(command)
    add_plan(command)
    return parser


# Arguments whose flags have other names.
OTHER_NAMES = {"num_tokens": "tokens", "budgets": "tokens", "teacher": "repa"}


def with_flags(message: str, known: set[str]) -> str:
    """An error of the library with flags for arguments: "steps=0: give ..." -> "--steps 0: give
    ...", "flip=False" -> "--no-flip"."""

    def flag_of(match: re.Match) -> str:
        name = OTHER_NAMES.get(match[1], match[1])
        if name not in known:
            return match[0]
        end = {"=": " ", "=True": "", "=False": ""}.get(match[2], match[2])
        return ("--no-" if match[2] == "=False" else "--") + name.replace("_", "-") + end

    value = r"(?<![\w.\-/'?&])([a-z]\w*)(=True\b|=False\b|=(?=\S))"
    asked = r"(?<=give )([a-z]\w*)(,)"
    return re.sub(asked, flag_of, re.sub(value, flag_of, message))


def main(argv: list[str] | None = None) -> None:
    a = build_parser().parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: print(
        f"minflextok: warning: {printable(str(message))}", file=sys.stderr
    )
    try:
        a.run(a)
    except (ValueError, OSError, ImportError, FloatingPointError, torch.OutOfMemoryError) as e:
        if os.environ.get("RANK", "0") != "0":
            # What goes wrong on all ranks is said once: torchrun ends this one as soon as rank 0
            # has ended with its message.
            time.sleep(PATIENCE)
        sys.exit(f"minflextok: error: {printable(with_flags(str(e), set(vars(a))))}")
