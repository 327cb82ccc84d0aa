"""Training on cached latents of a VAE."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import SMALL_VAE
from image_files import png, shard

from minflextok import PRESETS, FlexTok
from minflextok.config import TrainConfig
from minflextok.data import Images, Latents, cache_latents, load_dataset, to_float
from minflextok.training.token_cache import extract_ids
from minflextok.training.tokenizer import train_tokenizer
from minflextok.vae import VAE

CONFIG = replace(
    PRESETS["cifar10-tiny"],
    image_size=4,
    in_channels=4,
    patch_size=1,
    enc_dim=64,
    enc_depth=1,
    dec_dim=64,
    dec_depth=1,
    num_registers=4,
)
RECIPE = TrainConfig(
    steps=3, batch_size=4, val_images=4, log_every=1, eval_every=3, workers=0, bf16=False, warmup=0
)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return VAE(SMALL_VAE).eval()


@pytest.fixture
def images():
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 8, 8), generator=g, dtype=torch.uint8)
    return Images("noise", pixels, torch.arange(40) % 3, list("abc"))


def cached(tmp_path, images, vae, name="latents", **more):
    cache_latents(images, vae, tmp_path / name, per_shard=16, quiet=True, **more)
    return load_dataset(tmp_path / name, workers=0, latents=True)


def test_cached_latents_are_those_of_the_vae(tmp_path, images, vae):
    data = cached(tmp_path, images, vae)
    assert isinstance(data, Latents) and len(data) == 40 and data.shape == (2, 2, 4, 4, 4)
    assert data.labels.tolist() == images.labels.tolist() and data.classes == list("abc")
    x = to_float(images.images)
    for view, z in enumerate((x, x.flip(-1))):
        want = torch.stack(vae.posterior(z), 1)
        got = data.at(torch.arange(40))[:, view].float()
        torch.testing.assert_close(got, want, rtol=2**-8, atol=1e-6)  # bfloat16 has 8 bits


def test_ranks_share_the_work_and_an_interrupted_cache_goes_on(tmp_path, images, vae):
    whole = cached(tmp_path, images, vae, "whole")
    for rank in range(2):
        cache_latents(images, vae, tmp_path / "out", per_shard=16, rank=rank, world=2, quiet=True)
    (tmp_path / "out/train-00002.tar").unlink()
    assert torch.equal(
        cached(tmp_path, images, vae, "out").at(torch.arange(40)), whole.at(torch.arange(40))
    )


@pytest.mark.parametrize("labelled", [False, True])
def test_a_stream_is_cached_shard_by_shard(tmp_path, vae, labelled):
    """By a command, with a shard that is empty and an image that cannot be read."""
    for s, values in enumerate(([0, 50, 100], [], [150, None, 200, 250])):
        members = []
        for i, value in enumerate(values):
            members.append((f"{i}.png", b"broken" if value is None else png(value)))
            members += [(f"{i}.cls", b"%d" % i)] * labelled
        shard(tmp_path / f"{s}.tar", members)
    data = load_dataset(f"pipe:cat {tmp_path}/{{0..2}}.tar", image_size=8, workers=0)
    for rank in range(2):
        cache_latents(data, vae, tmp_path / "out", rank=rank, world=2, quiet=True)
    (tmp_path / "out/train-00002.tar").unlink()
    found = cached(tmp_path, data, vae, "out")  # goes on
    assert found.labels.tolist() == [0, 1, 2, 0, 2, 3] if labelled else found.labels is None
    x = torch.cat([x for x, _ in data.in_order(8)])
    assert x[:, 0, 0, 0].tolist() == [0, 50, 100, 150, 200, 250]
    whole = cached(tmp_path, Images("s", x), vae, "whole")
    assert torch.equal(found.at(torch.arange(6)), whole.at(torch.arange(6)))
    with pytest.raises(ValueError, match="differ in.*identity"):
        cached(tmp_path, replace(data, shards=data.shards[:2] * 2), vae, "out")


def losses(out):
    return [
        json.loads(r)["loss"]
        for r in (out / "metrics.jsonl").read_text().splitlines()
        if "loss" in r
    ]


@pytest.mark.parametrize("sample", [False, True])
def test_training_from_the_cache_is_training_from_pixels(tmp_path, images, vae, sample):
    recipe, both = replace(RECIPE, sample_latents=sample), []
    for name, data in (("pixels", images), ("cache", cached(tmp_path, images, vae))):
        train_tokenizer(CONFIG, recipe, data, tmp_path / name, "cpu", quiet=True, vae=vae)
        both.append(losses(tmp_path / name))
        assert (tmp_path / name / "samples").is_dir()
    assert both[0] == pytest.approx(both[1], rel=2e-3) and len(both[0]) == 3
    assert both[0] != both[1]  # the cache has rounded them


def test_a_cache_that_does_not_fit_is_an_error_before_the_first_step(tmp_path, images, vae):
    data = cached(tmp_path, images, vae)

    def train(config=CONFIG, data=data, vae=vae, teacher=None):
        train_tokenizer(
            config, RECIPE, data, tmp_path / "run", "cpu", quiet=True, vae=vae, teacher=teacher
        )

    torch.manual_seed(1)
    with pytest.raises(ValueError, match="latents of the VAE"):
        train(vae=VAE(SMALL_VAE))
    with pytest.raises(ValueError, match="give vae"):
        train(vae=None)
    with pytest.raises(ValueError, match="a teacher needs images"):
        train(teacher=lambda x: x)
    with pytest.raises(ValueError, match=r"shape \(4, 4, 4\), this model takes \(4, 2, 2\)"):
        train(config=replace(CONFIG, image_size=2))
    with pytest.raises(ValueError, match="crop_scale=0.5: .* has latents of whole images"):
        recipe = replace(RECIPE, crop_scale=0.5)
        train_tokenizer(CONFIG, recipe, data, tmp_path / "run", "cpu", quiet=True, vae=vae)
    with pytest.raises(ValueError, match="no latents of mirror images: give flip=False"):
        train(data=cached(tmp_path, images, vae, "once", flip=False))
    with pytest.raises(ValueError, match="holds latents of a VAE, and this needs images"):
        load_dataset(tmp_path / "latents")
    with pytest.raises(ValueError, match="differ in.*identity"):
        cache_latents(images.select(torch.arange(39)), vae, tmp_path / "latents", quiet=True)
    assert not (tmp_path / "run/checkpoints").exists()


def test_ids_for_a_prior_come_from_images_or_latents(tmp_path, images, vae):
    """All ids but those near a rounding boundary are equal: the cache rounds to bfloat16."""
    torch.manual_seed(0)
    tok = FlexTok(CONFIG).eval().attach(vae)
    data = cached(tmp_path, images, vae)
    want, labels = extract_ids(tok, images, True, cache=tmp_path / "ids", quiet=True)
    found, same_labels = extract_ids(tok, data, True, cache=tmp_path / "ids", quiet=True)
    assert found.shape == want.shape == (40, 2, 4) and torch.equal(labels, same_labels)
    assert (found == want).mean() > 0.9 and (found[:, 0] != found[:, 1]).any()
    with pytest.raises(ValueError, match="give crops=1"):
        extract_ids(tok, data, True, crops=5, cache=tmp_path / "ids")
    with pytest.raises(ValueError, match="latents of the VAE"):
        torch.manual_seed(1)
        extract_ids(FlexTok(CONFIG).attach(VAE(SMALL_VAE)), data, cache=tmp_path / "ids")
    with pytest.raises(ValueError, match="give a tokenizer with its VAE"):
        extract_ids(FlexTok(CONFIG), data, cache=tmp_path / "ids")
