"""Our numbers against those of the published implementation, at the tolerances that its fixtures
support."""

import ast
import json

import pytest
import torch
from conftest import SHARED, needs_parity
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minflextok import FlexTok
from minflextok.decoder import time_features
from minflextok.draws import Draws
from minflextok.encoder import prefix_mask
from minflextok.flow import interpolate, mode_timesteps
from minflextok.fsq import FSQ
from minflextok.guidance import APG, cfg
from minflextok.patches import patchify
from minflextok.published import RENAME
from minflextok.vae import VAE, VAEConfig, kl_divergence

pytestmark = needs_parity
PARITY = SHARED / "parity"
MODELS = {
    "parity_public": "published_format.safetensors",
    "parity_public_shared_adaln": "published_format_hub",
}


@pytest.fixture(params=MODELS, scope="module")
def pair(request):
    return (
        FlexTok.from_pretrained(PARITY / MODELS[request.param]),
        load_file(PARITY / f"{request.param}.safetensors"),
        request.param,
    )


def close(ours, theirs, atol):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def test_encoder_and_ids(pair):
    tok, d, _ = pair
    z = tok.encode_continuous(d["in.latents"])
    close(z, d["out.enc_latents"], 2e-5)
    close(tok.fsq.bound(z), d["out.fsq_bounded"], 2e-5)
    codes, ids = tok.fsq(z)
    close(codes, d["out.quant"], 1e-6)
    assert torch.equal(ids, d["out.tokens"])
    assert torch.equal(tok.encode(d["in.latents"], 5), d["out.tokens"][:, :5])


def test_encoder_stages(pair):
    tok, d, _ = pair
    enc, x = tok.encoder, d["in.latents"]
    patches = enc.patch_proj(patchify(x, 2))
    close(patches, d["stage.enc_patches"].flatten(1, 2), 2e-5)
    P, K = patches.shape[1], tok.config.num_registers
    assert torch.equal(prefix_mask(P, K).to(torch.uint8), d["stage.enc_mask_one_sample"])


def test_velocities(pair):
    tok, d, _ = pair
    ids, x, t = d["out.tokens"], d["in.noised"], d["in.t"]
    close(tok.velocity(x, t, ids), d["vel.all"], 2e-5)
    close(tok.velocity(x, t, ids[:, :1]), d["vel.k1"], 2e-5)
    close(tok.velocity(x, t, ids[:, :4]), d["vel.k4"], 2e-5)
    close(
        tok.velocity(
            x, t, [i[:k] for i, k in zip(ids, d["in.keep_k_mixed"].tolist(), strict=True)]
        ),
        d["vel.mixed"],
        2e-5,
    )
    close(tok.velocity(x, t, None, null=True), d["vel.uncond"], 2e-5)
    close(tok.velocity(x, t, ids[:, :3], null=True), d["vel.uncond"], 2e-5)


def test_register_embedding_and_time(pair):
    tok, d, _ = pair
    dec = tok.decoder
    close(
        dec.code_proj(d["out.quant"]) + dec.register_positions,
        d["stage.dec_registers_posemb"],
        2e-5,
    )
    features = time_features(d["in.t"])
    close(features, d["stage.temb_freq"], 2e-5)
    close(dec.time_mlp(features), d["stage.temb"], 2e-5)
    dec.max_timestep = 1000.0
    try:
        close(
            tok.velocity(d["in.noised"], d["in.t"], d["out.tokens"]),
            d["alt.vel.all.other_max_timestep"],
            2e-5,
        )
    finally:
        dec.max_timestep = 1.0


@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize(
    "name, options",
    [("plain", {}), ("cfg3", {"guidance": 3.0}), ("apg7p5", {"guidance": 7.5, "apg": True})],
)
def test_samples(pair, steps, name, options):
    tok, d, _ = pair
    for k in (None, 4):
        key = f"sample.s{steps}.{name}.{'all' if k is None else 'k4'}"
        if key in d:
            close(
                tok.decode(
                    d["out.tokens"][:, :k], steps=steps, noise=d["in.sample_noise"], **options
                ),
                d[key],
                1e-4,
            )


