"""The training task of the tokenizer: nested dropout over a run, and its inputs."""

import dataclasses

import pytest
from conftest import RECIPE, TINY, changed, lines, noise_images

from minflextok import TrainConfig
from minflextok.training.tokenizer import nested_prob, train_tokenizer


def test_nested_dropout_is_mixed_in_linearly():
    c = TrainConfig(nested_from=0.2, nested_full=0.6)
    assert [nested_prob(p, c) for p in (0, 0.2, 0.6, 1)] == [0, 0, 1, 1]
    assert nested_prob(0.4, c) == pytest.approx(0.5)
    assert nested_prob(0.0, TrainConfig(nested_from=0, nested_full=0)) == 1
    assert nested_prob(0.9, TrainConfig(nested_from=1, nested_full=1)) == 0


def test_a_model_of_latents_needs_a_vae(tmp_path):
    with pytest.raises(ValueError, match="latents of 4 channels: give vae, .*latent_channels=4"):
        train_tokenizer(changed(in_channels=4), RECIPE, noise_images(), tmp_path, "cpu", quiet=True)


def test_a_teacher_needs_a_block_to_align(tmp_path):
    deep = dataclasses.replace(TINY, repa_block=2)
    with pytest.raises(ValueError, match="repa_block=2: this decoder has blocks 0 to 1"):
        train_tokenizer(
            deep, RECIPE, noise_images(), tmp_path, "cpu", quiet=True, teacher=lambda x: x
        )


def test_savings_change_a_run_by_rounding_alone(tmp_path):
    for savings in (True, False):
        recipe = dataclasses.replace(RECIPE, savings=savings)
        out = tmp_path / str(savings)
        tok = train_tokenizer(TINY, recipe, noise_images(), out, "cpu", quiet=True)
        assert tok.savings  # of a trained model they are on
    found = [dict(lines(tmp_path / str(s), "loss")) for s in (True, False)]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] != found[1]  # another order of sums: the plain path has run
