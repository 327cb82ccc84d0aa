"""The course as a site: what it contains, and that dead links are found. `make slow` builds it."""

import importlib.util
import subprocess
import sys

import pytest
from conftest import ROOT


def load(name):
    """docs/book/`name`.py, which is not in the package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "book" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_contents_list_every_notebook_and_document():
    contents = load("conf").contents()
    parts = contents.split(":caption: ")[1:]
    assert [part.split("\n")[0] for part in parts][::3] == ["The course", "Solutions"]
    listed = [line for line in parts[0].split("\n") if line.endswith(".ipynb")]
    assert listed == [f"/notebooks/{p.name}" for p in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert [line[11:13] for line in listed] == sorted(line[11:13] for line in listed)
    for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("data/**/README.md")]:
        assert f"\n/{path.relative_to(ROOT).as_posix()}\n" in contents
    assert contents.count("/notebooks/solutions/") == len(
        list((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
    )


def test_texts_are_adapted_to_the_site():
    conf = load("conf")

    def adapted(docname, text):
        source = [text]
        conf.adapt(None, docname, source)
        return source[0]

    assert adapted("README", "[a](docs/x.html) [b](https://x.org/y.html) [c](#A-b)") == (
        "<a href='docs/x.html'>a</a> [b](https://x.org/y.html) [c](#a-b)"
    )
    assert adapted("notebooks/solutions/03", '"# 03 · FSQ"') == '"# Solutions · 03 · FSQ"'
    landing = adapted("notebooks/README", "# Title\n\nText.\n")
    assert landing.startswith("# Title\n\n```{note}") and landing.count("{toctree}") == 4


def test_dead_links_of_pages_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.html").write_text('<p id="here"><img src="../no.png"></p>')
    (tmp_path / "a.html").write_text(
        '<a href="sub/b.html#here">1</a> <a href="sub/b.html#gone">2</a> <a href="c.html">3</a>'
        '<a href="#">4</a> <a href="https://x.org/y">5</a> <a href="sub/b.html?q=1">6</a>'
    )
    dead = load("links").dead_links(tmp_path)
    assert dead == ["a.html: c.html", "a.html: sub/b.html#gone", "sub/b.html: ../no.png"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'no {module}: .venv/bin/pip install -e ".[book]"')
    site = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "trees"]
    where = ["-c", ROOT / "docs" / "book", ROOT, site]
    done = subprocess.run([*command, *where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load("links").dead_links(site) == []
    page = (site / "notebooks" / "05_rectified_flow.html").read_text()
    assert "<summary>Answer</summary>" in page and "Show the output" in page
    assert ".gif" in page
    for name, tables in {"00_quickstart": 1, "10_relatives": 3}.items():  # in an answer; in outputs
        assert (site / "notebooks" / f"{name}.html").read_text().count("<table") >= tables
    assert "widget-view" not in page and "%pip" not in page
    for path in site.rglob("*.html"):
        assert 'src="http' not in path.read_text(), path
