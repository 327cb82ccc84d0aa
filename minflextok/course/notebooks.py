"""The course: student notebooks made from their solutions, and `check` for the exercises.

notebooks/solutions/NN_name.ipynb is the one source of a notebook with exercises. What stands there between the lines
`# BEGIN SOLUTION` and `# END SOLUTION` is the learner's to write, and cells tagged `solution-only` are left out.
"""

import argparse
import copy
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import torch
from nbformat import NotebookNode
from torch import Tensor

from . import exercises

STUB = "...  # your code here"
SOLUTION = re.compile(
    r"^([ \t]*)# BEGIN SOLUTION\n.*?^[ \t]*# END SOLUTION$", re.MULTILINE | re.DOTALL
)


# ---- notebooks ---------------------------------------------------------------------------------------------------------


def student_version(solutions: NotebookNode, stored: NotebookNode | None = None) -> NotebookNode:
    """The notebook without its solutions. Cells that are in `stored` already, to the letter, keep their outputs.

    It lies one folder above its solutions, so its links `../x` become `x`.
    """
    nb = copy.deepcopy(solutions)
    nb.cells = [cell for cell in nb.cells if "solution-only" not in cell.metadata.get("tags", [])]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", "](")
        if cell.cell_type == "code":
            cell.source = SOLUTION.sub(rf"\g<1>{STUB}", cell.source)
            if "# BEGIN SOLUTION" in cell.source or "# END SOLUTION" in cell.source:
                raise ValueError(f"cell {cell.id}: BEGIN SOLUTION and END SOLUTION do not pair up")
            cell.outputs, cell.execution_count = [], None
    if stored is not None:
        kept = {(cell.id, cell.source): cell for cell in stored.cells}
        nb.cells = [kept.get((cell.id, cell.source), cell) for cell in nb.cells]
        nb.metadata = stored.metadata
    return nb


def build(folder: Path) -> list[Path]:
    """Write folder/NN_name.ipynb for each folder/solutions/NN_name.ipynb."""
    written = []
    for source in sorted((folder / "solutions").glob("*.ipynb")):
        target = folder / source.name
        stored = nbformat.read(target, as_version=4) if target.exists() else None
        nbformat.write(student_version(nbformat.read(source, as_version=4), stored), target)
        written.append(target)
    return written


def strip(folder: Path, out: Path) -> list[Path]:
    """Write the notebooks of `folder` to `out`, without solutions and outputs."""
    made = {
        path.name: student_version(nbformat.read(path, as_version=4))
        for path in (folder / "solutions").glob("*.ipynb")
    }
    plain = {path.name: nbformat.read(path, as_version=4) for path in folder.glob("*.ipynb")}
    out.mkdir(parents=True, exist_ok=True)
    for name, nb in (plain | made).items():
        nb.metadata.pop("widgets", None)
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count, cell.metadata = [], None, NotebookNode()
        nbformat.write(nb, out / name)
    return [out / name for name in sorted(plain | made)]


# ---- exercises ---------------------------------------------------------------------------------------------------------


def check(name: str, answer: Callable) -> bool:
    """Compare the learner's function with a slow one on seeded inputs, say what is wrong and why it may be. Never raises
    for what `answer` does; an unknown name is a ValueError."""
    exercise = exercises.find(name)
    cases = list(exercise.inputs(torch.Generator().manual_seed(0)))

    def outcomes(f: Callable) -> list:
        return [_outcome(exercise.observe, f, case) for case in cases]

    yours, target = outcomes(answer), outcomes(exercise.solution)
    wrong = [i for i in range(len(cases)) if not _same(yours[i], target[i], exercise.tolerance)]
    if not wrong:
        print(f"passed: {name}, {len(cases)} inputs")
        return True
    first = wrong[0]
    if _unsolved(answer, yours[first]):
        print(f"not solved yet: {name} waits for your code in place of the `...`")
        return False
    print(f"not right yet: {name}, right for {len(cases) - len(wrong)} of {len(cases)} inputs. For")
    for argument, value in zip(
        inspect.signature(exercise.solution).parameters, cases[first], strict=False
    ):
        print(f"  {argument} = {_show(value)}")
    print(f"yours:\n  {_show(yours[first])}\ntarget:\n  {_show(target[first])}")
    for misconception, hint in exercise.misconceptions:
        if all(
            _same(a, b, exercise.tolerance)
            for a, b in zip(yours, outcomes(misconception), strict=True)
        ):
            print(f"Hint: {hint}")
            break
    return False


def _outcome(observe: Callable, f: Callable, case: tuple) -> Any:
    try:
        return observe(f, *copy.deepcopy(case))  # a copy, as f may write into it
    except Exception as e:
        return e


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(b, dict):
        return (
            isinstance(a, dict)
            and a.keys() == b.keys()
            and all(_same(a[k], b[k], tolerance) for k in b)
        )
    if isinstance(b, tuple):
        return (
            isinstance(a, tuple | list)
            and len(a) == len(b)
            and all(map(_same, a, b, [tolerance] * len(b)))
        )
    try:
        a, b = (torch.as_tensor(x).detach().cpu().double() for x in (a, b))
    except (TypeError, ValueError, RuntimeError):
        return False
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def _unsolved(answer: Callable, outcome: Any) -> bool:
    """Whether the stub still stands there: nothing came out, or it tripped over the `...`."""
    if (
        outcome is None
        or outcome is ...
        or (isinstance(outcome, Exception) and "ellipsis" in str(outcome).lower())
    ):
        return True
    try:
        return STUB in inspect.getsource(answer)
    except (OSError, TypeError):
        return False


def _show(x: Any) -> str:
    if isinstance(x, Exception):
        return f"{type(x).__name__}: {x}"
    if isinstance(x, dict):
        return "\n  ".join(f"{key}: {_show(value)}" for key, value in x.items())
    if isinstance(x, tuple | list) and any(isinstance(part, Tensor) for part in x):
        return "\n  ".join(map(_show, x))
    if isinstance(x, Tensor):
        x = x.int() if x.dtype == torch.bool else x  # 0 and 1 are quicker to compare by eye
        text = np.array2string(
            x.detach().cpu().numpy(),
            precision=3,
            suppress_small=True,
            max_line_width=110,
            threshold=100,
        )
        return f"{tuple(x.shape)} {text}".replace("\n", "\n  ") if x.ndim else text
    return getattr(x, "__name__", repr(x))


def misconceptions() -> list[str]:
    """All hints of all exercises, which is what a teacher should expect to hear."""
    return [
        line
        for name in exercises.names()
        for line in ("", name, *(f"  - {hint}" for _, hint in exercises.find(name).misconceptions))
    ]


def main() -> None:
    from .outputs import figures, stable  # learners do without

    folder = Path("notebooks")
    commands = {
        "build": lambda only: build(folder),
        "student": lambda only: strip(folder, Path("student")),
        "stable": lambda only: stable(folder, only),
        "figures": lambda only: figures(folder, Path("figures"), only),
        "misconceptions": lambda only: misconceptions(),
    }
    parser = argparse.ArgumentParser(prog="python -m minflextok.course", description=__doc__)
    parser.add_argument(
        "command",
        choices=list(commands),
        help=(
            "build: notebooks/ from notebooks/solutions/; student: student/, without outputs either; stable: mark what tests "
            "compare; figures: all figures as SVG and PNG, with an index; misconceptions: the hints of all exercises"
        ),
    )
    parser.add_argument(
        "only", nargs="?", default="", help="figures, stable: only notebooks whose name starts so"
    )
    a = parser.parse_args()
    if not folder.is_dir():
        parser.error("no folder notebooks/ here: run it from the root of the repository")
    for line in commands[a.command](a.only):
        print(line)
