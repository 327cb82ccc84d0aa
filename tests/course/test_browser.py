"""The widgets in a browser: run all cells, drag sliders, press keys, compare pictures.

This needs Playwright and Chromium, which `make test` does not download; the skip message names the
commands. Screenshots are written to outputs/browser/.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from urllib.request import urlopen

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT, browser_path
from PIL import Image

from minflextok import FlexTok
from minflextok.course.pictures import png
from minflextok.data import load_dataset, to_float

HOW = (
    '.venv/bin/pip install -e ".[browser]", then .venv/bin/playwright install chromium '
    "(or your system's chromium)"
)
api = pytest.importorskip("playwright.sync_api", reason=f"no Playwright: {HOW}")

NOTEBOOKS = (
    "00_quickstart",
    "07_token_budget",
    "08_prior",
    "09_text",
)  # the notebooks with widgets
SHOTS = ROOT / "outputs" / "browser"
SIX = """
import torch
from minflextok import FlexTok, Prior, PRIOR_PRESETS
from minflextok.course import widgets
from minflextok.data import load_dataset, to_float
images = to_float(load_dataset("cifar10-sample", "test").images[:6])
tok = FlexTok.from_pretrained("cifar10-tiny")
torch.manual_seed(0)
prior = Prior(PRIOR_PRESETS["cifar10-tiny"]).eval()  # untrained: the ids do not matter here
---
widgets.budget_slider(tok, images, steps=4)
---
widgets.token_swap(tok, images[0], images[1], steps=4)
---
widgets.trajectory_scrubber(tok, images[3], steps=10)
---
widgets.nested_dropout_view(tok, images[3], steps=4)
---
widgets.prior_sampler(prior, tok, steps=4)
---
scenes = FlexTok.from_pretrained("shapes32")
widgets.prompt_explorer(Prior.from_pretrained("shapes32"), scenes, steps=4)
"""
SLOW = 90_000  # milliseconds; a limit for a busy machine
HARMLESS: tuple[str, ...] = ()  # console errors of JupyterLab itself, by their exact text


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab with copies of the notebooks and without the user's settings."""
    home = tmp_path_factory.mktemp("lab")
    work = home / "notebooks"
    work.mkdir()
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", work)
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in SIX.split("---")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), work / "six.ipynb")
    quiet = home / "config" / "labconfig" / "page_config.json"  # no prompt about news
    quiet.parent.mkdir(parents=True)
    quiet.write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    env = (
        os.environ
        | {k: str(home / v) for k, v in folders.items()}
        | {"FAST": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    )
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ServerApp.port=0",
        "--ServerApp.ip=127.0.0.1",
        "--allow-root",
        f"--ServerApp.root_dir={work}",
    ]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        info = wait_for(
            lambda: next((home / "runtime").glob("jpserver-*.json"), None), 60, home / "log"
        )
        about = json.loads(wait_for(info.read_text, 5))
        wait_for(lambda: is_up(about["url"]), 60, home / "log")
        yield f"{about['url']}lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={about['token']}"
    finally:
        server.terminate()  # and its kernels
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def is_up(url: str) -> bool:
    try:
        return urlopen(f"{url}api", timeout=5).status == 200
    except OSError:
        return False


def wait_for(found, seconds: float, log: Path | None = None):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s\n{log.read_text()[-3000:] if log else ''}")


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as p:
        path = browser_path(p)
        if path is None:
            pytest.skip(f"no Chromium: {HOW}")
        browser = p.chromium.launch(
            executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(lab, browser):
    """A function that opens a notebook, runs all cells and returns the page.

    At the end of the test the console must hold no errors.
    """
    errors, page = [], browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(SLOW)
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))

    def open_and_run(name: str):
        page.goto(lab.format(name))
        prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt")
        prompts.first.wait_for()
        page.get_by_text("Python 3 (ipykernel) | Idle").first.wait_for()
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
        page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
        page.locator(
            ".jp-InputPrompt", has_text="[*]"
        ).first.wait_for()  # the stored notebook already shows numbers
        api.expect(page.locator(".jp-InputPrompt", has_text="[*]")).to_have_count(
            0, timeout=4 * SLOW
        )
        assert (
            page.locator(
                "[data-mime-type='application/vnd.jupyter.stderr'],"
                " .jp-RenderedText[data-mime-type*='error']"
            ).count()
            == 0
        )
        return page

    yield open_and_run
    page.close()
    assert [e for e in errors if e not in HARMLESS] == []


