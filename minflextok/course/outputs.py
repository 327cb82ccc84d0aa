"""Notebooks run again: is what they have stored still what the code gives? And their figures, for slides."""

import base64
import copy
import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
TIMED = re.compile(r"\d ?(?:ms|s|seconds?|min|minutes?|GB)\b|images/s|times faster")
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(nb: NotebookNode, folder: Path, timeout: int = 600) -> NotebookNode:
    """Run a notebook in place, from a fresh kernel in `folder`."""
    where = {"metadata": {"path": str(folder)}}
    return NotebookClient(nb, timeout=timeout, kernel_name="python3", resources=where).execute()


# ---- text --------------------------------------------------------------------------------------------------------------


def printed(cell: NotebookNode) -> str:
    """What a code cell printed or returned as text, without empty lines; pictures and widgets left out.

    A kernel cuts what is printed into parts as it pleases, so they are joined as they come.
    """
    parts = [
        o.text if o.output_type == "stream" else f"\n{o.get('data', {}).get('text/plain', '')}\n"
        for o in cell.get("outputs", [])
        if not {"image/png", WIDGET} & set(o.get("data", {}))
    ]
    return "\n".join(line for line in "".join(parts).splitlines() if line.strip())


def same_text(a: str, b: str) -> bool:
    """Whether two outputs agree: words and whole numbers to the letter, others within 0.1% or one in the last digit shown.
    Numbers below 1e-4 are taken for rounding errors, and so for equal."""

    def agree(x: str, y: str) -> bool:
        mantissa, _, exponent = x.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        whole = "." not in mantissa and not exponent
        p, q = float(x), float(y)
        return p == q or (
            not whole
            and (abs(p - q) <= max(1.01 * unit, 1e-3 * abs(p)) or max(abs(p), abs(q)) < 1e-4)
        )

    return NUMBER.split(a) == NUMBER.split(b) and all(
        map(agree, NUMBER.findall(a), NUMBER.findall(b))
    )


def mark_stable(stored: NotebookNode, fast: NotebookNode) -> int:
    """Tag `stable` those cells of `stored` whose text the fast run gives too, and return how many.

    Such text hangs neither on the amount of data or steps, nor on a clock; so every later fast run must give it too.
    """
    for cell, again in zip(stored.cells, fast.cells, strict=True):
        tags = [tag for tag in cell.metadata.get("tags", []) if tag != "stable"]
        text = printed(cell)
        if text and not TIMED.search(text) and same_text(text, printed(again)):
            tags.append("stable")
        if tags or "tags" in cell.metadata:
            cell.metadata["tags"] = tags
    return sum("stable" in cell.metadata.get("tags", []) for cell in stored.cells)


def stable(folder: Path, only: str = "") -> list[str]:
    """Run folder/`only`*.ipynb in fast mode and mark their stable cells."""
    os.environ["FAST"], told = "1", []
    for path in sorted(folder.glob(f"{only}*.ipynb")):
        nb = nbformat.read(path, as_version=4)
        count = mark_stable(nb, execute(copy.deepcopy(nb), folder))
        nbformat.write(nb, path)
        told.append(f"{path}: the tests compare the text of {count} cells")
    return told


# ---- figures -----------------------------------------------------------------------------------------------------------


def caption(after: list[NotebookNode]) -> str:
    """The first *italics* of the first cell of text; with the sentence that follows, where they only announce it."""
    text = next((cell.source for cell in after if cell.cell_type == "markdown"), "")
    italics, sentence = (
        r"(?<![*\w])\*(?![*\s])(.+?)(?<![*\s])\*(?![*\w])",
        r"((?:.+?[.?!](?= |$))?)",
    )
    found = re.search(italics + sentence, text, re.DOTALL | re.MULTILINE)
    if not found:
        return ""
    said, rest = found.groups()
    return " ".join((said if said[-1] in ".?!" else said + rest).split()).replace("|", "\\|")


def figures(folder: Path, out: Path, only: str = "") -> list[Path]:
    """Run folder/`only`*.ipynb and write each figure to `out`, as SVG and as PNG of twice its size on the screen.

    out/index.md names the notebook, the number of the cell and what to see (`caption`).
    Widgets are no figures.
    """
    out.mkdir(parents=True, exist_ok=True)
    written, index = [], ["| figure | notebook | cell | what to see |", "|---|---|---|---|"]
    for path in sorted(folder.glob(f"{only}*.ipynb")):
        nb = nbformat.read(path, as_version=4)
        first = next(cell for cell in nb.cells if cell.cell_type == "code")
        first.source = (
            "%matplotlib inline\n%config InlineBackend.figure_formats = ['retina', 'svg']\n"
            + first.source
        )
        execute(nb, folder, timeout=1800)
        for i, cell in enumerate(nb.cells):
            drawn = [
                o.data for o in cell.get("outputs", []) if "image/svg+xml" in o.get("data", {})
            ]
            for n, data in enumerate(drawn, start=1):
                name = f"{path.stem}_cell{cell.execution_count:02d}" + f"_{n}" * (len(drawn) > 1)
                (out / f"{name}.svg").write_text(data["image/svg+xml"])
                (out / f"{name}.png").write_bytes(base64.b64decode(data["image/png"]))
                written += [out / f"{name}.svg", out / f"{name}.png"]
                index.append(
                    f"| {name} | {path.name} | {cell.execution_count} | {caption(nb.cells[i + 1 :])} |"
                )
    (out / "index.md").write_text("\n".join(index) + "\n")
    return [*written, out / "index.md"]
