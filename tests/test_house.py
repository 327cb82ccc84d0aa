"""The structure of the package: imports go one way, there is no cycle, and the algorithm stays
short."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "minflextok"
# Each wing may import itself, those after it, and the model at the top level.
WINGS = ["cli", "experiments", "course", "training", "evaluation", "data"]
SIDE_BY_SIDE = {("experiments", "course"), ("course", "experiments")}
STAGE_1 = [
    "patches",
    "transformer",
    "encoder",
    "fsq",
    "nested_dropout",
    "decoder",
    "flow",
    "tokenizer",
]
STAGE_2 = ["gpt", "prior"]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(f): f for f in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """The modules of this package that a module imports, anywhere in its code."""
    path, found = FILES[name], set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in FILES else source)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & FILES.keys()


GRAPH = {name: imports(name) for name in FILES}


def wing(name: str) -> str:
    """The wing of a module, "" for the model at the top level."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in WINGS else ""


def code_lines(path: Path) -> int:
    """Lines that hold code: without blank lines, comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    skipped = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            doc = node.body[0]
            skipped |= set(range(doc.lineno, doc.end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(
        bool(s.strip()) and not s.strip().startswith("#") and i not in skipped for i, s in lines
    )


@pytest.mark.parametrize("name", [name for name in FILES if "__main__" not in name])
def test_imports_go_one_way(name):
    for other in GRAPH[name]:
        here, there = wing(name), wing(other)
        if here == there or other == "minflextok":
            continue
        assert there == "" or (here and WINGS.index(here) < WINGS.index(there)), (
            f"{name} imports {other}, which lies above it"
        )
        assert (here, there) not in SIDE_BY_SIDE, f"{name} imports {other}, which lies beside it"


def test_no_module_imports_itself_by_a_detour():
    done, path = set(), []

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(GRAPH[name]):
            if not other.endswith("__init__") and FILES[other].name != "__init__.py":
                visit(other)
        path.pop()
        done.add(name)

    for name in GRAPH:
        visit(name)


def test_the_algorithm_stays_short(capsys):
    sizes = {name: code_lines(PACKAGE / f"{name}.py") for name in STAGE_1 + STAGE_2}
    stage_1 = sum(sizes[name] for name in STAGE_1)
    stage_2 = sum(sizes[name] for name in STAGE_2)
    with capsys.disabled():
        print(f"\nlines of code: stage 1 {stage_1} of 450, prior and GPT {stage_2} of 300")
    assert stage_1 < 450 and stage_2 < 300, sizes


def test_the_count_of_lines_counts_code_alone(tmp_path):
    file = tmp_path / "a.py"
    doc, code = '"""Doc.\n\nMore."""\n\n# comment\n', "x = 1  # code\n\n\ndef f():\n"
    file.write_text(doc + code + '    """Doc."""\n    return x\n')
    assert code_lines(file) == 3
