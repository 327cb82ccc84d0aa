"""Things to drag in a notebook. Each is a `Board`: controls, pictures that follow, and a still picture for paper."""

from functools import lru_cache

import ipywidgets
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..data import shapes, to_uint8
from ..evaluation.metrics import psnr
from ..flow import euler
from ..guidance import cfg
from ..nested_dropout import sample_keep_k
from ..prior import Prior
from ..tokenizer import FlexTok
from .board import Board, Frame, png, to_png

MET = "✓ as told"
EXAMPLES = (
    "a red circle",
    "a large blue square",
    "a green triangle above a white circle",
    "a small yellow square to the left of a large purple circle, which is above a red triangle",
)


def slider(description: str, value: int, low: int, high: int) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(value, low, high, description=description, continuous_update=True)


def draw_noise(tok: FlexTok, num: int, seed: int, like: Tensor | None = None) -> Tensor:
    """Where `num` decodes start: (num, C, H, W), like these images, or of the model's own size."""
    c = tok.config
    if c.in_channels != 3 and tok.vae is None:
        raise ValueError(
            f"a tokenizer of latents (in_channels={c.in_channels}) has no pictures to show: attach its VAE"
        )
    shape = (
        (c.in_channels, c.image_size, c.image_size)
        if like is None
        else tok.to_latents(like).shape[1:]
    )
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(seed))


