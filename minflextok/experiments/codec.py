"""How small ids become: files of test images, compressed with the prior, and recovered.

    python -m minflextok.experiments.codec [--weights cifar10] [--data cifar10-sample]

For 1, 2, 4, ..., K ids an image: the size of one .ftk file of all images, beside the prior's
cross-entropy, the ids at log2 V bits each, and the mean size of a file of one image. Each file is
decompressed again, and must hold the same ids. Writes WEIGHTS.json.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from ..compression import compress, decompress
from ..data import load_dataset, to_float
from ..prior import Prior
from ..tokenizer import FlexTok
from ..weights import write_atomic

SINGLES = 32  # images that are also compressed each into a file of its own


@torch.no_grad()
def bits_of(prior: Prior, ids: Tensor) -> Tensor:
    """The unconditional cross-entropy of each id in bits: (n, K), in floating point."""
    c, found = prior.config, []
    for part in ids.split(256):
        null = torch.ones(len(part), dtype=torch.bool)
        conditions = torch.zeros(len(part), dtype=torch.long)
        if c.text:
            conditions = torch.zeros(len(part), c.text_length, dtype=torch.long)
        found.append(prior.token_losses(part, conditions, null) / math.log(2))
    return torch.cat(found)


def measure(tok: FlexTok, prior: Prior, ids: Tensor, k: int) -> dict:
    """Sizes in bytes for the first k ids of each image."""
    rows = ids[:, :k]
    start = time.process_time()
    data = compress(rows, tok, prior)
    coded = time.process_time()
    recovered = torch.stack(decompress(data, tok, prior))
    decoded = time.process_time()
    if not torch.equal(recovered, rows):
        raise AssertionError(f"k = {k}: the ids have changed")
    entropy = bits_of(prior, rows).double().sum().item() / 8
    singles = [len(compress(row[None], tok, prior)) for row in rows[:SINGLES]]
    return {
        "file": len(data),
        "cross-entropy": round(entropy, 1),
        "over it": round(len(data) / entropy - 1, 5),
        "without a prior": round(rows.numel() * tok.config.bits_per_token / 8, 1),
        "bytes an image": round(len(data) / len(rows), 3),
        "file of one image": round(sum(singles) / len(singles), 1),
        "ms an image to compress": round(1000 * (coded - start) / len(rows), 2),
        "ms an image to decompress": round(1000 * (decoded - coded) / len(rows), 2),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="cifar10", help="a tokenizer that has a prior")
    parser.add_argument("--data", default="cifar10-sample")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--tokens", type=int, nargs="+", help="default: 1 2 4 ... K")
    parser.add_argument("--out", default="data/codec")
    a = parser.parse_args(argv)
    tok, prior = FlexTok.from_pretrained(a.weights), Prior.from_pretrained(a.weights)
    test = load_dataset(a.data, "test", tok.image_size)
    test = test.select(torch.arange(min(a.num_images, len(test))))
    ids = tok.encode(to_float(test.images), batch_size=64)
    results = {
        "setting": vars(a) | {"num_images": len(ids), "encoding": test.encoding},
        "bytes by ids an image": {},
    }
    for k in a.tokens or tok.config.budgets:
        row = results["bytes by ids an image"][str(k)] = measure(tok, prior, ids, k)
        print(f"{k:3} ids: {json.dumps(row)}", flush=True)
    Path(a.out).mkdir(parents=True, exist_ok=True)
    write_atomic(Path(a.out) / f"{Path(a.weights).name}.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
