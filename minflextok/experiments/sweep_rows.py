"""The rows of a sweep: which settings are changed, one at a time, and what all rows share."""

import dataclasses
import platform

import torch

from ..config import TokenizerConfig, TrainConfig, require
from ..presets import PRESETS, RECIPES

# The recipe of the preset `cifar10-tiny` before it got the one that won at equal minutes: what all
# rows were measured from.
BEFORE = {
    "optimizer": "adamw",
    "batch_size": 64,
    "warmup": 200,
    "nested_full": 0.67,
    "repa_weight": 1.0,
}
BASE = BEFORE | {"optimizer": "muon", "batch_size": 32, "repa_weight": 0.25}  # at equal minutes
# Fields of the TokenizerConfig or the TrainConfig; "teacher": weights for REPA, None for no REPA.
AT_EQUAL_STEPS: dict[str, dict] = {
    "recipe": {},
    "another seed": {"seed": 1},
    "learning rate 1e-3": {"lr": 1e-3},
    "learning rate 2e-3": {"lr": 2e-3},
    "learning rate 8e-3": {"lr": 8e-3},
    "warmup 20 steps": {"warmup": 20},
    "no EMA": {"ema": 0.0},  # at 400 steps the decay is at most 0.978: 0.99 would change nothing
    "uniform timesteps": {"mode_scale": 0.0},
    "timesteps as published (mode 0.25)": {"mode_scale": 0.25},
    "FSQ 8-5-5-5 (1,000 ids)": {"fsq_levels": (8, 5, 5, 5)},
    "FSQ 8-8-8-5-5 (12,800 ids)": {"fsq_levels": (8, 8, 8, 5, 5)},
    "uniform keep_k": {"keep_k_mode": "uniform"},
    "nested dropout from the first step": {"nested_full": 0.0},
    "no nested dropout": {"nested_from": 1.0, "nested_full": 1.0},
    "8 registers": {"num_registers": 8},
    "32 registers": {"num_registers": 32},
    "patch 2": {"patch_size": 2},
    "patch 8": {"patch_size": 8},
    "initialization as published (tokens 0.02, latents 0, no penalty)": {
        "token_std": 0.02,
        "latent_std": 0.0,
        "latent_penalty": 0.0,
    },
    "tokens initialized at 0.02": {"token_std": 0.02},
    "latents initialized at 0": {"latent_std": 0.0},
    "no penalty on latents": {"latent_penalty": 0.0},
}
AT_EQUAL_MINUTES: dict[str, dict] = {
    "base: Muon, batch 32, REPA 0.25": {},
    "base, another seed": {"seed": 1},
    "base, a third seed": {"seed": 2},
    "constant, then linear from 0.5": {"decay_from": 0.5},
    "adaLN matrices under Muon": {"muon_adaln": True},
    "encoder 2, decoder 6 blocks": {"enc_depth": 2, "dec_depth": 6},
    "nested dropout in full from 0.3": {"nested_full": 0.3},
    "width 192, 3 + 4 blocks": {"enc_dim": 192, "dec_dim": 192, "enc_depth": 3},
    "batch 16": {"batch_size": 16},
    "Muon at 1.25 times the rate": {"muon_lr": 1.25},
    "head_dim 32": {"head_dim": 32},
    "EMA 0.998": {"ema": 0.998},
    "REPA in block 2": {"repa_block": 2},
    "FSQ 8-8-8-5-5 (12,800 ids)": {"fsq_levels": (8, 8, 8, 5, 5)},
    "half of the images keep all K (uniform_pow2)": {"keep_k_mode": "uniform_pow2"},
    "32 registers": {"num_registers": 32},
    "depth 6 + 6": {"enc_depth": 6, "dec_depth": 6},
    "REPA weight 0.1": {"repa_weight": 0.1},
    "REPA weight 0.5": {"repa_weight": 0.5},
    "no REPA": {"teacher": None},
    "AdamW, batch 64, no REPA (the recipe before)": {
        "optimizer": "adamw",
        "batch_size": 64,
        "teacher": None,
    },
}
BUDGETS = ((30, 64), (120, 128), (480, 512))  # minutes, batch: few large steps would learn little
SIZES: dict[str, dict] = {
    f"width {width}, {enc} + {dec} blocks, {minutes} minutes": {
        "enc_dim": width,
        "dec_dim": width,
        "enc_depth": enc,
        "dec_depth": dec,
        "minutes": minutes,
        "batch_size": batch,
    }
    for width, enc, dec in ((128, 3, 4), (192, 4, 5), (256, 6, 6))
    for minutes, batch in BUDGETS
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all rows of a sweep share. Rows of different settings are not comparable."""

    preset: str
    data: str  # its name and the encoding of its images
    steps: int | None  # training steps of each row; None: minutes
    minutes: float | None = None  # minutes of one processor core for each row
    teacher: str | None = None  # weights for REPA
    val_images: int = 512
    precision: str = "float32"
    machine: str = platform.machine() + " CPU"
    torch: str = torch.__version__
    train_on: str = ""  # a device to train on, if not on the processor whose time counts
    sizes: bool = False  # rows of three sizes and budgets, which state their own minutes

    def __post_init__(self):
        given = (self.steps is not None, self.minutes is not None, self.sizes)
        require(sum(given) == 1, "steps, minutes, sizes: give one of them")

    @property
    def name(self) -> str:
        """Of the files of results."""
        return "sweep" if self.steps else "sweep_sizes" if self.sizes else "sweep_minutes"

    @property
    def speeds(self) -> str:
        """The file of speeds."""
        return f"{self.name}_speeds.json"

    @property
    def changes(self) -> dict[str, dict]:
        if self.sizes:
            return SIZES
        base, rows = (BEFORE, AT_EQUAL_STEPS) if self.steps else (BASE, AT_EQUAL_MINUTES)
        return {name: base | change for name, change in rows.items()}


def row_of(name: str, setting: Setting) -> tuple[TokenizerConfig, TrainConfig, str | None]:
    """A row's model, its recipe for the processor, and the weights of its teacher."""
    change = dict(setting.changes[name])
    teacher = change.pop("teacher", setting.teacher)
    preset, fields = setting.preset, {f.name for f in dataclasses.fields(TrainConfig)}
    minutes = change.pop("minutes", setting.minutes)
    steps = setting.steps or 10**9
    recipe = dataclasses.replace(
        RECIPES[preset],
        steps=steps,
        eval_every=steps,
        minutes=minutes or 0.0,
        val_images=setting.val_images,
        processor_time=True,
        savings=True,
        compile=False,
        **{k: v for k, v in change.items() if k in fields},
    )
    model = {k: v for k, v in change.items() if k not in fields}
    return dataclasses.replace(PRESETS[preset], **model), recipe, teacher
