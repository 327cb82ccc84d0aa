"""The widgets without a browser: what they decode, show and print."""

import re
import time
from base64 import b64decode
from io import BytesIO

import ipywidgets
import numpy as np
import pytest
import torch
from conftest import changed, randomised
from PIL import Image

from minflextok import FlexTok, Prior, PriorConfig
from minflextok.course import prior_widgets, widgets
from minflextok.course.board import Board
from minflextok.course.pictures import png, sheet
from minflextok.data import load_dataset, shapes, to_float
from minflextok.flow import euler
from minflextok.presets import PRIOR_PRESETS

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


def shown(b: Board) -> dict[str, np.ndarray]:
    """The pictures that a board shows now, as pixels."""
    return {
        name: pixels(b64decode(re.search('base64,([^"]+)', w.value)[1]))
        for name, w in b.pictures.items()
    }


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)))


def alts(b: Board) -> list[str]:
    return [re.search('alt="([^"]*)"', w.value)[1] for w in b.pictures.values()]


def text_of(b: Board) -> str:
    return re.sub("<[^>]+>", "|", b.text.value)


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
def six(tok, images, prior) -> dict[str, Board]:
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


def test_every_control_changes_the_pictures_and_moving_it_back_restores_them(six):
    for name, b in six.items():
        for control in b.controls:
            before, text, was = shown(b), text_of(b), control.value
            control.value = other(control)
            b.renderer.wait()
            after = shown(b)
            assert text_of(b) != text or any((before[p] != x).any() for p, x in after.items()), (
                name,
                control.description,
            )
            control.value = was
            assert text_of(b) == text and all(
                (before[p] == x).all() for p, x in shown(b).items()
            ), (
                name,
                control.description,
            )
        assert b.renderer.thread is None


def test_every_control_has_a_label_and_every_picture_an_alternative_text(six):
    for b in six.values():
        assert every_control(b) and all(c.description for c in every_control(b))
        assert set(b.controls) <= set(every_control(b))
        assert all(alts(b)) and len(set(alts(b))) == len(b.pictures)
        assert pixels(sheet(b.still)).std() > 10


def test_budget_slider_shows_prefixes_and_residuals(tok, images):
    b = widgets.budget_slider(tok, images, steps=3, guidance=2.0, zoom=2, seed=4)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    (slider,) = b.controls
    for k in (2, 5):
        slider.value = k
        b.renderer.wait()
        x = tok.decode(tok.encode(images, k), steps=3, guidance=2.0, noise=noise)
        original, reconstruction, residual = shown(b).values()
        assert (reconstruction == pixels(png(x, 2))).all() and (
            original == pixels(png(images, 2))
        ).all()
        first = slice(0, 16)  # followed by a white line
        missing = 127.5 + (original[:, first].astype(float) - reconstruction[:, first]) / 2
        assert abs(residual[:, first] - missing).max() <= 1
        assert f"{k} of 6 tokens: {tok.config.num_bytes(k)} byte" in text_of(b) and alts(b)[
            1
        ].endswith(text_of(b).strip("|"))


def test_each_budget_is_decoded_once(tok, images, monkeypatch):
    calls, decode = [], FlexTok.decode
    monkeypatch.setattr(
        FlexTok,
        "decode",
        lambda self, ids, **k: calls.append(ids.shape[1]) or decode(self, ids, **k),
    )
    b = widgets.budget_slider(tok, images, steps=1)
    assert sorted(calls) == tok.config.budgets  # for the static picture; no thread is running
    assert b.renderer.thread is None
    for k in [1, 2, 3, 4, 5, 6] * 3:
        b.controls[0].value = k
    b.renderer.wait()
    assert sorted(calls) == [1, 2, 3, 4, 5, 6]


def test_token_swap_exchanges_the_tokens_between_the_sliders(tok, images):
    b = widgets.token_swap(tok, images[0], images[1], steps=2, guidance=2.0, zoom=1)
    ids = tok.encode(images[:2])
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    start, end = b.controls
    start.value, end.value = 2, 4
    b.renderer.wait()
    mixed = torch.stack([torch.cat([ids[i, :1], ids[1 - i, 1:4], ids[i, 4:]]) for i in (0, 1)])
    made = tok.decode(mixed, steps=2, guidance=2.0, noise=noise)
    assert (shown(b)["swapped"] == pixels(png(made, 1, down=True))).all()
    end.value = 0
    b.renderer.wait()
    assert (shown(b)["swapped"] == shown(b)["own tokens"]).all()
    assert "no token is swapped" in text_of(b)
    start.value, end.value = 1, 6
    b.renderer.wait()
    assert (shown(b)["swapped"] == np.roll(shown(b)["own tokens"], 9, axis=0)).all()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_trajectory_is_that_of_decode(tok, images, guidance):
    b = widgets.trajectory_scrubber(tok, images[0], tokens=3, steps=4, guidance=guidance, zoom=1)
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (step,) = b.controls
    seen = []
    for i in range(5):
        step.value = i
        b.renderer.wait()
        seen.append(list(shown(b).values())[1:])
    end = tok.decode(tok.encode(images[:1], 3), steps=4, guidance=guidance, noise=noise)
    assert (seen[0][0] == pixels(png(noise, 1))).all()
    assert (seen[4][0] == pixels(png(end, 1))).all() and (seen[4][1] == seen[4][0]).all()
    if guidance == 1:  # one Euler step from the noise ends at the first one-step estimate
        with torch.no_grad():
            one = euler(lambda x, t: tok.velocity(x, t, tok.encode(images[:1], 3)), noise, 1)
        assert (seen[0][1] == pixels(png(one, 1))).all()


