"""Train a network that predicts how many tokens an image needs: see adaptive.LengthHead.

    python -m minflextok.experiments.length_head --weights cifar10 --data TRAIN.tar.gz --out DIR

`encode_adaptive` finds the lengths of training images for a target: by default their mean PSNR at a
quarter of the tokens. The head learns four fifths of them. Its confidence is chosen on the
others: the lowest at which 90% of them get a length that suffices. Writes model.safetensors,
config.json and results.json to DIR.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adaptive import Adaptive, LengthHead, Metric, encode_adaptive, measured, psnr
from ..config import LengthConfig
from ..data import load_dataset, to_float
from ..draws import seeded_noise
from ..evaluation.classifier import Classifier
from ..evaluation.reports import setting, write_results
from ..tokenizer import FlexTok
from ..weights import fingerprint

TARGETS = {"class": 0.5}  # other metrics: the mean at a quarter of the tokens
QUARTER = 250  # images whose mean quality at K / 4 tokens is the default target
SHARE = 0.9  # of validation images that shall get a length that suffices


def metric_of(name: str, classifier: str = "judge-cifar10") -> Metric:
    """ "psnr" in dB; "class": the probability that the evaluation classifier gives a decoded image
    for the class that it sees in the original."""
    if name == "psnr":
        return psnr
    if name != "class":
        raise ValueError(f"metric={name!r}: give 'psnr' or 'class'")
    network = Classifier.from_pretrained(classifier)

    def probability(images: Tensor, originals: Tensor) -> Tensor:
        seen = network(originals).argmax(1, keepdim=True)
        return network(images).softmax(1).gather(1, seen)[:, 0]

    return probability


@torch.no_grad()
def values_by_length(
    tok: FlexTok, x: Tensor, metrics: dict[str, Metric], steps: int, lengths: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Each metric of images x (n, 3, H, W) decoded from their first k ids, from the noise of
    `encode_adaptive`: (n, K), or a column for each of the lengths."""
    ids, noise = tok.encode(x, batch_size=64), seeded_noise(x.shape, 0)
    found: dict[str, list[Tensor]] = {name: [] for name in metrics}
    for k in lengths or range(1, ids.shape[1] + 1):
        decoded = tok.decode(ids[:, :k], steps, noise=noise, batch_size=64)
        for name, metric in metrics.items():
            parts = zip(decoded.split(64), x.split(64), strict=True)
            found[name].append(torch.cat([measured(metric, *part) for part in parts]))
    return {name: torch.stack(columns, 1) for name, columns in found.items()}


def default_target(tok: FlexTok, x: Tensor, metric: str, steps: int) -> float:
    """That of the metric, else the mean quality of the first images of x at a quarter of the
    tokens."""
    if metric in TARGETS:
        return TARGETS[metric]
    quarter = [max(1, tok.config.num_registers // 4)]
    measure = {metric: metric_of(metric)}
    values = values_by_length(tok, x[:QUARTER], measure, steps, quarter)
    return round(values[metric].mean().item(), 3)


def lengths_of(found: Adaptive) -> Tensor:
    return torch.tensor([len(row) for row in found.ids])


def latents(tok: FlexTok, x: Tensor) -> Tensor:
    """The registers before quantization: (n, K, F)."""
    with torch.no_grad():
        return torch.cat([tok.encode_continuous(part) for part in x.split(64)])


def train_head(
    z: Tensor, lengths: Tensor, config: LengthConfig | None = None, steps: int = 600
) -> LengthHead:
    """Fit a LengthHead to z (n, K, F) and the lengths (n,) that were found."""
    torch.manual_seed(0)
    head = LengthHead(config or LengthConfig(*z.shape[1:]))
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


def train(
    tok: FlexTok, x: Tensor, metric: str, steps: int, target: float | None = None
) -> tuple[LengthHead, dict]:
    """A head for the images x (n, 3, H, W) in [-1, 1], and what was measured on the way."""
    measure, start = metric_of(metric), time.process_time()
    target = default_target(tok, x, metric, steps) if target is None else target
    found = encode_adaptive(tok, x, target, measure, steps=steps)
    searching = time.process_time() - start
    # Images that not even K tokens suffice for need K; their lengths would teach nothing.
    z, lengths = latents(tok, x[found.met]), lengths_of(found)[found.met]
    cut = len(z) * 4 // 5
    if cut == 0 or cut == len(z):
        raise ValueError(
            f"{len(z)} of {len(x)} images meet target={target:g}: give more images, or a lower one"
        )
    K, channels = z.shape[1:]
    config = LengthConfig(K, channels, metric=metric, target=target, steps=steps)
    config = replace(config, tokenizer=fingerprint(tok.state_dict()))
    head = train_head(z[:cut], lengths[:cut], config)
    confidence = choose_confidence(head, z[cut:], lengths[cut:], SHARE)
    head.config = replace(config, confidence=confidence)
    with torch.no_grad():
        suffices = (head.lengths(z[cut:]) >= lengths[cut:]).double().mean().item()
    return head, {
        "target": target,
        "images": len(x),
        "images for which K tokens meet it": len(z),
        "images that trained": cut,
        "confidence": confidence,
        "validation images with a length that suffices": round(suffices, 4),
        "seconds of processor time of the search": round(searching, 1),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="cifar10")
    parser.add_argument("--data", default="cifar10-sample")
    parser.add_argument("--train-images", type=int, default=5000)
    parser.add_argument("--metric", default="psnr", choices=("psnr", "class"))
    parser.add_argument("--target", type=float, help="default: see TARGETS")
    parser.add_argument("--steps", type=int, default=4, help="Euler steps")
    parser.add_argument("--out", required=True)
    a = parser.parse_args(argv)
    tok = FlexTok.from_pretrained(a.weights)
    data = load_dataset(a.data, "train", tok.image_size)
    data = data.select(torch.arange(min(a.train_images, len(data))))
    x = to_float(data.at(torch.arange(len(data))))
    head, found = train(tok, x, a.metric, a.steps, a.target)
    head.save_pretrained(a.out, torch.bfloat16)
    found = {"setting": setting(vars(a), encoding=data.encoding), **found}
    write_results(found, Path(a.out) / "results.json")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
