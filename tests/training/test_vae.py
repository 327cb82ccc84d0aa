"""Stage 0: what the VAE is trained for, that its training can be trusted, and that a tokenizer works on what it makes."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from conftest import killed_after, lines, same
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl
from torchvision.models import VGG16_Weights, vgg16

from minflextok import FlexTok, TrainConfig
from minflextok.cli.parser import main
from minflextok.config import VAEConfig
from minflextok.data import Images, load_dataset, to_float
from minflextok.evaluation.metrics import psnr
from minflextok.presets import RECIPES, VAE_PRESETS
from minflextok.training.losses import (
    Discriminator,
    VAEObjective,
    adversarial_losses,
    gradient_distance,
    vgg16_distance,
)
from minflextok.training.vae import train_vae
from minflextok.vae import VAE, kl_divergence

SMALL = VAEConfig(
    latent_channels=2, widths=(8, 8), layers=1, groups=4, image_size=24, perceptual="none"
)
GAN = dataclasses.replace(SMALL, adversarial_weight=0.1, adversarial_from=0.5)
RECIPE = TrainConfig(
    steps=6, batch_size=4, warmup=3, lr=2e-3, eval_every=2, log_every=1, val_images=4, bf16=False
)


def data(n=40):
    images = load_dataset("cifar10-sample", "test").images[:n, :, 4:28, 4:28].contiguous()
    return Images("crops", images)


def run(out, config=GAN, recipe=RECIPE, **options):
    return train_vae(config, recipe, options.pop("data", None) or data(), out, "cpu", quiet=True)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return VAE(SMALL).eval()


@pytest.fixture
def images():
    return to_float(data(4).images)


# ---- the terms of the loss -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(-12, 4))
def test_kl_is_that_of_torch_distributions(seed, shift):
    mean, logvar = torch.randn(
        2, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    q = Normal(mean, torch.exp((logvar + shift) / 2))
    want = torch_kl(q, Normal(torch.zeros_like(mean), 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(kl_divergence(mean, logvar + shift), want)


def test_without_a_discriminator_the_loss_is_its_three_terms(images):
    config = dataclasses.replace(
        SMALL, perceptual="gradients", perceptual_weight=0.3, kl_weight=0.01, scaling_factor=3.0
    )
    objective = VAEObjective(config, gradient_distance)
    vae, eps = objective.vae, torch.randn(4, 2, 12, 12)
    mean, logvar = vae.posterior(images)
    fake = vae.decode((mean + torch.exp(logvar / 2) * eps) * 3.0)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
    want = F.l1_loss(fake, images) + 0.3 * gradient_distance(fake, images).mean() + 0.01 * kl
    torch.testing.assert_close(objective(images, eps, torch.zeros(4, dtype=torch.bool)), want)


def test_gradient_distance_sees_edges_alone():
    flat = torch.zeros(2, 3, 16, 16)
    edge = flat.clone()
    edge[1, :, :, 8:] = 0.5
    assert gradient_distance(flat + 0.7, flat).abs().max() < 1e-6
    # one step of 0.5 in every row, among 15, 7 and 3 steps
    assert gradient_distance(edge, flat).tolist() == pytest.approx(
        [0, 0.5 / 15 + 0.5 / 7 + 0.5 / 3]
    )


@pytest.fixture(scope="module")
def vgg_weights():
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in vgg16().state_dict().items() if k.startswith("features.")}
    return {
        k: torch.randn(s) * (2 / s[1:].numel()) ** 0.5 if len(s) == 4 else torch.randn(s) * 0.1
        for k, s in shapes.items()
    }


def test_vgg16_distance_is_lpips_with_all_channels_alike(monkeypatch, vgg_weights, images):
    monkeypatch.setattr(VGG16_Weights, "get_state_dict", lambda self, **_: vgg_weights)
    distance = vgg16_distance()
    net = vgg16(init_weights=False).features
    net.load_state_dict({k.removeprefix("features."): v for k, v in vgg_weights.items()})

    def stages(x):
        x = (x / 2 + 0.5 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        for layer in net:
            if isinstance(layer, nn.MaxPool2d):
                yield x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
            x = x if layer is net[-1] else layer(x)

    other = (images + 0.3 * torch.randn_like(images)).requires_grad_()
    with torch.no_grad():
        want = sum(
            (a - b).square().sum(1).flatten(1).mean(1)
            for a, b in zip(stages(other), stages(images), strict=True)
        )
    found = distance(other, images)
    torch.testing.assert_close(found, want)
    assert distance(images, images).max() == 0 < found.min()
    found.sum().backward()
    assert other.grad.abs().sum() > 0
    objective = VAEObjective(SMALL, distance)
    assert copy.deepcopy(objective).distance is distance and not any(
        "features" in k for k in objective.state_dict()
    )


# ---- the adversarial game --------------------------------------------------------------------------------------------


def test_one_loss_gives_the_gradients_of_two_optimisers(images):
    """Brute force: each player's loss by itself, the other player a constant."""
    torch.manual_seed(0)
    objective = VAEObjective(GAN)
    eps, on = torch.randn(4, 2, 12, 12), torch.ones(4, dtype=torch.bool)
    objective(images, eps, on).backward()

    def reconstruct(vae):
        mean, logvar = vae.posterior(images)
        return vae.decode(mean + torch.exp(logvar / 2) * eps), kl_divergence(mean, logvar).mean()

    vae, judge = (
        copy.deepcopy(objective.vae),
        copy.deepcopy(objective.discriminator).requires_grad_(False),
    )
    vae.zero_grad()
    fake, kl = reconstruct(vae)
    (
        F.l1_loss(fake, images) + GAN.kl_weight * kl - GAN.adversarial_weight * judge(fake).mean()
    ).backward()
    for (name, p), q in zip(objective.vae.named_parameters(), vae.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    without = torch.autograd.grad(
        F.l1_loss(reconstruct(vae)[0], images), vae.decoder.conv_out.weight
    )[0]
    assert (
        vae.decoder.conv_out.weight.grad - without
    ).norm() > 1e-3 * without.norm()  # the judge's word counts

    judge = copy.deepcopy(objective.discriminator)
    judge.zero_grad()
    with torch.no_grad():
        fake, _ = reconstruct(vae)
    loss = 0.5 * (
        torch.clamp(1 - judge(images), min=0).mean() + torch.clamp(1 + judge(fake), min=0).mean()
    )
    loss.backward()
    for (name, p), q in zip(
        objective.discriminator.named_parameters(), judge.named_parameters(), strict=True
    ):
        torch.testing.assert_close(p.grad, q[1].grad, msg=name)


def test_the_discriminator_learns_to_tell_and_scores_images_apart():
    torch.manual_seed(0)
    judge, real = Discriminator(), to_float(data(8).images)
    fake = F.avg_pool2d(real, 3, 1, 1)  # blurred
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    for _ in range(15):
        _, loss = adversarial_losses(judge, real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert judge(real).mean() > judge(fake).mean() + 0.5
    torch.testing.assert_close(judge(real)[2:3], judge(real[2:3]), atol=1e-5, rtol=1e-4)


def test_the_field_of_a_score_is_70_pixels():
    x = torch.zeros(1, 3, 160, 160, requires_grad=True)
    net = nn.Sequential(
        *(m for m in Discriminator() if isinstance(m, nn.Conv2d))
    )  # norms see the whole image
    scores = net(x)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert (rows.max() - rows.min() + 1).item() == 70


# ---- training --------------------------------------------------------------------------------------------------------


def test_it_learns_and_the_export_has_unit_variance(tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=60, lr=1e-2, eval_every=30, flip=False, ema=0.9)
    vae = run(tmp_path, dataclasses.replace(SMALL, perceptual="gradients"), recipe)
    losses, psnrs = [x for _, x in lines(tmp_path, "loss")], [x for _, x in lines(tmp_path, "psnr")]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5]) and psnrs[-1] > psnrs[0] > 8, (losses, psnrs)
    assert lines(tmp_path, "kl")[-1][1] > 0 and len(lines(tmp_path, "channel_std")[-1][1]) == 2
    assert sorted(p.name for p in (tmp_path / "samples").iterdir())[-1] == "step_000060.png"

    loaded = VAE.from_pretrained(tmp_path)
    assert same(vae, loaded) and loaded.config == vae.config and loaded.config.scaling_factor != 1
    held_out = data().at(
        torch.randperm(40, generator=torch.Generator().manual_seed(RECIPE.seed))[:4]
    )
    with torch.no_grad():
        latents = loaded.encode(to_float(held_out))
        back = loaded.decode(latents)
    assert latents.std().item() == pytest.approx(1, abs=1e-4)
    assert psnr(back.clamp(-1, 1), to_float(held_out)).mean().item() == pytest.approx(
        psnrs[-1], abs=1e-3
    )


