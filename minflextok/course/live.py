"""The run that notebook 06 trains live: the step that stands in for an unsolved exercise, and what
draws the run."""

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor, nn

from ..data.shapes import COLORS, GROUND
from ..flow import interpolate
from ..training.optimizers import update_ema
from .style import k_line

LETTERS = {".": GROUND} | {name[0]: color for name, color in COLORS.items()}


def training_step(
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    step: int,
    nested_prob: float,
) -> float:
    """The solution of exercise "training.step", with the package's functions: the same draws in the
    same order, so the same numbers but for rounding."""
    z, codes = model.encode(x)  # (B, K, F) twice
    B, K = codes.shape[:2]
    noise, t = torch.randn_like(x), torch.rand(B).sqrt()
    drawn, u, w = 2 ** torch.randint(K.bit_length(), (B,)), torch.rand(B), torch.rand(B)
    keep_k, null = torch.where(u < nested_prob, drawn, K), w < 0.1
    v = model.decode(interpolate(x, noise, t), t, codes, keep_k, null)
    kept = (torch.arange(K) < keep_k[:, None]) & ~null[:, None]
    penalty = (z.abs() - 1).clamp(min=0).square().mean(-1)[kept].sum() / (B * K)
    loss = F.mse_loss(v, noise - x) + 0.1 * penalty
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    update_ema(average, model, step, 0.999)
    return loss.item()


def plot_psnr(ax: Axes, run: dict, mean_scene: float) -> None:
    """One-step PSNR of a run (curves.read) against images seen, a line for each number of tokens,
    above a line for the PSNR of the mean scene."""
    ax.axhline(mean_scene, color="0.7", lw=3, zorder=0, label="mean scene")
    for k, curve in run["psnr"].items():
        ax.plot(*curve, ms=4, **k_line(k))
    ax.set(xlabel="images seen", xlim=(0, None))


def plot_run(axes: list[Axes], run: dict, mean_scene: float) -> None:
    """Loss, one-step PSNR and ids used of a run, on three axes."""
    loss, quality, used = axes
    loss.plot(*run["loss"], "k-")
    loss.set(ylabel="loss", yscale="log", xlabel="images seen", xlim=(0, None))
    loss.set_yticks([0.2, 0.3, 0.5, 1], ["0.2", "0.3", "0.5", "1"])
    loss.minorticks_off()
    plot_psnr(quality, run, mean_scene)
    quality.set(ylabel="PSNR of the one-step estimate (dB)")
    quality.legend()
    used.plot(*run["ids"], "ko-", ms=4)
    used.set(ylabel="ids used per register", ylim=(0, None), xlabel="images seen", xlim=(0, None))


def drawing(text: str) -> Tensor:
    """8 lines of 8 letters -> an image (3, 16, 16) in [-1, 1], each letter 2x2 pixels: `.` is the
    ground of the scenes, any other letter the color whose name starts with it."""
    lines = text.split()
    if [len(line) for line in lines] != [8] * 8 or not set("".join(lines)) <= LETTERS.keys():
        raise ValueError(f"text={text!r}: give 8 lines of 8 letters among {' '.join(LETTERS)}")
    image = torch.tensor([[LETTERS[letter] for letter in line] for line in lines])
    return (image.permute(2, 0, 1) / 127.5 - 1).repeat_interleave(2, 1).repeat_interleave(2, 2)
