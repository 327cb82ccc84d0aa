"""The prior: a GPT that writes an image's ids one after another, given a class or a text (paper, sec. 3.3: stage 2).

The ids come in order of importance, so the first few that it writes already decide what the image shows, and a
generation may stop at any length. Nothing of the paper's stage 2 was published; the paper calls its model a GPT-style
Transformer of 49M to 1.33B parameters, without its width and depth (see PRIOR_PRESETS). What it leaves open is chosen
here:

- Pre-norm blocks of QK-normed attention and SwiGLU as in the tokenizer, and layer norms without gain or bias.
- Learned positions, not RoPE: a token's place says what it is about (the first the whole, the last a detail), there
  are at most K = 256 of them, and no distance between two means the same at both ends of the row. An addition is also
  cheaper than a rotation of every query and key.
- The head is tied to the table of ids: apart, the two would hold more than the blocks (82M to 49M in the smallest of
  the paper), and so a rare id learns from every softmax, not only from its own appearances.
- A class is one more token, put first; a text is seen by cross-attention in every block (as in the paper, from T5). A
  learned null takes the place of either in a share of the training images, for guidance.
"""

import difflib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import weights
from .config import PriorConfig
from .gpt import Context, PackedLinear, PriorBlock, can_pack, packed
from .text import text_encoder
from .tokenizer import FlexTok
from .transformer import init_linears, layer_norm

Conditions = Tensor | list[str]  # classes (B,) int64, or captions


