"""The widgets of the tokenizer: token budget, token swap, sampling trajectory, nested dropout.

Each is a `Board`: controls, pictures that follow them, and a static picture for stored notebooks.
Those of the prior are in prior_widgets.py, and can be imported from here too.
"""

from functools import lru_cache

import ipywidgets
import torch
from torch import Tensor

from ..draws import seeded_noise
from ..evaluation.metrics import psnr
from ..flow import euler
from ..guidance import cfg
from ..nested_dropout import sample_keep_k
from ..tokenizer import FlexTok
from .board import Board, Frame, slider
from .pictures import dropout_masks, png
from .prior_widgets import check_pictures, prior_sampler, prompt_explorer

__all__ = [
    "budget_slider",
    "nested_dropout_view",
    "prior_sampler",
    "prompt_explorer",
    "token_swap",
    "trajectory_scrubber",
]


def noise_like(tok: FlexTok, images: Tensor, num: int, seed: int) -> Tensor:
    """Noise for `num` decodes to the size of these images, (num, C, H, W)."""
    check_pictures(tok)
    return seeded_noise((num, *tok.to_latents(images).shape[1:]), seed)


def budget_slider(
    tok: FlexTok,
    images: Tensor,
    steps: int = 25,
    guidance: float = 1.0,
    zoom: int = 3,
    seed: int = 0,
) -> Board:
    """A slider for the token budget k: originals, reconstructions from k tokens, and residuals.

    images (B, 3, H, W) in [-1, 1]. All budgets use the same noise.
    """
    c, ids, noise = tok.config, tok.encode(images), noise_like(tok, images, len(images), seed)
    images = images.cpu()

    def make(setting: tuple[int]) -> Frame:
        (k,) = setting
        x = tok.decode(ids[:, :k], steps=steps, guidance=guidance, noise=noise).cpu()
        pictures = {
            "reconstruction": png(x, zoom),
            "residual (original minus reconstruction; gray: zero)": png((images - x) / 2, zoom),
        }
        return pictures, (
            f"{k} of {c.num_registers} tokens: {c.num_bytes(k)} bytes an image, "
            f"PSNR {psnr(x, images).mean():.1f} dB"
        )

    original = {"original": png(images, zoom)}
    board = Board(make, [slider("tokens", c.num_registers, 1, c.num_registers)], original)
    for k in c.budgets:
        decoded, residual = board.renderer.get((k,))[0].values()
        original[f"{k} of {c.num_registers} tokens"] = decoded
    board.still = original | {f"residual at {c.num_registers} tokens (gray: zero)": residual}
    return board


def token_swap(
    tok: FlexTok,
    first: Tensor,
    second: Tensor,
    steps: int = 25,
    guidance: float = 1.0,
    zoom: int = 6,
    seed: int = 0,
) -> Board:
    """Two images exchange the tokens between two sliders. All decodes use the same noise.

    first, second: (3, H, W) in [-1, 1].
    """
    K, images = tok.config.num_registers, torch.stack([first, second])
    ids, noise = tok.encode(images), noise_like(tok, images, 1, seed).repeat(2, 1, 1, 1)

    @lru_cache(None)
    def swapped(a: int, b: int) -> Tensor:
        mixed = ids.clone()
        mixed[:, a - 1 : b] = ids.flip(0)[:, a - 1 : b]
        return tok.decode(mixed, steps=steps, guidance=guidance, noise=noise)

    def make(setting: tuple[int, int]) -> Frame:
        a, b = setting
        if b > a:
            text = f"tokens {a} to {b} of {K} come from the other image"
        elif a == b:
            text = f"token {a} of {K} comes from the other image"
        else:
            text = "no token is swapped"
        return {"swapped": png(swapped(a, b), zoom, down=True)}, text

    fixed = {"original": images, "own tokens": swapped(1, 0)}
    board = Board(
        make,
        [slider("swap from token", 1, 1, K), slider("up to token (0: none)", 1, 0, K)],
        {name: png(x, zoom, down=True) for name, x in fixed.items()},
        beside=True,
    )
    half, small = (K + 1) // 2, max(1, 2 * zoom // 3)
    columns = [images, swapped(1, 0), swapped(1, 1), swapped(1, half), swapped(1, K)]
    label = f"original; own tokens; then swapped: token 1, tokens 1 to {half}, all {K}"
    board.still = {
        f"{name} image: {label}": png(torch.stack([x[i].cpu() for x in columns]), small)
        for i, name in enumerate(("first", "second"))
    }
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
    """The sampling trajectory from noise to an image: at each step x_t and the one-step estimate.

    image (3, H, W) in [-1, 1]. tokens: the token budget (default: all K). The whole trajectory is
    computed at once.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: give an integer of at least 1 (25 is usual)")
    ids, path = tok.encode(image[None], tokens), []

    def velocity(x: Tensor, t: float) -> Tensor:
        v = tok.velocity(x, t, ids)
        if guidance != 1:
            v = cfg(v, tok.velocity(x, t, None, null=True), guidance)
        path.append((x, x - t * v))
        return v

    with torch.no_grad():
        end = euler(velocity, noise_like(tok, image[None], 1, seed).to(ids.device), steps)
    path.append((end, end))
    to_image = torch.no_grad()(tok.vae.decode) if tok.vae is not None else lambda x: x
    names = ("state x_t", "one-step estimate x_t - t v")

    def make(setting: tuple[int]) -> Frame:
        (i,) = setting
        pictures = {name: png(to_image(x), zoom) for name, x in zip(names, path[i], strict=True)}
        return pictures, f"step {i} of {steps}: t = {1 - i / steps:.2f}, {ids.shape[1]} tokens"

    original = {"original": png(image[None], zoom)}
    board = Board(make, [slider("step", steps // 2, 0, steps)], original, beside=True)
    board.still, some = {}, [round(steps * f / 5) for f in range(6)]
    times = ", ".join(f"{1 - i / steps:.2f}" for i in some)
    for n, name in enumerate(names):
        row = to_image(torch.cat([path[i][n] for i in some]))
        board.still[f"{name}, at t = {times}"] = png(row, max(1, zoom // 2))
    return board


def nested_dropout_view(
    tok: FlexTok, image: Tensor, steps: int = 25, zoom: int = 6, seed: int = 0
) -> Board:
    """Draws of keep_k as in training, one row each, and the image decoded from the kept registers.

    image (3, H, W) in [-1, 1]. The distribution of the model's config is selected first. All
    decodes use the same noise.
    """
    c, num = tok.config, 16
    K, ids, noise = c.num_registers, tok.encode(image[None]), noise_like(tok, image[None], 1, seed)
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
        pictures = {
            f"registers kept (dark) in {num} draws": dropout_masks(draws[mode], K, i - 1),
            "decoded from the kept registers": png(decoded(k), zoom),
        }
        text = f"draw {i}: keep_k = {k}, so the mask token replaces {K - k} of {K} registers"
        return pictures, text

    original = {"original": png(image[None], zoom)}
    modes = ipywidgets.Dropdown(
        options=list(draws), value=c.keep_k_mode, description="distribution of keep_k"
    )
    board = Board(make, [modes, slider("draw", 1, 1, num)], original, beside=True)
    masks = dropout_masks(draws[c.keep_k_mode], K)
    row = torch.cat([image[None], *(decoded(k).cpu() for k in c.budgets)])
    budgets = ", ".join(map(str, c.budgets))
    board.still = {
        f"registers kept (dark) in {num} draws, {c.keep_k_mode}": masks,
        f"the image, and decodes from {budgets} registers": png(row, max(1, zoom // 2)),
    }
    return board
