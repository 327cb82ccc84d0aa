"""The student notebooks are what their solutions make of them; every check tells right from wrong, and says why."""

import copy
import linecache

import nbformat
import pytest
import torch
from conftest import ROOT

from minflextok.course import exercises
from minflextok.course.notebooks import STUB, build, check, misconceptions, strip, student_version

FOLDER = ROOT / "notebooks"
SOURCES = sorted((FOLDER / "solutions").glob("*.ipynb"))
EXERCISES = exercises.names()


# ---- notebooks ---------------------------------------------------------------------------------------------------------


def toy() -> nbformat.NotebookNode:
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    cells = [
        text("# Toy"),
        code("import torch"),
        code(
            "def f(x):\n    y = 2 * x\n    # BEGIN SOLUTION\n    z = y + 1\n    return z\n    # END SOLUTION\n\nprint(f(1))"
        ),
        text("Because.", metadata={"tags": ["solution-only"]}),
    ]
    nb = nbformat.v4.new_notebook(cells=cells)
    for i, cell in enumerate(nb.cells):
        cell.id = f"c{i:02d}"
    return nb


def sources(nb):
    return [(cell.cell_type, cell.id, cell.source) for cell in nb.cells]


def test_the_student_sees_no_solution():
    source = toy()
    before = copy.deepcopy(source)
    nb = student_version(source)
    assert source == before
    assert [cell.id for cell in nb.cells] == ["c00", "c01", "c02"]
    assert nb.cells[2].source == f"def f(x):\n    y = 2 * x\n    {STUB}\n\nprint(f(1))"
    namespace = {}
    exec(nb.cells[2].source.replace("print", "str"), namespace)  # a stub is Python
    assert namespace["f"](1) is None


def test_links_of_a_source_are_moved_one_folder_up():
    nb = toy()
    nb.cells[0].source = "[a](../README.md#x) and [b](../../minflextok/fsq.py), `](../`"
    assert (
        student_version(nb)
        .cells[0]
        .source.startswith("[a](README.md#x) and [b](../minflextok/fsq.py)")
    )


def test_all_hints_can_be_listed():
    lines = misconceptions()
    assert [line for line in lines if line and not line.startswith("  - ")] == EXERCISES
    assert f"  - {exercises.find('flow.pair').misconceptions[0][1]}" in lines


@pytest.mark.parametrize("line", ["# BEGIN SOLUTION", "# END SOLUTION"])
def test_an_unpaired_mark_would_show_the_solution(line):
    nb = toy()
    nb.cells[2].source = nb.cells[2].source.replace(f"    {line}\n", "")
    with pytest.raises(ValueError, match="c02"):
        student_version(nb)


def test_build_keeps_outputs_of_unchanged_cells(tmp_path):
    source = toy()
    (tmp_path / "solutions").mkdir()
    nbformat.write(source, tmp_path / "solutions" / "01_toy.ipynb")
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "00_plain.ipynb")
    plain = (tmp_path / "00_plain.ipynb").read_bytes()
    [path] = build(tmp_path)
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells[1:]:
        cell.execution_count, cell.outputs = 7, [nbformat.v4.new_output("stream", text="seen")]
    nbformat.write(nb, path)
    source.cells[1].source = "import torch, math"
    nbformat.write(source, tmp_path / "solutions" / "01_toy.ipynb")
    build(tmp_path)
    nb = nbformat.read(path, as_version=4)
    assert nb.cells[1].outputs == [] and nb.cells[1].execution_count is None
    assert nb.cells[2].outputs[0].text == "seen" and nb.cells[2].execution_count == 7
    assert (tmp_path / "00_plain.ipynb").read_bytes() == plain

    before = path.read_bytes()
    written = strip(tmp_path, tmp_path / "student")
    assert [p.name for p in written] == [
        "00_plain.ipynb",
        "01_toy.ipynb",
    ] and path.read_bytes() == before
    text = written[1].read_text()
    assert "seen" not in text and "z = y + 1" not in text and "Because" not in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_student_notebook_is_what_build_makes(path):
    made, stored = (nbformat.read(p, as_version=4) for p in (path, FOLDER / path.name))
    assert sources(stored) == sources(student_version(made)), "run `make notebooks`"
    assert not any(cell.get("outputs") for cell in made.cells), (
        "outputs are stored in the student version alone"
    )
    assert [cell.id for cell in made.cells] == [f"c{i:02d}" for i in range(len(made.cells))]
    assert all(
        len(cell.source.splitlines()) <= 25 for cell in made.cells if cell.cell_type == "code"
    )


# ---- checks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXERCISES)
def test_check_accepts_the_slow_answer(name, capsys):
    assert check(name, exercises.find(name).solution)
    assert capsys.readouterr().out.startswith("passed")


@pytest.mark.parametrize("name", EXERCISES)
def test_check_names_the_misconception(name, capsys):
    misconceptions = exercises.find(name).misconceptions
    assert len(misconceptions) >= 2
    for wrong, hint in misconceptions:
        assert not check(name, wrong)
        out = capsys.readouterr().out
        assert out.startswith("not right yet") and f"Hint: {hint}" in out and "yours" in out


@pytest.mark.parametrize("name", EXERCISES)
def test_check_never_raises(name, capsys):
    def blank(*args): ...

    def tripped(*args):
        return ... + args[0]

    for stub in (blank, lambda *args: ..., tripped):
        assert not check(name, stub)
        assert capsys.readouterr().out.startswith("not solved yet")
    for broken in (
        lambda: 1,
        lambda *args: 1 / 0,
        lambda *args: "text",
        lambda *args: torch.zeros(3, 1, 4, 1, 5),
        3,
    ):
        assert not check(name, broken)
        assert capsys.readouterr().out.startswith("not right yet")


def test_an_answer_that_writes_into_its_input_spoils_nothing(capsys):
    assert not check("fsq.bound", lambda z, levels: z.zero_())
    assert "-9." in capsys.readouterr().out  # the input is shown as it was


def test_unknown_exercise_names_the_known_ones():
    with pytest.raises(ValueError, match="fsq.bound"):
        check("fsq.bond", lambda: None)


def answer(path, name, make):
    """The function that the cell with check("name", ...) defines, run after the notebook's first code cell alone."""
    nb = make(nbformat.read(path, as_version=4))
    code = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    [cell] = [source for source in code if f'check("{name}"' in source]
    linecache.cache["<cell>"] = (
        len(cell),
        None,
        cell.splitlines(keepends=True),
        "<cell>",
    )  # as IPython does
    namespace, found = {"__name__": "cell"}, []
    exec(code[0], namespace)
    namespace["check"] = lambda _, f: found.append(f)
    exec(compile(cell, "<cell>", "exec"), namespace)
    return found[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_solutions_pass_and_stubs_do_not(path, capsys):
    text = path.read_text()
    here = [name for name in EXERCISES if f'check(\\"{name}\\"' in text]
    assert 3 <= len(here) <= 5
    for name in here:
        assert check(name, answer(path, name, lambda nb: nb)), capsys.readouterr().out
        capsys.readouterr()
        assert not check(name, answer(path, name, student_version))
        assert capsys.readouterr().out.startswith("not solved yet")


def test_every_exercise_stands_in_one_notebook():
    texts = [path.read_text() for path in SOURCES]
    for name in EXERCISES:
        assert sum(f'check(\\"{name}\\"' in text for text in texts) == 1, name
