"""Widgets without a browser: what is decoded, how often and when; what is shown and said."""

import re
import subprocess
import sys
import threading
import time
from base64 import b64decode
from io import BytesIO

import ipywidgets
import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT, changed, randomised
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from PIL import Image

from minflextok import FlexTok, Prior, PriorConfig
from minflextok.course import board, widgets
from minflextok.course.board import Follower, sheet
from minflextok.data import load_dataset, shapes, to_float
from minflextok.flow import euler
from minflextok.presets import PRIOR_PRESETS

# ---- the follower ----------------------------------------------------------------------------------------------------


class Gate:
    """A slow `make`: each call waits to be let through, and all are noted."""

    def __init__(self):
        self.calls, self.entered, self.open = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, key):
        self.calls.append(key)
        self.entered.release()
        assert self.open.acquire(timeout=20)
        return f"frame {key}"


def test_a_burst_costs_two_and_ends_on_the_newest():
    gate, shown = Gate(), []
    follower = Follower(gate, shown.append)
    follower.ask(0)
    assert gate.entered.acquire(timeout=20)
    for key in range(1, 50):
        follower.ask(key)
    gate.open.release(2)
    follower.wait()
    assert gate.calls == [0, 49]
    assert shown == ["frame 49"]  # that of 0 came when it was no longer wanted


def test_what_is_kept_is_shown_at_once_even_while_another_is_made():
    gate, shown = Gate(), []
    follower = Follower(gate, shown.append)
    gate.open.release()
    follower.ask("a")
    follower.wait()
    follower.ask("b")
    assert gate.entered.acquire(timeout=20) and gate.entered.acquire(timeout=20)  # b is begun
    follower.ask("a")
    assert shown == ["frame a", "frame a"]
    gate.open.release()
    follower.wait()
    assert shown == ["frame a", "frame a"] and set(follower.kept) == {"a", "b"}
    follower.ask("b")
    assert shown[-1] == "frame b" and gate.calls.count("b") == 1 and gate.calls.count("a") == 1


def test_neighbours_are_made_ahead_but_never_before_what_is_asked_for():
    gate = Gate()
    follower = Follower(gate, lambda frame: None, lambda key: [key, key + 1, key - 1])
    follower.ask(10)
    gate.open.release()  # 10 is made
    assert gate.entered.acquire(timeout=20) and gate.entered.acquire(timeout=20)  # and 11 begun
    follower.ask(20)
    gate.open.release(4)
    follower.wait()
    assert gate.calls == [10, 11, 20, 21, 19]


def test_what_is_slow_is_not_made_ahead(monkeypatch):
    monkeypatch.setattr(board, "QUICK", 0.0)
    calls = []
    follower = Follower(calls.append, lambda frame: None, lambda key: [key + 1])
    follower.took = 1.0
    follower.ask(1)
    follower.wait()
    assert calls == [1]


def test_the_thread_ends_and_comes_back():
    shown = []
    follower = Follower(lambda key: key, shown.append)
    for key in range(5):
        follower.ask(key)
        follower.wait()
        assert follower.thread is None
    assert shown == [0, 1, 2, 3, 4]


def test_an_exception_is_shown_as_its_message_and_the_next_key_works():
    shown = []
    follower = Follower(lambda key: 1 // key, shown.append)
    follower.ask(0)
    follower.wait()
    follower.ask(1)
    follower.wait()
    assert shown[0][0] == {} and "ZeroDivisionError" in shown[0][1] and shown[1] == 1


def test_python_ends_while_something_is_being_made():
    code = (
        "import time; from minflextok.course.board import Follower\n"
        "f = Follower(lambda key: time.sleep(0.3), print, lambda key: range(10**6)); f.ask(0); print('end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("end")


# ---- the widgets -----------------------------------------------------------------------------------------------------

TEXT = PriorConfig(
    120,
    6,
    0,
    dim=32,
    depth=1,
    head_dim=16,
    text="words",
    text_dim=16,
    text_depth=1,
    words=PRIOR_PRESETS["shapes"].words,
)


def shown(b: board.Board) -> dict[str, np.ndarray]:
    """The pictures that a board shows now, as pixels."""
    return {
        name: pixels(b64decode(re.search('base64,([^"]+)', w.value)[1]))
        for name, w in b.pictures.items()
    }


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)))


