"""Controls in a notebook, and pictures that follow them: what the widgets are made of.

A `Board` asks a `Follower` for the frame of the newest setting. What has been made is kept, and while nothing is asked for
the neighbouring settings are made ahead, from the first touch on (so that running all cells is not slowed down). A stored
notebook, a PDF or GitHub, where nothing can be dragged, show a still picture instead.
"""

import html
import io
import threading
import time
from base64 import b64encode
from collections.abc import Callable

import ipywidgets
import torch
import torch.nn.functional as F
from IPython.display import display
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data import to_uint8

Frame = tuple[
    dict[str, bytes], str | list[str]
]  # pictures (PNG) by name, and what is said of them: of all, or of each
QUICK = 1.0  # seconds of its thread; what takes longer to make is not made ahead
HIDE = "<style>.jp-OutputArea-child:has(+ .jp-OutputArea-child .minflextok-board) {display: none}</style>"


class Follower:
    """Calls show(make(key)) for the newest key asked for, from a thread that lives only while there is something to do.

    However many keys are asked for while one is being made, the next to be made is the newest of them: a burst costs
    two. Then, as long as one takes less than QUICK, those that near(key) lists are made ahead. An exception is shown as
    its message.
    """

    def __init__(self, make: Callable, show: Callable, near: Callable = lambda key: ()):
        self.make, self.show, self.near = make, show, near
        self.kept, self.key, self.thread, self.took = {}, None, None, 0.0
        self.lock = threading.RLock()

    def get(self, key):
        """What belongs to this key, made here and now if need be."""
        if key not in self.kept:
            self.kept[key] = self.make(key)
        return self.kept[key]

    def ask(self, key) -> None:
        with self.lock:
            self.key = key
            if key in self.kept:
                self.show(self.kept[key])
            if (self.thread is None or not self.thread.is_alive()) and self._todo() is not None:
                self.thread = threading.Thread(target=self._work)
                self.thread.start()

    def wait(self) -> None:
        """Until all is made, that which is made ahead too."""
        if (thread := self.thread) is not None:
            thread.join()

    def _todo(self):
        ahead = self.near(self.key) if self.took < QUICK else ()
        return next((key for key in (self.key, *ahead) if key not in self.kept), None)

    def _work(self) -> None:
        while True:
            with self.lock:
                key = (
                    self._todo() if threading.main_thread().is_alive() else None
                )  # else Python is about to end
                if key is None:
                    self.thread = None
                    return
            start = time.thread_time()  # not the clock: a busy machine is no reason
            try:
                made = self.make(key)
            except Exception as e:  # in a thread it would go unseen
                made = {}, str(e) if isinstance(e, ValueError) else f"{type(e).__name__}: {e}"
            with self.lock:
                self.took = time.thread_time() - start
                self.kept[key] = made
                if key == self.key:
                    self.show(made)


