"""The training loop: it can be killed, resumed and spread over ranks, and it says what went
wrong."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import PIL
import pytest
import torch
from conftest import (
    RECIPE,
    TINY,
    after_steps,
    changed,
    check_resume,
    command,
    killed_after,
    lines,
    newest,
    noise_images,
    same,
    state,
)
from image_files import png, shard
from safetensors.torch import load_file

from minflextok import FlexTok, TrainConfig
from minflextok.cli.parser import main
from minflextok.data import Stream, identity
from minflextok.training.objective import TokenizerObjective
from minflextok.training.optimizers import lr_factor, make_optimizers, update_ema
from minflextok.training.run import Run
from minflextok.training.runtime import keep_freed_memory, stop_on_signal
from minflextok.training.tokenizer import train_tokenizer


def run(out, recipe=RECIPE, config=TINY, data=None, **options):
    data = data or noise_images()
    return train_tokenizer(config, recipe, data, out, "cpu", quiet=True, **options)


def run_record(out):
    return json.loads((out / "run.json").read_text())


# ---- what a run writes ---------------------------------------------------------------------------


def test_a_run_writes_weights_metrics_and_pictures(tmp_path):
    tok = run(tmp_path)
    assert same(tok, FlexTok.from_pretrained(tmp_path))
    assert [s for s, _ in lines(tmp_path, "loss")] == [2, 4, 6, 8, 10, 12]
    assert [s for s, _ in lines(tmp_path, "psnr")] == [4, 8, 12]
    assert list(lines(tmp_path, "psnr")[0][1]) == ["1", "2", "4", "6"]
    assert len(lines(tmp_path, "ids_used")[0][1]) == 6
    assert sorted(p.name for p in (tmp_path / "samples").iterdir())[-1] == "step_000012.png"
    assert not list(tmp_path.glob("*.part"))


def test_run_json_has_the_settings_and_the_data(tmp_path):
    run(tmp_path)
    record = run_record(tmp_path)
    assert set(record) == {"model", "train", "data", "launches"}
    assert record["data"] == {"name": "noise", "images": 40, "identity": identity(noise_images())}
    assert record["model"]["num_registers"] == 6 and record["train"]["batch_size"] == 8


def test_tensorboard_gets_the_numbers_of_the_log(tmp_path, monkeypatch):
    found = []

    class Writer:
        def __init__(self, folder, purge_step):
            assert (folder, purge_step) == (str(tmp_path / "tensorboard"), 1)

        def add_scalar(self, *values):
            found.append(values)

        def close(self):
            found.append("closed")

    recipe = dataclasses.replace(RECIPE, steps=2, tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed
    with pytest.raises(ValueError, match=r"pip install .*\[tensorboard\].*tensorboard=False"):
        run(tmp_path, recipe)
    fake = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    run(tmp_path, recipe)
    assert ("loss", lines(tmp_path, "loss")[0][1], 2) in found and found[-1] == "closed"
    assert {name for name, *_ in found[:-1]} >= {"psnr/1", "psnr/6", "lr", "grad_norm"}
    assert all(isinstance(value, int | float) for _, value, _ in found[:-1])


def test_tensorboard_itself_reads_them_also_after_a_resume(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = dataclasses.replace(RECIPE, tensorboard=True)
    with killed_after(5):
        run(tmp_path, recipe)
    run(tmp_path, recipe)
    board = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, pytest.approx(e.value)) for e in board.Scalars("loss")] == lines(
        tmp_path, "loss"
    )
    assert "psnr/6" in board.Tags()["scalars"] and "step" not in board.Tags()["scalars"]


# ---- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 4, 9])
def test_killed_at_any_step_it_resumes_bit_for_bit(tmp_path, steps):
    check_resume(run, tmp_path, steps, "psnr", "lr")


@pytest.mark.filterwarnings("ignore:a stream has no validation split")
def test_compressed_shards_resume_bit_for_bit_in_the_middle_of_an_epoch(tmp_path):
    images = {f"{i}.png": png(9 * i) for i in range(25)}
    data = Stream("s", [str(shard(tmp_path / "a.tar.gz", images))], 8, workers=2)
    check_resume(lambda out: run(out, data=data), tmp_path, 6, "psnr")


def test_a_torn_log_line_and_another_machine_do_not_stop_a_resume(tmp_path):
    run(tmp_path, dataclasses.replace(RECIPE, steps=4))
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 5, "lo')
    run(tmp_path, dataclasses.replace(RECIPE, steps=4, workers=0, compile=False, log_every=1))
    assert [s for s, _ in lines(tmp_path, "loss")] == [2, 4]
    (tmp_path / "run.json").write_text("")
    with pytest.raises(ValueError, match="run.json cannot be read"):
        run(tmp_path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"holds another run \(train.lr=0.004 there, 0.1 here\): give its settings, or",
    ):
        run(tmp_path, dataclasses.replace(RECIPE, lr=0.1))
    with pytest.raises(ValueError, match="model.dec_depth=2 there, 3 here"):
        run(tmp_path, config=changed(dec_depth=3))
    with pytest.raises(ValueError, match="data.images=40 there, 50 here"):
        run(tmp_path, data=noise_images(50))


def changed_pixel():
    data = noise_images()
    data.images[7, 0, 0, 0] ^= 1
    return data


@pytest.mark.parametrize(
    "data", [noise_images(50), changed_pixel(), noise_images().select(torch.arange(40).flip(0))]
)
def test_a_run_whose_data_has_changed_offers_a_choice(tmp_path, data):
    short = dataclasses.replace(RECIPE, steps=4)
    run(tmp_path, short)
    with pytest.raises(ValueError, match=r"has changed since .* Restore .* another out; or accept"):
        run(tmp_path, short, data=data)
    run(tmp_path, short)  # the refused run has changed nothing
    (tmp_path / "run.json").write_text(json.dumps(run_record(tmp_path) | {"data": {}}))
    with pytest.warns(UserWarning, match="does not say what data .*data.identity"):
        run(tmp_path, short, data=data)
    assert run_record(tmp_path)["data"]["identity"] == identity(data)
    with pytest.raises(ValueError, match="has changed since"):
        run(tmp_path, short)


def test_a_record_without_identity_resumes_with_a_warning(tmp_path):
    run(tmp_path)
    record = run_record(tmp_path)
    del record["data"]["identity"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=r"began with \(data.identity\)"):
        run(tmp_path)
    with pytest.raises(ValueError, match="data.images=40 there, 50 here"):
        run(tmp_path, data=noise_images(50))


def test_a_run_of_an_earlier_version_is_refused(tmp_path):
    run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(run_record(tmp_path) | {"data": "noise"}))
    with pytest.raises(ValueError, match="a run of an earlier version.*give another out"):
        run(tmp_path)


def test_a_damaged_checkpoint_is_refused_and_never_executed(tmp_path):
    run(tmp_path)
    target, last = tmp_path / "executed", newest(tmp_path)
    pickled = f"cos\nsystem\n(S'touch {target}'\ntR.".encode()
    for name in ("state.safetensors", "state.json"):
        whole = (last / name).read_bytes()
        same_size = (pickled * len(whole))[: len(whole)]
        for damaged in (whole[: len(whole) // 2], b"", pickled, same_size):
            (last / name).write_bytes(damaged)
            with pytest.raises(ValueError, match="or damaged .*delete it to resume from the one"):
                run(tmp_path)
        (last / name).write_bytes(whole)
    (last / "state.safetensors").unlink()
    with pytest.raises(ValueError, match="or damaged .*No such file"):
        run(tmp_path)
    assert not target.exists()
    shutil.rmtree(last)
    log = lines(tmp_path, "loss")
    run(tmp_path)  # from the one before
    assert lines(tmp_path, "loss") == log


def test_another_precision_goes_on_with_a_warning(tmp_path, monkeypatch):
    half = dataclasses.replace(RECIPE, bf16=True, steps=4)
    monkeypatch.setattr("minflextok.precision.native_bfloat16", lambda device: False)
    run(tmp_path, half)
    assert set(lines(tmp_path, "precision")) == {(2, "float32"), (4, "float32")}
    assert run_record(tmp_path)["train"]["bf16"] is True
    saved = state(tmp_path) | {"precision": "bfloat16"}
    (newest(tmp_path) / "state.json").write_text(json.dumps(saved))
    with pytest.warns(UserWarning, match="trained in bfloat16, this device continues in float32"):
        run(tmp_path, half)


def test_a_run_starts_from_other_weights_that_may_have_fewer_registers(tmp_path):
    few = run(tmp_path / "few")  # K = 6
    more, init = changed(num_registers=9), str(tmp_path / "few")
    still = dataclasses.replace(RECIPE, steps=1, lr=1e-12)
    tok = run(tmp_path / "more", still, more, init=init)
    x = noise_images(4).images.float() / 127.5 - 1
    ids = tok.encode(x)  # registers attend to earlier ones only: new ones change nothing
    assert torch.equal(ids[:, :6], few.encode(x))
    assert not torch.equal(tok.encoder.registers[6], tok.encoder.registers[7])
    assert run_record(tmp_path / "more")["init"] == {
        "weights": init,
        "fingerprint": run_record(tmp_path / "more")["init"]["fingerprint"],
    }
    with pytest.raises(ValueError, match="few: decoder.blocks.2.* is absent there"):
        run(tmp_path / "deep", still, changed(dec_depth=3), init=init)
    with pytest.raises(ValueError, match=r"init.weights='.*few' there, None here"):
        run(tmp_path / "more", still, more)


# ---- signals, failures, limits -------------------------------------------------------------------


def start(out, *flags, launcher=()):
    """Start the command as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    python = [sys.executable, *launcher, "-m", "minflextok"]
    return subprocess.Popen(
        [*python, *command(out, *flags)], stdout=pipe, stderr=pipe, text=True, env=environment
    )


