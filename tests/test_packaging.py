import re

try:
    import tomllib
except ImportError:  # Python 3.10; pytest brings it there
    import tomli as tomllib
from pathlib import Path

import yaml
from conftest import ROOT

from minflextok import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def bounds(names):
    return {tuple(re.fullmatch(r"([\w-]+)(.*)", n).groups()) for n in names}


def test_environment_yml_agrees_with_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = bounds(n.replace("pytorch>", "torch>") for n in conda)
    pip = bounds(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
    assert conda == pip | {("python", PROJECT["requires-python"])}


def test_versions_agree():
    assert PROJECT["version"] == __version__


def test_readme_names_files_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("http") or (ROOT / target).exists(), target
    for name in re.findall(r"`((?:minflextok|data|tests|notebooks)/[\w./-]+)`", readme):
        assert (ROOT / name).exists(), name


def test_sizes_of_what_is_embedded():
    def megabytes(files):
        return sum(Path(f).stat().st_size for f in files) / 1e6

    assert megabytes((ROOT / "data").glob("cifar10-sample*")) < 3
    assert megabytes((ROOT / "data/weights/cifar10-tiny").iterdir()) < 12
    assert megabytes((ROOT / "data/weights/judge-cifar10").iterdir()) < 3
