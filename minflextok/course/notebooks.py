"""The student notebooks, built from their solutions.

notebooks/solutions/NN_name.ipynb is the only source of a notebook with exercises. In the student
version the lines between `# BEGIN SOLUTION` and `# END SOLUTION` are replaced by a stub, and cells
tagged `solution-only` are removed.
"""

import copy
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .check import STUB
from .colab import BADGE, add_colab, number

SOLUTION = re.compile(
    r"^([ \t]*)# BEGIN SOLUTION\n.*?^[ \t]*# END SOLUTION$", re.MULTILINE | re.DOTALL
)
EXERCISE = re.compile(r"^check\(", re.MULTILINE)


def student_version(solutions: NotebookNode, stored: NotebookNode | None = None) -> NotebookNode:
    """The notebook without its solutions.

    stored: the current student version. A cell with the same id and the same source keeps its
    stored outputs. The student version is one folder above the solutions, so links `../x` become
    `x`, and the badge opens the student version. Raises ValueError for a BEGIN SOLUTION without
    END SOLUTION, or the reverse.
    """
    nb = copy.deepcopy(solutions)
    nb.cells = [cell for cell in nb.cells if "solution-only" not in cell.metadata.get("tags", [])]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", "](")
            cell.source = cell.source.replace("/main/notebooks/solutions/", "/main/notebooks/")
        if cell.cell_type == "code":
            cell.source = SOLUTION.sub(rf"\g<1>{STUB}", cell.source)
            if "# BEGIN SOLUTION" in cell.source or "# END SOLUTION" in cell.source:
                raise ValueError(f"cell {cell.id}: BEGIN SOLUTION and END SOLUTION do not pair up")
            cell.outputs, cell.execution_count = [], None
    if stored is not None:
        kept = {(cell.id, cell.source): cell for cell in stored.cells}
        nb.cells = [kept.get((cell.id, cell.source), cell) for cell in nb.cells]
        nb.metadata = stored.metadata
    hide_predicted(nb)
    number(nb)
    return nb


def hide_predicted(nb: NotebookNode) -> None:
    """Collapse the stored outputs of each code cell after a text that asks to *predict* them, and
    of no other cell. The output of `check` stays open.

    JupyterLab and sites built from the notebooks show them after a click.
    """
    for before, cell in zip(nb.cells, nb.cells[1:], strict=False):
        if cell.cell_type != "code":
            continue
        asked = before.cell_type == "markdown" and "**Predict" in before.source
        hidden, tags = asked and not EXERCISE.search(cell.source), cell.metadata.get("tags", [])
        if hidden:
            cell.metadata.setdefault("jupyter", NotebookNode())["outputs_hidden"] = True
            cell.metadata["tags"] = tags if "hide-output" in tags else [*tags, "hide-output"]
        elif "hide-output" in tags:
            cell.metadata.pop("jupyter", None)
            cell.metadata["tags"] = [tag for tag in tags if tag != "hide-output"]


def build(folder: Path) -> list[Path]:
    """Write folder/NN_name.ipynb for each folder/solutions/NN_name.ipynb; return the files.

    Sources, and notebooks without a source, first get their cells for Colab.
    """
    sources = sorted((folder / "solutions").glob("*.ipynb"))
    names = [source.name for source in sources]
    for path in [*sources, *(p for p in sorted(folder.glob("*.ipynb")) if p.name not in names)]:
        nb = nbformat.read(path, as_version=4)
        add_colab(nb, f"notebooks/{path.relative_to(folder).as_posix()}")
        nbformat.write(nb, path)
    written = []
    for source in sources:
        target = folder / source.name
        stored = nbformat.read(target, as_version=4) if target.exists() else None
        nbformat.write(student_version(nbformat.read(source, as_version=4), stored), target)
        written.append(target)
    return written


def strip(folder: Path, out: Path) -> list[Path]:
    """Write the notebooks of `folder` to `out`, without solutions and outputs; return the files.

    They have no badge: it opens the notebook with its outputs.
    """
    students = {
        path.name: student_version(nbformat.read(path, as_version=4))
        for path in (folder / "solutions").glob("*.ipynb")
    }
    others = {path.name: nbformat.read(path, as_version=4) for path in folder.glob("*.ipynb")}
    out.mkdir(parents=True, exist_ok=True)
    for name, nb in (others | students).items():
        nb.metadata.pop("widgets", None)
        nb.cells = [cell for cell in nb.cells if cell.id != BADGE]
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count, cell.metadata = [], None, NotebookNode()
        nbformat.write(nb, out / name)
    return [out / name for name in sorted(others | students)]
