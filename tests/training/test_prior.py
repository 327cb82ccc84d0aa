"""Training of the prior: what it learns, its log, its validation split, resuming, and its
commands."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import (
    TINY,
    check_resume,
    killed_after,
    lines,
    noise_images,
    on_two_ranks,
    randomised,
    same,
)
from image_files import png, shard

from minflextok import Prior, PriorConfig, TrainConfig
from minflextok.cli.parser import main
from minflextok.data import Images, Stream, load, to_float
from minflextok.data.shapes import make_shapes
from minflextok.training import prior
from minflextok.training.prior import train_prior

SMALL = PriorConfig(
    TINY.vocab_size, TINY.num_registers, 5, dim=32, depth=2, head_dim=8, class_names=tuple("abcde")
)
TEXT = dataclasses.replace(
    SMALL,
    num_classes=0,
    class_names=(),
    text="words",
    text_dim=16,
    text_depth=1,
    text_length=4,
    words=("blue", "circle", "red", "square"),
)
CAPTIONS = ["red circle", "Blue square", "red square, blue circle"]


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def data(n=40, seed=0, **more):
    return noise_images(n, seed, labels=torch.arange(n) % 5, classes=list("abcde"), **more)


RECIPE = TrainConfig(
    steps=8, batch_size=6, warmup=2, eval_every=4, log_every=2, val_images=4, bf16=False, lr=1e-3
)


def run(out, config=SMALL, recipe=RECIPE, tok=None, **options):
    return train_prior(
        config,
        recipe,
        tok or randomised(),
        options.pop("data", None) or data(),
        out,
        "cpu",
        quiet=True,
        cache=out.parent / "cache",
        **options,
    )


def test_training_learns_a_small_set_by_heart(tmp_path):
    tok, images = randomised(), data(12)
    recipe = dataclasses.replace(
        RECIPE, steps=250, batch_size=11, lr=3e-3, flip=False, eval_every=250, ema=0.9
    )
    config = dataclasses.replace(SMALL, dim=64, null_prob=0.0)
    images.labels = torch.arange(12)
    images.classes = [str(i) for i in range(12)]
    prior = run(tmp_path / "run", config, recipe, tok, data=images)
    ids = tok.encode(to_float(images.images))
    learned = torch.randperm(12, generator=g())[1:]
    assert prior.loss(ids[learned], learned) < 0.05
    assert torch.equal(prior.generate(learned, temperature=0), ids[learned])
    assert prior.config.num_classes == 12 and prior.config.tokenizer == tok.fingerprint()
    assert same(prior, Prior.from_pretrained(tmp_path / "run"))


def test_the_log_has_bits_by_position_of_the_validation_images(tmp_path):
    prior, tok = run(tmp_path / "run"), randomised()
    assert [s for s, _ in lines(tmp_path / "run", "bits")] == [4, 8]
    val = torch.randperm(40, generator=g())[:4]
    losses = prior.token_losses(
        tok.encode(to_float(data().images[val])), val % 5
    ).detach() / math.log(2)
    assert lines(tmp_path / "run", "bits_by_position")[-1][1] == pytest.approx(
        losses.mean(0).tolist(), abs=2e-3
    )
    assert lines(tmp_path / "run", "bits")[-1][1] == pytest.approx(losses.mean().item(), abs=2e-3)
    assert (tmp_path / "run/samples/step_000008.png").stat().st_size > 3000


def test_validation_images_are_never_trained_on(tmp_path, monkeypatch):
    seen, real = set(), Prior.forward
    monkeypatch.setattr(
        Prior,
        "forward",
        lambda self, ids, c, *draws: seen.update(c.tolist()) or real(self, ids, c, *draws),
    )
    every = Images("noise", data().images, torch.arange(40))
    run(
        tmp_path / "run",
        dataclasses.replace(SMALL, class_names=()),
        dataclasses.replace(RECIPE, steps=20),
        data=every,
    )
    assert seen == set(range(40)) - set(torch.randperm(40, generator=g())[:4].tolist())


@pytest.mark.parametrize("kind", ["class", "text"])
def test_killed_at_any_step_it_resumes_bit_for_bit(tmp_path, kind):
    config = dataclasses.replace(SMALL if kind == "class" else TEXT, dropout=0.1)
    images = data(captions=[CAPTIONS[i % 3] for i in range(40)])
    check_resume(lambda out: run(out, config, crops=5, data=images), tmp_path, 6, "bits")


def test_run_json_names_the_tokenizer_and_the_crops(tmp_path):
    run(tmp_path / "run", crops=5)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert len(record["data"].pop("identity")) == 16
    assert record["data"] == {"name": "noise", "images": 40, "crops": 5}
    assert record["tokenizer"] == {"fingerprint": randomised().fingerprint()}
    with pytest.raises(ValueError, match="data.crops=5 there, 1 here"):
        run(tmp_path / "run")


def test_another_tokenizer_is_another_run(tmp_path):
    run(tmp_path / "run")
    with pytest.raises(ValueError, match="holds another run .*model.tokenizer="):
        run(tmp_path / "run", tok=randomised(seed=1))


@pytest.mark.parametrize(
    "options, match",
    [
        (dict(data=Images("plain", data().images)), "plain has no labels"),
        (dict(config=TEXT), "noise has no captions, which a prior with text='words' needs"),
        (
            dict(config=TEXT, data=data(captions=["a cat on the left"] * 40)),
            "contain left or right, which flip=True would make wrong",
        ),
        (dict(data=data(5)), "noise has 5 images: training wants at least 10"),
        (dict(crops=3), "crops=3: give 1 .* or 5"),
        (
            dict(
                config=dataclasses.replace(TEXT, text_length=1), data=data(captions=["a cat"] * 40)
            ),
            "has 2 words, this prior reads 1",
        ),
    ],
)
def test_training_says_what_is_wrong(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        run(tmp_path / "run", **options)


@pytest.fixture
def no_ids(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("ids were extracted")

    monkeypatch.setattr("minflextok.training.prior.extract_ids", fail)


def streamed(tmp_path, labelled):
    """A stream of images, with or without their classes."""
    files = [(f"{i}.{e}", c) for i in range(20) for e, c in (("png", png(i)), ("cls", b"1"))]
    path = shard(tmp_path / "a.tar.gz", [f for f in files if labelled or "cls" not in f[0]])
    return Stream("s", [str(path)], 8, 0)


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_missing_labels_are_found_before_the_ids_are_extracted(tmp_path, no_ids, kind):
    images = data()
    images.labels = None
    with pytest.raises(ValueError, match="no labels: .* a .cls file of its name with the class"):
        run(tmp_path / "run", data=images if kind == "memory" else streamed(tmp_path, False))


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_another_run_is_found_before_the_ids_are_extracted(tmp_path, monkeypatch, kind):
    images = data() if kind == "memory" else streamed(tmp_path, True)
    config = dataclasses.replace(SMALL, class_names=())
    with killed_after(6):
        run(tmp_path / "run", config, data=images)
    extract, extracted = prior.extract_ids, []
    monkeypatch.setattr(
        prior, "extract_ids", lambda *a, **k: extracted.append(1) or extract(*a, **k)
    )
    recipe, other = dataclasses.replace(RECIPE, lr=2e-3), randomised(seed=1)
    for options, match in (
        (dict(recipe=recipe), "train.lr=0.001 there, 0.002 here"),
        (dict(tok=other), "model.tokenizer="),
        (dict(crops=5), "data.crops=1 there, 5 here"),
    ):
        with pytest.raises(ValueError, match=match):
            run(tmp_path / "run", **dict(config=config, data=images) | options)
    assert not extracted
    run(tmp_path / "run", config, data=images)
    assert lines(tmp_path / "run", "bits")[-1][0] == 8 and extracted


def test_all_ranks_learn_that_out_holds_another_run(tmp_path):
    run(tmp_path / "run", recipe=dataclasses.replace(RECIPE, steps=1))
    (tmp_path / "refused.py").write_text(
        f"""
