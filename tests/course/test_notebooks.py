"""The notebooks are built from their solutions, and run from a fresh kernel in fast mode.

They are stored with the outputs of a full run. A full run of all notebooks takes too long for a
test. So `make notebooks` marks the cells that print the same text in a fast run (printed code,
shapes, results on tiny tensors), and the fast run in this file must reproduce that text. Texts that
depend on the amount of data or on a clock are not compared.
"""

import copy
import os
import re
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell

from minflextok.course import colab
from minflextok.course.check import STUB
from minflextok.course.colab import COMMAND, add_colab, is_added
from minflextok.course.notebooks import build, hide_predicted, strip, student_version
from minflextok.course.outputs import execute, printed, same_text
from minflextok.experiments import footprint

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


# ---- the student version -------------------------------------------------------------------------


def toy() -> nbformat.NotebookNode:
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    cells = [
        text("# Toy"),
        code("import torch"),
        code(
            "def f(x):\n    y = 2 * x\n    # BEGIN SOLUTION\n    z = y + 1\n    return z\n"
            "    # END SOLUTION\n\nprint(f(1))"
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


@pytest.mark.parametrize("line", ["# BEGIN SOLUTION", "# END SOLUTION"])
def test_an_unpaired_mark_would_show_the_solution(line):
    nb = toy()
    nb.cells[2].source = nb.cells[2].source.replace(f"    {line}\n", "")
    with pytest.raises(ValueError, match="c02"):
        student_version(nb)


def test_build_keeps_outputs_of_unchanged_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(colab, "REPOSITORY", "someone/minflextok")
    source = toy()
    (tmp_path / "solutions").mkdir()
    nbformat.write(source, tmp_path / "solutions" / "01_toy.ipynb")
    [path] = build(tmp_path)
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells[1:]:
        if cell.cell_type != "code":
            continue
        cell.execution_count, cell.outputs = 7, [nbformat.v4.new_output("stream", text="seen")]
    nbformat.write(nb, path)
    source.cells[1].source = "import torch, math"
    nbformat.write(source, tmp_path / "solutions" / "01_toy.ipynb")
    build(tmp_path)
    nb = nbformat.read(path, as_version=4)
    changed, kept = [cell for cell in nb.cells if cell.id in ("c01", "c02")]
    assert changed.outputs == [] and changed.execution_count is None
    assert kept.outputs[0].text == "seen" and kept.execution_count == 7

    nbformat.write(toy(), tmp_path / "00_plain.ipynb")  # without a source
    before = path.read_bytes()
    written = strip(tmp_path, tmp_path / "student")
    assert [p.name for p in written] == [
        "00_plain.ipynb",
        "01_toy.ipynb",
    ] and path.read_bytes() == before
    text = written[1].read_text()
    assert "seen" not in text and "z = y + 1" not in text and "Because" not in text
    assert "colab-install" in text and "colab-badge" not in text


def test_cells_for_colab_change_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(colab, "REPOSITORY", "someone/minflextok")
    nb = toy()
    for i, cell in enumerate(c for c in nb.cells if c.cell_type == "code"):
        result = nbformat.v4.new_output(
            "execute_result", {"text/plain": "3"}, execution_count=i + 1
        )
        cell.execution_count, cell.outputs = i + 1, [result]
    nbformat.write(nb, tmp_path / "12_plain.ipynb")
    assert build(tmp_path) == []
    path = tmp_path / "12_plain.ipynb"
    once = nbformat.read(path, as_version=4)
    title, badge, install, *rest = once.cells
    assert title == nb.cells[0] and "/notebooks/12_plain.ipynb)" in badge.source
    assert [cell.source for cell in rest] == [cell.source for cell in nb.cells[1:]]
    code = [install, *rest[:2]]
    assert [cell.execution_count for cell in code] == [1, 2, 3]
    assert [cell.outputs[0].execution_count for cell in code[1:]] == [2, 3]
    build(tmp_path)  # a second time
    assert nbformat.read(path, as_version=4) == once
    monkeypatch.setattr(colab, "REPOSITORY", "")
    build(tmp_path)
    assert sources(nbformat.read(path, as_version=4)) == sources(nb)


def test_the_student_version_has_its_own_badge():
    source = toy()
    add_colab(source, "notebooks/solutions/01_toy.ipynb", "someone/minflextok")
    assert "/blob/main/notebooks/solutions/01_toy.ipynb)" in source.cells[1].source
    assert "/blob/main/notebooks/01_toy.ipynb)" in student_version(source).cells[1].source


@pytest.mark.parametrize("path", [*NOTEBOOKS, *SOLUTIONS], ids=names)
def test_opens_in_colab(path):
    nb = nbformat.read(path, as_version=4)
    stored = copy.deepcopy(nb.cells)
    add_colab(nb, path.relative_to(ROOT).as_posix())
    assert [(c.id, c.source) for c in nb.cells] == [(c.id, c.source) for c in stored], (
        "run `python -m minflextok.course build`"
    )


@pytest.mark.parametrize("installed", [True, False])
def test_the_installation_is_for_colab_alone(installed, monkeypatch):
    shell = InteractiveShell()
    asked = []
    shell.register_magic_function(asked.append, magic_name="pip")
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert shell.run_cell(COMMAND).success
    address = "git+https://github.com/REPOSITORY"
    assert asked == (
        [] if installed else [f'install --quiet "minflextok[codec,probes] @ {address}"']
    )


def test_outputs_after_a_prediction_are_collapsed_and_no_others():
    text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    nb = nbformat.v4.new_notebook(cells=[text("**Predict:** what?"), code("f()")])
    hide_predicted(nb)
    assert nb.cells[1].metadata.tags == ["hide-output"]
    nb.cells[0].source = "No question."
    nb.cells += [text("**Predict:** what?"), code('check("fsq.bound", f);')]
    hide_predicted(nb)
    assert not any("jupyter" in c.metadata or c.metadata.get("tags") for c in nb.cells)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_student_notebook_is_what_build_makes(path):
    made, stored = (nbformat.read(p, as_version=4) for p in (path, path.parents[1] / path.name))
    assert sources(stored) == sources(student_version(made)), "run `make notebooks`"
    assert not any(cell.get("outputs") for cell in made.cells), (
        "outputs are stored in the student version alone"
    )
    own = [cell.id for cell in made.cells if not is_added(cell)]
    assert own == [f"c{i:02d}" for i in range(len(own))]
    assert all(
        len(cell.source.splitlines()) <= 25 for cell in made.cells if cell.cell_type == "code"
    )


# ---- running and stored outputs ------------------------------------------------------------------


# The solutions differ from the students' versions in the exercises alone; test_exercises.py runs
# these, and test_answers.py the answers that 06b reuses. So the solutions run as a whole in
# `make slow` only.
RUN = [*NOTEBOOKS, *(pytest.param(path, marks=pytest.mark.slow) for path in SOLUTIONS)]


@pytest.mark.parametrize("path", RUN, ids=names)
def test_runs_in_fast_mode(path, monkeypatch):
    old = torch.__version__.startswith("2.9.")
    if path.stem.startswith("13") and old and not footprint.works():
        pytest.skip("the planner wants a later version of torch, or a GPU")
    monkeypatch.setenv("FAST", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads of a busy machine wait for each other
    stored, nb = (nbformat.read(path, as_version=4) for _ in range(2))
    execute(nb, path.parent, timeout=180)
    assert any("image/png" in o.get("data", {}) for o in outputs(nb))
    result = "passed" if path in SOLUTIONS else "not solved yet"
    for cell, before in zip(nb.cells, stored.cells, strict=True):
        if cell.cell_type == "code" and re.search(r"^check\(", cell.source, re.MULTILINE):
            assert cell.outputs[0].text.startswith(result)
        if "stable" in cell.metadata.get("tags", []):
            assert same_text(printed(before), printed(cell)), (
                f"cell {cell.id} is stored with\n{printed(before)}\nbut prints\n{printed(cell)}\n"
                "run `make notebooks`"
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
        len(text) < 2_500_000
        and os.path.expanduser("~") + "/" not in text
        and str(ROOT) not in text
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_size_and_frame(path):
    nb = nbformat.read(path, as_version=4)
    text = [c.source for c in nb.cells if c.cell_type == "markdown"]
    assert 25 <= len(nb.cells) <= 70 and 1500 <= sum(len(source.split()) for source in text) <= 5000
    assert all(len(c.source.splitlines()) <= 25 for c in nb.cells if c.cell_type == "code")
    number = path.stem.split("_")[0]
    assert text[0].startswith(f"# {number} · ")
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
    numbers = [p.stem.split("_")[0] for p in NOTEBOOKS]
    assert [n for n in numbers if n.isdigit()] == [f"{i:02}" for i in range(15)]
    assert [n for n in numbers if not n.isdigit()] == ["05b", "06b", "10b"]
    table = (ROOT / "notebooks/README.md").read_text()
    assert all(f"]({p.name})" in table for p in NOTEBOOKS)


# ---- sections ------------------------------------------------------------------------------------


def sections(path):
    """The numbers N of the headings "## N." in a notebook, in their order."""
    return [int(n) for n in re.findall(r"^## (\d+)\. ", raw(path), re.MULTILINE)]


def missing_sections(path):
    """References "section N" and "notebook NN, section N" in a notebook to sections that do not
    exist. Numbers such as 4.3 are sections of a paper."""
    reference = r"(?:notebook\s+(\d\d\w?),\s+)?\bsections?\s+((?:(?:,| and| to)?\s*\d+(?!\.?\d))+)"
    for match in re.finditer(reference, prose(path), re.IGNORECASE):
        notebook, numbers = match.groups()
        found = [*path.parent.glob(f"{notebook}_*.ipynb")] if notebook else [path]
        known = [n for there in found for n in sections(there)]
        if not {int(n) for n in re.findall(r"\d+", numbers)} <= set(known):
            yield " ".join(match[0].split())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_sections_exist(path):
    numbers = sections(path)
    assert numbers == list(range(1, len(numbers) + 1))
    assert not list(missing_sections(path))


def test_missing_sections_are_seen(tmp_path):
    def write(name, text):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
        nbformat.write(nb, tmp_path / name)

    write("01_a.ipynb", "## 1. A\n\nSections 1 to 3, notebook 02, sections 1 and 2; section 4.3.")
    write("02_b.ipynb", "## 1. A\n\n## 2. B\n\nNotebook 01,\nsection 2, and section 2.")
    assert list(missing_sections(tmp_path / "01_a.ipynb")) == ["Sections 1 to 3"]
    assert list(missing_sections(tmp_path / "02_b.ipynb")) == ["Notebook 01, section 2"]


# ---- links ---------------------------------------------------------------------------------------


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
