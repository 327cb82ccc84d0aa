"""FlexTok as a user calls it, and its objective."""

import pytest
import torch
from conftest import changed, randomised

from minflextok import PRESETS, FlexTok
from minflextok.draws import Draws, draw
from minflextok.guidance import APG, cfg


def test_decode_takes_ragged_ids_and_is_deterministic(tok, images):
    ids, noise = (
        tok.encode(images),
        torch.randn(images.shape, generator=torch.Generator().manual_seed(0)),
    )
    ragged = tok.decode([ids[0, :2], ids[1], ids[2, :1]], steps=3, noise=noise)
    assert ragged.shape == images.shape and ragged.abs().max() <= 1
    for i, k in enumerate((2, 6, 1)):
        torch.testing.assert_close(
            ragged[i],
            tok.decode(ids[i : i + 1, :k], steps=3, noise=noise[i : i + 1])[0],
            atol=1e-5,
            rtol=0,
        )
    a, b = (tok.decode(ids, steps=3, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{"guidance": 2.0}, {"guidance": 2.0, "apg": True}])
def test_batched_guidance_equals_two_calls(tok, images, options):
    ids, x = tok.encode(images, 2), torch.randn_like(images)
    guide, expected = (APG() if options.get("apg") else cfg), x
    with torch.no_grad():
        for t in (1.0, 0.5):
            cond, uncond = (
                tok.velocity(expected, t, ids),
                tok.velocity(expected, t, None, null=True),
            )
            expected = expected - guide(cond, uncond, 2.0) / 2
    torch.testing.assert_close(
        tok.decode(ids, steps=2, noise=x, **options), expected.clamp(-1, 1), atol=1e-5, rtol=0
    )


def test_reconstruct_is_encode_then_decode(tok, images):
    noise = torch.randn_like(images)
    assert torch.equal(
        tok.reconstruct(images, 2, steps=2, noise=noise),
        tok.decode(tok.encode(images, 2), steps=2, noise=noise),
    )


def test_latent_models_take_other_sizes_and_ranges():
    latents = randomised(changed(in_channels=5))
    x = 30 * torch.randn(2, 5, 4, 8)
    out = latents.reconstruct(x, num_tokens=3, steps=2)
    assert out.shape == x.shape
    assert (
        latents.decode(latents.encode(x), steps=1, noise=100 * torch.randn_like(x)).abs().max() > 1
    )  # not clamped


@pytest.mark.parametrize(
    "separate, learned", [(True, True), (True, False), (False, True), (False, False)]
)
def test_every_parameter_learns(separate, learned, images):
    tok = randomised(changed(separate_adaln=separate, learned_null=learned, null_prob=0.3)).train()
    for seed in range(3):
        tok.loss(images, generator=torch.Generator().manual_seed(seed)).backward()
    assert [n for n, p in tok.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_null_condition_is_drawn_at_its_rate_also_under_nested_dropout(tok):
    x = torch.zeros(20_000, 3, 1, 1)
    for nested in (0.0, 0.5, 1.0):
        _, t, keep_k, null = draw(tok.config, x, nested, torch.Generator().manual_seed(0))
        assert null.float().mean().item() == pytest.approx(0.1, abs=0.01)
        below = (keep_k < 6).float().mean().item()  # pow2 over 1, 2, 4, 6
        assert below == pytest.approx(0.75 * nested, abs=0.01)
        assert t.min() >= 0 and t.max() <= 1


def test_loss_is_the_mean_squared_velocity_error(tok, images):
    noise, t, keep_k, null = draw(tok.config, images, 1.0, torch.Generator().manual_seed(3))
    ids, total = tok.encode(images), 0.0
    for b in range(3):
        x_t = t[b] * noise[b] + (1 - t[b]) * images[b]
        v = tok.velocity(x_t[None], t[b : b + 1], ids[b : b + 1, : keep_k[b]], null=bool(null[b]))
        total += (v[0] - (noise[b] - images[b])).square().mean().item()
    assert tok.flow_loss(images, Draws(noise, t, keep_k, null)).item() == pytest.approx(
        total / 3, abs=1e-5
    )
    assert tok.loss(images, generator=torch.Generator().manual_seed(3)).item() == pytest.approx(
        total / 3, abs=1e-5
    )


def test_bfloat16_autocast_stays_close(tok, images):
    ids = tok.encode(images)
    plain = tok.velocity(images, 0.5, ids)
    with torch.autocast("cpu", torch.bfloat16):
        low = tok.velocity(images, 0.5, ids)
        assert torch.isfinite(tok.loss(images)) and tok.decode(ids, steps=2).dtype == torch.float32
    assert ((low - plain).norm() / plain.norm()).item() < 0.03


def test_a_bfloat16_model_runs(tok, images):
    tok = tok.bfloat16()
    assert tok.reconstruct(images, 2, steps=2).shape == images.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu(tok, images):
    ids, noise = tok.encode(images), torch.randn_like(images)
    here = tok.decode(ids, steps=3, noise=noise, guidance=2.0)
    there = tok.cuda().decode(ids, steps=3, noise=noise, guidance=2.0).cpu()
    torch.testing.assert_close(there, here, atol=1e-3, rtol=0)
    tok.loss(images.cuda()).backward()


def test_published_sizes():
    """Parameter counts that the published state dicts imply (their fixed position tables counted
    in)."""
    for name, want in {
        "d12-d12": 257_830_726,
        "d18-d18": 865_913_542,
        "d18-d28": 2_457_061_830,
    }.items():
        with torch.device("meta"):
            tok = FlexTok(PRESETS[name])
        tables = (tok.config.enc_dim + tok.config.dec_dim) * 16 * 16
        assert sum(p.numel() for p in tok.parameters()) + tables == want


def test_an_apg_object_carries_nothing_from_one_decode_to_the_next(tok, images):
    ids, x, apg = tok.encode(images), torch.randn_like(images), APG(momentum=-0.3)
    a, b = (tok.decode(ids, steps=3, guidance=3.0, apg=apg, noise=x) for _ in range(2))
    assert torch.equal(a, b)