# ---- actions of a reader -------------------------------------------------------------------------


def sources(board) -> list[str]:
    return board.locator("img").evaluate_all("images => images.map(i => i.src)")


def pictures(board) -> list[str]:
    """The sources of all pictures of a board; each must be drawn and have an alternative text."""
    assert all(
        board.locator("img").evaluate_all(
            "images => images.map(i => i.complete && i.naturalWidth > 0 && i.alt)"
        )
    )
    return sources(board)


def pixels(source: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(b64decode(source.split(",")[1]))), float)


def expect_text(board, text: str) -> None:
    api.expect(board.get_by_role("status")).to_contain_text(text, timeout=SLOW)


def handle(board, label: str):
    return board.locator(".widget-slider", has_text=label).locator(".noUi-handle")


def drag(page, board, label: str, to: float) -> None:
    """Drag over the whole slider and back to the fraction `to`, in many small moves."""
    handle(board, label).scroll_into_view_if_needed()
    knob = handle(board, label).bounding_box()
    box = board.locator(".widget-slider", has_text=label).locator(".noUi-base").bounding_box()
    page.mouse.move(knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2)
    page.mouse.down()
    for share in (0.0, 1.0, to):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2, steps=15)
    page.mouse.up()


def follows(knob, key: str) -> float:
    """Milliseconds in the browser from a key press to the first frame with a new picture."""
    knob.evaluate("""knob => {
        const board = knob.closest('.minflextok-board');
        const sources = () => [...board.querySelectorAll('img')].map(i => i.src).join();
        const old = sources();
        window.drawn = new Promise(done => knob.addEventListener('keydown', () => {
            const start = performance.now();
            const look = () => sources() !== old
                ? done(performance.now() - start) : requestAnimationFrame(look);
            look();
        }, {once: true, capture: true}));
    }""")
    knob.press(key)
    return knob.page.evaluate("window.drawn")


