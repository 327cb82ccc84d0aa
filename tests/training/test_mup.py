"""muP: which parameters depend on the width and how, initialization and learning rates, and that
activations then do not grow with the width."""

import dataclasses
import json
from fnmatch import fnmatch

import pytest
import torch
from conftest import RECIPE, TINY, changed, check_resume, lines, noise_images, on_two_ranks, same
from torch import nn

from minflextok import FlexTok, Prior, PriorConfig
from minflextok.cli.parser import build_parser, main
from minflextok.config import VAEConfig
from minflextok.presets import PRESETS, PRIOR_PRESETS
from minflextok.training.losses import VAEObjective
from minflextok.training.mup import classify, initialize
from minflextok.training.objective import TokenizerObjective
from minflextok.training.optimizers import lr_factor, make_optimizers
from minflextok.training.repa import Repa
from minflextok.training.tokenizer import train_tokenizer

BASE = 64  # the width of TINY
WIDE = changed(enc_dim=128, dec_dim=192)
MUP = dataclasses.replace(RECIPE, mup_base_width=BASE)
# Runs are of smaller models, relative to the width 32.
NARROW = changed(enc_dim=32, dec_dim=32, head_dim=16, enc_depth=1, dec_depth=1, repa_block=0)
SMALL = dataclasses.replace(NARROW, enc_dim=64, dec_dim=96)
SHORT = dataclasses.replace(
    RECIPE, steps=4, eval_every=2, log_every=1, warmup=2, lr=1e-3, mup_base_width=32
)
PRIOR = PriorConfig(50, 6, 5, dim=32, depth=2, head_dim=16)

MATRICES = ("attn.w[qkv]", "attn.wqkv", "*.proj", "mlp.fc[123]", "adaln", "cross.wq")
HIDDEN = [f"*blocks.*.{w}.weight" for w in MATRICES]
KINDS = {  # the first pattern that fits
    "fixed": ["*head.bias", "repa.mlp.4.bias", "text_encoder.*", "null_text"],
    "hidden": [*HIDDEN, "*time_mlp.2.weight", "*head_adaln.weight", "repa.mlp.[02].weight"],
    "input": ["*patch_proj.weight", "*code_proj.weight", "*time_mlp.0.weight", "*cross.wkv.weight"],
    "output": ["*encoder.head.weight", "*decoder.head.weight", "repa.mlp.4.weight"],
    "tied": ["ids.weight", "positions", "first.weight"],
    "vector": ["*.registers", "*register_positions", "*_token", "*.bias"],
}


def run(out, recipe=SHORT, config=SMALL, **options):
    return train_tokenizer(config, recipe, noise_images(), out, "cpu", quiet=True, **options)