def alts(b: board.Board) -> list[str]:
    return [re.search('alt="([^"]*)"', w.value)[1] for w in b.pictures.values()]


def said(b: board.Board) -> str:
    return re.sub("<[^>]+>", "|", b.said.value)


def every_control(b: ipywidgets.Widget) -> list:
    inside = [c for child in getattr(b, "children", ()) for c in every_control(child)]
    return inside + (
        [b] if isinstance(b, ipywidgets.ValueWidget) and not isinstance(b, ipywidgets.HTML) else []
    )


@pytest.fixture
def prior() -> Prior:
    torch.manual_seed(0)
    return Prior(
        PriorConfig(120, 6, 3, dim=32, depth=1, head_dim=16, class_names=("cat", "dog", "ship"))
    ).eval()


@pytest.fixture
def six(tok, images, prior) -> dict[str, board.Board]:
    torch.manual_seed(0)
    scenes = randomised(changed(image_size=16))
    return {
        "budget_slider": widgets.budget_slider(tok, images, steps=2),
        "token_swap": widgets.token_swap(tok, images[0], images[1], steps=2),
        "trajectory_scrubber": widgets.trajectory_scrubber(tok, images[0], steps=4),
        "nested_dropout_view": widgets.nested_dropout_view(tok, images[0], steps=2),
        "prior_sampler": widgets.prior_sampler(prior, tok, num=3, steps=2),
        "prompt_explorer": widgets.prompt_explorer(Prior(TEXT).eval(), scenes, num=3, steps=2),
    }


def other(control) -> object:
    """A value that the control does not have now."""
    if isinstance(control, ipywidgets.Text):
        return "a small green square"
    values = (
        range(control.min, control.max + 1)
        if isinstance(control, ipywidgets.IntSlider)
        else control.options
    )
    return next(v for v in reversed(values) if v != control.value)


def test_every_control_moves_what_is_shown_and_coming_back_shows_the_same(six):
    for name, b in six.items():
        for control in b.controls:
            before, text, was = shown(b), said(b), control.value
            control.value = other(control)
            b.follower.wait()
            after = shown(b)
            assert said(b) != text or any((before[p] != x).any() for p, x in after.items()), (
                name,
                control.description,
            )
            control.value = was
            assert said(b) == text and all((before[p] == x).all() for p, x in shown(b).items()), (
                name,
                control.description,
            )
        assert b.follower.thread is None


def test_every_control_has_a_label_and_every_picture_a_text(six):
    for b in six.values():
        assert every_control(b) and all(c.description for c in every_control(b))
        assert set(b.controls) <= set(every_control(b))
        assert all(alts(b)) and len(set(alts(b))) == len(b.pictures)
        assert pixels(sheet(b.still)).std() > 10


def test_budget_slider_shows_prefixes_and_residuals(tok, images):
    b = widgets.budget_slider(tok, images, steps=3, zoom=2, seed=4)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    (slider,) = b.controls
    for k in (2, 5):
        slider.value = k
        b.follower.wait()
        x = tok.decode(tok.encode(images, k), steps=3, noise=noise)
        original, reconstruction, residual = shown(b).values()
        assert (reconstruction == pixels(board.png(x, 2))).all() and (
            original == pixels(board.png(images, 2))
        ).all()
        first = slice(0, 16)  # then comes a white line
        missing = 127.5 + (original[:, first].astype(float) - reconstruction[:, first]) / 2
        assert abs(residual[:, first] - missing).max() <= 1
        assert f"{k} of 6 tokens: {tok.config.num_bytes(k)} byte" in said(b) and alts(b)[
            1
        ].endswith(said(b).strip("|"))


def test_each_budget_is_decoded_once(tok, images, monkeypatch):
    calls, decode = [], FlexTok.decode
    monkeypatch.setattr(
        FlexTok,
        "decode",
        lambda self, ids, **k: calls.append(ids.shape[1]) or decode(self, ids, **k),
    )
    b = widgets.budget_slider(tok, images, steps=1)
    assert sorted(calls) == tok.config.budgets  # for the still picture; nothing runs on
    assert b.follower.thread is None
    for k in [1, 2, 3, 4, 5, 6] * 3:
        b.controls[0].value = k
    b.follower.wait()
    assert sorted(calls) == [1, 2, 3, 4, 5, 6]


