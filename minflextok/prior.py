"""The prior: a GPT that generates an image's token ids in order, conditioned on a class or a text
(FlexTok, stage 2).

The ids are ordered from coarse to fine: the first few determine what the image shows, and
generation may stop at any length. The authors published nothing of this stage; the paper describes
a GPT-style Transformer of 49M to 1.33B parameters without its width and depth (see presets.py).
What the paper leaves open is chosen here:

- Pre-norm blocks with QK norm and SwiGLU as in the tokenizer; layer norms without gain or bias.
- Learned positions, not RoPE: a token's position determines its role (coarse or fine), there are at
  most K = 256 of them, and relative distance has no constant meaning along the sequence.
- The output head is tied to the id embeddings. Untied, the two would have more parameters than the
  blocks (82M against 49M in the smallest model of the paper). Tying also trains the embeddings of
  rare ids through every softmax.
- A class is one more token, put first. A text conditions every block through cross-attention (as in
  the paper, from T5). In a share of the training images a learned null condition replaces either,
  for guidance.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checks, prior_checks, weights
from .config import PriorConfig
from .gpt import Context, PriorBlock
from .text import text_encoder
from .tokenizer import FlexTok
from .transformer import init_linears, layer_norm

Conditions: TypeAlias = Tensor | list[str]  # classes (B,) int64, or captions


def sample(
    logits: Tensor,
    u: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Sample one id per row: logits (B, V), u (B, V) uniform in [0, 1) -> (B,) int64. Temperature 0
    takes the argmax, and so does a temperature below 1e-4, at which float32 would overflow.

    top_k keeps the k most likely ids; top_p, of these, the fewest whose probabilities sum to at
    least top_p.

    Exponential races: each id waits for an exponential time of rate p, and the first one is the
    sample; id i is first with probability p_i. Inverting the cumulative p would change many samples
    when p changes by rounding, as it does between generation with and without a KV cache; a race
    changes only where two times are nearly equal.
    """
    if temperature < 1e-4:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p is not None and top_p < 1:
        descending = logits.sort(descending=True).values
        p = descending.softmax(-1)
        # Those before it sum to less than top_p.
        kept = (p.cumsum(-1) - p < top_p).sum(-1, keepdim=True)
        logits = logits.masked_fill(logits < descending.gather(-1, kept - 1), float("-inf"))
    # Infinite only at p = 0.
    times = -u.clamp(min=torch.finfo(u.dtype).tiny).log() / logits.softmax(-1)
    return times.argmin(-1)


