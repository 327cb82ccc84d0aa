"""Probes: what they find, what they never see, and the command."""

import json
import sys

import pytest
import torch
from conftest import TINY, changed, randomised

from minflextok.data import load_dataset, to_float
from minflextok.experiments.baselines import Grid
from minflextok.experiments.representations import (
    encode_all,
    encoder_outputs,
    load_splits,
    pooled_pixels,
)
from minflextok.presets import PRESETS

pytest.importorskip("sklearn")
from minflextok.experiments.probes import main
from minflextok.experiments.probing import PROBES, Data, attentive_probe, linear_probe


def separable(n, seed, noise=0.3, k=3, F=4):
    """Vectors (n, k, F) whose class, of 4, shows in the second vector."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=g)
    x = noise * torch.randn(n, k, F, generator=g)
    x[torch.arange(n), 1, y] += 2
    return Data(x, y)


def shuffled(data, seed):
    order = torch.randperm(len(data.y), generator=torch.Generator().manual_seed(seed))
    return Data(data.x, data.y[order])


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_classes_that_can_be_separated_are_found_and_shuffled_ones_are_not(probe):
    train, val, test = (separable(n, i) for i, n in enumerate((400, 200, 400)))
    found = probe(train, val, test).results()
    assert found["accuracy"]["mean"] > 0.98 and found["loss bits"]["mean"] < 0.7
    chance = probe(shuffled(train, 0), shuffled(val, 1), shuffled(test, 2)).results()["accuracy"]
    assert 0.15 < chance["mean"] < 0.35 and chance["ci95"][0] < 0.25 < chance["ci95"][1]


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_nothing_is_fitted_to_test_images_or_validation_images(probe):
    train, val, test = (separable(n, i, noise=2.0) for i, n in enumerate((200, 100, 100)))
    wrong = Data(test.x + 5, (test.y + 1) % 4)
    found, other = probe(train, val, test), probe(train, val, wrong)
    assert found.chosen == other.chosen and found.validation == other.validation
    assert not torch.equal(found.correct, other.correct)
    assert same_weights(found.model, other.model)
    far = Data(val.x * 100 + 7, val.y)  # validation images choose, but do not fit
    fixed = {"epochs": 1} if probe is attentive_probe else {"strengths": (0.1,)}
    assert same_weights(
        probe(train, val, test, **fixed).model, probe(train, far, test, **fixed).model
    )


def same_weights(a, b):
    if isinstance(a, torch.nn.Module):
        pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
        return all(torch.equal(x, y) for x, y in pairs)
    fitted = [(m[0][0].mean_, m[0][0].scale_, m[1].coef_) for m in (a, b)]
    return all((x == y).all() for x, y in zip(*fitted, strict=True))


def test_the_better_regularization_on_validation_images_is_chosen():
    train, val = separable(40, 0, noise=1.5), separable(400, 1, noise=1.5)
    found = linear_probe(train, val, val)
    alone = {C: linear_probe(train, val, val, (C,)).losses.mean() for C in (1e-4, 1e-2, 1.0)}
    assert found.losses.mean() <= min(alone.values())


def test_a_class_without_a_training_image_is_never_predicted():
    train, val, test = (separable(n, i) for i, n in enumerate((200, 100, 100)))
    seen = train.y != 2
    for probe in PROBES.values():
        found = probe(Data(train.x[seen], train.y[seen]), val, test)
        assert not found.correct[test.y == 2].any()
        assert found.correct[test.y != 2].double().mean() > 0.8


# ---- vectors -------------------------------------------------------------------------------------


def test_outputs_of_the_encoder_are_those_that_its_head_reads(images):
    tok = randomised()
    patches, registers = encoder_outputs(tok.encoder, images)
    torch.testing.assert_close(tok.encoder.head(registers), tok.encode_continuous(images))
    other = randomised()
    other.encoder.registers.data.normal_()
    torch.testing.assert_close(encoder_outputs(other.encoder, images)[0], patches)
    grid = Grid(changed(num_registers=16)).eval()
    outputs, again = encoder_outputs(grid.encoder, images)
    assert torch.equal(outputs, again)
    torch.testing.assert_close(grid.encoder.head(outputs), grid.encode_continuous(images))


def test_all_vectors_of_images(images):
    tok, pixels = randomised(), torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    found = encode_all(tok, pixels, batch_size=2)
    assert torch.equal(found.ids, tok.encode(to_float(pixels)))
    assert torch.equal(found.quantized, tok.fsq.ids_to_codes(found.ids))
    assert found.patches.shape == (5, 16, 64) and found.registers.shape == (5, 6, 64)


def test_averaged_pixels_have_at_least_so_many_values():
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for values in (4, 8, 16, 64, 128):
        found = pooled_pixels(pixels, values)
        assert values <= found.shape[1] < values + 24
    mean = to_float(pixels).mean((2, 3))
    torch.testing.assert_close(pooled_pixels(pixels, 3), mean)


def test_splits_are_disjoint_and_the_right_size(two_colors):
    train, val, test = load_splits(two_colors, 8, 30, 20, 10)
    assert (len(train), len(val), len(test)) == (30, 20, 10)
    rows = [x.flatten(1).unique(dim=0) for x in (train.images, val.images, test.images)]
    together = torch.cat([*rows[:2]]).unique(dim=0)
    assert len(together) == len(rows[0]) + len(rows[1])
    assert train.labels.unique().tolist() == val.labels.unique().tolist() == [0, 1]
    everything = load_dataset(two_colors, "train").images.flatten(1)
    assert len(torch.cat([everything, together]).unique(dim=0)) == len(everything)
    with pytest.raises(ValueError, match="has 60 train images, 61 are asked for"):
        load_splits(two_colors, 8, 51, 10, 10)


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_trains_what_it_compares_and_stores_what_it_finds(
    tmp_path, two_colors, monkeypatch, capsys
):
    randomised().save_pretrained(tmp_path / "tiny")
    monkeypatch.setitem(PRESETS, "cifar10-tiny", TINY)
    sizes = ["--train-images", "30", "--val-images", "20", "--test-images", "20", "--tokens", "1"]
    training = ["--systems", "titok-4", "--minutes", "0.001", "--runs", str(tmp_path / "runs")]
    where = ["--weights", str(tmp_path / "tiny"), "--out", str(tmp_path / "out")]
    main([*sizes, *training, *where, "--data", two_colors])
    results = json.loads((tmp_path / "out/tiny.json").read_text())
    assert list(results["tokenizers"]) == [str(tmp_path / "tiny"), "untrained", "titok-4"]
    titok = results["tokenizers"]["titok-4"]
    assert titok["images_seen"] >= 32 and list(titok["tokens"]) == ["1"]
    assert results["pixels"]["averaged"]["1"]["values"] == 3
    assert results["pixels"]["all"]["accuracy"]["mean"] == 1
    assert "| titok-4 | 1 | " in capsys.readouterr().out
    assert (tmp_path / "out/tiny.png").stat().st_size > 10_000


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"pip install 'minflextok\[probes\]'"):
        main(["--systems"])


def test_help(capsys):
    with pytest.raises(SystemExit) as e:
        main(["--help"])
    assert e.value.code == 0 and "--train-images" in capsys.readouterr().out
