"""Published files of any size: written here in their layout from models of ours, read back as the
same model."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, changed, randomised
from safetensors.torch import save_file

from minflextok import FlexTok
from minflextok.config import VAEConfig
from minflextok.patches import sincos_positions
from minflextok.published import RENAME, TABLES, is_published
from minflextok.vae import VAE

BASE = changed(image_size=8, in_channels=16, fsq_levels=(8, 8, 8, 5, 5, 5))


def published_tensors(tok: FlexTok) -> dict[str, torch.Tensor]:
    """The state of a FlexTok under the published names and shapes."""
    c, tensors = tok.config, {}
    for name, tensor in tok.state_dict().items():
        if name.startswith("vae."):
            tensors["vae." + name] = tensor
            continue
        theirs, ours = next(
            (t, o) for t, o in RENAME.items() if name == o or name.startswith(o + ".")
        )
        theirs += name[len(ours) :].replace(".adaln.", ".adaLN_modulation.1.")
        tensors[theirs] = (
            tensor.T[None, None].contiguous() if ours == "decoder.register_positions" else tensor
        )
    for table, dim in zip(TABLES, (c.enc_dim, c.dec_dim), strict=True):
        tensors[table] = sincos_positions(dim, c.grid).permute(2, 0, 1)[None].contiguous()
    return tensors


def settings_of(tok: FlexTok) -> dict:
    c, vae = tok.config, tok.vae
    patches = {"patch_sizes": [c.patch_size] * 2}
    return {
        "_target_": "flextok.FlexTok",
        "encoder": {"module_dict": {"enc_patch_emb": patches}},
        "decoder": {"module_dict": {"dec_time_embedder": {"max_timestep": c.max_timestep}}},
        "regularizer": {"levels": list(c.fsq_levels)},
        "vae": None
        if vae is None
        else {"scaling_factor": vae.config.scaling_factor, "norm_num_groups": vae.config.groups},
    }


SIZES = [
    {"enc_dim": 128, "enc_depth": 1, "dec_dim": 192, "dec_depth": 3, "num_registers": 7},
    {"patch_size": 1, "image_size": 4, "num_registers": 64, "separate_adaln": False},
    {
        "in_channels": 4,
        "patch_size": 4,
        "learned_null": False,
        "max_timestep": 1000.0,
        "fsq_levels": (5, 3),
    },
]


@pytest.mark.parametrize("in_metadata", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_any_size_is_read_back_as_it_was(tmp_path, sizes, in_metadata):
    tok = randomised(changed(**{**vars(BASE), **sizes}))
    if in_metadata:
        tok.attach(VAE(VAEConfig(tok.config.in_channels, (16, 8), 1, 4, 0.7)))
    settings = settings_of(tok)
    metadata = {k: str(v) for k, v in settings.items()} if in_metadata else None
    save_file(published_tensors(tok), tmp_path / "model.safetensors", metadata=metadata)
    if not in_metadata:
        (tmp_path / "config.json").write_text(json.dumps(settings))
    assert is_published(tmp_path)
    again = FlexTok.from_pretrained(tmp_path)
    size = tok.config.image_size
    x = torch.randn(2, tok.config.in_channels, size, size)
    noise = torch.randn_like(x)
    ids = tok.encode_latents(x)
    assert torch.equal(again.encode_latents(x), ids)
    torch.testing.assert_close(
        *(t.decode(ids[:, :2], 2, noise=noise, guidance=2.0) for t in (again, tok)),
        atol=1e-5,
        rtol=1e-5,
    )
    for field in (
        "image_size",
        "patch_size",
        "enc_depth",
        "dec_dim",
        "num_registers",
        "separate_adaln",
        "learned_null",
        "max_timestep",
    ):
        assert getattr(again.config, field) == getattr(tok.config, field), field


def test_settings_that_mean_something_else_are_refused(tmp_path):
    tok = randomised(BASE)

    def attempt(match, **changes):
        settings = settings_of(tok)
        for path, value in changes.items():
            section, key = path.split("__")
            settings[section] = {**settings[section], key: value}
        save_file(
            published_tensors(tok),
            tmp_path / "m.safetensors",
            metadata={k: str(v) for k, v in settings.items()},
        )
        with pytest.raises(ValueError, match=match):
            FlexTok.from_pretrained(tmp_path / "m.safetensors")

    attempt(
        "mask_mode='full' is not supported, only 'causal_last'",
        encoder__packer={"mask_mode": "full"},
    )
    attempt("uses evil.Module", decoder__new={"_target_": "evil.Module"})
    attempt("uses flextok.LFQ", regularizer___target_="flextok.LFQ")
    attempt("mlp_ratio=2.0", decoder__mlp_ratio=2.0)


def test_names_that_are_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        FlexTok.from_pretrained(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        FlexTok.from_pretrained(tmp_path)


def test_a_repository_that_cannot_be_had_is_a_clear_error(monkeypatch):
    from minflextok import weights

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "snapshot_download", offline)
    with pytest.raises(
        FileNotFoundError,
        match=r"no weights 'EPFL-VILAB/flextok_x': shipped are .*hub \(it answered: no route",
    ):
        FlexTok.from_pretrained("EPFL-VILAB/flextok_x")


def test_a_repository_is_downloaded_and_read(tmp_path, monkeypatch):
    from minflextok import weights

    tok, asked = randomised(BASE), []
    save_file(
        published_tensors(tok),
        tmp_path / "model.safetensors",
        metadata={k: str(v) for k, v in settings_of(tok).items()},
    )
    monkeypatch.setattr(
        weights,
        "snapshot_download",
        lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(tmp_path),
    )
    again = FlexTok.from_pretrained("owner/name")
    assert torch.equal(again.encoder.registers, tok.encoder.registers)
    assert asked == [("owner/name", ["*.safetensors", "config.json"])]


@pytest.mark.skipif(
    torch.__version__.startswith("2.9."), reason="the meta device of torch 2.9 imports it"
)
def test_loading_imports_no_symbolic_algebra():
    script = (
        "import sys; from minflextok import FlexTok; FlexTok.from_pretrained('cifar10-tiny'); "
        "print('sympy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_file_of_half_precision_loads_as_float32(tmp_path, stored):
    tok = randomised(BASE)
    settings = settings_of(tok)
    repa = {
        "dec_repa_head": {"_target_": "flextok.Something", "patch_sizes": [14, 14], "head_dim": 32}
    }
    settings["decoder"]["module_dict"] |= repa | {"dec_nested_dropout": None}  # harmless
    tensors = {k: v.to(stored) for k, v in published_tensors(tok).items()}
    save_file(
        tensors, tmp_path / "m.safetensors", metadata={k: str(v) for k, v in settings.items()}
    )
    again = FlexTok.from_pretrained(tmp_path / "m.safetensors")
    assert again.encoder.registers.dtype == torch.float32
    torch.testing.assert_close(again.encoder.registers, tok.encoder.registers, atol=0.02, rtol=0.01)
