"""Data that stops coming in the middle of a run: a reader that stalls, that is killed, or whose
data ends too early. The run says so in a line, saves, and leaves no process behind. And data that
makes the loss NaN: which images these are."""

import dataclasses
import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from conftest import RECIPE, ROOT, TINY, after_steps, lines, on_two_ranks, state
from image_files import picture, png, shard

from minflextok.config import TrainConfig
from minflextok.data import Folder, Stream, shards
from minflextok.training import loop
from minflextok.training.batches import reader_error
from minflextok.training.tokenizer import train_tokenizer

LONG = dataclasses.replace(RECIPE, steps=10**6, eval_every=10**6, log_every=1, workers=1)


def stream(folder, fault: str) -> Stream:
    """A stream whose source does `fault`, a command, once the file `now` is there."""
    whole = folder / "whole.tar"
    if not whole.exists():
        shard(whole, {f"{i}.png": png(i) for i in range(40)})
    now = folder / "now"
    return Stream("photos", [f"pipe:test -e {now} && {fault}; cat {whole}"], 8, workers=1)


def run(out, fault, recipe=LONG):
    return train_tokenizer(TINY, recipe, stream(out, fault), out / "run", "cpu", quiet=True)


@contextmanager
def fault_after(out, steps: int, then=lambda: None):
    """From this training step on, the source of the data has its fault."""
    done, real = [], loop.training_step

    def step(*args):
        done.append(1)
        if len(done) == steps:
            (out / "now").touch()
            then()
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", step)
        yield


def processes_with(text: str) -> list[int]:
    """The processes whose command line contains a text."""
    found = []
    for path in os.listdir("/proc"):
        if path.isdigit():
            try:
                with open(f"/proc/{path}/cmdline", "rb") as f:
                    command = f.read().replace(b"\0", b" ")
            except OSError:
                continue
            if text.encode() in command and int(path) != os.getpid():
                found.append(int(path))
    return found


def nothing_left(text: str, seconds: float = 30.0) -> bool:
    """Whether all workers, and all commands with this text, end soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        gc.collect()  # of the iterator over batches, which an exception still refers to
        if not (processes_with(text) or multiprocessing.active_children()):
            return True
        time.sleep(0.1)
    return False


pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
    pytest.mark.filterwarnings("ignore:a stream has no validation split"),
]


def test_a_stalled_reader_ends_the_run_with_a_checkpoint(tmp_path):
    short = dataclasses.replace(LONG, reader_minutes=0.05)
    match = (
        r"photos: no batch came for 0.05 minutes: is its disk or server down\? If it is only slow, "
        r"give reader_minutes=0.1; step \d+ is saved"
    )
    with fault_after(tmp_path, 3), pytest.raises(ValueError, match=match):
        run(tmp_path, "sleep 6123", short)
    assert state(tmp_path / "run")["step"] >= 3
    assert nothing_left("sleep 6123")


def test_a_signal_is_served_while_a_reader_stalls(tmp_path):
    def later():
        threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGTERM)).start()

    with fault_after(tmp_path, 3, later), pytest.raises(SystemExit, match="143"):
        run(tmp_path, "sleep 6124")
    last = lines(tmp_path / "run", "loss")[-1][0]
    assert state(tmp_path / "run")["step"] == last >= 3
    assert nothing_left("sleep 6124")


def test_a_killed_reader_is_a_message_and_a_checkpoint(tmp_path):
    def kill():
        [worker] = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)

    match = r"photos: a process that reads it was killed .*memory full\? Give fewer.*is saved"
    with fault_after(tmp_path, 3, kill), pytest.raises(ValueError, match=match):
        run(tmp_path, "true")
    assert state(tmp_path / "run")["step"] >= 3


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        EOFError(),
    ],
)
def test_whichever_error_comes_first_from_a_killed_reader_has_one_message(error):
    found = reader_error(error, "photos", TrainConfig(steps=1))
    assert found.startswith("photos: a process that reads it was killed")


def test_a_server_that_cannot_be_read_is_no_killed_reader():
    assert reader_error(ConnectionError("cannot read http://a"), "a", TrainConfig(steps=1)) == (
        "cannot read http://a"
    )


def test_data_that_ends_too_early_is_a_message_and_a_checkpoint(tmp_path):
    cut = f"head -c 5000 {tmp_path}/whole.tar && exit 1"
    with fault_after(tmp_path, 3), pytest.raises(ValueError) as e:
        run(tmp_path, cut)
    assert "step" in str(e.value) and "is saved" in str(e.value)
    assert "\n" not in str(e.value) and "Traceback" not in str(e.value)
    assert state(tmp_path / "run")["step"] >= 3


KILLED = """
import sys
from pathlib import Path
from test_readers import fault_after, run
out = Path(sys.argv[1])
with fault_after(out, 3):
    run(out, "sleep 6125")
"""


def test_readers_end_with_a_killed_run(tmp_path):
    path = [str(ROOT / "tests"), str(ROOT / "tests/training"), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
    for _ in range(1200):
        if processes_with("sleep 6125") or process.poll() is not None:
            break
        time.sleep(0.1)
    assert processes_with("sleep 6125")
    process.kill()
    process.wait()
    assert nothing_left("sleep 6125") and not processes_with(str(tmp_path))


ONE_RANK = """
import os, sys
from pathlib import Path
from test_readers import LONG, fault_after, run
out, rank = Path(sys.argv[1]), os.environ["RANK"]
with fault_after(out, 3):
    try:
        run(out, f"test $RANK = 1 && head -c 5000 {out}/whole.tar && exit 1")
    except ValueError as e:
        (out / rank).write_text(str(e))
"""


def test_all_ranks_save_and_say_what_one_of_them_could_not_read(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ONE_RANK)
    shard(tmp_path / "whole.tar", {f"{i}.png": png(i) for i in range(40)})
    on_two_ranks(script, tmp_path)
    first, second = ((tmp_path / rank).read_text() for rank in "01")
    assert first == second and "shard" in first and "is saved" in first
    assert state(tmp_path / "run")["step"] >= 3


# ---- which images made a step go wrong -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "shards", "files"])
def test_the_images_of_a_bad_step_are_named(tmp_path, kind):
    data = stream(tmp_path, "true")
    if kind == "shards":
        members = shards.by_position([str(tmp_path / "whole.tar")])
        data = Folder("photos", members, None, [], 8, workers=1)
    elif kind == "files":
        files = [str(picture(tmp_path / f"{i}.png", (8, 8))) for i in range(40)]
        data = Folder("photos", files, None, [], 8, workers=1)
    nan = torch.tensor([float("nan"), 1.0])
    recipe = dataclasses.replace(RECIPE, steps=3, max_bad_steps=1, log_every=1)
    name = {"stream": r"\d+ in pipe:.*", "shards": r"\d+ in /.*whole.tar", "files": r"/.*\.png"}
    with (
        after_steps(2, lambda: nan),
        pytest.warns(UserWarning, match=f"step 3: .*; its images: {name[kind]}, .*"),
    ):
        train_tokenizer(TINY, recipe, data, tmp_path / "run", "cpu", quiet=True)
    [(step, bad)] = lines(tmp_path / "run", "bad")
    assert step == 3 and len(set(bad["images"])) == 8
