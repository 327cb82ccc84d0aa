"""The training objective of a FlexTok: the flow loss for given draws and, with a teacher, its
alignment (REPA)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .. import savings
from ..draws import Draws, draw
from ..tokenizer import FlexTok


class TokenizerObjective(nn.Module):
    """A FlexTok with what only training needs. Checkpoints hold the REPA head too;
    `save_pretrained` writes the FlexTok alone.

    repa: a `Repa` module, which compares the patches after decoder block config.repa_block with a
    teacher's features.
    """

    def __init__(self, tok: FlexTok, repa: nn.Module | None = None):
        super().__init__()
        self.config, self.tok, self.repa = tok.config, tok, repa

    def draw(
        self, x: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None
    ) -> Draws:
        """The random draws of a step for images or latents like x: see `tokenizer.draw`."""
        return draw(self.config, x, nested_prob, generator)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        t: Tensor,
        keep_k: Tensor,
        null: Tensor,
        features: Tensor | None = None,
    ) -> Tensor:
        """The loss for given draws, a scalar. x: images or latents (B, C, H, W); features: the
        teacher's (B, D, h, w)."""
        K = self.config.num_registers
        if not self.tok.savings:
            keep_k, null = keep_k.to(x.device), null.to(x.device)
            return self.group_loss(K, keep_k, null, x, noise, t, features)
        P = x.shape[-1] * x.shape[-2] // self.config.patch_size**2
        return savings.by_length(self.group_loss, keep_k, null, P, K, x, noise, t, features)

    def group_loss(
        self,
        longest: int,
        keep_k: Tensor,
        null: Tensor,
        x: Tensor,
        noise: Tensor,
        t: Tensor,
        features: Tensor | None,
    ) -> Tensor:
        """The loss of images that keep at most `longest` registers each."""
        draws = Draws(noise, t, keep_k, null)
        if features is None or self.repa is None:
            return self.tok.flow_loss(x, draws, longest)
        hidden: list[Tensor] = []
        loss = self.tok.flow_loss(x, draws, longest, hidden)
        return loss + self.config.repa_weight * self.repa(hidden[self.config.repa_block], features)

    def save_pretrained(self, directory: str | Path) -> None:
        self.tok.save_pretrained(directory)