class Board(ipywidgets.VBox):
    """Controls, and below them the pictures that make(their values) gives, one below the other or side by side.

    fixed: pictures that stay. still: labels and pictures for where nothing can be dragged.
    """

    def __init__(
        self,
        make: Callable[[tuple], Frame],
        controls: list,
        fixed: dict[str, bytes] | None = None,
        beside: bool = False,
    ):
        self.controls = controls
        self.reach = [
            list(
                range(c.min, c.max + 1)
                if isinstance(c, ipywidgets.IntSlider)
                else getattr(c, "options", ())
            )
            for c in controls
        ]
        self.follower = Follower(make, self._show, self._near)
        first, fixed = self.follower.get(self.setting), fixed or {}
        self.still: dict[str, bytes] = fixed | first[0]
        self.said = ipywidgets.HTML()
        self.pictures = {name: ipywidgets.HTML(figure(name, x)) for name, x in self.still.items()}
        self._show(first)
        for control in controls:
            control.style.description_width = "initial"
            control.layout.width = control.layout.width or "340px"
            control.observe(lambda change: self.follower.ask(self.setting), names="value")
        wrap = {"flex_flow": "row wrap"}
        rows = list(self.pictures.values())
        box = ipywidgets.HBox(rows, layout=wrap) if beside else ipywidgets.VBox(rows)
        super().__init__(
            [ipywidgets.HBox(controls, layout=wrap), box, self.said, ipywidgets.HTML(HIDE)]
        )
        self.add_class("minflextok-board")

    @property
    def setting(self) -> tuple:
        return tuple(c.value for c in self.controls)

    def _near(self, setting: tuple) -> list[tuple]:
        """The settings that differ in one control, nearest first."""
        found = []
        for i, values in enumerate(self.reach):
            at = values.index(setting[i]) if setting[i] in values else 0
            found += [
                (abs(j - at), (*setting[:i], v, *setting[i + 1 :])) for j, v in enumerate(values)
            ]
        return [near for _, near in sorted(found, key=lambda pair: pair[0])]

    def _show(self, frame: Frame) -> None:
        pictures, said = frame
        texts = [said] if isinstance(said, str) else said
        for name, picture in pictures.items():
            self.pictures[name].value = figure(name, picture, "; ".join(texts))
        width = (
            f"{size(next(iter(pictures.values())))[0] // len(texts)}px"
            if len(texts) > 1
            else "auto"
        )
        style = f"display: inline-block; vertical-align: top; line-height: 1.4; width: {width}; box-sizing: border-box"
        style += "; padding-right: 8px; font-size: 90%" if len(texts) > 1 else ""
        spans = "".join(f'<span style="{style}">{html.escape(text)}</span>' for text in texts)
        self.said.value = f'<div role="status">{spans}</div>'

    def _ipython_display_(self) -> None:
        """Two outputs: the still picture, which a style hides wherever the widget that follows comes to life; and that."""
        label, picture = f"pictures: {', '.join(self.still)}", b64encode(sheet(self.still)).decode()
        display(
            {"image/png": picture, "text/plain": label},
            metadata={"image/png": {"alt": label}},
            raw=True,
        )
        display(
            self._repr_mimebundle_()
            | {"text/plain": "(run this cell in JupyterLab for the sliders)"},
            raw=True,
        )


# ---- pictures --------------------------------------------------------------------------------------------------------


def png(images: Tensor, zoom: int, down: bool = False) -> bytes:
    """Images (B, 3, H, W) in [-1, 1] in a row (or `down`, in a column) as PNG, every pixel `zoom` pixels wide.

    After each image comes a white line, one of its pixels wide.
    """
    tiles = F.pad(to_uint8(images).cpu(), (0, 0, 0, 1) if down else (0, 1), value=255)
    row = torch.cat(list(tiles), dim=-2 if down else -1).permute(1, 2, 0).numpy()  # (H, B*(W+1), 3)
    picture = Image.fromarray(row)
    return to_png(
        picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    )


def to_png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def size(picture: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(picture)).size


def figure(name: str, picture: bytes, said: str = "") -> str:
    """HTML: a picture under its name, with both in words for those who do not see it."""
    (width, height), alt = size(picture), html.escape(f"{name}: {said}" if said else name)
    source = f"data:image/png;base64,{b64encode(picture).decode()}"
    look = f'width="{width}" height="{height}" decoding="sync" style="max-width: none"'
    return (
        f'<div style="line-height: 1.4; margin-right: 12px">{html.escape(name)}<br>'
        f'<img src="{source}" alt="{alt}" {look}></div>'
    )


def sheet(pictures: dict[str, bytes]) -> bytes:
    """PNGs one below the other, each under its label."""
    parts, line, font = (
        [Image.open(io.BytesIO(x)) for x in pictures.values()],
        20,
        ImageFont.load_default(13),
    )
    width = max(*(round(font.getlength(label)) for label in pictures), *(x.width for x in parts))
    canvas, y = Image.new("RGB", (width, sum(x.height + line + 4 for x in parts)), "white"), 0
    for label, part in zip(pictures, parts, strict=True):
        ImageDraw.Draw(canvas).text((0, y + 2), label, "black", font)
        canvas.paste(part, (0, y + line))
        y += line + part.height + 4
    return to_png(canvas)
