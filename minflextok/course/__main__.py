"""Commands for authors and teachers of the course; run them from the root of the repository."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from .exercises import misconceptions
from .explorer import summary, write_explorer
from .notebooks import build, strip
from .outputs import figures, stable

COMMANDS = {
    "build": "write notebooks/ from notebooks/solutions/",
    "student": "write student/: the notebooks without solutions and outputs",
    "stable": "mark the cells whose stored text the tests compare",
    "figures": "write figures/: all figures as SVG and PNG, with an index",
    "explorer": "write what docs/explorer/ shows: prefixes, swaps and samples",
    "misconceptions": "list the hints of all exercises",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minflextok.course", description=__doc__)
    what = "; ".join(f"{name}: {text}" for name, text in COMMANDS.items())
    parser.add_argument("command", choices=list(COMMANDS), help=what)
    parser.add_argument(
        "only", nargs="?", default="", help="stable, figures: only notebooks with this prefix"
    )
    a = parser.parse_args()
    folder = Path("notebooks")
    if not folder.is_dir():
        parser.error("there is no folder notebooks/ here: run this from the root of the repository")
    commands: dict[str, Callable[[], Iterable]] = {
        "build": lambda: build(folder),
        "student": lambda: strip(folder, Path("student")),
        "stable": lambda: stable(folder, a.only),
        "figures": lambda: figures(folder, Path("figures"), a.only),
        "explorer": lambda: summary(write_explorer(Path("docs/explorer"))),
        "misconceptions": misconceptions,
    }
    for line in commands[a.command]():
        print(line)


main()
