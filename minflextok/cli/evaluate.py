"""The commands that compute metrics, and that sample from a prior: evaluate, evaluate-prior,
generate."""

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import torch

from ..config import TrainConfig
from ..data import Dataset, Stream, load_dataset, validation_split
from ..evaluation.figures import image_grid, save
from ..evaluation.prior import PriorEvaluation
from ..evaluation.reports import prior_table, tokenizer_table, write_pictures, write_results
from ..evaluation.settings import EvaluationSettings, PriorSettings, Sampler
from ..evaluation.tokenizer import Evaluation
from ..prior import Prior
from ..tokenizer import FlexTok
from .codec import BATCH, load
from .flags import say


def evaluate(a: argparse.Namespace) -> None:
    if Path(a.out).suffix != ".json":
        raise ValueError(f"--out {a.out}: results are saved as .json")
    tok = load(a)
    settings = EvaluationSettings(
        num_images=a.num_images,
        budgets=a.tokens,
        steps=a.steps,
        guidance=a.guidance,
        apg=a.apg,
        seed=a.seed,
        features=a.features,
        classifier=a.classifier,
        batch_size=a.batch_size,
        bf16=a.bf16,
    )
    data = load_dataset(a.data, a.split, tok.image_size)
    work = Evaluation(tok, a.weights, data, settings)
    say(work.protocol_line)
    found = work.run(progress=sys.stderr.isatty())
    write_results(found, a.out)
    say(f"{tokenizer_table(found)}\nresults -> {a.out}")


def load_prior(a: argparse.Namespace) -> tuple[Prior, FlexTok]:
    if a.tokenizer is None and Path(a.prior).is_dir():
        raise ValueError(f"--prior {a.prior} does not name its tokenizer: give --tokenizer")
    prior = Prior.from_pretrained(a.prior).to(a.device)
    tok = FlexTok.from_pretrained(a.tokenizer or a.prior).to(a.device)
    prior.check_tokenizer(tok)
    return prior, tok


def conditions(a: argparse.Namespace, prior: Prior, size: int) -> Dataset:
    """The images whose classes or captions a prior is conditioned on."""
    name = a.data or ("shapes" if prior.config.text else "cifar10-sample")
    data = load_dataset(name, "test" if a.split == "test" else "train", size)
    if a.split != "validation":
        return data
    if isinstance(data, Stream):
        raise ValueError(f"--split validation: {name} streams and has none; give --split train")
    recipe = TrainConfig(val_images=max(1, a.num_samples))  # seed 0, as in training
    return data.select(validation_split(len(data), recipe, name)[1], split="validation")


def evaluate_prior(a: argparse.Namespace) -> None:
    prior, tok = load_prior(a)
    settings = PriorSettings(
        num_samples=a.num_samples,
        budgets=a.tokens,
        samplers=[Sampler(g, t, a.top_k, a.top_p) for g, t in product(a.guidance, a.temperature)],
        steps=a.steps,
        decoder_guidance=a.decoder_guidance,
        prefix_images=a.prefix_images,
        seed=a.seed,
        features=a.features,
        classifier=a.classifier,
        batch_size=a.batch_size,
        bf16=a.bf16,
    )
    data = conditions(a, prior, tok.image_size)
    work = PriorEvaluation(prior, a.prior, tok, a.tokenizer or a.prior, data, settings)
    say(work.protocol_line)
    found, samples, continued = work.run(progress=sys.stderr.isatty())
    write_results(found, Path(a.out) / "results.json")
    write_pictures(found, samples, continued, Path(a.out))
    say(f"{prior_table(found)}\nresults and pictures -> {a.out}/")


def generate(a: argparse.Namespace) -> None:
    if a.samples < 1:
        raise ValueError(f"--samples {a.samples}: give at least 1")
    prior, tok = load_prior(a)
    if prior.config.text and not a.text:
        raise ValueError('this prior takes text: give --text "a red circle", for example')
    names = a.text or [
        prior.class_names[i] for i in prior.classes(a.classes or prior.class_names[:10])
    ]
    names = list(dict.fromkeys(names))
    each = [name for name in names for _ in range(a.samples)]
    g, start = torch.Generator().manual_seed(a.seed), time.perf_counter()
    ids = prior.generate(
        each if a.text else prior.classes(each),
        a.tokens,
        a.guidance,
        a.temperature,
        a.top_k,
        a.top_p,
        generator=g,
    )
    sampled = time.perf_counter()
    images = tok.decode(
        ids, a.steps, generator=g, progress=sys.stderr.isatty(), batch_size=BATCH
    ).cpu()
    save(image_grid(dict(zip(names, images.split(a.samples), strict=True))), a.out)
    say(
        f"{len(ids)} images of {ids.shape[1]} tokens: ids in {sampled - start:.2f} s, decoded in "
        f"{time.perf_counter() - sampled:.1f} s -> {a.out}"
    )
