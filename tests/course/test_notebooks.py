"""Every notebook runs top to bottom from a fresh kernel (fast mode), and is stored with the outputs of a full run.

Are the stored outputs still what the code gives? Running all in full takes a quarter of an hour, so `make notebooks`
marks the cells whose text a fast run gives too (printed code, shapes, "same as the package", results on tiny tensors),
and the fast run here must give it again. What hangs on the amount of data or on a clock is not compared.
"""

import os
import re
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minflextok.course.outputs import caption, execute, figures, mark_stable, printed, same_text

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
TEXTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "notebooks").glob("*.md"),
    *ROOT.glob("data/**/*.md"),
    *NOTEBOOKS,
    *SOLUTIONS,
]


def outputs(nb):
    return [o for cell in nb.cells if cell.cell_type == "code" for o in cell.outputs]


def names(path):
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=names)
def test_runs_in_fast_mode(path, monkeypatch):
    monkeypatch.setenv("FAST", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads of a busy machine wait for each other
    stored, nb = (nbformat.read(path, as_version=4) for _ in range(2))
    execute(nb, path.parent, timeout=180)
    assert any("image/png" in o.get("data", {}) for o in outputs(nb))
    said = "passed" if path in SOLUTIONS else "not solved yet"
    for cell, before in zip(nb.cells, stored.cells, strict=True):
        if cell.cell_type == "code" and re.search(r"^check\(", cell.source, re.MULTILINE):
            assert cell.outputs[0].text.startswith(said)
        if "stable" in cell.metadata.get("tags", []):
            assert same_text(printed(before), printed(cell)), (
                f"cell {cell.id} is stored with\n{printed(before)}\nand now gives\n{printed(cell)}\nrun `make notebooks`"
            )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_is_stored_with_clean_outputs(path):
    nb = nbformat.read(path, as_version=4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), (
        "run `make notebooks`"
    )
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs(nb))
    assert any("image/png" in o.get("data", {}) for o in outputs(nb))
    for text in map(printed, code):
        assert not re.search(
            r"Traceback|\w*Warning\b|(?<![\w.:/])/(?:home|root|tmp|work|Users|var)/", text
        ), text
    text = Path(path).read_text()
    assert (
        len(text) < 1_500_000
        and os.path.expanduser("~") + "/" not in text
        and str(ROOT) not in text
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_size_and_frame(path):
    nb = nbformat.read(path, as_version=4)
    text = [c.source for c in nb.cells if c.cell_type == "markdown"]
    assert 25 <= len(nb.cells) <= 60 and 1500 <= sum(len(source.split()) for source in text) <= 3500
    assert all(len(c.source.splitlines()) <= 25 for c in nb.cells if c.cell_type == "code")
    assert text[0].startswith(f"# {path.stem[:2]} · ")
    assert (
        all(f"**{part}**" in text[0] for part in ("You will", "You need", "Time"))
        and "FAST=1" in text[0]
    )
    whole = "\n".join(text)
    assert "**Predict" in whole and "## Can you answer now?" in whole and "## Go further" in whole


def test_outputs_are_compared():
    cells = [c for path in NOTEBOOKS for c in nbformat.read(path, as_version=4).cells]
    assert sum("stable" in c.metadata.get("tags", []) for c in cells) > 50, "run `make notebooks`"


def test_the_course_is_complete():
    assert [p.stem[:2] for p in NOTEBOOKS] == [f"{i:02}" for i in range(13)]
    table = (ROOT / "notebooks/README.md").read_text()
    assert all(f"]({p.name})" in table for p in NOTEBOOKS)


# ---- links -------------------------------------------------------------------------------------------------------------


def prose(path):
    """The text of a .md or .ipynb, without code and formulas."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        text = "\n\n".join(
            c.source for c in nbformat.reads(text, as_version=4).cells if c.cell_type == "markdown"
        )
    return re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)


def anchors(path):
    """What GitHub calls the headings of a text."""
    headings = re.findall(
        r"^#+ +(.+?) *$", re.sub(r"```.*?```", "", raw(path), flags=re.DOTALL), re.MULTILINE
    )
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", h).lower() for h in headings]
    return {re.sub(r"[^\w\- ]", "", h).replace(" ", "-") for h in plain}


def raw(path):
    if path.suffix == ".md":
        return path.read_text()
    return "\n\n".join(
        c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
    )


def dead_links(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?://|mailto:|attachment:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or (anchor and anchor.lower() not in anchors(there)):
            yield target


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_dead_links(path):
    assert not list(dead_links(path)), (
        "links of solutions/NN_name.ipynb start at solutions/: ../README.md"
    )


def test_dead_links_are_seen(tmp_path):
    (tmp_path / "b.md").write_text("# A `b`, c\n")
    (tmp_path / "a.md").write_text(
        "[x](b.md) [y](c.md) $v[x](t)$ [z](b.md#a-b-c) [w](b.md#d) [v](https://x.org/y)\n```\n[n](no)\n```"
    )
    assert list(dead_links(tmp_path / "a.md")) == ["c.md", "b.md#d"]


# ---- outputs compared, figures taken out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("loss 1.2345 at step 3", "loss 1.2346 at step 3", True),
        ("loss 1.23 at step 3", "loss 1.23 at step 4", False),
        ("loss 1.23", "lost 1.23", False),
        ("1.23 2", "1.23", False),
        ("1.2e-07", "9.9e-06", True),
        ("0.5", "0.7", False),
        ("-0.50 dB", "0.50 dB", False),
        ("12.50 dB", "12.51 dB", True),
        ("1.50e+03", "1.52e+03", False),
        ("nan", "nan", True),
    ],
)
def test_same_text(a, b, same):
    assert same_text(a, b) == same_text(b, a) == same


def toy():
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    nb = new_notebook(
        cells=[
            new_markdown_cell("# Toy"),
            new_code_cell("import os\nFAST = os.environ.get('FAST')"),
            new_code_cell("print(FAST)"),
            new_code_cell("print(1 / 3)"),
            new_code_cell("print('took 3 s')"),
            new_code_cell(f"{draw}\nplt.plot([2, 1]);"),
            new_markdown_cell("**Bold**, 2 * 3.\n*Two\nlines* | cross. *No*"),
            new_code_cell(draw),
        ]
    )
    for i, cell in enumerate(nb.cells):
        cell.id = f"c{i:02}"
    return nb


def test_stable_cells_and_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("FAST", "1")
    nbformat.write(toy(), tmp_path / "07_toy.ipynb")
    written = figures(tmp_path, tmp_path / "figures")
    stems = ["07_toy_cell05_1", "07_toy_cell05_2", "07_toy_cell06"]
    assert [p.name for p in written] == [
        f"{s}.{kind}" for s in stems for kind in ("svg", "png")
    ] + ["index.md"]
    assert all("<svg" in p.read_text() for p in written if p.suffix == ".svg")
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written if p.suffix == ".png")
    rows = (tmp_path / "figures" / "index.md").read_text().splitlines()[2:]
    assert rows[1] == "| 07_toy_cell05_2 | 07_toy.ipynb | 5 | Two lines \\| cross. |" and rows[
        2
    ].endswith("| 6 |  |")

    stored = toy()
    for cell, text in zip(stored.cells[2:5], ("None", "0.3333333333", "took 3 s"), strict=True):
        cell.outputs = [new_output("stream", text=text + "\n")]
    fast = toy()
    for cell, text in zip(fast.cells[2:5], ("1", "0.3333333334", "took 3 s"), strict=True):
        cell.outputs = [new_output("stream", text=text + "\n")]
    assert mark_stable(stored, fast) == 1 and stored.cells[3].metadata.tags == ["stable"]
    fast.cells[3].outputs[0].text = "0.4"
    assert mark_stable(stored, fast) == 0 and stored.cells[3].metadata.tags == []


def test_a_caption_is_the_first_italics_after_the_figure():
    def after(*texts):
        return caption([new_code_cell("x"), *map(new_markdown_cell, texts)])

    assert (
        after("*Left: a.* Right *b*") == "Left: a."
        and after("**Bold** and 2 * 3 * 4") == ""
        and after() == ""
    )
    assert after("Text", "*later*") == ""
    assert (
        after("Text. *What to see:* a\nhill, 2.5 high. No more.")
        == "What to see: a hill, 2.5 high."
    )
