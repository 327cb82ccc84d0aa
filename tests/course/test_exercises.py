"""Every exercise: the check accepts the solutions and gives the hints of known errors."""

import linecache

import nbformat
import pytest
import torch
from conftest import ROOT

from minflextok.course import check, exercises
from minflextok.course.colab import is_added
from minflextok.course.notebooks import student_version

SOURCES = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
EXERCISES = exercises.names()


@pytest.mark.parametrize("name", EXERCISES)
def test_check_accepts_the_reference(name, capsys):
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


def test_all_hints_can_be_listed():
    lines = exercises.misconceptions()
    assert [line for line in lines if line and not line.startswith("  - ")] == EXERCISES
    assert f"  - {exercises.find('flow.pair').misconceptions[0][1]}" in lines


def answer(path, name, make):
    """The function defined in the cell with check("name", ...), run after the first code cell."""
    nb = make(nbformat.read(path, as_version=4))
    code = [cell.source for cell in nb.cells if cell.cell_type == "code" and not is_added(cell)]
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
    assert 3 <= len(here) <= 6
    for name in here:
        assert check(name, answer(path, name, lambda nb: nb)), capsys.readouterr().out
        capsys.readouterr()
        assert not check(name, answer(path, name, student_version))
        assert capsys.readouterr().out.startswith("not solved yet")


def test_every_exercise_is_in_one_notebook():
    texts = [path.read_text() for path in SOURCES]
    for name in EXERCISES:
        assert sum(f'check(\\"{name}\\"' in text for text in texts) == 1, name