def rates(model, recipe):
    """Peak learning rate and weight decay of each parameter, by name."""
    groups = [g for o in make_optimizers(model, recipe) for g in o.param_groups]
    found = {id(p): (g["peak_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters()}


# ---- what depends on the width -------------------------------------------------------------------


def test_every_parameter_of_the_large_models_has_its_kind():
    with torch.device("meta"):
        large = [
            TokenizerObjective(FlexTok(PRESETS["d18-d28"]), Repa(1792, torch.zeros(1024))),
            Prior(PRIOR_PRESETS["ar-49m"]),
            Prior(dataclasses.replace(PRIOR_PRESETS["shapes"], dim=1024)),
        ]
    for model in large:
        found = classify(model, 128)
        for name, _ in model.named_parameters():
            kind, m = found[name]
            assert kind == next(
                k for k, patterns in KINDS.items() if any(fnmatch(name, x) for x in patterns)
            ), name
            grows = kind in ("hidden", "output", "tied")
            width = model.config.dim if isinstance(model, Prior) else 1792
            width = 1152 if name.startswith("tok.encoder.") else width
            assert m == (pytest.approx(width / 128, rel=2e-3) if grows else 1), name


def test_encoder_and_decoder_have_ratios_of_their_own():
    found = classify(FlexTok(WIDE), BASE)
    assert found["encoder.blocks.0.attn.wq.weight"] == ("hidden", 2)
    assert found["decoder.blocks.0.attn.wq.weight"] == ("hidden", 3)
    assert set(classify(FlexTok(changed(dec_dim=128)), BASE).values()) >= {("fixed", 1)}
    encoder = [v for k, v in classify(FlexTok(changed(dec_dim=128)), BASE).items() if "enc" in k]
    assert set(encoder) == {("fixed", 1)}


# ---- initialization and rates --------------------------------------------------------------------


def spread(model, name):
    return model.get_parameter(name).std(correction=0).item()


def built(config, base=0):
    torch.manual_seed(0)
    tok = FlexTok(config)
    return initialize(TokenizerObjective(tok, Repa(config.dec_dim, torch.zeros(24))), base)


def test_weights_at_initialization():
    small, wide, plain = built(TINY), built(WIDE, BASE), built(WIDE)
    factors = {
        **dict.fromkeys(["encoder.patch_proj", "decoder.code_proj", "decoder.time_mlp.0"], 1),
        "encoder.blocks.1.mlp.fc2": 2**-0.5,
        "decoder.blocks.0.attn.wv": 3**-0.5,
        "decoder.time_mlp.2": 3**-0.5,
        "encoder.head": 1 / 2,
    }
    for name, factor in factors.items():
        before, after = (spread(m, f"tok.{name}.weight") for m in (small, wide))
        assert after == pytest.approx(factor * before, rel=0.12), name
    for name, factor in {"mlp.2.weight": 3**-0.5, "mlp.4.weight": 1 / 3, "mlp.0.bias": 1}.items():
        assert spread(wide.repa, name) == pytest.approx(factor * spread(small.repa, name), rel=0.1)
    for name in ("encoder.registers", "decoder.register_positions", "decoder.head.weight"):
        assert torch.equal(wide.tok.get_parameter(name), plain.tok.get_parameter(name))
    assert same(built(TINY, BASE), small)


def test_a_tied_table_is_small_at_the_output_and_as_before_at_the_input():
    torch.manual_seed(0)
    plain = Prior(dataclasses.replace(PRIOR, dim=128))
    torch.manual_seed(0)
    mup = initialize(Prior(dataclasses.replace(PRIOR, dim=128)), 32)
    assert torch.equal(mup.ids.weight, plain.ids.weight / 4)
    for prior in (plain, mup):  # as after training: far above the 1e-5 of the layer norm
        for table in (prior.ids.weight, prior.positions, prior.first.weight):
            table.data *= 50
    ids, classes = torch.randint(50, (3, 5)), torch.arange(3)
    found, wanted = mup.logits(ids, classes), plain.logits(ids, classes) / 4
    assert (found - wanted).abs().max() < 0.005 * wanted.abs().max()


def test_rates_of_adamw_and_muon():
    model = built(WIDE, BASE)
    kinds, plain = classify(model, BASE), rates(model, RECIPE)
    for name, (rate, decay) in rates(model, MUP).items():
        m = kinds[name][1]
        assert (rate, decay) == pytest.approx((plain[name][0] / m, plain[name][1] * m)), name
    muon = dataclasses.replace(MUP, optimizer="muon", muon_adaln=True)
    plain = rates(model, dataclasses.replace(muon, mup_base_width=0))
    for name, (rate, decay) in rates(model, muon).items():
        m = kinds[name][1] ** (0.5 if ".blocks." in name and name.endswith("weight") else 1)
        assert (rate, decay) == pytest.approx((plain[name][0] / m, plain[name][1] * m)), name


# ---- what it is for ------------------------------------------------------------------------------


def changes(width, base, optimizer):
    """How far four steps move the output of the last encoder block, the registers before FSQ, that
    of the last decoder block, and the velocity: root mean squares on a fixed batch."""
    config = changed(enc_dim=width, dec_dim=width, head_dim=16, enc_depth=1, dec_depth=1)
    recipe = dataclasses.replace(
        MUP, mup_base_width=base, lr=0.02, muon_lr=1.0, optimizer=optimizer, weight_decay=0.0
    )
    torch.manual_seed(0)
    tok = initialize(FlexTok(config), base)
    tok.savings = False
    layers = [tok.encoder.blocks[0], tok.encoder.head, tok.decoder.blocks[0], tok.decoder.head]
    outputs: list = []
    for layer in layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    optimizers = make_optimizers(tok, recipe)
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for _ in range(5):
        loss = tok.loss(x, generator=torch.Generator().manual_seed(2))
        loss.backward()
        for o in optimizers:
            for group in o.param_groups:
                group["lr"] = group["peak_lr"]
            o.step()
            o.zero_grad()
    n = len(layers)
    return torch.stack(
        [(a - b).square().mean().sqrt() for a, b in zip(outputs[-n:], outputs[:n], strict=True)]
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_activations_move_alike_at_all_widths(optimizer):
    narrow = changes(32, 0, optimizer)
    standard, mup = (changes(256, base, optimizer) / narrow for base in (0, 32))
    assert 0.6 < mup.min() <= mup.max() < 1.6, mup
    assert standard.max() > 4, standard


# ---- runs ----------------------------------------------------------------------------------------


def teacher(images):
    return torch.cat([images, -images], 1)[:, :, ::2, ::2]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_at_the_base_width_a_run_is_that_without_mup(tmp_path, optimizer):
    mup = dataclasses.replace(SHORT, optimizer=optimizer)
    plain = dataclasses.replace(mup, mup_base_width=0)
    a, b = (
        run(tmp_path / name, recipe, NARROW, teacher=teacher)
        for name, recipe in {"a": plain, "b": mup}.items()
    )
    assert same(a, b)
    for key in ("loss", "grad_norm", "lr", "psnr"):
        assert lines(tmp_path / "a", key) == lines(tmp_path / "b", key)
    assert json.loads((tmp_path / "b/run.json").read_text())["train"]["mup_base_width"] == 32


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    recipe = dataclasses.replace(SHORT, optimizer="muon")
    check_resume(lambda out: run(out, recipe), tmp_path, 3, "psnr", "lr")
    [(_, first), (_, second), *_] = lines(tmp_path / "resumed", "lr")  # of the base width
    assert (first, second) == pytest.approx((5e-4, 1e-3 * lr_factor(1, 1 / 4, recipe)))
    with pytest.raises(ValueError, match="train.mup_base_width=32 there, 16 here"):
        run(tmp_path / "resumed", dataclasses.replace(recipe, mup_base_width=16))


def test_a_run_of_the_version_before_resumes(tmp_path):
    plain = dataclasses.replace(SHORT, mup_base_width=0)
    run(tmp_path, plain)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["train"]["mup_base_width"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    run(tmp_path, plain)


def test_given_weights_stay_as_they_are(tmp_path):
    torch.manual_seed(1)
    given = FlexTok(SMALL)
    given.save_pretrained(tmp_path / "given")
    still = dataclasses.replace(SHORT, steps=1, lr=1e-30, ema=0.0)
    tok = run(tmp_path / "more", still, init=str(tmp_path / "given"))
    for a, b in zip(tok.parameters(), given.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_two_ranks_equal_one_as_copies_and_as_shards(tmp_path):
    one = run(tmp_path / "one")
    script = tmp_path / "two.py"
    script.write_text(f"""
import dataclasses
from conftest import noise_images
from minflextok import TokenizerConfig, TrainConfig
from minflextok.training.runtime import Ranks
from minflextok.training.tokenizer import train_tokenizer
Ranks.close = lambda self: None  # one process group for both runs
for name, fsdp in (("ddp", False), ("fsdp", True)):
    recipe = dataclasses.replace({SHORT!r}, fsdp=fsdp)
    train_tokenizer({SMALL!r}, recipe, noise_images(), {str(tmp_path)!r} + "/" + name, "cpu", True)
""")
    on_two_ranks(script)
    for name in ("ddp", "fsdp"):
        pairs = zip(lines(tmp_path / "one", "loss"), lines(tmp_path / name, "loss"), strict=True)
        assert max(abs(a - b) for (_, a), (_, b) in pairs) < 1e-4
        two = FlexTok.from_pretrained(tmp_path / name)
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


# ---- errors --------------------------------------------------------------------------------------


def test_bad_base_widths_and_other_models_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="mup_base_width=-1: give a number of at least 0"):
        dataclasses.replace(RECIPE, mup_base_width=-1)
    with pytest.raises(ValueError, match="mup_base_width=100: give a multiple of head_dim=16"):
        run(tmp_path, dataclasses.replace(MUP, mup_base_width=100))
    with pytest.raises(ValueError, match="mup_base_width=24: give a multiple of head_dim=16"):
        initialize(Prior(PRIOR), 24)
    vae = VAEObjective(VAEConfig(widths=(8, 8), layers=1, groups=4, perceptual="none"))
    for model in (vae, nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=f"not for a {type(model).__name__}: give mup_base_w"):
            make_optimizers(model, MUP)
    arguments = ["train", "prior", "--preset", "cifar10", "--data", "cifar10-sample"]
    with pytest.raises(SystemExit, match="--mup-base-width 48: give a multiple of head_dim=32"):
        main([*arguments, "--mup-base-width", "48", "--out", str(tmp_path / "prior")])
    with pytest.raises(SystemExit):  # no flag where it has no meaning
        build_parser().parse_args(["train", "vae", "--mup-base-width", "64", "--out", "x"])
    assert "unrecognized arguments: --mup-base-width" in capsys.readouterr().err
