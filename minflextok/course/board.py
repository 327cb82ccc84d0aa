"""The base of the widgets: controls in a notebook, and pictures that are updated when they move.

A `Board` asks a `Renderer` for the pictures of its current setting. The renderer works in a thread,
caches its results and, when idle, renders neighboring settings in advance (only after the first
interaction, so that "run all cells" is not slowed down). Where widgets are not live (a stored
notebook, a PDF, GitHub), a static picture is shown instead.
"""

import html
import threading
import time
from base64 import b64encode
from collections.abc import Callable

import ipywidgets
from IPython.display import display

from .pictures import figure, sheet, size

# pictures (PNG) by name, and a text: one for all pictures, or one for each image of the first
Frame = tuple[dict[str, bytes], str | list[str]]
QUICK = 1.0  # seconds of thread time; results that take longer are not rendered in advance
HIDE_STATIC = (
    "<style>.jp-OutputArea-child:has(+ .jp-OutputArea-child .minflextok-board) {display: none}"
    "</style>"
)


class Renderer:
    """Calls show(make(key)) for the latest requested key, from a background thread.

    If many keys are requested during one call of `make`, only the latest of them is rendered next:
    a burst of requests costs two calls. The keys in near(key) are then rendered in advance, as long
    as one call takes less than QUICK. If `make` raises an exception, its message is shown.
    The thread exists only while there is work.
    """

    def __init__(self, make: Callable, show: Callable, near: Callable = lambda key: ()):
        self.make, self.show, self.near = make, show, near
        self.cache, self.key, self.seconds = {}, None, 0.0
        self.thread: threading.Thread | None = None
        self.lock = threading.RLock()

    def get(self, key):
        """The result for this key; rendered in the calling thread if it is not cached."""
        if key not in self.cache:
            self.cache[key] = self.make(key)
        return self.cache[key]

    def request(self, key) -> None:
        """Show the result for this key: now if it is cached, else when the thread has made it."""
        with self.lock:
            self.key = key
            if key in self.cache:
                self.show(self.cache[key])
            idle = self.thread is None or not self.thread.is_alive()
            if idle and self._next_key() is not None:
                self.thread = threading.Thread(target=self._run)
                self.thread.start()

    def wait(self) -> None:
        """Block until all results are made, those in advance included."""
        if (thread := self.thread) is not None:
            thread.join()

    def _next_key(self):
        """The first key that is not cached: the requested one, then its neighbors."""
        ahead = self.near(self.key) if self.seconds < QUICK else ()
        return next((key for key in (self.key, *ahead) if key not in self.cache), None)

    def _run(self) -> None:
        while True:
            with self.lock:
                running = threading.main_thread().is_alive()  # False while Python shuts down
                key = self._next_key() if running else None
                if key is None:
                    self.thread = None
                    return
            start = time.thread_time()  # of this thread: the load of the machine does not count
            try:
                made = self.make(key)
            except Exception as e:  # an exception in a thread would not be seen
                made = {}, str(e) if isinstance(e, ValueError) else f"{type(e).__name__}: {e}"
            with self.lock:
                self.seconds = time.thread_time() - start
                self.cache[key] = made
                if key == self.key:
                    self.show(made)


class Board(ipywidgets.VBox):
    """Controls, and below them the pictures of make(their values).

    make: a tuple with the value of each control -> Frame. fixed: pictures that do not change.
    beside: pictures side by side instead of one below the other. `still` holds the pictures of the
    static version, by label; the widgets replace it by pictures of several settings.
    """

    def __init__(
        self,
        make: Callable[[tuple], Frame],
        controls: list,
        fixed: dict[str, bytes] | None = None,
        beside: bool = False,
    ):
        self.controls = controls
        self.choices = [choices(control) for control in controls]  # what is rendered in advance
        self.renderer = Renderer(make, self._show, self.neighbors)
        first = self.renderer.get(self.setting)
        self.still: dict[str, bytes] = (fixed or {}) | first[0]
        self.text = ipywidgets.HTML()
        self.pictures = {name: ipywidgets.HTML(figure(name, x)) for name, x in self.still.items()}
        self._show(first)
        for control in controls:
            control.style.description_width = "initial"
            control.layout.width = control.layout.width or "340px"
            control.observe(lambda change: self.renderer.request(self.setting), names="value")
        wrap = {"flex_flow": "row wrap"}
        rows = list(self.pictures.values())
        box = ipywidgets.HBox(rows, layout=wrap) if beside else ipywidgets.VBox(rows)
        top = ipywidgets.HBox(controls, layout=wrap)
        super().__init__([top, box, self.text, ipywidgets.HTML(HIDE_STATIC)])
        self.add_class("minflextok-board")

    @property
    def setting(self) -> tuple:
        """The current value of each control."""
        return tuple(c.value for c in self.controls)

    def neighbors(self, setting: tuple) -> list[tuple]:
        """The settings that differ in one control only, nearest first."""
        found = []
        for i, values in enumerate(self.choices):
            at = values.index(setting[i]) if setting[i] in values else 0
            for j, value in enumerate(values):
                found.append((abs(j - at), (*setting[:i], value, *setting[i + 1 :])))
        return [near for _, near in sorted(found, key=lambda pair: pair[0])]

    def _show(self, frame: Frame) -> None:
        pictures, text = frame
        texts = [text] if isinstance(text, str) else text
        for name, picture in pictures.items():
            self.pictures[name].value = figure(name, picture, "; ".join(texts))
        style, row = "display: inline-block; vertical-align: top; line-height: 1.4", ""
        if len(texts) > 1:  # one column of text below each image, also where the row is cut off
            width = size(next(iter(pictures.values())))[0] // len(texts)
            row = f' style="width: {width * len(texts)}px"'
            style += f"; width: {width}px; box-sizing: border-box; padding-right: 8px"
            style += "; font-size: 90%"
        spans = "".join(f'<span style="{style}">{html.escape(x)}</span>' for x in texts)
        self.text.value = f'<div role="status"{row}>{spans}</div>'

    def _ipython_display_(self) -> None:
        """Two outputs: the static picture, and the widget; when live, it hides the picture."""
        label, picture = f"pictures: {', '.join(self.still)}", b64encode(sheet(self.still)).decode()
        display(
            {"image/png": picture, "text/plain": label},
            metadata={"image/png": {"alt": label}},
            raw=True,
        )
        live = "(run this cell in JupyterLab for the sliders)"
        display(self._repr_mimebundle_() | {"text/plain": live}, raw=True)


def slider(description: str, value: int, low: int, high: int) -> ipywidgets.IntSlider:
    """A slider over the integers from low to high."""
    return ipywidgets.IntSlider(value, low, high, description=description, continuous_update=True)


def choices(control: ipywidgets.ValueWidget) -> list:
    """All values of a slider or a menu; none for other controls."""
    if isinstance(control, ipywidgets.IntSlider):
        return list(range(control.min, control.max + 1))
    return list(getattr(control, "options", ()))
