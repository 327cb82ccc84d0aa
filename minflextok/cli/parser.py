"""The command line: minflextok demo | train | encode | decode | reconstruct | generate | evaluate |
evaluate-prior | compare | curves."""

import argparse
import dataclasses
import sys
import typing
import warnings

import torch

from ..config import TrainConfig
from ..presets import JUDGES, PRESETS, PRIOR_PRESETS, VAE_PRESETS
from . import commands


def add_fields(group, cls, skip: tuple[str, ...] = ()) -> None:
    """A flag for each field of a config dataclass, described as there, but those to skip."""
    for f in dataclasses.fields(cls):
        if f.name in skip:
            continue
        flag, kind = "--" + f.name.replace("_", "-"), typing.get_type_hints(cls)[f.name]
        if kind is bool:
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=None, help=f.metadata["help"]
            )
        else:
            group.add_argument(
                flag, type=kind, metavar=kind.__name__.upper(), help=f.metadata["help"]
            )


def device(name: str) -> str:
    """An argparse type: the name of a device that works here."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:  # torch built without CUDA asserts
        raise argparse.ArgumentTypeError(
            f"{name!r} does not work here ({str(e).splitlines()[0]}); cpu does"
        ) from None
    return name


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "minflextok", description="Images to 1..K ordered tokens and back (FlexTok)."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    auto = "cuda" if torch.cuda.is_available() else "cpu"

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        p = subparsers.add_parser(name, help=help, description=help)
        p.set_defaults(run=run)
        return p

    def decoding(
        p, weights: str | None = "cifar10-tiny", out: str = "outputs/reconstruct.png"
    ) -> None:
        p.add_argument(
            "--weights",
            default=weights,
            help="shipped weights by name, or a directory"
            + (
                f" (default {weights})"
                if weights
                else " (default: those that the ids were made with)"
            ),
        )
        p.add_argument("--out", default=out, help=f"where to write (default {out})")
        p.add_argument("--device", type=device, default=auto, help=f"cpu or cuda (here {auto})")
        p.add_argument("--steps", type=int, default=25, help="Euler steps (default 25)")
        p.add_argument(
            "--guidance", type=float, default=1.0, help="guidance scale; 1 is none (default 1)"
        )
        p.add_argument(
            "--apg",
            action="store_true",
            help="adaptive projected guidance instead of classifier-free",
        )
        p.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")

    p = command(
        "demo",
        commands.demo,
        "Tokenize embedded test images and show them at 1, 2, 4, ..., K tokens.",
    )
    decoding(p, out="outputs/demo.png")
    p.add_argument(
        "--data",
        default="cifar10-sample",
        help="a data set; its test split is used (default cifar10-sample)",
    )
    p.add_argument(
        "--num-images",
        type=int,
        default=64,
        help="images that the table averages over (default 64)",
    )

    stages = command("train", None, "Train a model.").add_subparsers(
        dest="what", required=True, metavar="WHAT"
    )

    def stage(
        name: str, run, presets: dict, preset: str, help: str, skip: tuple[str, ...] = ()
    ) -> argparse.ArgumentParser:
        p = stages.add_parser(
            name,
            help=help,
            description=f"Train {help}. A run that was stopped goes on when the "
            "same command is given again. Under torchrun, the same command uses all its processes.",
        )
        p.set_defaults(run=run)
        p.add_argument(
            "--preset",
            choices=list(presets),
            default=preset,
            help=f"model and recipe (default {preset})",
        )
        p.add_argument(
            "--data",
            help="shapes, cifar10, cifar10-sample, a folder, or .tar/.tar.gz shards "
            "(default: the preset's own)",
        )
        p.add_argument(
            "--out", required=True, help="directory for checkpoint, metrics, pictures and weights"
        )
        p.add_argument("--device", type=device, help=f"cpu or cuda (here {auto})")
        p.add_argument("--quiet", action="store_true", help="no progress bar")
        fields = ", ".join(f.name for f in dataclasses.fields(presets[preset]))
        p.add_argument(
            "--model",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"change a field of the preset's model config, repeatable: {fields}",
        )
        add_fields(p.add_argument_group("recipe (defaults: the preset's)"), TrainConfig, skip)
        return p

    always = ("nested_from", "nested_full")  # what the tokenizer alone has
    stage(
        "vae",
        commands.train_a_vae,
        VAE_PRESETS,
        "f2-small",
        "a VAE, stage 0 of models on latents",
        skip=always,
    )
    stage(
        "judge",
        commands.train_a_judge,
        JUDGES,
        "judge",
        "a classifier that judges images",
        skip=(*always, "compile"),
    )
    p = stage("tokenizer", commands.train_a_tokenizer, PRESETS, "shapes", "a FlexTok")
    p.add_argument(
        "--repa",
        metavar="TEACHER",
        help="align the decoder with a teacher's features: dinov2, or weights that "
        "`minflextok train judge --preset teacher` made (default: no teacher)",
    )
    p.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="start from these weights, by name or directory; their K may differ "
        "(default: from scratch)",
    )
    p.add_argument(
        "--vae", help="weights of the VAE whose latents a preset with in_channels != 3 works on"
    )
    p = stage(
        "prior",
        commands.train_a_prior,
        PRIOR_PRESETS,
        "cifar10-tiny",
        "a GPT over a tokenizer's ids",
        skip=always,
    )
    p.add_argument(
        "--tokenizer", help="its weights by name, or a directory (default: the preset's name)"
    )
    p.add_argument(
        "--crops",
        type=int,
        default=1,
        help="1, or 5: each image also moved towards its corners (default 1)",
    )
    p.add_argument("--cache", help="directory that keeps the ids (default ~/.cache/minflextok/ids)")

    p = command(
        "curves", commands.show_curves, "Plot a training run, against a reference: is it healthy?"
    )
    p.add_argument("directory", help="the --out of a tokenizer's training run")
    p.add_argument("--reference", help="another run, or shipped weights by name (default: none)")
    p.add_argument(
        "--out", default="outputs/curves.png", help="picture (default outputs/curves.png)"
    )

    p = command(
        "compare",
        commands.compare_systems,
        "Train and score FlexTok and its relatives, all alike (resumable).",
    )
    p.add_argument("--systems", nargs="+", default=[], help="which of them (default: all)")
    p.add_argument(
        "--preset",
        choices=list(PRESETS),
        default="cifar10-tiny",
        help="of FlexTok (default cifar10-tiny)",
    )
    p.add_argument("--minutes", type=float, default=20, help="training time of each (default 20)")
    p.add_argument(
        "--data", default="cifar10", help="a data set; its train split trains (default cifar10)"
    )
    p.add_argument(
        "--test-data", help="what they are scored on, its test split (default: as --data)"
    )
    p.add_argument("--num-images", type=int, default=2000, help="test images (default 2000)")
    p.add_argument(
        "--repa", metavar="TEACHER", help="teacher of the systems with REPA (default: none)"
    )
    p.add_argument(
        "--out",
        default="data/compare",
        help="a JSON file for each, and pictures (default data/compare)",
    )
    p.add_argument("--device", type=device, default=auto, help=f"cpu or cuda (here {auto})")

    p = command("encode", commands.encode, "Image files or folders to ids, saved as .npz or .json.")
    p.add_argument("images", nargs="+", help="image files, or folders that are searched for them")
    p.add_argument(
        "--weights", default="cifar10-tiny", help="shipped weights by name, or a directory"
    )
    p.add_argument("--tokens", type=int, help="ids an image (default: all K)")
    p.add_argument(
        "--out", default="outputs/ids.npz", help=".npz or .json (default outputs/ids.npz)"
    )
    p.add_argument("--device", type=device, default=auto, help=f"cpu or cuda (here {auto})")

    p = command("decode", commands.decode, "Ids saved by `encode` to PNG files.")
    p.add_argument("ids", help=".npz or .json from `encode`")
    decoding(p, weights=None, out="outputs/decoded")
    p.add_argument("--tokens", type=int, help="use the first so many ids only")

    p = command(
        "reconstruct",
        commands.reconstruct,
        "Image files or folders through the tokenizer: a picture and a table.",
    )
    p.add_argument("images", nargs="+", help="image files, or folders that are searched for them")
    decoding(p)
    p.add_argument("--tokens", type=int, nargs="+", help="budgets to show (default 1 2 4 ... K)")

    p = command(
        "evaluate",
        commands.evaluate,
        "Measure a tokenizer by token count: rFID, PSNR, SSIM, MAE, agreement.",
    )
    decoding(p, out="outputs/results.json")
    p.add_argument(
        "--data", default="cifar10-sample", help="data set by name or path (default cifar10-sample)"
    )
    p.add_argument(
        "--split", default="test", choices=["train", "test"], help="of the data (default test)"
    )
    p.add_argument(
        "--num-images", type=int, help="the first so many (default: all, at most 10,000)"
    )
    p.add_argument("--tokens", type=int, nargs="+", help="budgets to measure (default 1 2 4 ... K)")
    p.add_argument(
        "--features",
        default="classifier",
        choices=["classifier", "fidelity"],
        help="space of rFID: the evaluation classifier's features, or those of published FIDs, "
        "torch-fidelity's Inception-v3, which is downloaded (default classifier)",
    )
    p.add_argument(
        "--judge", default="judge-cifar10", help="weights of the judge (default judge-cifar10)"
    )
    p.add_argument(
        "--batch-size",
        type=int,
        default=64,
        help="images at a time; changes no result (default 64)",
    )
    p.add_argument(
        "--bf16", action="store_true", help="decode under bfloat16 autocast, about twice as fast"
    )

    p = command(
        "evaluate-prior",
        commands.evaluate_a_prior,
        "Measure a prior by token count: gFID and agreement of its "
        "samples, or captions met exactly, beside its tokenizer; bits by position; samples that share a prefix.",
    )
    p.add_argument(
        "--prior",
        required=True,
        help="a directory of `minflextok train prior`, or shipped weights by name",
    )
    p.add_argument(
        "--tokenizer", help="its weights by name, or a directory (default: the prior's name)"
    )
    p.add_argument(
        "--data",
        help="whose labels or captions are asked for (default cifar10-sample; shapes for text)",
    )
    p.add_argument(
        "--split",
        default="test",
        choices=["train", "held-out", "test"],
        help="of the data; choose samplers on "
        "train or held-out (what training with seed 0 leaves out), never on test (default test)",
    )
    p.add_argument("--num-samples", type=int, default=1000, help="by each sampler (default 1000)")
    p.add_argument("--tokens", type=int, nargs="+", help="budgets to measure (default 1 2 4 ... K)")
    p.add_argument(
        "--guidance",
        type=float,
        nargs="+",
        default=[1.0, 3.0],
        help="scales of its guidance (default 1 3)",
    )
    p.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        default=[1.0],
        help="each with each guidance (default 1)",
    )
    p.add_argument("--top-k", type=int, help="sample from the k likeliest ids (default: all)")
    p.add_argument(
        "--top-p",
        type=float,
        help="sample from the likeliest ids that hold this share (default: all)",
    )
    p.add_argument(
        "--steps", type=int, default=25, help="Euler steps of the tokenizer's decoder (default 25)"
    )
    p.add_argument(
        "--decoder-guidance",
        type=float,
        default=1.0,
        help="scale of its guidance; 1 is none (default 1)",
    )
    p.add_argument(
        "--prefix-images",
        type=int,
        default=24,
        help="images whose first ids are continued (default 24)",
    )
    p.add_argument(
        "--judge",
        default="judge-cifar10",
        help="weights of the judge of classes (default judge-cifar10)",
    )
    p.add_argument("--batch-size", type=int, default=64, help="images at a time (default 64)")
    p.add_argument(
        "--bf16", action="store_true", help="decode under bfloat16 autocast, about twice as fast"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of ids and noise (default 0)")
    p.add_argument("--device", type=device, default=auto, help=f"cpu or cuda (here {auto})")
    p.add_argument(
        "--out",
        default="outputs/prior",
        help="directory for results.json and pictures (default outputs/prior)",
    )

    p = command(
        "generate",
        commands.generate,
        "Images from classes or captions, by a prior and its tokenizer.",
    )
    asked = p.add_mutually_exclusive_group()
    asked.add_argument(
        "--classes", nargs="+", metavar="CLASS", help="names or numbers (default: the first ten)"
    )
    asked.add_argument(
        "--text", nargs="+", metavar="CAPTION", help="captions, for a prior that takes text"
    )
    p.add_argument(
        "--prior",
        required=True,
        help="a directory of `minflextok train prior`, or shipped weights by name",
    )
    p.add_argument(
        "--tokenizer", help="its weights by name, or a directory (default: the prior's name)"
    )
    p.add_argument(
        "--samples", type=int, default=8, help="images of each class or caption (default 8)"
    )
    p.add_argument("--tokens", type=int, help="ids an image, 1 to K (default: all K)")
    p.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="scale of the prior's guidance; 1 is none (default 1)",
    )
    p.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="0 takes the likeliest id each time (default 1)",
    )
    p.add_argument("--top-k", type=int, help="sample from the k likeliest ids (default: all)")
    p.add_argument(
        "--top-p",
        type=float,
        help="sample from the likeliest ids that hold this share (default: all)",
    )
    p.add_argument(
        "--steps", type=int, default=25, help="Euler steps of the tokenizer's decoder (default 25)"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of ids and noise (default 0)")
    p.add_argument("--device", type=device, default=auto, help=f"cpu or cuda (here {auto})")
    p.add_argument(
        "--out",
        default="outputs/generated.png",
        help="one row a class (default outputs/generated.png)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    a = build_parser().parse_args(argv)
    warnings.showwarning = lambda message, *_, **__: print(
        f"minflextok: warning: {message}", file=sys.stderr
    )
    try:
        a.run(a)
    except (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError) as e:
        sys.exit(f"minflextok: error: {e}")
