"""The VAE (stage 0): the KL divergence, its inputs, its settings and its presets."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from minflextok.config import VAEConfig
from minflextok.presets import RECIPES, VAE_PRESETS
from minflextok.vae import VAE, kl_divergence

SMALL = VAEConfig(
    latent_channels=2, widths=(8, 8), layers=1, groups=4, image_size=24, perceptual="none"
)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return VAE(SMALL).eval()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(-12, 4))
def test_kl_is_that_of_torch_distributions(seed, shift):
    mean, logvar = torch.randn(
        2, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    q = Normal(mean, torch.exp((logvar + shift) / 2))
    want = torch_kl(q, Normal(torch.zeros_like(mean), 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(kl_divergence(mean, logvar + shift), want)


ANY = torch.zeros(2, 3, 24, 24)


@pytest.mark.parametrize(
    "bad, match",
    [
        (ANY[0], r"shape \(3, 24, 24\)"),
        (ANY[:, :1], r"give \(B >= 1, 3, H, W\) with H and W multiples of 2 \(resize"),
        (ANY[..., :-1], r"\(2, 3, 24, 23\).*multiples of 2"),
        (ANY[:0], "B >= 1"),
        (ANY[..., :0], "multiples of 2"),
        (ANY.to(torch.uint8), r"uint8.*127.5"),
        ("photo.png", "images are 'photo.png', a str"),
        (ANY + 255, r"255.*x / 127.5 - 1"),
        (ANY - 1.5, "-1.5"),
        (ANY + float("nan"), "NaN"),
    ],
)
def test_images(vae, bad, match):
    with pytest.raises(ValueError, match=match):
        vae.encode(bad)
    if "multiples" in match or "shape" in match or "float" in match:
        with pytest.raises(ValueError, match=match):
            vae.posterior(bad)


@pytest.mark.parametrize(
    "bad, match",
    [
        (ANY, r"latents has shape \(2, 3, 24, 24\): give \(B >= 1, 2, H, W\)"),
        (ANY[:, :2].long(), "latents have dtype torch.int64"),
        (ANY[:0, :2], "B >= 1"),
    ],
)
def test_latents(vae, bad, match):
    with pytest.raises(ValueError, match=match):
        vae.decode(bad)


def test_any_size_and_float_type_goes_through(vae):
    assert vae.decode(vae.encode(torch.zeros(1, 3, 32, 16, dtype=torch.float64))).shape == (
        1,
        3,
        32,
        16,
    )
    with pytest.warns(UserWarning, match="x \\* 2 - 1"):
        vae.encode(torch.rand(8, 3, 8, 8))
    draws = [
        vae.encode(ANY, sample=True, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    "change, match",
    [
        ({"perceptual": "ssim"}, "'lpips', 'gradients' or 'none'"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0"),
        ({"adversarial_from": 2.0}, "share from 0 to 1"),
        ({"image_size": 25}, "image_size=25 is not a multiple of 2"),
        ({"image_size": 8, "perceptual": "lpips"}, "'lpips' needs images of at least 16"),
        ({"image_size": 4, "perceptual": "gradients"}, "at least 8"),
        (
            {"image_size": 16, "adversarial_weight": 1.0},
            "adversarial_weight=1.0 needs images of at least 24 pixels",
        ),
    ],
)
def test_settings(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(SMALL, **change)


def test_presets():
    with torch.device("meta"):
        assert sum(p.numel() for p in VAE(VAE_PRESETS["f8"]).parameters()) == 83_821_011
        for name, config in VAE_PRESETS.items():
            assert VAE(config).config.downscale == int(name[1]) and name in RECIPES


def test_vgg16_in_an_old_config_is_read_as_lpips():
    assert dataclasses.replace(SMALL, perceptual="vgg16").perceptual == "lpips"
