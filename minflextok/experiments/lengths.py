"""Does every image need the same number of tokens? Adaptive lengths, measured.

    python -m minflextok.experiments.lengths [--weights cifar10] [--data cifar10-sample]

For each test image, `encode_adaptive` finds the shortest prefix whose decoded image has a PSNR of
at least the target: the mean PSNR of training images at a quarter of the tokens. Compared with it:
one length for all images, at equal mean PSNR, and lengths that a small network predicts from the
registers. The network is trained on lengths of training images, and its confidence is chosen on
others of them. Writes WEIGHTS.json and WEIGHTS.png.
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..adaptive import Adaptive, LengthHead, encode_adaptive, psnr
from ..data import Images, load_dataset, to_float
from ..draws import seeded_noise
from ..evaluation.figures import save
from ..tokenizer import FlexTok
from ..weights import write_atomic


def decoded_psnr(tok: FlexTok, x: Tensor, lengths: Tensor, steps: int) -> Tensor:
    """PSNR of each image decoded from its first lengths (n,) ids: (n,)."""
    ids, noise = tok.encode(x, batch_size=64), seeded_noise(x.shape, 0)
    prefixes = [row[:k] for row, k in zip(ids, lengths.tolist(), strict=True)]
    return psnr(tok.decode(prefixes, steps, noise=noise, batch_size=64), x)


def shortest_fixed(tok: FlexTok, x: Tensor, quality: float, steps: int) -> tuple[int, float]:
    """The smallest length that gives all images together this mean PSNR, by bisection, and its
    mean PSNR; K if none does."""
    low, high = 0, tok.config.num_registers
    value = decoded_psnr(tok, x, torch.full((len(x),), high), steps).mean().item()
    while high - low > 1:
        middle = (low + high) // 2
        found = decoded_psnr(tok, x, torch.full((len(x),), middle), steps).mean().item()
        if found >= quality:
            high, value = middle, found
        else:
            low = middle
    return high, value


def train_head(z: Tensor, lengths: Tensor, steps: int = 600) -> LengthHead:
    """Fit a LengthHead to z (n, K, F) and the lengths (n,) that were found."""
    torch.manual_seed(0)
    head = LengthHead(*z.shape[1:])
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3, weight_decay=0.1)
    suffices = (torch.arange(1, z.shape[1] + 1) >= lengths[:, None]).float()  # (n, K)
    for _ in range(steps):
        rows = torch.randint(len(z), (128,))
        loss = F.binary_cross_entropy_with_logits(head(z[rows]), suffices[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


@torch.no_grad()
def choose_confidence(head: LengthHead, z: Tensor, lengths: Tensor, share: float) -> float:
    """The lowest confidence at which at least this share of images gets a length that suffices."""
    grid = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995]
    enough = [c for c in grid if (head.lengths(z, c) >= lengths).float().mean() >= share]
    return min(enough, default=grid[-1])


def lengths_of(found: Adaptive) -> Tensor:
    return torch.tensor([len(row) for row in found.ids])


def measure(tok: FlexTok, train: Images, test: Images, steps: int) -> tuple[dict, Adaptive]:
    """All results, and what the search found for the test images."""
    K, bits = tok.config.num_registers, tok.config.bits_per_token
    x_train, x = to_float(train.images), to_float(test.images)
    quarter = torch.full((len(x_train),), K // 4)
    target = decoded_psnr(tok, x_train, quarter, steps).mean().item()
    found = encode_adaptive(tok, x, target, steps=steps)
    lengths = lengths_of(found)
    fixed, fixed_psnr = shortest_fixed(tok, x, found.values.mean().item(), steps)

    # Images that not even K tokens suffice for would teach the head nothing.
    known = encode_adaptive(tok, x_train, target, steps=steps)
    z = torch.cat([tok.encode_continuous(part) for part in x_train[known.met].split(64)])
    wanted = lengths_of(known)[known.met]
    cut = len(z) * 4 // 5
    head = train_head(z[:cut].detach(), wanted[:cut])
    confidence = choose_confidence(head, z[cut:].detach(), wanted[cut:], 0.9)
    with torch.no_grad():
        z_test = torch.cat([tok.encode_continuous(part) for part in x.split(64)])
        predicted = head.lengths(z_test, confidence)
    reached = decoded_psnr(tok, x, predicted, steps)
    possible = found.met
    results = {
        "target PSNR": round(target, 3),
        "K tokens meet it": share(possible),
        "adaptive": {
            "of those, met": share(found.values[possible] >= target),
            "mean tokens": mean(lengths),
            "mean bits, length included": mean(lengths * bits + math.log2(K)),
            "mean PSNR": mean(found.values),
            "images by length": torch.bincount(lengths, minlength=K + 1)[1:].tolist(),
        },
        "one length for all, at this mean PSNR": {
            "tokens": fixed,
            "bits": round(fixed * bits, 1),
            "mean PSNR": round(fixed_psnr, 3),
        },
        "predicted": {
            "confidence": confidence,
            "of those, met": share(reached[possible] >= target),
            "mean tokens": mean(predicted),
            "mean PSNR": mean(reached),
            "correlation with the search": round(
                torch.corrcoef(torch.stack([predicted, lengths]).double())[0, 1].item(), 3
            ),
        },
    }
    return results, found


def mean(x: Tensor) -> float:
    return round(x.double().mean().item(), 3)


def share(x: Tensor) -> float:
    return round(x.double().mean().item(), 4)


def picture(test: Images, found: Adaptive, results: dict) -> plt.Figure:
    """The distribution of lengths, and the images that need the fewest and the most tokens."""
    lengths = lengths_of(found)
    order = lengths.argsort(stable=True)
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    counts = results["adaptive"]["images by length"]
    axes[0].bar(range(1, len(counts) + 1), counts, color="tab:blue")
    fixed = results["one length for all, at this mean PSNR"]["tokens"]
    axes[0].axvline(fixed, color="tab:orange", label=f"one length for all: {fixed}")
    axes[0].set(xlabel="tokens", ylabel="images")
    axes[0].set_title(f"lengths for {results['target PSNR']:.1f} dB")
    axes[0].legend()
    for ax, rows, title in (
        (axes[1], order[:32], "fewest tokens"),
        (axes[2], order[-32:].flip(0), "most tokens"),
    ):
        tiles = test.images[rows].permute(0, 2, 3, 1)  # (32, H, W, 3)
        grid = torch.cat([torch.cat(list(row), 1) for row in tiles.split(8)], 0)
        ax.imshow(grid)
        ax.set_title(f"{title}: {lengths[rows].min()} to {lengths[rows].max()}")
        ax.axis("off")
    return fig


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="cifar10")
    parser.add_argument("--data", default="cifar10-sample")
    parser.add_argument("--train-images", type=int, default=1000)
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=8, help="Euler steps")
    parser.add_argument("--out", default="data/lengths")
    a = parser.parse_args(argv)
    tok = FlexTok.from_pretrained(a.weights)
    train, test = (load_dataset(a.data, split, tok.image_size) for split in ("train", "test"))
    train = train.select(torch.arange(min(a.train_images, len(train))))
    test = test.select(torch.arange(min(a.test_images, len(test))))
    results, found = measure(tok, train, test, a.steps)
    results = {
        "setting": vars(a) | {"train_images": len(train), "test_images": len(test)},
        **results,
    }
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    name = Path(a.weights).name
    write_atomic(out / f"{name}.json", json.dumps(results, indent=1) + "\n")
    save(picture(test, found, results), out / f"{name}.png")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
