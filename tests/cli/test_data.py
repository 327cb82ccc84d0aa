"""The commands that prepare data."""

import pytest
import torch
from PIL import Image

from minflextok.cli.parser import main
from minflextok.config import VAEConfig
from minflextok.data import Latents, load_dataset
from minflextok.vae import VAE


def test_a_folder_becomes_shards_and_these_latents(tmp_path, capsys):
    for i, name in enumerate("aabbaabbaabb"):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (20 * i, 0, 0)).save(tmp_path / "set" / name / f"{i}.png")
    torch.manual_seed(0)
    config = VAEConfig(
        latent_channels=4, widths=(8, 8), layers=1, groups=4, image_size=8, perceptual="none"
    )
    VAE(config).save_pretrained(tmp_path / "vae")
    shards, latents = str(tmp_path / "shards"), str(tmp_path / "latents")
    main(["data", "shard", str(tmp_path / "set"), "--out", shards, "--per-shard", "5"])
    assert f"3 shards of split train -> {shards}" in capsys.readouterr().out
    vae = ["--vae", str(tmp_path / "vae")]
    cache = ["data", "cache-latents", "--data", shards, "--out", latents, "--workers", "0"]
    main([*cache, *vae, "--device", "cpu"])
    data = load_dataset(latents, workers=0, latents=True)
    assert isinstance(data, Latents) and len(data) == 12 and data.shape == (2, 2, 4, 4, 4)
    assert sorted(data.labels.tolist()) == [0] * 6 + [1] * 6 and data.classes == ["a", "b"]
    with pytest.raises(SystemExit, match="differ in latents"):
        main([*cache, *vae, "--device", "cpu", "--no-flip"])
    with pytest.raises(SystemExit, match="holds latents of a VAE, and this needs images"):
        main(["evaluate", "--data", latents, "--split", "train", "--out", str(tmp_path / "r.json")])
    with pytest.raises(SystemExit, match="no such folder"):
        main(["data", "shard", str(tmp_path / "none"), "--out", shards])
    with pytest.raises(SystemExit, match="--per-shard 0: give"):
        main(["data", "shard", str(tmp_path / "set"), "--out", shards, "--per-shard", "0"])
