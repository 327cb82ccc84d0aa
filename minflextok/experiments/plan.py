"""A planner: what it costs to train a preset on some GPUs, and the settings with which it fits.

    minflextok plan --preset d18-d28 --gpus 8 --gpu h100 --epochs 100

Nothing is trained: see costs.py for what is counted and how time follows from it.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from ..config import PriorConfig, TrainConfig, VAEConfig
from ..presets import PRIORS, TOKENIZERS, VAES, Preset
from .costs import GPUS, USABLE, Costs, Option, costs, evaluation_bytes, state_bytes
from .footprint import Config, parameters, works

IMAGES = {"cifar10": 50_000, "shapes": 20_000}  # training images of a preset's data
IMAGENET = 1_281_167  # and of ImageNet-1k, for presets without data of their own
DECODED = 251  # JPEGs of 500x400 to 256 pixels that one CPU core decodes per second, measured
SHORT = 0.02  # seconds
STAGES: dict[str, dict[str, Preset]] = {"tokenizer": TOKENIZERS, "prior": PRIORS, "vae": VAES}


@dataclass(frozen=True)
class Plan:
    """The options of training a model, and the one to choose.

    utilization: the share of the GPU's peak that training reaches, in operations that are carried
    out. network: GB/s between nodes, of each GPU (400 Gb/s InfiniBand). epochs: None for the
    recipe's steps. Raises ValueError for settings out of range, and, where an option is asked for,
    if none fits.
    """

    model: Config
    recipe: TrainConfig
    gpu: str = "h100"
    gpus: int = 8
    epochs: float | None = None
    images: int = IMAGENET
    utilization: float = 0.4
    network: float = 50.0
    name: str = "this model"

    def __post_init__(self):
        if self.gpu not in GPUS:
            raise ValueError(f"gpu={self.gpu!r}: give one of {', '.join(GPUS)}")
        for name in ("gpus", "images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        if not 0 < self.utilization <= 1:
            raise ValueError(f"utilization={self.utilization}: give a share above 0, at most 1")
        if not 0 < self.network < math.inf:
            raise ValueError(f"network={self.network}: give a positive number of GB/s")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs={self.epochs}: give a positive number")
        if self.epochs is None and self.recipe.steps >= 10**9:
            raise ValueError(f"{self.name} trains for minutes: give epochs, such as 100")
        if self.recipe.batch_size % self.gpus:
            raise ValueError(
                f"batch_size={self.recipe.batch_size} is not a multiple of gpus={self.gpus}"
            )

    @cached_property
    def costs(self) -> Costs:
        return costs(self.model, self.recipe)

    @property
    def steps(self) -> int:
        if self.epochs is None:
            return self.recipe.steps
        return math.ceil(self.epochs * self.images / self.recipe.batch_size)

    def option(self, fsdp: bool, checkpoint: bool, micro_batch: int = 0) -> Option:
        """micro_batch 0: the largest divisor of a GPU's batch that fits, else 1."""
        local = self.recipe.batch_size // self.gpus
        sizes = [micro_batch] if micro_batch else [n for n in range(local, 0, -1) if local % n == 0]
        where = GPUS[self.gpu], self.gpus, self.utilization, self.network
        found = [Option(self.costs, self.recipe, *where, fsdp, checkpoint, size) for size in sizes]
        return next((o for o in found if o.fits), found[-1])

    @cached_property
    def options(self) -> list[Option]:
        """The largest micro-batch of each kind."""
        blocks = not isinstance(self.model, VAEConfig)  # what can be sharded and checkpointed
        shards = blocks and self.gpus > 1 and self.recipe.optimizer != "muon"  # of whole matrices
        return [
            self.option(fsdp, checkpoint)
            for fsdp in ((False, True) if shards else (False,))
            for checkpoint in ((False, True) if blocks else (False,))
        ]

    @property
    def chosen(self) -> Option:
        fitting = [o for o in self.options if o.fits]
        if not fitting:
            least = min(self.options, key=lambda o: o.gb)
            raise ValueError(
                f"{self.name} does not fit on gpus={self.gpus} of {GPUS[self.gpu].gb:g} GB: "
                f"{least.name} with micro_batch=1 needs {least.gb:.1f} GB of the "
                f"{USABLE * GPUS[self.gpu].gb:.1f} GB that are usable. Give more or larger GPUs, "
                "or a smaller preset"
            )
        return min(fitting, key=lambda o: o.rank)

    def hours(self, option: Option, vae: bool = False) -> float:
        return self.steps * option.step_seconds(vae) / 3600

    def as_written(self) -> Option:
        """The option that the recipe itself states."""
        c = self.recipe
        fsdp, checkpoint = getattr(c, "fsdp", False), getattr(c, "checkpoint_activations", False)
        local = c.batch_size // self.gpus
        return self.option(fsdp, checkpoint, min(c.micro_batch or local, local))


