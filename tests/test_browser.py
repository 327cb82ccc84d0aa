"""The widgets in a real JupyterLab, in a real browser: run all, drag, press keys, look at the pictures that are shown.

Needs Playwright and a Chromium: pip install -e ".[browser]", and `playwright install chromium`, or your system's own.
Screenshots are left in outputs/browser/.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest
from conftest import ROOT

HOW = 'pip install -e ".[browser]", then `playwright install chromium` (or, on Debian: apt-get install chromium)'
api = pytest.importorskip("playwright.sync_api", reason=f"no Playwright: {HOW}")

NOTEBOOKS = ("00_quickstart",)  # those of the course that have widgets
SHOTS = ROOT / "outputs" / "browser"
SIX = """
import torch
from minflextok import FlexTok, Prior, PRESETS, PRIOR_PRESETS, widgets
from minflextok.data import load_dataset, to_float
images = to_float(load_dataset("cifar10-sample", "test").images[:6])
tok = FlexTok.from_pretrained("cifar10-tiny")
torch.manual_seed(0)
prior = Prior(PRIOR_PRESETS["cifar10-tiny"]).eval()  # untrained: any ids are as good to look at
shapes_tok, shapes_prior = FlexTok(PRESETS["shapes"]).eval(), Prior(PRIOR_PRESETS["shapes"]).eval()
for p in shapes_tok.parameters():
    p.data += 0.02 * torch.randn_like(p)
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
widgets.prompt_explorer(shapes_prior, shapes_tok, steps=4)
"""
HARMLESS: tuple[str, ...] = ()  # console errors of JupyterLab itself, by their exact text


def browser_path(p) -> str | None:
    """Playwright's own Chromium, or the system's; None where there is none."""
    own = p.chromium.executable_path
    return own if Path(own).exists() else next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab of its own over copies of the notebooks, with nothing of the user's settings."""
    home = tmp_path_factory.mktemp("lab")
    work = home / "notebooks"
    work.mkdir()
    for name in NOTEBOOKS:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", work)
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in SIX.split("---")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), work / "six.ipynb")
    quiet = home / "config" / "labconfig" / "page_config.json"  # no question about news from the network
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython",
               "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    env = os.environ | {k: str(home / v) for k, v in folders.items()} | {
        "FAST": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.port=0", "--ServerApp.ip=127.0.0.1",
               "--allow-root", f"--ServerApp.root_dir={work}"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        info = wait_for(lambda: next((home / "runtime").glob("jpserver-*.json"), None), 60, home / "log")
        about = json.loads(wait_for(info.read_text, 5))
        wait_for(lambda: answers(about["url"]), 60, home / "log")
        yield f"{about['url']}lab/tree/{{}}.ipynb?token={about['token']}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the kernels are the server's to end
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def answers(url: str) -> bool:
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
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def opened(lab, browser):
    """A function that opens a notebook, runs all its cells and gives the page; at the end the console must be clean."""
    errors, page = [], browser.new_page(viewport={"width": 1280, "height": 1000})
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))

    def open_and_run(name: str):
        page.goto(lab.format(name))
        cells = page.locator(".jp-Notebook .jp-CodeCell")
        cells.first.wait_for(timeout=60_000)
        page.get_by_text("Python 3 (ipykernel) | Idle").first.wait_for(timeout=60_000)
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
        page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
        return page

    yield open_and_run
    page.close()
    assert [e for e in errors if e not in HARMLESS] == []


def test_explore(opened):
    page = opened("six")
    time.sleep(25)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / "explore.png")
    print(page.locator(".minflextok-board").count(), page.locator(".jp-InputPrompt").all_inner_texts())
    print(page.locator(".jp-Notebook").first.evaluate("n => n.className"))
    print(page.locator(".minflextok-board").first.evaluate("n => n.outerHTML")[:6000])
