"""Does every image need the same number of tokens? Adaptive lengths, measured.

    python -m minflextok.experiments.lengths [--weights cifar10] [--metrics psnr class] [--head DIR]

For each test image, the search of `encode_adaptive` finds the shortest prefix whose decoded image
meets the target. Compared with it: one length for all images, of equal mean quality, and one at
which as many images meet the target; and the lengths that a trained head predicts from the
registers (experiments.length_head). All are read from one table: the quality of each image at each
length. "class" is measured on images that the classifier recognizes. Writes WEIGHTS.json and
WEIGHTS.png.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..adaptive import LengthHead, shortest
from ..data import Dataset, load_dataset, to_float
from ..evaluation.classifier import Classifier, match_classes
from ..evaluation.figures import save
from ..evaluation.reports import setting, write_results
from ..evaluation.scores import mean_and_interval
from ..tokenizer import FlexTok
from .codecs import tile
from .length_head import QUARTER, default_target, latents, metric_of, values_by_length

RESAMPLES = 500


def search(values: Tensor, target: float) -> tuple[Tensor, Tensor, Tensor]:
    """What `encode_adaptive` finds, read from values (n, K): lengths, values, met, (n,) each."""
    targets = torch.full((len(values),), target, dtype=values.dtype)
    return shortest(lambda rows, k: values[rows, k - 1], targets, values.shape[1])


def fixed_length(curve: Tensor, quality: float) -> int:
    """The smallest length k at which a curve (K,) has reached this quality; K if it never does."""
    reached = curve >= quality - 1e-9
    return int(reached.int().argmax()) + 1 if bool(reached.any()) else len(curve)


def compare(values: Tensor, target: float, bits: float, predicted: Tensor | None = None) -> dict:
    """All results for one metric, from values (n, K): the quality of image i at k tokens.

    bits: of a token. predicted: lengths (n,) int64 of a head.
    """
    values = values.double()
    n, K = values.shape
    lengths, found, met = search(values, target)
    curve, share = values.mean(0), (values >= target).double().mean(0)  # (K,) each
    fixed = fixed_length(curve, found.mean().item())
    results = {
        "target": target,
        "images": n,
        "K tokens meet it": mean_and_interval(met),
        "adaptive": about(lengths, found, target, met)
        | {
            "mean bits, length included": lengths.double().mean().item() * bits + math.log2(K),
            "images by length": torch.bincount(lengths, minlength=K + 1)[1:].tolist(),
        },
        "one length for all, of this mean quality": {
            "tokens": fixed,
            "bits": fixed * bits,
            "mean quality": curve[fixed - 1].item(),
            "share of images that meet the target": share[fixed - 1].item(),
            "fewer tokens than it, adaptive": {
                "mean": fixed - lengths.double().mean().item(),
                "ci95": saved(values, lengths, found),
            },
        },
        "one length for all, at which as many meet the target": fixed_length(
            share, (found >= target).double().mean().item()
        ),
        "mean quality by length": curve.tolist(),
    }
    if predicted is not None:
        pairs = torch.stack([predicted, lengths]).double()
        reached = values[torch.arange(n), predicted - 1]
        results["predicted"] = about(predicted, reached, target, met) | {
            "one length for all, of this mean quality": fixed_length(curve, reached.mean().item()),
            "correlation with the search": torch.corrcoef(pairs)[0, 1].item(),
        }
    return results


def about(lengths: Tensor, found: Tensor, target: float, met: Tensor) -> dict:
    """Lengths (n,) and the quality that they give (n,); met: images for which K tokens meet the
    target."""
    return {
        "met, of those that K tokens meet it for": mean_and_interval(found[met] >= target)
        if met.any()
        else None,
        "tokens": mean_and_interval(lengths),
        "quality": mean_and_interval(found),
    }


def saved(values: Tensor, lengths: Tensor, found: Tensor) -> list[float]:
    """95% interval of the tokens that adaptive lengths save against one length of equal mean
    quality: images are resampled."""
    g, n, differences = torch.Generator().manual_seed(0), len(values), []
    for _ in range(RESAMPLES):
        i = torch.randint(n, (n,), generator=g)
        fixed = fixed_length(values[i].mean(0), found[i].mean().item())
        differences.append(fixed - lengths[i].double().mean().item())
    return torch.tensor(differences).quantile(torch.tensor([0.025, 0.975])).tolist()


def recognized(test: Dataset, x: Tensor, classifier: str = "judge-cifar10") -> Tensor:
    """The images (n,) bool whose class the evaluation classifier gives."""
    network = Classifier.from_pretrained(classifier)
    c = network.config
    labels = match_classes(test, c.class_names, c.num_classes, classifier)(test.labels)
    with torch.no_grad():
        return torch.cat([network(part).argmax(1) for part in x.split(250)]) == labels


def picture(
    images: dict[str, Tensor], results: dict[str, dict], lengths: dict[str, Tensor]
) -> Figure:
    """For each metric the distribution of lengths, and the images with the fewest and the most
    tokens. By metric: images (n, 3, H, W) uint8, lengths (n,)."""
    fig = Figure(figsize=(12, 3.6 * len(results)), layout="constrained")
    axes = fig.subplots(len(results), 3, squeeze=False)
    for row, (name, found) in zip(axes, results.items(), strict=True):
        counts = found["adaptive"]["images by length"]
        row[0].bar(range(1, len(counts) + 1), counts, color="#0072B2")
        fixed = found["one length for all, of this mean quality"]["tokens"]
        row[0].axvline(fixed, color="#D55E00", ls="--", label=f"one length for all: {fixed}")
        row[0].set_xlabel("tokens", fontsize=10)
        row[0].set_ylabel("images", fontsize=10)
        row[0].set_title(f"{name}: lengths for {found['target']:g}", fontsize=10)
        row[0].legend(fontsize=9, loc="upper center")
        order = lengths[name].argsort(stable=True)
        for ax, rows, title in (
            (row[1], order[:32], "fewest tokens"),
            (row[2], order[-32:].flip(0), "most tokens"),
        ):
            ax.imshow(tile(images[name][rows], 8).permute(1, 2, 0))
            found_here = lengths[name][rows]
            ax.set_title(f"{title}: {found_here.min()} to {found_here.max()}", fontsize=10)
            ax.axis("off")
    return fig


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="cifar10")
    parser.add_argument("--data", default="cifar10-sample")
    parser.add_argument("--test-images", type=int, default=300)
    parser.add_argument("--metrics", nargs="+", default=["psnr"], choices=("psnr", "class"))
    parser.add_argument("--head", help="of experiments.length_head; its target and steps are used")
    parser.add_argument("--steps", type=int, default=4, help="Euler steps")
    parser.add_argument("--out", default="data/lengths")
    a = parser.parse_args(argv)
    tok = FlexTok.from_pretrained(a.weights)
    head = LengthHead.from_pretrained(a.head) if a.head else None
    if head is not None:
        head.check_tokenizer(tok)
        a.steps = head.config.steps
    train, test = (load_dataset(a.data, split, tok.image_size) for split in ("train", "test"))
    x_train = to_float(train.at(torch.arange(min(QUARTER, len(train)))))
    test = test.select(torch.arange(min(a.test_images, len(test))))
    images = test.at(torch.arange(len(test)))
    x = to_float(images)
    table = values_by_length(tok, x, {name: metric_of(name) for name in a.metrics}, a.steps)
    results, lengths, shown = {}, {}, {}
    for name, values in table.items():
        mine = head if head is not None and head.config.metric == name else None
        target = mine.config.target if mine else default_target(tok, x_train, name, a.steps)
        kept = recognized(test, x) if name == "class" else torch.ones(len(x), dtype=torch.bool)
        predicted = None
        if mine is not None:
            with torch.no_grad():
                predicted = mine.lengths(latents(tok, x[kept]))
        results[name] = compare(values[kept], target, tok.config.bits_per_token, predicted)
        lengths[name], shown[name] = search(values[kept], target)[0], images[kept]
    about_it = setting(vars(a), test_images=len(x), encoding=test.encoding)
    found = {"setting": about_it, **results}
    name = Path(a.weights).name
    write_results(found, Path(a.out) / f"{name}.json")
    save(picture(shown, results, lengths), Path(a.out) / f"{name}.png")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
