"""Guidance for each number of tokens, chosen on training images.

    python -m minflextok.experiments.guidance --weights cifar10-64 --data cifar10-train.tar.gz
    python -m minflextok.experiments.guidance --weights RUN --earlier RUN/checkpoints/step_000000800

Three kinds extrapolate from the velocity of a worse condition past that of the k tokens:
classifier-free guidance from the null condition (arXiv 2207.12598), guidance by fewer tokens from
the first half of the k tokens, and autoguidance (arXiv 2406.02507) from the same tokens in an
earlier checkpoint of the run. For each kind and k, the scale chosen has the lowest rFID among those
whose PSNR is at most 0.1 dB below that without guidance. rFID, accuracy and PSNR are those of the
evaluation classifier, on images of the train split: never on the test split.
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..config import require
from ..data import Dataset, in_order, load_dataset, to_float, to_uint8
from ..evaluation.classifier import Classifier
from ..evaluation.reports import write_results
from ..evaluation.scores import Scores, image_noise
from ..flow import euler
from ..guidance import cfg
from ..precision import autocast
from ..tokenizer import FlexTok
from ..training.checkpoints import Checkpoints
from ..training.runtime import Ranks

LOSS_OF_PSNR = 0.1  # dB that guidance may cost
Sampler = Callable[[Tensor, Tensor, float], Tensor]  # ids (B, k), noise, scale -> images


def samplers(tok: FlexTok, earlier: FlexTok | None, steps: int) -> dict[str, Sampler]:
    """The kinds of guidance, by name; autoguidance only if there is an earlier checkpoint."""

    def classifier_free(ids: Tensor, noise: Tensor, scale: float) -> Tensor:
        return tok.decode(ids, steps, guidance=scale, noise=noise)

    def fewer_tokens(ids: Tensor, noise: Tensor, scale: float) -> Tensor:
        half = ids[:, : ids.shape[1] // 2]
        return from_worse(lambda x, t: tok.velocity(x, t, half), ids, noise, scale)

    def auto(ids: Tensor, noise: Tensor, scale: float) -> Tensor:
        return from_worse(lambda x, t: earlier.velocity(x, t, ids), ids, noise, scale)

    def from_worse(worse: Callable, ids: Tensor, noise: Tensor, scale: float) -> Tensor:
        def velocity(x: Tensor, t: float) -> Tensor:
            return cfg(tok.velocity(x, t, ids), worse(x, t), scale)

        return euler(velocity, noise, steps)

    kinds = {"classifier-free": classifier_free, "fewer tokens": fewer_tokens}
    return kinds | ({"autoguidance": auto} if earlier is not None else {})


def earlier_checkpoint(tok: FlexTok, path: Path) -> FlexTok:
    """The averaged weights of a checkpoint of the run that trained `tok`."""
    found = copy.deepcopy(tok)
    tensors = {f"ema.tok.{name}": x for name, x in found.state_dict().items()}
    Checkpoints(path.parent.parent, Ranks("cpu")).read(path, tensors)
    return found


class Images:
    """The first `num` images of a data set, with what all samplings share: labels, noise, ids, and
    the features of the originals."""

    @torch.no_grad()
    def __init__(
        self, tok: FlexTok, data: Dataset, num: int, classifier: Classifier, batch_size: int
    ):
        self.num, self.classifier, self.device = num, classifier, tok.device
        self.original = Scores(num, classifier.features, keep_features=False)
        self.batches: list[tuple[Tensor, Tensor | None, Tensor, Tensor]] = []
        for stored, labels in in_order(data, batch_size, num):
            images = to_float(stored).to(tok.device)
            noise = image_noise(images.shape, 0, self.original.count).to(tok.device)
            with autocast(tok.device, True):
                ids = tok.encode(images)
            self.batches.append((images, labels, noise, ids))
            self.original.update(images)

    @torch.no_grad()
    def scores(self, sample: Sampler, k: int, scale: float) -> dict[str, float]:
        """rFID, classification accuracy and PSNR of the images decoded from k tokens."""
        features = self.classifier.features
        made = Scores(self.num, features, self.classifier, keep_features=False)
        for images, labels, noise, ids in self.batches:
            with autocast(self.device, True):
                decoded = sample(ids[:, :k], noise, scale)
            made.update(to_float(to_uint8(decoded)), labels, images)
        found = {name: value["mean"] for name, value in made.summary().items()}
        return {"rfid": made.distance(self.original)["mean"], **found}


def choose(rows: dict[str, dict[str, float]]) -> str:
    """The scale with the lowest rFID among those that cost little PSNR. rows: by scale, "1" for no
    guidance."""
    least = rows["1"]["psnr"] - LOSS_OF_PSNR
    return min((s for s in rows if rows[s]["psnr"] >= least), key=lambda s: rows[s]["rfid"])


def table(found: dict) -> str:
    """Markdown: for each kind of guidance, a row for each scale, and the scale chosen by k."""
    lines = []
    for kind, by_k in found["kinds"].items():
        ks = list(by_k)
        lines += [f"## {kind}", "", f"| scale | {' | '.join(f'k = {k}' for k in ks)} |"]
        lines.append("|---" * (len(ks) + 1) + "|")
        for scale in dict.fromkeys(s for rows in by_k.values() for s in rows):
            cells = []
            for rows in by_k.values():
                r = rows.get(scale)
                text = f"{r['rfid']:.2f}, {r['accuracy']:.0%}, {r['psnr']:.1f}" if r else ""
                cells.append(f"**{text}**" if r and choose(rows) == scale else text)
            lines.append(f"| {scale} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--weights", default="cifar10-64")
    p.add_argument("--earlier", type=Path, help="a checkpoint of the run of --weights")
    p.add_argument("--data", default="cifar10-sample", help="its train split is used")
    p.add_argument("--num-images", type=int, default=250)
    p.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    p.add_argument("--scales", type=float, nargs="+", default=[1, 1.25, 1.5, 2, 3])
    p.add_argument("--steps", type=int, default=12, help="Euler steps")
    p.add_argument("--batch-size", type=int, default=50)
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", type=Path, default=Path("outputs/guidance.json"))
    a = p.parse_args(argv)
    require(1 in a.scales, "--scales: give 1 (no guidance) too, to compare with")
    tok = FlexTok.from_pretrained(a.weights)
    K = tok.config.num_registers
    for k in a.tokens:
        require(1 <= k <= K, f"--tokens {k}: {a.weights} has 1 to {K}")
    earlier = earlier_checkpoint(tok, a.earlier).to(a.device) if a.earlier else None
    classifier = Classifier.from_pretrained("judge-cifar10").to(a.device)
    data = load_dataset(a.data, "train", tok.config.image_size)
    require(
        a.num_images <= len(data), f"--num-images {a.num_images}: {a.data} has {len(data)} images"
    )
    kinds: dict[str, dict] = {}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items()}
    images = Images(tok.to(a.device), data, a.num_images, classifier, a.batch_size)
    for kind, sample in samplers(tok, earlier, a.steps).items():
        for k in a.tokens:
            if kind == "fewer tokens" and k == 1:
                continue
            rows = kinds.setdefault(kind, {})[str(k)] = {
                f"{scale:g}": images.scores(sample, k, scale) for scale in sorted(a.scales)
            }
            print(f"{kind}, k = {k}: {json.dumps(rows)}", flush=True)
        write_results({"settings": settings, "kinds": kinds}, a.out)
    print(table({"kinds": kinds}))


if __name__ == "__main__":
    main()
