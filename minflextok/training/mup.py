"""muP, the maximal update parametrization (Yang et al., arXiv 2203.03466): initial weights and
learning rates that depend on the width such that activations, and their changes in a step, keep
their size when the width grows. A learning rate found at a small width then holds at a large one.

Here it is relative to a base width: at that width nothing differs from the standard
parametrization. m is the fan-in of a weight matrix, divided by its fan-in at the base width.

    weight matrix       fan-in, fan-out   initial std          Adam's rate   Muon's rate
    input               fixed, width      that of the base     1             1
    hidden              width, width      base / sqrt(m)       1 / m         1 / sqrt(m)
    output              width, fixed      base / m             1 / m         (Adam)
    biases, tokens                        that of the base     1             (Adam)

Adam: each entry of a step has size lr. The step is aligned with the layer's input, so it changes an
output by a sum of fan-in terms of one sign, lr * fan-in: hence lr / m. Weights at initialization
are independent of their input, and their sum grows with sqrt(fan-in): hence 1 / sqrt(m). But an
output matrix W meets hidden activations h that training moves along its rows, and W h would grow
with sqrt(m): hence base / m. (Table 3 of the paper; an output multiplier 1/m, with the initial std
and the rate of the base, is the same under Adam, and would change the forward pass.)

Muon: a step is U V^T times lr * 0.2 * sqrt(max(rows, columns)), the factor of "match_rms_adamw",
which gives its entries the size of Adam's. But all its singular values are equal, where those of
Adam's step are few and large, so it changes an output by lr * 0.2 * sqrt(max(rows, columns)), which
grows with sqrt(m) in a hidden matrix and must not: hence lr / sqrt(m). In an input matrix it is
sqrt(rows), by which the norm of the output itself grows: hence lr. (This is the spectral condition,
a norm of the step of sqrt(fan-out / fan-in), of arXiv 2310.17813.)

The weight decay of a step, the learning rate times `weight_decay`, stays that of the base. The
attention of the models needs no change: its logits are products of normalized queries and keys of
head_dim channels, and the width grows by the number of heads.
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from ..config import PriorConfig, TokenizerConfig
from ..encoder import Encoder
from ..prior import Prior
from ..tokenizer import FlexTok
from ..weights import NothingToDraw
from .objective import TokenizerObjective
from .repa import Repa

Module = TypeVar("Module", bound=nn.Module)


def check_base_width(config: TokenizerConfig | PriorConfig, base_width: int) -> None:
    """Raises ValueError unless a model of this config can have the width base_width."""
    if base_width < 1 or base_width % config.head_dim or base_width % 4:
        raise ValueError(
            f"mup_base_width={base_width}: give a multiple of head_dim={config.head_dim} (and of "
            "4), or 0 for the standard parametrization"
        )


def at_width(model: nn.Module, width: int) -> nn.Module:
    """The same model with all widths equal to `width`, on the meta device: shapes alone."""
    if isinstance(model, TokenizerObjective):
        repa = None if model.repa is None else at_width(model.repa, width)
        return TokenizerObjective(at_width(model.tok, width), repa)
    with torch.device("meta"), NothingToDraw():
        if isinstance(model, Repa):
            return Repa(width, model.mean)
        if isinstance(model, Prior):
            check_base_width(model.config, width)
            return Prior(replace(model.config, dim=width))
        if isinstance(model, FlexTok):
            check_base_width(model.config, width)
            return type(model)(replace(model.config, enc_dim=width, dec_dim=width))
    raise ValueError(
        f"mup_base_width={width}: muP is for tokenizers and priors, not for a "
        f"{type(model).__name__}: give mup_base_width=0"
    )


def tables(model: nn.Module) -> list[nn.Parameter]:
    """The embeddings whose sum is the input of a `Prior`; those of ids are its output, too."""
    is_prior = isinstance(model, Prior)
    return [model.ids.weight, model.positions, model.first.weight] if is_prior else []


def classify(model: nn.Module, base_width: int) -> dict[str, tuple[str, float]]:
    """For each parameter by name: how it depends on the width, "input", "hidden", "output",
    "vector", "tied" or, if it has the shape of the base model, "fixed"; and m.

    Found by comparison with the base model. Widths of encoder and decoder may differ.

    tied: the embeddings of ids of a `Prior` are also its output matrix, and get the 1 / m of one.
    The input is the normalized sum of an id's or a class's embedding and a position's: if all get
    1 / m, it does not change.
    """
    base = dict(at_width(model, base_width).named_parameters())
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    tied = {id(p) for p in tables(model)}
    found = {}
    for name, p in model.named_parameters():
        grown = [a != b for a, b in zip(p.shape, base[name].shape, strict=True)]
        m = p.shape[-1] / base[name].shape[-1]
        if not any(grown):
            found[name] = "fixed", 1.0
        elif id(p) in tied:
            found[name] = "tied", m
        elif id(p) not in linear:
            found[name] = "vector", 1.0
        else:
            found[name] = {(1, 0): "input", (1, 1): "hidden", (0, 1): "output"}[tuple(grown)], m
    return found


@torch.no_grad()
def initialize(model: Module, base_width: int) -> Module:
    """Scale the weights of a model that was just built to the initialization of muP, in place (0:
    change nothing). Returns it."""
    if not base_width:
        return model
    base = at_width(model, base_width)
    kinds = classify(model, base_width)
    # How the standard deviation of a matrix depends on its shape: by fan-in here, as Xavier's
    # elsewhere.
    by_fan_in = {id(m.head) for m in model.modules() if isinstance(m, Encoder)}
    by_fan_in |= {id(x) for m in model.modules() if isinstance(m, Repa) for x in m.mlp}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            kind, m = kinds[f"{name}.weight"]
            small = base.get_submodule(name).weight.shape
            axes = slice(1, 2) if id(module) in by_fan_in else slice(0, 2)
            standard = (sum(small[axes]) / sum(module.weight.shape[axes])) ** 0.5
            module.weight *= (1 / m if kind == "output" else m**-0.5) / standard
            if module.bias is not None and id(module) in by_fan_in:
                module.bias *= m**0.5  # PyTorch's own initialization; other biases are zero
    for table in tables(model):
        table *= base.ids.weight.shape[1] / table.shape[1]
    return model


def scale_rates(
    groups: list[dict[str, Any]], model: nn.Module, base_width: int, power: float
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, split by m: the peak learning rate of each divided by
    m^power (1 for Adam, 0.5 for Muon), its weight decay multiplied by it (base_width=0: as they
    are)."""
    if not base_width:
        return groups
    kinds = classify(model, base_width)
    factors = {id(p): kinds[name][1] ** power for name, p in model.named_parameters()}
    found = []
    for group in groups:
        parts = defaultdict(list)
        for p in group["params"]:
            parts[factors[id(p)]].append(p)
        for factor, params in parts.items():
            rate, decay = group["peak_lr"] / factor, group["weight_decay"] * factor
            found.append({"params": params, "peak_lr": rate, "weight_decay": decay})
    return found
