"""Initial weights with which a VAE begins as a Haar transform.

From random weights, a small VAE learns the large components of its images in minutes (the mean
color of a patch, its coarse brightness) and then almost nothing: the fine ones have a hundredth of
their variance and of their gradient. A wavelet transform (Mallat 1989, doi.org/10.1109/34.192463)
keeps a patch component by component, and fits the network as it is: each strided convolution turns
a channel into the means and three differences over 2x2 pixels. So the encoder begins with as many
components as it has latent channels, at similar sizes, and training goes on from there.
"""

import torch
from torch import nn

from ..vae import VAE, ResBlock, SpatialAttention

HAAR = torch.tensor(
    [[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]
).div(4)  # mean, horizontal, vertical and diagonal difference: (4, 2, 2)
GAIN = torch.tensor([1.0, 3.0, 3.0, 5.0])  # neighbors are alike, so their differences are small
LOGVAR = -6.0  # noise of a variance of 1 would hide the small components, and so they would be lost


def pass_through(conv: nn.Conv2d, at_most: int | None = None, gain: float = 1.0) -> None:
    """The first output channels of a convolution, at most so many, are the input channels of the
    same numbers; the others keep their weights."""
    n = min(conv.in_channels, conv.out_channels, at_most or conv.out_channels)
    middle = conv.kernel_size[0] // 2
    conv.weight[:n] = 0.0
    conv.weight[range(n), range(n), middle, middle] = gain
    conv.bias[:n] = 0.0


def split(conv: nn.Conv2d, sizes: list[float]) -> list[float]:
    """The Haar transform of the first channels, as many as there are `sizes`; returns the sizes of
    the outputs. The largest come first, and what exceeds the output channels is dropped."""
    parts = [(s / g.item(), i, j) for i, s in enumerate(sizes) for j, g in enumerate(GAIN)]
    parts = sorted(parts, key=lambda part: -part[0])[: conv.out_channels]
    for k, (_, i, j) in enumerate(parts):
        conv.weight[k] = 0.0
        conv.weight[k, i, :2, :2] = GAIN[j] * HAAR[j]
        conv.bias[k] = 0.0
    return [size for size, _, _ in parts]


@torch.no_grad()
def begin_as_wavelet(vae: VAE) -> VAE:
    """Set the weights of the encoder, and clear the way from the latents to the image; returns the
    VAE. All residual branches begin at zero, and the posterior narrow."""
    encoder, decoder, channels = vae.encoder, vae.decoder, vae.config.latent_channels
    for module in vae.modules():
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if hasattr(module, "conv_shortcut"):
                pass_through(module.conv_shortcut)
        elif isinstance(module, SpatialAttention):
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)
    for conv in (encoder.conv_in, vae.quant_conv, vae.post_quant_conv, decoder.conv_in):
        pass_through(conv)
    sizes = [1.0] * 3
    for level in encoder.down_blocks[:-1]:
        sizes = split(level.downsamplers[0].conv, sizes)
    for conv in (encoder.conv_out, decoder.conv_out):
        pass_through(conv, channels, gain=2.0)  # the slope of SiLU at 0 is a half
    vae.quant_conv.bias[channels:] = LOGVAR
    return vae
