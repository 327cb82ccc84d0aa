"""Configurations: one dataclass for each model and one for training. Named ones are in presets.py.

The CIFAR-10 models and the ImageNet models differ in these values alone.
Letters for shapes, in the whole package:
B batch, P patches, K registers, k kept registers, N positions, D width, C channels, F FSQ channels.
"""

import dataclasses
import importlib
import itertools
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from .checks import MOST, show

# Embedded images and shipped weights: beside the package in a checkout, inside it in a wheel.
DATA_DIR = next(
    d for d in (Path(__file__).parents[1] / "data", Path(__file__).parent / "_data") if d.exists()
)
WEIGHTS_DIR = DATA_DIR / "weights"


def __getattr__(name: str):
    """The presets moved to presets.py; `from minflextok.config import PRESETS` still works."""
    if name in ("PRESETS", "PRIOR_PRESETS", "VAE_PRESETS", "RECIPES", "PRIOR_RECIPES"):
        return getattr(importlib.import_module(".presets", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def opt(default, help: str, free: bool = False):
    """A dataclass field with its description, for error messages and `minflextok train --help`.

    free: of a recipe, whether it may change when a run is resumed: it changes results by rounding
    at most.
    """
    return field(default=default, metadata={"help": help, "free": free})


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def check_types(config) -> None:
    """Each field must have its annotated type. Lists become tuples; an int may stand for a
    float."""
    for f in dataclasses.fields(config):
        value, kind = getattr(config, f.name), typing.get_origin(f.type) or f.type
        if kind is tuple and isinstance(value, list):
            value = tuple(value)
            object.__setattr__(config, f.name, value)
        ok = type(value) is kind or (kind is float and type(value) is int)
        if ok and kind in (int, float):  # larger numbers overflow somewhere
            ok = abs(value) <= (1e30 if kind is float else 2**63 - 1 if f.name == "seed" else MOST)
        require(
            ok,
            f"{f.name}={show(value)}: give a {getattr(kind, '__name__', kind)} "
            f"({f.metadata['help']})",
        )


def at_least(low: int, config, *names: str) -> None:
    """The smallest value that these fields may have."""
    for name in names:
        value = getattr(config, name)
        kind = "whole number" if low else "number"
        require(value >= low, f"{name}={show(value)}: give a {kind} of at least {low}")


def at_most(high: int, config, *names: str) -> None:
    """The largest value that these fields may have, or each number of a field with several."""
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        require(
            all(isinstance(n, int) and n <= high for n in numbers),
            f"{name}={show(value)}: give at most {high}",
        )


# Far above what any model here has; a config beyond them would exhaust the machine.
WIDEST = 2**16  # width, number of registers, of channels, of levels
DEEPEST = 2**10  # number of blocks
FINEST = 2**8  # side of a patch grid: attention has its square, squared


def budgets(k: int) -> list[int]:
    """1, 2, 4, ... and k."""
    return [2**i for i in range(k.bit_length()) if 2**i < k] + [k]


# Each config of a model has a method `shapes`: names of tensors with their shapes, enough of them
# to know the size of the model. They are compared with a file before a model is built for it.
Shape: TypeAlias = tuple[int, ...]


def blocks(name: str, depth: int, dim: int, parts: int = 1) -> dict[str, Shape]:
    """The square matrix of this name in each block."""
    return {name.format(i): (parts * dim, dim) for i in range(depth)}


@dataclass(frozen=True)
class TokenizerConfig:
    """The shape of a FlexTok. The defaults are those of all published models (paper, app. A)."""

    image_size: int = opt(32, "side of the images in pixels, or of the latents")
    in_channels: int = opt(3, "3: pixels in [-1, 1]; any other number: latents, unbounded")
    patch_size: int = opt(2, "side of a patch")
    enc_dim: int = opt(768, "encoder width, a multiple of head_dim")
    enc_depth: int = opt(12, "encoder blocks")
    dec_dim: int = opt(768, "decoder width, a multiple of head_dim")
    dec_depth: int = opt(12, "decoder blocks")
    head_dim: int = opt(64, "width of one attention head")
    num_registers: int = opt(256, "K, the largest number of tokens per image")
    fsq_levels: tuple[int, ...] = opt(
        (8, 8, 8, 5, 5, 5), "FSQ levels per channel; their product is the vocabulary size"
    )
    separate_adaln: bool = opt(
        True,
        "separate adaLN modulations for patches and registers (paper, appendix A.2), or shared",
    )
    causal_registers: bool = opt(
        True, "encoder registers attend to earlier registers only; False: to all, for comparison"
    )
    learned_null: bool = opt(True, "null condition: a learned token; False: zeros")
    max_timestep: float = opt(
        1.0, "the largest timestep; time features are computed of 1000 * t / max_timestep"
    )
    null_prob: float = opt(
        0.1, "training: probability that an image is decoded from the null condition"
    )
    keep_k_mode: str = opt(
        "pow2", "training: distribution of k in nested dropout: 'uniform', 'pow2' or 'uniform_pow2'"
    )
    mode_scale: float = opt(
        0.25, "training: s of mode-sampled timesteps (SD3, arXiv 2403.03206, sec. 3.1)"
    )
    token_std: float = opt(
        0.02, "initial std of the registers, their positions, mask token and null token"
    )
    latent_std: float = opt(
        0.0, "initial std of the latents before FSQ; 0 (as published): all images share one code"
    )
    latent_penalty: float = opt(
        0.0, "training: weight of max(|z| - 1, 0)^2 on the latents before FSQ, against saturation"
    )
    repa_weight: float = opt(
        1.0, "training with a teacher: weight of representation alignment (REPA)"
    )
    repa_block: int = opt(
        1, "training with a teacher: decoder block whose patches are aligned, counted from 0"
    )

    def __post_init__(self):
        check_types(self)
        at_least(1, self, "image_size", "in_channels", "patch_size", "enc_depth", "dec_depth")
        at_least(1, self, "head_dim", "num_registers")
        at_most(WIDEST, self, "image_size", "in_channels", "patch_size", "enc_dim", "dec_dim")
        at_most(WIDEST, self, "head_dim", "num_registers", "fsq_levels")
        at_most(DEEPEST, self, "enc_depth", "dec_depth")
        at_least(0, self, "token_std", "latent_std", "latent_penalty", "repa_weight")
        require(
            self.repa_block >= 0,
            f"repa_block={self.repa_block}: give a block from 0 to dec_depth - 1",
        )
        require(
            -1 <= self.mode_scale <= 2 / (math.pi - 2),
            f"mode_scale={self.mode_scale}: give a number from -1 to 1.75, where timesteps stay "
            "in [0, 1]",
        )
        require(
            self.image_size % self.patch_size == 0,
            f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}",
        )
        require(
            self.grid <= FINEST,
            f"image_size={self.image_size} with patch_size={self.patch_size} makes a grid of "
            f"{self.grid}x{self.grid} patches: give at most {FINEST}x{FINEST}",
        )
        for name in ("enc_dim", "dec_dim"):
            dim = getattr(self, name)
            require(
                dim > 0 and dim % self.head_dim == 0 and dim % 4 == 0,
                f"{name}={dim}: give a multiple of head_dim={self.head_dim} (and of 4, for the "
                "sin-cos positions)",
            )
        require(
            1 <= len(self.fsq_levels) <= 31
            and all(isinstance(n, int) and n >= 2 for n in self.fsq_levels),
            f"fsq_levels={show(self.fsq_levels)}: give whole numbers of at least 2, such as "
            "(8, 8, 8, 5)",
        )
        require(
            self.vocab_size <= 2**31,
            f"fsq_levels={show(self.fsq_levels)}: {self.vocab_size} ids are more than 2^31",
        )
        require(
            self.keep_k_mode in ("uniform", "pow2", "uniform_pow2"),
            f"keep_k_mode={self.keep_k_mode!r}: give 'uniform', 'pow2' or 'uniform_pow2'",
        )
        require(0 <= self.null_prob < 1, f"null_prob={self.null_prob}: give a probability below 1")
        require(self.max_timestep > 0, f"max_timestep={self.max_timestep}: give a positive number")

    @property
    def pixels(self) -> bool:
        """Whether the model works on pixels. Three channels are pixels; others, a VAE's latents."""
        return self.in_channels == 3

    @property
    def grid(self) -> int:
        """Side of the patch grid."""
        return self.image_size // self.patch_size

    @property
    def vocab_size(self) -> int:
        """Number of distinct ids of one token."""
        return math.prod(self.fsq_levels)

    @property
    def bits_per_token(self) -> float:
        return math.log2(self.vocab_size)

    def num_bytes(self, k: int) -> int:
        """Size in bytes of the k tokens of one image when their ids are packed."""
        return math.ceil(k * self.bits_per_token / 8)

    @property
    def budgets(self) -> list[int]:
        """1, 2, 4, ... and K: the numbers of tokens that figures and tables show."""
        return budgets(self.num_registers)

    def shapes(self) -> dict[str, Shape]:
        """Tensors that depend on each width and depth, and on the number of registers."""
        values = self.patch_size**2 * self.in_channels
        return {
            "encoder.patch_proj.weight": (self.enc_dim, values),
            "encoder.registers": (self.num_registers, self.enc_dim),
            "encoder.head.weight": (len(self.fsq_levels), self.enc_dim),
            **blocks("encoder.blocks.{}.attn.wq.weight", self.enc_depth, self.enc_dim),
            "decoder.patch_proj.weight": (self.dec_dim, values),
            "decoder.register_positions": (self.num_registers, self.dec_dim),
            **blocks("decoder.blocks.{}.attn.wq.weight", self.dec_depth, self.dec_dim),
        }


@dataclass(frozen=True)
class VAEConfig:
    """The shape of a VAE. The defaults are the published one's, with 83.8M parameters."""

    latent_channels: int = opt(16, "channels of the latents")
    widths: tuple[int, ...] = opt(
        (128, 256, 512, 512), "channels per level; each level but the last halves the size"
    )
    layers: int = opt(2, "residual blocks per level of the encoder; the decoder has one more")
    groups: int = opt(32, "groups of each group norm")
    scaling_factor: float = opt(
        1.0, "factor on the latents that makes their variance 1; measured in training"
    )
    image_size: int = opt(
        256, "training: side of the images in pixels; the model takes any multiple of downscale"
    )
    perceptual: str = opt(
        "lpips", "training: distance beside L1: 'lpips' (an extra), 'gradients' or 'none'"
    )
    perceptual_weight: float = opt(1.0, "training: weight of that distance")
    kl_weight: float = opt(
        1e-6, "training: weight of the KL divergence, summed over an image's latents"
    )
    wavelet_start: bool = opt(
        False, "training: the encoder begins as a Haar transform, which short runs need"
    )
    pixel_metric: bool = opt(
        False, "training: in the end, distances of latents are made those of images"
    )
    adversarial_weight: float = opt(
        0.0, "training: weight of the adversarial loss of a patch discriminator; 0: none"
    )
    adversarial_from: float = opt(
        0.5, "training: share of the run after which the adversarial loss is active"
    )

    def __post_init__(self):
        check_types(self)
        if self.perceptual == "vgg16":  # its name in earlier versions
            object.__setattr__(self, "perceptual", "lpips")
        at_least(1, self, "latent_channels", "layers", "groups", "image_size")
        at_least(0, self, "perceptual_weight", "kl_weight", "adversarial_weight")
        at_most(WIDEST, self, "latent_channels", "widths", "image_size")
        at_most(DEEPEST, self, "layers")
        require(
            1 <= len(self.widths) <= 16
            and all(isinstance(w, int) and w > 0 and w % self.groups == 0 for w in self.widths),
            f"widths={show(self.widths)}: give 1 to 16 multiples of groups={self.groups}",
        )
        require(
            self.scaling_factor > 0, f"scaling_factor={self.scaling_factor}: give a positive number"
        )
        require(
            self.image_size % self.downscale == 0,
            f"image_size={self.image_size} is not a multiple of {self.downscale}, by which "
            f"{len(self.widths)} widths make latents smaller",
        )
        require(
            0 <= self.adversarial_from <= 1,
            f"adversarial_from={self.adversarial_from}: give a share from 0 to 1",
        )
        require(
            self.perceptual in ("lpips", "gradients", "none"),
            f"perceptual={self.perceptual!r}: give 'lpips', 'gradients' or 'none'",
        )
        for name, on, least in (
            ("perceptual", self.perceptual == "lpips", 16),
            ("perceptual", self.perceptual != "none", 8),
            ("adversarial_weight", self.adversarial_weight > 0, 24),
        ):
            require(
                not on or self.image_size >= least,
                f"{name}={getattr(self, name)!r} needs images of at least {least} "
                f"pixels, not image_size={self.image_size}",
            )

    @property
    def downscale(self) -> int:
        """Side of the image divided by the side of its latents."""
        return 2 ** (len(self.widths) - 1)

    def shapes(self) -> dict[str, Shape]:
        """Tensors that depend on each width, on the number of layers and on the channels."""
        w, c = self.widths, self.latent_channels
        name = "encoder.down_blocks.{}.resnets.{}.conv1.weight"
        return {
            "post_quant_conv.weight": (c, c, 1, 1),
            **{
                name.format(i, j): (w[i], w[i] if i == 0 or j else w[i - 1], 3, 3)
                for i in range(len(w))
                for j in range(self.layers)
            },
        }


@dataclass(frozen=True)
class PriorConfig:
    """A GPT over the ids of one tokenizer. The defaults are those of all models of the paper."""

    vocab_size: int = opt(64_000, "number of distinct ids, the tokenizer's")
    num_tokens: int = opt(256, "K, ids per image, the tokenizer's")
    num_classes: int = opt(1000, "classes to condition on; 0 for a prior conditioned on text")
    dim: int = opt(768, "width, a multiple of head_dim")
    depth: int = opt(12, "blocks")
    head_dim: int = opt(64, "width of one attention head")
    null_prob: float = opt(0.1, "training: probability that the condition is dropped, for guidance")
    dropout: float = opt(
        0.0, "training: dropout probability in each residual branch, for small data"
    )
    text: str = opt(
        "",
        "text encoder: 'words' or 'bytes', trained with the prior, or a frozen encoder of the "
        "Hugging Face hub, such as google/flan-t5-small; empty for a prior conditioned on classes",
    )
    words: tuple[str, ...] = opt((), "text encoder 'words': its vocabulary")
    text_dim: int = opt(
        128, "width of the text embeddings, a multiple of head_dim; that of a frozen encoder"
    )
    text_depth: int = opt(2, "blocks of the text encoder that is trained with the prior")
    text_length: int = opt(64, "largest number of words, bytes or pieces in a caption")
    class_names: tuple[str, ...] = opt((), "names of the classes, if they are known")
    tokenizer: str = opt("", "fingerprint of the tokenizer of these ids; empty for any")

    def __post_init__(self):
        check_types(self)
        for name in ("words", "class_names"):
            require(
                all(isinstance(w, str) and w for w in getattr(self, name)),
                f"{name}: give strings that are not empty",
            )
        at_least(1, self, "vocab_size", "num_tokens", "dim", "depth", "head_dim")
        at_least(1, self, "text_dim", "text_depth", "text_length")
        at_most(2**31, self, "vocab_size", "num_classes")
        at_most(WIDEST, self, "num_tokens", "dim", "head_dim", "text_dim", "text_length")
        at_most(DEEPEST, self, "depth", "text_depth")
        for name in ("dim", "text_dim")[: 2 if self.text in ("words", "bytes") else 1]:
            require(
                getattr(self, name) % self.head_dim == 0,
                f"{name}={getattr(self, name)}: give a multiple of head_dim={self.head_dim}",
            )
        for name in ("null_prob", "dropout"):
            require(
                0 <= getattr(self, name) < 1,
                f"{name}={getattr(self, name)}: give a probability below 1",
            )
        require(
            (self.num_classes > 0) == (not self.text) and self.num_classes >= 0,
            f"num_classes={self.num_classes} and text={self.text!r}: give classes, or "
            "num_classes=0 and a text encoder",
        )
        require(
            (self.text == "words") == bool(self.words) and len(set(self.words)) == len(self.words),
            f"text={self.text!r} with {len(self.words)} words: 'words' needs a list of different "
            "words, other text encoders take none",
        )
        require(
            len(self.class_names) in (0, self.num_classes),
            f"{len(self.class_names)} class_names for {self.num_classes} classes: give one name "
            "for each class, or none",
        )

    @property
    def budgets(self) -> list[int]:
        """1, 2, 4, ... and K, as for a tokenizer."""
        return budgets(self.num_tokens)

    def shapes(self) -> dict[str, Shape]:
        """Tensors that depend on each width and depth, and on the numbers of ids and classes."""
        found: dict[str, Shape] = {
            "ids.weight": (self.vocab_size, self.dim),
            "positions": (self.num_tokens, self.dim),
            "first.weight": (self.num_classes + 1, self.dim),
            **blocks("blocks.{}.attn.wqkv.weight", self.depth, self.dim, parts=3),
        }
        if self.text:
            found["null_text"] = (self.text_dim,)
        if self.text in ("words", "bytes"):
            name = "text_encoder.blocks.{}.attn.wq.weight"
            found["text_encoder.positions"] = (self.text_length, self.text_dim)
            found |= blocks(name, self.text_depth, self.text_dim)
        return found


@dataclass(frozen=True)
class LengthConfig:
    """A network that predicts how many ids an image needs, and the search that it was trained on
    (`adaptive.encode_adaptive`)."""

    num_registers: int = opt(32, "K, ids per image, the tokenizer's")
    channels: int = opt(4, "F, FSQ channels, the tokenizer's")
    width: int = opt(256, "width of the hidden layers")
    metric: str = opt("psnr", "quality of a decoded image: 'psnr', or a name of one's own")
    target: float = opt(0.0, "the quality that the ids must reach")
    steps: int = opt(25, "Euler steps of the decoder in the search")
    confidence: float = opt(
        0.5, "the predicted length is the shortest that suffices with this probability"
    )
    tokenizer: str = opt("", "fingerprint of all weights of the tokenizer; empty for any")

    def __post_init__(self):
        check_types(self)
        at_least(1, self, "num_registers", "channels", "width", "steps")
        at_most(WIDEST, self, "num_registers", "channels", "width")
        require(
            0 <= self.confidence <= 1,
            f"confidence={self.confidence}: give a probability",
        )

    def shapes(self) -> dict[str, Shape]:
        """Tensors that depend on the width and on the registers."""
        return {
            "mlp.1.weight": (self.width, self.num_registers * self.channels),
            "mlp.3.weight": (self.width, self.width),
            "mlp.5.weight": (self.num_registers, self.width),
        }


@dataclass(frozen=True)
class TrainConfig:
    """The recipe: how a model is trained. The defaults suit the small presets on a CPU."""

    steps: int = opt(6000, "optimizer steps; all schedules are laid out over them")
    minutes: float = opt(
        0.0, "wall-clock limit; if it ends first, the schedules are laid out over it (0: no limit)"
    )
    processor_time: bool = opt(
        False, "count processor time in place of wall-clock time: fair on a busy CPU"
    )
    batch_size: int = opt(64, "images per step, over all ranks together")
    micro_batch: int = opt(
        0, "images per forward pass and rank; gradients are summed (0: all at once)", free=True
    )
    optimizer: str = opt(
        "adamw", "'adamw', or 'muon': Muon for the matrices of the blocks, AdamW for the rest"
    )
    lr: float = opt(4e-3, "peak learning rate")
    muon_lr: float = opt(2.5, "Muon's learning rate, as a multiple of lr")
    muon_adaln: bool = opt(False, "Muon for the adaLN matrices of the blocks, too")
    mup_base_width: int = opt(
        0, "muP: the width at which lr was found, so that it holds at other widths (0: no muP)"
    )
    min_lr: float = opt(0.02, "learning rate at the end, as a share of lr")
    warmup: int = opt(200, "steps of linear warmup")
    decay_from: float = opt(
        -1.0, "constant lr until this share of the run, then linear decay (below 0: cosine decay)"
    )
    weight_decay: float = opt(0.02, "weight decay, on matrices only")
    beta2: float = opt(0.95, "AdamW's second beta; the first is 0.9")
    clip: float = opt(1.0, "largest gradient norm")
    ema: float = opt(0.999, "decay of the averaged weights per step (smaller at the start)")
    nested_from: float = opt(
        0.0,
        "share of the run after which nested dropout is mixed in; before, all K tokens are kept",
    )
    nested_full: float = opt(0.67, "share of the run after which every image has nested dropout")
    flip: bool = opt(True, "mirror images at random")
    crop_scale: float = opt(
        1.0, "random crops of at least this share of the area of an image (1: its center)"
    )
    sample_latents: bool = opt(False, "of a VAE's posterior, train on samples in place of the mode")
    bf16: bool = opt(True, "bfloat16 autocast, on devices that compute bfloat16 natively")
    compile: bool = opt(False, "torch.compile the networks", free=True)
    savings: bool = opt(
        True,
        "tokenizers: the exact savings (savings.py). Without them a step has fewer, larger "
        "operations: faster for small models on a GPU",
        free=True,
    )
    seed: int = opt(0, "seed of the weights, the order of the images and every random draw")
    val_images: int = opt(512, "size of the validation split, taken from the training images")
    log_every: int = opt(50, "steps between log lines", free=True)
    eval_every: int = opt(
        500, "steps between evaluations, each with sample images and a checkpoint", free=True
    )
    save_minutes: float = opt(
        10.0, "minutes between checkpoints, besides those at evaluations (0: none)", free=True
    )
    reader_minutes: float = opt(
        10.0,
        "minutes to wait for a batch of data, also for the ids of a prior; then the run saves and "
        "stops (0: no limit)",
        free=True,
    )
    max_bad_steps: int = opt(
        10,
        "steps among the last 100 that may have an infinite or NaN loss or gradient: their "
        "gradient counts as zero; one more stops the run",
        free=True,
    )
    fsdp: bool = opt(
        False, "shard weights, gradients and optimizer state over the ranks (FSDP2)", free=True
    )
    checkpoint_activations: bool = opt(
        False,
        "compute the activations of the blocks again in the backward pass: less memory",
        free=True,
    )
    tensorboard: bool = opt(
        False, "write TensorBoard files beside metrics.jsonl (an extra)", free=True
    )
    extend: bool = opt(
        False,
        "resume a run with more steps or minutes; from there on, its schedules are those of the "
        "longer run",
        free=True,
    )
    workers: int = opt(4, "decoding processes of data sets that stream", free=True)

    def __post_init__(self):
        check_types(self)
        for name in ("steps", "batch_size", "log_every", "eval_every", "val_images"):
            require(
                getattr(self, name) >= 1,
                f"{name}={getattr(self, name)}: give a whole number of at least 1",
            )
        for name in (
            *("minutes", "micro_batch", "warmup", "weight_decay", "workers", "min_lr"),
            *("save_minutes", "reader_minutes", "max_bad_steps", "mup_base_width"),
        ):
            require(
                getattr(self, name) >= 0,
                f"{name}={getattr(self, name)}: give a number of at least 0",
            )
        for name in ("lr", "muon_lr", "clip"):
            require(
                getattr(self, name) > 0, f"{name}={getattr(self, name)}: give a positive number"
            )
        require(
            self.optimizer in ("adamw", "muon"),
            f"optimizer={self.optimizer!r}: give 'adamw' or 'muon'",
        )
        require(0 < self.crop_scale <= 1, f"crop_scale={self.crop_scale}: give a share in (0, 1]")
        require(
            not (self.fsdp and self.optimizer == "muon"),
            "fsdp=True with optimizer='muon': Muon orthogonalizes whole matrices, and FSDP splits "
            "them over the ranks: give optimizer='adamw' or fsdp=False",
        )
        require(self.decay_from < 1, f"decay_from={self.decay_from}: give a share below 1")
        require(0 <= self.ema < 1, f"ema={self.ema}: give a decay in [0, 1)")
        require(
            0 <= self.nested_from <= self.nested_full <= 1,
            f"nested_from={self.nested_from}, nested_full={self.nested_full}: "
            "give 0 <= nested_from <= nested_full <= 1",
        )


@dataclass(frozen=True)
class ClassifierConfig:
    """The shape of an evaluation classifier, or of a classifier that is a teacher for REPA."""

    image_size: int = opt(32, "side of the images in pixels")
    widths: tuple[int, ...] = opt(
        (64, 128, 192), "channels of each stage; the stem has half of the first"
    )
    strides: tuple[int, ...] = opt((2, 2, 2), "downsampling factor of each stage")
    num_features: int = opt(128, "length of the feature vector before the last linear layer")
    num_classes: int = opt(10, "classes")
    label_smoothing: float = opt(0.1, "label smoothing of the training loss")
    class_names: tuple[str, ...] = opt((), "names of the classes, if they are known")

    def __post_init__(self):
        check_types(self)
        require(
            all(isinstance(name, str) and name for name in self.class_names)
            and len(self.class_names) <= self.num_classes,
            f"class_names={self.class_names}: give at most num_classes={self.num_classes} texts",
        )
        for name in ("image_size", "num_features", "num_classes"):
            require(
                getattr(self, name) >= 1,
                f"{name}={getattr(self, name)}: give a whole number of at least 1",
            )
        at_most(WIDEST, self, "image_size", "widths", "strides", "num_features")
        at_most(2**31, self, "num_classes")
        require(
            1 <= len(self.widths) == len(self.strides) <= DEEPEST,
            f"widths={show(self.widths)}, strides={show(self.strides)}: give one each",
        )
        for name in ("widths", "strides"):
            values = getattr(self, name)
            require(
                all(isinstance(n, int) and n >= 1 for n in values),
                f"{name}={show(values)}: give positive whole numbers",
            )
        require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing={self.label_smoothing}: give a share below 1",
        )

    def shapes(self) -> dict[str, Shape]:
        """Tensors that depend on each width and on the number of classes."""
        w = (self.widths[0] // 2, *self.widths)
        return {
            "head.weight": (self.num_classes, self.num_features),
            "neck.weight": (self.num_features, w[-1]),
            **{
                f"stages.{i}.shrink.0.weight": (b, a, 3, 3)
                for i, (a, b) in enumerate(itertools.pairwise(w))
            },
        }


def to_json(config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(cls, values: dict):
    """Build a config from plain values; an unknown key is an error that lists the known ones."""
    if not dataclasses.is_dataclass(cls) or not isinstance(cls, type):
        raise ValueError(f"cls={show(cls)}: give a class of settings, such as TokenizerConfig")
    require(
        isinstance(values, dict),
        f"a {cls.__name__} is an object of settings, not a {type(values).__name__}: {show(values)}",
    )
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known, key=str)
    require(
        not unknown,
        f"unknown {cls.__name__} key {', '.join(map(show, unknown))}; "
        f"known: {', '.join(sorted(known))}",
    )
    return cls(**values)
