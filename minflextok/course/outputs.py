"""Notebooks run again: to compare their stored outputs, and to export their figures."""

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
    """Run a notebook in place, in a fresh kernel with `folder` as its working directory."""
    where = {"metadata": {"path": str(folder)}}
    return NotebookClient(nb, timeout=timeout, kernel_name="python3", resources=where).execute()


# ---- text ----------------------------------------------------------------------------------------


def printed(cell: NotebookNode) -> str:
    """The text that a code cell printed or returned, without empty lines, images and widgets.

    A kernel may split one print into several outputs, so consecutive parts are joined.
    """
    parts = [
        o.text if o.output_type == "stream" else f"\n{o.get('data', {}).get('text/plain', '')}\n"
        for o in cell.get("outputs", [])
        if not {"image/png", WIDGET} & set(o.get("data", {}))
    ]
    return "\n".join(line for line in "".join(parts).splitlines() if line.strip())


def same_text(a: str, b: str) -> bool:
    """Whether two outputs agree.

    Words and integers must be equal; other numbers may differ by 0.1% or by one unit in the last
    digit shown. Numbers below 1e-4 count as rounding errors, and so as equal.
    """

    def agree(x: str, y: str) -> bool:
        mantissa, _, exponent = x.partition("e")
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        integer = "." not in mantissa and not exponent
        p, q = float(x), float(y)
        return p == q or (
            not integer
            and (abs(p - q) <= max(1.01 * unit, 1e-3 * abs(p)) or max(abs(p), abs(q)) < 1e-4)
        )

    return NUMBER.split(a) == NUMBER.split(b) and all(
        map(agree, NUMBER.findall(a), NUMBER.findall(b))
    )


def mark_stable(stored: NotebookNode, fast: NotebookNode) -> int:
    """Tag as `stable` the cells of `stored` that print the same text in the fast run; count them.

    The text of a stable cell depends neither on the amount of data or steps nor on a clock, so
    every later fast run must reproduce it.
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
    """Run folder/`only`*.ipynb in fast mode, mark their stable cells, return one line for each."""
    os.environ["FAST"], lines = "1", []
    for path in sorted(folder.glob(f"{only}*.ipynb")):
        nb = nbformat.read(path, as_version=4)
        count = mark_stable(nb, execute(copy.deepcopy(nb), folder))
        nbformat.write(nb, path)
        lines.append(f"{path}: the tests compare the text of {count} cells")
    return lines


# ---- figures -------------------------------------------------------------------------------------


def caption(cells: list[NotebookNode]) -> str:
    """The first *italic* passage of the first text cell among `cells`, those after a figure.

    If the passage does not end a sentence (*What to see:*), the rest of the sentence is added.
    """
    text = next((cell.source for cell in cells if cell.cell_type == "markdown"), "")
    italics, sentence = (
        r"(?<![*\w])\*(?![*\s])(.+?)(?<![*\s])\*(?![*\w])",
        r"((?:.+?[.?!](?= |$))?)",
    )
    found = re.search(italics + sentence, text, re.DOTALL | re.MULTILINE)
    if not found:
        return ""
    passage, rest = found.groups()
    passage = passage if passage[-1] in ".?!" else passage + rest
    return " ".join(passage.split()).replace("|", "\\|")


def figures(folder: Path, out: Path, only: str = "") -> list[Path]:
    """Run folder/`only`*.ipynb and write each figure to `out`, as SVG and as PNG of twice the size.

    out/index.md lists the figures: notebook, cell number and `caption`. Widgets are not exported.
    """
    out.mkdir(parents=True, exist_ok=True)
    written, index = [], ["| figure | notebook | cell | what to see |", "|---|---|---|---|"]
    for path in sorted(folder.glob(f"{only}*.ipynb")):
        nb = nbformat.read(path, as_version=4)
        first = next(cell for cell in nb.cells if cell.cell_type == "code")
        formats = "%config InlineBackend.figure_formats = ['retina', 'svg']"
        first.source = f"%matplotlib inline\n{formats}\n{first.source}"
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
                what = caption(nb.cells[i + 1 :])
                index.append(f"| {name} | {path.name} | {cell.execution_count} | {what} |")
    (out / "index.md").write_text("\n".join(index) + "\n")
    return [*written, out / "index.md"]
