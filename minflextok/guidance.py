"""Guidance: two ways to combine the conditional and the unconditional velocity of a sampling
step."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from . import checks

# Conditional and unconditional velocity (B, C, H, W), scale -> guided velocity.
Guide: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]


def cfg(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): extrapolate from the unconditional velocity past
    the conditional one."""
    return uncond + scale * (cond - uncond)


class APG:
    """Adaptive projected guidance (arXiv 2410.02416, alg. 1): strong guidance without
    oversaturation.

    It changes the difference cond - uncond in three ways: it has (negative) momentum over the
    steps; its norm is clipped; its component parallel to the conditional velocity, which drives
    saturation, is scaled by eta. As in FlexTok's published code, it is applied to velocities. An
    object holds the momentum of one sampled batch.
    """

    def __init__(self, momentum: float = -0.5, threshold: float = 2.5, eta: float = 0.0):
        self.momentum = checks.check_number(momentum, "momentum", -1, 1)
        self.threshold = checks.check_number(threshold, "threshold", 0, 1e9)
        self.eta = checks.check_number(eta, "eta")
        self.average: Tensor | float = 0.0

    def fresh(self) -> "APG":
        """The same settings without momentum."""
        return APG(self.momentum, self.threshold, self.eta)

    def __call__(self, cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
        """cond, uncond (B, C, H, W) -> guided velocity (B, C, H, W)."""
        for x, name in ((cond, "cond"), (uncond, "uncond")):
            checks.check_values(checks.check_tensor(x, name), name, always=False)
        if cond.shape != uncond.shape or cond.ndim < 2:
            shapes = f"{tuple(cond.shape)} and {tuple(uncond.shape)}"
            raise ValueError(f"cond and uncond have shapes {shapes}: give (B, C, H, W) twice")
        scale = checks.check_number(scale, "scale")
        axes = tuple(range(1, cond.ndim))
        self.average = cond - uncond + self.momentum * self.average
        norm = self.average.norm(p=2, dim=axes, keepdim=True)
        diff = (self.average * (self.threshold / norm).clamp(max=1)).double()
        unit = cond.double() / cond.double().norm(p=2, dim=axes, keepdim=True).clamp(min=1e-12)
        parallel = (diff * unit).sum(axes, keepdim=True) * unit
        return cond + (scale - 1) * (diff - parallel + self.eta * parallel).to(cond.dtype)


def make_guide(apg: bool | APG) -> Guide:
    """For one sampled batch: classifier-free guidance (False), APG with the paper's settings (True)
    or with those of an APG object."""
    if not isinstance(apg, bool | APG):
        raise ValueError(f"apg={checks.show(apg)}: give True, False or an APG object")
    if apg is False:
        return cfg
    return APG() if apg is True else apg.fresh()
