"""Runs on two ranks: DDP and FSDP2 train as one process does, checkpoints move between numbers of
ranks, and a rank may be killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import islice

import pytest
import torch
from conftest import (
    RECIPE,
    ROOT,
    TINY,
    command,
    killed_after,
    lines,
    newest,
    noise_images,
    state,
)
from image_files import shard
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from minflextok import FlexTok, PriorConfig
from minflextok.cli.parser import main
from minflextok.config import DATA_DIR
from minflextok.data import Folder, shards
from minflextok.training.checkpoints import Checkpoints, names_in
from minflextok.training.classifier import train_classifier
from minflextok.training.parallel import blocks_of, checkpoint_activations
from minflextok.training.prior import train_prior
from minflextok.training.tokenizer import train_tokenizer
from minflextok.training.vae import train_vae

LONG = dataclasses.replace(RECIPE, steps=50, log_every=1, eval_every=25)


TEXT = PriorConfig(
    100, 6, 0, dim=32, depth=2, head_dim=8, text="words", words=("red", "circle"), text_dim=16
)


def write_photos(folder):
    """Three shards of 5, 40 and 75 embedded images, on disk."""
    stored = shards.read_all([str(DATA_DIR / "cifar10-sample-train.tar.gz")])
    found = [(f"{s.key}.jpg", s.image) for s in islice(shards.samples(stored), 120)]
    folder.mkdir()
    for name, part in (("a", found[:5]), ("b", found[5:45]), ("c", found[45:])):
        shard(folder / f"{name}.tar", part)


def run(out, recipe=LONG, **options):
    """Train on noise, or on the shards beside `out`, if there are any."""
    data, paths = noise_images(), sorted(map(str, out.parent.glob("photos/*.tar")))
    if paths:
        data = Folder("photos", shards.by_position(paths), None, [], TINY.image_size, 0)
    return train_tokenizer(TINY, recipe, data, out, "cpu", quiet=True, **options)


def torchrun(script, *arguments, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", "--max-restarts", str(restarts), "--monitor-interval", "0.1", str(script)]
    path = [str(ROOT / "tests"), str(ROOT / "tests/training"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    """Wait for the end of a torchrun that must succeed."""
    _, errors = process.communicate(timeout=300)
    own = [line for line in errors.splitlines() if "torch/distributed/elastic" not in line]
    assert process.returncode == 0, "\n".join(own)[:6000]


TRAIN = """
import dataclasses, sys, time
from pathlib import Path
import torch
from conftest import TINY, killed_after, noise_images, randomised
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from minflextok import FlexTok, Prior
from minflextok.data import to_float
from minflextok.training import token_cache
from minflextok.training.objective import TokenizerObjective
from minflextok.training.parallel import shard
from minflextok.training.checkpoints import Checkpoints
from minflextok.training.runtime import Ranks
from test_ranks import LONG, TEXT, run

