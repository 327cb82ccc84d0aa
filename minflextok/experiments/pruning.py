"""Is a 1D tokenizer like pruning or resampling? n registers beside n vectors made from patches.

    python -m minflextok.experiments.pruning --data 'cifar10-{split}.tar.gz'

One encoder gives P patches and K registers. Down to n = 1, 2, 4, ... vectors: patches at random
places, averages over a grid, merged patches (ToMe), or the first n registers. From each the class
(linear and attentive probes) and the pixels (ridge regression) are read, all with the same tools,
and the operations of a Transformer on n vectors are counted. Writes WEIGHTS.json and WEIGHTS.png.
"""

import argparse
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from ..config import TokenizerConfig
from ..data import Images, to_float
from ..evaluation.metrics import psnr
from ..evaluation.reports import setting
from ..evaluation.scores import mean_and_interval
from ..tokenizer import FlexTok
from .flops import block_flops, encoder_flops
from .probes import cell, parser_of, probed, publish
from .probing import PROBES, flat, linear_probe, sklearn, standardizer
from .reduction import Reduced, drop, merge, pool
from .representations import Encoded, Splits, encode_all, load_splits

PATCHES: dict[str, Callable[[Tensor, int], Reduced]] = {
    "random drop": drop,
    "average pooling": pool,
    "merging": merge,
}
REGISTERS = {"registers": "registers", "registers, F values": "continuous"}
ALPHAS = (1.0, 10.0, 100.0, 1000.0)
STYLES = {  # color (safe for color-blind readers), marker, line
    "random drop": ("#E69F00", "^", ":"),
    "average pooling": ("#009E73", "D", "-."),
    "merging": ("#D55E00", "v", "--"),
    "registers": ("k", "o", "-"),
    "registers, F values": ("#0072B2", "s", "-"),
}


def vectors_of(method: str, encoded: Encoded, n: int) -> tuple[Tensor, Tensor]:
    """A method's n vectors: as a sequence for attention (N, n, D'), with their places if they come
    from patches; and for linear maps, with each vector at a fixed place."""
    if method in REGISTERS:
        x = getattr(encoded, REGISTERS[method])[:, :n]
        return x, x
    reduced = PATCHES[method](encoded.patches, n)
    sequence = reduced.located()
    # Dropping and pooling have the same places for all images: each vector once is enough.
    return sequence, reduced.placed() if method == "merging" else reduced.vectors


def ridge(splits: Splits, vectors: list[Tensor], scaler) -> tuple[float, Tensor]:
    """Pixels from vectors by ridge regression, after the `standardizer` of the training vectors:
    the chosen alpha, PSNR of test images (N,). Fitted to training images; alpha has the largest
    mean PSNR on validation images."""
    x, x_val, x_test = (scaler.transform(flat(v)) for v in vectors)
    target = flat(to_float(splits.train.images))
    found = {}
    for alpha in ALPHAS:
        model = sklearn().linear_model.Ridge(alpha).fit(x, target)
        found[alpha] = (quality(model.predict(x_val), splits.val).mean().item(), model)
    alpha = max(found, key=lambda a: found[a][0])
    return alpha, quality(found[alpha][1].predict(x_test), splits.test)


def quality(predicted, images: Images) -> Tensor:
    """PSNR of predictions (N, 3 H W) of images, clamped to their range: (N,)."""
    originals = to_float(images.images)
    return psnr(torch.from_numpy(predicted).view_as(originals).clamp(-1, 1).float(), originals)


def following_flops(width: int, depth: int, n: int) -> int:
    """A Transformer of `depth` blocks on n vectors of an image."""
    return depth * block_flops(width, n, n, n * n)


def encoding_flops(c: TokenizerConfig, method: str, n: int) -> int:
    """The encoder, an image: with n registers, or with its patches alone."""
    if method in REGISTERS:
        return encoder_flops(c, 1, n)
    P = c.grid**2
    blocks = c.enc_depth * block_flops(c.enc_dim, P, P, P * P)
    return blocks + 2 * c.enc_dim * P * c.patch_size**2 * c.in_channels


