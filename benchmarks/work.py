"""The work that bench.py measures: each the same with `tok.savings` on and off; and a training
step."""

from collections.abc import Callable

import torch
from measure import Work
from torch import Tensor, nn

from minflextok import FlexTok, savings
from minflextok.config import TokenizerConfig
from minflextok.precision import autocast
from minflextok.training.objective import TokenizerObjective

GUIDANCE = 3.0


def random_tok(c: TokenizerConfig) -> FlexTok:
    torch.manual_seed(0)
    tok = FlexTok(c).eval()
    with torch.no_grad():
        for p in tok.parameters():
            if not p.any():
                p.normal_(std=0.02)
    return tok


def random_images(tok: FlexTok, B: int) -> Tensor:
    c, g = tok.config, torch.Generator().manual_seed(1)
    x = torch.randn(B, c.in_channels, c.image_size, c.image_size, generator=g)
    return x.clamp(-1, 1).to(tok.encoder.registers)


def random_ids(tok: FlexTok, B: int, k: int) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randint(tok.config.vocab_size, (B, k), generator=g).to(tok.device)


def on_and_off(tok: FlexTok, f: Callable[[], Tensor]) -> Work:
    def with_savings(on: bool) -> Tensor:
        tok.savings = on
        return f()

    return {"on": lambda: with_savings(True), "off": lambda: with_savings(False)}


def encoding(tok: FlexTok, B: int, k: int) -> Work:
    """Images to ids. Returns the latents: an id may differ where a latent is on a boundary."""
    x = random_images(tok, B)

    @torch.no_grad()
    def quantized(latents: Callable[[], Tensor]) -> Tensor:
        z = latents()
        tok.fsq(z)
        return z

    return {
        "on": lambda: quantized(lambda: savings.encode_registers(tok.encoder, x, k)),
        "off": lambda: quantized(lambda: tok.encoder(x)[:, :k]),
    }


def decoding(tok: FlexTok, B: int, k: int, steps: int = 1) -> Work:
    """Ids to images, with guidance."""
    ids, noise = random_ids(tok, B, k), random_images(tok, B).float()
    return on_and_off(tok, lambda: tok.decode(ids, steps, GUIDANCE, noise=noise))


def typical_draws(tok: FlexTok, x: Tensor) -> tuple[Tensor, ...]:
    """Of the draws of 100 training steps, those whose mean keep_k is closest to the average."""
    objective = TokenizerObjective(tok)
    draws = [objective.draw(x, generator=torch.Generator().manual_seed(i)) for i in range(100)]
    mean = torch.cat([keep_k for _, _, keep_k, _ in draws]).float().mean()
    return min(draws, key=lambda d: (d[2].float().mean() - mean).abs())


def training_step(model: nn.Module, loss: Callable[[], Tensor], bf16: bool) -> Callable[[], Tensor]:
    """Forward, backward, AdamW with learning rate 0, which costs the same as any other."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    device = next(model.parameters()).device

    def step() -> Tensor:
        optimizer.zero_grad()
        with autocast(device, bf16):
            value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def training(tok: FlexTok, B: int) -> Work:
    x, objective = random_images(tok, B), TokenizerObjective(tok)
    draws = typical_draws(tok, x)
    return on_and_off(tok, training_step(tok, lambda: objective(x, *draws), x.is_cuda))
