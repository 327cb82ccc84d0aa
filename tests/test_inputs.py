"""Bad input: one line that names the value and the fix."""

import dataclasses
import json

import pytest
import torch
from conftest import TINY, changed

from minflextok import FlexTok, TokenizerConfig, TrainConfig
from minflextok.config import from_dict
from minflextok.evaluation.fid import bootstrap_frechet
from minflextok.evaluation.metrics import psnr
from minflextok.prior import sample

ids = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    "bad, match",
    [
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), r"\(2, 1, 8, 8\).*give \(B >= 1, 3, 8, 8\)"),
        (torch.zeros(2, 3, 9, 8), "resize or crop"),
        (torch.zeros(2, 3, 16, 16), "resize or crop"),
        (torch.zeros(0, 3, 8, 8), "B >= 1"),
        (torch.full((2, 3, 8, 8), 255.0), r"255.*x / 127.5 - 1"),
        (torch.full((2, 3, 8, 8), -1.5), "-1.5"),
        (torch.full((2, 3, 8, 8), float("nan")), "NaN"),
        (torch.full((2, 3, 8, 8), float("inf")), "infinite"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"uint8.*127.5"),
        ([[0.0]], "list"),
    ],
)
def test_images(tok, bad, match):
    for call in (tok.encode, tok.loss, tok.encode_continuous):
        with pytest.raises(ValueError, match=match):
            call(bad)


def test_images_in_0_1_get_a_warning(tok):
    with pytest.warns(UserWarning, match="x \\* 2 - 1"):
        tok.encode(torch.rand(8, 3, 8, 8))


@pytest.mark.parametrize(
    "bad, match",
    [
        (ids.float(), "float32: give int64"),
        (ids.bool(), "bool"),
        (ids - 1, "-1 to .*0 to 119"),
        (ids + 120, "120.*0 to 119"),
        (ids[:, :0], "k=0: give a whole number from 1 to 6"),
        (torch.zeros(2, 7, dtype=torch.long), "k=7"),
        (ids[0], "1-D int64"),
        (torch.zeros(0, 3, dtype=torch.long), "give a"),
        ([[1, 2]], "list"),
        ([], "list"),
        (None, "NoneType"),
    ],
)
def test_ids(tok, bad, match):
    with pytest.raises(ValueError, match=match):
        tok.decode(bad)
    with pytest.raises(ValueError, match=match):
        tok.velocity(torch.zeros(2, 3, 8, 8), 0.5, bad)


@pytest.mark.parametrize("k", [0, 7, -1, 2.0, True, "2"])
def test_num_tokens(tok, images, k):
    with pytest.raises(ValueError, match=r"num_tokens=.*from 1 to 6"):
        tok.encode(images, k)


def test_decode_options(tok):
    for options, match in [
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"noise": torch.zeros(2, 3, 4, 4)}, "noise has shape"),
        ({"noise": torch.zeros(1, 3, 8, 8)}, "noise for 1 images, ids for 2"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": "high"}, "guidance='high'"),
        ({"noise": torch.full((2, 3, 8, 8), float("nan"))}, "noise holds NaN"),
        ({"guidance": lambda t: float("nan") if t < 0.3 else 1.0}, "guidance=nan at t=0.28"),
    ]:
        with pytest.raises(ValueError, match=match):
            tok.decode(ids, **options)
    with pytest.raises(ValueError, match="ids for 2 images, x_t for 3"):
        tok.velocity(torch.zeros(3, 3, 8, 8), 0.5, ids)
    x, one = torch.zeros(3, 3, 8, 8), torch.zeros(3, 1, dtype=torch.long)
    for t, null, match in [
        (500.0, False, "t=.*500"),
        (0.5, torch.tensor([True]), "null is"),
        (0.5, 0.3, "null is"),
    ]:
        with pytest.raises(ValueError, match=match):
            tok.velocity(x, t, one, null)
    with pytest.raises(ValueError, match="t has 2 values for 3"):
        tok.velocity(torch.zeros(3, 3, 8, 8), torch.zeros(2), torch.zeros(3, 1, dtype=torch.long))


@pytest.mark.parametrize(
    "fields, match",
    [
        ({"patch_size": 3}, "image_size=8 is not a multiple of patch_size=3"),
        ({"enc_dim": 100}, "enc_dim=100"),
        ({"num_registers": 0}, "num_registers=0"),
        ({"fsq_levels": (8, 1)}, r"fsq_levels=\(8, 1\)"),
        ({"fsq_levels": ()}, "fsq_levels"),
        ({"keep_k_mode": "all"}, "'all'"),
        ({"null_prob": 1.5}, "null_prob=1.5"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"fsq_levels": 8}, "fsq_levels=8: give a tuple"),
        ({"enc_dim": 64.0}, "enc_dim=64.0: give a int"),
        ({"num_registers": True}, "num_registers=True"),
        ({"separate_adaln": "no"}, "separate_adaln='no': give a bool"),
        ({"token_std": float("nan")}, "token_std=nan"),
        ({"latent_std": -1.0}, "latent_std=-1"),
        ({"mode_scale": 5.0}, "mode_scale=5"),
    ],
)
def test_configs(fields, match):
    with pytest.raises(ValueError, match=match):
        changed(**fields)


