"""Optimizers, the learning rate schedule, and the moving average of the weights."""

import math

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from .muon import Muon
from .mup import scale_rates
from .parallel import local


def lr_factor(step: int, progress: float, c: TrainConfig) -> float:
    """The learning rate as a factor of its peak, at a step and a progress (share of the run) in [0,
    1].

    Linear warmup over c.warmup steps, times a decay to c.min_lr at the end of the run: a cosine,
    or, with c.decay_from >= 0, constant until that share of the run and linear from there.
    """
    progress = min(progress, 1)
    if c.decay_from < 0:
        decay = c.min_lr + (1 - c.min_lr) * (1 + math.cos(math.pi * progress)) / 2
    else:
        decay = 1 - (1 - c.min_lr) * max(0, progress - c.decay_from) / (1 - c.decay_from)
    return decay * min(1, (step + 1) / max(1, c.warmup))


def make_optimizers(model: nn.Module, c: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters; with c.optimizer "muon", Muon for the matrices of the blocks and
    AdamW for the rest. Each group of parameters has its peak learning rate as "peak_lr", which
    depends on the width with c.mup_base_width.

    Weight decay is for matrices and convolution kernels alone, not for tokens, positions, gains and
    biases.
    """
    kernels = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    muon = block_matrices(model, c.muon_adaln) if c.optimizer == "muon" else []
    by_muon = {id(p) for p in muon}
    rest = [p for p in model.parameters() if id(p) not in by_muon]
    groups = [
        {
            "params": [p for p in rest if (id(p) in kernels) == decayed],
            "weight_decay": c.weight_decay * decayed,
            "peak_lr": c.lr,
        }
        for decayed in (True, False)
    ]
    groups = scale_rates(groups, model, c.mup_base_width, power=1)
    optimizers = [torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, c.beta2), fused=True)]
    if muon:
        peak = c.lr * c.muon_lr
        groups = [{"params": muon, "peak_lr": peak, "weight_decay": c.weight_decay}]
        groups = scale_rates(groups, model, c.mup_base_width, power=0.5)
        optimizers.append(Muon(groups, lr=peak))
    elif c.optimizer == "muon":
        raise ValueError(
            f"optimizer='muon': {type(model).__name__} has no Transformer blocks: give 'adamw'"
        )
    return optimizers


def block_matrices(model: nn.Module, adaln: bool = False) -> list[nn.Parameter]:
    """The weights of attention and MLP in all Transformer blocks; with `adaln`, those of adaLN
    too."""
    return [
        m.weight
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
        and "blocks" in name.split(".")
        and (adaln or name.split(".")[-1] != "adaln")
    ]


@torch.no_grad()
def create_state(optimizers: list[torch.optim.Optimizer]) -> None:
    """Give optimizers the state that they else create in their first step, to load a checkpoint
    into: a step of learning rate 0 changes no weight."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def drop_gradients(params: list[nn.Parameter], finite: Tensor) -> None:
    """Set all gradients to zero unless `finite`, a bool on their device: decided there, so that a
    GPU does not wait. The step then moves the weights by momentum and decay alone."""
    if not finite.is_cuda and finite:
        return
    for p in params:
        if p.grad is not None:
            local(p.grad).masked_fill_(~finite, 0)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights towards those of the model.

    The decay grows with the steps, from 0.1 to `decay`, so that the average soon forgets the
    initialization.
    """
    decay = min(decay, (step + 1) / (step + 10))
    averaged_weights, weights = ([local(p.detach()) for p in m.parameters()] for m in (ema, model))
    torch._foreach_lerp_(averaged_weights, weights, 1 - decay)
    for averaged, current in zip(ema.buffers(), model.buffers(), strict=True):
        averaged.copy_(current)  # such as the running statistics of batch norm
