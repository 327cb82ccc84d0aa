"""Muon (Jordan et al., 2024): SGD with momentum whose updates of a weight matrix are
orthogonalized.

A gradient matrix is dominated by a few directions. Orthogonalizing the update gives all directions
the same size, so that a step also moves the weights along the weak ones.

`torch.optim.Muon` (torch 2.9 and later) computes the same for one matrix at a time, in bfloat16.
Here matrices of one shape are orthogonalized as one batch, in float32 on a CPU.
"""

from collections import defaultdict

import torch
from torch import Tensor


def orthogonalize(matrices: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """Approximates U V^T of the singular value decomposition U S V^T of each of n matrices.

    Each Newton-Schulz step applies an odd polynomial to all singular values. Five steps bring
    values from about 0.01 to 1 (the norm of the input is 1) to between 0.7 and 1.2. matrices: (n,
    rows, columns) -> the same shape.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT  # the smaller Gram matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for 2D weights only.

    Updates are scaled to a root mean square of about 0.2, that of AdamW's updates, so that learning
    rate and weight decay mean the same for both (Moonlight, arXiv 2502.16982).
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for (rows, columns), params in by_shape.items():
                x = torch.stack([self.nesterov(p, group["momentum"]) for p in params])
                x = orthogonalize(x.bfloat16() if x.is_cuda else x).to(x.dtype)
                scale = 0.2 * max(rows, columns) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(x.unbind()), alpha=-group["lr"] * scale)

    def nesterov(self, p: Tensor, momentum: float) -> Tensor:
        """Add the gradient of p to its momentum; returns the Nesterov update, of the shape of p."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        average = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum)
