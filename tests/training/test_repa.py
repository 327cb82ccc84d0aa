"""Representation alignment: the loss by loops, that it trains the early decoder and the tokens, and never by the judge."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, randomised
from test_train import RECIPE, data, lines, same

from minflextok import FlexTok
from minflextok.config import ClassifierConfig
from minflextok.evaluation.classifier import Classifier
from minflextok.training.repa import Repa, load_teacher
from minflextok.training.tokenizer import train_tokenizer


def teacher(images):
    """8 features on a grid of 2x2, of 8x8 images."""
    return F.avg_pool2d(torch.cat([images, images.square(), images[:, :2] * images[:, 1:]], 1), 4)


def test_the_loss_by_loops():
    torch.manual_seed(0)
    repa, patches, features = (
        Repa(6, torch.randn(5)),
        torch.randn(2, 12, 6),
        torch.randn(2, 5, 3, 4),
    )
    projected, total = repa.mlp(patches), 0.0
    for b in range(2):
        for row in range(3):
            for column in range(4):
                a, t = projected[b, 4 * row + column], features[b, :, row, column] - repa.mean
                total += 1 - (a @ t / (a.norm() * t.norm())).item()
    assert repa(patches, features).item() == pytest.approx(total / 24, abs=1e-6)
    assert repa(torch.randn(2, 48, 6), features).isfinite()  # a finer grid of patches


def test_it_reaches_the_early_decoder_and_the_tokens_but_not_later_blocks(images):
    tok = randomised()
    tok.config = dataclasses.replace(TINY, repa_block=0, repa_weight=2.0)
    tok.repa = Repa(64, torch.zeros(8))
    draws = tok.draw(images, 0.0, torch.Generator().manual_seed(0))
    with_it, without = tok(images, *draws, teacher(images)), tok(images, *draws)
    (with_it - without).backward()
    assert 0 < (with_it - without).item() < 2 * 2.0
    late = [p.grad for p in tok.decoder.blocks[1].parameters()] + [tok.decoder.head.weight.grad]
    assert all(g is None or g.abs().max() < 1e-6 for g in late)
    assert all(
        g.abs().max() > 1e-6
        for g in (tok.decoder.blocks[0].mlp.fc1.weight.grad, tok.encoder.registers.grad)
    )


def test_training_with_a_teacher_aligns_and_resumes_and_exports_the_tokenizer_alone(tmp_path):
    config = dataclasses.replace(TINY, repa_block=0, repa_weight=1.0)
    recipe = dataclasses.replace(RECIPE, steps=60, log_every=10, eval_every=60)
    tok = train_tokenizer(
        config, recipe, data(), tmp_path / "a", "cpu", quiet=True, teacher=teacher
    )
    loss = [v for _, v in lines(tmp_path / "a", "loss")]
    assert loss[-1] < loss[0]
    assert same(tok, FlexTok.from_pretrained(tmp_path / "a"))
    with pytest.raises(ValueError, match="noise with REPA by a function' there, 'noise' here"):
        train_tokenizer(config, recipe, data(), tmp_path / "a", "cpu", quiet=True)
    deep = dataclasses.replace(config, repa_block=2)
    with pytest.raises(ValueError, match="repa_block=2: this decoder's blocks are 0 to 1"):
        train_tokenizer(deep, recipe, data(), tmp_path / "b", "cpu", quiet=True, teacher=teacher)


def test_teachers(tmp_path, monkeypatch):
    net = Classifier(ClassifierConfig(image_size=8, widths=(8, 8), strides=(2, 1)))
    net.save_pretrained(tmp_path / "teacher")
    assert load_teacher(str(tmp_path / "teacher"))(torch.zeros(2, 3, 8, 8)).shape == (2, 8, 4, 4)
    with pytest.raises(ValueError, match="never train with the network that judges"):
        load_teacher("judge-cifar10")

    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load", offline)
    with pytest.raises(OSError, match="no route.*offline"):
        load_teacher("dinov2")
