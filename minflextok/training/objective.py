"""The training objective of a FlexTok: its flow loss for given draws, and the alignment with a teacher (REPA)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..tokenizer import FlexTok


class TokenizerObjective(nn.Module):
    """A FlexTok with what trains it. Checkpoints hold the REPA head too; `save_pretrained` writes the FlexTok alone."""

    def __init__(self, tok: FlexTok, repa: nn.Module | None = None):
        super().__init__()
        self.config, self.tok, tok.repa = tok.config, tok, repa

    def draw(
        self, x: Tensor, nested_prob: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """All randomness of one training step for images or latents like x (B, C, H, W)."""
        return self.tok.draw(x, nested_prob, generator)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        t: Tensor,
        keep_k: Tensor,
        null: Tensor,
        features: Tensor | None = None,
    ) -> Tensor:
        """The loss for given draws, a scalar."""
        return self.tok(x, noise, t, keep_k, null, features)

    def save_pretrained(self, directory: str | Path) -> None:
        self.tok.save_pretrained(directory)
