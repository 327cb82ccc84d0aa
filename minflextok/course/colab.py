"""Two cells that let a notebook run in Colab: a badge that opens it there, and an installation."""

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

# "ACCOUNT/NAME" on GitHub. Without it, notebooks have no such cells; after a change, run
# python -m minflextok.course build
REPOSITORY = ""

COLAB = "https://colab.research.google.com"
BADGE, INSTALL = "colab-badge", "colab-install"  # cell ids
COMMAND = """\
# Installs the package in Colab. Where it is installed already, this cell does nothing.
import importlib.util

if importlib.util.find_spec("minflextok") is None:
    %pip install --quiet "minflextok[codec,probes] @ git+https://github.com/REPOSITORY"
"""


def is_added(cell: NotebookNode) -> bool:
    """Whether the cell is one of the two that `add_colab` adds."""
    return cell.id in (BADGE, INSTALL)


def add_colab(nb: NotebookNode, path: str, repository: str | None = None) -> None:
    """Put both cells after the title of the notebook at `path` in the repository, or renew them.

    Their tag keeps them out of the site, whose pages have a button for Colab. Without the address
    of a repository (default: REPOSITORY), both cells are removed.
    """
    repository = REPOSITORY if repository is None else repository
    badge = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
    badge += f"({COLAB}/github/{repository}/blob/main/{path})"
    tags = {"tags": ["remove-cell"]}
    added = [
        new_markdown_cell(badge, id=BADGE, metadata=tags),
        new_code_cell(COMMAND.strip().replace("REPOSITORY", repository), id=INSTALL, metadata=tags),
    ]
    cells = [cell for cell in nb.cells if not is_added(cell)]
    nb.cells = cells[:1] + (added if repository else []) + cells[1:]
    number(nb)


def number(nb: NotebookNode) -> None:
    """Count the code cells of a stored run from 1, as if the added cell had run too.

    It prints nothing, so the outputs of the run stay valid. Notebooks that have not run, or not as
    a whole, are left as they are.
    """
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    if any(cell.execution_count is None for cell in code if not is_added(cell)):
        return
    for i, cell in enumerate(code, start=1):
        cell.execution_count = i
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = i
