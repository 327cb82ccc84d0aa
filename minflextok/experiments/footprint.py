"""What the backward pass keeps in memory, counted without computing anything.

The model's own training code runs on fake tensors, which have shapes and types but no values. Hooks
of autograd see each tensor that is saved for the backward pass. Saved bytes are a constant (the
bfloat16 copies of the weights under autocast) plus a multiple of the number of images, and grow
linearly with depth. So models of one or two blocks are enough to know those of any depth.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..config import PriorConfig, TokenizerConfig, VAEConfig
from ..gpt import PriorBlock
from ..prior import Prior
from ..tokenizer import FlexTok
from ..training.losses import Distance, VAEObjective, gradient_distance
from ..training.objective import TokenizerObjective
from ..training.optimizers import block_matrices
from ..transformer import AdaLNBlock, Block
from ..vae import VAE

Config: TypeAlias = TokenizerConfig | PriorConfig | VAEConfig
Pass: TypeAlias = tuple[nn.Module, Callable[[], Tensor]]  # a model, and its forward pass


GPU = "cuda:0"  # of the fake tensors; none is needed


@cache
def works() -> bool:
    """Whether this torch has fake tensors of a GPU; some versions and builds want a GPU for
    them."""
    try:
        with FakeTensorMode():
            on_gpu(lambda: nn.Conv2d(1, 1, 1))
    except Exception:  # each version raises another error
        return False
    return True


# ---- the loss of each kind of model --------------------------------------------------------------


def tokenizer_pass(c: TokenizerConfig, B: int) -> Pass:
    """The loss of images that keep all K registers, as all do until nested dropout is mixed in."""
    objective = on_gpu(lambda: TokenizerObjective(FlexTok(c)))
    x = torch.zeros(B, c.in_channels, c.image_size, c.image_size, device=GPU)
    t, null = torch.zeros(B, device=GPU), torch.zeros(B, dtype=torch.bool, device=GPU)
    k = torch.zeros(B, dtype=torch.long, device=GPU)
    return objective, lambda: objective.group_loss(c.num_registers, k, null, x, x, t, None)


def prior_pass(c: PriorConfig, B: int) -> Pass:
    prior = on_gpu(lambda: Prior(c))
    ids = torch.zeros(B, c.num_tokens, dtype=torch.long, device=GPU)
    conditions = ids[:, 0] if not c.text else ids[:, :1].expand(B, c.text_length)
    null = torch.zeros(B, dtype=torch.bool, device=GPU)
    branches = 3 if c.text else 2
    keep = torch.ones(B, c.depth if c.dropout else 0, branches, c.dim, device=GPU)
    return prior, lambda: prior(ids, conditions, null, keep.bool())


def vae_pass(c: VAEConfig, B: int) -> Pass:
    """The loss with all its parts, the adversarial ones included."""
    distance: Distance | None = gradient_distance if c.perceptual == "gradients" else None
    if c.perceptual == "lpips":
        from torchvision.models import vgg16  # three seconds, which all other commands save

        distance = vgg_distance(on_gpu(lambda: vgg16().features[:30].requires_grad_(False)))
    objective = on_gpu(lambda: VAEObjective(c, distance))
    x = torch.zeros(B, 3, c.image_size, c.image_size, device=GPU)
    side = c.image_size // c.downscale
    eps = torch.zeros(B, c.latent_channels, side, side, device=GPU)
    return objective, lambda: objective(x, eps, [True])


def vgg_distance(features: nn.Module) -> Distance:
    """LPIPS in the network's part of its cost: VGG16 up to its last convolution, on both images."""
    return lambda a, b: (features(a) - features(b)).square().mean((1, 2, 3))


def on_gpu(build: Callable[[], nn.Module]) -> nn.Module:
    """A model whose parameters and buffers are fake tensors of a GPU."""
    with torch.device(GPU):
        model = build()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(GPU))
    return model


PASSES: dict[type, Callable[..., Pass]] = {
    TokenizerConfig: tokenizer_pass,
    PriorConfig: prior_pass,
    VAEConfig: vae_pass,
}


# ---- counting ------------------------------------------------------------------------------------


class Attention(torch.autograd.Function):
    """What the attention kernels of a GPU keep: queries, keys, values and outputs in bfloat16, and
    the mask. They compute the attention matrix again in the backward pass."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(q.transpose(1, 2)).transpose(
            1, 2
        )  # (B, H, N, d), as kernels store it
        ctx.save_for_backward(q, k, v, out, mask)
        return out


class FusedAttention(TorchFunctionMode):
    """Replaces scaled_dot_product_attention, which without a GPU has no fused kernel."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            q, k, v = (x.bfloat16() for x in args[:3])
            return Attention.apply(q, k, v, (kwargs or {}).get("attn_mask"))
        return func(*args, **(kwargs or {}))


