"""A model on several ranks: copies of it (DDP) or shards (FSDP2); and activation checkpointing,
also of compiled blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ..config import TrainConfig
from ..tokenizer import FlexTok
from ..weights import NothingToDraw
from .runtime import Ranks

# Linear layers that are called before their block is: the modulations of all blocks are computed
# together, and so are the keys and values of a text.
CALLED_ALONE = ("adaln", "wkv")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The Transformer blocks of a model: the modules of its lists called `blocks`."""
    return [m for name, m in model.named_modules() if name.split(".")[-2:-1] == ["blocks"]]


def compile_blocks(model: nn.Module) -> None:
    """torch.compile the blocks of a tokenizer or a prior, one graph for all of a kind. Sizes change
    with the savings, and with the texts of a prior."""
    tok = isinstance(model, FlexTok)
    for part in (model.encoder, model.decoder) if tok else (model,):
        for block in part.blocks:
            block.compile(dynamic=model.savings if tok else True)
            block.compiled = True  # for the savings, which do not call `forward` of each block


def checkpoint_activations(model: nn.Module) -> None:
    """Let each Transformer block keep its inputs alone for the backward pass, and compute its
    activations again there."""
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(
            f"checkpoint_activations=True: {type(model).__name__} has no Transformer blocks: "
            "give checkpoint_activations=False"
        )
    for block in blocks:
        forward = block.forward
        if block._compiled_call_impl is not None:
            # torch.compile skips all of a call that begins with `checkpoint`: compile inside it.
            block._compiled_call_impl, forward = None, torch.compile(forward)
        block.forward = partial(checkpoint, forward, use_reentrant=False)
        block.recompute = True  # for the savings, which do not call `forward` of each block


@contextmanager
def building(recipe: TrainConfig, ranks: Ranks) -> Iterator[None]:
    """Build the model to train inside. With FSDP, only rank 0 draws its values, on the CPU, as one
    process does; on the other ranks the parameters are on the meta device, until `fill`."""
    if recipe.fsdp and not ranks.is_main:
        with torch.device("meta"), NothingToDraw():
            yield
    else:
        yield


def set_aside(model: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Move the parameters of a model to the meta device and its buffers to `device`, in place.
    Returns the values that the parameters had, by name."""
    values = {name: p.detach() for name, p in model.named_parameters()}
    empty = {name: x.to("meta") for name, x in values.items()}
    model.load_state_dict(empty, strict=False, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return values


def fill(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Give a sharded model on the meta device the values of rank 0: each rank gets its rows of one
    parameter after the other, so no GPU holds more than one whole. Empties `values`."""
    shards = {}
    for name, p in model.named_parameters():
        whole = values.pop(name)
        if whole.is_meta:
            whole = torch.empty_like(whole, device=p.device_mesh.device_type)
        shards[name] = distribute_tensor(whole, p.device_mesh, p.placements)
    model.load_state_dict(shards, strict=False, assign=True)


def shard(model: nn.Module, half: bool) -> None:
    """Shard a model over all ranks, in place: FSDP2, one group for each Transformer block and one
    for the rest. half: compute in bfloat16 with float32 masters, and sum gradients in float32."""
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(
            f"fsdp=True: {type(model).__name__} has no Transformer blocks: give fsdp=False"
        )
    if not dist.is_initialized():
        raise ValueError("fsdp=True needs several ranks: start the run with torchrun")
    for module in model.modules():
        if isinstance(module, FlexTok):
            # The exact savings call parts of a block, as often as a rank's draws ask for. But all
            # ranks must call the same shards, and gather those of a block when it is called.
            module.savings = False
    # Timesteps must stay float32, so autocast casts the inputs where a product needs it.
    policy = MixedPrecisionPolicy(
        torch.bfloat16 if half else None, torch.float32, cast_forward_inputs=False
    )
    for block in blocks:
        for name, module in block.named_modules():
            if name.split(".")[-1] in CALLED_ALONE:
                fully_shard(module, mp_policy=policy)
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def copies(model: nn.Module) -> nn.Module:
    """DDP around a model: the mean gradient of all ranks."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def share_buffers(model: nn.Module) -> None:
    """Give all ranks the buffers of rank 0, as DDP does before each step: the statistics of batch
    norm differ between ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor, in the same memory: all of it unless it is sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def full(x: Tensor) -> Tensor:
    """All of a tensor. All ranks must call this for a sharded one."""
    return x.full_tensor() if isinstance(x, DTensor) else x