def test_sigterm_saves_and_the_same_command_resumes(tmp_path):
    flags = ("--steps", "60", "--log-every", "5", "--eval-every", "1000")
    process = start(tmp_path / "a", *flags)
    metrics = tmp_path / "a/metrics.jsonl"
    for _ in range(1800):
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert 15 <= state(tmp_path / "a")["step"] < 60
    for name in "ab":
        main(command(tmp_path / name, *flags))
    assert lines(tmp_path / "a", "loss") == lines(tmp_path / "b", "loss")
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_sigterm_is_obeyed_also_where_every_step_evaluates(tmp_path):
    def stop():
        os.kill(os.getpid(), signal.SIGTERM)
        return torch.ones(2)

    with after_steps(0, stop), pytest.raises(SystemExit) as e:
        run(tmp_path, dataclasses.replace(RECIPE, eval_every=1))
    assert e.value.code == 143 and state(tmp_path)["step"] == 1


def test_a_run_on_another_thread_installs_no_signal_handlers():
    seen = []

    def work():
        with stop_on_signal() as received:
            seen.append((received, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([], before)]


NAN, FILE = float("nan"), "state.safetensors"


def test_too_many_nans_stop_the_run_and_keep_the_last_good_checkpoint(tmp_path):
    few = dataclasses.replace(RECIPE, max_bad_steps=2)
    match = (
        r"loss is nan and gradient norm 1.0 at step 9: give a smaller lr \(now lr=0.004\) and "
        r"another out. Bad steps among the last 100: \[7, 8, 9\], more than max_bad_steps=2; "
        r"positions .* in the training split: \d+, .*step_000000004|step_000000008 is the last good"
    )
    with (
        after_steps(6, lambda: torch.tensor([NAN, 1.0])),
        pytest.warns(UserWarning, match="step 7: its gradient counts as zero; positions"),
        pytest.raises(FloatingPointError, match=match),
    ):
        run(tmp_path, few)
    assert state(tmp_path)["step"] == 8 and state(tmp_path)["skipped"] == [7, 8]
    assert all(x.isfinite().all() for x in load_file(newest(tmp_path) / FILE).values())
    bad = lines(tmp_path, "bad")
    assert [step for step, _ in bad] == [7, 8, 9] and len(bad[0][1]["images"]) == 8
    with after_steps(0, lambda: torch.tensor([NAN, 1.0])), pytest.raises(FloatingPointError):
        run(tmp_path, few)  # the same command says the same, at the first bad step
    run(tmp_path, dataclasses.replace(few, max_bad_steps=3))


def test_a_bad_step_changes_no_weight_for_good(tmp_path, monkeypatch):
    """The images of step 5 make the loss NaN, in one of its micro-batches alone."""
    real, calls = TokenizerObjective.forward, []

    def forward(self, *tensors):
        calls.append(1)
        return real(self, *tensors) * (NAN if len(calls) % 24 == 10 else 1)

    def two_parts(out):
        return run(out, dataclasses.replace(RECIPE, micro_batch=4))

    monkeypatch.setattr(TokenizerObjective, "forward", forward)
    with pytest.warns(UserWarning, match="loss is nan and gradient norm nan at step 5"):
        straight = two_parts(tmp_path / "straight")
    assert all(p.isfinite().all() for p in straight.parameters())
    calls.clear()
    with pytest.warns(UserWarning, match="at step 5"), killed_after(9):
        two_parts(tmp_path / "resumed")
    calls[:] = [1] * 16
    assert same(straight, two_parts(tmp_path / "resumed"))
    assert state(tmp_path / "resumed")["skipped"] == [5]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    real = Run.save

    def save(self, checkpoints):
        if self.step == 8:
            next(self.model.parameters()).data[0] = NAN
        real(self, checkpoints)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(FloatingPointError, match="not finite at step 8: .*000004 is the last good"),
    ):
        patch.setattr(Run, "save", save)
        run(tmp_path)
    assert state(tmp_path)["step"] == 4


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    pytest.importorskip("resource")
    script = f"""
import resource, torch
from pathlib import Path
from minflextok import FlexTok, TokenizerConfig
from minflextok.training.checkpoints import Checkpoints
from minflextok.training.runtime import Ranks
out = Path({str(tmp_path / "run")!r})
checkpoints = Checkpoints(out, Ranks("cpu"))
checkpoints.save(1, {{}}, {{"x": torch.zeros(10)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # files cannot grow past this size
for save in (lambda: checkpoints.save(2, {{}}, {{"x": torch.zeros(10**6)}}),
             lambda: FlexTok({TINY!r}).save_pretrained(out / "w")):
    try:
        save()
    except OSError as e:
        print("ERROR", e)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 2 and all("disk full" in error for error in errors), done
    assert "step_000000001 is still the last good" in errors[0]
    assert state(tmp_path / "run")["step"] == 1
    files = [p.name for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert sorted(files) == ["state.json", "state.safetensors"]


def test_the_last_two_checkpoints_are_kept(tmp_path):
    (tmp_path / "checkpoints/.step_000000003.part").mkdir(parents=True)  # of a killed run
    run(tmp_path)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_000000008", "step_000000012"]


def test_checkpoints_come_with_the_clock(tmp_path):
    """A run that is killed long before its first evaluation resumes bit for bit."""
    rare = dataclasses.replace(RECIPE, eval_every=1000, save_minutes=1e-9)
    with killed_after(5):
        run(tmp_path, rare)
    assert state(tmp_path)["step"] == 5
    off = dataclasses.replace(rare, save_minutes=0.0)
    straight = run(tmp_path / "straight", off)
    assert same(straight, run(tmp_path, off)) and len(list(newest(tmp_path).parent.iterdir())) == 2
    assert lines(tmp_path, "loss") == lines(tmp_path / "straight", "loss")


def test_a_run_of_one_file_is_refused(tmp_path):
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(ValueError, match="earlier version .*checkpoint.pt.*another out"):
        run(tmp_path)


# ---- which settings define a run -----------------------------------------------------------------


def test_free_settings_may_change_on_a_resume(tmp_path):
    with killed_after(9):
        run(tmp_path)
    free = {"micro_batch": 4, "eval_every": 5, "log_every": 1, "save_minutes": 1.0, "workers": 1}
    run(tmp_path, dataclasses.replace(RECIPE, **free, max_bad_steps=0, checkpoint_activations=True))
    first, second = run_record(tmp_path)["launches"]
    assert (first["step"], second["step"]) == (0, 8) and first["seed"] == 0
    assert "python" in first["command"] and first["versions"]["torch"] == torch.__version__
    assert first["versions"]["cuda"] == torch.version.cuda
    assert first["versions"]["webdataset"] and first["versions"]["pillow"] == PIL.__version__
    assert len(first["commit"] or "0" * 40) >= 40
    assert (first["free"]["micro_batch"], second["free"]["micro_batch"]) == (0, 4)
    assert run_record(tmp_path)["train"]["micro_batch"] == 4


def test_a_run_is_extended_by_choice(tmp_path):
    run(tmp_path)
    longer = dataclasses.replace(RECIPE, steps=16)
    with pytest.raises(
        ValueError, match=r"shorter run \(train.steps=12 there, 16 here\): give ext"
    ):
        run(tmp_path, longer)
    run(tmp_path, dataclasses.replace(longer, extend=True))
    assert [s for s, _ in lines(tmp_path, "loss")][-2:] == [14, 16]
    assert dict(lines(tmp_path, "lr"))[14] > dict(lines(tmp_path, "lr"))[12]
    run(tmp_path, longer)  # it is that run now
    for other in ({"steps": 15}, {"steps": 20, "lr": 0.1}):
        with pytest.raises(ValueError, match="holds another run"):
            run(tmp_path, dataclasses.replace(longer, extend=True, **other))


# ---- limits --------------------------------------------------------------------------------------


def test_data_that_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"\(3, 8, 8\) images, this model takes \(3, 16, 16\)"):
        run(tmp_path, config=changed(image_size=16))
    with pytest.raises(ValueError, match="at least 10"):
        run(tmp_path, data=noise_images(5))


def test_minutes_end_a_run(tmp_path):
    began = time.time()
    run(tmp_path, dataclasses.replace(RECIPE, steps=10**9, minutes=0.02, eval_every=10**6))
    assert 1 < time.time() - began < 60
    assert lines(tmp_path, "psnr")


# ---- ranks and micro-batches ---------------------------------------------------------------------


@pytest.mark.slow  # test_ranks.py compares ranks in each run of the tests, this the command line
@pytest.mark.skipif(sys.platform != "linux", reason="for glibc alone")
def test_freed_memory_is_used_again():
    import resource  # not on Windows

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        [torch.ones(2**20) for _ in range(8)]  # 4 MiB each: 8,192 pages together
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    faults()
    assert min(faults() for _ in range(3)) < 100


def test_two_ranks_equal_one(tmp_path):
    flags = ("--steps", "8", "--log-every", "1", "--eval-every", "8")
    start(tmp_path / "one", *flags).communicate(timeout=300)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    _, err = start(tmp_path / "two", *flags, launcher=launcher).communicate(timeout=300)
    assert (tmp_path / "two/model.safetensors").exists(), err
    one, two = lines(tmp_path / "one", "loss"), lines(tmp_path / "two", "loss")
    assert len(one) == 8 == len(two)
    assert max(abs(a - b) for (_, a), (_, b) in zip(one, two, strict=True)) < 1e-4


def test_micro_batches_sum_to_the_whole(tmp_path):
    whole = run(tmp_path / "a")
    parts = run(tmp_path / "b", dataclasses.replace(RECIPE, micro_batch=3))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


# ---- schedules, optimizer, averaged weights ------------------------------------------------------


def test_learning_rate_schedules():
    c = TrainConfig(warmup=10, min_lr=0.1)
    assert lr_factor(0, 0.0, c) == pytest.approx(0.1) and lr_factor(9, 0.0, c) == 1
    assert lr_factor(50, 0.5, c) == pytest.approx(0.55)
    assert lr_factor(99, 1.0, c) == pytest.approx(0.1)
    linear = dataclasses.replace(c, decay_from=0.6)
    found = [lr_factor(50, progress, linear) for progress in (0.1, 0.6, 0.8, 1.0)]
    assert found == pytest.approx([1, 1, 0.55, 0.1])


def test_averaged_weights_follow(tok):
    ema = FlexTok(TINY).requires_grad_(False)
    for step in range(2000):
        update_ema(ema, tok, step, 0.99)
    torch.testing.assert_close(ema.encoder.registers, tok.encoder.registers, atol=1e-4, rtol=1e-3)


def test_weight_decay_is_for_matrices_only(tok):
    [optimizer] = make_optimizers(tok, TrainConfig())
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] > 0 == free["weight_decay"]
    assert any(p is tok.encoder.registers for p in free["params"])
    assert all(p.ndim == 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(tok.parameters()))


@pytest.mark.parametrize(
    "fields, match",
    [
        ({"optimizer": "sgd"}, "optimizer='sgd': give 'adamw' or 'muon'"),
        ({"muon_lr": 0.0}, "muon_lr=0.0: give a positive number"),
        ({"lr": -1.0}, "lr=-1.0: give a positive number"),
        ({"decay_from": 1.0}, "decay_from=1.0: give a share below 1"),
    ],
)
def test_bad_recipes(fields, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(RECIPE, **fields)


@pytest.mark.parametrize("device", ["meta", "cuda:99", "nonsense"])
def test_a_device_that_does_not_work_is_an_error(tmp_path, device):
    with pytest.raises(ValueError, match=f"device='{device}' does not work here"):
        train_tokenizer(TINY, RECIPE, noise_images(), tmp_path, device)