def test_recipes_and_unknown_keys():
    for fields, match in [
        ({"lr": 0.0}, "lr=0"),
        ({"steps": 0}, "steps=0"),
        ({"ema": 1.0}, "ema=1"),
        ({"nested_from": 0.9}, "nested_from=0.9"),
    ]:
        with pytest.raises(ValueError, match=match):
            TrainConfig(**fields)
    with pytest.raises(
        ValueError, match=r"unknown TokenizerConfig key 'num_register'; known: .*num_registers"
    ):
        from_dict(TokenizerConfig, {"num_register": 3})


def test_weights(tok, images, tmp_path):
    tok.save_pretrained(tmp_path / "w")
    again = FlexTok.from_pretrained(tmp_path / "w")
    assert again.config == tok.config and torch.equal(again.encode(images), tok.encode(images))
    file, config = tmp_path / "w/model.safetensors", tmp_path / "w/config.json"
    whole = file.read_bytes()

    def fails(match, kind=ValueError):
        with pytest.raises(kind, match=match) as e:
            FlexTok.from_pretrained(tmp_path / "w")
        assert "\n" not in str(e.value)

    for damaged in (whole[: len(whole) // 2], whole[:5], b"", b"PK\x03\x04 not safetensors at all"):
        file.write_bytes(damaged)
        fails("not a whole safetensors file")
    file.write_bytes(whole)
    values = dataclasses.asdict(TINY)
    for change, match in [
        ({"enc_dim": 128}, "does not fit its config.*the config makes it"),
        ({"dec_depth": 3}, "lacks decoder.blocks.2"),
        ({"dec_depth": 1}, "unknown decoder.blocks.1"),
        ({"bogus": 1}, "unknown TokenizerConfig key 'bogus'"),
    ]:
        config.write_text(json.dumps(values | change))
        fails(match)
    for text in ("{", "[]", '"x"', '{"image_size": "big"}'):
        config.write_text(text)
        fails("config.json")
    config.unlink()
    fails("has no config.json", FileNotFoundError)
    with pytest.raises(FileNotFoundError, match="no weights 'cifar11'.*shipped are"):
        FlexTok.from_pretrained("cifar11")


def test_bfloat16_weights_come_back_as_float32(tok, tmp_path):
    tok.save_pretrained(tmp_path, torch.bfloat16)
    again = FlexTok.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32} and not again.training
    torch.testing.assert_close(again.encoder.registers, tok.encoder.registers, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("nested_prob", [float("nan"), -1, 1e308, "1", True])
def test_nested_prob_is_a_probability(tok, images, nested_prob):
    with pytest.raises(ValueError, match=r"nested_prob=.*: give a probability from 0 to 1"):
        tok.loss(images, nested_prob)


def test_settings_that_were_accepted_in_silence(tok, images, tmp_path):
    x, u = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    tok.save_pretrained(tmp_path)
    for call, match in [
        (lambda: psnr(u, u + 1), "a has dtype torch.uint8"),
        (lambda: psnr(x, x * float("nan")), "b holds NaN"),
        (lambda: bootstrap_frechet(x[:, 0, 0], x[:, 0, 0], resamples=0), "resamples=0"),
        (lambda: tok.velocity(x * float("nan"), 0.5, ids), "x_t holds NaN"),
        (lambda: tok.decode(ids, noise=x + 1e30), "noise holds values from 1e.30"),
        (lambda: tok.decode(ids, noise=x, generator="x"), "generator='x'"),
        (lambda: tok.decode(ids, apg="3"), "apg='3'"),
        (lambda: tok.decode(ids, guidance=10**30), "guidance=1000"),
        (lambda: tok.encode(x.to("meta")), "on meta"),
        (lambda: tok.encode(x.to_sparse()), "sparse"),
        (lambda: FlexTok.from_pretrained(tmp_path, torch.complex64), "dtype=torch.complex64"),
        (lambda: FlexTok.from_pretrained(tmp_path, None), "dtype=None"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()


def test_a_tiny_temperature_takes_the_likeliest_id():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for temperature in (0, 1e-38, 1e-5):
        assert sample(logits, torch.full((1, 3), 0.5), temperature).tolist() == [1]
