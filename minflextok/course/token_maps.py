"""Where in an image each token acts: small maps on one common scale."""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..draws import seeded_noise
from ..tokenizer import FlexTok


@torch.no_grad()
def changes(tok: FlexTok, ids: Tensor, tokens: int) -> Tensor:
    """How much the one-step estimate changes if one token is exchanged for that of another image.

    ids (N, K), tokens: of the first so many positions -> (tokens, H, W), the mean of the squared
    change over images and channels.
    """
    c = tok.config
    noise = seeded_noise((len(ids), c.in_channels, c.image_size, c.image_size), 1)

    def estimate(ids: Tensor) -> Tensor:
        return noise - tok.velocity(noise, 1.0, ids)

    before, maps = estimate(ids), []
    for j in range(tokens):
        exchanged = ids.clone()
        exchanged[:, j] = ids[:, j].roll(1, 0)
        maps.append((estimate(exchanged) - before).square().mean((0, 1)))
    return torch.stack(maps)


def token_maps(groups: dict[str, Tensor], columns: int = 8, width: float = 12.8) -> Figure:
    """Maps (T, H, W) of tokens 1 to T in rows of `columns`, a block beside the other for each
    group. All maps of a group have one scale, from 0 to its largest value."""
    tokens = len(next(iter(groups.values())))
    rows = -(-tokens // columns)
    tile = width / (columns * len(groups))
    fig = plt.figure(figsize=(width, rows * (tile + 0.16) + 0.75), layout="constrained")
    for part, (name, maps) in zip(
        fig.subfigures(1, len(groups), squeeze=False)[0], groups.items(), strict=True
    ):
        axes = part.subplots(rows, columns, squeeze=False)
        for j, ax in enumerate(axes.flat):
            ax.axis("off")
            if j < tokens:
                shown = ax.imshow(maps[j], cmap="cividis", vmin=0, vmax=float(maps.max()))
                ax.set_title(str(j + 1), fontsize=9, pad=2)
        part.suptitle(name, fontsize=10)
        part.colorbar(shown, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    return fig
