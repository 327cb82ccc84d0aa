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
from conftest import (
    RECIPE,
    ROOT,
    SMALL_VAE,
    TINY,
    after_steps,
    lines,
    noise_images,
    on_two_ranks,
    randomised,
    state,
)
from image_files import picture, png, shard

from minflextok.config import PriorConfig
from minflextok.data import Folder, Stream, cache_latents, load_dataset, shards, to_float
from minflextok.data.waiting import reader_error
from minflextok.training import loop
from minflextok.training.prior import train_prior
from minflextok.training.tokenizer import train_tokenizer
from minflextok.vae import VAE

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


def fifo(folder) -> Folder:
    """Files whose bytes never come."""
    files = [str(folder / f"{i}.png") for i in range(20)]
    for file in files:
        os.mkfifo(file)
    return Folder("photos", files, torch.arange(20) % 2, ["a", "b"], 8, workers=1)


def third(folder) -> Stream:
    """A shard that can be opened twice: for the first image, and for the hash."""
    times, whole = folder / "times", shard(folder / "a.tar", {"0.png": png(), "0.cls": b"0"})
    command = f"echo >> {times}; test $(wc -l < {times}) = 3 && sleep 6126; cat {whole}"
    return Stream("photos", [f"pipe:{command}"], 8, workers=1)


def never(folder) -> Stream:
    return Stream("photos", ["pipe:sleep 6126; true"], 8, workers=1)


def before_training(what: str, data, out, minutes):
    recipe = dataclasses.replace(RECIPE, reader_minutes=minutes)
    if what == "validation":
        train_tokenizer(TINY, recipe, data, out, "cpu", quiet=True)
    elif what == "latents":
        cache_latents(data, VAE(SMALL_VAE), out, quiet=True, reader_minutes=minutes)
    elif what == "ids":
        config = dataclasses.replace(PriorConfig(), dim=64, depth=1)
        train_prior(config, recipe, randomised(), data, out, "cpu", quiet=True, cache=out / "ids")
    else:
        load_dataset(data.shards[0], image_size=8, reader_minutes=minutes)


BEFORE = [
    ("load", never),
    ("validation", never),
    ("validation", fifo),
    ("latents", never),
    ("ids", never),  # at the label of its first image
    ("ids", third),
    ("ids", fifo),
]


@pytest.mark.parametrize("what, source", BEFORE)
def test_a_reader_that_stalls_before_the_training_is_named(tmp_path, what, source):
    data = source(tmp_path)
    with pytest.raises(ValueError, match=r"no batch came for 0.02 minutes.*reader_minutes=0.04"):
        before_training(what, data, tmp_path / "out", 0.02)
    assert nothing_left("sleep 6126")


@pytest.mark.parametrize("what, source", [("load", never), ("ids", third)])
def test_sigterm_is_served_while_a_reader_stalls_before_the_training(tmp_path, what, source):
    data = source(tmp_path)

    def end():
        while not processes_with("sleep 6126"):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    with pytest.raises(SystemExit, match="143"):
        before_training(what, data, tmp_path / "out", 10)
    assert nothing_left("sleep 6126")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


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
    found = reader_error(error, "photos", 10.0, 4)
    assert found.startswith("photos: a process that reads it was killed")


def test_a_server_that_cannot_be_read_is_no_killed_reader():
    assert reader_error(ConnectionError("cannot read http://a"), "a", 10.0, 4) == (
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


def photos(folder, kind: str):
    """40 images in a stream, in a tar on disk or as files, and what their names look like."""
    if kind == "files":
        files = [str(picture(folder / f"{i}.png", (8, 8), (6 * i, 0, 9))) for i in range(40)]
        return Folder("photos", files, torch.arange(40) % 2, ["a", "b"], 8, workers=1), r"/.*\.png"
    data = stream(folder, "true")
    if kind == "stream":
        return data, r"\d+ in pipe:.*"
    members, labels = shards.by_position([str(folder / "whole.tar")]), torch.arange(40) % 2
    return Folder("photos", members, labels, ["a", "b"], 8, 1), r"\d+ in /.*whole.tar"


NAN = torch.tensor([float("nan"), 1.0])
BAD = dataclasses.replace(RECIPE, steps=3, max_bad_steps=1, log_every=1)


@pytest.mark.parametrize("kind", ["stream", "shards", "files"])
def test_the_images_of_a_bad_step_are_named(tmp_path, kind):
    data, name = photos(tmp_path, kind)
    with (
        after_steps(2, lambda: NAN),
        pytest.warns(UserWarning, match=f"step 3: .*; its images: {name}, .*"),
    ):
        train_tokenizer(TINY, BAD, data, tmp_path / "run", "cpu", quiet=True)
    [(step, bad)] = lines(tmp_path / "run", "bad")
    assert step == 3 and len(set(bad["images"])) == 8


@pytest.mark.parametrize("kind", ["memory", "shards", "files"])
def test_the_images_of_a_bad_step_of_a_prior_are_named(tmp_path, monkeypatch, kind):
    memory = noise_images(labels=torch.arange(40) % 2, classes=["a", "b"])
    data, name = (memory, r"image \d+ of noise") if kind == "memory" else photos(tmp_path, kind)
    config, recipe = PriorConfig(dim=64, depth=1), dataclasses.replace(BAD, flip=False)
    tok, ids = randomised(), []

    def step(objective, optimizers, batch, *_):
        ids.append(batch[0])
        return NAN if len(ids) == 3 else torch.ones(2)

    monkeypatch.setattr(loop, "training_step", step)
    with pytest.warns(UserWarning, match=f"step 3: .*; its images: {name}, .*"):
        train_prior(config, recipe, tok, data, tmp_path, "cpu", quiet=True, cache=tmp_path / "ids")
    [(number, bad)] = lines(tmp_path, "bad")
    assert number == 3 and len(set(bad["images"])) == 8
    if kind == "memory":
        rows = torch.tensor([int(name.split()[1]) for name in bad["images"]])
    else:
        rows = torch.tensor([[*map(data.name_of, range(40))].index(name) for name in bad["images"]])
    assert torch.equal(ids[2], tok.encode(to_float(data.at(rows))))
