"""What can be read from the first k tokens: probes of the class.

    python -m minflextok.experiments.probes --data 'cifar10-{split}.tar.gz'

Linear and attentive probes (see probing.py) on the first k registers of the shipped tokenizer,
before FSQ (continuous) and after it (quantized), beside pixels, pixels averaged to as many values,
the encoder's patches, and the registers of an encoder that was never trained. A second group
compares tokenizers of equal training: the command trains each for --minutes of processor time, and
keeps them in --runs. Writes WEIGHTS.json and WEIGHTS.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from ..data import Images, load_dataset, to_float
from ..evaluation.figures import save
from ..evaluation.reports import setting, write_results
from ..presets import PRESETS
from ..tokenizer import FlexTok
from .compare import STYLES
from .equal_time import Setting, images_seen, recipe_of, train_system
from .probing import PROBES, Data, Probe, sklearn
from .representations import Splits, encode_all, load_splits, pooled_pixels
from .systems import SYSTEMS

KINDS = ("continuous", "quantized")


def probed(splits: Splits, vectors: list[Tensor], probe: Probe) -> dict:
    """The results of a probe on the vectors of train, val and test."""
    data = [Data(x, images.labels) for x, images in zip(vectors, splits, strict=True)]
    return probe(*data).results()


def probe_tokenizer(tok: FlexTok, splits: Splits, budgets: list[int], say=print) -> dict:
    """Both probes on the first k tokens of both kinds, and on the encoder's patches."""
    encoded = [encode_all(tok, images.images) for images in splits]
    found: dict = {"tokens": {}, "patches": {}}
    for k in budgets:
        row = found["tokens"][str(k)] = {
            kind: {
                name: probed(splits, [getattr(e, kind)[:, :k] for e in encoded], probe)
                for name, probe in PROBES.items()
            }
            for kind in KINDS
        }
        say(f"  {k:3} tokens: {accuracies(row)}", flush=True)
    patches = [e.patches for e in encoded]
    means = [x.mean(1) for x in patches]
    found["patches"]["average, linear"] = probed(splits, means, PROBES["linear"])
    found["patches"]["all, attentive"] = probed(splits, patches, PROBES["attentive"])
    return found


def accuracies(row: dict) -> str:
    return ", ".join(
        f"{kind} {name} {result['accuracy']['mean']:.1%}"
        for kind, probes in row.items()
        for name, result in probes.items()
    )


def probe_pixels(splits: Splits, budgets: list[int], values: int) -> dict:
    """Linear probes of all pixels, and of averages of at least `values` k values."""
    linear, found = PROBES["linear"], {}
    for k in budgets:
        vectors = [pooled_pixels(images.images, values * k) for images in splits]
        found[str(k)] = {"values": vectors[0].shape[1]} | probed(splits, vectors, linear)
    whole = [to_float(images.images) for images in splits]
    return {"all": probed(splits, whole, linear), "averaged": found}


def tokenizers(a: argparse.Namespace) -> dict[str, tuple[FlexTok, dict]]:
    """By name: a tokenizer, and what is to be said of it. Trains those that are not there yet."""
    shipped = FlexTok.from_pretrained(a.weights)
    torch.manual_seed(0)
    untrained = FlexTok(shipped.config).eval()
    found: dict[str, tuple[FlexTok, dict]] = {
        a.weights: (shipped, {"about": "shipped weights"}),
        "untrained": (untrained, {"about": "the same architecture, initial weights"}),
    }
    of_all = Setting(a.preset, a.minutes, a.data, a.data, a.test_images)
    train: Images | None = None
    for name in a.systems:
        out = Path(a.runs) / name
        if train is None:
            train = load_dataset(a.data, "train", PRESETS[a.preset].image_size)
        tok = train_system(name, of_all, recipe_of(SYSTEMS[name], of_all), train, out)
        about = {"about": SYSTEMS[name].about, "images_seen": images_seen(out)}
        found[name] = (tok, about | {"minutes": a.minutes})
    return found


def measure(a: argparse.Namespace) -> dict:
    found = tokenizers(a)
    shipped = found[a.weights][0]
    splits = load_splits(a.data, shipped.image_size, a.train_images, a.val_images, a.test_images)
    results: dict = {
        "setting": setting(vars(a), encoding=splits.test.encoding, torch=torch.__version__),
        "chance": share_of_largest(splits.test.labels),
        "tokenizers": {},
    }
    for name, (tok, about) in found.items():
        print(name, flush=True)
        budgets = a.tokens or tok.config.budgets
        results["tokenizers"][name] = about | probe_tokenizer(tok, splits, budgets)
    c = shipped.config
    results["pixels"] = probe_pixels(splits, a.tokens or c.budgets, len(c.fsq_levels))
    return results


def share_of_largest(labels: Tensor) -> float:
    """The accuracy of a guess that is always the most frequent of labels (N,)."""
    return labels.bincount().max().item() / len(labels)


# ---- table and figure ----------------------------------------------------------------------------


