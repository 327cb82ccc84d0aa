"""Muon: its update, the weights that it is for, and runs that resume and spread over ranks."""

import dataclasses

import pytest
import torch
from conftest import RECIPE, TINY, check_resume, lines, noise_images, on_two_ranks
from torch import nn

from minflextok import Prior, PriorConfig
from minflextok.training.muon import Muon, orthogonalize
from minflextok.training.optimizers import make_optimizers
from minflextok.training.tokenizer import train_tokenizer

MUON = dataclasses.replace(RECIPE, optimizer="muon", lr=1e-3, decay_from=0.5)


def run(out, recipe=MUON):
    return train_tokenizer(TINY, recipe, noise_images(), out, "cpu", quiet=True)


@pytest.mark.parametrize("rows, columns", [(24, 8), (8, 24), (16, 16)])
def test_orthogonalized_matrices_keep_directions_and_lose_sizes(rows, columns):
    g = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, rows, columns, generator=g)
    for before, after in zip(matrices, orthogonalize(matrices), strict=True):
        u, _, v = torch.linalg.svd(before, full_matrices=False)
        in_basis = u.T @ after @ v.T  # diagonal: the singular vectors have not changed
        assert (in_basis - in_basis.diag().diag()).abs().max() < 1e-4
        assert 0.65 < in_basis.diag().min() <= in_basis.diag().max() < 1.25


def test_matrices_of_one_shape_are_updated_one_by_one():
    g = torch.Generator().manual_seed(0)
    start, gradients = (torch.randn(4, 6, 8, generator=g) for _ in range(2))

    def updated(rows):
        weights = [nn.Parameter(start[i].clone()) for i in rows]
        for p, i in zip(weights, rows, strict=True):
            p.grad = gradients[i].clone()
        Muon(weights, lr=0.1).step()
        return weights

    together = updated(range(4))
    for i in range(4):
        torch.testing.assert_close(together[i], updated([i])[0])


def test_zero_gradients_and_missing_ones_are_harmless():
    weights = [nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    weights[0].grad = torch.zeros(3, 4)
    Muon(weights, lr=0.1).step()
    assert all(torch.equal(p, torch.ones(3, 4)) for p in weights)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch without torch.optim.Muon")
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_it_updates_as_the_muon_of_torch(shape):
    """That one orthogonalizes in bfloat16, so the updates of about 0.1 differ by about 2e-3."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=g)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.1, "momentum": 0.95, "weight_decay": 0.05}
    optimizers = [
        Muon([ours], **settings),
        torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=g)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (ours - start).detach().abs().mean()
    assert (ours - theirs).abs().max() < 0.2 * moved
    assert (ours - theirs).abs().mean() < 0.02 * moved


def test_it_is_for_the_matrices_of_the_blocks(tok):
    adamw, muon = make_optimizers(tok, MUON)
    names = {id(p): name for name, p in tok.named_parameters()}
    [group] = muon.param_groups
    found = {names[id(p)] for p in group["params"]}
    layers = [f"attn.{w}" for w in ("wq", "wk", "wv", "proj")] + ["mlp.fc1", "mlp.fc2", "mlp.fc3"]
    assert found == {
        f"{part}.blocks.{i}.{layer}.weight"
        for part in ("encoder", "decoder")
        for i in range(2)
        for layer in layers
    }
    rest = {names[id(p)] for g in adamw.param_groups for p in g["params"]}
    assert rest | found == set(names.values()) and not rest & found
    assert group["peak_lr"] == pytest.approx(MUON.lr * MUON.muon_lr)
    _, with_adaln = make_optimizers(tok, dataclasses.replace(MUON, muon_adaln=True))
    more = {names[id(p)] for p in with_adaln.param_groups[0]["params"]} - found
    assert more == {f"decoder.blocks.{i}.adaln.weight" for i in range(2)}


def test_the_prior_has_blocks_and_a_model_without_is_refused():
    prior = Prior(PriorConfig(120, 6, 5, dim=32, depth=2, head_dim=8))
    _, muon = make_optimizers(prior, MUON)
    assert all(p.ndim == 2 for p in muon.param_groups[0]["params"])
    assert not any(p is prior.ids.weight for p in muon.param_groups[0]["params"])
    with pytest.raises(ValueError, match="optimizer='muon': Linear has no Transformer blocks"):
        make_optimizers(nn.Linear(2, 2), MUON)


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    check_resume(run, tmp_path, 7, "psnr", "lr")


def test_two_ranks_equal_one(tmp_path):
    one = run(tmp_path / "one")
    script = tmp_path / "two.py"
    script.write_text(f"""
from conftest import noise_images
from minflextok import TokenizerConfig, TrainConfig
from minflextok.training.tokenizer import train_tokenizer
train_tokenizer({TINY!r}, {MUON!r}, noise_images(), {str(tmp_path / "two")!r}, "cpu", quiet=True)
""")
    on_two_ranks(script)
    pairs = zip(lines(tmp_path / "one", "loss"), lines(tmp_path / "two", "loss"), strict=True)
    assert max(abs(a - b) for (_, a), (_, b) in pairs) < 1e-4
    two = type(one).from_pretrained(tmp_path / "two")
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
