"""Outputs: which texts agree, which cells are stable, how figures are exported."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minflextok.course.outputs import caption, figures, mark_stable, same_text


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
