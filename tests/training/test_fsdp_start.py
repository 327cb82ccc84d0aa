"""How a run with FSDP starts and resumes: with the values of one process, and without a rank that
holds them all beside its shards."""

import dataclasses
from functools import partial

import torch
from conftest import RECIPE, TINY, changed, noise_images, on_two_ranks, randomised
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from minflextok import FlexTok, PriorConfig
from minflextok.training.checkpoints import Checkpoints
from minflextok.training.optimizers import create_state
from minflextok.training.parallel import full, local
from minflextok.training.prior import PriorTask
from minflextok.training.run import Run
from minflextok.training.runtime import Ranks
from minflextok.training.tokenizer import TokenizerTask

LARGE = changed(enc_dim=128, enc_depth=4, dec_dim=128, dec_depth=4, head_dim=16)
CASES = ("tokenizer", "init", "bytes")


class LiveBytes(TorchDispatchMode):
    """peak: the most bytes of tensors, made or written inside, that existed at a time; those on the
    meta device have none."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = WeakIdKeyDictionary(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and not x.is_meta:
                storage = local(x).untyped_storage()
                self.live[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self.live.values()))
        return out


def task(case, folder, fsdp, ranks):
    """The task of a case: a tokenizer with REPA and the initialization of muP, one from weights in
    `folder`, or a prior on text."""
    recipe = dataclasses.replace(RECIPE, fsdp=fsdp)
    if case == "bytes":
        torch.manual_seed(1)
        tok, data = FlexTok(TINY), noise_images(captions=["red circle"] * 40)
        config = PriorConfig(100, 6, 0, dim=32, depth=2, head_dim=8, text="bytes", text_dim=16)
        return PriorTask(config, recipe, tok, data, ranks, quiet=True), recipe
    if case == "init":
        init = str(folder / "weights")
        return TokenizerTask(TINY, recipe, noise_images(), ranks, init=init), recipe
    recipe = dataclasses.replace(recipe, mup_base_width=64)
    teacher = partial(torch.repeat_interleave, repeats=2, dim=1)
    return TokenizerTask(LARGE, recipe, noise_images(), ranks, teacher=teacher), recipe


def start(case, folder, fsdp):
    """A run that was just started, and how many bytes of tensors existed at a time, as multiples of
    the parameters: before the run, and in all."""
    ranks = Ranks("cpu")
    with LiveBytes() as count:
        found, recipe = task(case, folder, fsdp, ranks)
        built = count.peak
        run = Run(found.model, recipe, ranks)
    return run, built / size(run), count.peak / size(run)


def size(run):
    return sum(4 * p.numel() for p in run.model.parameters())


def whole_state(run):
    assert all(p.requires_grad for p in run.model.parameters())
    assert not any(p.requires_grad for p in run.ema.parameters())
    state = {name: full(x).clone() for name, x in run.tensors().items()}
    state |= {f"buffer.{name}": x for name, x in run.model.named_buffers()}
    return state | {f"averaged.{name}": x for name, x in run.averaged().state_dict().items()}


def reading(run, out):
    """How many bytes of tensors are made or written at a time, as a multiple of the parameters,
    when a checkpoint of this run is read."""
    checkpoints = Checkpoints(out, run.ranks)
    create_state(run.optimizers)
    run.save(checkpoints)
    run.ranks.wait()
    with LiveBytes() as count:
        checkpoints.read(checkpoints.found()[-1], run.tensors())
    return count.peak / size(run)


SCRIPT = """
import sys
from pathlib import Path
import torch
from test_fsdp_start import CASES, reading, start, whole_state
folder = Path(sys.argv[1])
for case in CASES:
    run, built, peak = start(case, folder, True)
    found = whole_state(run), built, peak, reading(run, folder / case)
    torch.save(found, folder / f"{case}-{run.ranks.rank}.pt")
"""


def test_shards_start_with_the_values_of_one_process_and_nothing_is_whole(tmp_path):
    """Rank 0 builds the model, and gives it away while the shards are made; the others build
    nothing. The shards of the model and of its average are together as large as the model. A resume
    reads a rank's half of the state, four times the model, into its place."""
    randomised().save_pretrained(tmp_path / "weights")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    on_two_ranks(script, tmp_path)
    for case in CASES:
        one = whole_state(start(case, tmp_path, False)[0])
        for rank in (0, 1):
            state, built, peak, read = torch.load(tmp_path / f"{case}-{rank}.pt")
            assert state.keys() == one.keys()
            for name, x in state.items():
                assert torch.equal(x, one[name]), (case, rank, name)
            if case == "tokenizer":  # the only one whose parameters are many
                assert peak < 1.35 and built < (1.35 if rank == 0 else 0.1), (rank, built, peak)
                assert 2 <= read < 2.1, (rank, read)
