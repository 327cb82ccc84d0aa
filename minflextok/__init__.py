"""minflextok: a small, teachable FlexTok (Bachmann et al., arXiv 2502.13967)."""

from . import openmp  # noqa: F401 (first: it must precede torch)
from .config import PriorConfig, TokenizerConfig, TrainConfig
from .presets import PRESETS, PRIOR_PRESETS
from .prior import Prior
from .tokenizer import FlexTok

__all__ = [
    "PRESETS",
    "PRIOR_PRESETS",
    "FlexTok",
    "Prior",
    "PriorConfig",
    "TokenizerConfig",
    "TrainConfig",
]
__version__ = "0.1.0"
