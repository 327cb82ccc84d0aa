"""The decoder."""

import torch
from conftest import TINY

from minflextok import FlexTok
from minflextok.transformer import AdaLNBlock


def test_at_initialisation_blocks_are_identities_and_velocity_is_zero(images):
    block = AdaLNBlock(64, 64, 2)
    for p in (block.adaln.weight, block.adaln.bias):
        torch.nn.init.zeros_(p)
    x = torch.randn(2, 5, 64)
    assert torch.equal(block(x, block.modulation(torch.randn(2, 64)), 3), x)
    assert torch.equal(
        FlexTok(TINY).velocity(images, 0.5, torch.zeros(3, 6, dtype=torch.long)),
        torch.zeros_like(images),
    )


def test_one_timestep_for_all_equals_one_each(tok, images):
    ids = tok.encode(images)
    torch.testing.assert_close(
        tok.velocity(images, 0.4, ids),
        tok.velocity(images, torch.full((3,), 0.4), ids),
        atol=1e-5,
        rtol=0,
    )


def test_null_condition_overrides_ids_and_length(tok, images):
    ids = tok.encode(images)
    a = tok.velocity(images, 0.3, ids, null=True)
    torch.testing.assert_close(a, tok.velocity(images, 0.3, None, null=True))
    torch.testing.assert_close(
        a[:1], tok.velocity(images, 0.3, ids[:, :2], null=torch.tensor([True, False, False]))[:1]
    )
    assert (a - tok.velocity(images, 0.3, ids)).abs().max() > 1e-3
