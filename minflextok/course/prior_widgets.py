"""The widgets of the prior: samples of a class with shared ids, and samples for a caption."""

from functools import lru_cache

import ipywidgets
import torch
from torch import Tensor

from ..data import shapes, to_uint8
from ..draws import seeded_noise
from ..prior import Prior
from ..tokenizer import FlexTok
from .board import Board, Frame, slider
from .pictures import png

MET = "✓ matches"
EXAMPLES = (
    "a red circle",
    "a large blue square",
    "a green triangle above a white circle",
    "a small yellow square to the left of a large purple circle, which is above a red triangle",
)


def check_pictures(tok: FlexTok) -> None:
    """ValueError if the decoder outputs latents, and there is no VAE to decode them to images."""
    channels = tok.config.in_channels
    if channels != 3 and tok.vae is None:
        raise ValueError(
            f"this tokenizer decodes to latents (in_channels={channels}), which cannot be shown: "
            "attach its VAE"
        )


def full_size_noise(tok: FlexTok, num: int, seed: int) -> Tensor:
    """Noise for `num` decodes to the model's own size, (num, C, H, W)."""
    check_pictures(tok)
    c = tok.config
    return seeded_noise((num, c.in_channels, c.image_size, c.image_size), seed)


def prior_sampler(
    prior: Prior,
    tok: FlexTok,
    num: int = 6,
    steps: int = 25,
    guidance: float = 1.0,
    decoder_guidance: float = 1.0,
    zoom: int = 3,
    seed: int = 0,
) -> Board:
    """`num` images of a class that share their first j ids; the prior samples the rest of each.

    The shared ids are those of the first image. guidance: the prior's. All decodes use the same
    noise, so the images are equal if all ids are shared.
    """
    prior.check_tokenizer(tok)
    if prior.text_encoder is not None:
        raise ValueError("this prior is conditioned on text, not on classes: use prompt_explorer")
    K, noise = prior.config.num_tokens, full_size_noise(tok, 1, seed).repeat(num, 1, 1, 1)

    @lru_cache(None)
    def first_ids(name: str, temperature: float) -> Tensor:
        return prior.generate(
            prior.classes([name]),
            guidance=guidance,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed),
        )

    def make(setting: tuple[str, int, float]) -> Frame:
        name, j, temperature = setting
        shared = first_ids(name, temperature)  # (1, K)
        ids = prior.generate(
            prior.classes([name] * num),
            guidance=guidance,
            temperature=temperature,
            prefix=shared[:, :j].repeat(num, 1),
            generator=torch.Generator().manual_seed(seed + 1),
        )
        ids[0] = shared[0]
        x = tok.decode(ids, steps=steps, guidance=decoder_guidance, noise=noise)
        return {"samples": png(x, zoom)}, (
            f"{name}, temperature {temperature}: {j} of {K} ids shared {shared[0, :j].tolist()}"
        )

    classes = ipywidgets.Dropdown(options=prior.class_names, description="class")
    temperatures = ipywidgets.SelectionSlider(
        options=[0.0, 0.25, 0.5, 0.8, 1.0, 1.25, 1.5], value=0.8, description="temperature"
    )
    board = Board(make, [classes, slider("shared ids", min(2, K), 0, K), temperatures])
    name = classes.value
    board.still = {
        f"{name}, {j} of {K} ids shared": board.renderer.get((name, j, 0.8))[0]["samples"]
        for j in sorted({0, 1, min(2, K), K // 2, K})
    }
    return board


def prompt_explorer(
    prior: Prior,
    tok: FlexTok,
    num: int = 6,
    steps: int = 25,
    guidance: float = 1.0,
    temperature: float = 1.0,
    decoder_guidance: float = 1.0,
    zoom: int = 6,
    seed: int = 0,
) -> Board:
    """`num` images of `shapes` for a caption, decoded from their first k tokens, with verdicts.

    Type a caption and press Enter, or choose an example. The verdicts, one for each image, are
    those of shapes.check. guidance and temperature: the prior's.
    """
    prior.check_tokenizer(tok)
    if prior.text_encoder is None:
        raise ValueError("this prior is conditioned on classes, not on text: use prior_sampler")
    K, noise = prior.config.num_tokens, full_size_noise(tok, num, seed)

    @lru_cache(None)
    def sampled_ids(caption: str) -> Tensor:
        return prior.generate(
            [caption] * num,
            guidance=guidance,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed),
        )

    def make(setting: tuple[str, int]) -> Frame:
        caption, k = setting
        shapes.parse_caption(caption)  # raises a ValueError that explains the allowed captions
        ids = sampled_ids(caption)[:, :k]
        x = tok.decode(ids, steps=steps, guidance=decoder_guidance, noise=noise)
        verdicts = [shapes.check(y.numpy(), caption) for y in to_uint8(x).cpu()]
        return {"samples": png(x, zoom)}, [describe(verdict) for verdict in verdicts]

    caption = ipywidgets.Text(
        EXAMPLES[0], description="caption", continuous_update=False, layout={"width": "560px"}
    )
    board = Board(make, [caption, slider("tokens", K, 1, K)])
    board.choices[0] = list(EXAMPLES)  # to be rendered in advance
    example = ipywidgets.Dropdown(
        options=EXAMPLES, description="example", style={"description_width": "initial"}
    )
    example.observe(lambda change: setattr(caption, "value", change["new"]), names="value")
    board.children = (example, *board.children)
    board.still = {}
    for k in tok.config.budgets:
        pictures, texts = board.renderer.get((EXAMPLES[0], k))
        label = f'"{EXAMPLES[0]}", {k} of {K} tokens: {texts.count(MET)} of {num} match'
        board.still[label] = pictures["samples"]
    return board


def describe(verdict: shapes.Verdict) -> str:
    """A verdict in a few words."""
    wrong = (
        [f"no {x.removeprefix('a ')}" for x in verdict.missing]
        + [f"also {x}" for x in verdict.extra]
        + [f"not {x}" for x in verdict.wrong_relations]
    )
    return MET if verdict.met else "✗ " + ", ".join(wrong)
