import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from minflextok import FlexTok, TokenizerConfig, TrainConfig
from minflextok.config import VAEConfig
from minflextok.data import Images
from minflextok.training import loop

ROOT = Path(__file__).parents[1]
# Answers that somebody stored with the notebooks must not change what the tests see.
os.environ["MINFLEXTOK_ANSWERS"] = str(Path(tempfile.gettempdir()) / f"answers-{os.getpid()}")
SHARED = (
    ROOT.parent / "shared"
)  # numerical fixtures of the published implementation, where they are at hand

needs_parity = pytest.mark.skipif(
    not (SHARED / "parity").is_dir(), reason=f"no fixtures in {SHARED / 'parity'}"
)

TINY = TokenizerConfig(
    image_size=8,
    patch_size=2,
    enc_dim=64,
    enc_depth=2,
    dec_dim=64,
    dec_depth=2,
    num_registers=6,
    fsq_levels=(8, 5, 3),
    token_std=1.0,
)
SMALL_VAE = VAEConfig(
    latent_channels=4, widths=(8, 8), layers=1, groups=4, image_size=8, perceptual="none"
)


def randomised(config: TokenizerConfig = TINY, seed: int = 0) -> FlexTok:
    """A FlexTok in which nothing is zero, so that every path shows in the output."""
    torch.manual_seed(seed)
    tok = FlexTok(config).eval()
    for p in tok.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return tok


@pytest.fixture
def tok() -> FlexTok:
    return randomised()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def changed(**fields) -> TokenizerConfig:
    return dataclasses.replace(TINY, **fields)


# ---- training runs -------------------------------------------------------------------------------

RECIPE = TrainConfig(
    steps=12, batch_size=8, warmup=3, eval_every=4, log_every=2, val_images=4, bf16=False
)


def noise_images(n: int = 40, seed: int = 0, **fields) -> Images:
    """n images of 8x8 random pixels, for TINY."""
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, 8, 8), generator=g)
    return Images("noise", pixels.to(torch.uint8), **fields)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have equal weights, bit for bit."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def lines(out: Path, key: str) -> list[tuple[int, object]]:
    """Step and value of each line of a run's log that has this key."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row[key]) for row in rows if key in row]


def newest(out: Path) -> Path:
    """The newest checkpoint of a run."""
    return sorted((out / "checkpoints").glob("step_*"))[-1]


def state(out: Path) -> dict:
    """The plain values of the newest checkpoint of a run."""
    return json.loads((newest(out) / "state.json").read_text())


class Killed(BaseException):
    pass


@contextmanager
def after_steps(steps: int, then: Callable[[], object]):
    """In a training run inside, call `then` in place of every training step after so many."""
    done, real = [], loop.training_step

    def step(*args):
        if len(done) == steps:
            return then()
        done.append(1)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", step)
        yield


@contextmanager
def killed_after(steps: int):
    """The training run inside must be ended after so many steps without saving, as by SIGKILL."""

    def kill():
        raise Killed

    with pytest.raises(Killed), after_steps(steps, kill):
        yield


def check_resume(run: Callable[[Path], nn.Module], folder: Path, steps: int, *keys: str):
    """Killed after so many steps and started again, `run(out)` gives the weights and the log of a
    run without interruption, bit for bit. Returns the trained model."""
    straight = run(folder / "straight")
    with killed_after(steps):
        run(folder / "resumed")
    assert same(straight, run(folder / "resumed"))
    for key in ("loss", "grad_norm", *keys):
        assert lines(folder / "straight", key) == lines(folder / "resumed", key)
    return straight


def command(out, *flags):
    """The arguments of `minflextok train tokenizer` on a small model."""
    model = ["image_size=16", "enc_depth=1", "dec_depth=1"]
    found = ["train", "tokenizer", "--preset", "shapes", "--data", "cifar10-sample"]
    found += [part for field in model for part in ("--model", field)]
    found += ["--batch-size", "8", "--val-images", "8", "--no-bf16", "--device", "cpu", "--quiet"]
    return [*found, "--out", str(out), *flags]


def on_two_ranks(script: Path, *arguments: Path) -> None:
    """Run a Python script on two ranks; it can import conftest and the tests of training."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = [str(ROOT / "tests"), str(ROOT / "tests/training"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def browser_path(p) -> str | None:
    """Playwright's Chromium, or that of the system; None if there is none."""
    own = p.chromium.executable_path
    return (
        own
        if Path(own).exists()
        else next(
            filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
        )
    )
