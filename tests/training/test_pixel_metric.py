"""Latents whose distances are those of images, against differences of decoded images."""

import torch

from minflextok.config import VAEConfig
from minflextok.training.pixel_metric import image_metric, use_pixel_metric
from minflextok.vae import VAE

SMALL = VAEConfig(
    latent_channels=6, widths=(8, 8), layers=1, groups=2, image_size=16, perceptual="none"
)


def made():
    torch.manual_seed(0)
    vae = VAE(SMALL).eval()
    with torch.no_grad():  # latents of very different sizes, which are correlated
        sizes = torch.logspace(-1, 1, 6)
        vae.quant_conv.weight[:6] *= sizes[:, None, None, None]
        vae.post_quant_conv.weight /= sizes[:, None, None]
        vae.quant_conv.bias[:6] += 1.0
    return vae, torch.rand(32, 3, 16, 16) * 2 - 1


def test_decoded_images_stay():
    vae, images = made()
    with torch.no_grad():
        before = vae.decode(vae.encode(images))
        after = vae.decode(use_pixel_metric(vae, images).encode(images))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_a_change_of_the_latents_is_as_large_as_that_of_the_image():
    """In every direction, on average over images; before, the ratios of the directions differ by a
    factor of more than ten."""
    vae, images = made()

    def ratios():
        with torch.no_grad():
            z = vae.encode(images)
            found = []
            for direction in torch.eye(6):
                changed = z.clone()
                changed[:, :, 4, 4] += 0.05 * z.std() * direction
                moved = (vae.decode(changed) - vae.decode(z)).square().sum((1, 2, 3)).mean()
                found.append((moved / (0.05 * z.std()) ** 2).sqrt())
        return torch.stack(found)

    before = ratios()
    assert before.max() > 10 * before.min()
    use_pixel_metric(vae, images)
    after = ratios()
    torch.testing.assert_close(after, torch.ones(6), atol=0.15, rtol=0)


def test_the_channels_are_principal_components():
    """Of mean 0, not correlated, the largest first. The posterior's noise keeps its size in
    pixels."""
    vae, images = made()
    with torch.no_grad():
        means, logvars = vae.posterior(images)
        noise = (image_metric(vae, means) @ logvars.exp().mean((0, 2, 3)).diag()).trace()
        mean, logvar = use_pixel_metric(vae, images).posterior(images)
    covariance = torch.cov(mean.transpose(0, 1).flatten(1))
    std = covariance.diagonal().sqrt()
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(covariance / (std * std[:, None]), torch.eye(6), atol=1e-2, rtol=0)
    assert (std.diff() < 0).all()
    assert torch.equal(logvar.amin((0, 2, 3)), logvar.amax((0, 2, 3)))
    torch.testing.assert_close(logvar[0, :, 0, 0].exp().sum(), noise, atol=0, rtol=1e-3)
