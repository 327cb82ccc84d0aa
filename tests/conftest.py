import dataclasses
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from minflextok import FlexTok, TokenizerConfig
from minflextok.training import loop as train

ROOT = Path(__file__).parents[1]
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


# ---- training runs ---------------------------------------------------------------------------------------------------


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def lines(out, key):
    return [
        (r["step"], r[key])
        for r in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        if key in r
    ]


class Killed(BaseException):
    pass


@contextmanager
def killed_after(steps: int):
    """The training run inside must end without a word after so many steps, as by SIGKILL."""
    calls, real = [], train.training_step

    def step(*a, **k):
        calls.append(1)
        if len(calls) > steps:
            raise Killed
        return real(*a, **k)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "training_step", step)
        yield
