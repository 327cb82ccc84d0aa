"""Memory and time of a training step on some GPUs, for one way to distribute it.

Parameters, operations (flops.py) and activations (footprint.py) are counted. Time follows from a
stated utilization of the GPU's matrix units and from the bandwidth between GPUs. Matrix products
are in bfloat16; weights, gradients, optimizer state and averaged weights in float32.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from ..config import PriorConfig, TokenizerConfig, TrainConfig, VAEConfig
from ..presets import VAE_PRESETS
from . import footprint
from .flops import group_shares, prior_training_flops, tokenizer_training_flops
from .footprint import Config, Footprint

USABLE = 0.9  # of a GPU's memory; the rest: CUDA, buffers of NCCL, temporary tensors, fragmentation
NODE = 8  # GPUs of a node
# Below about this many positions at once, matrix products no longer fill a large GPU.
FEW_POSITIONS = 4096


@dataclass(frozen=True)
class GPU:
    """tflops: peak of dense bfloat16 matrix products with float32 accumulation. gb: memory. link:
    GB/s to the other GPUs of its node, in one direction."""

    tflops: float
    gb: float
    link: float
    source: str


GPUS = {
    "h100": GPU(989.4, 80, 450, "NVIDIA H100 datasheet, SXM: half of the peak with sparsity"),
    "h200": GPU(989.4, 141, 450, "NVIDIA H200 datasheet, SXM: half of the peak with sparsity"),
    "a100-80": GPU(312, 80, 300, "NVIDIA A100 datasheet, SXM 80 GB"),
    "a100-40": GPU(312, 40, 300, "NVIDIA A100 datasheet, SXM 40 GB"),
    "l40s": GPU(362, 48, 32, "NVIDIA L40S datasheet; PCIe 4.0 x16"),
    "4090": GPU(165.2, 24, 32, "NVIDIA Ada GPU architecture whitepaper, app. A; PCIe 4.0 x16"),
}


# ---- the model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """What one training step of a model costs. flops: an image, in expectation over the draws of
    the run; flops_plain: without the exact savings. vae: of the model's latents; flops_vae: of
    computing them. positions: of the Transformer, an image."""

    parameters: footprint.Parameters
    footprint: Footprint
    flops: float
    flops_plain: float
    vae: VAEConfig | None = None
    flops_vae: float = 0.0
    positions: int = 10**9


@lru_cache
def costs(c: Config, recipe: TrainConfig) -> Costs:
    """Raises ValueError for a prior with a frozen text encoder, which is not counted."""
    if isinstance(c, PriorConfig) and c.text not in ("", "words", "bytes"):
        raise ValueError(f"text={c.text!r}: a frozen text encoder is not counted; give 'bytes'")
    found = footprint.parameters(c), footprint.footprint(c)
    if isinstance(c, VAEConfig):
        flops = footprint.vae_training_flops(c)
        return Costs(*found, flops, flops)
    if isinstance(c, PriorConfig):
        flops = prior_training_flops(c)
        return Costs(*found, flops, flops, positions=c.num_tokens)
    nested = 1 - (recipe.nested_from + recipe.nested_full) / 2  # its mean over the run
    groups, vae = group_shares(c, nested), None if c.pixels else vae_of(c)
    return Costs(
        *found,
        flops=tokenizer_training_flops(c, nested),
        flops_plain=tokenizer_training_flops(c, nested, savings=False),
        vae=vae,
        flops_vae=footprint.latent_flops(vae) if vae else 0.0,
        positions=c.grid**2 + round(sum(m * share for m, share in groups.items())),
    )


def vae_of(c: TokenizerConfig) -> VAEConfig:
    """The VAE preset with the latents of a tokenizer; else one with its channels that makes images
    8 times smaller."""
    for vae in VAE_PRESETS.values():
        if (vae.latent_channels, vae.image_size // vae.downscale) == (c.in_channels, c.image_size):
            return vae
    return VAEConfig(latent_channels=c.in_channels, image_size=8 * c.image_size)


# ---- memory and time of one way to train it ------------------------------------------------------


def state_bytes(p: footprint.Parameters, recipe: TrainConfig, shards: int = 1) -> dict[str, float]:
    """Bytes on each GPU of all that grows with the number of parameters alone, by part. shards: the
    number of GPUs that share it, as with FSDP2."""
    muon = p.muon if recipe.optimizer == "muon" else 0
    return {
        "weights": 4 * p.total / shards,
        "gradients": 4 * p.total / shards,
        f"optimizer ({recipe.optimizer})": (8 * p.total - 4 * muon) / shards,
        "averaged weights": 4 * p.total / shards,
    }


def evaluation_bytes(p: footprint.Parameters, recipe: TrainConfig, shards: int = 1) -> float:
    """Bytes on each GPU at an evaluation, without its activations: there are no gradients, and of
    shards the averaged weights are gathered whole."""
    parts = state_bytes(p, recipe, shards)
    return sum(parts.values()) - parts["gradients"] + (4 * p.total if shards > 1 else 0)


@dataclass(frozen=True)
class Option:
    """A way to train: fsdp (parameters, gradients and states sharded over the GPUs) or DDP (all of
    them on each GPU), with or without activation checkpointing, in micro-batches."""

    costs: Costs
    recipe: TrainConfig
    gpu: GPU
    gpus: int
    utilization: float
    network: float
    fsdp: bool
    checkpoint: bool
    micro_batch: int

    @property
    def name(self) -> str:
        kind = "FSDP2" if self.fsdp else "DDP" if self.gpus > 1 else "one GPU"
        return kind + (", checkpointing" if self.checkpoint else "")

    @property
    def flags(self) -> str:
        """The flags of `minflextok train` that select it."""
        flags = f"--micro-batch {self.micro_batch}"
        flags += " --fsdp" if self.fsdp else ""
        return flags + (" --checkpoint-activations" if self.checkpoint else "")

    @property
    def flops(self) -> float:
        """Of a training step, an image. FSDP needs the same calls on all ranks, and the groups of
        the exact savings differ, so it trains without them."""
        return self.costs.flops_plain if self.fsdp else self.costs.flops

    @property
    def local_batch(self) -> int:
        return self.recipe.batch_size // self.gpus

    def memory(self) -> dict[str, float]:
        """Bytes on each GPU in a training step, by part."""
        p, f = self.costs.parameters, self.costs.footprint
        parts = state_bytes(p, self.recipe, self.gpus if self.fsdp else 1)
        # Two blocks at a time, and what is outside of the blocks.
        gathered = 2 * p.block + p.total - p.blocks
        if self.fsdp:
            parts["gathered, bfloat16 and gradients"] = 6 * gathered
        else:
            parts["bfloat16 copies of weights"] = f.weights
        image = f.checkpointed if self.checkpoint else f.image
        return parts | {"activations": self.micro_batch * image}

    @property
    def evaluation_gb(self) -> float:
        shards = self.gpus if self.fsdp else 1
        return evaluation_bytes(self.costs.parameters, self.recipe, shards) / 1e9

    @property
    def gb(self) -> float:
        """What training and evaluations need."""
        return max(sum(self.memory().values()) / 1e9, self.evaluation_gb)

    @property
    def fits(self) -> bool:
        return self.gb <= USABLE * self.gpu.gb

    def compute_seconds(self, vae: bool = False) -> float:
        """Of a step. Checkpointing computes the forward pass twice. vae: latents on the fly."""
        flops = self.flops * (4 / 3 if self.checkpoint else 1)
        flops += self.costs.flops_vae if vae else 0
        return self.local_batch * flops / (1e12 * self.gpu.tflops * self.utilization)

    @property
    def communication_seconds(self) -> float:
        """Of a step, at full bandwidth. DDP sums float32 gradients once; FSDP gathers bfloat16
        weights for each forward and backward pass, and scatters float32 gradients."""
        n, link = self.gpus, self.gpu.link
        bandwidth = 1e9 * (link if n <= NODE else min(link, NODE * self.network))
        size = 2 * 4
        if self.fsdp:
            size = (2 * 2 + 4) * math.ceil(self.local_batch / self.micro_batch)
        return size * self.costs.parameters.total * (n - 1) / n / bandwidth

    def step_seconds(self, vae: bool = False) -> float:
        """Communication takes time where nothing hides it: with DDP, beyond the backward pass of
        the last micro-batch (two thirds of its time); with FSDP, beyond all computation."""
        compute = self.compute_seconds(vae)
        micro_batches = math.ceil(self.local_batch / self.micro_batch)
        hidden = compute if self.fsdp else compute * 2 / 3 / micro_batches
        return compute + max(0.0, self.communication_seconds - hidden)

    def images_per_second(self, vae: bool = False) -> float:
        return self.recipe.batch_size / self.step_seconds(vae)

    @property
    def rank(self) -> tuple:
        """The smallest is the best: the fastest of those that fill the GPU; of equal ones, the
        simplest."""
        few = self.micro_batch * self.costs.positions < FEW_POSITIONS
        return few and self.micro_batch < self.local_batch, self.step_seconds(), self.fsdp
