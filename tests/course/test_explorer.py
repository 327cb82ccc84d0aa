"""The explorer: its tiles are what the tokenizer decodes, and the page works in a browser.

The browser test needs Playwright and Chromium; the skip message names the commands.
"""

import json
import shutil
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, browser_path
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from minflextok import FlexTok
from minflextok.course import explorer
from minflextok.data import load_dataset, to_float, to_uint8
from minflextok.draws import seeded_noise

PAGE = ("index.html", "style.css", "app.js")
SMALL = replace(
    explorer.GALLERIES[0], num_images=3, noises=2, steps=2, conditions=("a red circle",)
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("explorer")
    for name in PAGE:
        shutil.copy(ROOT / "docs" / "explorer" / name, out)
    before = explorer.BRANCHES, explorer.SWAPS
    explorer.BRANCHES, explorer.SWAPS = 2, 2
    explorer.write_explorer(out, [SMALL])
    explorer.BRANCHES, explorer.SWAPS = before
    return out


def read(out):
    text = (out / "data.js").read_text()
    return json.loads(text.removeprefix("const EXPLORER = ").removesuffix(";\n"))


def tile(out, data, name, index):
    found = data["sets"][0]
    picture = pil_to_tensor(Image.open(out / f"{found['name']}-{name}.webp").convert("RGB"))
    row, column = divmod(index, found["sheets"][name]["columns"])
    size = found["size"]
    return picture[:, row * size : (row + 1) * size, column * size : (column + 1) * size]


def test_the_tiles_are_where_the_page_looks_for_them(page):
    data = read(page)
    found, K = data["sets"][0], 16
    tok = FlexTok.from_pretrained("shapes32")
    x = to_float(load_dataset("shapes", "test", 32).images[:3])
    ids = tok.encode(x)
    assert found["ids"] == ids.tolist() and len(found["labels"]) == 3
    noise = seeded_noise((2, 3, 32, 32), 0)

    def decoded(row, n):
        options = {"noise": noise[n : n + 1]}
        return to_uint8(tok.decode([row], SMALL.steps, SMALL.guidance, **options))[0].int()

    def close(name, index, expected):
        return (tile(page, data, name, index).int() - expected).abs().max() <= 1

    assert torch.equal(tile(page, data, "originals", 2), to_uint8(x)[2])
    assert close("decoded", (1 * 2 + 1) * K + 4, decoded(ids[1, :5], 1))  # image 1, noise 1, k = 5
    lengths = found["swap_lengths"]
    assert lengths == [0, 1, 2, 4, 8, 16]
    swapped = torch.cat([ids[1, :4], ids[0, 4:]])
    assert close("swaps", (1 * 2 + 0) * 6 + lengths.index(4), decoded(swapped, 0))
    assert close("swaps", (0 * 2 + 1) * 6, decoded(ids[1], 0))  # no token of A
    assert found["prefix_lengths"] == [0, 1, 2, 4, 8]
    first = tile(page, data, "branches", 0)
    assert all(torch.equal(tile(page, data, "branches", 2 * j), first) for j in range(5))
    assert not torch.equal(tile(page, data, "branches", 1), first)


def test_what_is_stored_is_small_and_complete():
    out = ROOT / "docs" / "explorer"
    found = read(out)
    files = {*PAGE, "data.js"}
    files |= {f"{s['name']}-{sheet}.webp" for s in found["sets"] for sheet in s["sheets"]}
    assert {p.name for p in out.iterdir()} == files, "run `make explorer`"
    assert sum(p.stat().st_size for p in out.iterdir()) < 6_000_000


def test_the_page_works_in_a_browser(page):
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: see test_browser.py")
    with api.sync_playwright() as p:
        if (path := browser_path(p)) is None:
            pytest.skip("no Chromium: see test_browser.py")
        browser = p.chromium.launch(executable_path=path)
        tab = browser.new_page(viewport={"width": 900, "height": 900})
        errors, asked = [], []
        tab.on("pageerror", lambda e: errors.append(str(e)))
        tab.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        tab.on("request", lambda r: asked.append(r.url))
        tab.goto((page / "index.html").as_uri())
        tab.wait_for_selector("body[data-ready]", timeout=60_000)

        def pixels():
            shown = tab.locator(".pair canvas")
            return [shown.nth(i).screenshot() for i in range(shown.count())]

        def press(key):
            started = time.perf_counter()
            tab.keyboard.press(key)
            return time.perf_counter() - started

        one = pixels()
        assert "1 token of 16: 2 bytes" in tab.inner_text("main")
        seconds = [press("ArrowRight") for _ in range(3)]
        assert "4 tokens of 16" in tab.inner_text("main") and pixels()[1] != one[1]
        assert min(seconds) < 0.15
        press("n")
        assert "decoded from 4 tokens" in tab.inner_text("main")
        tab.locator("#k").fill("15")
        assert "16 tokens of 16" in tab.inner_text("main")
        tab.locator(".thumbs button").nth(2).click()
        assert pixels()[0] != one[0]
        press("v")
        assert "first 16 tokens of A" in tab.inner_text("main")
        press("v")
        assert "the samples share" in tab.inner_text("main") or "all samples" in tab.inner_text(
            "main"
        )
        tab.set_viewport_size({"width": 360, "height": 700})
        assert (
            tab.evaluate("document.documentElement.scrollWidth") <= 360
        )  # nothing to scroll sideways
        shots = ROOT / "outputs" / "browser"
        shots.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=shots / "explorer.png", full_page=True)
        browser.close()
    assert not errors
    assert all(url.startswith("file:") or url.startswith("data:") for url in asked)
