"""What each token carries: classes, places, what is left open, swaps, use of the ids.

    python -m minflextok.experiments.tokens --data 'cifar10-{split}.tar.gz' --train-images 10000

Statistics of ids (information about the class, entropy, ids in use) are of training images, for
they need many. Test images are decoded, and score the classes that training images gave to the
first ids. Writes WEIGHTS.json and the figures of token_figures.py.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ..data import to_float
from ..evaluation.classifier import Classifier, match_classes
from ..evaluation.figures import save
from ..evaluation.metrics import code_usage
from ..evaluation.reports import setting, write_results
from ..evaluation.scores import share
from ..tokenizer import FlexTok
from .information import Vocabulary, corrected_information, digits
from .representations import Splits, load_splits
from .token_effects import Decoder, map_summary, open_maps, open_summary, swaps, token_maps
from .token_figures import maps_figure, numbers_figure, open_figure, vocabulary_figure


def statistics(tok: FlexTok, ids: Tensor, labels: Tensor) -> dict:
    """By position, for ids (N, K) and labels (N,): entropy and ids in use, information about the
    class of the id and of its most informative digit, and what the bias of each is."""
    used, perplexity = code_usage(ids, tok.config.vocab_size)
    found = {}
    for j in range(ids.shape[1]):
        parts = digits(ids[:, j], tok.config.fsq_levels).unbind(-1)  # (N,) each
        by_digit = [corrected_information(part, labels) for part in parts]
        found[str(j + 1)] = {
            "ids in use": used[j].item(),
            "entropy bits": perplexity[j].log2().item(),
            "class information bits": corrected_information(ids[:, j], labels),
            "of the best digit": max(by_digit, key=lambda d: d["corrected"]),
        }
    return found


def frequent(ids: Tensor, num: int) -> list[int]:
    """The most frequent of ids (N,), at most num of them."""
    values, counts = ids.unique(return_counts=True)
    return values[counts.argsort(descending=True, stable=True)[:num]].tolist()


def first_token(
    tok: FlexTok, known: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: list[str]
) -> dict:
    """The ids of the first token as clusters of images. known, test: ids (N,), labels (N,) of
    training and of test images."""
    vocabulary = Vocabulary(*known, tok.config.vocab_size)
    correct = vocabulary.correct(*test)
    largest = {}
    for i in frequent(test[0], 24):
        rows = test[0] == i
        label = int(vocabulary.classes[i])
        largest[str(i)] = {"class": classes[label], "purity": share(correct[rows].tolist())}
    always = known[1].bincount().argmax()
    return {
        "purity": share(correct.tolist()),
        "chance": share((test[1] == always).tolist()),
        "test images with an id of training": share(torch.isin(test[0], known[0]).tolist()),
        "most frequent ids": largest,
    }


def measure(a: argparse.Namespace) -> tuple[dict, dict]:
    """All results, and the figures by name."""
    tok = FlexTok.from_pretrained(a.weights)
    classifier = Classifier.from_pretrained(a.classifier)
    splits = load_splits(a.data, tok.image_size, a.train_images, 0, a.test_images)
    train, _, test = splits
    ids, ids_test = (tok.encode(to_float(part.images), batch_size=50) for part in (train, test))
    c = classifier.config
    labels = match_classes(test, c.class_names, c.num_classes, "the classifier")(test.labels)
    classes = list(c.class_names) or [str(i) for i in range(c.num_classes)]

    decode, n = Decoder(tok, a.steps, a.guidance), min(a.decoded_images, len(test))
    maps = token_maps(decode, ids_test[:n])
    left_open = open_maps(decode, ids_test[:n], to_float(test.images[:n]), a.repeats)
    results = {
        "setting": setting(vars(a), encoding=test.encoding, torch=torch.__version__),
        "positions": statistics(tok, ids, train.labels),
        "first token": first_token(
            tok, (ids[:, 0], train.labels), (ids_test[:, 0], test.labels), names_of(splits, classes)
        ),
        "replaced": map_summary(maps["replaced"], 1),
        "added": map_summary(maps["added"], 2),
        "left open": open_summary(left_open),
        "swaps": swaps(decode, ids_test, labels, classifier, a.pairs),
    }
    figures = {
        "vocabulary": vocabulary_figure(test.images, ids_test[:, 0], results),
        "maps": maps_figure(maps["replaced"]),
        "open": open_figure(decode, ids_test[: min(4, n)], test.images[: min(4, n)], left_open),
        "numbers": numbers_figure(results),
    }
    return results, figures


def names_of(splits: Splits, classes: list[str]) -> list[str]:
    """The class names of the data; those of the classifier where the data has none."""
    return splits.train.classes or classes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="cifar10")
    parser.add_argument("--data", default="cifar10-sample")
    parser.add_argument("--classifier", default="judge-cifar10")
    parser.add_argument("--train-images", type=int, default=4000, help="for statistics of ids")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--decoded-images", type=int, default=32, help="for maps and variances")
    parser.add_argument("--repeats", type=int, default=8, help="decodes with other noise")
    parser.add_argument("--pairs", type=int, default=128, help="of images whose ids are swapped")
    parser.add_argument("--steps", type=int, default=8, help="Euler steps")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--out", default="data/tokens")
    a = parser.parse_args(argv)
    results, figures = measure(a)
    out, name = Path(a.out), Path(a.weights).name
    write_results(results, out / f"{name}.json")
    for kind, figure in figures.items():
        save(figure, out / f"{name}-{kind}.png")
    print(summary(results))


def summary(results: dict) -> str:
    """A line for each position, and the first token's purity."""
    lines = ["position  entropy  ids in use  class information (bits)  change if replaced"]
    for j, row in results["positions"].items():
        change = results["replaced"][j]["change"]["mean"]
        information = row["class information bits"]["corrected"]
        lines.append(
            f"{j:>8} {row['entropy bits']:8.2f} {row['ids in use']:11} {information:25.3f} "
            f"{change:19.3f}"
        )
    purity, chance = (results["first token"][key]["mean"] for key in ("purity", "chance"))
    lines.append(f"class from the first id alone: {purity:.1%}, chance {chance:.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
