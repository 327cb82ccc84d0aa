"""Patches and positions, against loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minflextok.patches import patchify, sincos_positions, unpatchify


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_patchify_by_loops_and_back(p, c, h, w):
    x = torch.randn(2, c, h * p, w * p)
    patches = patchify(x, p)
    for row in range(h):
        for col in range(w):
            flat = [
                x[1, ch, row * p + i, col * p + j]
                for i in range(p)
                for j in range(p)
                for ch in range(c)
            ]
            assert torch.equal(patches[1, row * w + col], torch.stack(flat))
    assert torch.equal(unpatchify(patches, p, h, w), x)


def test_positions_tell_rows_first():
    table = sincos_positions(16, 5)
    assert torch.equal(table[2, 1, :8], table[2, 4, :8])  # same row
    assert torch.equal(table[1, 3, 8:], table[4, 3, 8:])  # same column
    assert table[3, 0, 1] == pytest.approx(math.sin(3 * 10000 ** (-1 / 4)), abs=1e-6)
    assert len(table.flatten(0, 1).unique(dim=0)) == 25
