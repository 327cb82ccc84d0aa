"""The planner: what it counts against what PyTorch counts and keeps, and what it refuses."""

import dataclasses
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, changed, randomised
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minflextok import FlexTok, Prior, PriorConfig, TokenizerConfig, TrainConfig
from minflextok.cli.parser import main
from minflextok.config import VAEConfig
from minflextok.experiments import footprint
from minflextok.experiments import plan as planner
from minflextok.experiments.flops import (
    group_shares,
    keep_k_choices,
    prior_training_flops,
    tokenizer_training_flops,
)
from minflextok.experiments.plan import STAGES, Plan, check_fits, plan, report
from minflextok.nested_dropout import sample_keep_k
from minflextok.training.losses import VAEObjective, gradient_distance
from minflextok.training.objective import TokenizerObjective
from minflextok.training.optimizers import make_optimizers

pytestmark = pytest.mark.skipif(
    not footprint.works() and torch.__version__.startswith("2.9."),
    reason="torch 2.9 has no fake tensors of a GPU without one",
)

PRIOR = PriorConfig(vocab_size=50, num_tokens=6, num_classes=3, dim=64, depth=2)
TEXT_PRIOR = dataclasses.replace(
    PRIOR, num_classes=0, text="bytes", text_dim=64, text_length=5, dropout=0.1
)
SMALL_VAE = VAEConfig(
    latent_channels=4,
    widths=(16, 32),
    layers=1,
    groups=8,
    image_size=32,
    perceptual="gradients",
    adversarial_weight=0.1,
)


# ---- operations ----------------------------------------------------------------------------------


def counted(loss) -> int:
    """Operations of a forward and a backward pass, as PyTorch counts them."""
    # The math kernel, because the counter overlooks the fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("savings", [True, False])
@pytest.mark.parametrize("nested_prob", [0.0, 1.0])
def test_operations_of_a_tokenizer_step(savings, nested_prob):
    c = changed(null_prob=0.0)
    objective = TokenizerObjective(randomised(c))
    objective.tok.savings = savings
    keep_k = torch.tensor([1, 2, 4, 6] if nested_prob else [6, 6, 6, 6])  # each choice once
    x, t = torch.zeros(4, 3, 8, 8), torch.full((4,), 0.5)
    found = counted(lambda: objective(x, x, t, keep_k, torch.zeros(4, dtype=torch.bool)))
    assert 4 * tokenizer_training_flops(c, nested_prob, savings) == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("c", [PRIOR, TEXT_PRIOR], ids=["classes", "text"])
def test_operations_of_a_prior_step(c):
    prior, ids = Prior(c), torch.zeros(2, 6, dtype=torch.long)
    labels = ["seven", "three"] if c.text else torch.zeros(2, dtype=torch.long)
    found = counted(lambda: prior.loss(ids, labels))
    assert 2 * prior_training_flops(c) == pytest.approx(found, rel=0.01)


def test_operations_of_a_vae_step():
    objective = VAEObjective(SMALL_VAE, gradient_distance)
    x, eps = torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 16, 16)
    found = counted(lambda: objective(x, eps, torch.ones(1, dtype=torch.bool)))
    assert footprint.vae_training_flops(SMALL_VAE) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("mode", ["uniform", "pow2", "uniform_pow2"])
def test_shares_of_groups_are_those_of_the_draws(mode):
    drawn = sample_keep_k(20_000, 6, mode, torch.Generator().manual_seed(0))
    choices = keep_k_choices(mode, 6)
    for k in range(1, 7):
        expected = (choices == k).double().mean().item()
        assert (drawn == k).double().mean().item() == pytest.approx(expected, abs=0.02)
    shares = group_shares(changed(keep_k_mode=mode), 0.5)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[6] > 0.45  # without nested dropout, all six registers are kept


# ---- memory --------------------------------------------------------------------------------------

# More than 512 keys: a CPU uses fused attention too, which keeps no attention matrix.
LONG = TokenizerConfig(
    image_size=46, in_channels=4, enc_dim=64, enc_depth=3, dec_dim=128, dec_depth=4, num_registers=8
)
LONG_PRIOR = dataclasses.replace(PRIOR, num_tokens=520, depth=3, vocab_size=300)


def tokenizer_pass(B: int):
    objective, x = TokenizerObjective(FlexTok(LONG)), torch.zeros(B, 4, 46, 46)
    k, null = torch.full((B,), 8), torch.zeros(B, dtype=torch.bool)
    return objective, lambda: objective(x, x, torch.zeros(B), k, null)


