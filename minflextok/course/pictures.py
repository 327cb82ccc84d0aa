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
    """PNGs as one PNG, each below its label: one below the other, more than four narrow ones in
    two columns, read row by row."""
    parts = [Image.open(io.BytesIO(x)) for x in pictures.values()]
    line, gap, font = 24, 12, ImageFont.load_default(13)
    width = max(*(round(font.getlength(label)) for label in pictures), *(x.width for x in parts))
    columns = 2 if len(parts) > 4 and width <= 420 else 1
    rows = [list(pictures)[i : i + columns] for i in range(0, len(parts), columns)]
    named = dict(zip(pictures, parts, strict=True))
    heights = [line + max(named[label].height for label in row) + gap for row in rows]
    canvas = Image.new("RGB", (columns * (width + 2 * gap) - 2 * gap, sum(heights)), "white")
    for i, row in enumerate(rows):
        for j, label in enumerate(row):
            x, y = j * (width + 2 * gap), sum(heights[:i])
            ImageDraw.Draw(canvas).text((x, y + 3), label, "black", font)
            canvas.paste(named[label], (x, y + line))
    return to_png(canvas)
