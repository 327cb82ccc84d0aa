"""The prior's probabilities, the same on every machine: what an entropy coder needs.

Encoder and decoder must compute equal probabilities to the last bit, or all later ids are garbage.
Floating-point sums depend on their order, and this on threads, batch size and BLAS. So here every
matrix product is exact: its factors are whole multiples of 2^-16 (activations) and 2^-18 (weights),
clamped so that each sum fits into the 53 bits of a float64. Exact sums have no order. Beside these,
only operations are used that IEEE 754 rounds correctly (+, *, /, sqrt, rounding), and tables for
exp and the sigmoid, with a checksum.

This is the network of `Prior`, unconditional, in inference: close to its float32 probabilities, not
equal to them.
"""

import math
import zlib

import torch
from torch import Tensor

from .prior import Prior

GRID, LIMIT = 2.0**16, 32.0  # activations: multiples of 1 / GRID below LIMIT: 5 + 16 bits and sign
WEIGHTS, WEIGHT_LIMIT = 2.0**18, 4.0  # weights: 2 + 18 bits and sign
STEP, LOWEST = 2**10, 24  # tables: arguments in multiples of 1 / STEP, down to -LOWEST
FINE = 2.0**20  # values of the tables are multiples of 1 / FINE
WIDEST = 2**11  # terms of a sum: 21 + 20 + 11 <= 52 bits


def table(f) -> Tensor:
    """f(0), f(-1 / STEP), ..., f(-LOWEST), rounded: (LOWEST * STEP + 1,) float64. Whether two
    math libraries round a value alike is checked by `checksum`."""
    values = [round(f(-i / STEP) * FINE) / FINE for i in range(LOWEST * STEP + 1)]
    return torch.tensor(values, dtype=torch.float64)


EXP = table(math.exp)
SIGMOID = table(lambda x: 1 / (1 + math.exp(-x)))


def checksum() -> int:
    """CRC-32 of the tables: machines that agree on it compute the same probabilities."""
    return zlib.crc32(torch.cat([EXP, SIGMOID]).numpy().astype("<f8").tobytes())


def look_up(values: Tensor, x: Tensor) -> Tensor:
    """A table's values at x <= 0, on the device of x."""
    return values.to(x.device)[(-x * STEP).round().clamp(0, LOWEST * STEP).long()]


def on_grid(x: Tensor) -> Tensor:
    """Rounded to multiples of 1 / GRID, and clamped to +-LIMIT."""
    return (x * GRID).round().clamp(-LIMIT * GRID, LIMIT * GRID) / GRID


def weight(x: Tensor) -> Tensor:
    """A weight as float64 on its grid, from bfloat16, in which fingerprints compare weights."""
    x = x.detach().bfloat16().double()
    return (x * WEIGHTS).round().clamp(-WEIGHT_LIMIT * WEIGHTS, WEIGHT_LIMIT * WEIGHTS) / WEIGHTS


def layer_norm(x: Tensor) -> Tensor:
    """As transformer.layer_norm, of x on the grid. The variance is of values rounded to 11 bits
    behind the point, so that the sum of their squares is exact."""
    centered = x - x.sum(-1, keepdim=True) / x.shape[-1]
    coarse = (centered * 2**11).round().clamp(-(2.0**20), 2.0**20) / 2**11
    variance = coarse.square().sum(-1, keepdim=True) / x.shape[-1]
    return on_grid(centered / (variance + 1e-5).sqrt())


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), of x on the grid; sigmoid(-x) = 1 - sigmoid(x)."""
    low = look_up(SIGMOID, -x.abs())
    return on_grid(x * torch.where(x > 0, 1 - low, low))


class ExactPrior:
    """Unconditional probabilities of a Prior, one id after the other, for n images at once.

    Usage: start(n), then in turn frequencies() and append(ids).
    """

    def __init__(self, prior: Prior, bits: int = 24):
        """bits: frequencies of an id sum to 2^bits."""
        c = self.config = prior.config
        widest = max(2 * 4 * c.dim // 3, c.num_tokens)
        if widest > WIDEST:
            raise ValueError(f"dim={c.dim}: exact sums want at most {3 * WIDEST // 8}")
        if c.vocab_size > 2 ** (bits - 2):
            raise ValueError(f"vocab_size={c.vocab_size}: give more than bits={bits}")
        self.bits, self.device = bits, prior.positions.device
        self.ids, self.positions = weight(prior.ids.weight), weight(prior.positions)
        self.null = weight(prior.first.weight)[c.num_classes]
        self.blocks = [self._block(prior, b) for b in prior.blocks]

    @staticmethod
    def _block(prior: Prior, block) -> dict[str, Tensor]:
        parts = {
            "qkv": block.attn.wqkv,
            "proj": block.attn.proj,
            "fc1": block.mlp.fc1,
            "fc3": block.mlp.fc3,
            "fc2": block.mlp.fc2,
        }
        w = {name: weight(linear.weight).T for name, linear in parts.items()}
        if block.cross is not None:  # to the null text, the same at all its positions
            value = weight(block.cross.wkv.weight)[prior.config.dim :]
            null = layer_norm(on_grid(weight(prior.null_text)))
            w["cross"] = on_grid(on_grid(null @ value.T) @ weight(block.cross.proj.weight).T)
        return w

    def start(self, n: int) -> None:
        """Begin n images: the next ids are their first."""
        D, d = self.config.dim, self.config.head_dim
        self.k = self.v = torch.zeros(
            len(self.blocks), n, D // d, 0, d, dtype=torch.float64, device=self.device
        )
        self._advance(self.null.expand(n, -1))

    def append(self, ids: Tensor) -> None:
        """Add the next id of each image: ids (n,)."""
        self._advance(self.ids[ids.to(self.device)])

    def frequencies(self) -> Tensor:
        """How often each id follows, of 2^bits times: (n, V) int64, at least 1."""
        logits = on_grid(layer_norm(self.x) @ self.ids.T)
        p = look_up(EXP, logits - logits.amax(-1, keepdim=True))
        free = 2**self.bits - p.shape[-1]
        counts = 1 + (p * free / p.sum(-1, keepdim=True)).floor().long()
        counts[:, 0] += 2**self.bits - counts.sum(-1)  # what rounding down has lost
        return counts

    def _advance(self, token: Tensor) -> None:
        """One position through all blocks: token (n, D)."""
        n, D, d = len(token), self.config.dim, self.config.head_dim
        position = self.k.shape[3]
        x = layer_norm(on_grid(token + self.positions[position]))
        keys, values = [], []
        for w, old_k, old_v in zip(self.blocks, self.k, self.v, strict=True):
            q, k, v = on_grid(layer_norm(x) @ w["qkv"]).view(n, 3, D // d, 1, d).unbind(1)
            k, v = torch.cat([old_k, layer_norm(k)], 2), torch.cat([old_v, v], 2)  # (n, H, N, d)
            keys.append(k)
            values.append(v)
            logits = on_grid((layer_norm(q) @ k.transpose(-1, -2)) * d**-0.5)  # (n, H, 1, N)
            p = look_up(EXP, logits - logits.amax(-1, keepdim=True))
            mean = on_grid((p @ v) / p.sum(-1, keepdim=True))
            x = x + on_grid(mean.view(n, D) @ w["proj"])
            x = x + w.get("cross", 0.0)
            h = layer_norm(x)
            hidden = on_grid(silu(on_grid(h @ w["fc1"])) * on_grid(h @ w["fc3"]))
            x = x + on_grid(hidden @ w["fc2"])
        self.k, self.v, self.x = torch.stack(keys), torch.stack(values), x
