"""Representation alignment: its loss against loops, the weights that it trains, and the
teachers."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import RECIPE, TINY, check_resume, lines, noise_images, randomised, same

from minflextok import FlexTok
from minflextok.config import ClassifierConfig
from minflextok.evaluation.classifier import Classifier
from minflextok.training.objective import TokenizerObjective
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


def test_it_trains_the_early_decoder_and_the_tokens_but_not_later_blocks(images):
    tok = randomised()
    tok.config = dataclasses.replace(TINY, repa_block=0, repa_weight=2.0)
    objective = TokenizerObjective(tok, Repa(64, torch.zeros(8)))
    draws = objective.draw(images, 0.0, torch.Generator().manual_seed(0))
    alignment = objective(images, *draws, teacher(images)) - objective(images, *draws)
    alignment.backward()
    assert 0 < alignment.item() < 2 * 2.0
    late = [p.grad for p in tok.decoder.blocks[1].parameters()] + [tok.decoder.head.weight.grad]
    assert all(g is None or g.abs().max() < 1e-6 for g in late)
    assert tok.decoder.blocks[0].mlp.fc1.weight.grad.abs().max() > 1e-6
    assert tok.encoder.registers.grad.abs().max() > 1e-6


def test_training_with_a_teacher_aligns_and_exports_the_tokenizer_alone(tmp_path):
    config = dataclasses.replace(TINY, repa_block=0)
    recipe = dataclasses.replace(RECIPE, steps=60, log_every=10, eval_every=60)

    def run(out, **options):
        return train_tokenizer(config, recipe, noise_images(), out, "cpu", quiet=True, **options)

    tok = run(tmp_path, teacher=teacher)
    loss = [v for _, v in lines(tmp_path, "loss")]
    assert loss[-1] < loss[0]
    assert same(tok, FlexTok.from_pretrained(tmp_path))
    with pytest.raises(ValueError, match="teacher.name='a function' there, None here"):
        run(tmp_path)


def test_a_killed_run_with_a_teacher_resumes_bit_for_bit(tmp_path):
    config = dataclasses.replace(TINY, repa_block=0)

    def run(out):
        images = noise_images()
        return train_tokenizer(config, RECIPE, images, out, "cpu", quiet=True, teacher=teacher)

    check_resume(run, tmp_path, 7)


def test_a_classifier_is_a_teacher_but_the_evaluation_classifier_is_refused(tmp_path):
    net = Classifier(ClassifierConfig(image_size=8, widths=(8, 8), strides=(2, 1)))
    net.save_pretrained(tmp_path / "teacher")
    assert load_teacher(str(tmp_path / "teacher"))(torch.zeros(2, 3, 8, 8)).shape == (2, 8, 4, 4)
    with pytest.raises(ValueError, match="never train with the evaluation classifier"):
        load_teacher("judge-cifar10")


class FakeDINOv2(torch.nn.Module):
    def get_intermediate_layers(self, x, n, reshape):
        assert x.shape[2:] == (224, 224) and n == 1 and reshape
        return (F.avg_pool2d(x, 14),)


@pytest.mark.parametrize(
    "name, model",
    [("dinov2", "dinov2_vitl14"), ("dinov2-l", "dinov2_vitl14"), ("dinov2-b", "dinov2_vitb14")],
)
def test_dinov2_by_name(monkeypatch, name, model):
    asked = []

    def load(repository, model, **_):
        asked.append((repository, model))
        return FakeDINOv2()

    monkeypatch.setattr(torch.hub, "load", load)
    features = load_teacher(name)(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, 3, 16, 16) and asked == [("facebookresearch/dinov2", model)]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(features[0, :, 5, 5], (0.5 - mean) / std)  # 0 is mid-gray


def test_without_a_connection_the_error_says_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load", offline)
    with pytest.raises(OSError, match="teacher='dinov2-l' .*no route.*offline"):
        load_teacher("dinov2-l")
