"""Numbers that say how well images come back and how well the codes are used."""

import torch
from torch import Tensor

from .tokenizer import FlexTok


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images in [-1, 1]: (B, C, H, W) twice -> (B,) dB."""
    error = (a.float() - b.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def code_usage(ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """ids (B, K) -> per register the number of distinct ids (K,) and their perplexity exp(entropy) (K,)."""
    counts = torch.stack([torch.bincount(column, minlength=vocab_size) for column in ids.T]).double()  # (K, vocab)
    p = counts / counts.sum(1, keepdim=True)
    return (counts > 0).sum(1), torch.exp(-(p * p.clamp(min=1e-300).log()).sum(1))


@torch.no_grad()
def one_step_psnr(tok: FlexTok, images: Tensor, ids: Tensor, seed: int = 0) -> dict[int, float]:
    """PSNR of the one-step estimate noise - v(noise, t=1) at 1, 2, 4, ..., K tokens.

    One decoder call an image and no sampling: the curve to watch while training. It scores the mean of the images
    that the tokens leave possible, so it is higher than the PSNR of samples.
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)

    def estimate(k: int) -> Tensor:
        parts = zip(noise.split(256), ids[:, :k].split(256), strict=True)
        return torch.cat([n - tok.velocity(n, 1.0, i) for n, i in parts])

    bound = 1 if tok.config.in_channels == 3 else float("inf")  # latents have none
    return {k: psnr(estimate(k).clamp(-bound, bound), images).mean().item() for k in tok.config.budgets}


def health(psnrs: dict[int, float], perplexity: Tensor, vocab_size: int) -> str:
    """What the numbers say, in words; empty while all is well."""
    mean = perplexity.mean().item()
    if mean < 1.5:
        return (f"codes have collapsed: a register uses {mean:.1f} of {vocab_size} ids on average; "
                "start again with a lower learning rate")
    first, last = next(iter(psnrs.values())), list(psnrs.values())[-1]
    if last - first < 0.2:
        return f"tokens beyond the first carry nothing yet: PSNR {first:.1f} dB at 1 token, {last:.1f} dB at all"
    return ""
