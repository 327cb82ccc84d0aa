"""One run at a time in a directory, and files of a run that are damaged."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import RECIPE, TINY, after_steps, newest, noise_images, randomised
from safetensors.torch import load_file, save_file

from minflextok import PriorConfig
from minflextok.training.lock import OWNER, only_run
from minflextok.training.prior import train_prior
from minflextok.training.tokenizer import train_tokenizer

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX processes")
HOLD = """
import sys, time
from pathlib import Path
from minflextok import PriorConfig
from minflextok.training.lock import only_run
with only_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def run(out):
    return train_tokenizer(TINY, RECIPE, noise_images(), out, "cpu", quiet=True)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_names_the_first(tmp_path, other):
    with pytest.raises(ValueError) as e:
        run(tmp_path / "run")
    for part in (f"host {socket.gethostname()}", f"process {other.pid}", "since 2", "another out"):
        assert part in str(e.value)
    assert not (tmp_path / "run/metrics.jsonl").exists()
    run(tmp_path / "elsewhere")


def test_a_prior_is_refused_before_its_ids_are_extracted(tmp_path, other):
    config = PriorConfig(TINY.vocab_size, TINY.num_registers, 5, dim=16, depth=1, head_dim=8)
    data = noise_images(40, labels=torch.arange(40) % 5, classes=list("abcde"))
    with pytest.raises(ValueError, match="in use by another run"):
        train_prior(
            config,
            RECIPE,
            randomised(),
            data,
            tmp_path / "run",
            "cpu",
            quiet=True,
            cache=tmp_path / "ids",
        )
    assert not (tmp_path / "ids").exists()


@posix
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert json.loads((tmp_path / "run" / OWNER).read_text())["process"] == other.pid
    run(tmp_path / "run")
    assert (tmp_path / "run/model.safetensors").exists()
    assert not (tmp_path / "run" / OWNER).exists()


def test_a_stale_owner_file_locks_nothing(tmp_path):
    for text in ('{"host": "elsewhere", "process": 1}', "[]", "", "null", '{"process": "x"}'):
        (tmp_path / OWNER).write_text(text)
        with only_run(tmp_path):
            assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()


def test_two_runs_in_one_process_exclude_each_other_too(tmp_path):
    def second():
        match = f"in use by another run .*process {os.getpid()}"
        with pytest.raises(ValueError, match=match), only_run(tmp_path):
            pass
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), after_steps(2, second):
        run(tmp_path)
    run(tmp_path)  # an error ends the lock


@posix
def test_a_killed_run_whose_workers_still_live_is_waited_for(tmp_path):
    """Workers may inherit the lock; they end a few seconds after the run. Here a process keeps the
    lock for three seconds, and its owner is one that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace("120", "3"), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    start, owner = time.monotonic(), tmp_path / OWNER
    owner.write_text(json.dumps(json.loads(owner.read_text()) | {"process": ended.pid}))
    with only_run(tmp_path):
        assert time.monotonic() - start > 2
    process.wait()


# ---- damaged files -------------------------------------------------------------------------------


def test_a_checkpoint_that_lacks_something_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt), after_steps(9, stop):
        run(tmp_path)
    last = newest(tmp_path)
    path, file = last / "state.json", last / "state.safetensors"
    good = json.loads(path.read_text())
    for change in [
        {"step": -5},
        {"step": "5"},
        {"step": 2.0},
        {"seconds": float("nan")},
        {"window": [[0.0] * 3]},
        {"window": [[1, None]]},
        {"window": 3},
        {"skipped": ["1"]},
        {"precision": 3},
        {"tensors": good["tensors"] + 1},
        {"files": {"state.safetensors": 5}},
        {"files": {"../../run.json": 5}},
        {"files": {"absent.safetensors": 5}},
    ]:
        path.write_text(json.dumps(good | change))
        check_refused(tmp_path)
    for key in good:
        path.write_text(json.dumps({k: v for k, v in good.items() if k != key}))
        check_refused(tmp_path, f"it has no {key}")
    for value in ("[]", "null", "3", "[" * 10**5):
        path.write_text(value)
        check_refused(tmp_path)
    tensors = {name: x.clone() for name, x in load_file(file).items()}  # not of the file itself
    ema, moment = (next(n for n in tensors if n.startswith(p)) for p in ("ema.", "optimizer."))
    for changed in (
        {k: x for k, x in tensors.items() if k != ema},
        {k: x for k, x in tensors.items() if k != moment},
        tensors | {"ema.x": torch.zeros(1)},
        tensors | {ema: torch.zeros(1)},
    ):
        save_file(changed, file)
        sizes = {"tensors": len(changed), "files": {file.name: file.stat().st_size}}
        path.write_text(json.dumps(good | sizes))
        check_refused(tmp_path)
    save_file(tensors, file)
    path.write_text(json.dumps(good))
    run(tmp_path)


def stop():
    raise KeyboardInterrupt


def check_refused(out, match=""):
    with pytest.raises(
        ValueError, match=f"step_000000008 is no checkpoint of this run, or damaged.*{match}"
    ) as e:
        run(out)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["{}", "[]", "null", "3", '"x"', "[" * 10**5, '{"data": {}}', ""])
def test_any_run_json_ends_in_one_line(tmp_path, text):
    (tmp_path / "checkpoints/step_000000004").mkdir(parents=True)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"give another out|or another out") as e:
        run(tmp_path)
    assert "\n" not in str(e.value)


def test_odd_lines_of_the_log_do_not_stop_a_resume(tmp_path):
    with pytest.raises(KeyboardInterrupt), after_steps(9, stop):
        run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "ab") as f:
        f.write(b'[1]\n{"a": 1}\n{"step": "x"}\nnull\n\xff\xfe\n{"step": 1e999}\n{"st')
    run(tmp_path)
    steps = [json.loads(t)["step"] for t in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 12
