"""Options that several commands share, and the types of their values."""

import argparse

import torch

from ..checks import first_line

AUTO = "cuda" if torch.cuda.is_available() else "cpu"
WEIGHTS = "shipped weights by name, or a directory"
DATA = "shapes, cifar10, cifar10-sample, a folder, or .tar/.tar.gz shards"
IMAGES = "image files, or folders that are searched for them"

# Former names of choices, which still work.
FORMER = {"judge": "classifier", "inception": "fidelity", "held-out": "validation"}


def choice(name: str) -> str:
    """An argparse type: today's name of a choice."""
    return FORMER.get(name, name)


def device(name: str) -> str:
    """An argparse type: the name of a device that works here."""
    try:
        torch.zeros(1, device=name).item()  # the device "meta" has no values
    except Exception as e:  # each backend of torch that is not there raises an error of its own
        raise argparse.ArgumentTypeError(
            f"{name!r} does not work here ({first_line(e)}); cpu does"
        ) from None
    return name


def printable(text: str) -> str:
    """A text in one line, with codes in place of all that does not print: a file name may hold
    line breaks and control codes of the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def say(text: str) -> None:
    """Print lines, each made printable."""
    print("\n".join(map(printable, text.split("\n"))), flush=True)


def flag(p, *names: str, type=str, default=None, help: str, **more) -> None:
    """An option. Its default, if it has one, is added to its help."""
    if default not in (None, []):
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        help += f" (default {shown})"
    p.add_argument(*names, type=type, default=default, help=help, **more)


def add_device(p) -> None:
    flag(p, "--device", type=device, default=AUTO, help="cpu or cuda")


def add_decoding(p, guidance: float | None = 1.0) -> None:
    """Options of the sampler that decodes ids."""
    add_device(p)
    flag(p, "--steps", type=int, default=25, help="Euler steps of the ODE solver")
    note = "" if guidance else " (default: as the weights' card recommends)"
    flag(
        p,
        "--guidance",
        type=float,
        default=guidance,
        help="guidance scale; 1 is no guidance" + note,
    )
    p.add_argument(
        "--apg", action="store_true", help="adaptive projected guidance, not classifier-free"
    )
    flag(p, "--seed", type=int, default=0, help="seed of the noise")


def add_prior(p) -> None:
    """Options that name a prior and its tokenizer, and how ids are sampled."""
    prior = "a directory of `minflextok train prior`, or shipped weights by name"
    flag(p, "--prior", required=True, help=prior)
    flag(p, "--tokenizer", help=f"{WEIGHTS} (default: the prior's name)")
    flag(p, "--top-k", type=int, help="sample from the k most probable ids (default: from all)")
    flag(
        p, "--top-p", type=float, help="sample from the most probable ids with this share in total"
    )
    flag(p, "--steps", type=int, default=25, help="Euler steps of the tokenizer's decoder")
    flag(p, "--seed", type=int, default=0, help="seed of ids and noise")
    add_device(p)


def add_batches(p) -> None:
    flag(p, "--batch-size", type=int, default=64, help="images at a time; changes no result")
    p.add_argument(
        "--bf16", action="store_true", help="decode under bfloat16 autocast, twice as fast"
    )


def add_scores(p) -> None:
    flag(
        p,
        "--features",
        type=choice,
        default="classifier",
        choices=["classifier", "imagenet", "fidelity"],
        help="feature space of FIDs: the evaluation classifier's, that of a network trained on "
        "ImageNet, or the Inception network of published FIDs, which is downloaded",
    )
    flag(
        p,
        "--classifier",
        "--judge",
        default="judge-cifar10",
        help="weights of the evaluation classifier",
    )
