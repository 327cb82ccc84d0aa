"""The base of the widgets: what is rendered, how often and when; what a stored notebook shows."""

import subprocess
import sys
import threading
from base64 import b64decode
from io import BytesIO

import nbformat
import numpy as np
from conftest import ROOT
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from minflextok.course import board
from minflextok.course.board import Renderer

# ---- the renderer --------------------------------------------------------------------------------


class Gate:
    """A slow `make`: each call is recorded, and waits for `open`."""

    def __init__(self):
        self.calls, self.entered, self.open = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, key):
        self.calls.append(key)
        self.entered.release()
        assert self.open.acquire(timeout=20)
        return f"frame {key}"


def test_a_burst_costs_two_and_ends_on_the_newest():
    gate, shown = Gate(), []
    renderer = Renderer(gate, shown.append)
    renderer.request(0)
    assert gate.entered.acquire(timeout=20)
    for key in range(1, 50):
        renderer.request(key)
    gate.open.release(2)
    renderer.wait()
    assert gate.calls == [0, 49]
    assert shown == ["frame 49"]  # that of 0 was outdated when it was ready


def test_a_cached_frame_is_shown_at_once_even_while_another_is_rendered():
    gate, shown = Gate(), []
    renderer = Renderer(gate, shown.append)
    gate.open.release()
    renderer.request("a")
    renderer.wait()
    renderer.request("b")
    assert gate.entered.acquire(timeout=20) and gate.entered.acquire(timeout=20)  # b has started
    renderer.request("a")
    assert shown == ["frame a", "frame a"]
    gate.open.release()
    renderer.wait()
    assert shown == ["frame a", "frame a"] and set(renderer.cache) == {"a", "b"}
    renderer.request("b")
    assert shown[-1] == "frame b" and gate.calls.count("b") == 1 and gate.calls.count("a") == 1


def test_neighbors_are_rendered_in_advance_but_never_before_a_requested_key():
    gate = Gate()
    renderer = Renderer(gate, lambda frame: None, lambda key: [key, key + 1, key - 1])
    renderer.request(10)
    gate.open.release()  # 10 is rendered
    assert gate.entered.acquire(timeout=20) and gate.entered.acquire(
        timeout=20
    )  # and 11 has started
    renderer.request(20)
    gate.open.release(4)
    renderer.wait()
    assert gate.calls == [10, 11, 20, 21, 19]


def test_slow_frames_are_not_rendered_in_advance(monkeypatch):
    monkeypatch.setattr(board, "QUICK", -1.0)  # every call is slow
    calls = []
    renderer = Renderer(calls.append, lambda frame: None, lambda key: [key + 1])
    renderer.request(1)
    renderer.wait()
    assert calls == [1]


def test_the_thread_ends_and_comes_back():
    shown = []
    renderer = Renderer(lambda key: key, shown.append)
    for key in range(5):
        renderer.request(key)
        renderer.wait()
        assert renderer.thread is None
    assert shown == [0, 1, 2, 3, 4]


def test_an_exception_is_shown_as_its_message_and_the_next_key_works():
    shown = []
    renderer = Renderer(lambda key: 1 // key, shown.append)
    renderer.request(0)
    renderer.wait()
    renderer.request(1)
    renderer.wait()
    assert shown[0][0] == {} and "ZeroDivisionError" in shown[0][1] and shown[1] == 1


def test_python_exits_while_a_frame_is_being_rendered():
    code = (
        "import time; from minflextok.course.board import Renderer\n"
        "r = Renderer(lambda key: time.sleep(0.3), print, lambda key: range(10**6))\n"
        "r.request(0)\nprint('end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("end")


# ---- stored notebooks ---------------------------------------------------------------------------


def test_a_stored_notebook_and_its_html_show_the_static_picture():
    code = (
        "import torch\nfrom minflextok import FlexTok, TokenizerConfig\n"
        "from minflextok.course import widgets\n"
        "c = TokenizerConfig(image_size=8, enc_dim=64, enc_depth=1, dec_dim=64, dec_depth=1,"
        " num_registers=4)\n"
        "tok = FlexTok(c).eval()\n"
        "widgets.budget_slider(tok, torch.rand(2, 3, 8, 8) * 2 - 1, steps=1)"
    )
    nb = new_notebook(cells=[new_code_cell(code)])
    NotebookClient(
        nb, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    still, live = nb.cells[0].outputs
    assert np.asarray(Image.open(BytesIO(b64decode(still["data"]["image/png"])))).std() > 10
    assert (
        "application/vnd.jupyter.widget-view+json" in live["data"]
        and "application/vnd.jupyter.widget-view+json" not in still["data"]
    )
    assert "4 of 4 tokens" in still["metadata"]["image/png"]["alt"]
    picture = still["data"]["image/png"].strip()
    for stored in (
        nb,
        nbformat.from_dict({**nb, "metadata": {}}),
    ):  # with the widget state and without
        page, _ = HTMLExporter().from_notebook_node(stored)
        assert picture in page
