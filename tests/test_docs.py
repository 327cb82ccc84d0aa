"""The documents: links lead somewhere, commands parse, code runs, and all name the same
versions."""

import re
import shlex

try:
    import tomllib
except ImportError:  # Python 3.10; pytest brings it there
    import tomli as tomllib

import pytest
import yaml
from conftest import ROOT

from minflextok.cli.parser import build_parser

TEXTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("data/**/*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("notebooks/*.md"),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))


def name(path):
    return str(path.relative_to(ROOT))


def fences(text, language):
    return [code for found, code in FENCE.findall(text) if found == language]


def floor(package):
    """The oldest version of a dependency that pyproject.toml promises, with three parts."""
    requirement = next(d for d in PROJECT["dependencies"] if re.match(rf"{package}\b[^-]", d))
    version = re.search(r">=([\d.]+)", requirement)[1]
    return ".".join([*version.split("."), "0"][:3])


# ---- links ---------------------------------------------------------------------------------------


def anchors(text):
    """The anchors that GitHub gives to the headings of a text."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_relative_links_resolve(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", FENCE.sub("", text)):
        file, _, anchor = (target[0] or target[1]).partition("#")
        if re.match(r"https?:|mailto:", file):
            continue
        there = path.parent / file if file else path
        assert there.exists(), f"{name(path)} links to {file}"
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), anchor


# ---- commands and code ---------------------------------------------------------------------------


def commands(text):
    """The arguments of every `minflextok` command in a text, except those with placeholders."""
    lines = "\n".join(fences(text, "sh")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    for line in lines + inline:
        found = re.search(r"(?:^|[\s/])minflextok ([a-z].*)", line)
        if found and "..." not in line and not re.search(r" [A-Z]+\b", found[1].split("#")[0]):
            yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize(
    "path", [p for p in TEXTS if any(commands(p.read_text(encoding="utf-8")))], ids=name
)
def test_commands_parse(path, capsys):
    for arguments in commands(path.read_text(encoding="utf-8")):
        arguments = ["cpu" if a == "cuda" else a for a in arguments]  # no GPU is needed to parse
        try:
            build_parser().parse_args(arguments)
        except SystemExit as exit:  # --help, or a command in prose without its required arguments
            error = capsys.readouterr().err
            assert exit.code == 0 or "arguments are required" in error, f"{arguments}: {error}"


def test_the_python_of_the_readme_runs():
    (code,) = fences(README, "python")
    found = {}
    exec(code, found)
    assert found["few"].shape == (8, 3, 32, 32) and found["scenes"].shape == (4, 3, 32, 32)


# ---- one story -----------------------------------------------------------------------------------


def test_the_readme_is_a_front_door():
    assert 120 <= len(README.splitlines()) <= 180


def test_the_workflow_runs_the_promised_versions():
    oldest, newest = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["versions"]
    python = PROJECT["requires-python"].removeprefix(">=")
    assert oldest["python"] == python and f"Python {python} or newer" in README
    assert oldest["torch"] == f"torch=={floor('torch')} torchvision=={floor('torchvision')}"
    assert newest["torch"] == "torch torchvision"


def test_the_workflow_runs_the_commands_of_the_readme():
    steps = WORKFLOW["jobs"]["test"]["steps"]
    run = "\n".join(step.get("run", "") for step in steps)
    for line in fences(README, "sh")[0].splitlines():
        make, target = line.split("#")[0].split()
        assert f"{make} PYTHON=python {target}" in run
    for line in fences(README, "bat")[0].splitlines():
        assert line.replace(".venv\\Scripts", "$BIN").replace("\\", "/") in run


def test_pre_commit_formats_as_make_does():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    ruff = next(d for d in PROJECT["optional-dependencies"]["dev"] if d.startswith("ruff"))
    assert {tuple(h["additional_dependencies"]) for h in hooks["repos"][0]["hooks"]} == {(ruff,)}