OUT = Path(sys.argv[1])
recipe = dataclasses.replace(LONG, steps=STEPS, eval_every=STEPS // 2)
Ranks.close = lambda self: None  # one process group for all runs of this script
sharded = dataclasses.replace(recipe, fsdp=True, checkpoint_activations=True)
run(OUT / "ddp", dataclasses.replace(recipe, micro_batch=3))
tok = run(OUT / "fsdp", sharded)
assert not hasattr(tok.encoder.registers, "full_tensor"), "the result is whole"
with killed_after(STEPS // 2 + 2):
    run(OUT / "two-to-one", sharded)
run(OUT / "one-to-two", sharded)

# a save in the background, of sharded and of whole tensors
ranks = Ranks("cpu")
checkpoints = Checkpoints(OUT / "background", ranks, background=True)
mesh = init_device_mesh("cpu", (2,))
tensors = {"x": torch.arange(6.0), "y": torch.ones(1)}
for name, rows in (("empty", 1), ("uneven", 3)):  # rank 1 has no row, or one of three
    tensors[name] = distribute_tensor(torch.ones(rows, 2), mesh, [Shard(0)])
for step in (1, 2, 3):
    checkpoints.save(step, {}, tensors)
    tensors["x"] += 1  # the next steps change the tensors while they are written
    checkpoints.poll()
checkpoints.finish()
ranks.wait()
assert [p.name[-1] for p in checkpoints.found()] == ["2", "3"]
found = {"x": torch.zeros(6), "y": torch.zeros(1)}
found |= {"empty": torch.zeros(1, 2), "uneven": torch.zeros(3, 2)}
checkpoints.read(checkpoints.found()[-1], found)
assert torch.equal(found["x"], torch.arange(6.0) + 2) and found["y"] == 1
assert (found["empty"] == 1).all() and (found["uneven"] == 1).all()

# a text prior, sharded: its cross-attention is called before its block is
torch.manual_seed(0)
prior = Prior(TEXT)
batch = torch.randint(TEXT.vocab_size, (4, TEXT.num_tokens)), prior.prepare(["red circle"] * 4)
batch = *batch, *prior.draw(4)
whole = prior(*batch)
whole.backward()
gradient = prior.blocks[1].cross.wkv.weight.grad.clone()
prior.zero_grad()
shard(prior, half=False)
loss = prior(*batch)
loss.backward()
assert torch.allclose(loss, whole, atol=1e-6)
found = prior.blocks[1].cross.wkv.weight.grad.full_tensor()
assert torch.allclose(found, gradient, atol=1e-6)

# bfloat16 computation with float32 masters
model = TokenizerObjective(randomised())
x = to_float(noise_images(4).images)
draws = model.draw(x, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    exact = model(x, *draws)
shard(model, half=True)
with torch.autocast("cpu", torch.bfloat16):
    loss = model(x, *draws)
loss.backward()
weight = model.tok.decoder.blocks[0].attn.wq.weight
assert weight.dtype == weight.grad.dtype == torch.float32
assert 0 < abs(loss - exact) < 0.1 * exact

# the ids of ten parts, shared by the ranks
torch.manual_seed(0)
tok, encode, calls = FlexTok(TINY), FlexTok.encode, []
def slow(*args):
    calls.append(1)
    time.sleep(0.1)
    return encode(*args)
FlexTok.encode, token_cache.PART = slow, 4
ranks.wait()
ids, _ = token_cache.extract_ids(tok, noise_images(), cache=OUT / "ids", quiet=True)
assert 0 < len(calls) < 10 and ranks.mean(len(calls)) == 5
assert (ids[:, 0] == encode(tok, to_float(noise_images().images)).numpy()).all()
"""


def losses(out):
    return torch.tensor([loss for _, loss in lines(out, "loss")], dtype=torch.float64)


@pytest.mark.parametrize("steps", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_two_ranks_train_as_one(tmp_path, steps):
    """DDP with micro-batches, FSDP2 with activation checkpointing, and both resumed from another
    number of ranks: the losses of one process. On shards of real images."""
    write_photos(tmp_path / "photos")
    recipe = dataclasses.replace(LONG, steps=steps, eval_every=steps // 2)
    tok = run(tmp_path / "one", recipe)
    with killed_after(steps // 2 + 2):
        run(tmp_path / "one-to-two", recipe)
    script = tmp_path / "train.py"
    script.write_text(TRAIN.replace("STEPS", str(steps)))
    finish(torchrun(script, tmp_path))
    assert state(tmp_path / "two-to-one")["step"] == steps // 2
    run(tmp_path / "two-to-one", recipe)
    one = losses(tmp_path / "one")
    for name in ("ddp", "fsdp", "two-to-one", "one-to-two"):
        found = losses(tmp_path / name)
        assert found.shape == one.shape and (found - one).abs().max() < 1e-4, name
        other = FlexTok.from_pretrained(tmp_path / name)
        for p, q in zip(tok.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=2e-3, rtol=1e-2)
    files = [load_file(f) for f in sorted(newest(tmp_path / "fsdp").glob("*.safetensors"))]
    assert len(files) == 2 and names_in(newest(tmp_path / "fsdp")) == names_in(
        newest(tmp_path / "one")
    )
    name = "ema.tok.encoder.blocks.0.attn.wq.weight"  # each rank writes its rows
    assert [len(part[name]) for part in files] == [32, 32]


# ---- faults --------------------------------------------------------------------------------------

FAULTS = """
import dataclasses, os, sys, time
from pathlib import Path
from conftest import RECIPE
from minflextok.training import loop
from minflextok.training.runtime import Ranks
from test_ranks import run

out, real, steps, pause, dying = Path(sys.argv[1]), loop.training_step, [], 0, False
Ranks.close = lambda self: None  # one process group for all runs of this script

def step(*args):
    steps.append(1)
    if dying and len(steps) == 10 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    time.sleep(pause)
    return real(*args)

loop.training_step = step
sharded = dataclasses.replace(RECIPE, fsdp=True)
for number, (folder, recipe) in enumerate([(out / "ddp", RECIPE), (out / "fsdp", sharded)]):
    steps.clear()
    dying = os.environ["TORCHELASTIC_RESTART_COUNT"] == str(number)  # once in each
    run(folder / "killed", recipe)
    dying = False
    run(folder / "straight", recipe)
pause = 1.0
run(out / "slow", RECIPE)
"""


def test_a_killed_rank_is_restarted_and_sigterm_to_all_saves_at_once(tmp_path):
    """A rank is killed in step 10, and torchrun starts both again: they end as a run without
    interruption, bit for bit. With DDP on images in memory, then with FSDP2 on shards. Then SIGTERM
    stops a run whose steps take a second each."""
    script, slow = tmp_path / "script.py", tmp_path / "slow"
    script.write_text(FAULTS)
    (tmp_path / "fsdp").mkdir()
    write_photos(tmp_path / "fsdp/photos")
    process = torchrun(script, tmp_path, restarts=2)
    while process.poll() is None and not (
        (slow / "metrics.jsonl").exists() and lines(slow, "loss")
    ):
        time.sleep(0.1)
    if process.poll() is not None:
        finish(process)
    seen = lines(slow, "loss")[-1][0]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert seen <= state(slow)["step"] <= seen + 2
    for name in ("ddp", "fsdp"):
        straight, killed = tmp_path / name / "straight", tmp_path / name / "killed"
        launches = json.loads((killed / "run.json").read_text())["launches"]
        assert [launch["step"] for launch in launches][:2] == [0, 8]
        assert lines(straight, "loss") == lines(killed, "loss")
        files = sorted(f.name for f in newest(straight).glob("*.safetensors"))
        assert len(files) == 2
        for file in ("model.safetensors", *files):
            a, b = (
                load_file((out if file.startswith("model") else newest(out)) / file)
                for out in (straight, killed)
            )
            assert all(torch.equal(a[key], b[key]) for key in a), (name, file)


COMMAND = "import sys; from minflextok.cli.parser import main; main(sys.argv[1:])"


def refused(tmp_path, *arguments):
    """What a command that must fail says on two ranks."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    process = torchrun(script, *arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    return [line for line in errors.splitlines() if "minflextok: error" in line], errors


def test_another_learning_rate_is_refused_once_and_the_checkpoint_is_not_called_damaged(tmp_path):
    out, steps = tmp_path / "run", ("--steps", "1")
    main(command(out, *steps))
    messages, errors = refused(tmp_path, *command(out, *steps, "--lr", "0.1"))
    assert len(messages) == 1 and "holds another run (train.lr=0.004 there, 0.1 here)" in errors
    assert "delete it" not in errors and "or damaged" not in errors


def test_a_batch_that_the_ranks_cannot_share_is_refused_once_before_anything_is_read(tmp_path):
    messages, errors = refused(
        tmp_path, *command(tmp_path / "run", "--batch-size", "7", "--data", "nowhere")
    )
    assert len(messages) == 1, errors
    assert "--batch-size 7 is not a multiple of the world size 2" in messages[0]


@pytest.mark.parametrize("train", [train_prior, train_tokenizer, train_vae, train_classifier])
def test_the_world_size_is_checked_first(tmp_path, monkeypatch, train):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch_size=8 is not a multiple of the world size 3"):
        train(None, RECIPE, None, None, tmp_path)


def test_a_lost_rank_is_no_damage(tmp_path, monkeypatch):
    def lost(*args, **options):
        raise RuntimeError("Connection closed by peer")

    recipe = dataclasses.replace(RECIPE, steps=1)
    run(tmp_path, recipe)
    real = Checkpoints.__init__

    def with_group(self, *args):
        real(self, *args)
        self.group = "of several ranks"

    monkeypatch.setattr(Checkpoints, "__init__", with_group)
    monkeypatch.setattr("torch.distributed.checkpoint.load", lost)
    with pytest.raises(ConnectionError, match="another rank ended while all were reading"):
        run(tmp_path, recipe)


# ---- activation checkpointing, and what does not work --------------------------------------------


@pytest.mark.parametrize("savings", [True, False])
def test_checkpointed_activations_change_no_gradient(tok, images, savings):
    tok.savings, calls = savings, []
    tok.encoder.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append("encoder"))
    tok.decoder.blocks[-1].mlp.register_forward_pre_hook(lambda *_: calls.append("decoder"))

    def gradients():
        tok.zero_grad()
        tok.loss(images, generator=torch.Generator().manual_seed(0)).backward()
        return [p.grad for p in tok.parameters()]

    plain = gradients()
    assert sorted(calls) == ["decoder", "encoder"]
    checkpoint_activations(tok)
    calls.clear()
    for a, b in zip(plain, gradients(), strict=True):
        assert torch.equal(a, b)
    assert sorted(calls) == ["decoder"] * 2 + ["encoder"] * 2  # each block is computed twice
    assert len(blocks_of(tok)) == 4


def test_blocks_with_checkpointed_activations_are_compiled(tmp_path, monkeypatch):
    """One graph for each kind of block, with the losses of blocks that are not compiled."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    recipe = dataclasses.replace(RECIPE, steps=2, log_every=1, checkpoint_activations=True)
    run(tmp_path / "eager", recipe)
    torch._dynamo.reset()
    counters.clear()
    run(tmp_path / "compiled", dataclasses.replace(recipe, compile=True, savings=False))
    assert counters["stats"]["unique_graphs"] == 2
    assert (losses(tmp_path / "compiled") - losses(tmp_path / "eager")).abs().max() < 1e-4
    torch._dynamo.reset()


def test_what_sharding_needs(tmp_path):
    with pytest.raises(ValueError, match="fsdp=True needs several ranks: start .* torchrun"):
        run(tmp_path, dataclasses.replace(LONG, fsdp=True))
    with pytest.raises(ValueError, match="optimizer='muon': .*give optimizer='adamw' or fsdp=Fal"):
        dataclasses.replace(LONG, fsdp=True, optimizer="muon")
    with pytest.raises(ValueError, match="checkpoint_activations=True: Linear has no Transformer"):
        checkpoint_activations(torch.nn.Linear(1, 1))
