"""minflextok: a small, teachable FlexTok (Bachmann et al., arXiv 2502.13967)."""

from .config import PRESETS, TokenizerConfig, TrainConfig
from .tokenizer import FlexTok

__all__ = ["PRESETS", "FlexTok", "TokenizerConfig", "TrainConfig"]
__version__ = "0.1.0"