def test_nested_dropout_view_shows_the_masks_and_decodes_of_its_text(tok, images):
    b = widgets.nested_dropout_view(tok, images[0], steps=1, zoom=1)
    mode_menu, draw = b.controls
    assert mode_menu.value == tok.config.keep_k_mode
    for mode in ("uniform", "pow2"):
        for i in (1, 9):
            mode_menu.value, draw.value = mode, i
            b.renderer.wait()
            k = int(re.search(r"keep_k = (\d+)", text_of(b))[1])
            mask = shown(b)["registers kept (dark) in 16 draws"]
            line = mask[12 * (i - 1) + 4, 12 + 4 :: 12].mean(-1)  # one pixel a register
            assert (line < 128).tolist() == [j < k for j in range(6)]
            assert (mask[4::12, 3].mean(-1) < 128).tolist() == [n == i - 1 for n in range(16)]
            noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
            x = tok.decode(tok.encode(images[:1], k), steps=1, noise=noise)
            assert (shown(b)["decoded from the kept registers"] == pixels(png(x, 1))).all()


def test_prior_sampler_shares_the_first_ids(prior, tok, monkeypatch):
    rows, decode = [], FlexTok.decode
    monkeypatch.setattr(
        FlexTok, "decode", lambda self, ids, **k: rows.append(ids) or decode(self, ids, **k)
    )
    b = widgets.prior_sampler(prior, tok, num=4, steps=1, zoom=1)
    b.renderer.near = lambda key: ()
    name, j, temperature = b.controls
    assert name.options == ("cat", "dog", "ship")
    j.value = 4  # not in the static picture
    b.renderer.wait()
    trunk = rows[-1][0].tolist()
    assert (
        all(row.tolist()[:4] == trunk[:4] for row in rows[-1])
        and len({tuple(r.tolist()) for r in rows[-1]}) == 4
    )
    assert str(trunk[:4]) in text_of(b)
    j.value = 6
    b.renderer.wait()
    image = shown(b)["samples"]
    assert all((image[:, 9 * i : 9 * i + 9] == image[:, :9]).all() for i in range(4))
    j.value, temperature.value = 0, 0.0
    b.renderer.wait()
    assert len({tuple(r.tolist()) for r in rows[-1]}) == 1  # the most likely ids, every time
    name.value = "ship"
    b.renderer.wait()
    assert text_of(b).strip("|").startswith("ship, temperature 0.0: 0 of 6")


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
    assert [x for x in text_of(b).split("|") if x] == [
        "✓ matches",
        "✗ no red circle, also a large blue square",
        "✓ matches",
    ]
    assert "✗ no red circle" in alts(b)[0] and "2 of 3 match" in " ".join(b.still)
    before = shown(b)["samples"]
    for text in ("a red hexagon", "", "<b>a red circle</b>", "a red circle and a blue square"):
        caption.value = text
        b.renderer.wait()
        assert (
            "cannot read the caption" in text_of(b)
            and re.search("colou?rs red", text_of(b))
            and "<b>" not in b.text.value
        )
        assert (shown(b)["samples"] == before).all()
    caption.value = "a blue square"
    b.renderer.wait()
    assert [x[0] for x in text_of(b).split("|") if x] == ["✗", "✓", "✗"]


def test_examples_are_valid_and_fill_the_caption(six):
    b = six["prompt_explorer"]
    example = b.children[0]
    example.value = prior_widgets.EXAMPLES[-1]
    assert b.controls[0].value == prior_widgets.EXAMPLES[-1]
    b.renderer.wait()
    assert "cannot" not in text_of(b) and all(
        shapes.parse_caption(text) for text in prior_widgets.EXAMPLES
    )


def test_wrong_arguments_are_errors_when_the_widget_is_created(tok, images, prior):
    scenes = randomised(changed(image_size=16))
    with pytest.raises(ValueError, match="use prompt_explorer"):
        widgets.prior_sampler(Prior(TEXT), tok)
    with pytest.raises(ValueError, match="use prior_sampler"):
        widgets.prompt_explorer(prior, scenes)
    with pytest.raises(ValueError, match="attach its VAE"):
        widgets.budget_slider(randomised(changed(in_channels=4)), torch.randn(1, 4, 8, 8))
    with pytest.raises(ValueError, match="steps=0"):
        widgets.trajectory_scrubber(tok, images[0], steps=0)
    with pytest.raises(ValueError, match="num_tokens=7"):
        widgets.trajectory_scrubber(tok, images[0], tokens=7)


def test_latency_after_warm_up():
    """Once the neighbors are rendered, a picture is shown within 150 ms (median)."""
    tok = FlexTok.from_pretrained("cifar10-tiny")
    b = widgets.budget_slider(
        tok, to_float(load_dataset("cifar10-sample", "test").images[:6]), steps=4
    )
    slider, took = b.controls[0], []
    slider.value = 1
    b.renderer.wait()
    for k in range(2, 17):
        start, before = time.perf_counter(), b.text.value
        slider.value = k
        assert b.text.value != before  # cached, so it is shown before the assignment returns
        took.append(time.perf_counter() - start)
    assert sorted(took)[len(took) // 2] < 0.15
