"""The commands that train models and compare them: train vae, tokenizer, prior, classifier; curves;
compare."""

import argparse
import dataclasses
import json
import os
from pathlib import Path

from ..config import TrainConfig, from_dict
from ..data import Dataset, load_dataset
from ..evaluation import curves
from ..evaluation.figures import save
from ..experiments.compare import SYSTEMS, Setting, compare
from ..experiments.footprint import Config
from ..experiments.plan import check_fits
from ..presets import CLASSIFIERS, PRIORS, TOKENIZERS, VAES, Preset
from ..tokenizer import FlexTok
from ..training.classifier import train_classifier
from ..training.prior import train_prior
from ..training.runtime import check_world_size
from ..training.tokenizer import train_tokenizer
from ..training.vae import train_vae
from ..vae import VAE
from .flags import AUTO, say


def recipe_of(a: argparse.Namespace, preset: Preset) -> TrainConfig:
    """The preset's recipe with the changes of the flags. If only one of --steps and --minutes is
    given, it alone ends the run."""
    fields = [f.name for f in dataclasses.fields(TrainConfig)]
    given = {name: getattr(a, name) for name in fields if getattr(a, name, None) is not None}
    if a.minutes and a.steps is None:
        given["steps"] = 10**9
    if a.steps and a.minutes is None:
        given["minutes"] = 0.0
    recipe = dataclasses.replace(preset.recipe, **given)
    check_world_size(recipe.batch_size)
    return recipe


def model_of(a: argparse.Namespace, preset: Preset):
    """The preset's model config with the changes of --model KEY=VALUE."""
    config = dataclasses.asdict(preset.model)
    for change in a.model:
        key, eq, value = change.partition("=")
        if not eq:
            raise ValueError(f"--model {change}: give KEY=VALUE")
        try:
            config[key] = json.loads(value)
        except ValueError:
            config[key] = value
    return from_dict(type(preset.model), config)


def data_of(
    a: argparse.Namespace, preset: Preset, size: int, recipe: TrainConfig, latents: bool = False
) -> Dataset:
    """The train split of --data, or of the preset's own data. latents: they may be cached."""
    name = a.data or preset.data
    if name is None:
        raise ValueError(f"preset {a.preset} has no default data: give --data")
    return load_dataset(
        name, "train", size, recipe.workers, latents, reader_minutes=recipe.reader_minutes
    )


def check_memory(a: argparse.Namespace, config: Config, recipe: TrainConfig) -> None:
    """Refuse what certainly does not fit on the device, before anything is loaded or built."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    check_fits(config, recipe, a.device or AUTO, world, a.preset)


def tokenizer(a: argparse.Namespace) -> None:
    preset = TOKENIZERS[a.preset]
    recipe, config = recipe_of(a, preset), model_of(a, preset)
    check_memory(a, config, recipe)
    vae = VAE.from_pretrained(a.vae) if a.vae else None
    size, latents = (
        config.image_size * (vae.config.downscale if vae else 1),
        config.in_channels != 3,
    )
    data = data_of(a, preset, size, recipe, latents)
    train_tokenizer(
        config, recipe, data, a.out, a.device, a.quiet, vae=vae, teacher=a.repa, init=a.init
    )


def vae(a: argparse.Namespace) -> None:
    preset = VAES[a.preset]
    recipe, config = recipe_of(a, preset), model_of(a, preset)
    check_memory(a, config, recipe)
    data = data_of(a, preset, config.image_size, recipe)
    train_vae(config, recipe, data, a.out, a.device, a.quiet)


def classifier(a: argparse.Namespace) -> None:
    preset = CLASSIFIERS[a.preset]
    recipe, config = recipe_of(a, preset), model_of(a, preset)
    data = data_of(a, preset, config.image_size, recipe)
    train_classifier(config, recipe, data, a.out, a.device, a.quiet)


def prior(a: argparse.Namespace) -> None:
    preset = PRIORS[a.preset]
    recipe, config = recipe_of(a, preset), model_of(a, preset)
    check_memory(a, config, recipe)
    if not (a.tokenizer or preset.tokenizer):
        raise ValueError(f"preset {a.preset} names no tokenizer: give --tokenizer")
    tok = FlexTok.from_pretrained(str(a.tokenizer or preset.tokenizer))
    data = data_of(a, preset, tok.image_size, recipe, tok.vae is not None)
    train_prior(config, recipe, tok, data, a.out, a.device, a.quiet, crops=a.crops, cache=a.cache)


def show_curves(a: argparse.Namespace) -> None:
    run, reference = curves.read(a.directory), curves.read(a.reference) if a.reference else None
    save(curves.plot(run, reference), a.out)
    say((curves.verdict(run, reference) + "\n" if reference else "") + f"picture -> {a.out}")


def compare_systems(a: argparse.Namespace) -> None:
    unknown = [name for name in a.systems if name not in SYSTEMS]
    if unknown:
        raise ValueError(f"--systems {unknown[0]}: give some of {', '.join(SYSTEMS)}")
    setting = Setting(
        preset=a.preset,
        minutes=a.minutes,
        data=a.data,
        test_data=a.test_data or a.data,
        num_images=a.num_images,
        teacher=a.repa,
        device="cpu" if a.train_on else a.device,
        train_on=a.train_on or "",
        batch_size=a.batch_size,
    )
    say(compare(a.systems or list(SYSTEMS), setting, Path(a.out)))
