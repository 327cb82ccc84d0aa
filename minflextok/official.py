"""Read the published FlexTok checkpoints (EPFL-VILAB on the Hugging Face hub).

Nothing in a checkpoint is executed: tensors come from safetensors, settings from JSON or Python literals. What the
tensors tell (widths, depths, K, modulation, null condition) is read off them; the config is asked for the rest.
"""

import ast
import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import TokenizerConfig
from .patches import sincos_positions
from .tokenizer import FlexTok, read_safetensors

# Published name -> ours, outside the Transformer blocks; those keep their names but for the modulation.
RENAME = {
    "encoder.module_dict.enc_patch_emb.patch_proj": "encoder.patch_proj",
    "encoder.module_dict.enc_register_module.registers": "encoder.registers",
    "encoder.module_dict.enc_transformer.blocks": "encoder.blocks",
    "encoder.module_dict.enc_to_latents.proj": "encoder.head",
    "decoder.module_dict.dec_from_latents.proj": "decoder.code_proj",
    "decoder.module_dict.dec_registers_posemb_module.posembs": "decoder.register_positions",
    "decoder.module_dict.dec_nested_dropout.dropout_mask_token": "decoder.nested_dropout.mask_token",
    "decoder.module_dict.dec_latent_dropout.nullcond": "decoder.null_token",
    "decoder.module_dict.dec_noise_patch_emb.patch_proj": "decoder.patch_proj",
    "decoder.module_dict.dec_time_embedder.mlp": "decoder.time_mlp",
    "decoder.module_dict.dec_transformer.blocks": "decoder.blocks",
    "decoder.module_dict.dec_to_patches.adaLN_modulation.1": "decoder.head_adaln",
    "decoder.module_dict.dec_to_patches.proj": "decoder.head",
}
TABLES = ("encoder.module_dict.enc_posemb_module.posembs", "decoder.module_dict.dec_patches_posemb_module.posembs")
# Settings under which the published code would compute something else than ours; each must have this value if given.
REQUIRED = {"mlp_ratio": 4.0, "qk_norm": True, "use_mup_readout": False, "frequency_embedding_size": 256,
            "posemb_scaling": "absolute", "ordering_mode": "nested", "flatten_patches": False,
            "ln": False, "drop_quant_p": 0.0}


