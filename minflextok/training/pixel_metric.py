"""Latents whose distances are those of images.

A VAE with a weak KL penalty is free to scale its latents: fine details of an image can be as large
there as its colors. The loss of a flow on such latents is mostly about details that no token can
predict. Here, after the training of the VAE, a linear map of its latents makes a small change of
them as large as the change of the image, and turns the axes into principal components: the first
channel varies most and is close to the brightness of a patch. The encoder ends and the decoder
begins with a 1x1 convolution; these take up the map and its inverse, so decoded images stay the
same.
"""

import torch
from einops import rearrange
from torch import Tensor

from ..vae import VAE

STEP = 0.5  # of the finite differences, in units of a latent's standard deviation


@torch.no_grad()
def image_metric(vae: VAE, means: Tensor) -> Tensor:
    """The matrix G (C, C) with |decode(z + d) - decode(z)|^2 = d G d for a small change d of one
    position, averaged over images. means (n, C, h, w): unscaled latents."""

    def decode(z: Tensor) -> Tensor:
        return vae.decode(z * vae.config.scaling_factor).flatten(1)

    y, x = means.shape[2] // 2, means.shape[3] // 2
    base, columns = decode(means), []
    for c, std in enumerate(means.std((0, 2, 3))):
        changed = means.clone()
        changed[:, c, y, x] += STEP * std
        columns.append((decode(changed) - base) / (STEP * std))
    jacobian = torch.stack(columns, 1)  # (n, C, 3 * H * W)
    return (jacobian @ jacobian.transpose(1, 2)).mean(0)


@torch.no_grad()
def use_pixel_metric(vae: VAE, images: Tensor) -> VAE:
    """Change the latents of `vae` in place, as said above; returns it. images (n, 3, H, W) in [-1,
    1]: a few dozen, of the training data.

    The posterior becomes the same normal distribution everywhere, with the mean variances of the
    latents' axes, since a map of axes does not keep a diagonal covariance diagonal.
    """
    parts = [vae.posterior(x) for x in images.split(16)]
    means, logvars = (torch.cat(p) for p in zip(*parts, strict=True))
    values, axes = torch.linalg.eigh(image_metric(vae, means))
    root = (axes * values.clamp(min=1e-6).sqrt()) @ axes.T  # root @ root = G
    mean, covariance = means.mean((0, 2, 3)), torch.cov(rearrange(means, "n c h w -> c (n h w)"))
    principal = torch.linalg.eigh(root @ covariance @ root)[1].flip(1).T  # the largest first
    to_new = principal @ root
    encoder, decoder, n = vae.quant_conv, vae.post_quant_conv, len(mean)
    weight, back = encoder.weight[:n, :, 0, 0], decoder.weight[:, :, 0, 0].clone()
    encoder.weight[:n] = (to_new @ weight)[:, :, None, None]
    encoder.bias[:n] = to_new @ (encoder.bias[:n] - mean)
    encoder.weight[n:] = 0.0
    encoder.bias[n:] = (to_new.square() @ logvars.exp().mean((0, 2, 3))).log()
    decoder.weight.copy_((back @ torch.linalg.inv(to_new))[:, :, None, None])
    decoder.bias += back @ mean
    return vae