def prior_pass(B: int):
    prior, ids = Prior(LONG_PRIOR), torch.zeros(B, 520, dtype=torch.long)
    return prior, lambda: prior.loss(ids, ids[:, 0])


def kept_bytes(model: nn.Module, forward) -> int:
    """Bytes of all storages that autograd keeps beside the parameters, in bfloat16 autocast."""
    kept, own = {}, {p.data_ptr() for p in model.parameters()}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast("cpu", torch.bfloat16),
    ):
        forward()
    return sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in own)


@pytest.mark.parametrize(
    "c, make", [(LONG, tokenizer_pass), (LONG_PRIOR, prior_pass)], ids=["tokenizer", "prior"]
)
def test_activations_are_what_autograd_keeps(c, make):
    one, two = (kept_bytes(*make(B)) for B in (1, 2))
    found = footprint.footprint(c)
    assert found.image == pytest.approx(two - one, rel=0.15)
    assert found.weights == pytest.approx(2 * one - two, rel=0.15)
    assert found.checkpointed < found.image


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_is_what_the_optimizer_holds(optimizer):
    recipe = TrainConfig(optimizer=optimizer, batch_size=2)
    model = TokenizerObjective(FlexTok(TINY))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    state = 0
    for o in make_optimizers(model, recipe):
        o.step()
        tensors = (x for s in o.state.values() for x in s.values() if x.numel() > 1)
        state += sum(x.nbytes for x in tensors)
    memory = Plan(TINY, recipe, gpus=1).option(False, False).memory()
    assert memory[f"optimizer ({optimizer})"] == pytest.approx(state, rel=0.001)
    weights = sum(p.nbytes for p in model.parameters())
    assert memory["weights"] == memory["gradients"] == memory["averaged weights"] == weights


# ---- before a run --------------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    """Neither the VAE nor the data exists."""
    monkeypatch.setattr(planner, "memory_of", lambda device: 9e9)
    command = ["train", "tokenizer", "--preset", "d18-d28", "--out", str(tmp_path / "x")]
    match = r"d18-d28 does not fit: weights, .* take 49.1 GB, .* 9.0 GB, .* and --fsdp, or a small"
    with pytest.raises(SystemExit, match=match):
        main([*command, "--vae", "none", "--data", "none"])
    with pytest.raises(SystemExit, match="ar-1.33b does not fit"):
        main([command[0], "prior", "--preset", "ar-1.33b", "--tokenizer", "none", *command[-2:]])
    with pytest.raises(SystemExit, match="f8 does not fit") as e:
        monkeypatch.setattr(planner, "memory_of", lambda device: 1e9)
        main(["train", "vae", "--preset", "f8", "--data", "none", *command[-2:]])
    assert "fsdp" not in str(e.value) and not (tmp_path / "x").exists()


def test_only_what_certainly_does_not_fit_is_refused(monkeypatch):
    """The state is the bound: what needs activations on top of it may still start."""
    model, recipe = STAGES["tokenizer"]["d18-d28"].model, TrainConfig(batch_size=64)
    state = 20 * 2_456_308_166
    monkeypatch.setattr(planner, "memory_of", lambda device: state)
    check_fits(model, recipe, "cpu", 1, "d18-d28")
    # At an evaluation: no gradients, and the average whole.
    monkeypatch.setattr(planner, "memory_of", lambda device: state * (16 / 8 + 4) / 20)
    check_fits(model, dataclasses.replace(recipe, fsdp=True), "cpu", 8, "d18-d28")
    with pytest.raises(ValueError, match="d18-d28 does not fit"):
        check_fits(model, recipe, "cpu", 8, "d18-d28")  # DDP: whole on each rank
    with pytest.raises(ValueError, match="a share of each of 7 ranks.*Give more GPUs"):
        check_fits(model, dataclasses.replace(recipe, fsdp=True), "cpu", 7, "d18-d28")
    monkeypatch.undo()
    check_fits(TINY, recipe, "cpu", 1, "tiny")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/meminfo")
def test_the_memory_of_this_machine_is_known(monkeypatch):
    import resource

    free = planner.memory_of("cpu")
    assert 1e8 < free < math.inf
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**7, 10**7))
    assert planner.memory_of("cpu") == 10**7
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda d: SimpleNamespace(total_memory=24e9)
    )
    assert planner.memory_of("cuda") == 24e9
    assert planner.memory_of("banana") == math.inf  # an error of its own, later