def load_official(path: str | Path) -> FlexTok:
    """Load a published checkpoint: a model.safetensors with metadata, or a directory with config.json beside it.

    Returns a FlexTok on VAE latents (in_channels = 16), float32, in eval mode. Raises ValueError, naming the tensor or the
    setting, for anything this implementation does not understand.
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"no {file}: give a published model.safetensors, or the directory that holds it")
    settings = _settings(file)
    tensors = read_safetensors(file)
    for part in ("vae.", "repa"):
        found = [k for k in tensors if (k.startswith(part) if part == "vae." else part in k)]
        if found:
            warnings.warn(f"{file}: ignoring {len(found)} {part.rstrip('.')} tensors; "
                          "this model works on latents", stacklevel=2)
            tensors = {k: v for k, v in tensors.items() if k not in found}
    config = _infer_config(tensors, settings, file)
    for name in TABLES:
        table = sincos_positions(tensors[name].shape[1], config.grid).permute(2, 0, 1)[None]
        stored = tensors.pop(name)
        if not torch.allclose(stored.float(), table, atol=1e-5 if stored.dtype == torch.float32 else 1e-2):
            raise ValueError(f"{file}: {name} is not the fixed sin-cos table that this implementation uses")
    ours = {_rename(k, file): v.reshape(v.shape[-2:]).T.contiguous() if "registers_posemb" in k else v
            for k, v in tensors.items()}
    return FlexTok.from_tensors(config, ours, file).float()


def _settings(file: Path) -> dict:
    """The config of a checkpoint: Python literals in its metadata, or config.json beside it."""
    try:
        with safe_open(file, "pt") as f:
            metadata = f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{file} is not a whole safetensors file ({e}): download it again") from None
    if "encoder" in metadata and "decoder" in metadata:
        literals = {}
        for key, text in metadata.items():
            try:
                literals[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                literals[key] = text  # a plain string, such as _target_
        return _sections(literals, file)
    beside = file.with_name("config.json")
    if not beside.exists():
        raise ValueError(f"{file} has no config in its metadata and no config.json beside it: download both")
    try:
        return _sections(json.loads(beside.read_text()), beside)
    except ValueError as e:
        raise ValueError(f"{beside}: {e}") from None


def _sections(settings: dict, source: Path) -> dict:
    for name in ("encoder", "decoder", "regularizer", "flow_matching_noise_module"):
        if not isinstance(settings, dict) or not isinstance(settings.get(name, {}), dict):
            raise ValueError(f"{source}: its section {name} is not a dictionary")
    return settings


def _rename(name: str, file: Path) -> str:
    for theirs, ours in RENAME.items():
        if name == theirs or name.startswith(theirs + "."):
            return name.replace(theirs, ours).replace("adaLN_modulation.1", "adaln")
    raise ValueError(f"{file}: unknown tensor {name}; this implementation does not know what it is for")


def _find(tree, key: str) -> list:
    """All values that a nested dict holds under `key`."""
    if not isinstance(tree, dict):
        return []
    return [v for k, v in tree.items() if k == key] + [x for v in tree.values() for x in _find(v, key)]


def _infer_config(tensors: dict[str, Tensor], settings: dict, file: Path) -> TokenizerConfig:
    for key, want in REQUIRED.items():
        for value in _find(settings, key):
            if value != want:
                raise ValueError(f"{file}: {key}={value!r} is not supported, only {want!r}")

    def setting(key: str, default):
        values = _find(settings, key)
        if any(v != values[0] for v in values):
            raise ValueError(f"{file}: {key} is {values} in different places, which is not supported")
        return values[0] if values else default

    def shape(name: str) -> torch.Size:
        if name not in tensors:
            raise ValueError(f"{file} lacks {name}: is it a FlexTok?")
        return tensors[name].shape

    def depth(prefix: str) -> int:
        return len({k[len(prefix):].split(".")[0] for k in tensors if k.startswith(prefix)})

    levels = setting("levels", None)
    if levels is None:
        raise ValueError(f"{file}: its config does not say the FSQ levels (regularizer.levels)")
    registers, enc_dim = shape("encoder.module_dict.enc_register_module.registers")
    patch_dim = shape("encoder.module_dict.enc_patch_emb.patch_proj.weight")[1]
    sizes = setting("patch_sizes", [2, 2])
    if len(set(sizes)) != 1:
        raise ValueError(f"{file}: patch_sizes={sizes} are not square, which is not supported")
    _, dec_dim, grid, grid_w = shape(TABLES[1])
    if grid != grid_w or shape(TABLES[0])[2:] != (grid, grid):
        raise ValueError(f"{file}: position tables must be square and alike, not {tuple(shape(TABLES[0]))}")
    dec = "decoder.module_dict.dec_transformer.blocks."
    adaln = shape(dec + "0.adaLN_modulation.1.weight")[0]
    noise = settings.get("flow_matching_noise_module", {})
    return TokenizerConfig(
        image_size=grid * sizes[0], in_channels=patch_dim // sizes[0] ** 2, patch_size=sizes[0],
        enc_dim=enc_dim, enc_depth=depth("encoder.module_dict.enc_transformer.blocks."),
        dec_dim=dec_dim, dec_depth=depth(dec), head_dim=setting("head_dim", 64),
        num_registers=registers, fsq_levels=tuple(levels),
        separate_adaln=adaln == 12 * dec_dim,
        learned_null="decoder.module_dict.dec_latent_dropout.nullcond" in tensors,
        max_timestep=float(setting("max_timestep", 1000.0)),
        null_prob=float(setting("dropout_prob", 0.1)), keep_k_mode=_keep_k_mode(settings),
        mode_scale=float(noise.get("mode_scale", 0.25)),
    )


def _keep_k_mode(settings: dict) -> str:
    mode = settings.get("decoder", {}).get("module_dict", {}).get("dec_nested_dropout", {}).get("size_sampling_mode")
    return mode if mode in ("uniform", "pow2", "uniform_pow2") else "pow2"