def shot(board, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    board.screenshot(path=SHOTS / f"{name}.png")


# ---- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_slider_of_a_notebook_moves_its_pictures(opened, name):
    page = opened(name)
    boards = page.locator(".minflextok-board")
    assert boards.count() > 0
    for n in range(boards.count()):
        board = boards.nth(n)
        board.scroll_into_view_if_needed()
        api.expect(board.locator("img").first).to_be_visible()
        for knob in board.locator(".noUi-handle").all():
            start = pictures(board)
            at_end = knob.get_attribute("aria-valuenow") == knob.get_attribute("aria-valuemax")
            there, back = ("ArrowLeft", "ArrowRight") if at_end else ("ArrowRight", "ArrowLeft")
            knob.press(there)
            wait_for(lambda: sources(board) != start, SLOW / 1000)
            knob.press(back)
            wait_for(lambda: sources(board) == start, SLOW / 1000)
        shot(board, f"{name}-{n}")


def test_the_six_widgets(opened):
    page = opened("six")
    boards = page.locator(".minflextok-board")
    assert boards.count() == 6
    budget, swap, path, nested, prior, prompts = boards.all()
    for board in boards.all():  # live widgets hide their static pictures
        output = board.locator("xpath=ancestor::*[contains(@class, 'jp-OutputArea-child')]")
        assert output.locator("xpath=preceding-sibling::*").is_hidden()

    budget.scroll_into_view_if_needed()
    original, most, residual = pictures(budget)
    drag(page, budget, "tokens", 0.0)
    expect_text(budget, "1 of 16 tokens")
    same, least, missing = pictures(budget)
    assert same == original and least != most and missing != residual
    assert (pixels(missing) - 127.5).std() > (
        pixels(residual) - 127.5
    ).std()  # fewer tokens, a larger residual
    tok = FlexTok.from_pretrained("cifar10-tiny")  # the same picture as from the package
    images = to_float(load_dataset("cifar10-sample", "test").images[:6])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    expected = png(tok.decode(tok.encode(images, 1), steps=4, noise=noise), 3)
    assert abs(pixels(least) - np.asarray(Image.open(BytesIO(expected)), float)).max() <= 2
    handle(budget, "tokens").press("End")
    expect_text(budget, "16 of 16 tokens")
    assert pictures(budget) == [original, most, residual]
    drag(page, budget, "tokens", 0.5)
    value = handle(budget, "tokens").get_attribute("aria-valuetext")
    expect_text(budget, f"{value} of 16 tokens")  # the last setting, however many were passed
    shot(budget, "budget_slider")
    handle(budget, "tokens").press("End")
    for k in range(15, 0, -1):  # decode every setting once; later they are cached
        handle(budget, "tokens").press("ArrowLeft")
        expect_text(budget, f"{k} of 16 tokens")
    took = sorted(
        follows(handle(budget, "tokens"), key) for key in ["ArrowRight"] * 8 + ["ArrowLeft"] * 8
    )
    print(f"key to picture: median {took[8]:.0f} ms, worst {took[-1]:.0f} ms")
    assert took[8] < 150

    handle(swap, "up to token").press("Home")
    expect_text(swap, "no token is swapped")
    _, own, swapped = pictures(swap)
    assert own == swapped
    drag(page, swap, "up to token", 1.0)
    expect_text(swap, "tokens 1 to 16")
    upper, lower = np.split(pixels(pictures(swap)[2]), 2)
    assert (np.concatenate([lower, upper]) == pixels(own)).all()
    handle(swap, "up to token").press("ArrowLeft")
    expect_text(swap, "tokens 1 to 15")
    shot(swap, "token_swap")

    drag(page, path, "step", 0.0)
    expect_text(path, "step 0 of 10: t = 1.00")
    noise = pictures(path)[1]
    handle(path, "step").press("End")
    expect_text(path, "step 10 of 10: t = 0.00")
    assert pictures(path)[1] == pictures(path)[2] != noise
    drag(page, path, "step", 0.7)
    expect_text(path, "step 7 of 10")
    shot(path, "trajectory_scrubber")

    _, mask, _ = pictures(nested)
    handle(nested, "draw").press("ArrowRight")
    expect_text(nested, "draw 2:")
    assert pictures(nested)[1] != mask
    nested.locator("select").select_option("uniform")
    drag(page, nested, "draw", 1.0)
    expect_text(nested, "draw 16:")
    shot(nested, "nested_dropout_view")

    (samples,) = pictures(prior)
    handle(prior, "shared ids").press("End")
    expect_text(prior, "16 of 16 ids shared")
    tiles = np.split(pixels(pictures(prior)[0]), 6, axis=1)
    assert all((tile == tiles[0]).all() for tile in tiles) and pictures(prior) != [samples]
    prior.locator("select").select_option("3")
    expect_text(prior, "3, temperature 0.8: 16 of 16 ids shared")
    drag(page, prior, "shared ids", 0.25)
    expect_text(prior, "3, temperature 0.8: 4 of 16 ids shared")
    tiles = np.split(pixels(pictures(prior)[0]), 6, axis=1)
    assert all((tile != tiles[0]).any() for tile in tiles[1:])
    drag(page, prior, "temperature", 0.0)
    expect_text(prior, "3, temperature 0.0: 4 of 16 ids shared")
    tiles = np.split(pixels(pictures(prior)[0]), 6, axis=1)
    assert all((tile == tiles[0]).all() for tile in tiles)  # the most likely ids, every time
    shot(prior, "prior_sampler")

    caption = prompts.locator("input[type=text]")
    before = pictures(prompts)
    caption.fill("a red hexagon")
    caption.press("Enter")
    expect_text(prompts, "cannot read the caption 'a red hexagon'")
    assert pictures(prompts) == before
    prompts.locator("select").select_option("a large blue square")
    expect_text(prompts, "✓ matches")
    assert caption.input_value() == "a large blue square" and pictures(prompts) != before
    handle(prompts, "tokens").press("Home")  # one token cannot encode the whole scene
    api.expect(prompts.locator("img")).not_to_have_attribute(
        "alt", f"samples: {'; '.join(['✓ matches'] * 6)}", timeout=SLOW
    )
    shot(prompts, "prompt_explorer")