def plan(
    preset: str,
    stage: str | None = None,
    images: int | None = None,
    batch_size: int | None = None,
    optimizer: str | None = None,
    **settings,
) -> Plan:
    """The plan of a preset, by its name. stage: tokenizer, prior or vae (default: the first that
    has it). images, batch_size, optimizer: default to those of the preset. settings: as for
    `Plan`."""
    stages = [s for s in STAGES if preset in STAGES[s] and stage in (None, s)]
    if not stages:
        known = "; ".join(f"{s}: {', '.join(STAGES[s])}" for s in STAGES if stage in (None, s))
        raise ValueError(f"preset={preset!r}: give one of {known}")
    if not works():
        raise ValueError(
            f"torch {torch.__version__} counts the memory of a GPU only where there is one: plan "
            "there, or update torch"
        )
    found = STAGES[stages[0]][preset]
    recipe = found.recipe
    recipe = replace(
        recipe,
        batch_size=recipe.batch_size if batch_size is None else batch_size,
        optimizer=optimizer or recipe.optimizer,
    )
    images = IMAGES.get(found.data or "", IMAGENET) if images is None else images
    return Plan(found.model, recipe, name=preset, images=images, **settings)


# ---- before a run --------------------------------------------------------------------------------


def check_fits(c: Config, recipe: TrainConfig, device: str, world: int, name: str) -> None:
    """Raises ValueError if this device can certainly not train the model: if weights, gradients,
    optimizer state and averaged weights alone, without any activations, are larger than its memory,
    in training or at an evaluation.

    Costs a second at most: nothing is counted that depends on the batch. world: the ranks that
    share the state with recipe.fsdp. `plan` says what fits with its activations.
    """
    if isinstance(c, PriorConfig) and c.text not in ("", "words", "bytes"):
        return  # a frozen text encoder is not counted
    shards = world if recipe.fsdp else 1
    size, memory = parameters(c), memory_of(device)
    parts = state_bytes(size, recipe, shards)
    needed = max(sum(parts.values()), evaluation_bytes(size, recipe, shards))
    if needed <= memory:
        return
    where = "this GPU has" if device.startswith("cuda") else "this machine has free"
    shared = (
        f" (a share of each of {world} ranks, and the averaged weights whole at an evaluation)"
        if shards > 1
        else ""
    )
    can_shard = not isinstance(c, VAEConfig) and recipe.optimizer != "muon"
    more = "more GPUs" if shards > 1 else "several GPUs with torchrun and fsdp=True"
    raise ValueError(
        f"{name} does not fit: {', '.join(parts)} take {needed / 1e9:.1f} GB{shared}, {where} "
        f"{memory / 1e9:.1f} GB, and the activations come on top. Give "
        f"{f'{more}, or ' if can_shard else ''}a smaller preset; micro_batch and "
        "checkpoint_activations reduce the activations only. minflextok plan shows what fits"
    )


def memory_of(device: str) -> float:
    """Bytes of memory that training can have at most: all of a GPU's; on a CPU, what is available
    now, with the swap. Infinite where this is not known, and for a device that does not work."""
    if device.startswith("cuda"):
        try:
            return torch.cuda.get_device_properties(device).total_memory
        except (RuntimeError, AssertionError, ValueError):
            return math.inf
    if device != "cpu":
        return math.inf
    limits = [math.inf]
    with suppress(OSError, ValueError, LookupError):  # not Linux
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        limits.append(1024 * (kb["MemAvailable"] + kb["SwapFree"]))
        for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
            with suppress(OSError, ValueError):  # "max": no limit
                limit = int((Path("/sys/fs/cgroup") / file).read_text(encoding="ascii"))
                limits.append(limit + 1024 * kb["SwapFree"])
    with suppress(ImportError):  # Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
        limits.append(math.inf if limit == resource.RLIM_INFINITY else limit)
    return min(limits)


# ---- the report ----------------------------------------------------------------------------------


