"""Training that can be killed, resumed, spread over processes, and that says what went wrong."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import TINY, changed, killed_after, lines, same

from minflextok import FlexTok, TrainConfig
from minflextok.data import Images, to_float
from minflextok.training.loop import lr_factor, make_optimizer, update_ema
from minflextok.training.runtime import load_checkpoint, save_checkpoint
from minflextok.training.tokenizer import nested_prob, train_tokenizer

RECIPE = TrainConfig(
    steps=12, batch_size=8, warmup=3, eval_every=4, log_every=2, val_images=4, bf16=False
)


def data(n=40):
    return Images(
        "noise",
        torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(
            torch.uint8
        ),
    )


def run(out, recipe=RECIPE, config=TINY, **options):
    return train_tokenizer(
        config, recipe, options.pop("data", None) or data(), out, "cpu", quiet=True, **options
    )


def test_a_run_leaves_weights_metrics_and_pictures(tmp_path):
    tok = run(tmp_path)
    assert same(tok, FlexTok.from_pretrained(tmp_path))
    assert [s for s, _ in lines(tmp_path, "loss")] == [2, 4, 6, 8, 10, 12]
    assert [s for s, _ in lines(tmp_path, "psnr")] == [4, 8, 12]
    assert list(lines(tmp_path, "psnr")[0][1]) == ["1", "2", "4", "6"]
    assert len(lines(tmp_path, "ids_used")[0][1]) == 6
    assert sorted(p.name for p in (tmp_path / "samples").iterdir())[-1] == "step_000012.png"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("at", [3, 4, 9])
def test_killed_at_any_step_it_resumes_bit_for_bit(tmp_path, at):
    straight = run(tmp_path / "straight")
    with killed_after(at):
        run(tmp_path / "resumed")
    resumed = run(tmp_path / "resumed")
    assert same(straight, resumed)
    for key in ("loss", "grad_norm", "psnr", "lr"):
        assert lines(tmp_path / "straight", key) == lines(tmp_path / "resumed", key)


def start(out, *flags, launcher=()):
    command = [
        sys.executable,
        *launcher,
        "-m",
        "minflextok",
        "train",
        "tokenizer",
        "--preset",
        "shapes",
        "--data",
        "cifar10-sample",
        "--model",
        "image_size=16",
        "--model",
        "enc_depth=1",
        "--model",
        "dec_depth=1",
        "--out",
        str(out),
        "--batch-size",
        "8",
        "--no-bf16",
        "--val-images",
        "8",
        "--device",
        "cpu",
        "--quiet",
        *flags,
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
    flags = ("--steps", "120", "--log-every", "5", "--eval-every", "1000")
    process = start(tmp_path / "a", *flags)
    metrics = tmp_path / "a/metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    saved = load_checkpoint(tmp_path / "a/checkpoint.pt")
    assert 15 <= saved["step"] < 120
    out, err = start(tmp_path / "a", *flags).communicate(timeout=300)
    out, err = start(tmp_path / "b", *flags).communicate(timeout=300)
    assert lines(tmp_path / "a", "loss") == lines(tmp_path / "b", "loss")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (
        tmp_path / "b/model.safetensors"
    ).read_bytes()


def test_two_processes_equal_one(tmp_path):
    flags = ("--steps", "20", "--log-every", "1", "--eval-every", "20")
    out, err = start(tmp_path / "one", *flags).communicate(timeout=300)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    out, err = start(tmp_path / "two", *flags, launcher=launcher).communicate(timeout=300)
    assert (tmp_path / "two/model.safetensors").exists(), err
    one, two = lines(tmp_path / "one", "loss"), lines(tmp_path / "two", "loss")
    assert len(one) == 20 == len(two)
    assert max(abs(a - b) for (_, a), (_, b) in zip(one, two, strict=True)) < 1e-4


def test_micro_batches_sum_to_the_whole(tmp_path):
    whole, parts = (
        run(tmp_path / "a"),
        run(tmp_path / "b", dataclasses.replace(RECIPE, micro_batch=3)),
    )
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    from minflextok.training import loop as train

    real, calls = train.training_step, []

    def step(*a, **k):
        calls.append(1)
        return real(*a, **k) * (float("nan") if len(calls) > 6 else 1)

    monkeypatch.setattr(train, "training_step", step)
    with pytest.raises(
        FloatingPointError, match=r"loss is nan .*at step 8: lower --lr \(now .*last good step"
    ):
        run(tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 4


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    script = f"""
import resource, torch
from pathlib import Path
from minflextok import FlexTok
from minflextok.training.runtime import save_checkpoint
path = Path({str(tmp_path / "c.pt")!r})
save_checkpoint({{"step": 1, "x": torch.zeros(10)}}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # a file cannot grow past this: as on a full disk
for save in (lambda: save_checkpoint({{"step": 2, "x": torch.zeros(10**6)}}, path),
             lambda: FlexTok({TINY!r}).save_pretrained(path.parent / "w")):
    try:
        save()
    except OSError as e:
        print("ERROR", e)
"""
    imports = "from minflextok import TokenizerConfig\n"
    done = subprocess.run(
        [sys.executable, "-c", imports + script], capture_output=True, text=True, timeout=120
    )
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    assert (
        len(errors) == 2
        and "disk full" in errors[0]
        and "last good" in errors[0]
        and "disk full" in errors[1]
    ), done
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 1
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["c.pt"]


def test_checkpoints_that_do_not_fit(tmp_path):
    run(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"holds another run \(train.lr=0.004 there, 0.1 here\): give its settings, or another --out",
    ):
        run(tmp_path, dataclasses.replace(RECIPE, lr=0.1))
    with pytest.raises(ValueError, match="model.dec_depth=2 there, 3 here|another run"):
        run(tmp_path, config=changed(dec_depth=3))
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    for damaged in (whole[:1000], b"", b"cos\nsystem\n(S'touch /tmp/minflextok_pwned'\ntR."):
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read"):
            run(tmp_path)
    assert not os.path.exists("/tmp/minflextok_pwned")


def test_data_that_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"\(3, 8, 8\) images, this model takes \(3, 16, 16\)"):
        run(tmp_path, config=changed(image_size=16))
    with pytest.raises(ValueError, match="at least 10"):
        run(tmp_path, data=data(5))


def test_a_run_starts_from_other_weights_that_may_have_fewer_registers(tmp_path):
    few = run(tmp_path / "few")  # K = 6
    more = dataclasses.replace(TINY, num_registers=9)
    still = dataclasses.replace(RECIPE, steps=1, lr=1e-12)
    tok = run(tmp_path / "more", still, more, init=str(tmp_path / "few"))
    x = to_float(data(4).images)
    assert torch.equal(
        tok.encode(x)[:, :6], few.encode(x)
    )  # registers look back only: the first six say what they said
    assert not torch.equal(tok.encoder.registers[6], tok.encoder.registers[7])
    with pytest.raises(
        ValueError, match=r"cannot start from .*few: decoder.blocks.2.* is absent there"
    ):
        run(
            tmp_path / "deep",
            still,
            dataclasses.replace(TINY, dec_depth=3),
            init=str(tmp_path / "few"),
        )
    with pytest.raises(ValueError, match=r"from .*few [0-9a-f]+' there, 'noise' here"):
        run(tmp_path / "more", still, more)


def test_minutes_end_a_run(tmp_path):
    began = time.time()
    run(tmp_path, dataclasses.replace(RECIPE, steps=10**9, minutes=0.02, eval_every=10**6))
    assert 1 < time.time() - began < 60
    assert lines(tmp_path, "psnr")


def test_a_torn_log_line_and_another_machine_do_not_stop_a_resume(tmp_path):
    run(tmp_path, dataclasses.replace(RECIPE, steps=4))
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 5, "lo')
    run(tmp_path, dataclasses.replace(RECIPE, steps=4, workers=0, compile=False, log_every=1))
    assert [s for s, _ in lines(tmp_path, "loss")] == [2, 4]
    (tmp_path / "run.json").write_text("")
    with pytest.raises(ValueError, match="run.json cannot be read"):
        run(tmp_path)


def test_sigterm_is_obeyed_also_where_every_step_evaluates(tmp_path, monkeypatch):
    from minflextok.training import loop as train

    real = train.training_step

    def step(*a, **k):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*a, **k)

    monkeypatch.setattr(train, "training_step", step)
    with pytest.raises(SystemExit) as e:
        run(tmp_path, dataclasses.replace(RECIPE, eval_every=1))
    assert e.value.code == 143 and load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 1


def test_schedules():
    c = TrainConfig(warmup=10, min_lr=0.1, nested_from=0.2, nested_full=0.6)
    assert lr_factor(0, 0.0, c) == pytest.approx(0.1) and lr_factor(9, 0.0, c) == 1
    assert lr_factor(50, 0.5, c) == pytest.approx(0.55) and lr_factor(99, 1.0, c) == pytest.approx(
        0.1
    )
    assert [nested_prob(p, c) for p in (0, 0.2, 0.6, 1)] == [0, 0, 1, 1] and nested_prob(
        0.4, c
    ) == pytest.approx(0.5)
    assert nested_prob(0.0, TrainConfig(nested_from=0, nested_full=0)) == 1
    assert nested_prob(0.9, TrainConfig(nested_from=1, nested_full=1)) == 0


def test_ema_follows_and_decay_spares_tokens(tok):
    ema = FlexTok(TINY).requires_grad_(False)
    for step in range(2000):
        update_ema(ema, tok, step, 0.99)
    torch.testing.assert_close(ema.encoder.registers, tok.encoder.registers, atol=1e-4, rtol=1e-3)
    decayed, free = make_optimizer(tok, TrainConfig()).param_groups
    assert decayed["weight_decay"] > 0 == free["weight_decay"]
    assert any(p is tok.encoder.registers for p in free["params"]) and all(
        p.ndim == 2 for p in decayed["params"]
    )
    assert len(decayed["params"]) + len(free["params"]) == len(list(tok.parameters()))


def test_atomic_save_replaces(tmp_path):
    for i in range(2):
        save_checkpoint({"step": i}, tmp_path / "c.pt")
    assert load_checkpoint(tmp_path / "c.pt") == {"step": 1} and len(list(tmp_path.iterdir())) == 1
