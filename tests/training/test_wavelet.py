"""The VAE that begins as a Haar transform, against the transform written out."""

import dataclasses

import torch
import torch.nn.functional as F
from einops import rearrange

from minflextok.config import VAEConfig
from minflextok.presets import VAE_PRESETS
from minflextok.training.wavelet import GAIN, HAAR, begin_as_wavelet
from minflextok.vae import VAE

SMALL = VAEConfig(
    latent_channels=12, widths=(12, 12), layers=1, groups=2, image_size=8, perceptual="none"
)


def haar(x):
    """Mean and three differences of each 2x2 block, times their gains: (B, C, H, W) -> (B, C, 4, H
    / 2, W / 2)."""
    blocks = rearrange(x, "b c (h y) (w x) -> b c h w y x", y=2, x=2)
    return torch.einsum("bchwyx,jyx,j->bcjhw", blocks, HAAR, GAIN)


def test_the_stream_of_the_encoder_is_the_transform():
    torch.manual_seed(0)
    vae, x = begin_as_wavelet(VAE(SMALL)), torch.rand(2, 3, 8, 8) * 2 - 1
    encoder = vae.encoder
    found = encoder.mid_block(encoder.down_blocks[1](encoder.down_blocks[0](encoder.conv_in(x))))
    parts = haar(x)  # all 12 components of a block of colors fit
    mean, differences, diagonal = parts[:, :, 0], parts[:, :, 1:3].flatten(1, 2), parts[:, :, 3]
    in_order = torch.cat([mean, differences, diagonal], 1)  # the largest first
    torch.testing.assert_close(found, in_order)


def test_the_largest_components_are_kept():
    """16 channels of two transforms: the means of all 12 components of the first come before
    differences of differences."""
    c = dataclasses.replace(SMALL, latent_channels=16, widths=(12, 12, 16))
    vae, x = begin_as_wavelet(VAE(c)), torch.rand(2, 3, 8, 8) * 2 - 1
    encoder = vae.encoder
    found = encoder.conv_in(x)
    for level in encoder.down_blocks:
        found = level(found)
    torch.testing.assert_close(found[:, :3], F.avg_pool2d(x, 4))


def test_it_reconstructs_more_than_random_weights_after_a_few_steps():
    images = F.interpolate(torch.rand(8, 3, 4, 4) * 2 - 1, scale_factor=2, mode="bilinear")
    errors = []
    for wavelet in (False, True):
        torch.manual_seed(0)
        vae = begin_as_wavelet(VAE(SMALL)) if wavelet else VAE(SMALL)
        optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=0.0)
        for _ in range(30):
            mean, logvar = vae.posterior(images)
            decoded = vae.decode(mean + (logvar / 2).exp() * torch.randn_like(mean))
            loss = (decoded - images).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors.append((vae.decode(vae.encode(images)) - images).square().mean().item())
    assert errors[1] < 0.4 * errors[0]


def test_shapes_and_names_stay():
    """So a VAE that began so is a VAE like another."""
    c = VAE_PRESETS["f4-small"]
    vae, plain = begin_as_wavelet(VAE(c)), VAE(dataclasses.replace(c, wavelet_start=False))
    plain.load_state_dict(vae.state_dict())
    assert vae.posterior(torch.zeros(1, 3, 64, 64))[1].max() < 0
