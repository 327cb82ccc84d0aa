"""The registry of named models. A preset is a model, the recipe that trains it, and its default
data and tokenizer.

To add one, add an entry to the dictionary of its stage; the command line lists it by itself.
"""

from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from .config import ClassifierConfig, PriorConfig, TokenizerConfig, TrainConfig, VAEConfig

Config = TypeVar("Config", TokenizerConfig, VAEConfig, PriorConfig, ClassifierConfig)


@dataclass(frozen=True)
class Preset(Generic[Config]):
    """What `minflextok train STAGE --preset NAME` trains."""

    model: Config
    recipe: TrainConfig
    data: str | None = None  # name of a data set; None: the user must give one
    tokenizer: str | None = None  # priors: weights of the tokenizer; None: the user must give them


# ---- stage 1: tokenizers -------------------------------------------------------------------------

# Settings with which small models learn ordered tokens fast. `make sweep` measures one change at a
# time.
SMALL: dict[str, Any] = {
    "token_std": 1.0,
    "latent_std": 1.0,
    "latent_penalty": 0.1,
    "mode_scale": -0.5,
}

# Batch size and learning rate of the published models are our choice: the paper does not give them
# in full.
PUBLISHED = TokenizerConfig(image_size=32, in_channels=16, patch_size=2)
PUBLISHED_RECIPE = TrainConfig(
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

TINY = TokenizerConfig(
    image_size=32,
    patch_size=4,
    enc_dim=128,
    enc_depth=4,
    dec_dim=128,
    dec_depth=4,
    num_registers=16,
    fsq_levels=(8, 8, 8, 5),
    **SMALL,
)
# Small models on one GPU: a step is bound by the launches of its operations, up to batches of about
# a thousand images. `make flagship-gpu` trains them side by side.
SMALL_GPU = replace(TINY, enc_dim=192, dec_dim=192, repa_weight=0.25)
SMALL_GPU_RECIPE = TrainConfig(
    steps=4100,
    batch_size=1024,
    optimizer="muon",
    lr=4e-3,
    decay_from=0.4,
    nested_full=0.3,
    log_every=100,
    eval_every=3000,
    savings=False,
    compile=True,
)

TOKENIZERS: dict[str, Preset[TokenizerConfig]] = {
    "shapes": Preset(
        model=replace(TINY, image_size=16, enc_depth=3),
        recipe=TrainConfig(steps=4900, eval_every=200, val_images=256),
        data="shapes",
    ),
    "cifar10-tiny": Preset(  # by benchmarks/sweep_minutes.md, with `--repa teacher-cifar10`
        model=replace(TINY, repa_weight=0.25),
        recipe=TrainConfig(
            steps=10**9, minutes=35, optimizer="muon", batch_size=32, warmup=100, nested_full=0.3
        ),
        data="cifar10",
    ),
    "shapes32": Preset(
        model=replace(TINY, image_size=32),
        recipe=replace(SMALL_GPU_RECIPE, steps=1700),
        data="shapes-100k",
    ),
    "cifar10": Preset(
        model=replace(SMALL_GPU, num_registers=32, dec_depth=5),
        recipe=SMALL_GPU_RECIPE,
        data="cifar10",
    ),
    "cifar10-64": Preset(  # more tokens, and the published number of ids, for sharper pictures
        model=replace(
            SMALL_GPU,
            num_registers=64,
            fsq_levels=PUBLISHED.fsq_levels,
            enc_depth=3,
            dec_depth=5,
        ),
        recipe=replace(SMALL_GPU_RECIPE, steps=5650),
        data="cifar10",
    ),
    "imagenet64": Preset(  # on the latents of the VAE f4-small
        model=replace(
            TINY,
            image_size=16,
            in_channels=16,
            patch_size=2,
            enc_dim=64,
            enc_depth=2,
            dec_dim=96,
            head_dim=32,
            num_registers=32,
            separate_adaln=False,
        ),
        recipe=TrainConfig(
            steps=10**9, minutes=165, batch_size=32, optimizer="muon", decay_from=0.5
        ),
    ),
    "imagenet64-large": Preset(  # for a GPU, with a teacher
        model=replace(
            SMALL_GPU, image_size=16, in_channels=16, patch_size=2, enc_depth=3, num_registers=64
        ),
        recipe=SMALL_GPU_RECIPE,
    ),
    **{
        f"d{enc}-d{dec}": Preset(
            model=replace(
                PUBLISHED, enc_dim=64 * enc, enc_depth=enc, dec_dim=64 * dec, dec_depth=dec
            ),
            # What fits on 8 GPUs of 80 GB with DDP: see `minflextok plan`.
            recipe=replace(
                PUBLISHED_RECIPE, micro_batch=micro_batch, checkpoint_activations=dec == 28
            ),
        )
        for enc, dec, micro_batch in ((12, 12, 64), (18, 18, 16), (18, 28, 32))
    },
}

# ---- stage 0: VAEs -------------------------------------------------------------------------------

# As with the published tokenizers, the recipe and the adversarial weight of the f8 VAEs are our
# choice.
PUBLISHED_VAE = VAEConfig(adversarial_weight=0.1)
PUBLISHED_VAE_RECIPE = TrainConfig(
    steps=400_000,
    batch_size=64,
    micro_batch=8,
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
SMALL_VAE = VAEConfig(
    latent_channels=4, widths=(32, 64), layers=1, groups=8, image_size=32, perceptual="none"
)
SMALL_VAE_RECIPE = TrainConfig(
    steps=10**9, minutes=10, batch_size=8, lr=4e-3, warmup=60, weight_decay=0.0, log_every=100
)

VAES: dict[str, Preset[VAEConfig]] = {
    "f8": Preset(model=PUBLISHED_VAE, recipe=PUBLISHED_VAE_RECIPE),
    "f8-c4": Preset(model=replace(PUBLISHED_VAE, latent_channels=4), recipe=PUBLISHED_VAE_RECIPE),
    "f8-c8": Preset(model=replace(PUBLISHED_VAE, latent_channels=8), recipe=PUBLISHED_VAE_RECIPE),
    "f2-small": Preset(model=SMALL_VAE, recipe=SMALL_VAE_RECIPE, data="cifar10"),
    "f4-small": Preset(
        model=replace(
            SMALL_VAE,
            latent_channels=16,
            widths=(16, 32, 32),
            groups=2,  # as many groups as channels would lose the mean color
            image_size=64,
            perceptual="gradients",
            perceptual_weight=0.2,
            wavelet_start=True,
            pixel_metric=True,
        ),
        recipe=replace(SMALL_VAE_RECIPE, minutes=20, lr=1e-3),
    ),
}

# ---- stage 2: priors -----------------------------------------------------------------------------

SMALL_PRIOR = PriorConfig(
    vocab_size=2560, num_tokens=16, num_classes=10, dim=192, depth=6, head_dim=32, dropout=0.1
)
SMALL_PRIOR_RECIPE = TrainConfig(
    steps=10**9, minutes=20, batch_size=128, lr=2e-3, weight_decay=0.05
)
SHAPES_WORDS = (
    "a above below blue circle green is large left of purple red right small square the to "
    "triangle which white yellow"
)
SHAPES_PRIOR = replace(
    SMALL_PRIOR,
    num_classes=0,
    text="words",
    text_dim=96,
    text_length=32,
    words=tuple(SHAPES_WORDS.split()),
)
# "left" and "right" must stay true.
SHAPES_PRIOR_RECIPE = replace(SMALL_PRIOR_RECIPE, flip=False)

# The paper gives the sizes of its priors (49M to 1.33B parameters), not their widths and depths.
# Each size
# equals 49152 depth^3, the parameters of `depth` blocks of width 64 * depth without embeddings.
PUBLISHED_PRIORS = {"49m": 10, "85m": 12, "201m": 16, "393m": 20, "679m": 24, "1.33b": 30}
PUBLISHED_PRIOR_RECIPE = TrainConfig(
    steps=250_000,
    batch_size=1024,
    lr=3e-4,
    warmup=5000,
    weight_decay=0.05,
    ema=0.9999,
    val_images=2048,
    log_every=100,
    eval_every=5000,
    workers=12,
)

PRIORS: dict[str, Preset[PriorConfig]] = {
    "cifar10-tiny": Preset(
        model=SMALL_PRIOR, recipe=SMALL_PRIOR_RECIPE, data="cifar10", tokenizer="cifar10-tiny"
    ),
    "cifar10": Preset(
        model=replace(SMALL_PRIOR, num_tokens=32),
        recipe=SMALL_PRIOR_RECIPE,
        data="cifar10",
        tokenizer="cifar10",
    ),
    "imagenet64": Preset(
        model=replace(SMALL_PRIOR, num_tokens=32, num_classes=50, dim=48, depth=3, head_dim=24),
        recipe=replace(SMALL_PRIOR_RECIPE, minutes=10),
        tokenizer="imagenet64",
    ),
    "imagenet64-large": Preset(
        model=replace(SMALL_PRIOR, num_tokens=64, num_classes=50, dim=160, depth=5),
        recipe=SMALL_PRIOR_RECIPE,
        tokenizer="imagenet64-large",
    ),
    "shapes": Preset(
        model=SHAPES_PRIOR, recipe=SHAPES_PRIOR_RECIPE, data="shapes", tokenizer="shapes"
    ),
    "shapes32": Preset(
        model=replace(SHAPES_PRIOR, depth=5),
        recipe=SHAPES_PRIOR_RECIPE,
        data="shapes-100k",
        tokenizer="shapes32",
    ),
    **{
        f"ar-{size}": Preset(
            model=PriorConfig(dim=64 * depth, depth=depth),
            recipe=replace(PUBLISHED_PRIOR_RECIPE, micro_batch=64 if depth < 30 else 32),
        )
        for size, depth in PUBLISHED_PRIORS.items()
    },
}

# ---- the evaluation classifier, and the teacher of REPA ------------------------------------------

CLASSIFIER_RECIPE = TrainConfig(
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
CLASSIFIERS: dict[str, Preset[ClassifierConfig]] = {
    "classifier": Preset(model=ClassifierConfig(), recipe=CLASSIFIER_RECIPE, data="cifar10"),
    "teacher": Preset(
        model=ClassifierConfig(widths=(48, 96, 160), strides=(2, 2, 1)),
        recipe=CLASSIFIER_RECIPE,
        data="cifar10",
    ),
    "classifier-imagenet64": Preset(
        model=ClassifierConfig(image_size=64, widths=(40, 80, 120), num_classes=50),
        recipe=CLASSIFIER_RECIPE,
    ),
    "teacher-imagenet64": Preset(
        model=ClassifierConfig(
            image_size=64, widths=(48, 96, 160), strides=(2, 2, 1), num_classes=50
        ),
        recipe=CLASSIFIER_RECIPE,
    ),
}

# ---- views of the registry: name -> config -------------------------------------------------------

PRESETS: dict[str, TokenizerConfig] = {name: p.model for name, p in TOKENIZERS.items()}
VAE_PRESETS: dict[str, VAEConfig] = {name: p.model for name, p in VAES.items()}
PRIOR_PRESETS: dict[str, PriorConfig] = {name: p.model for name, p in PRIORS.items()}
CLASSIFIER_PRESETS: dict[str, ClassifierConfig] = {name: p.model for name, p in CLASSIFIERS.items()}
RECIPES: dict[str, TrainConfig] = {
    **{name: p.recipe for name, p in TOKENIZERS.items()},
    **{name: p.recipe for name, p in VAES.items()},
}
PRIOR_RECIPES: dict[str, TrainConfig] = {name: p.recipe for name, p in PRIORS.items()}
