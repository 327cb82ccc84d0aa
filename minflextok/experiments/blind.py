"""Recognition by the eye: can someone who has not seen the originals name the objects?

    python -m minflextok.experiments.blind --weights cifar10-64 --out outputs/blind
    python -m minflextok.experiments.blind --out outputs/blind --answers answers.json

The first command writes reconstructions.png and originals.png, with the same images in different
orders and without names, and key.json, which the labeller must not open. answers.json has the names
in the order of the numbers: {"reconstructions": [...], "originals": [...]}. The second
command counts.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..config import require
from ..data import load_dataset, to_float
from ..draws import seeded_noise
from ..evaluation.figures import save
from ..evaluation.reports import write_results
from ..tokenizer import FlexTok

COLUMNS = 5


def sheet(images: Tensor) -> Figure:
    """Numbered images (n, 3, H, W) in [-1, 1], enlarged."""
    rows = -(-len(images) // COLUMNS)
    fig = Figure(figsize=(2 * COLUMNS, 2.2 * rows), layout="constrained")
    axes = fig.subplots(rows, COLUMNS, squeeze=False).flatten()
    for ax in axes:
        ax.axis("off")
    for number, (ax, x) in enumerate(zip(axes, images, strict=False), 1):
        ax.imshow((x.clamp(-1, 1) / 2 + 0.5).permute(1, 2, 0), interpolation="bicubic")
        ax.set_title(str(number), fontsize=9)
    return fig


@torch.no_grad()
def write_sheets(a: argparse.Namespace) -> None:
    tok = FlexTok.from_pretrained(a.weights)
    data = load_dataset(a.data, "test", tok.config.image_size)
    require(
        data.labels is not None and len(data) >= a.num_images,
        f"data={a.data!r}: give at least {a.num_images} test images with classes",
    )
    g = torch.Generator().manual_seed(a.seed)
    chosen = torch.randperm(len(data), generator=g)[: a.num_images]
    x = to_float(data.at(chosen))
    noise = seeded_noise(x.shape, a.seed)
    ids = tok.encode(x)[:, : a.tokens]
    y = tok.decode(ids, steps=a.steps, guidance=a.guidance, noise=noise)
    order = list(range(len(x)))
    random.Random(a.seed).shuffle(order)
    save(sheet(y), a.out / "reconstructions.png")
    save(sheet(x[order]), a.out / "originals.png")
    names = [data.classes[label] if data.classes else str(label) for label in data.labels[chosen]]
    key = {"reconstructions": names, "originals": [names[i] for i in order]}
    write_results(key | {"classes": data.classes}, a.out / "key.json")


def score(key: Sequence[str], answers: Sequence[str], classes: Sequence[str] = ()) -> str:
    """How many answers are right, and what was taken for what. classes: all names, some of which
    the key may lack (none: those of the key)."""
    require(
        len(answers) == len(key), f"{len(answers)} answers to {len(key)} images: give one for each"
    )
    names = sorted({*key, *classes})
    unknown = sorted(set(answers) - set(names))
    require(not unknown, f"{unknown}: give names among {', '.join(names)}")
    right = sum(true == given for true, given in zip(key, answers, strict=True))
    wrong = Counter(
        f"{true} as {given}" for true, given in zip(key, answers, strict=True) if true != given
    )
    shown = ", ".join(f"{what} ({n})" if n > 1 else what for what, n in wrong.most_common())
    return f"{right} of {len(key)} right ({right / len(key):.0%})" + f"; {shown}" * bool(shown)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--weights", default="cifar10-64")
    add("--data", default="cifar10-sample", help="a data set with classes")
    add("--num-images", type=int, default=40)
    add("--tokens", type=int, help="number of tokens (default: all)")
    add("--steps", type=int, default=12, help="Euler steps")
    add("--guidance", type=float, default=1.25, help="guidance scale")
    add("--seed", type=int, default=0, help="of the choice of images, and of the noise")
    add("--answers", type=Path, help="a JSON file of names: count")
    add("--out", type=Path, default=Path("outputs/blind"), help="directory")
    a = parser.parse_args(argv)
    if not a.answers:
        return write_sheets(a)
    key, answers = (json.loads(f.read_text()) for f in (a.out / "key.json", a.answers))
    for what in ("reconstructions", "originals"):
        if what in answers:
            print(f"{what}: {score(key[what], answers[what], key['classes'])}")
    return None


if __name__ == "__main__":
    main()
