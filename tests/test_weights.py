"""The shipped weights do what their card says, on embedded test images that they have never
seen."""

import json

import pytest
import torch
from conftest import ROOT, TINY
from torch import nn

from minflextok import PRESETS, FlexTok
from minflextok.adaptive import LengthHead
from minflextok.config import WEIGHTS_DIR
from minflextok.data import load_dataset, to_float
from minflextok.evaluation.classifier import Classifier
from minflextok.evaluation.metrics import code_usage, psnr
from minflextok.prior import Prior
from minflextok.vae import VAE

N = 96


@pytest.fixture(scope="module")
def decoded():
    tok = FlexTok.from_pretrained("cifar10-tiny")
    images = to_float(load_dataset("cifar10-sample", "test").images[:N])
    ids = tok.encode(images)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (
        tok,
        images,
        ids,
        {k: tok.decode(ids[:, :k], steps=6, noise=noise) for k in tok.config.budgets},
    )


def features(images: torch.Tensor) -> torch.Tensor:
    """Random convolutions, a feature space that nothing here was trained in: (B, 3, H, W) -> (B,
    256)."""
    torch.manual_seed(7)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(128, 256, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    with torch.no_grad():
        return net(images)


def test_more_tokens_are_better_in_pixels_and_in_features(decoded):
    tok, images, _, outputs = decoded
    pixels = [psnr(x, images).mean().item() for x in outputs.values()]
    distance = [
        (features(x) - features(images)).norm(dim=1).mean().item() for x in outputs.values()
    ]
    assert list(outputs) == [1, 2, 4, 8, 16]
    assert pixels == sorted(pixels) and distance == sorted(distance, reverse=True), (
        pixels,
        distance,
    )
    assert pixels[-1] > pixels[0] + 2


def test_ids_of_another_image_are_worse(decoded):
    _, images, _, outputs = decoded
    assert psnr(outputs[16], images).mean() > psnr(outputs[16].roll(1, 0), images).mean() + 4


def test_codes_are_used(decoded):
    tok, _, ids, _ = decoded
    used, _ = code_usage(ids, tok.config.vocab_size)
    assert used.min() > 20


def test_card_and_config_travel_with_the_weights():
    kinds = {"judge": Classifier, "teacher": Classifier, "prior": Prior, "vae": VAE}
    kinds["lengths"] = LengthHead
    for folder in WEIGHTS_DIR.iterdir():
        model = kinds.get(folder.name.split("-")[0], FlexTok).from_pretrained(folder)
        if folder.name in PRESETS:
            assert model.config == PRESETS[folder.name]
        assert json.loads((folder / "config.json").read_text())
        card = (folder / "README.md").read_text()
        for said in ("Data", "Command", "Time", "Hardware", "test split", "JPEG"):
            assert said in card, said
    assert all((ROOT / f"data/demo-{name}.png").exists() for name in ("shapes32", "cifar10-64"))


def test_others_can_read_what_is_saved(tmp_path):
    FlexTok(TINY).save_pretrained(tmp_path)
    modes = {f.name: f.stat().st_mode for f in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