class Prior(nn.Module):
    """Classes or captions -> token ids (B, k) int64 of a tokenizer, for any 1 <= k <= K =
    config.num_tokens.

    Position i of the Transformer holds the condition (i = 0) or id i - 1, and predicts id i.
    """

    def __init__(self, config: PriorConfig):
        super().__init__()
        c = self.config = checks.check_type(config, PriorConfig, "config")
        self.ids = nn.Embedding(c.vocab_size, c.dim)  # also the output head
        self.positions = nn.Parameter(torch.empty(c.num_tokens, c.dim))
        # The last row: null class; start token of a text prior.
        self.first = nn.Embedding(c.num_classes + 1, c.dim)
        self.text_encoder = text_encoder(c) if c.text else None
        self.blocks = nn.ModuleList(PriorBlock(c) for _ in range(c.depth))
        init_linears(self)
        # So that the residual stream starts at unit scale at any depth (GPT-2).
        for block in self.blocks:
            last = [block.attn.proj, block.mlp.fc2] + ([block.cross.proj] if block.cross else [])
            for linear in last:
                linear.weight.data *= (3 * c.depth) ** -0.5
        for table in (self.ids.weight, self.positions, self.first.weight):
            nn.init.normal_(table, std=0.02)
        if c.text:
            self.null_text = nn.Parameter(torch.empty(c.text_dim))
            nn.init.normal_(self.null_text)

    # ---- the network -----------------------------------------------------------------------------

    def condition(self, conditions: Tensor, null: Tensor) -> tuple[Tensor, list[Context | None]]:
        """The first token (B, 1, D), and for each block the text to attend to; unconditional where
        null (B,) is True."""
        null_class = torch.full_like(null, self.config.num_classes, dtype=torch.long)
        if self.text_encoder is None:
            classes = torch.where(null, null_class, conditions)
            return self.first(classes)[:, None], [None] * len(self.blocks)
        text, mask = self.text_encoder(conditions)  # (B, L, Dt), (B, L)
        text = torch.where(null[:, None, None], self.null_text.to(text.dtype), text)
        text = layer_norm(text)
        return self.first(null_class)[:, None], [b.cross.context(text, mask) for b in self.blocks]

    def add_positions(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Embedded tokens (B, M, D) plus their positions from `start` on, normalized."""
        return layer_norm(tokens + self.positions[start : start + tokens.shape[1]])

    def head(self, x: Tensor) -> Tensor:
        """(..., D) -> logits of the next id (..., V)."""
        return F.linear(layer_norm(x), self.ids.weight)

    def logits(
        self,
        ids: Tensor,
        conditions: Tensor,
        null: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Logits of the first id and of the id after each of ids (B, k), k < K: (B, k + 1, V).

        conditions: from `prepare`. null (B,) bool: which images are unconditional. keep: from
        `draw` (None: no dropout).
        """
        prior_checks.check_logits(self.config, ids, conditions, null, keep)
        return self._logits(ids, conditions, null, keep)

    def _logits(
        self, ids: Tensor, conditions: Tensor, null: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """`logits`, unchecked: a check of values waits for a GPU."""
        null = torch.zeros(len(ids), dtype=torch.bool, device=ids.device) if null is None else null
        first, contexts = self.condition(conditions, null)
        x = self.add_positions(torch.cat([first, self.ids(ids)], 1))  # (B, k + 1, D)
        dropout = [None] * len(self.blocks)
        if keep is not None and keep.numel():
            dropout = (keep[..., None, :].to(x.dtype) / (1 - self.config.dropout)).unbind(1)
        for block, context, factor in zip(self.blocks, contexts, dropout, strict=True):
            x = block(x, context, factor)
        return self.head(x)

    # ---- training --------------------------------------------------------------------------------

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The random draws of a training step: null (B,) bool, which images are unconditional;
        keep, which channels of each block's branches dropout keeps, (B, depth, branches, D) bool
        (of size 0 without dropout).

        A channel is dropped at all positions of an image alike (Gal and Ghahramani, arXiv
        1512.05287). So the draws are few enough to be passed in, and a resumed or distributed run
        repeats them.
        """
        c = self.config
        null = torch.rand(batch, generator=generator) < c.null_prob
        if c.dropout == 0:
            return null, torch.ones(batch, 0, dtype=torch.bool)
        shape = (batch, c.depth, 3 if c.text else 2, c.dim)
        return null, torch.rand(shape, generator=generator) >= c.dropout

    def forward(self, ids: Tensor, conditions: Tensor, null: Tensor, keep: Tensor) -> Tensor:
        """The objective for given draws: mean cross-entropy of the ids (B, k), a scalar in nats a
        token.

        conditions: from `prepare`, (B,) or (B, L) int64.
        """
        return self.token_losses(ids, conditions, null, keep).mean()

    def token_losses(
        self,
        ids: Tensor,
        conditions: Tensor,
        null: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """-log p(id | condition, earlier ids) of each id: (B, k) in nats. Arguments as for
        `logits`."""
        logits = self._logits(ids[:, :-1], conditions, null, keep)  # (B, k, V)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none")
        return losses.view_as(ids)

    def loss(
        self, ids: Tensor, labels: Conditions, generator: torch.Generator | None = None
    ) -> Tensor:
        """The objective on ids (B, k) and their classes (B,) or captions, with fresh draws: a
        scalar."""
        conditions = self.prepare(labels)
        checks.check_generator(generator, "cpu")
        ids = self._check_ids(ids, len(conditions), "ids")
        if ids.shape[1] == 0:
            raise ValueError("ids have no column: give at least one id an image")
        return self(ids, conditions, *(d.to(ids.device) for d in self.draw(len(ids), generator)))

    # ---- generation ------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        labels: Conditions,
        num_tokens: int | None = None,
        guidance: float | Callable[[int], float] = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        prefix: Tensor | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """Sample num_tokens (default: all K) ids for each class (B,) int64 or caption -> (B,
        num_tokens) int64.

        guidance: scale s of classifier-free guidance on the logits, uncond + s * (cond - uncond), 1
        for none; or a function of the token's position, 0 to K - 1. temperature, top_k, top_p: see
        `sample`. prefix (B, j) int64: the first ids, which are kept. use_cache = False recomputes
        all positions for each id: the same ids, many times slower.

        Each row has a generator of its own, seeded by `generator`: a row's ids depend neither on
        the batch size nor on num_tokens, and a shorter generation is a prefix of a longer one.
        """
        c, device = self.config, self.positions.device
        conditions = self.prepare(labels)
        B = len(conditions)
        n = c.num_tokens if num_tokens is None else num_tokens
        checks.check_count(n, "num_tokens", 1, c.num_tokens)
        prefix = torch.empty(B, 0, dtype=torch.long) if prefix is None else prefix
        prefix = self._check_ids(prefix, B, "prefix")
        j = prefix.shape[1]
        if j > n:
            raise ValueError(
                f"prefix has {j} ids an image, num_tokens is {n}: give at most so many"
            )
        settings = prior_checks.check_sampling(temperature, top_k, top_p)
        checks.check_generator(generator)
        checks.check_bools(use_cache=use_cache)
        scales = checks.check_guidance(guidance, list(range(n)), "position ")
        seed_device = generator.device if generator else "cpu"
        seeds = torch.randint(2**62, (B,), generator=generator, device=seed_device)
        rows = [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
        u = torch.empty(B, c.vocab_size, device=device)

        guided = any(s != 1 for s in scales[j:])
        copies = 2 if guided else 1  # conditional rows, then the same rows unconditional
        null = torch.arange(copies, device=device).repeat_interleave(B) == 1
        repeated = conditions.repeat(copies, *[1] * (conditions.ndim - 1))
        first, contexts = self.condition(repeated, null)
        given = prefix[:, : n - 1].repeat(copies, 1)
        x = self.add_positions(torch.cat([first, self.ids(given)], 1))  # (copies * B, j + 1, D)
        caches = self._empty_cache(x, n) if use_cache else [None] * c.depth
        ids, start = torch.cat([prefix, prefix.new_empty(B, n - j)], 1), 0
        for i in range(j, n):
            h = x
            for block, context, cache in zip(self.blocks, contexts, caches, strict=True):
                h = block(h, context, None, cache, start)
            logits = self.head(h[:, -1]).float()  # (copies * B, V)
            if guided:
                cond, uncond = logits.chunk(2)
                logits = uncond + scales[i] * (cond - uncond)
            for row, g in zip(u, rows if temperature > 0 else [], strict=False):
                row.uniform_(generator=g)
            ids[:, i] = sample(logits, u, *settings)
            if i + 1 < n:
                new = self.add_positions(self.ids(ids[:, i : i + 1].repeat(copies, 1)), i + 1)
                x, start = (new, i + 1) if use_cache else (torch.cat([x, new], 1), 0)
        return ids

    def _empty_cache(self, x: Tensor, length: int) -> Tensor:
        """Room for keys and values of all blocks: (depth, 2, B, H, length, d), in the precision
        that x is computed in."""
        c, kind = self.config, x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        shape = (c.depth, 2, len(x), c.dim // c.head_dim, length, c.head_dim)
        return x.new_empty(shape, dtype=dtype)

    # ---- weights on disk, and the tokenizer they belong to ---------------------------------------

    def check_tokenizer(self, tok: FlexTok) -> None:
        """Raise ValueError unless the ids of this prior are those of `tok`."""
        c, t = self.config, checks.check_type(tok, FlexTok, "tok").config
        if (c.vocab_size, c.num_tokens) != (t.vocab_size, t.num_registers):
            raise ValueError(
                f"this prior generates {c.num_tokens} ids of {c.vocab_size}, the tokenizer has "
                f"{t.num_registers} of {t.vocab_size}: give the tokenizer that it was trained with"
            )
        if c.tokenizer and c.tokenizer != (found := tok.fingerprint()):
            raise ValueError(
                f"this prior was trained with the tokenizer {c.tokenizer}, this is {found}: the "
                "same id has another meaning there; give the tokenizer that it was trained with"
            )

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json. A frozen text encoder is
        named, not stored."""
        path = checks.check_path(directory, "directory")
        weights.save(self, path, checks.check_dtype(dtype, optional=True))

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype = torch.float32) -> "Prior":
        """Load weights: shipped ones by the name of their tokenizer ("cifar10"), or a directory
        written by `save_pretrained` or a training run. The model is in eval mode, on the CPU, as
        `dtype` (float32, bfloat16 or float16)."""
        directory = weights.find(checks.check_path(name), "prior-")
        return weights.load(cls, PriorConfig, directory, checks.check_dtype(dtype))

    # ---- checks ----------------------------------------------------------------------------------

    @property
    def class_names(self) -> list[str]:
        """The names of all classes; their numbers, if no names are known."""
        return list(self.config.class_names) or [str(i) for i in range(self.config.num_classes)]

    def classes(self, names: list[str]) -> Tensor:
        """Names or numbers of classes -> (B,) int64."""
        if self.text_encoder is not None:
            raise ValueError("this prior takes text, not classes: give captions")
        return prior_checks.find_classes(names, self.class_names)

    def tokenize(self, labels: Conditions) -> Tensor:
        """Classes (B,), or captions as token numbers (B, L): checked, int64."""
        if self.text_encoder is not None:
            return self.text_encoder.tokenize(prior_checks.check_captions(labels))
        return prior_checks.check_classes(labels, self.config.num_classes).long()

    def prepare(self, labels: Conditions) -> Tensor:
        """`tokenize`, on the model's device."""
        return self.tokenize(labels).to(self.positions.device)

    def _check_ids(self, ids: Tensor, rows: int, name: str) -> Tensor:
        c = self.config
        ids = prior_checks.check_id_table(ids, name, rows, c.num_tokens, c.vocab_size)
        return ids.to(self.positions.device, torch.long)