def test_token_swap_exchanges_the_tokens_between_the_sliders(tok, images):
    b = widgets.token_swap(tok, images[0], images[1], steps=2, zoom=1)
    ids = tok.encode(images[:2])
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    start, end = b.controls
    start.value, end.value = 2, 4
    b.follower.wait()
    mixed = torch.stack([torch.cat([ids[i, :1], ids[1 - i, 1:4], ids[i, 4:]]) for i in (0, 1)])
    assert (
        shown(b)["swapped"]
        == pixels(board.png(tok.decode(mixed, steps=2, noise=noise), 1, down=True))
    ).all()
    end.value = 0
    b.follower.wait()
    assert (shown(b)["swapped"] == shown(b)["own tokens"]).all() and "no token is swapped" in said(
        b
    )
    start.value, end.value = 1, 6
    b.follower.wait()
    assert (shown(b)["swapped"] == np.roll(shown(b)["own tokens"], 9, axis=0)).all()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_trajectory_is_the_sampler_s(tok, images, guidance):
    b = widgets.trajectory_scrubber(tok, images[0], tokens=3, steps=4, guidance=guidance, zoom=1)
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (step,) = b.controls
    seen = []
    for i in range(5):
        step.value = i
        b.follower.wait()
        seen.append(list(shown(b).values())[1:])
    end = tok.decode(tok.encode(images[:1], 3), steps=4, guidance=guidance, noise=noise)
    assert (seen[0][0] == pixels(board.png(noise, 1))).all()
    assert (seen[4][0] == pixels(board.png(end, 1))).all() and (seen[4][1] == seen[4][0]).all()
    if guidance == 1:  # one step of Euler from the noise goes all the way along the first velocity
        with torch.no_grad():
            one = euler(lambda x, t: tok.velocity(x, t, tok.encode(images[:1], 3)), noise, 1)
        assert (seen[0][1] == pixels(board.png(one, 1))).all()


def test_nested_dropout_view_draws_what_it_says(tok, images):
    b = widgets.nested_dropout_view(tok, images[0], steps=1, zoom=1)
    way, draw = b.controls
    assert way.value == tok.config.keep_k_mode
    for mode in ("uniform", "pow2"):
        for i in (1, 9):
            way.value, draw.value = mode, i
            b.follower.wait()
            k = int(re.search(r"keep_k = (\d+)", said(b))[1])
            mask = shown(b)["registers kept (dark) in 16 draws"]
            line = mask[12 * (i - 1) + 4, 12 + 4 :: 12].mean(-1)  # one pixel a register
            assert (line < 128).tolist() == [j < k for j in range(6)]
            assert (mask[4::12, 3].mean(-1) < 128).tolist() == [n == i - 1 for n in range(16)]
            noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
            x = tok.decode(tok.encode(images[:1], k), steps=1, noise=noise)
            assert (shown(b)["what the kept ones decode to"] == pixels(board.png(x, 1))).all()


def test_prior_sampler_shares_the_first_ids(prior, tok, monkeypatch):
    rows, decode = [], FlexTok.decode
    monkeypatch.setattr(
        FlexTok, "decode", lambda self, ids, **k: rows.append(ids) or decode(self, ids, **k)
    )
    b = widgets.prior_sampler(prior, tok, num=4, steps=1, zoom=1)
    b.follower.near = lambda key: ()
    name, j, temperature = b.controls
    assert name.options == ("cat", "dog", "ship")
    j.value = 4  # not in the still picture
    b.follower.wait()
    trunk = rows[-1][0].tolist()
    assert (
        all(row.tolist()[:4] == trunk[:4] for row in rows[-1])
        and len({tuple(r.tolist()) for r in rows[-1]}) == 4
    )
    assert str(trunk[:4]) in said(b)
    j.value = 6
    b.follower.wait()
    image = shown(b)["samples"]
    assert all((image[:, 9 * i : 9 * i + 9] == image[:, :9]).all() for i in range(4))
    j.value, temperature.value = 0, 0.0
    b.follower.wait()
    assert len({tuple(r.tolist()) for r in rows[-1]}) == 1  # the likeliest ids, every time
    name.value = "ship"
    b.follower.wait()
    assert said(b).strip("|").startswith("ship, temperature 0.0: 0 of 6")


