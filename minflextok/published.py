"""Read the published FlexTok and VAE checkpoints (EPFL-VILAB on the Hugging Face hub).

Nothing in a checkpoint is executed: tensors come from safetensors, settings from JSON or Python
literals. Widths, depths, K, the modulation and the null condition are read from the shapes of the
tensors; everything else from the config.
"""

import ast
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import weights
from .checks import first_line
from .config import TokenizerConfig, VAEConfig
from .patches import sincos_positions

# Published name -> ours, outside the Transformer blocks; those keep their names but for the
# modulation.
RENAME = {
    "encoder.module_dict.enc_patch_emb.patch_proj": "encoder.patch_proj",
    "encoder.module_dict.enc_register_module.registers": "encoder.registers",
    "encoder.module_dict.enc_transformer.blocks": "encoder.blocks",
    "encoder.module_dict.enc_to_latents.proj": "encoder.head",
    "decoder.module_dict.dec_from_latents.proj": "decoder.code_proj",
    "decoder.module_dict.dec_registers_posemb_module.posembs": "decoder.register_positions",
    "decoder.module_dict.dec_nested_dropout.dropout_mask_token": (
        "decoder.nested_dropout.mask_token"
    ),
    "decoder.module_dict.dec_latent_dropout.nullcond": "decoder.null_token",
    "decoder.module_dict.dec_noise_patch_emb.patch_proj": "decoder.patch_proj",
    "decoder.module_dict.dec_time_embedder.mlp": "decoder.time_mlp",
    "decoder.module_dict.dec_transformer.blocks": "decoder.blocks",
    "decoder.module_dict.dec_to_patches.adaLN_modulation.1": "decoder.head_adaln",
    "decoder.module_dict.dec_to_patches.proj": "decoder.head",
}
TABLES = (
    "encoder.module_dict.enc_posemb_module.posembs",
    "decoder.module_dict.dec_patches_posemb_module.posembs",
)
# What old exports call the projections of the VAE's attention.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# With another value, the published code would compute something else than this package; so each
# must have this value, if given.
REQUIRED = {
    "mlp_ratio": 4.0,
    "qk_norm": True,
    "use_mup_readout": False,
    "frequency_embedding_size": 256,
    "posemb_scaling": "absolute",
    "ordering_mode": "nested",
    "flatten_patches": False,
    "ln": False,
    "drop_quant_p": 0.0,
}
REQUIRED_VAE = {
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "shift_factor": None,
    "in_channels": 3,
    "out_channels": 3,
}
# Classes that a config may name. The name is compared, never imported.
CLASSES = {
    "encoder": {
        "SequentialModuleDictWrapper",
        "PerSampleOp",
        "channels_first_to_last",
        "PatchEmbedder",
        "PositionalEmbeddingAdder",
        "Registers1D",
        "BlockWiseSequencePacker",
        "FlexTransformer",
        "SequenceUnpacker",
        "LinearHead",
    },
    "decoder": {
        "SequentialModuleDictWrapper",
        "LinearLayer",
        "PositionalEmbeddingAdder",
        "MaskedNestedDropout",
        "LearnedNullCond",
        "ZeroNullCond",
        "PerSampleOp",
        "channels_first_to_last",
        "channels_last_to_first",
        "PatchEmbedder",
        "BlockWiseSequencePacker",
        "TimestepEmbedder",
        "FlexTransformer",
        "SequenceUnpacker",
        "ToPatchesLinearHead",
    },
    "regularizer": {"FSQ"},
    "flow_matching_noise_module": {"MinRFNoiseModule"},
    "vae": {"StableDiffusionVAE"},
}
MASKS = {"encoder": "causal_last", "decoder": "full"}


@dataclass(frozen=True)
class Published:
    """What a published file holds, in this package's names: enough to build the models."""

    file: Path
    config: TokenizerConfig | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    vae_config: VAEConfig | None = None
    vae_tensors: dict[str, Tensor] = field(default_factory=dict)


