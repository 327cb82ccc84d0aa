"""minflextok: a small, teachable FlexTok (Bachmann et al., arXiv 2502.13967)."""

from .config import PRESETS, PRIOR_PRESETS, PriorConfig, TokenizerConfig, TrainConfig
from .prior import Prior
from .tokenizer import FlexTok

__all__ = ["PRESETS", "PRIOR_PRESETS", "FlexTok", "Prior", "PriorConfig", "TokenizerConfig", "TrainConfig"]
__version__ = "0.1.0"