def test_sample_with_guidance_schedule(pair):
    tok, d, _ = pair
    ours = tok.decode(
        d["out.tokens"], steps=4, guidance=lambda t: 1 + 2 * t, noise=d["in.sample_noise"]
    )
    close(ours, d["sample.s4.cfg_linear.all"], 1e-4)


def test_loss_and_gradients(pair):
    tok, d, name = pair
    tok.zero_grad()
    x, noise = d["in.latents"], d["in.noise"]
    close(noise - x, d["train.target"], 1e-6)
    null = torch.zeros(2, dtype=torch.bool)
    loss = tok.flow_loss(x, Draws(noise, d["in.t"], d["in.keep_k_mixed"], null))
    close(loss[None], d["train.loss"], 1e-5)
    loss.backward()
    grads = {n: p.grad for n, p in tok.named_parameters()}

    def ours(theirs):
        old, new = next((o, n) for o, n in RENAME.items() if theirs.startswith(o))
        return grads[theirs.replace(old, new).replace("adaLN_modulation.1", "adaln")]

    with safe_open(PARITY / f"{name}.safetensors", "pt") as f:
        names = json.loads(f.metadata()["grad_names"])
    for theirs, norm in zip(names, d["train.grad_norms"], strict=True):
        mine = ours(theirs)
        torch.testing.assert_close(
            torch.zeros(()) if mine is None else mine.norm(), norm, rtol=1e-4, atol=1e-7
        )
    for key in (k for k in d if k.startswith("train.grad.")):
        full = d[key]
        mine = ours(key.removeprefix("train.grad."))
        full = full.reshape(full.shape[-2:]).T if "posemb" in key else full
        close(mine, full, 1e-4 * full.abs().max().item())