def table(results: dict) -> str:
    """Markdown: accuracy with its interval, a row for each tokenizer and number of tokens."""
    lines = [
        "| vectors | tokens | continuous, linear | continuous, attentive | quantized, linear "
        "| quantized, attentive |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results["tokenizers"].items():
        for k, row in found["tokens"].items():
            cells = [cell(row[kind][probe]) for kind in KINDS for probe in PROBES]
            lines.append(f"| {name} | {k} | " + " | ".join(cells) + " |")
        patches = [cell(result) for result in found["patches"].values()]
        lines.append(f"| {name}, patches | | {patches[0]} (average) | {patches[1]} | | |")
    for k, result in results["pixels"]["averaged"].items():
        lines.append(f"| pixels, {result['values']} averages | ({k}) | {cell(result)} | | | |")
    lines.append(f"| pixels, all | | {cell(results['pixels']['all'])} | | | |")
    return "\n".join(lines)


def cell(result: dict) -> str:
    low, high = result["accuracy"]["ci95"]
    return f"{result['accuracy']['mean']:.1%} ({100 * low:.0f}-{100 * high:.0f})"


def curve(ax: plt.Axes, rows: dict[str, dict], style: list | tuple, label: str) -> None:
    """Accuracies with their intervals against the number of tokens."""
    color, marker, line = style
    y = [row["accuracy"]["mean"] for row in rows.values()]
    ends = [row["accuracy"]["ci95"] for row in rows.values()]
    bars = [[v - low for v, (low, _) in zip(y, ends, strict=True)]]
    bars.append([high - v for v, (_, high) in zip(y, ends, strict=True)])
    x = [int(k) for k in rows]
    ax.errorbar(x, y, bars, color=color, marker=marker, ls=line, ms=5, capsize=2, label=label)


def picture(results: dict, kinds: Sequence[str] = KINDS) -> plt.Figure:
    """The shipped tokenizer beside pixels, patches and initial weights; on the right, if any were
    trained, the tokenizers of equal training. kinds: which of KINDS are shown of the shipped one.
    """
    name, untrained, *others = results["tokenizers"]
    count = 2 if others else 1
    fig, axes = plt.subplots(
        1, count, figsize=(5.5 * count, 4.8), layout="constrained", sharey=True, squeeze=False
    )
    _shipped(axes[0, 0], results, name, untrained, kinds)
    for other in others:
        rows = tokens_of(results, other, "quantized", "attentive")
        label, *style = STYLES.get(other.split("-")[0]) or STYLES[other]
        label = label.replace("without", "FlexTok without")
        curve(axes[0, 1], rows, style, label)
    for ax, title in zip(
        axes[0],
        (f"{name}, shipped weights", f"{results['setting']['minutes']:g} minutes of training each"),
        strict=False,
    ):
        ax.axhline(results["chance"], color="0.6", ls=":", lw=1)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        ax.set(xlabel="tokens", title=title)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=9, ncols=2 if len(kinds) > 1 and ax is axes[0, 0] else 1)
    axes[0, 0].set_ylabel("accuracy on test images")
    return fig


def tokens_of(results: dict, name: str, kind: str, probe: str) -> dict[str, dict]:
    """The results of one probe by number of tokens."""
    return {k: row[kind][probe] for k, row in results["tokenizers"][name]["tokens"].items()}


def _shipped(ax: plt.Axes, results: dict, name: str, untrained: str, kinds: Sequence[str]) -> None:
    blue, orange, green = "#0072B2", "#E69F00", "#009E73"  # safe for color-blind readers
    for kind in kinds:
        line = "-" if kind == "continuous" else "--"
        for probe, color, marker in zip(PROBES, ("k", blue), "os", strict=True):
            rows = tokens_of(results, name, kind, probe)
            curve(ax, rows, (color, marker, line), f"{kind}, {probe}")
    rows = tokens_of(results, untrained, "continuous", "linear")
    curve(ax, rows, ("0.5", "x", ":"), "initial weights, continuous, linear")
    curve(ax, results["pixels"]["averaged"], (orange, "^", ":"), "averaged pixels, linear")
    patches = results["tokenizers"][name]["patches"]["all, attentive"]["accuracy"]["mean"]
    ax.axhline(patches, color=green, ls="-.", label="all patches, attentive")
    pixels = results["pixels"]["all"]["accuracy"]["mean"]
    ax.axhline(pixels, color=orange, ls="-.", label="all pixels, linear")


def parser_of(what: str, out: str) -> argparse.ArgumentParser:
    """The arguments of every command that fits probes."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--weights", default="cifar10")
    parser.add_argument("--data", default="cifar10-sample")
    parser.add_argument("--train-images", type=int, default=3000)
    parser.add_argument("--val-images", type=int, default=1000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 1 2 4 ... K")
    parser.add_argument("--out", default=out)
    return parser


def publish(a: argparse.Namespace, results: dict, figure: plt.Figure, text: str) -> None:
    """Write the results and the figure under the name of the weights; print a table."""
    name = Path(a.weights).name
    write_results(results, Path(a.out) / f"{name}.json")
    save(figure, Path(a.out) / f"{name}.png")
    print(text)


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__.splitlines()[0], "data/probes")
    parser.add_argument(
        "--systems",
        nargs="*",
        default=["no-repa", "titok-16", "grid-16"],
        choices=SYSTEMS,
        help="tokenizers to train; nothing for none",
    )
    parser.add_argument("--preset", default="cifar10-tiny", help="of these tokenizers")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, each")
    parser.add_argument("--runs", default="outputs/probes", help="directory of these tokenizers")
    a = parser.parse_args(argv)
    sklearn()
    results = measure(a)
    publish(a, results, picture(results), table(results))


if __name__ == "__main__":
    main()
