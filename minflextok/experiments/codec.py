"""How small ids become: files of test images, compressed with the prior, and recovered.

    python -m minflextok.experiments.codec [--weights cifar10] [--data cifar10-sample]

For 1, 2, 4, ..., K ids an image: the size of one .ftk file of all images, beside the prior's
cross-entropy, the ids at log2 V bits each, and the mean size of a file of one image. The file of K
ids an image is decompressed again, and must hold the same ids. Writes WEIGHTS.json.
"""

import argparse
import json
import math
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..compression import compress, decompress, header, read_header, segments
from ..data import load_dataset, to_float
from ..evaluation.reports import setting, write_results
from ..prior import Prior
from ..tokenizer import FlexTok

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


def shortened(data: bytes, tok: FlexTok, prior: Prior, k: int) -> bytes:
    """The .ftk file of the first k ids of each image, k a power of two or all, from that of more
    ids of equally many an image. No id is coded again: segments of a file do not depend on later
    ones."""
    lengths, sizes, at = read_header(data, tok, prior)
    parts = []
    for span, size in zip(segments(lengths[0]), sizes, strict=True):
        if span.stop <= k:
            parts.append(data[at : at + size + 4])  # its last 4 bytes are the checksum
        at += size + 4
    return header([k] * len(lengths), [p[:-4] for p in parts], tok, prior) + b"".join(parts)


def measure(tok: FlexTok, prior: Prior, ids: Tensor, budgets: list[int]) -> dict:
    """Sizes in bytes for the first k ids of each image, for each k of the budgets.

    All come from one file of the largest k, which must hold the same ids when it is decompressed.
    """
    ids = ids[:, : max(budgets)]
    times = [time.process_time()]
    data = compress(ids, tok, prior)
    times.append(time.process_time())
    recovered = torch.stack(decompress(data, tok, prior))
    times.append(time.process_time())
    if not torch.equal(recovered, ids):
        raise AssertionError("the ids have changed")
    bits, rows = bits_of(prior, ids).double(), {}
    for k in budgets:
        size, entropy = len(shortened(data, tok, prior, k)), bits[:, :k].sum().item() / 8
        singles = [len(compress(row[None, :k], tok, prior)) for row in ids[:SINGLES]]
        rows[str(k)] = {
            "file": size,
            "cross-entropy": round(entropy, 1),
            "over it": round(size / entropy - 1, 5),
            "without a prior": round(len(ids) * k * tok.config.bits_per_token / 8, 1),
            "bytes an image": round(size / len(ids), 3),
            "file of one image": round(sum(singles) / len(singles), 1),
        }
    compressing, decompressing = (1000 * (b - a) / len(ids) for a, b in pairwise(times))
    return {
        "ids that are equal": recovered.numel(),
        "ms an image to compress": round(compressing, 2),
        "ms an image to decompress": round(decompressing, 2),
        "bytes by ids an image": rows,
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
    about = setting(vars(a), num_images=len(ids), encoding=test.encoding)
    results = {"setting": about, **measure(tok, prior, ids, a.tokens or tok.config.budgets)}
    print(json.dumps(results, indent=1))
    write_results(results, Path(a.out) / f"{Path(a.weights).name}.json")


if __name__ == "__main__":
    main()
