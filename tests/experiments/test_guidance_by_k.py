"""Guidance by number of tokens: the three kinds, the earlier checkpoint, and the choice."""

import json

import pytest
import torch

from minflextok import FlexTok
from minflextok.cli import main as minflextok
from minflextok.experiments import guidance as module

RUN = "cifar10-tiny"


def test_choice_is_the_best_distance_that_costs_little_psnr():
    rows = {
        "1": {"rfid": 9.0, "psnr": 20.0},
        "1.5": {"rfid": 5.0, "psnr": 19.95},
        "2": {"rfid": 3.0, "psnr": 19.8},
    }
    assert module.choose(rows) == "1.5"
    assert module.choose({"1": rows["1"], "2": rows["2"]}) == "1"


@torch.no_grad()
def test_guidance_by_a_worse_condition():
    tok = FlexTok.from_pretrained("shapes")
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(
        0, tok.config.vocab_size, (2, 4), generator=torch.Generator().manual_seed(1)
    )
    plain = tok.decode(ids, 3, noise=noise)
    kinds = module.samplers(tok, tok, 3)
    assert list(kinds) == ["classifier-free", "fewer tokens", "autoguidance"]
    for sample in kinds.values():  # scale 1 is the condition alone
        torch.testing.assert_close(sample(ids, noise, 1.0), plain, atol=1e-5, rtol=0)
    guided = kinds["classifier-free"](ids, noise, 2.0)
    torch.testing.assert_close(guided, tok.decode(ids, 3, guidance=2.0, noise=noise))
    # The model itself is no worse than itself: no guidance. Two tokens are worse than four.
    torch.testing.assert_close(kinds["autoguidance"](ids, noise, 2.0), plain, atol=1e-5, rtol=0)
    assert (kinds["fewer tokens"](ids, noise, 2.0) - plain).abs().max() > 0.01
    half = tok.decode(ids[:, :2], 1, noise=noise)
    twice = 2 * tok.decode(ids, 1, noise=noise) - half  # one step is linear in the velocity
    one = module.samplers(tok, None, 1)["fewer tokens"](ids, noise, 2.0)
    torch.testing.assert_close(one, twice, atol=1e-5, rtol=0)


def test_command_with_an_earlier_checkpoint(tmp_path, capsys):
    run = tmp_path / "run"
    command = f"train tokenizer --preset {RUN} --data cifar10-sample --steps 3 --minutes 0"
    command += " --eval-every 2 --batch-size 4 --val-images 4 --device cpu --quiet --out"
    minflextok([*command.split(), str(run)])
    earlier = run / "checkpoints" / "step_000000002"
    command = "--num-images 4 --batch-size 2 --tokens 1 2 --steps 2 --scales 1 2"
    where = ["--weights", str(run), "--earlier", str(earlier), "--out", str(tmp_path / "g.json")]
    module.main([*command.split(), *where])
    kinds = json.loads((tmp_path / "g.json").read_text())["kinds"]
    assert {kind: list(by_k) for kind, by_k in kinds.items()} == {
        "classifier-free": ["1", "2"],
        "fewer tokens": ["2"],
        "autoguidance": ["1", "2"],
    }
    assert set(kinds["autoguidance"]["1"]["2"]) >= {"rfid", "accuracy", "psnr"}
    table = capsys.readouterr().out
    assert "## autoguidance" in table and "| scale | k = 1 | k = 2 |" in table
    tok = FlexTok.from_pretrained(run)
    before = module.earlier_checkpoint(tok, earlier)
    assert not torch.equal(before.decoder.head.weight, tok.decoder.head.weight)
    with pytest.raises(ValueError, match="--scales: give 1"):
        module.main([*where, "--scales", "2"])
    with pytest.raises(ValueError, match="--tokens 17: .* has 1 to 16"):
        module.main([*where, "--tokens", "17"])