def test_prompt_explorer_gives_the_verdicts_of_check(monkeypatch):
    scenes = randomised(changed(image_size=16))
    right = to_float(
        torch.from_numpy(shapes.render([shapes.Thing("circle", "red", "large", 0.5, 0.5)]))
    )
    wrong = to_float(
        torch.from_numpy(shapes.render([shapes.Thing("square", "blue", "large", 0.5, 0.5)]))
    )
    monkeypatch.setattr(
        FlexTok, "decode", lambda self, ids, **k: torch.stack([right, wrong, right][: len(ids)])
    )
    b = widgets.prompt_explorer(Prior(TEXT).eval(), scenes, num=3)
    caption, tokens = b.controls
    assert [x for x in said(b).split("|") if x] == [
        "✓ as told",
        "✗ no red circle, also a large blue square",
        "✓ as told",
    ]
    assert "✗ no red circle" in alts(b)[0] and "2 of 3 as told" in " ".join(b.still)
    before = shown(b)["samples"]
    for text in ("a red hexagon", "", "<b>a red circle</b>", "a red circle and a blue square"):
        caption.value = text
        b.follower.wait()
        assert (
            "cannot read the caption" in said(b)
            and "colours red" in said(b)
            and "<b>" not in b.said.value
        )
        assert (shown(b)["samples"] == before).all()
    caption.value = "a blue square"
    b.follower.wait()
    assert [x[0] for x in said(b).split("|") if x] == ["✗", "✓", "✗"]


def test_examples_can_be_read_and_fill_the_caption(six):
    b = six["prompt_explorer"]
    example = b.children[0]
    example.value = widgets.EXAMPLES[-1]
    assert b.controls[0].value == widgets.EXAMPLES[-1]
    b.follower.wait()
    assert "cannot" not in said(b) and all(shapes.parse_caption(text) for text in widgets.EXAMPLES)


def test_what_does_not_fit_is_said_at_once(tok, images, prior):
    scenes = randomised(changed(image_size=16))
    with pytest.raises(ValueError, match="see prompt_explorer"):
        widgets.prior_sampler(Prior(TEXT), tok)
    with pytest.raises(ValueError, match="see prior_sampler"):
        widgets.prompt_explorer(prior, scenes)
    with pytest.raises(ValueError, match="attach its VAE"):
        widgets.budget_slider(randomised(changed(in_channels=4)), torch.randn(1, 4, 8, 8))
    with pytest.raises(ValueError, match="steps=0"):
        widgets.trajectory_scrubber(tok, images[0], steps=0)
    with pytest.raises(ValueError, match="num_tokens=7"):
        widgets.trajectory_scrubber(tok, images[0], tokens=7)


def test_latency_after_warm_up():
    """The picture follows within 150 ms once the neighbours are made; a median, for a machine that does other things."""
    tok = FlexTok.from_pretrained("cifar10-tiny")
    b = widgets.budget_slider(
        tok, to_float(load_dataset("cifar10-sample", "test").images[:6]), steps=4
    )
    slider, took = b.controls[0], []
    slider.value = 1
    b.follower.wait()
    for k in range(2, 17):
        start, before = time.perf_counter(), b.said.value
        slider.value = k
        assert (
            b.said.value != before
        )  # shown before the setting returned: nothing was left to wait for
        took.append(time.perf_counter() - start)
    assert sorted(took)[len(took) // 2] < 0.15


# ---- where nothing can be dragged ------------------------------------------------------------------------------------


def test_stored_notebook_and_html_show_the_still_picture():
    code = (
        "import torch; from minflextok import FlexTok, TokenizerConfig; from minflextok.course import widgets\n"
        "tok = FlexTok(TokenizerConfig(image_size=8, enc_dim=64, enc_depth=1, dec_dim=64, dec_depth=1, num_registers=4)).eval()\n"
        "widgets.budget_slider(tok, torch.rand(2, 3, 8, 8) * 2 - 1, steps=1)"
    )
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(
        nb, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    still, live = nb.cells[0].outputs
    assert pixels(b64decode(still["data"]["image/png"])).std() > 10
    assert (
        "application/vnd.jupyter.widget-view+json" in live["data"]
        and "application/vnd.jupyter.widget-view+json" not in still["data"]
    )
    assert "4 of 4 tokens" in still["metadata"]["image/png"]["alt"]
    picture = still["data"]["image/png"].strip()
    for stored in (
        nb,
        nbformat.from_dict({**nb, "metadata": {}}),
    ):  # with the state of the widgets and without
        page, _ = HTMLExporter().from_notebook_node(stored)
        assert picture in page
