"""The order of training batches, and the validation split."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minflextok import TrainConfig
from minflextok.data import shuffled, validation_split


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_each_epoch_shows_each_image_once_and_resuming_changes_nothing(n, batch, start):
    steps = list(islice(shuffled(n, batch, seed=3), 30))
    flat = torch.cat(steps)
    for epoch in range(len(flat) // n):
        assert sorted(flat[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
    resumed = list(islice(shuffled(n, batch, seed=3, start=start), 5))
    assert all(torch.equal(a, b) for a, b in zip(resumed, steps[start:], strict=False))


@given(st.integers(10, 200), st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_the_validation_split_is_random_repeatable_and_apart(n, val_images):
    recipe = TrainConfig(val_images=val_images, seed=n)
    train, val = validation_split(n, recipe, "x")
    assert sorted(torch.cat([train, val]).tolist()) == list(range(n))
    assert len(val) == min(val_images, n // 10)
    assert torch.equal(val, validation_split(n, recipe, "x")[1])


def test_a_set_too_small_for_a_validation_split_is_an_error():
    with pytest.raises(ValueError, match="x has 9 images: training wants at least 10"):
        validation_split(9, TrainConfig(), "x")
