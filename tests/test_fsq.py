"""FSQ: levels, ids, gradients."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minflextok.fsq import FSQ

levels_strategy = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)


@given(levels_strategy)
@settings(max_examples=25, deadline=None)
def test_fsq_has_exactly_its_levels_and_round_trips(levels):
    fsq = FSQ(levels)
    ids = torch.arange(fsq.vocab_size)
    codes = fsq.ids_to_codes(ids)
    assert torch.equal(fsq.codes_to_ids(codes), ids)
    assert codes.abs().max() <= 1
    z = torch.linspace(-20, 20, 4001)[:, None].expand(-1, len(levels))
    reached, _ = fsq(z)
    assert [len(reached[:, i].unique()) for i in range(len(levels))] == list(levels)
    digits = [int(ids[-1]) // math.prod(levels[:i]) % n for i, n in enumerate(levels)]
    assert digits == [n - 1 for n in levels]


def test_fsq_gradient_is_that_of_the_bound():
    fsq = FSQ((8, 5))
    z = torch.randn(10, 2, requires_grad=True)
    fsq(z)[0].sum().backward()
    straight, z.grad = z.grad.clone(), None
    (fsq.bound(z) / fsq.center).sum().backward()
    torch.testing.assert_close(straight, z.grad)


def test_fsq_stays_exact_in_a_bfloat16_model(tok, images):
    z = torch.randn(50, 3)
    assert torch.equal(tok.fsq(z)[1], tok.bfloat16().fsq(z)[1])