def is_published(path: Path) -> bool:
    """Whether a directory or file is a published checkpoint, rather than one written by
    `save_pretrained`."""
    if path.is_file():
        return True
    file = path / "model.safetensors"
    try:
        config = weights.read_json(path / "config.json")
    except ValueError:
        if not (path / "config.json").exists():
            return file.exists() and "encoder" in weights.read_metadata(file)
        return False
    return isinstance(config, dict) and ("encoder" in config or "_class_name" in config)


def read_tokenizer(path: Path, dtype: torch.dtype = torch.float32) -> Published:
    """Read a published tokenizer: a model.safetensors with its config in the metadata, or a
    directory with config.json beside it.

    Its tensors are of `dtype` (float32 or bfloat16), those of the VAE, if the file holds one,
    float32. Weights stored as `dtype` are memory-mapped. The published code samples the VAE's
    latents from the posterior; ours are its mode, so that an image has one sequence of ids. Raises
    ValueError, naming the tensor or the setting, for anything that this implementation does not
    know.
    """
    file = _weights_file(path, "model.safetensors")
    with _well_formed(file):
        return _read_tokenizer(file, dtype)


def _read_tokenizer(file: Path, dtype: torch.dtype) -> Published:
    settings = _settings(file)
    tensors = weights.read_tensors(file, dtype, lambda name: not name.startswith("vae."))
    repa = [name for name in tensors if "repa" in name]
    if repa:
        warnings.warn(
            f"{file}: ignoring {len(repa)} REPA tensors ({repa[0]}, ...); only training used them",
            stacklevel=6,
        )
    tensors = {name: tensor for name, tensor in tensors.items() if name not in repa}
    config = _tokenizer_config(tensors, settings, file)
    _check_tables(file, config)
    tensors = {
        _rename(k, file): v.reshape(v.shape[-2:]).T.contiguous() if "registers_posemb" in k else v
        for k, v in tensors.items()
        if k not in TABLES
    }
    vae = weights.read_tensors(file, torch.float32, lambda name: name.startswith("vae."))
    if not vae:
        return Published(file, config, tensors)
    vae = {name.removeprefix("vae.vae."): tensor for name, tensor in vae.items()}
    return Published(file, config, tensors, *_vae(vae, settings["vae"], file))


def read_vae(path: Path) -> Published:
    """Read a published VAE in diffusers' AutoencoderKL format, as float32: a directory with
    config.json and diffusion_pytorch_model.safetensors. Raises ValueError as `read_tokenizer`."""
    file = _weights_file(path, "diffusion_pytorch_model.safetensors")
    tensors = weights.read_tensors(file, torch.float32)
    with _well_formed(file):
        config, tensors = _vae(tensors, _read_json(file.with_name("config.json")), file)
    return Published(file, vae_config=config, vae_tensors=tensors)


