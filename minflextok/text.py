"""Text encoders: captions to embeddings, for a prior that takes text.

A text encoder has two methods: `tokenize` maps a list of captions to token numbers (B, L) int64,
padded, on the CPU; `forward` maps these to embeddings (B, L, Dt) and a mask (B, L), True at the
caption's tokens. There are two: a small Transformer over words or bytes, which is trained with the
prior and needs no download, and any frozen encoder of the Hugging Face hub, such as the T5 of the
paper (pip install "minflextok[text]").
"""

import difflib
import re
from functools import lru_cache

import torch
from torch import Tensor, nn

from .checks import first_line
from .config import PriorConfig
from .transformer import Block, layer_norm


def split_words(caption: str) -> list[str]:
    """Words in lower case, split at spaces and punctuation."""
    return re.findall(r"[\w']+", caption.lower())


def words_of(captions: list[str]) -> tuple[str, ...]:
    """The vocabulary of captions: every word, sorted."""
    return tuple(sorted({w for caption in set(captions) for w in split_words(caption)}))


def pad(rows: list[list[int]], captions: list[str], what: str, longest: int) -> Tensor:
    """Rows of token numbers >= 1 -> (B, L) int64, padded with 0. Raises ValueError for empty and
    overlong captions."""
    for row, caption in zip(rows, captions, strict=True):
        if not row:
            raise ValueError(f"caption {caption!r} has no {what}: say what the image shows")
        if len(row) > longest:
            raise ValueError(
                f"caption {caption[:60]!r} has {len(row)} {what}, this prior reads {longest}: "
                "shorten it"
            )
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


class TextEncoder(nn.Module):
    """A bidirectional Transformer over the words or bytes of a caption, trained with the prior."""

    def __init__(self, c: PriorConfig):
        super().__init__()
        self.longest, self.words = c.text_length, {w: i for i, w in enumerate(c.words, start=1)}
        self.embeddings = nn.Embedding(1 + (len(c.words) or 256), c.text_dim)  # 0: padding
        self.positions = nn.Parameter(torch.empty(c.text_length, c.text_dim))
        self.blocks = nn.ModuleList(Block(c.text_dim, c.head_dim) for _ in range(c.text_depth))
        nn.init.normal_(self.embeddings.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def tokenize(self, captions: list[str]) -> Tensor:
        if not self.words:
            return pad(
                [[b + 1 for b in caption.strip().encode()] for caption in captions],
                captions,
                "bytes",
                self.longest,
            )
        rows = [split_words(caption) for caption in captions]
        for word in (w for row in rows for w in row if w not in self.words):
            near = difflib.get_close_matches(word, self.words, n=3, cutoff=0)
            raise ValueError(
                f"unknown word {word!r}: this prior learned {len(self.words)} words, the closest "
                f"are {', '.join(near)}"
            )
        return pad([[self.words[w] for w in row] for row in rows], captions, "words", self.longest)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        mask = tokens > 0  # (B, L)
        x = layer_norm(self.embeddings(tokens) + self.positions[: tokens.shape[1]])  # (B, L, Dt)
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        return x, mask


class FrozenTextEncoder(nn.Module):
    """A pretrained encoder by its name or directory. It is loaded at first use, shared by all
    priors that name it, and never trained, copied or stored with the prior."""

    def __init__(self, c: PriorConfig):
        super().__init__()
        self.name, self.width, self.longest = c.text, c.text_dim, c.text_length

    def tokenize(self, captions: list[str]) -> Tensor:
        tokenizer, _ = pretrained(self.name)
        texts = [caption.strip() for caption in captions]
        rows = [tokenizer(text).input_ids if text else [] for text in texts]
        pad(rows, captions, "pieces", self.longest)
        return tokenizer(texts, padding=True, return_tensors="pt").input_ids

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokenizer, model = pretrained(self.name)
        mask = tokens != tokenizer.pad_token_id
        x = model.to(tokens.device)(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        if x.shape[-1] != self.width:
            raise ValueError(
                f"{self.name} gives embeddings of width {x.shape[-1]}, not {self.width}: set "
                "text_dim to it"
            )
        return x, mask


@lru_cache(maxsize=2)
def pretrained(name: str):
    """Tokenizer and encoder (float32, eval mode), downloaded if necessary; from safetensors
    only."""
    try:
        from transformers import AutoModelForTextEncoding, AutoTokenizer
    except ImportError as e:
        raise ValueError(
            f'text encoder {name!r} needs transformers ({e}): pip install "minflextok[text]", or '
            "take text='words' or 'bytes', which need no package"
        ) from None
    try:
        model = AutoModelForTextEncoding.from_pretrained(name, use_safetensors=True)
        return AutoTokenizer.from_pretrained(name), model.requires_grad_(False).eval()
    except (OSError, ValueError) as e:
        raise ValueError(
            f"no text encoder {name!r}: give 'words', 'bytes', a directory, or a name on the "
            f"Hugging Face hub ({first_line(e)})"
        ) from None


def text_encoder(c: PriorConfig) -> nn.Module:
    return TextEncoder(c) if c.text in ("words", "bytes") else FrozenTextEncoder(c)