def sample(
    logits: Tensor,
    u: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """One id a row: logits (B, V), u (B, V) uniform in [0, 1) -> (B,) int64. Temperature 0 takes the likeliest.

    top_k keeps the k likeliest ids; top_p, of these, the fewest that hold this share of the probability. The id is the
    one that comes first when each id waits for an exponential time of rate p: it is first with probability p. Unlike
    a walk along the cumulative p, this does not change where p differs by rounding, as it does with and without cache.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if top_p is not None and top_p < 1:
        falling = logits.sort(descending=True).values
        p = falling.softmax(-1)
        kept = (p.cumsum(-1) - p < top_p).sum(
            -1, keepdim=True
        )  # those before it hold less than top_p
        logits = logits.masked_fill(logits < falling.gather(-1, kept - 1), float("-inf"))
    waits = -u.clamp(min=torch.finfo(u.dtype).tiny).log() / logits.softmax(
        -1
    )  # infinite where p = 0 alone
    return waits.argmin(-1)


class Prior(nn.Module):
    """Classes or captions -> ids (B, k) int64 of a tokenizer, for any 1 <= k <= K = config.num_tokens.

    Position i of the Transformer holds the condition (i = 0) or id i - 1, and predicts id i.
    """

    def __init__(self, config: PriorConfig):
        super().__init__()
        c = self.config = config
        self.ids = nn.Embedding(c.vocab_size, c.dim)  # the head too
        self.positions = nn.Parameter(torch.empty(c.num_tokens, c.dim))
        self.first = nn.Embedding(
            c.num_classes + 1, c.dim
        )  # the last is the null class, and what a text prior starts with
        self.text_encoder = text_encoder(c) if c.text else None
        self.blocks = nn.ModuleList(PriorBlock(c) for _ in range(c.depth))
        self.packed_head = None  # see _packed
        init_linears(self)
        for block in (
            self.blocks
        ):  # so that the sum of all branches starts at unit scale, whatever the depth (GPT-2)
            for linear in (
                block.attn.proj,
                block.mlp.fc2,
                *([block.cross.proj] if block.cross else []),
            ):
                linear.weight.data *= (3 * c.depth) ** -0.5
        for table in (self.ids.weight, self.positions, self.first.weight):
            nn.init.normal_(table, std=0.02)
        if c.text:
            self.null_text = nn.Parameter(torch.empty(c.text_dim))
            nn.init.normal_(self.null_text)

    # ---- training ------------------------------------------------------------------------------------------------

    def draw(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """All randomness of one training step: null (B,) bool, which conditions are hidden; and keep, which channels
        of a block's branches are kept in an image (B, depth, branches, D) bool (with dropout 0, of size 0).

        A channel is dropped at all positions of an image alike (Gal and Ghahramani, arXiv 1512.05287), so that the
        draws are few enough to be handed in, and a resumed or distributed run repeats them.
        """
        c = self.config
        null = torch.rand(batch, generator=generator) < c.null_prob
        if c.dropout == 0:
            return null, torch.ones(batch, 0, dtype=torch.bool)
        return null, torch.rand(
            batch, c.depth, 3 if c.text else 2, c.dim, generator=generator
        ) >= c.dropout

    def forward(self, ids: Tensor, conditions: Tensor, null: Tensor, keep: Tensor) -> Tensor:
        """The objective for given draws: mean cross-entropy of the ids (B, k), a scalar in nats a token.

        conditions: as `prepare` gives them, (B,) or (B, L) int64.
        """
        return self.token_losses(ids, conditions, null, keep).mean()

    def token_losses(
        self,
        ids: Tensor,
        conditions: Tensor,
        null: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """-log p(id | condition and ids before it) of each id: (B, k) in nats. Arguments as for `forward`."""
        logits = self.logits(ids[:, :-1], conditions, null, keep)  # (B, k, V)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), ids.flatten(), reduction="none"
        ).view_as(ids)

    def loss(
        self, ids: Tensor, labels: Conditions, generator: torch.Generator | None = None
    ) -> Tensor:
        """The training objective on ids (B, k) and their classes (B,) or captions, with fresh draws: a scalar."""
        conditions = self.prepare(labels)
        ids = self._check_ids(ids, len(conditions), "ids")
        if ids.shape[1] == 0:
            raise ValueError("ids have no column: give at least one id an image")
        return self(ids, conditions, *(d.to(ids.device) for d in self.draw(len(ids), generator)))

    # ---- the network ---------------------------------------------------------------------------------------------

    def condition(self, conditions: Tensor, null: Tensor) -> tuple[Tensor, list[Context | None]]:
        """What is put first, (B, 1, D), and what each block sees of the text; where null (B,), nothing is told."""
        hidden = torch.full_like(null, self.config.num_classes, dtype=torch.long)
        if self.text_encoder is None:
            return self.first(torch.where(null, hidden, conditions))[:, None], [None] * len(
                self.blocks
            )
        text, mask = self.text_encoder(conditions)  # (B, L, Dt), (B, L)
        text = torch.where(null[:, None, None], self.null_text.to(text.dtype), text)
        text = layer_norm(text)
        return self.first(hidden)[:, None], [
            block.cross.context(text, mask) for block in self.blocks
        ]

    def place(self, tokens: Tensor, at: int = 0) -> Tensor:
        """Embedded tokens (B, M, D) with their positions from `at` on, at unit scale."""
        return layer_norm(tokens + self.positions[at : at + tokens.shape[1]])

    def head(self, x: Tensor) -> Tensor:
        """(..., D) -> logits of the next id (..., V)."""
        x = layer_norm(x)
        return F.linear(x, self.ids.weight) if self.packed_head is None else self.packed_head(x)

    def logits(
        self,
        ids: Tensor,
        conditions: Tensor,
        null: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Logits of the first id and of those after each of ids (B, k), k < K: (B, k + 1, V).

        conditions: as `prepare` gives them. null (B,) bool hides them. keep: as drawn by `draw` (None: no dropout).
        """
        null = torch.zeros(len(ids), dtype=torch.bool, device=ids.device) if null is None else null
        first, contexts = self.condition(conditions, null)
        x = self.place(torch.cat([first, self.ids(ids)], 1))  # (B, k + 1, D)
        factors = [None] * len(self.blocks)
        if keep is not None and keep.numel():
            factors = (keep[..., None, :].to(x.dtype) / (1 - self.config.dropout)).unbind(1)
        for block, context, factor in zip(self.blocks, contexts, factors, strict=True):
            x = block(x, context, factor)
        return self.head(x)

    # ---- generation ----------------------------------------------------------------------------------------------

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
        """Sample num_tokens (default: all K) ids for each class (B,) int64 or caption -> (B, num_tokens) int64.

        guidance: scale s of classifier-free guidance, uncond + s * (cond - uncond) on the logits, 1 for none; or a
        function of the token's position, 0 to K - 1. temperature 0 takes the likeliest id; top_k, top_p as in
        `sample`. prefix (B, j) int64: the first ids, kept as they are. use_cache = False computes every position
        anew for each id, for the same ids at many times the cost.

        Each row draws from a generator of its own, seeded by `generator` (of any device) in turn: what a row becomes
        depends neither on the size of the batch nor on num_tokens, and a shorter generation is the start of a longer.
        """
        c, device = self.config, self.positions.device
        conditions = self.prepare(labels)
        B, n = len(conditions), c.num_tokens if num_tokens is None else num_tokens
        if not hasattr(n, "__index__") or isinstance(n, bool) or not 1 <= n <= c.num_tokens:
            raise ValueError(f"num_tokens={n!r}: give a whole number from 1 to {c.num_tokens}")
        prefix = self._check_ids(
            torch.empty(B, 0, dtype=torch.long) if prefix is None else prefix, B, "prefix"
        )
        j = prefix.shape[1]
        if j > n:
            raise ValueError(
                f"prefix has {j} ids an image, num_tokens is {n}: give at most so many"
            )
        scales = self._check_sampling(guidance, temperature, top_k, top_p, range(j, n))
        seeds = torch.randint(
            2**62, (B,), generator=generator, device=generator.device if generator else "cpu"
        )
        draws = [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
        u = torch.empty(B, c.vocab_size, device=device)

        def choose(logits: Tensor) -> Tensor:
            for row, g in zip(u, draws if temperature > 0 else [], strict=False):
                row.uniform_(generator=g)
            return sample(logits, u, temperature, top_k, top_p)

        rows = B * (2 if any(s != 1 for s in scales.values()) else 1)
        pays = rows * (n - j) >= 32  # packing takes time
        with torch.inference_mode():
            model = self._packed(rows) if use_cache and pays and can_pack(self.positions) else self
            ids = model._generate(conditions, prefix, n, scales, use_cache, choose)
        return ids.clone()  # a tensor made in inference mode could not be trained on

    def _packed(self, rows: int) -> "Prior":
        """A copy for inference whose products are faster on a CPU (see PackedLinear); vectors and tables are shared."""
        twin = packed(self, rows)
        twin.packed_head = PackedLinear(self.ids.weight, rows)
        return twin

    def _generate(
        self,
        conditions: Tensor,
        prefix: Tensor,
        n: int,
        scales: dict[int, float],
        use_cache: bool,
        choose: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The loop of `generate`: logits of position i, guided, to ids (B,) by `choose`, n - j times."""
        (B, j), c = prefix.shape, self.config
        both = (
            2 if any(s != 1 for s in scales.values()) else 1
        )  # conditional rows, then the same without condition
        null = torch.arange(both, device=prefix.device).repeat_interleave(B) == 1
        first, contexts = self.condition(
            conditions.repeat(both, *[1] * (conditions.ndim - 1)), null
        )
        seen = prefix[:, : n - 1].repeat(both, 1)  # with n ids given, there is nothing to do
        x = self.place(
            torch.cat([first, self.ids(seen)], 1)
        )  # (both * B, j + 1, D): all that is new
        caches = [None] * c.depth
        if use_cache:
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            caches = x.new_empty(
                c.depth, 2, both * B, c.dim // c.head_dim, n, c.head_dim, dtype=dtype
            )
        ids, at = torch.cat([prefix, prefix.new_empty(B, n - j)], 1), 0
        for i in range(j, n):
            h = x
            for block, context, cache in zip(self.blocks, contexts, caches, strict=True):
                h = block(h, context, None, cache, at)
            logits = self.head(h[:, -1]).float()  # (both * B, V)
            if both == 2:
                cond, uncond = logits.chunk(2)
                logits = uncond + scales[i] * (cond - uncond)
            ids[:, i] = choose(logits)
            if i + 1 < n:
                new = self.place(self.ids(ids[:, i : i + 1].repeat(both, 1)), i + 1)
                x, at = (new, i + 1) if use_cache else (torch.cat([x, new], 1), 0)
        return ids

    # ---- weights on disk, and the tokenizer they belong to -----------------------------------------------------------

    def check_tokenizer(self, tok: FlexTok) -> None:
        """Raise ValueError unless the ids of this prior are those of `tok`."""
        c, t = self.config, tok.config
        if (c.vocab_size, c.num_tokens) != (t.vocab_size, t.num_registers):
            raise ValueError(
                f"this prior writes {c.num_tokens} ids of {c.vocab_size}, the tokenizer has {t.num_registers} "
                f"of {t.vocab_size}: give the tokenizer that it was trained with"
            )
        if c.tokenizer and c.tokenizer != (found := tok.fingerprint()):
            raise ValueError(
                f"this prior was trained with the tokenizer {c.tokenizer}, this is {found}: the same id "
                "means something else to it; give the one that it was trained with"
            )

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model.safetensors (as `dtype`, if given) and config.json. A frozen text encoder is named, not stored."""
        weights.save(self, directory, dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype = torch.float32) -> "Prior":
        """Load weights: shipped ones by the name of their tokenizer ("cifar10"), or a directory that `save_pretrained`
        or a training run wrote. The model comes in eval mode, on the CPU, as `dtype` (float32 or bfloat16)."""
        return weights.load(cls, PriorConfig, weights.find(name, "prior-"), dtype)

    # ---- checks of what users give -----------------------------------------------------------------------------------

    @property
    def class_names(self) -> list[str]:
        """The names of all classes; their numbers, where none are known."""
        return list(self.config.class_names) or [str(i) for i in range(self.config.num_classes)]

    def classes(self, names: list[str]) -> Tensor:
        """Names or numbers of classes -> (B,) int64."""
        if self.text_encoder is not None:
            raise ValueError("this prior takes text, not classes: give captions")
        known = {name: i for i, name in enumerate(self.class_names)}
        known |= {str(i): i for i in known.values() if str(i) not in known}
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, self.class_names, n=3, cutoff=0)
                raise ValueError(
                    f"no class {name!r}: give a number from 0 to {self.config.num_classes - 1}, or a name such "
                    f"as {', '.join(near)}"
                )
        return torch.tensor([known[name] for name in names])

    def prepare(self, labels: Conditions) -> Tensor:
        """Classes (B,), or captions as numbers (B, L): checked, int64, on the model's device."""
        c, device = self.config, self.positions.device
        if self.text_encoder is not None:
            if (
                isinstance(labels, str)
                or not isinstance(labels, list | tuple)
                or not labels
                or not all(isinstance(text, str) for text in labels)
            ):
                raise ValueError(
                    f"this prior takes text, not {_describe(labels)}: give a list of captions"
                )
            return self.text_encoder.tokenize(list(labels)).to(device)
        if (
            not isinstance(labels, Tensor)
            or labels.ndim != 1
            or len(labels) == 0
            or labels.is_floating_point()
            or labels.is_complex()
            or labels.dtype == torch.bool
        ):
            raise ValueError(
                f"this prior takes classes 0 to {c.num_classes - 1}, not {_describe(labels)}: "
                "give a (B,) int64 tensor"
            )
        low, high = (v.item() for v in labels.aminmax())
        if low < 0 or high >= c.num_classes:
            raise ValueError(
                f"classes range from {low} to {high}: this prior's are 0 to {c.num_classes - 1}"
            )
        return labels.to(device, torch.long)

    def _check_ids(self, ids: Tensor, rows: int, what: str) -> Tensor:
        c = self.config
        if (
            not isinstance(ids, Tensor)
            or ids.ndim != 2
            or len(ids) != rows
            or ids.is_floating_point()
            or ids.is_complex()
            or ids.dtype == torch.bool
        ):
            raise ValueError(
                f"{what}: {_describe(ids)} for {rows} conditions; give a ({rows}, k) int64 tensor"
            )
        if ids.shape[1] > c.num_tokens:
            raise ValueError(
                f"{what}: {ids.shape[1]} ids an image, this prior has at most {c.num_tokens}"
            )
        if ids.numel() and (ids.min() < 0 or ids.max() >= c.vocab_size):
            raise ValueError(
                f"{what} range from {ids.min()} to {ids.max()}: this prior's are 0 to {c.vocab_size - 1}"
            )
        return ids.to(self.positions.device, torch.long)

    @staticmethod
    def _check_sampling(guidance, temperature, top_k, top_p, positions: range) -> dict[int, float]:
        """The guidance scale at each position; what cannot be sampled with is an error."""

        def number(x) -> bool:
            return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < float("inf")

        scales = {i: guidance(i) if callable(guidance) else guidance for i in positions}
        for i, s in scales.items():
            if not number(s):
                raise ValueError(
                    f"guidance={s!r} at position {i}: give a finite number, or a function of the position "
                    "that returns one"
                )
        if not number(temperature) or temperature < 0:
            raise ValueError(
                f"temperature={temperature!r}: give a number of at least 0 (0 takes the likeliest id)"
            )
        if top_k is not None and (
            not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1
        ):
            raise ValueError(
                f"top_k={top_k!r}: give a whole number of at least 1, or None for all ids"
            )
        if top_p is not None and (not number(top_p) or not 0 < top_p <= 1):
            raise ValueError(
                f"top_p={top_p!r}: give a share above 0 and up to 1, or None for all ids"
            )
        return scales


def _describe(x: object) -> str:
    if isinstance(x, str) or (
        isinstance(x, list | tuple) and x and all(isinstance(text, str) for text in x)
    ):
        return "one text" if isinstance(x, str) else "text"
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
