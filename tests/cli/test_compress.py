"""compress and decompress: images to .ftk files and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from minflextok.cli.parser import main
from minflextok.data import load_dataset

pytest.importorskip("constriction")


def test_images_are_compressed_and_recovered(tmp_path, capsys):
    photos = load_dataset("cifar10-sample", "test").images[:5]
    for i, photo in enumerate(photos):
        Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    file, tokens = str(tmp_path / "a.ftk"), ["--tokens", "8", "--device", "cpu"]
    files = [str(tmp_path / f"{i}.png") for i in range(5)]
    main(["compress", *files, *tokens, "--out", file])
    assert "5 images, 8 ids each" in capsys.readouterr().out
    main(["encode", *files, *tokens, "--weights", "cifar10", "--out", str(tmp_path / "want.npz")])
    main(["decompress", file, "--out", str(tmp_path / "ids.npz"), "--device", "cpu"])
    with np.load(tmp_path / "want.npz") as want, np.load(tmp_path / "ids.npz") as found:
        assert (want["ids"] == found["ids"]).all() and want["tokenizer"] == found["tokenizer"]
    main(["decompress", file, "--out", str(tmp_path / "png"), "--steps", "1", "--device", "cpu"])
    assert len(list((tmp_path / "png").glob("*.png"))) == 5
    with pytest.raises(SystemExit, match=r"a.ftk: it was compressed with the prior .*this is none"):
        main(["decompress", file, "--prior", "none", "--out", str(tmp_path / "ids.npz")])
    with pytest.raises(SystemExit, match="saved as .ftk"):
        main(["compress", *files, "--out", str(tmp_path / "a.zip")])
    (tmp_path / "bad.ftk").write_bytes(b"FTK\x01" + bytes(40))
    with pytest.raises(
        SystemExit, match="no shipped tokenizer is 0000000000000000: give --weights"
    ):
        main(["decompress", str(tmp_path / "bad.ftk")])
    assert torch.get_default_dtype() == torch.float32