def published() -> tuple[dict, dict]:
    """Tensors and metadata of a published single file."""
    with safe_open(PARITY / "published_format.safetensors", "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}, f.metadata()  # noqa: SIM118 (no dict)


def test_noising_and_units():
    d = load_file(PARITY / "parity_public.safetensors")
    close(mode_timesteps(d["noise.table_u"]), d["noise.table_sigma"], 1e-6)
    close(mode_timesteps(d["noise.u"]), d["noise.sigma"], 1e-6)
    close(interpolate(d["in.latents"], d["in.noise"], d["in.t"]), d["in.noised"], 1e-6)
    close(time_features(d["unit.t"], 1.0), d["unit.t_freq.max1"], 2e-5)
    close(time_features(d["unit.t"], 1000.0), d["unit.t_freq.max1000"], 2e-5)
    close(
        torch.stack(
            [cfg(c, u, 3.0) for c, u in zip(d["unit.cond"], d["unit.uncond"], strict=True)]
        ),
        d["unit.cfg3"],
        1e-5,
    )
    for suffix, scale in (("", 1.0), ("_small", 0.05)):
        apg = APG()
        ours = [
            apg(c * scale, u * scale, 7.5)
            for c, u in zip(d["unit.cond"], d["unit.uncond"], strict=True)
        ]
        close(torch.stack(ours), d[f"unit.apg7p5{suffix}"], 2e-5)


def test_fsq_tables():
    d = load_file(PARITY / "parity_public.safetensors")
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    assert torch.equal(fsq.ids_to_codes(d["fsq.ids"]), d["fsq.embeddings"])
    assert torch.equal(fsq.codes_to_ids(d["fsq.embeddings"]), d["fsq.ids"])
    codes, ids = fsq(d["fsq.z"])
    assert torch.equal(ids, d["fsq.z_ids"])
    close(codes, d["fsq.z_quant"], 1e-6)
    close(fsq.bound(d["fsq.z"]), d["fsq.z_bounded"], 1e-5)


def test_published_file_that_is_not_understood_is_refused_by_name(tmp_path):
    with safe_open(PARITY / "published_format.safetensors", "pt") as f:
        metadata, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118

    def attempt(tensors, metadata, match):
        save_file(tensors, tmp_path / "m.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match=match):
            FlexTok.from_pretrained(tmp_path / "m.safetensors")

    attempt(
        tensors | {"decoder.module_dict.dec_new.weight": torch.zeros(2)}, metadata, "dec_new.weight"
    )
    attempt(
        {k: v for k, v in tensors.items() if "enc_to_latents" not in k}, metadata, "encoder.head"
    )
    attempt(tensors, {"_target_": "x"}, "no config")
    attempt(
        tensors,
        metadata
        | {
            "encoder": metadata["encoder"].replace(
                "'use_mup_readout': False", "'use_mup_readout': True"
            )
        },
        "use_mup_readout=True",
    )
    table = "encoder.module_dict.enc_posemb_module.posembs"
    attempt(tensors | {table: tensors[table] + 1}, metadata, "sin-cos")
    attempt(tensors, metadata | {"regularizer": "{}"}, "FSQ levels")
    evil = metadata | {
        "pipeline": "__import__('os').system('touch " + str(tmp_path / "pwned") + "')"
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata=evil)
    FlexTok.from_pretrained(tmp_path / "m.safetensors")
    assert not (tmp_path / "pwned").exists()


SMALL_VAE = VAEConfig(latent_channels=16, widths=(16, 32), layers=1, groups=8, scaling_factor=0.5)


def with_vae(tensors: dict, metadata: dict) -> tuple[VAE, dict, dict]:
    """A published file's contents with a small VAE added, as the real ones have it."""
    torch.manual_seed(0)
    vae = VAE(SMALL_VAE).eval()
    section = {
        "_target_": "flextok.vae_wrapper.StableDiffusionVAE",
        "latent_channels": 16,
        "scaling_factor": 0.5,
        "norm_num_groups": 8,
        "sample_posterior": True,
    }
    return (
        vae,
        tensors | {f"vae.vae.{k}": v for k, v in vae.state_dict().items()},
        metadata | {"vae": str(section)},
    )


def test_a_file_with_its_vae_maps_images_to_images(tmp_path):
    vae, tensors, metadata = with_vae(*published())
    tensors["decoder.module_dict.dec_repa_head.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.warns(UserWarning, match="ignoring 1 REPA"):
        tok = FlexTok.from_pretrained(tmp_path)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(2, 16, 32, 32, generator=torch.Generator().manual_seed(1))
    latents = vae.encode(images)
    ids = tok.encode(images, 5)
    assert tok.config.in_channels == 16 and torch.equal(ids, tok.encode_latents(latents, 5))
    back = tok.decode(ids, steps=2, noise=noise)
    sample = tok.decode(ids, steps=2, noise=noise, to_images=False)
    assert back.shape == images.shape and sample.shape == noise.shape
    close(back, vae.decode(sample).clamp(-1, 1), 1e-5)
    assert tok.reconstruct(images, 3, steps=1).shape == images.shape
    assert not any(p.requires_grad for p in tok.vae.parameters())
    tok.save_pretrained(tmp_path / "ours")
    again = type(tok).from_pretrained(tmp_path / "ours")
    assert again.config == tok.config and again.vae.config == tok.vae.config
    assert all(
        torch.equal(a, b)
        for a, b in zip(tok.state_dict().values(), again.state_dict().values(), strict=True)
    )
    half = type(tok).from_pretrained(tmp_path, torch.bfloat16)
    assert (
        half.encoder.registers.dtype == torch.bfloat16
        and half.vae.quant_conv.weight.dtype == torch.float32
    )
    assert (half.encode(images, 5) == ids).float().mean() > 0.3
    assert half.decode(ids, steps=1, noise=noise).isfinite().all()
    with pytest.raises(ValueError, match="multiples of 4 up to 64"):
        tok.encode(torch.zeros(1, 3, 66, 64))


def test_what_is_wrong_with_a_vae_is_named(tmp_path):
    vae, tensors, metadata = with_vae(*published())

    def attempt(tensors, match, **section):
        literal = ast.literal_eval(metadata["vae"]) | section
        save_file(
            tensors, tmp_path / "model.safetensors", metadata=metadata | {"vae": str(literal)}
        )
        with pytest.raises(ValueError, match=match):
            FlexTok.from_pretrained(tmp_path)

    attempt(tensors | {"vae.vae.encoder.new.weight": torch.zeros(2)}, "unknown encoder.new.weight")
    attempt(
        {k: v for k, v in tensors.items() if "post_quant_conv.weight" not in k},
        "lacks post_quant_conv.weight",
    )
    attempt(tensors, "act_fn='relu'", act_fn="relu")
    attempt(tensors, "scaling_factor", scaling_factor=None)
    attempt(tensors, "multiples of groups=32", norm_num_groups=32)
    attempt(tensors, "SomeOtherVAE", _target_="flextok.SomeOtherVAE")


def test_diffusers_directories_and_old_attention_names(tmp_path, vae_pair):
    vae, d = vae_pair
    settings = {
        "_class_name": "AutoencoderKL",
        "norm_num_groups": 8,
        "scaling_factor": 0.5,
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * 2,
    }
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in vae.state_dict().items():
        for new, before in old.items() if ".attentions." in name else ():
            name, tensor = name.replace(f".{new}.", f".{before}."), tensor
        is_linear = ".attentions." in name and tensor.ndim == 2
        tensors[name] = tensor[:, :, None, None].contiguous() if is_linear else tensor
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    close(VAE.from_pretrained(tmp_path).encode(d["in.image"]), d["out.scaled_latents_mode"], 2e-5)
    (tmp_path / "config.json").write_text(
        json.dumps(settings | {"down_block_types": ["AttnDownEncoderBlock2D"] * 2})
    )
    with pytest.raises(ValueError, match="AttnDownEncoderBlock2D"):
        VAE.from_pretrained(tmp_path)


# ---- the VAE -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae_pair():
    file = PARITY / "vae_public.safetensors"
    d = load_file(file)
    with safe_open(file, "pt") as f:
        c = json.loads(f.metadata()["effective_config"])
    vae = VAE(
        VAEConfig(
            c["latent_channels"],
            tuple(c["block_out_channels"]),
            c["layers_per_block"],
            c["norm_num_groups"],
            c["scaling_factor"],
        )
    ).requires_grad_(False)
    vae.load_state_dict(
        {k.removeprefix("state."): v for k, v in d.items() if k.startswith("state.")}
    )
    return vae, d


def test_vae_posterior_and_kl(vae_pair):
    vae, d = vae_pair
    mean, logvar = vae.posterior(d["in.image"])
    close(mean, d["out.mean"], 2e-5)
    close(logvar, d["out.logvar"], 2e-5)
    close(torch.exp(logvar / 2), d["out.std"], 2e-5)
    close(mean + torch.exp(logvar / 2) * d["in.eps"], d["out.sample"], 2e-5)
    torch.testing.assert_close(kl_divergence(mean, logvar), d["out.kl"], rtol=1e-5, atol=1e-4)
    close(vae.encode(d["in.image"]), d["out.scaled_latents_mode"], 2e-5)


def test_vae_stages_and_reconstruction(vae_pair):
    vae, d = vae_pair
    x = vae.encoder.conv_in(d["in.image"])
    for i, level in enumerate(vae.encoder.down_blocks):
        x = level(x)
        close(x, d[f"stage.enc_down{i}"], 2e-5)
    close(vae.encoder.mid_block(x), d["stage.enc_mid"], 2e-5)
    close(vae.encoder(d["in.image"]), d["stage.enc_out_before_quant_conv"], 2e-5)
    close(vae.decode(d["out.scaled_latents_mode"]), d["out.reconstruction_from_scaled"], 1e-4)
    close(vae.decode(d["out.mean"] * vae.config.scaling_factor), d["out.reconstruction"], 1e-4)