@contextmanager
def autocast() -> Iterator[None]:
    """bfloat16 autocast of a GPU; torch.autocast refuses where there is none."""
    before = torch.is_autocast_enabled(GPU), torch.get_autocast_dtype(GPU)
    torch.set_autocast_enabled(GPU, True)
    torch.set_autocast_dtype(GPU, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(GPU, before[0])
        torch.set_autocast_dtype(GPU, before[1])


def saved_tensors(model: nn.Module, forward: Callable[[], Tensor]) -> list[int]:
    """The sizes in bytes of the storages that a forward pass saves for the backward pass, apart
    from the parameters."""
    kept: dict[int, tuple[Tensor, int]] = {}  # holding a tensor keeps its key unique

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = x, storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        forward()
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    return [size for key, (_, size) in kept.items() if key not in own]


def saved_bytes(c: Config) -> tuple[int, int]:
    """Bytes that are saved for the backward pass under bfloat16 autocast: of each image, and of
    copies of the weights."""
    totals = []
    for B in (1, 2):
        with FakeTensorMode():
            model, forward = PASSES[type(c)](c, B)
            with autocast(), FusedAttention():
                totals.append(sum(saved_tensors(model, forward)))
    return totals[1] - totals[0], 2 * totals[0] - totals[1]


@dataclass(frozen=True)
class Footprint:
    """Bytes that the backward pass needs. Sums over blocks and the rest are linear in depth.

    image: all activations of an image. checkpointed: with checkpointing of the blocks, whose inputs
    are kept, and of one block at a time the rest. weights: the bfloat16 copies of the weights.
    """

    image: float
    checkpointed: float
    weights: float


def footprint(c: Config) -> Footprint:
    """The footprint of a config of any depth, from models of one and of two blocks."""
    if isinstance(c, VAEConfig):  # it has no blocks to checkpoint
        image, weights = saved_bytes(c)
        return Footprint(image, image, weights)
    depths = depth_names(c)
    short = with_depth(c, **dict.fromkeys(depths, 1))
    image, weights = saved_bytes(short)
    checkpointed, one_block = image, 0
    first = image, weights
    for name in depths:
        more = saved_bytes(with_depth(short, **{name: 2}))
        block, copies = more[0] - first[0], more[1] - first[1]
        added = getattr(c, name) - 1
        image, weights = image + added * block, weights + added * copies
        checkpointed += added * block_input(c, name)
        one_block = max(one_block, block)
    return Footprint(image, min(image, checkpointed + one_block), weights)


def depth_names(c: TokenizerConfig | PriorConfig) -> tuple[str, ...]:
    """The fields that hold numbers of blocks."""
    return ("depth",) if isinstance(c, PriorConfig) else ("enc_depth", "dec_depth")


def with_depth(c: Any, **depths: int) -> Any:
    return replace(c, **depths)


def block_input(c: TokenizerConfig | PriorConfig, depth: str) -> int:
    """Bytes of the input of a block, an image: one float32 vector a position."""
    if isinstance(c, PriorConfig):
        return 4 * c.num_tokens * c.dim
    width = c.enc_dim if depth == "enc_depth" else c.dec_dim
    return 4 * (c.grid**2 + c.num_registers) * width


def latent_flops(c: VAEConfig) -> int:
    """Operations of computing the latents of an image."""
    with FakeTensorMode(), torch.no_grad():
        vae, x = on_gpu(lambda: VAE(c)), torch.zeros(1, 3, c.image_size, c.image_size, device=GPU)
        return counted(lambda: vae.posterior(x))


def vae_training_flops(c: VAEConfig) -> int:
    """Operations of a training step with all losses, an image."""
    with FakeTensorMode(), torch.no_grad():
        model, _ = vae_pass(c, 1)
        x = torch.zeros(1, 3, c.image_size, c.image_size, device=GPU)
        autoencoder = counted(lambda: model.vae.decode(model.vae.posterior(x)[0]))
        perceptual = counted(lambda: model.distance and model.distance(x, x))
        judged = counted(lambda: c.adversarial_weight and model.discriminator(x))
    # A backward pass costs two forward passes, and one where only the input needs a gradient:
    # VGG16 sees two images, the discriminator the reconstruction twice and the image once.
    return 3 * autoencoder + perceptual * 3 // 2 + 8 * judged


def counted(f: Callable) -> int:
    """The operations of a call."""
    with FlopCounterMode(display=False) as counter:
        f()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Parameters:
    """Numbers of trained parameters. blocks: of all Transformer blocks; block: of the largest one;
    muon: of the matrices that Muon updates."""

    total: int
    blocks: int
    block: int
    muon: int


def parameters(c: Config) -> Parameters:
    with torch.device("meta"):
        model = {TokenizerConfig: FlexTok, PriorConfig: Prior, VAEConfig: VAEObjective}[type(c)](c)
    blocks = [
        sum(p.numel() for p in m.parameters())
        for m in model.modules()
        if isinstance(m, Block | AdaLNBlock | PriorBlock)
    ]
    total = sum(p.numel() for p in model.parameters())
    muon = sum(p.numel() for p in block_matrices(model))
    return Parameters(total, sum(blocks), max(blocks, default=total), muon)
