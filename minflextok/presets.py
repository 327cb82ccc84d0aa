"""Named models and recipes."""

import dataclasses

from .config import ClassifierConfig, PriorConfig, TokenizerConfig, TrainConfig, VAEConfig


def _published(enc_depth: int, dec_depth: int) -> TokenizerConfig:
    return TokenizerConfig(
        image_size=32,
        in_channels=16,
        patch_size=2,
        enc_dim=64 * enc_depth,
        enc_depth=enc_depth,
        dec_dim=64 * dec_depth,
        dec_depth=dec_depth,
    )


# What makes small models order their tokens soon; `make sweep` measures it, one change at a time.
def _pixels(
    size: int, patch: int, dim: int, enc_depth: int, dec_depth: int, registers: int, levels
) -> TokenizerConfig:
    return TokenizerConfig(
        image_size=size,
        patch_size=patch,
        enc_dim=dim,
        enc_depth=enc_depth,
        dec_dim=dim,
        dec_depth=dec_depth,
        num_registers=registers,
        fsq_levels=levels,
        token_std=1.0,
        latent_std=1.0,
        latent_penalty=0.1,
        mode_scale=-0.5,
    )


PRESETS: dict[str, TokenizerConfig] = {
    "shapes": _pixels(16, 4, 128, 3, 4, 16, (8, 8, 8, 5)),
    "cifar10-tiny": _pixels(32, 4, 128, 4, 4, 16, (8, 8, 8, 5)),
    "cifar10": _pixels(32, 4, 128, 4, 4, 32, (8, 8, 8, 5)),
    "cifar10-large": _pixels(32, 2, 384, 6, 8, 32, (8, 8, 8, 5, 5)),
    "tiny-imagenet": dataclasses.replace(
        _pixels(16, 2, 384, 6, 8, 32, (8, 8, 8, 5, 5)), in_channels=8
    ),  # with f4-small
    "d12-d12": _published(12, 12),
    "d18-d18": _published(18, 18),
    "d18-d28": _published(18, 28),
}

# The sizes of the paper, which gives no widths and depths. They are 49152 depth^3 (49.2M, 84.9M, 201.3M, 393.2M, 679.5M,
# 1.327B), what blocks of width 64 * depth hold without embeddings; so that is what we take.
PRIOR_PRESETS: dict[str, PriorConfig] = {
    "cifar10-tiny": PriorConfig(2560, 16, 10, dim=192, depth=6, head_dim=32, dropout=0.1),
    "cifar10": PriorConfig(2560, 32, 10, dim=192, depth=6, head_dim=32, dropout=0.1),
    "cifar10-large": PriorConfig(12_800, 32, 10, dim=320, depth=6, dropout=0.1),
    "shapes": PriorConfig(
        2560,
        16,
        0,
        dim=192,
        depth=6,
        head_dim=32,
        dropout=0.1,
        text="words",
        text_dim=96,
        text_length=32,
        words=(
            "a",
            "above",
            "below",
            "blue",
            "circle",
            "green",
            "is",
            "large",
            "left",
            "of",
            "purple",
            "red",
            "right",
            "small",
            "square",
            "the",
            "to",
            "triangle",
            "which",
            "white",
            "yellow",
        ),
    ),
    **{
        f"ar-{size}": PriorConfig(dim=64 * depth, depth=depth)
        for size, depth in (
            ("49m", 10),
            ("85m", 12),
            ("201m", 16),
            ("393m", 20),
            ("679m", 24),
            ("1.33b", 30),
        )
    },
}

VAE_PRESETS: dict[str, VAEConfig] = {
    "f8": VAEConfig(adversarial_weight=0.1),
    "f8-c4": VAEConfig(latent_channels=4, adversarial_weight=0.1),
    "f8-c8": VAEConfig(latent_channels=8, adversarial_weight=0.1),
    "f2-small": VAEConfig(
        latent_channels=4, widths=(32, 64), layers=1, groups=8, image_size=32, perceptual="none"
    ),
    "f4-small": VAEConfig(
        latent_channels=8, widths=(32, 64, 96), layers=1, groups=8, image_size=64, perceptual="none"
    ),
}

