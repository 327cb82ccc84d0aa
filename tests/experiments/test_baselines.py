"""The baselines: deterministic, independent of the noise, a grid's tokens at their patches."""

import dataclasses

import pytest
import torch
from conftest import RECIPE, TINY, changed, noise_images, randomised, same

from minflextok.experiments.baselines import Grid, RegressionObjective, Regressor
from minflextok.training.tokenizer import train_tokenizer

GRID = changed(num_registers=16)


def shaken(cls, config=TINY):
    model = cls(config).eval()
    model.load_state_dict(randomised(config).state_dict())
    return model


def test_a_regressor_minimises_the_error_of_what_it_decodes(images):
    model = shaken(Regressor)
    objective = RegressionObjective(model)
    draws = objective.draw(images, 0.0, torch.Generator().manual_seed(0))
    x_hat = images[:, :, :0].new_zeros(images.shape) - model.velocity(
        torch.zeros_like(images), 1.0, model.encode(images)
    )
    error = (x_hat - images).square().mean().item()
    assert objective(images, *draws).item() == pytest.approx(error, rel=1e-5)
    assert model.loss(images, nested_prob=0.0).item() == pytest.approx(error, rel=1e-5)
    torch.testing.assert_close(model.decode(model.encode(images)), x_hat.clamp(-1, 1))
    noisy = model.decode(
        model.encode(images), steps=7, noise=torch.randn_like(images), guidance=3.0
    )
    assert torch.equal(noisy, model.decode(model.encode(images)))


def test_a_regressor_with_nested_dropout_takes_prefixes(images):
    model = shaken(Regressor)
    ids = model.encode(images)
    assert (model.decode(ids[:, :2]) - model.decode(ids)).abs().max() > 1e-3
    draw, many = RegressionObjective(model).draw, images.repeat(50, 1, 1, 1)
    assert set(draw(many)[2].tolist()) == {1, 2, 4, 6}
    assert set(draw(many, 0.0)[2].tolist()) == {6}


def test_a_grid_token_is_read_off_its_patch_of_an_untied_encoder(images):
    model = shaken(Grid, GRID)
    assert model.encode(images).shape == (3, 16)
    for p in [p for block in model.encoder.blocks for p in block.attn.proj.parameters()]:
        p.data.zero_()  # no attention: a patch then sees itself alone
    moved = images.clone()
    moved[:, :, 2:4, 4:6] *= -1  # row 1, column 2 of the 4x4 grid of 2x2 patches
    z, z_moved = model.encoder(images), model.encoder(moved)
    assert ((z - z_moved).abs().amax((0, 2)) > 1e-6).nonzero()[:, 0].tolist() == [6]
    with pytest.raises(
        ValueError, match="num_registers=6: a grid tokenizer has one token for each patch, 16"
    ):
        Grid(TINY)


@pytest.mark.parametrize("cls, config", [(Regressor, TINY), (Grid, GRID)])
def test_they_train_and_load_again(tmp_path, cls, config):
    never = dataclasses.replace(RECIPE, nested_from=1.0, nested_full=1.0)
    model = train_tokenizer(
        config,
        never,
        noise_images(),
        tmp_path,
        "cpu",
        quiet=True,
        cls=cls,
        objective=RegressionObjective,
    )
    assert type(model) is cls and same(model, cls.from_pretrained(tmp_path))
