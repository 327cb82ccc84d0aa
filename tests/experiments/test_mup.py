"""The coordinate check and the transfer of learning rates: measured once, drawn again."""

import json
from functools import partial

from minflextok.experiments import mup


def test_it_measures_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(mup, "IMAGES", 64)
    monkeypatch.setattr(mup, "coordinates", partial(mup.coordinates, steps=2, seeds=1))
    arguments = ["--widths", "32", "64", "--transfer-widths", "32", "--steps", "1"]
    mup.main([*arguments, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "coordinates.json").read_text())
    for model, layers in mup.LAYERS.items():
        standard, mine = found[model]["standard"], found[model]["muP"]
        assert list(standard) == ["32", "64"] and standard["32"] == mine["32"]
        assert standard["64"] != mine["64"]
        for layer in layers:
            assert len(mine["64"][layer]) == 3 and mine["64"][layer][0] != mine["64"][layer][2]
    found = json.loads((tmp_path / "transfer.json").read_text())["tokenizer"]
    assert found["standard"]["32"] == found["muP"]["32"] and len(found["muP"]["32"]) == 8
    pictures = [tmp_path / f"{name}.png" for name in ("coordinates", "transfer")]
    before = [p.read_bytes() for p in pictures]
    monkeypatch.setattr(mup, "train", None)
    mup.main([*arguments, "--out", str(tmp_path)])
    assert [p.read_bytes() for p in pictures] == before
