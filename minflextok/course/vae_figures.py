"""Notebook 10b: k-means, and the figure that compares posteriors with quantized latents."""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..fsq import FSQ


def k_means(vectors: Tensor, codebook: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """vectors (N, D), first codebook (n, D) -> codebook after some steps, nearest code (N,)."""
    codebook = codebook.clone()
    for _ in range(steps):
        nearest = torch.cdist(vectors, codebook).argmin(1)
        for j in nearest.unique():
            codebook[j] = vectors[nearest == j].mean(0)
    return codebook, torch.cdist(vectors, codebook).argmin(1)


def posteriors_and_points(
    posteriors: dict[str, list[Tensor]], mean: Tensor, codebook: Tensor, fsq: FSQ, every: int = 61
) -> Figure:
    """Four panels with the same axes, for two channels of the latents.

    posteriors: title to means and standard deviations, each (N, 2); every 61st is drawn. mean
    (N, 2): the latents that are quantized, by the codebook (n, 2), and by `fsq` after they are
    scaled to mean 0 and standard deviation 1.
    """
    fig, axes = plt.subplots(
        1, 4, figsize=(11, 3.4), layout="constrained", sharex=True, sharey=True
    )
    for ax, (title, (center, std)) in zip(axes, posteriors.items(), strict=False):
        x, y = center[::every].T
        dx, dy = std[::every].T
        ax.errorbar(x, y, dy, dx, fmt=".", color="#0072B2", ms=4, elinewidth=0.7)
        ax.set_title(f"{title}:\nmean, standard deviation")
    middle, scale = mean.mean(0), mean.std(0)
    low, high = mean.min(0).values, mean.max(0).values
    spare = 0.3 * (high - low)
    (left, bottom), (right, top) = (low - 1.2 * spare).tolist(), (high + 1.2 * spare).tolist()
    axes[0].set(xlim=(left, right), ylim=(bottom, top))
    used = {tuple(v) for v in fsq((mean - middle) / scale)[0].round(decimals=3).tolist()}
    # FSQ rounds half * tanh(z) (odd levels): its points and borders, in units of the latents
    half = (fsq.L.float() - 1) * 1.001 / 2
    for ax in axes[2:]:
        ax.plot(*mean.T, ".", color="0.75", ms=2.5)
    axes[2].plot(*codebook.T, "X", color="#D55E00", mec="k", ms=7)
    axes[2].set_title(f"VQ: the nearest of\n{len(codebook)} codes (crosses)")
    for channel, draw in enumerate((axes[3].axvline, axes[3].axhline)):
        count = int(fsq.L[channel])
        for border in torch.arange(1, count) - count / 2:
            at = torch.atanh(border / half[channel]) * scale[channel] + middle[channel]
            draw(float(at), color="0.5", lw=0.7)
    for i in range(int(fsq.L[0])):
        for j in range(int(fsq.L[1])):
            digits = torch.tensor([i, j]) - fsq.center
            place = torch.atanh(digits / half) * scale + middle
            code = tuple((digits / fsq.center).round(decimals=3).tolist())
            face = "#D55E00" if code in used else "w"
            axes[3].plot(*place.clamp(low - spare, high + spare), "s", color=face, mec="k", ms=7)
    axes[3].set_title("FSQ: a grid of 5 x 5 points,\nwith the borders of its cells")
    for ax in axes:
        ax.set_xlabel("most varying channel")
    axes[0].set_ylabel("second channel")
    return fig