# How each preset is trained. The three published models: batch and learning rate are ours, the paper's are not public
# in full; two hundred thousand steps of 2,048 images are what a lab would start from. The same holds for the f8 VAEs,
# and for their adversarial_weight. Not yet run: tiny-imagenet (on the latents of f4-small).
_LARGE = TrainConfig(
    steps=200_000,
    batch_size=2048,
    lr=5e-4,
    warmup=5000,
    weight_decay=0.05,
    beta2=0.99,
    ema=0.9999,
    nested_full=0.1,
    val_images=2048,
    log_every=100,
    eval_every=5000,
    workers=12,
)
_SMALL_VAE = TrainConfig(
    steps=10**9, minutes=10, batch_size=8, lr=4e-3, warmup=60, weight_decay=0.0, log_every=100
)
_LARGE_VAE = TrainConfig(
    steps=400_000,
    batch_size=64,
    lr=1e-4,
    warmup=5000,
    weight_decay=0.0,
    beta2=0.99,
    ema=0.9999,
    val_images=1024,
    log_every=100,
    eval_every=5000,
    workers=12,
)
RECIPES: dict[str, TrainConfig] = {
    "shapes": TrainConfig(steps=4900, eval_every=200, val_images=256),
    "cifar10-tiny": TrainConfig(steps=10**9, minutes=35),
    "cifar10": TrainConfig(
        steps=8800, lr=3e-3, nested_full=0.3, eval_every=1000
    ),  # with --init, --repa: see its card
    "cifar10-large": TrainConfig(
        steps=60_000, minutes=25, batch_size=256, lr=1e-3, warmup=1000, eval_every=2000
    ),
    "tiny-imagenet": TrainConfig(
        steps=60_000, minutes=60, batch_size=256, lr=1e-3, warmup=1000, eval_every=2000
    ),
    "d12-d12": _LARGE,
    "d18-d18": _LARGE,
    "d18-d28": _LARGE,
    "f2-small": _SMALL_VAE,
    "f4-small": dataclasses.replace(_SMALL_VAE, minutes=30),
    "f8": _LARGE_VAE,
    "f8-c4": _LARGE_VAE,
    "f8-c8": _LARGE_VAE,
}

_LARGE_PRIOR = TrainConfig(
    steps=250_000,
    batch_size=1024,
    lr=3e-4,
    warmup=5000,
    weight_decay=0.05,
    ema=0.9999,
    flip=True,
    val_images=2048,
    log_every=100,
    eval_every=5000,
    workers=12,
)
PRIOR_RECIPES: dict[str, TrainConfig] = {
    **dict.fromkeys(
        ("cifar10-tiny", "cifar10"),
        TrainConfig(steps=10**9, minutes=20, batch_size=128, lr=2e-3, weight_decay=0.05, flip=True),
    ),
    "cifar10-large": TrainConfig(
        steps=60_000,
        minutes=60,
        batch_size=256,
        lr=1e-3,
        warmup=1000,
        weight_decay=0.05,
        flip=True,
        val_images=2048,
        eval_every=1000,
    ),
    "shapes": TrainConfig(
        steps=10**9, minutes=20, batch_size=128, lr=2e-3, weight_decay=0.05, flip=False
    ),
    **{name: _LARGE_PRIOR for name in PRIOR_PRESETS if name.startswith("ar-")},
}

JUDGES = {
    "judge": ClassifierConfig(),
    "teacher": ClassifierConfig(widths=(48, 96, 160), strides=(2, 2, 1)),
}
JUDGE_RECIPE = TrainConfig(
    steps=7000,
    batch_size=128,
    lr=4e-3,
    min_lr=0.01,
    warmup=300,
    weight_decay=0.05,
    beta2=0.99,
    clip=2.0,
    val_images=1000,
    eval_every=1000,
)
