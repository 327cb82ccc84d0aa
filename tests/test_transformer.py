"""The blocks of encoder and decoder."""

import torch

from minflextok.transformer import AdaLNBlock


def test_a_blocks_branch_does_not_feel_the_scale_of_its_input():
    block = AdaLNBlock(64, 64, 2)
    x = torch.randn(2, 5, 64)
    gates = torch.zeros(2, 6, 64)
    gates[:, 0] = 1  # the attention branch alone
    block.adaln.weight.data.zero_()
    block.adaln.bias.data = gates.flatten()
    m = block.modulation(torch.randn(2, 64))
    torch.testing.assert_close(block(x, m, 3) - x, block(7 * x, m, 3) - 7 * x, atol=1e-4, rtol=1e-3)


def test_patches_and_registers_are_modulated_apart():
    block = AdaLNBlock(64, 64, 2)
    block.adaln.weight.data.zero_()
    bias = torch.zeros(2, 6, 64)
    bias[1, :2] = 1  # the registers' gates
    block.adaln.bias.data = bias.flatten()
    x = torch.randn(2, 5, 64)
    out = block(x, block.modulation(torch.randn(2, 64)), 3)
    assert (
        torch.equal(out[:, :3], x[:, :3]) and (out[:, 3:] - x[:, 3:]).abs().min(0).values.max() > 0
    )