def draw_mask(keep_k: Tensor, num_registers: int, chosen: int | None = None) -> bytes:
    """One line a draw, one cell a register: dark where it is kept. A bar to the left marks the chosen draw."""
    cell, canvas = 12, Image.new("RGB", (12 * (num_registers + 1), 12 * len(keep_k)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, k in enumerate(keep_k.tolist()):
        if i == chosen:
            draw.rectangle((0, cell * i, 7, cell * (i + 1) - 2), "black")
        for j in range(num_registers):
            box = (cell * (j + 1), cell * i, cell * (j + 2) - 2, cell * (i + 1) - 2)
            draw.rectangle(box, "#1f4e79" if j < k else "#e4e4e4")
    return to_png(canvas)


def budget_slider(
    tok: FlexTok, images: Tensor, steps: int = 25, zoom: int = 3, seed: int = 0
) -> Board:
    """A slider over the token budget 1..K: originals, what k tokens give, and what is still missing.

    images (B, 3, H, W) in [-1, 1]. All budgets start from the same noise.
    """
    c, ids, noise = tok.config, tok.encode(images), draw_noise(tok, len(images), seed, images)
    images = images.cpu()

    def make(setting: tuple[int]) -> Frame:
        (k,) = setting
        x = tok.decode(ids[:, :k], steps=steps, noise=noise).cpu()
        pictures = {
            "reconstruction": png(x, zoom),
            "residual (original minus reconstruction; grey: nothing)": png((images - x) / 2, zoom),
        }
        return pictures, (
            f"{k} of {c.num_registers} tokens: {c.num_bytes(k)} bytes an image, "
            f"PSNR {psnr(x, images).mean():.1f} dB"
        )

    original = {"original": png(images, zoom)}
    board = Board(make, [slider("tokens", c.num_registers, 1, c.num_registers)], original)
    for k in c.budgets:
        decoded, residual = board.follower.get((k,))[0].values()
        original[f"{k} of {c.num_registers} tokens"] = decoded
    board.still = original | {f"residual at {c.num_registers} tokens (grey: nothing)": residual}
    return board


def token_swap(
    tok: FlexTok, first: Tensor, second: Tensor, steps: int = 25, zoom: int = 6, seed: int = 0
) -> Board:
    """Two images exchange the tokens between two sliders; all decodes start from the same noise.

    first, second: (3, H, W) in [-1, 1].
    """
    K, images = tok.config.num_registers, torch.stack([first, second])
    ids, noise = tok.encode(images), draw_noise(tok, 1, seed, images).repeat(2, 1, 1, 1)

    @lru_cache(None)
    def swapped(a: int, b: int) -> Tensor:
        mixed = ids.clone()
        mixed[:, a - 1 : b] = ids.flip(0)[:, a - 1 : b]
        return tok.decode(mixed, steps=steps, noise=noise)

    def make(setting: tuple[int, int]) -> Frame:
        a, b = setting
        said = (
            f"tokens {a} to {b} of {K} come from the other image"
            if b > a
            else f"token {a} of {K} comes from the other image"
            if a == b
            else "no token is swapped"
        )
        return {"swapped": png(swapped(a, b), zoom, down=True)}, said

    fixed = {"original": images, "own tokens": swapped(1, 0)}
    board = Board(
        make,
        [slider("swap from token", 1, 1, K), slider("up to token (0: none)", 1, 0, K)],
        {name: png(x, zoom, down=True) for name, x in fixed.items()},
        beside=True,
    )
    fixed |= {
        "token 1 swapped": swapped(1, 1),
        f"tokens 1 to {(K + 1) // 2} swapped": swapped(1, (K + 1) // 2),
    }
    board.still = {name: png(x, max(1, zoom // 2)) for name, x in fixed.items()}
    return board


def trajectory_scrubber(
    tok: FlexTok,
    image: Tensor,
    tokens: int | None = None,
    steps: int = 25,
    guidance: float = 1.0,
    zoom: int = 6,
    seed: int = 0,
) -> Board:
    """The sampler's way from noise to an image, step by step: where it stands, and where its velocity points.

    image (3, H, W) in [-1, 1]; tokens: how many to keep (default: all K). The whole way is computed at once.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: give a whole number of at least 1 (25 is usual)")
    ids, noise, path = tok.encode(image[None], tokens), draw_noise(tok, 1, seed, image[None]), []

    def velocity(x: Tensor, t: float) -> Tensor:
        v = tok.velocity(x, t, ids)
        if guidance != 1:
            v = cfg(v, tok.velocity(x, t, None, null=True), guidance)
        path.append((x, x - t * v))
        return v

    with torch.no_grad():
        end = euler(velocity, noise.to(ids.device), steps)
    path.append((end, end))
    to_image = tok.vae.decode if tok.vae is not None else lambda x: x
    names = ("where the sampler stands: x_t", "where its velocity points: x_t - t v")

    def make(setting: tuple[int]) -> Frame:
        (i,) = setting
        with torch.no_grad():
            pictures = {
                name: png(to_image(x), zoom) for name, x in zip(names, path[i], strict=True)
            }
        return pictures, f"step {i} of {steps}: t = {1 - i / steps:.2f}, {ids.shape[1]} tokens"

    board = Board(
        make,
        [slider("step", steps // 2, 0, steps)],
        {"original": png(image[None], zoom)},
        beside=True,
    )
    some = [round(steps * f / 5) for f in range(6)]
    times = ", ".join(f"{1 - i / steps:.2f}" for i in some)
    with torch.no_grad():
        board.still = {
            f"{name}, at t = {times}": png(
                to_image(torch.cat([path[i][n] for i in some])), max(1, zoom // 2)
            )
            for n, name in enumerate(names)
        }
    return board


def nested_dropout_view(
    tok: FlexTok, image: Tensor, steps: int = 25, zoom: int = 6, seed: int = 0
) -> Board:
    """Draws of keep_k as training makes them, one line each, and what the kept registers of one draw decode to.

    image (3, H, W) in [-1, 1]. The model's own way to draw is chosen first; all decodes start from the same noise.
    """
    c, num = tok.config, 16
    K, ids, noise = c.num_registers, tok.encode(image[None]), draw_noise(tok, 1, seed, image[None])
    draws = {
        mode: sample_keep_k(num, K, mode, torch.Generator().manual_seed(seed))
        for mode in ("uniform", "pow2", "uniform_pow2")
    }

    @lru_cache(None)
    def decoded(k: int) -> Tensor:
        return tok.decode(ids[:, :k], steps=steps, noise=noise)

    def make(setting: tuple[str, int]) -> Frame:
        mode, i = setting
        k = int(draws[mode][i - 1])
        return (
            {
                f"registers kept (dark) in {num} draws": draw_mask(draws[mode], K, i - 1),
                "what the kept ones decode to": png(decoded(k), zoom),
            },
            f"draw {i}: keep_k = {k}, so {K - k} of {K} registers become the mask token",
        )

    original = {"original": png(image[None], zoom)}
    way = ipywidgets.Dropdown(
        options=list(draws), value=c.keep_k_mode, description="keep_k is drawn"
    )
    board = Board(make, [way, slider("draw", 1, 1, num)], original, beside=True)
    board.still = {
        f"registers kept (dark) in {num} draws, {c.keep_k_mode}": draw_mask(draws[c.keep_k_mode], K)
    } | {
        f"the image, and what {', '.join(map(str, c.budgets))} registers decode to": png(
            torch.cat([image[None], *(decoded(k).cpu() for k in c.budgets)]), max(1, zoom // 2)
        )
    }
    return board


def prior_sampler(
    prior: Prior,
    tok: FlexTok,
    num: int = 6,
    steps: int = 25,
    guidance: float = 1.0,
    zoom: int = 3,
    seed: int = 0,
) -> Board:
    """`num` images of a class that share their first j ids, the rest written anew for each by the prior.

    The first image is the one whose ids the others take over. guidance: the prior's. All decodes start from the same
    noise, so that with all ids shared all images are the same.
    """
    prior.check_tokenizer(tok)
    if prior.text_encoder is not None:
        raise ValueError("this prior takes text, not classes: see prompt_explorer")
    K, noise = prior.config.num_tokens, draw_noise(tok, 1, seed).repeat(num, 1, 1, 1)

    @lru_cache(None)
    def trunk(name: str, temperature: float) -> Tensor:
        return prior.generate(
            prior.classes([name]),
            guidance=guidance,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed),
        )

    def make(setting: tuple[str, int, float]) -> Frame:
        name, j, temperature = setting
        shared = trunk(name, temperature)  # (1, K)
        ids = prior.generate(
            prior.classes([name] * num),
            guidance=guidance,
            temperature=temperature,
            prefix=shared[:, :j].repeat(num, 1),
            generator=torch.Generator().manual_seed(seed + 1),
        )
        ids[0] = shared[0]
        x = tok.decode(ids, steps=steps, noise=noise)
        return {"samples": png(x, zoom)}, (
            f"{name}, temperature {temperature}: {j} of {K} ids shared {shared[0, :j].tolist()}"
        )

    classes = ipywidgets.Dropdown(options=prior.class_names, description="class")
    heat = ipywidgets.SelectionSlider(
        options=[0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5], value=1.0, description="temperature"
    )
    board = Board(make, [classes, slider("shared ids", min(2, K), 0, K), heat])
    name = classes.value
    board.still = {
        f"{name}, {j} of {K} ids shared": board.follower.get((name, j, 1.0))[0]["samples"]
        for j in sorted({0, 1, min(2, K), K // 2, K})
    }
    return board


def prompt_explorer(
    prior: Prior,
    tok: FlexTok,
    num: int = 6,
    steps: int = 25,
    guidance: float = 1.0,
    zoom: int = 6,
    seed: int = 0,
) -> Board:
    """`num` images of `shapes` for a caption, decoded from their first k tokens, each with the verdict of shapes.check.

    Type a caption and press Enter, or choose an example. guidance: the prior's.
    """
    prior.check_tokenizer(tok)
    if prior.text_encoder is None:
        raise ValueError("this prior takes classes, not text: see prior_sampler")
    K, noise = prior.config.num_tokens, draw_noise(tok, num, seed)

    @lru_cache(None)
    def written(caption: str) -> Tensor:
        return prior.generate(
            [caption] * num, guidance=guidance, generator=torch.Generator().manual_seed(seed)
        )

    def make(setting: tuple[str, int]) -> Frame:
        caption, k = setting
        shapes.parse_caption(caption)  # what it cannot read is its to explain
        x = tok.decode(written(caption)[:, :k], steps=steps, noise=noise)
        return {"samples": png(x, zoom)}, [
            tell(shapes.check(y.numpy(), caption)) for y in to_uint8(x).cpu()
        ]

    caption = ipywidgets.Text(
        EXAMPLES[0], description="caption", continuous_update=False, layout={"width": "560px"}
    )
    board = Board(make, [caption, slider("tokens", K, 1, K)])
    board.reach[0] = list(EXAMPLES)  # these are made ahead
    example = ipywidgets.Dropdown(
        options=EXAMPLES, description="example", style={"description_width": "initial"}
    )
    example.observe(lambda change: setattr(caption, "value", change["new"]), names="value")
    board.children = (example, *board.children)
    board.still = {}
    for k in tok.config.budgets:
        pictures, said = board.follower.get((EXAMPLES[0], k))
        label = f'"{EXAMPLES[0]}", {k} of {K} tokens: {said.count(MET)} of {num} as told'
        board.still[label] = pictures["samples"]
    return board


def tell(verdict: shapes.Verdict) -> str:
    wrong = (
        [f"no {x.removeprefix('a ')}" for x in verdict.missing]
        + [f"also {x}" for x in verdict.extra]
        + [f"not {x}" for x in verdict.wrong_relations]
    )
    return MET if verdict.met else "✗ " + ", ".join(wrong)
