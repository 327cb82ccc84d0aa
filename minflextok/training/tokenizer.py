"""Train a FlexTok (stage 1)."""

from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..config import TokenizerConfig, TrainConfig
from ..data import Dataset, Latents, to_float
from ..draws import seeded_noise
from ..evaluation.figures import budget_grid
from ..evaluation.metrics import code_usage, health, one_step_psnr
from ..precision import autocast
from ..tokenizer import FlexTok
from ..vae import VAE
from ..weights import fingerprint, start_from
from .batches import (
    check_image_size,
    check_latents,
    describe_data,
    image_batches,
    split_validation,
)
from .loop import Task, fit
from .mup import initialize
from .objective import TokenizerObjective
from .parallel import building, compile_blocks
from .repa import Repa, Teacher, load_teacher
from .run import Run
from .runtime import Ranks, check_world_size


def nested_prob(progress: float, c: TrainConfig) -> float:
    """The share of images with nested dropout: 0 until c.nested_from of the run, 1 after
    c.nested_full, linear in between."""
    if c.nested_from < progress < c.nested_full:
        return (progress - c.nested_from) / (c.nested_full - c.nested_from)
    return float(progress >= c.nested_full)


@torch.no_grad()
def evaluate_tokenizer(tok: FlexTok, x: Tensor) -> tuple[dict, str]:
    """One-step PSNR by number of tokens, and ids used per register, on images or latents x."""
    ids = torch.cat([tok.encode_latents(part) for part in x.split(256)])
    psnrs = one_step_psnr(tok, x, ids)
    used, perplexity = code_usage(ids, tok.config.vocab_size)
    metrics = {
        "psnr": {str(k): round(v, 3) for k, v in psnrs.items()},
        "ids_used": used.tolist(),
        "perplexity": [round(p, 2) for p in perplexity.tolist()],
        "says": health(psnrs, perplexity, tok.config.vocab_size),
    }
    curve = "  ".join(f"{k}: {v:.1f}" for k, v in psnrs.items())
    return metrics, (
        f"one-step PSNR by tokens  {curve} dB  "
        f"ids used per register {used.double().mean():.0f}  {metrics['says']}"
    )


