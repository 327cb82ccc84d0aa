"""PNGs and HTML for the widgets."""

import html
import io
from base64 import b64encode

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data import to_uint8


def png(images: Tensor, zoom: int, down: bool = False) -> bytes:
    """Images (B, 3, H, W) in [-1, 1] in a row (down: in a column) as PNG, `zoom` times enlarged.

    Each image is followed by a white line, one of its pixels wide.
    """
    tiles = F.pad(to_uint8(images).cpu(), (0, 0, 0, 1) if down else (0, 1), value=255)
    row = torch.cat(list(tiles), dim=-2 if down else -1).permute(1, 2, 0).numpy()  # (H, B*(W+1), 3)
    picture = Image.fromarray(row)
    enlarged = (picture.width * zoom, picture.height * zoom)
    return to_png(picture.resize(enlarged, Image.Resampling.NEAREST))


def dropout_masks(keep_k: Tensor, num_registers: int, chosen: int | None = None) -> bytes:
    """A PNG with one row per draw and one cell per register: dark if kept, light if dropped.

    keep_k (B,): the draws. A bar on the left marks the row `chosen`.
    """
    cell, canvas = 12, Image.new("RGB", (12 * (num_registers + 1), 12 * len(keep_k)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, k in enumerate(keep_k.tolist()):
        if i == chosen:
            draw.rectangle((0, cell * i, 7, cell * (i + 1) - 2), "black")
        for j in range(num_registers):
            box = (cell * (j + 1), cell * i, cell * (j + 2) - 2, cell * (i + 1) - 2)
            draw.rectangle(box, "#1f4e79" if j < k else "#e4e4e4")
    return to_png(canvas)


def to_png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def size(picture: bytes) -> tuple[int, int]:
    """Width and height of a PNG in pixels."""
    return Image.open(io.BytesIO(picture)).size


def figure(name: str, picture: bytes, text: str = "") -> str:
    """HTML: a picture below its name, with the name and the text as its alternative text."""
    (width, height), alt = size(picture), html.escape(f"{name}: {text}" if text else name)
    source = f"data:image/png;base64,{b64encode(picture).decode()}"
    look = f'width="{width}" height="{height}" decoding="sync" style="max-width: none"'
    return (
        f'<div style="line-height: 1.4; margin-right: 12px">{html.escape(name)}<br>'
        f'<img src="{source}" alt="{alt}" {look}></div>'
    )


def sheet(pictures: dict[str, bytes]) -> bytes:
    """PNGs one below the other as one PNG, each below its label."""
    parts = [Image.open(io.BytesIO(x)) for x in pictures.values()]
    line, font = 20, ImageFont.load_default(13)
    width = max(*(round(font.getlength(label)) for label in pictures), *(x.width for x in parts))
    canvas, y = Image.new("RGB", (width, sum(x.height + line + 4 for x in parts)), "white"), 0
    for label, part in zip(pictures, parts, strict=True):
        ImageDraw.Draw(canvas).text((0, y + 2), label, "black", font)
        canvas.paste(part, (0, y + line))
        y += line + part.height + 4
    return to_png(canvas)
