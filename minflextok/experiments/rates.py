"""Rate and quality: ids beside JPEG, WebP and AVIF.

    python -m minflextok.experiments.rates --data TEST.tar.gz [--num-images 2000]

The bytes of ids are those of data/codec/WEIGHTS.json (experiments.codec): of a file of many images,
and of a file of one image. Their quality is that of the evaluations which lie beside the weights:
results.json, and results_unguided.json where it is there. The codecs are measured here, on the
terms of codecs.py. Writes rates.json and rates.png.
"""

import argparse
from collections.abc import Collection
from pathlib import Path

from matplotlib.figure import Figure

from .. import weights
from ..config import DATA_DIR, require
from ..data import load_dataset
from ..evaluation.classifier import Classifier
from ..evaluation.figures import save
from ..evaluation.reports import write_results
from .codecs import TERMS, codecs

Qualities = dict[str, dict[str, tuple[int, ...]]]
QUALITIES: Qualities = {  # by terms and codec, from the smallest file on
    "file": {"JPEG": (0, 20), "WEBP": (0, 20, 60), "AVIF": (0, 30)},
    "mosaic": {"JPEG": (0, 10, 30), "WEBP": (0, 20, 60), "AVIF": (0, 20, 40)},
    "mosaic, 16 px": {"JPEG": (0, 20), "WEBP": (0, 40, 80), "AVIF": (0, 30, 60)},
    "mosaic, 8 px": {"JPEG": (10,), "WEBP": (0, 60), "AVIF": (0, 30, 60)},
}
KEPT = ("rfid", "psnr", "ssim", "accuracy")
LABELS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "accuracy": "classification accuracy",
    "rfid": "rFID, lower is better",
}


def rows_of_ids(name: str, sizes: dict, file: str = "results.json") -> list[dict]:
    """A row for each number of tokens k: quality of an evaluation, bytes of experiments.codec."""
    path = weights.find(name) / file
    require(path.exists(), f"{path} is missing: run minflextok evaluate --weights {name}")
    found = weights.read_json(path)
    protocol = {key: found["protocol"][key] for key in ("images", "steps", "guidance")}
    return [
        {
            "codec": "ids",
            "k": int(k),
            **protocol,
            "bytes": sizes[k]["bytes an image"],
            "bytes_single": sizes[k]["file of one image"],
            **{key: row[key] for key in KEPT},
        }
        for k, row in found["tokens"].items()
        if k in sizes
    ]


def stored(file: Path, setting: dict) -> list[dict]:
    """The rows of codecs in a file, if they are of this setting: they are not measured again."""
    found: dict = weights.read_json(file) if file.exists() else {}
    return found["codecs"] if found.get("setting") == setting else []


def points(rows: list[dict], codec: str, terms: str, bytes: str) -> list[tuple[float, dict]]:
    """Bytes an image and row, in the order of bytes; where nothing is left without the header, no
    point."""
    found = [r for r in rows if r["codec"] == codec and r.get("terms", terms) == terms]
    return sorted(((r[bytes], r) for r in found if r[bytes] > 0.1), key=lambda p: p[0])


COLORS = {"JPEG": "#D55E00", "WEBP": "#0072B2", "AVIF": "#009E73"}  # Okabe and Ito
STYLES = {  # terms and bytes: what the legend says, marker, line
    ("file", "bytes"): ("a file an image", "o", "-"),
    ("file", "beyond_header"): ("without headers", "s", "--"),
    ("mosaic", "bytes"): ("one mosaic", "^", "-."),
    ("mosaic, 16 px", "bytes"): ("one mosaic at 16 px", "v", ":"),
    ("mosaic, 8 px", "bytes"): ("one mosaic at 8 px", "D", ":"),
}


def plot(found: dict, ways: Collection[tuple[str, str]] = tuple(STYLES)) -> Figure:
    """PSNR, SSIM, classification accuracy and rFID against bits per pixel.

    ways: which of STYLES are shown of the codecs; files of one image of the ids are shown if those
    of the codecs are.
    """
    pixels = found["setting"]["pixels"]
    fig = Figure(figsize=(11, 8.6), layout="constrained")
    for ax, (key, label) in zip(fig.subplots(2, 2).flat, LABELS.items(), strict=True):
        for codec, color in COLORS.items():
            for terms, size in ways:
                text, marker, line = STYLES[terms, size]
                xy = points(found["codecs"], codec, terms, size)
                x, y = [8 * b / pixels for b, _ in xy], [row[key]["mean"] for _, row in xy]
                text = f"{'WebP' if codec == 'WEBP' else codec}: {text}"
                ax.plot(x, y, color=color, marker=marker, ls=line, ms=5, lw=1.3, label=text)
        ids = [(found["ids"], "bytes", "-", "ids, one file")]
        if ("file", "bytes") in ways:
            ids += [(found["ids"], "bytes_single", "--", "ids, a file an image")]
        ids += [(found["ids_unguided"], "bytes", ":", "ids, one file, no guidance")]
        for rows, size, line, text in ids:
            x, y = [8 * r[size] / pixels for r in rows], [r[key]["mean"] for r in rows]
            ax.plot(x, y, "k", marker="*", ls=line, ms=9, lw=2, label=text)
        ax.set_xscale("log", base=2)
        ax.set_xlabel("bits per pixel", fontsize=10)
        ax.set_ylabel(label, fontsize=10)
        ax.tick_params(labelsize=9)
        ax.grid(alpha=0.3)
    fig.axes[3].set_yscale("log", base=2)
    for axis in [ax.xaxis for ax in fig.axes] + [fig.axes[3].yaxis]:
        axis.set_major_formatter("{x:g}")
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, handlelength=3)
    return fig


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="cifar10")
    parser.add_argument("--data", default="cifar10-sample")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--classifier", default="judge-cifar10")
    parser.add_argument("--sizes", help="default: data/codec/WEIGHTS.json")
    parser.add_argument("--only", nargs="+", default=list(TERMS), choices=TERMS)
    parser.add_argument("--out", default="data/codec")
    a = parser.parse_args(argv)
    name = Path(a.weights).name
    file = Path(a.sizes) if a.sizes else DATA_DIR / "codec" / f"{name}.json"
    sizes = weights.read_json(file)["bytes by ids an image"]
    plain = "results_unguided.json"
    unguided = (weights.find(a.weights) / plain).exists()
    classifier = Classifier.from_pretrained(a.classifier)
    test = load_dataset(a.data, "test", classifier.config.image_size)
    setting = {"data": Path(a.data).name, "images": a.num_images, "classifier": a.classifier}
    setting |= {"encoding": test.encoding, "pixels": classifier.config.image_size**2}
    rows = stored(Path(a.out) / "rates.json", setting)
    found = {
        "setting": setting,
        "ids": rows_of_ids(a.weights, sizes),
        "ids_unguided": rows_of_ids(a.weights, sizes, plain) if unguided else [],
        "codecs": rows,
    }
    for terms in a.only:
        if any(row["terms"] == terms for row in rows):
            continue
        for codec, qualities in QUALITIES[terms].items():
            for row in codecs(test, a.num_images, classifier, qualities, [codec], terms):
                rows.append(row)
                cells = "  ".join(f"{key} {row[key]['mean']:.3f}" for key in KEPT)
                print(f"{codec} {row['quality']}, {terms}: {row['bytes']:.2f} {cells}", flush=True)
        write_results(found, Path(a.out) / "rates.json")
    write_results(found, Path(a.out) / "rates.json")
    save(plot(found), Path(a.out) / "rates.png")


if __name__ == "__main__":
    main()
