"""The number of CPU threads of a run, and how they wait."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import RECIPE, ROOT, TINY, Killed, after_steps, noise_images, randomised, same

from minflextok.training import threads
from minflextok.training.objective import TokenizerObjective
from minflextok.training.tokenizer import train_tokenizer


@pytest.fixture
def free(monkeypatch, tmp_path):
    """As if the user had set no number of threads, and nothing had been probed; the number is what
    it was after the test."""
    monkeypatch.setattr(threads, "KNOWN", tmp_path / "home/threads.json")
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "TORCH_DEFAULT", 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def batch() -> tuple[torch.Tensor, ...]:
    x = torch.zeros(4, 3, 8, 8)
    return x, x, torch.zeros(4), torch.full((4,), 6), torch.zeros(4, dtype=torch.bool)


def test_the_probe_changes_nothing(free, monkeypatch):
    monkeypatch.setattr(threads, "times", lambda *a: [threads.seconds(*a[:3]) / 100])
    model = TokenizerObjective(randomised())
    before = TokenizerObjective(randomised())
    chosen, why = threads.fastest(model, batch(), 2, bf16=False)
    assert chosen in (1, 2) and " with 1, " in why
    assert same(model, before) and all(p.grad is None for p in model.parameters())
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "speed, chosen",
    [
        ({1: 0.2, 2: 0.2, 4: 0.2}, 1),
        ({1: 0.2, 2: 0.19, 4: 0.19}, 1),  # not worth another thread
        ({1: 0.4, 2: 0.2, 4: 0.1}, 4),
        ({1: 0.2, 2: 0.1, 4: 0.3}, 2),
        ({1: 9.0, 2: 5.0, 4: 3.0}, 4),  # too slow to try others
    ],
)
def test_the_fewest_threads_that_are_about_as_fast(free, monkeypatch, speed, chosen):
    monkeypatch.setattr(threads, "seconds", lambda *_: speed[torch.get_num_threads()])
    assert threads.fastest(torch.nn.Linear(1, 1), (), 4, bf16=False)[0] == chosen


def test_a_resumed_run_keeps_its_number(free, monkeypatch, tmp_path):
    used = []

    def run(until: int, probe: int) -> None:
        monkeypatch.setattr(threads, "fastest", lambda *_: (probe, "a test"))

        def stop() -> None:
            used.append(torch.get_num_threads())
            raise Killed

        with pytest.raises(Killed), after_steps(until, stop):
            train_tokenizer(TINY, RECIPE, noise_images(), tmp_path, "cpu", quiet=True)
        assert torch.get_num_threads() == 2  # the number of before

    run(until=5, probe=1)
    run(until=2, probe=2)
    assert used == [1, 1] and json.loads((tmp_path / threads.FILE).read_text()) == {"threads": 1}


def test_a_model_is_probed_once_on_a_machine(free, monkeypatch):
    probes = iter([1, 2, 2, 1])
    monkeypatch.setattr(threads, "fastest", lambda *_: (next(probes), "a test"))
    model = torch.nn.Linear(3, 3)

    def chosen(model=model, most=2):
        return threads.probed_once(model, batch(), most, bf16=False)[0]

    assert [chosen(), chosen()] == [1, 1]
    assert [chosen(torch.nn.Linear(3, 4)), chosen(most=4)] == [2, 2]  # other questions
    threads.KNOWN.write_text("[]")
    assert chosen() == 1 and next(probes, None) is None
    assert "delete" in threads.probed_once(model, batch(), 2, bf16=False)[1]


@pytest.mark.parametrize("how", ["variable", "call", "unknown"])
def test_what_the_user_set_stays(free, monkeypatch, tmp_path, how, capsys):
    if how == "variable":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    elif how == "call":
        torch.set_num_threads(3)
    else:
        monkeypatch.setattr(threads, "TORCH_DEFAULT", None)  # torch was imported before
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "fastest", None)
    with pytest.raises(Killed), after_steps(1, lambda: (_ for _ in ()).throw(Killed())):
        train_tokenizer(TINY, RECIPE, noise_images(), tmp_path, "cpu")
    assert f"CPU threads: {before} of {before} (not probed" in capsys.readouterr().out


# ---- how threads wait ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, code, found",
    [
        ({}, "", "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "", "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "", "None"),
        ({}, "sys.modules['torch'] = None;", "None"),  # too late
    ],
)
def test_short_spins_unless_the_user_chose(given, code, found):
    script = f"import os, sys, runpy; {code} runpy.run_path('minflextok/openmp.py')"
    script += "; print(os.environ.get('GOMP_SPINCOUNT'))"
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    env = {k: v for k, v in os.environ.items() if k not in names} | given
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


@pytest.mark.parametrize(
    "first, found",
    [("torch", " is not set, because torch was imported before minflextok: "), ("sys", "=1000")],
)
def test_what_is_said_of_spins_is_true(first, found):
    script = f"import {first}; from minflextok.openmp import waiting; print(waiting())"
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    env = {k: v for k, v in os.environ.items() if k not in names}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("GOMP_SPINCOUNT" + found)


def test_the_package_sets_it_before_it_imports_torch():
    first = ast.parse((ROOT / "minflextok/__init__.py").read_text(encoding="utf-8")).body[1]
    assert isinstance(first, ast.ImportFrom) and [a.name for a in first.names] == ["openmp"]
