"""Nested dropout: keep_k and what is replaced."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minflextok.nested_dropout import NestedDropout, sample_keep_k


@given(st.integers(1, 40), st.sampled_from(["uniform", "pow2", "uniform_pow2"]))
@settings(max_examples=40, deadline=None)
def test_keep_k_reaches_what_it_should(K, mode):
    drawn = set(sample_keep_k(4000, K, mode, torch.Generator().manual_seed(0)).tolist())
    powers = {2**i for i in range(7) if 2**i < K} | {K}
    assert drawn == (set(range(1, K + 1)) if mode == "uniform" else powers)


def test_keep_k_frequencies():
    k = sample_keep_k(60_000, 16, "uniform_pow2", torch.Generator().manual_seed(0))
    share = {int(v): (k == v).float().mean().item() for v in k.unique()}
    for v, want in {1: 1 / 16, 2: 1 / 16, 4: 2 / 16, 8: 4 / 16, 16: 8 / 16}.items():
        assert share[v] == pytest.approx(want, abs=0.01)


def test_nested_dropout_by_loops():
    drop = NestedDropout(4)
    torch.nn.init.normal_(drop.mask_token)
    x, keep = torch.randn(3, 5, 4), torch.tensor([1, 5, 3])
    out = drop(x, keep)
    for b in range(3):
        for k in range(5):
            assert torch.equal(out[b, k], x[b, k] if k < keep[b] else drop.mask_token)


def test_output_and_gradient_ignore_codes_from_keep_k_on(tok, images):
    codes = torch.rand(3, 6, 3, requires_grad=True)
    keep, null = torch.tensor([2, 6, 1]), torch.tensor([False, False, False])
    registers = tok.decoder.embed_registers(codes, keep, null)
    tok.decoder(images, torch.full((3,), 0.5), registers).square().sum().backward()
    touched = codes.grad.abs().amax(-1) > 0
    assert touched.sum(1).tolist() == keep.tolist() and touched[:, 0].all()