@contextmanager
def _well_formed(file: Path) -> Iterator[None]:
    """A setting of another kind than the published ones, such as a number for a list, is an
    error that names the file."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
    ) as e:
        raise ValueError(
            f"{file}: its config or its tensors are malformed ({type(e).__name__}: "
            f"{first_line(e)}): download it again"
        ) from None


def _check_tables(file: Path, config: TokenizerConfig) -> None:
    """The stored position tables must be the fixed ones, at the precision in which they are
    stored."""
    for name, stored in weights.read_tensors(file, only=TABLES.__contains__).items():
        table = sincos_positions(stored.shape[1], config.grid).permute(2, 0, 1)[None]
        tolerance = 1e-5 if stored.dtype == torch.float32 else 1e-2
        if not torch.allclose(stored.float(), table, atol=tolerance):
            raise ValueError(
                f"{file}: {name} is not the fixed sin-cos table that this implementation uses"
            )


# ---- settings ------------------------------------------------------------------------------------


def _weights_file(path: Path, name: str) -> Path:
    file = path if path.is_file() else path / name
    if not file.exists():
        raise FileNotFoundError(f"{file.parent} has no {name}: is it a published checkpoint?")
    return file


def _read_json(file: Path) -> dict:
    settings = weights.read_json(file)
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds a {type(settings).__name__}, not an object of settings")
    return settings


def _settings(file: Path) -> dict:
    """The config of a tokenizer: Python literals in the metadata of its file, or config.json beside
    it."""
    settings: dict[str, Any] = dict(weights.read_metadata(file))
    beside = file.with_name("config.json")
    if "encoder" in settings and "decoder" in settings:
        for key, text in settings.items():
            # A plain string, such as _target_, stays one.
            with suppress(ValueError, SyntaxError, TypeError):
                settings[key] = ast.literal_eval(text)
    elif beside.exists():
        settings = _read_json(beside)
    else:
        raise ValueError(
            f"{file} has no config in its metadata and no config.json beside it: download both"
        )
    for name, known in CLASSES.items():
        settings[name] = settings.get(name) or {}
        if not isinstance(settings[name], dict):
            raise ValueError(f"{file}: its section {name} is not a dictionary")
        # Without the modules of REPA, which only training used.
        modules = settings[name].get("module_dict") or {}
        settings[name] = {
            **settings[name],
            "module_dict": {k: v or {} for k, v in modules.items() if "repa" not in k},
        }
        _check_section(name, settings[name], known, file)
    return settings


def _check_section(name: str, section: dict, known: set[str], file: Path) -> None:
    """Refuse, by name, modules and settings that this implementation does not have."""
    for target in _find(section, "_target_"):
        if str(target).split(".")[-1] not in known:
            raise ValueError(
                f"{file}: {name} uses {target}, which this implementation does not know"
            )
    required = REQUIRED | ({"mask_mode": MASKS[name]} if name in MASKS else {})
    _check_required(section, required, file)


def _check_required(settings: dict, required: dict, file: Path) -> None:
    for key, want in required.items():
        for value in _find(settings, key):
            if value != want:
                raise ValueError(f"{file}: {key}={value!r} is not supported, only {want!r}")


def _find(tree, key: str) -> list:
    """All values that a nested dict holds under `key`."""
    if not isinstance(tree, dict):
        return []
    return [v for k, v in tree.items() if k == key] + [
        x for v in tree.values() for x in _find(v, key)
    ]


def _setting(settings: dict, key: str, default, file: Path):
    values = _find(settings, key)
    if any(v != values[0] for v in values):
        raise ValueError(f"{file}: {key} is {values} in different places, which is not supported")
    return values[0] if values else default


# ---- from the shapes of the tensors --------------------------------------------------------------


def _rename(name: str, file: Path) -> str:
    for theirs, ours in RENAME.items():
        if name == theirs or name.startswith(theirs + "."):
            return name.replace(theirs, ours).replace("adaLN_modulation.1", "adaln")
    raise ValueError(
        f"{file}: unknown tensor {name}; this implementation does not know what it is for"
    )


def _shape(tensors: dict[str, Tensor], name: str, what: str, file: Path) -> torch.Size:
    if name not in tensors:
        raise ValueError(f"{file} lacks {name}: is it a {what}?")
    return tensors[name].shape


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    """The number of numbered modules below a prefix."""
    return len({k[len(prefix) :].split(".")[0] for k in tensors if k.startswith(prefix)})


def _tokenizer_config(tensors: dict[str, Tensor], settings: dict, file: Path) -> TokenizerConfig:
    def shape(name: str, ndim: int = 2) -> torch.Size:
        found = _shape(tensors, name, "FlexTok", file)
        if len(found) != ndim:
            raise ValueError(f"{file}: {name} has shape {tuple(found)}, {ndim} axes are expected")
        return found

    model = {k: settings[k] for k in ("encoder", "decoder", "regularizer")}
    levels = _setting(model, "levels", None, file)
    if levels is None:
        raise ValueError(f"{file}: its config lacks the FSQ levels (regularizer.levels)")
    registers, enc_dim = shape("encoder.module_dict.enc_register_module.registers")
    patch_dim = shape("encoder.module_dict.enc_patch_emb.patch_proj.weight")[1]
    sizes = _setting(model, "patch_sizes", [2, 2], file)
    if len(set(sizes)) != 1:
        raise ValueError(f"{file}: patch_sizes={sizes} are not square, which is not supported")
    _, dec_dim, grid, grid_w = shape(TABLES[1], 4)
    if grid != grid_w or shape(TABLES[0], 4)[2:] != (grid, grid):
        raise ValueError(
            f"{file}: position tables must be square and alike, not {tuple(shape(TABLES[0], 4))}"
        )
    blocks = "decoder.module_dict.dec_transformer.blocks."
    nested = (
        settings["decoder"]["module_dict"].get("dec_nested_dropout", {}).get("size_sampling_mode")
    )
    return TokenizerConfig(
        image_size=grid * sizes[0],
        in_channels=patch_dim // sizes[0] ** 2,
        patch_size=sizes[0],
        enc_dim=enc_dim,
        enc_depth=_count(tensors, "encoder.module_dict.enc_transformer.blocks."),
        dec_dim=dec_dim,
        dec_depth=_count(tensors, blocks),
        head_dim=_setting(model, "head_dim", 64, file),
        num_registers=registers,
        fsq_levels=tuple(levels),
        separate_adaln=shape(blocks + "0.adaLN_modulation.1.weight")[0] == 12 * dec_dim,
        learned_null="decoder.module_dict.dec_latent_dropout.nullcond" in tensors,
        max_timestep=float(_setting(model, "max_timestep", 1000.0, file)),
        null_prob=float(_setting(model, "dropout_prob", 0.1, file)),
        keep_k_mode=nested if nested in ("uniform", "pow2", "uniform_pow2") else "pow2",
        mode_scale=float(settings["flow_matching_noise_module"].get("mode_scale", 0.25)),
    )


def _vae(
    tensors: dict[str, Tensor], settings: dict, file: Path
) -> tuple[VAEConfig, dict[str, Tensor]]:
    """Config and tensors of a VAE in this package's names."""
    _check_required(settings, REQUIRED_VAE, file)
    for kind in (
        *_setting(settings, "down_block_types", (), file),
        *_setting(settings, "up_block_types", (), file),
    ):
        if kind not in ("DownEncoderBlock2D", "UpDecoderBlock2D"):
            raise ValueError(
                f"{file}: block {kind} is not supported, only DownEncoderBlock2D and "
                "UpDecoderBlock2D"
            )
    scale = _setting(settings, "scaling_factor", None, file)
    if scale is None:
        raise ValueError(f"{file}: its config lacks the VAE's scaling_factor")

    def width(name: str) -> int:
        return _shape(tensors, name, "VAE", file)[0]

    config = VAEConfig(
        latent_channels=width("post_quant_conv.weight"),
        layers=_count(tensors, "encoder.down_blocks.0.resnets."),
        widths=tuple(
            width(f"encoder.down_blocks.{i}.resnets.0.conv1.weight")
            for i in range(_count(tensors, "encoder.down_blocks."))
        ),
        groups=_setting(settings, "norm_num_groups", 32, file),
        scaling_factor=float(scale),
    )
    ours = {}
    for name, tensor in tensors.items():
        for old, new in OLD_ATTENTION.items() if ".attentions." in name else ():
            name = name.replace(f".{old}.", f".{new}.")
        # Old exports store a linear layer of the attention as a 1x1 convolution.
        is_conv = ".attentions." in name and tensor.ndim == 4
        ours[name] = tensor[:, :, 0, 0] if is_conv else tensor
    return config, ours
