"""Things to drag in a notebook. Each also has a static picture, so that a stored notebook shows something."""

import io

import ipywidgets
import torch
from PIL import Image
from torch import Tensor

from .data import to_uint8
from .tokenizer import FlexTok


def png(images: Tensor, zoom: int) -> bytes:
    """A row of images (B, 3, H, W) in [-1, 1] as PNG bytes, every pixel `zoom` pixels wide."""
    row = torch.cat(list(to_uint8(images).cpu()), dim=-1).permute(1, 2, 0).numpy()  # (H, B*W, 3)
    picture = Image.fromarray(row)
    out = io.BytesIO()
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(out, "PNG")
    return out.getvalue()


def budget_slider(tok: FlexTok, images: Tensor, steps: int = 25, zoom: int = 3, seed: int = 0) -> ipywidgets.VBox:
    """A slider over the token budget 1..K: originals above, what k tokens give below.

    images (B, 3, H, W) in [-1, 1]. All budgets start from the same noise. Each is decoded when first visited and
    then kept; the arrow keys move the slider.
    """
    K = tok.config.num_registers
    ids = tok.encode(images)
    noise = torch.randn(tok.to_latents(images).shape, generator=torch.Generator().manual_seed(seed))
    seen: dict[int, bytes] = {}

    def frame(k: int) -> bytes:
        if k not in seen:
            seen[k] = png(tok.decode(ids[:, :k], steps=steps, noise=noise), zoom)
        return seen[k]

    slider = ipywidgets.IntSlider(value=K, min=1, max=K, description="tokens", continuous_update=True)
    size = {"width": f"{zoom * images.shape[-1] * len(images)}px", "height": f"{zoom * images.shape[-2]}px"}
    shown = ipywidgets.Image(value=frame(K), format="png", alt="reconstruction", **size)
    bytes_label = ipywidgets.Label()

    def update(change: dict | None = None) -> None:
        shown.value = frame(slider.value)
        bytes_label.value = f"{slider.value} of {K} tokens: {tok.config.num_bytes(slider.value)} bytes an image"

    slider.observe(update, names="value")
    update()
    original = ipywidgets.Image(value=png(images, zoom), format="png", alt="original", **size)
    return ipywidgets.VBox([original, shown, ipywidgets.HBox([slider, bytes_label])])