import torch
from conftest import noise_images, randomised
from minflextok import PriorConfig, TrainConfig
from minflextok.training.prior import train_prior

data = noise_images(40, 0, labels=torch.arange(40) % 5, classes=list("abcde"))
try:
    train_prior({SMALL}, {RECIPE}, randomised(), data, {str(tmp_path / "run")!r}, "cpu", quiet=True)
except ValueError as e:
    assert "holds a shorter run" in str(e), e
else:
    raise AssertionError
"""
    )
    on_two_ranks(tmp_path / "refused.py")


# ---- commands ------------------------------------------------------------------------------------


def test_train_and_generate_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(load, "make_shapes", lambda *_: make_shapes(40))
    randomised(dataclasses.replace(TINY, image_size=16)).save_pretrained(tmp_path / "tok")
    tok, cpu = ["--tokenizer", str(tmp_path / "tok")], ["--device", "cpu"]
    small = (
        "--steps 2 --batch-size 4 --val-images 4 --model dim=32 --model depth=1 --quiet --no-flip"
    )
    sampler = "--samples 2 --tokens 3 --guidance 2 --top-k 9 --steps 1"
    for preset, condition in (
        ("cifar10-tiny", ["--classes", "2 things", "3"]),
        ("shapes", ["--text", "a red circle"]),
    ):
        out, image = str(tmp_path / preset), tmp_path / "g.png"
        train = ["train", "prior", "--preset", preset, "--data", "shapes", "--out", out, *tok, *cpu]
        main([*train, "--cache", str(tmp_path / "cache"), *small.split()])
        generate = ["generate", "--prior", out, *tok, *condition, *cpu, "--out", str(image)]
        main([*generate, *sampler.split()])
        assert f"{2 * (len(condition) - 1)} images of 3 tokens" in capsys.readouterr().out
        assert image.stat().st_size > 2000
    text, classes = (["--prior", str(tmp_path / name)] for name in ("shapes", "cifar10-tiny"))
    for wrong, match in (
        (text, "tokenizer"),
        ([*text, *tok], "takes text: give --text"),
        ([*text, *tok, "--text", "a red cat"], "unknown word 'cat'"),
        ([*text, "--tokenizer", "cifar10-tiny", "--text", "a"], "give the tokenizer that it was"),
        ([*classes, *tok, "--classes", "x"], "no class 'x': give a number"),
        ([*text, *tok, "--text", "a", "--samples", "0"], "--samples 0"),
        (["--prior", "nothing"], "no weights 'nothing': shipped are"),
    ):
        with pytest.raises(SystemExit, match=match):
            main(["generate", *wrong, *cpu])
    with pytest.raises(SystemExit, match="preset ar-49m names no tokenizer"):
        main(["train", "prior", "--preset", "ar-49m", "--out", str(tmp_path / "x")])