# ---- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage, preset", [(s, name) for s in STAGES for name in STAGES[s]])
def test_all_recipes_fit_as_written_on_8_gpus_of_80_gb(stage, preset):
    option = plan(preset, stage, gpu="a100-80", epochs=1).as_written()
    assert option.fits, f"{preset}: {option.memory()}"


def test_a_plan_of_the_largest_tokenizer(capsys):
    main(["plan", "--preset", "d18-d28", "--epochs", "100"])
    out = capsys.readouterr().out
    for part in ("62,557 steps", "2,456.3 M", "FSDP2, checkpointing", "from cached latents"):
        assert part in out
    p = plan("d18-d28", epochs=100)
    assert p.chosen.fits and p.chosen.flags in out
    assert p.costs.flops == pytest.approx(2748e9, rel=0.02)  # measured with drawn batches
    assert p.costs.flops_vae == pytest.approx(273e9, rel=0.01)
    ddp, fsdp = p.option(False, False, 4), p.option(True, False, 4)
    assert fsdp.flops > 1.5 * ddp.flops  # without the exact savings
    assert fsdp.gb < ddp.gb / 2 and fsdp.communication_seconds > ddp.communication_seconds


def test_what_checkpointing_and_the_vae_cost():
    p = plan("d12-d12", gpus=2)
    plain, checkpointed = (p.option(False, kind) for kind in (False, True))
    assert checkpointed.micro_batch > plain.micro_batch
    assert checkpointed.compute_seconds() == pytest.approx(plain.compute_seconds() * 4 / 3)
    share = plain.compute_seconds(vae=True) / plain.compute_seconds() - 1
    assert share == pytest.approx(0.78, abs=0.02)  # the VAE on the fly adds this much


def test_the_whole_average_of_an_evaluation_counts():
    """On many GPUs it is larger than what a step of few images needs."""
    p = plan("d18-d28", gpus=512, epochs=1)
    o, size = p.option(True, True, 4), p.costs.parameters.total
    assert o.gb == o.evaluation_gb == pytest.approx((16 / 512 + 4) * size / 1e9)
    assert sum(o.memory().values()) < 0.5e9 * o.gb
    few = plan("d18-d28", epochs=1).option(True, False)
    assert few.gb == sum(few.memory().values()) / 1e9 > few.evaluation_gb
    ddp = p.option(False, True, 4)
    assert ddp.evaluation_gb == pytest.approx(16 * size / 1e9) and ddp.gb > ddp.evaluation_gb


def test_many_gpus_wait_for_each_other():
    few, many = (plan("d18-d28", gpus=n).option(False, False) for n in (8, 512))
    assert few.step_seconds() < 1.02 * few.compute_seconds()
    assert many.step_seconds() > 1.2 * many.compute_seconds()
    assert many.images_per_second() < 64 * few.images_per_second()


def test_muon_is_not_sharded():
    assert not any(o.fsdp for o in plan("d12-d12", optimizer="muon").options)


def test_small_models_are_said_to_be_bound_by_launches():
    text = report(plan("shapes", gpus=1, gpu="4090"))
    assert "lower bounds" in text and "one GPU" in text and "FSDP" not in text


@pytest.mark.parametrize(
    "args, match",
    [
        (["--preset", "d1-d1"], "--preset 'd1-d1': give one of tokenizer: shapes"),
        (["--preset", "f8", "--stage", "prior"], "--preset 'f8': give one of prior: cifar10-tiny"),
        (["--preset", "shapes", "--gpu", "b3000"], "--gpu 'b3000': give one of h100"),
        (["--preset", "shapes", "--gpus", "0"], "--gpus 0: give at least 1"),
        (["--preset", "shapes", "--images", "0"], "--images 0: give at least 1"),
        (["--preset", "shapes", "--gpus", "7"], "--batch-size 64 is not a multiple of --gpus 7"),
        (["--preset", "shapes", "--utilization", "40"], "--utilization 40.0: give a share"),
        (["--preset", "shapes", "--network", "0"], "--network 0.0: give a positive number"),
        (["--preset", "shapes", "--epochs", "-1"], "--epochs -1.0: give a positive number"),
        (["--preset", "cifar10-tiny"], "trains for minutes: give --epochs, such as"),
        (
            ["--preset", "d18-d28", "--gpus", "1", "--gpu", "4090"],
            "d18-d28 does not fit on --gpus 1 of 24 GB: one GPU, checkpointing with",
        ),
    ],
)
def test_errors(args, match, capsys):
    with pytest.raises(SystemExit) as e:
        main(["plan", *args])
    assert match in str(e.value.code)