def report(p: Plan) -> str:
    """The plan as text. Raises ValueError if nothing fits."""
    return "\n".join([*model_lines(p), "", *memory_lines(p), "", *time_lines(p)])


def model_lines(p: Plan) -> Iterator[str]:
    c, gpu, batch = p.costs, GPUS[p.gpu], p.recipe.batch_size
    yield (
        f"{p.name} on {p.gpus} x {p.gpu} ({gpu.gb:g} GB, {gpu.tflops:g} TFLOP/s of dense bfloat16 "
        f"matrix products; {gpu.source})"
    )
    yield (
        f"{p.steps:,} steps of {batch:,} images: {p.steps * batch / p.images:.1f} epochs of "
        f"{p.images:,}"
    )
    yield f"parameters          {c.parameters.total / 1e6:,.1f} M"
    sharded = ", as with FSDP2," if any(o.fsdp for o in p.options) else ""
    plain = f" (without the exact savings{sharded} {c.flops_plain / 1e9:,.1f})"
    yield (
        f"training step       {c.flops / 1e9:,.1f} GFLOP an image"
        f"{plain if c.flops_plain != c.flops else ''}, {batch * c.flops / 1e12:,.1f} TFLOP a step"
    )
    if c.vae:
        yield f"VAE on the fly      {c.flops_vae / 1e9:,.1f} GFLOP an image more"


def memory_lines(p: Plan) -> Iterator[str]:
    f, kinds = p.costs.footprint, [o for o in p.options if not o.checkpoint]
    yield f"{'GB on each GPU':36}" + "".join(f"{o.name:>10}" for o in kinds)
    tables = [o.memory() for o in kinds]
    for part in dict.fromkeys(part for table in tables for part in table):
        if part != "activations":
            cells = [f"{table[part] / 1e9:.2f}" if part in table else "-" for table in tables]
            yield f"  {part:34}" + "".join(f"{cell:>10}" for cell in cells)
    less = f.checkpointed < f.image
    checkpointed = f", with checkpointing {f.checkpointed / 1e9:.3f}" if less else ""
    yield f"  activations, an image: {f.image / 1e9:.3f}{checkpointed}"
    for o in kinds:
        if o.fsdp:
            yield f"  {o.name} at an evaluation, averaged weights whole: {o.evaluation_gb:.2f}"
    yield ""
    titles = ("largest micro-batch", "images", "GB", "fits", "images/s", "hours")
    yield "{:26}{:>8}{:>8}{:>6}{:>10}{:>10}".format(*titles)
    for o in p.options:
        yield (
            f"  {o.name:24}{o.micro_batch:8}{o.gb:8.1f}{'yes' if o.fits else 'no':>6}"
            f"{o.images_per_second():10,.0f}{p.hours(o):10,.2f}"
        )


def time_lines(p: Plan) -> Iterator[str]:
    o = p.chosen
    yield f"choose {o.name}: {o.flags}"
    compute, step = o.compute_seconds(), o.step_seconds()
    yield (
        f"a step: {1e3 * compute:,.1f} ms of computation at {p.utilization:.0%} of the peak, "
        f"{1e3 * o.communication_seconds:,.1f} ms of communication, of which "
        f"{1e3 * (step - compute):,.1f} ms are not hidden"
    )
    if compute < SHORT:
        yield "launching the kernels of so short a step takes longer: the times are lower bounds"
    for vae in (False, True) if p.costs.vae else (False,):
        hours = p.hours(o, vae)
        yield f"{loader(p, vae)}: {hours:,.2f} hours, {hours * p.gpus:,.1f} GPU-hours"


def loader(p: Plan, vae: bool) -> str:
    """What the data loaders must deliver."""
    c, speed = p.model, p.chosen.images_per_second(vae)
    rate = f"{speed:,.0f} images/s"
    if isinstance(c, PriorConfig):
        return f"{rate} from a token cache of {c.num_tokens} ids an image"
    if p.costs.vae and not vae:
        mb = 2 * 2 * c.in_channels * c.image_size**2 / 1e6  # mean and log-variance, bfloat16
        return f"{rate} from cached latents, {speed * mb:,.0f} MB/s"
    size = p.costs.vae.image_size if p.costs.vae else c.image_size
    cores = f" ({math.ceil(speed / DECODED)} CPU cores decode as many JPEGs)" * (size >= 256)
    return f"{rate} of {size}x{size} pixels{cores}{', VAE on the fly' * vae}"