def test_killed_with_the_adversary_on_it_resumes_bit_for_bit(tmp_path):
    straight = run(tmp_path / "straight")
    with killed_after(5):
        run(tmp_path / "resumed")
    assert same(straight, run(tmp_path / "resumed"))
    for key in ("loss", "grad_norm", "psnr", "kl"):
        assert lines(tmp_path / "straight", key) == lines(tmp_path / "resumed", key)
    losses = [x for _, x in lines(tmp_path / "straight", "loss")]
    assert (
        min(losses[3:]) > max(losses[:3]) + 0.3
    )  # the hinge loss starts at about 1, from half of the run on
    names = torch.load(tmp_path / "straight/checkpoint.pt", weights_only=True)["model"]
    assert any(n.startswith("discriminator.") for n in names) and not hasattr(
        straight, "discriminator"
    )
    again = run(tmp_path / "straight")  # a finished run is exported as it was
    assert same(straight, again) and again.config == straight.config


def test_micro_batches_and_processes_equal_one_whole(tmp_path):
    recipe = dataclasses.replace(RECIPE, eval_every=6)
    whole = run(tmp_path / "whole", recipe=recipe)
    parts = run(tmp_path / "parts", recipe=dataclasses.replace(recipe, micro_batch=3))
    script = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_vae import GAN, run
