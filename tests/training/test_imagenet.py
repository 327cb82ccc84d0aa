"""The ImageNet presets take a step: `make slow`, several minutes and 8 GB."""

import json

import pytest
import torch
from conftest import SHARED
from PIL import Image

from minflextok.cli.parser import main
from minflextok.data import load_dataset
from minflextok.presets import TOKENIZERS, VAES
from minflextok.tokenizer import FlexTok
from minflextok.vae import VAE

PHOTOS = SHARED / "data/imagenet-1k-sample256.tar.gz"


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_file(), reason=f"no images in {PHOTOS}")
def test_d12_d12_takes_a_step_on_cached_latents_of_the_f8_vae(tmp_path, capsys):
    """256 px photos -> folder -> shards -> latents -> one optimizer step, all by commands."""
    photos = load_dataset(str(PHOTOS), image_size=256)
    for i, image in enumerate(photos.images[:12]):
        folder = tmp_path / "photos" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.jpg")
    torch.manual_seed(0)
    VAE(VAES["f8"].model).save_pretrained(tmp_path / "vae", torch.bfloat16)
    shards, latents, out = (str(tmp_path / name) for name in ("shards", "latents", "run"))
    vae = ["--vae", str(tmp_path / "vae")]
    main(["data", "shard", str(tmp_path / "photos"), "--out", shards, "--per-shard", "6"])
    cache = ["data", "cache-latents", "--data", shards, "--image-size", "256", "--out", latents]
    main([*cache, *vae, "--device", "cpu", "--batch-size", "2", "--workers", "0"])
    short = ["--steps", "1", "--batch-size", "2", "--micro-batch", "1", "--val-images", "1"]
    train = ["train", "tokenizer", "--preset", "d12-d12", "--data", latents, "--out", out]
    main([*train, *vae, *short, "--workers", "0", "--device", "cpu", "--quiet"])
    first = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert 0 < first["loss"] < 10 and first["images"] == 2
    tok = FlexTok.from_pretrained(out)
    assert tok.config == TOKENIZERS["d12-d12"].model and tok.image_size == 256
    ids = tok.encode(photos.images[:1].float() / 127.5 - 1)
    assert ids.shape == (1, 256) and tok.decode(ids[:, :2], steps=1).shape == (1, 3, 256, 256)