class TokenizerTask(Task):
    """A FlexTok and its objective, on uint8 images; with a VAE, on its latents of them, which may
    be cached (`Latents`).

    vae: frozen, for a config of latents. teacher: aligns a decoder block with its features of the
    images (REPA); a name for `load_teacher`, or a function. init: weights to initialize the model
    from, of a model that may have another number of registers. cls: the model, FlexTok or a
    subclass; objective: the class of its training objective.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        recipe: TrainConfig,
        data: Dataset,
        ranks: Ranks,
        vae: VAE | None = None,
        teacher: Teacher | str | None = None,
        init: str | None = None,
        cls: type[FlexTok] = FlexTok,
        objective: type[TokenizerObjective] = TokenizerObjective,
    ):
        self.config, self.ranks, self.bf16 = config, ranks, recipe.bf16
        self.vae = None if vae is None else vae.to(ranks.device)
        self.cached, self.sample = isinstance(data, Latents), recipe.sample_latents
        self.train, val = split_validation(data, recipe)
        self.check(data, val, teacher, recipe)
        torch.manual_seed(recipe.seed)
        with building(recipe, ranks):
            tok = initialize(cls(config), recipe.mup_base_width)
        self.sources = describe_sources(data, vae, teacher, init)
        with ranks.together():
            if init is not None and not tok.encoder.registers.is_meta:
                start_from(tok, cls.from_pretrained(init), init)
                self.sources["init"]["fingerprint"] = tok.fingerprint()
        if vae is not None:
            tok.attach(vae).vae = None  # checks that the two fit; the task keeps the VAE
        self.teacher: Teacher | None = (
            load_teacher(teacher, ranks.device) if isinstance(teacher, str) else teacher
        )
        mean = self.mean_features(self.teacher, val) if self.teacher else None
        with building(recipe, ranks):
            repa = None if mean is None else Repa(config.dec_dim, mean)
            if repa is not None:
                initialize(repa, recipe.mup_base_width)
            self.model = objective(tok, repa)
        self.val = torch.cat([self.latents(self.to_device(part)) for part in val.split(64)])
        tok.savings = recipe.savings
        if recipe.compile:
            compile_blocks(tok)

    def check(
        self, data: Dataset, val: Tensor, teacher: Teacher | str | None, recipe: TrainConfig
    ) -> None:
        """Raises ValueError if data, VAE or teacher do not fit the config."""
        c = self.config
        if c.in_channels != 3 and self.vae is None:
            raise ValueError(
                f"this model takes latents of {c.in_channels} channels: give vae, a VAE with "
                f"latent_channels={c.in_channels} (minflextok train vae), or choose a pixel preset"
            )
        if isinstance(data, Latents):
            if self.vae is None or teacher is not None:
                needs = "give its VAE" if self.vae is None else "a teacher needs images"
                raise ValueError(f"{data.name} holds latents of a VAE: {needs}")
            check_latents(data, fingerprint(self.vae.state_dict()), c, recipe.flip)
            if recipe.crop_scale < 1:
                raise ValueError(
                    f"crop_scale={recipe.crop_scale}: {data.name} has latents of whole images: "
                    "give crop_scale=1, or train from images"
                )
        else:
            size = c.image_size * (self.vae.config.downscale if self.vae is not None else 1)
            check_image_size(data, val, size)
        if teacher is not None and c.repa_block >= c.dec_depth:
            raise ValueError(
                f"repa_block={c.repa_block}: this decoder has blocks 0 to {c.dec_depth - 1}"
            )

    def to_device(self, images: Tensor) -> Tensor:
        """uint8 images as floats; of cached latents, those of images that are not mirrored."""
        x = images[:, 0].float() if self.cached else to_float(images)
        return x.to(self.ranks.device)

    @torch.no_grad()
    def mean_features(self, teacher: Teacher, images: Tensor) -> Tensor:
        """The teacher's features of images (n, 3, H, W) uint8, a mean over images and positions:
        (D,)."""
        features = [teacher(self.to_device(part)) for part in images.split(64)]
        return torch.stack([f.float().mean((0, 2, 3)) for f in features]).mean(0)

    @torch.no_grad()
    def latents(self, images: Tensor, eps: Tensor | None = None) -> Tensor:
        """The input of the model: images in [-1, 1]; or the mode of the VAE's posterior of them, or
        its sample for standard normal eps (B, C, h, w). images may be the posterior, if cached.

        This is vae.encode without its checks, which would make a GPU wait.
        """
        if self.vae is None:
            return images
        with autocast(self.ranks.device, self.bf16):
            mean, logvar = images.unbind(1) if self.cached else self.vae.posterior(images)
        if eps is not None:
            mean = mean + torch.exp(logvar / 2) * eps
        return (mean * self.vae.config.scaling_factor).float()

    def batches(self, run: Run) -> Iterator[tuple[Tensor, ...]]:
        """Images or latents, the draws of the objective and, with a teacher, its features."""
        B = run.recipe.batch_size
        for images, g in image_batches(self.train, run):
            with torch.no_grad(), autocast(self.ranks.device, self.bf16):
                features = () if self.teacher is None else (self.teacher(images).float(),)
            c = self.config
            shape = B, c.in_channels, c.image_size, c.image_size  # draws are for all ranks together
            eps = torch.randn(shape, generator=g)[run.share].to(images) if self.sample else None
            x = self.latents(images, eps)
            whole = x[:1].expand(shape)
            draws = self.model.draw(whole, nested_prob(run.progress, run.recipe), g)
            yield x, *(d[run.share] for d in draws), *features

    def evaluate(self, model: TokenizerObjective) -> tuple[dict, str]:
        return evaluate_tokenizer(model.tok, self.val)

    def picture(self, model: TokenizerObjective, title: str) -> Figure:
        """Reconstructions from more and more tokens, all from the same noise."""
        tok, x = model.tok, self.val[:8]
        noise, ids = seeded_noise(x.shape, 0), tok.encode_latents(x)
        grid = {k: tok.decode(ids[:, :k], steps=10, noise=noise) for k in tok.config.budgets}
        if self.vae is not None:
            x, grid = self.vae.decode(x), {k: self.vae.decode(z) for k, z in grid.items()}
        return budget_grid(x, grid, title)


def describe_sources(
    data: Dataset, vae: VAE | None, teacher: Teacher | str | None, init: str | None
) -> dict:
    """What a tokenizer is trained on, for run.json."""
    sources = {"data": describe_data(data)}
    if vae is not None:
        sources["vae"] = {
            "fingerprint": fingerprint(vae.state_dict()),
            "scaling_factor": vae.config.scaling_factor,
        }
    if teacher is not None:
        sources["teacher"] = {"name": teacher if isinstance(teacher, str) else "a function"}
    if init is not None:
        sources["init"] = {"weights": str(init)}
    return sources


def train_tokenizer(
    config: TokenizerConfig,
    recipe: TrainConfig,
    data: Dataset,
    out: str | Path,
    device: str | None = None,
    quiet: bool = False,
    vae: VAE | None = None,
    teacher: Teacher | str | None = None,
    cls: type[FlexTok] = FlexTok,
    init: str | None = None,
    objective: type[TokenizerObjective] = TokenizerObjective,
) -> FlexTok:
    """Train a FlexTok on uint8 images; returns it with averaged weights. Arguments as for
    `TokenizerTask`.

    `out` gets what `fit` writes; its weights load with `FlexTok.from_pretrained(out)`.
    """
    check_world_size(recipe.batch_size)
    task = TokenizerTask(config, recipe, data, Ranks(device), vae, teacher, init, cls, objective)
    tok = fit(task, recipe, out, quiet).tok
    tok.savings = True
    if vae is not None:
        tok.attach(vae)
        if task.ranks.is_main:
            tok.save_pretrained(out)
    return tok