from minflextok import TrainConfig
run({str(tmp_path / "two")!r}, GAN, {recipe!r})
"""
    (tmp_path / "two.py").write_text(script)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(tmp_path / "two.py"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = VAE.from_pretrained(tmp_path / "two")
    for a, b, c in zip(whole.parameters(), parts.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(a, c, atol=2e-4, rtol=1e-3)


def test_offline_it_trains_on_gradients_and_says_so(tmp_path, monkeypatch, vgg_weights):
    def offline(self, **_):
        raise URLError("no route to host")

    config = dataclasses.replace(SMALL, perceptual="vgg16")
    monkeypatch.setattr(VGG16_Weights, "get_state_dict", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for _ in range(2):  # the second time it finds its own checkpoint
        with pytest.warns(
            UserWarning, match=r"no route to host.*perceptual='gradients'.*checkpoints"
        ) as told:
            vae = run(tmp_path, config)
        assert (
            sum("VGG16" in str(w.message) for w in told) == 1
            and vae.config.perceptual == "gradients"
        )
    assert json.loads((tmp_path / "run.json").read_text())["model"]["perceptual"] == "gradients"
    assert json.loads((tmp_path / "config.json").read_text())["perceptual"] == "gradients"
    monkeypatch.setattr(VGG16_Weights, "get_state_dict", lambda self, **_: vgg_weights)
    with pytest.raises(
        ValueError, match="another run .*perceptual='gradients' there, 'vgg16' here"
    ):
        run(tmp_path, config)


# ---- what users give -------------------------------------------------------------------------------------------------

ANY = torch.zeros(2, 3, 24, 24)


@pytest.mark.parametrize(
    "bad, match",
    [
        (ANY[0], r"shape \(3, 24, 24\)"),
        (ANY[:, :1], r"give \(B >= 1, 3, H, W\) with H and W multiples of 2 \(resize"),
        (ANY[..., :-1], r"\(2, 3, 24, 23\).*multiples of 2"),
        (ANY[:0], "B >= 1"),
        (ANY[..., :0], "multiples of 2"),
        (ANY.to(torch.uint8), r"uint8.*127.5"),
        ("photo.png", "images is str"),
        (ANY + 255, r"255.*x / 127.5 - 1"),
        (ANY - 1.5, "-1.5"),
        (ANY + float("nan"), "NaN"),
    ],
)
def test_images(vae, bad, match):
    with pytest.raises(ValueError, match=match):
        vae.encode(bad)
    if "multiples" in match or "shape" in match or "float" in match:
        with pytest.raises(ValueError, match=match):
            vae.posterior(bad)


@pytest.mark.parametrize(
    "bad, match",
    [
        (ANY, r"latents has shape \(2, 3, 24, 24\): give \(B >= 1, 2, H, W\)"),
        (ANY[:, :2].long(), "latents is torch.int64"),
        (ANY[:0, :2], "B >= 1"),
    ],
)
def test_latents(vae, bad, match):
    with pytest.raises(ValueError, match=match):
        vae.decode(bad)


def test_any_size_and_float_type_goes_through(vae):
    assert vae.decode(vae.encode(torch.zeros(1, 3, 32, 16, dtype=torch.float64))).shape == (
        1,
        3,
        32,
        16,
    )
    with pytest.warns(UserWarning, match="x \\* 2 - 1"):
        vae.encode(torch.rand(8, 3, 8, 8))
    draws = [
        vae.encode(ANY, sample=True, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    "change, match",
    [
        ({"perceptual": "lpips"}, "'vgg16', 'gradients' or 'none'"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0"),
        ({"adversarial_from": 2.0}, "share from 0 to 1"),
        ({"image_size": 25}, "image_size=25 is not a multiple of 2"),
        ({"image_size": 8, "perceptual": "vgg16"}, "'vgg16' needs images of at least 16"),
        ({"image_size": 4, "perceptual": "gradients"}, "at least 8"),
        (
            {"image_size": 16, "adversarial_weight": 1.0},
            "adversarial_weight=1.0 needs images of at least 24 pixels",
        ),
    ],
)
def test_settings(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    "size, change",
    [
        (8, {"perceptual": "gradients"}),
        (16, {"perceptual": "vgg16"}),
        (24, {"adversarial_weight": 1.0}),
    ],
)
def test_the_smallest_images_that_settings_allow(monkeypatch, vgg_weights, size, change):
    monkeypatch.setattr(VGG16_Weights, "get_state_dict", lambda self, **_: vgg_weights)
    config = dataclasses.replace(SMALL, image_size=size, **change)
    distance = {"gradients": gradient_distance, "vgg16": vgg16_distance()}.get(config.perceptual)
    loss = VAEObjective(config, distance)(
        torch.zeros(1, 3, size, size),
        torch.zeros(1, 2, size // 2, size // 2),
        torch.ones(1, dtype=torch.bool),
    )
    assert loss.isfinite()


def test_images_of_another_size_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"crops gives \(3, 24, 24\) images, image_size=32 says otherwise"
    ):
        run(tmp_path, dataclasses.replace(SMALL, image_size=32))


# ---- presets, and the way to a tokenizer -----------------------------------------------------------------------------


def test_presets():
    with torch.device("meta"):
        assert sum(p.numel() for p in VAE(VAE_PRESETS["f8"]).parameters()) == 83_821_011
        for name, config in VAE_PRESETS.items():
            assert VAE(config).config.downscale == int(name[1]) and name in RECIPES


def test_help_leaves_out_what_only_a_tokenizer_needs(capsys):
    with pytest.raises(SystemExit):
        main(["train", "vae", "--help"])
    out = capsys.readouterr().out
    assert "--nested-from" not in out and "--lr" in out and "adversarial_weight" in out


def test_from_nothing_to_reconstructions_through_latents(tmp_path, capsys):
    steps = ["--steps", "2", "--batch-size", "4", "--val-images", "8", "--device", "cpu"]
    photo = tmp_path / "photo.png"
    Image.fromarray(load_dataset("cifar10-sample", "test").images[0].permute(1, 2, 0).numpy()).save(
        photo
    )
    main(
        [
            "train",
            "vae",
            "--preset",
            "f2-small",
            "--data",
            "cifar10-sample",
            "--out",
            str(tmp_path / "vae"),
            *steps,
            "--model",
            "widths=[8,8]",
            "--model",
            "groups=4",
        ]
    )
    main(
        [
            "train",
            "tokenizer",
            "--preset",
            "cifar10-tiny",
            "--vae",
            str(tmp_path / "vae"),
            "--data",
            "cifar10-sample",
            "--out",
            str(tmp_path / "tok"),
            *steps,
            "--model",
            "in_channels=4",
            "--model",
            "image_size=16",
            "--model",
            "enc_depth=1",
            "--model",
            "dec_depth=1",
        ]
    )
    assert "one-step PSNR" in capsys.readouterr().out
    main(
        [
            "reconstruct",
            str(photo),
            "--weights",
            str(tmp_path / "tok"),
            "--steps",
            "2",
            "--tokens",
            "4",
            "--out",
            str(tmp_path / "r.png"),
        ]
    )
    assert (
        Image.open(tmp_path / "r.png").size[0] > 50 and "1 images, 32x32" in capsys.readouterr().out
    )
    tok = FlexTok.from_pretrained(tmp_path / "tok")
    assert same(tok.vae, VAE.from_pretrained(tmp_path / "vae"))
    assert (
        tok.vae.config.scaling_factor
        == VAE.from_pretrained(tmp_path / "vae").config.scaling_factor
        != 1
    )