def measure(a: argparse.Namespace) -> dict:
    tok = FlexTok.from_pretrained(a.weights)
    c = tok.config
    splits = load_splits(a.data, tok.image_size, a.train_images, a.val_images, a.test_images)
    encoded = [encode_all(tok, images.images) for images in splits]
    results: dict = {
        "setting": setting(vars(a), encoding=splits.test.encoding, torch=torch.__version__),
        "all patches": one(splits, [(e.patches, e.patches) for e in encoded]),
        "methods": {method: {} for method in STYLES},
    }
    results["all patches"]["flops after"] = following_flops(c.enc_dim, a.depth, c.grid**2)
    for method in STYLES:
        for n in a.tokens or c.budgets:
            row = one(splits, [vectors_of(method, e, n) for e in encoded])
            row["flops after"] = following_flops(c.enc_dim, a.depth, n)
            row["flops of the encoder"] = encoding_flops(c, method, n)
            results["methods"][method][str(n)] = row
            print(f"{method}, {n}: {line(row)}", flush=True)
    return results


def one(splits: Splits, vectors: list[tuple[Tensor, Tensor]]) -> dict:
    """Both probes and the ridge regression; vectors of train, val, test as `vectors_of` gives."""
    sequences, placed = (list(x) for x in zip(*vectors, strict=True))
    scaler = standardizer(flat(placed[0]))
    alpha, found = ridge(splits, placed, scaler)
    return {
        "linear": probed(splits, placed, partial(linear_probe, scaler=scaler)),
        "attentive": probed(splits, sequences, PROBES["attentive"]),
        "psnr": mean_and_interval(found) | {"alpha": alpha},
    }


def line(row: dict) -> str:
    return f"linear {cell(row['linear'])}, attentive {cell(row['attentive'])}, {decibel(row)}"


def decibel(row: dict) -> str:
    low, high = row["psnr"]["ci95"]
    return f"{row['psnr']['mean']:.1f} dB ({low:.1f}-{high:.1f})"


def table(results: dict) -> str:
    """Markdown: accuracy and PSNR with intervals, and operations, by method and n."""
    lines = [
        "| vectors | n | linear probe | attentive probe | ridge to pixels | MFLOPs after | "
        "MFLOPs of the encoder |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, rows in results["methods"].items():
        for n, row in rows.items():
            after, before = row["flops after"] / 1e6, row["flops of the encoder"] / 1e6
            lines.append(
                f"| {method} | {n} | {cell(row['linear'])} | {cell(row['attentive'])} "
                f"| {decibel(row)} | {after:.1f} | {before:.1f} |"
            )
    row = results["all patches"]
    lines.append(
        f"| all patches | | {cell(row['linear'])} | {cell(row['attentive'])} | {decibel(row)} "
        f"| {row['flops after'] / 1e6:.1f} | |"
    )
    return "\n".join(lines)


def picture(results: dict) -> plt.Figure:
    """Accuracy of both probes and PSNR against n, with intervals."""
    fig, axes = plt.subplots(1, 3, figsize=(11, 4.6), layout="constrained")
    for ax, (key, label) in zip(
        axes,
        {
            "linear": "accuracy, linear probe",
            "attentive": "accuracy, attentive probe",
            "psnr": "PSNR (dB), ridge regression to pixels",
        }.items(),
        strict=True,
    ):
        for i, (method, rows) in enumerate(results["methods"].items()):
            values = [row[key].get("accuracy", row[key]) for row in rows.values()]
            y = [v["mean"] for v in values]
            bars = [
                [v["mean"] - v["ci95"][0] for v in values],
                [v["ci95"][1] - v["mean"] for v in values],
            ]
            color, marker, style = STYLES[method]
            x = [int(n) * 2 ** (0.08 * (i - 2)) for n in rows]  # beside each other
            ax.errorbar(
                x, y, bars, color=color, marker=marker, ls=style, ms=5, capsize=2, label=method
            )
        best = results["all patches"][key]
        ax.axhline(best.get("accuracy", best)["mean"], color="0.5", lw=1, label="all patches")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="vectors n", ylabel=label)
        ax.grid(alpha=0.3)
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9
    )
    return fig


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__.splitlines()[0], "data/pruning")
    parser.add_argument("--depth", type=int, default=4, help="blocks of the Transformer after")
    a = parser.parse_args(argv)
    sklearn()
    results = measure(a)
    publish(a, results, picture(results), table(results))


if __name__ == "__main__":
    main()
