"""Training of the VAE: the terms of its loss, the adversarial losses, and the training task."""

import copy
import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import check_resume, lines, newest, on_two_ranks, same
from PIL import Image
from torch import nn

from minflextok import FlexTok, TrainConfig
from minflextok.cli.parser import main
from minflextok.config import VAEConfig
from minflextok.data import Images, load_dataset, to_float
from minflextok.evaluation.metrics import psnr
from minflextok.training.checkpoints import names_in
from minflextok.training.losses import (
    Discriminator,
    VAEObjective,
    adversarial_losses,
    gradient_distance,
    lpips_distance,
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


def run(out, config=GAN, recipe=RECIPE):
    return train_vae(config, recipe, data(), out, "cpu", quiet=True)


@pytest.fixture
def images():
    return to_float(data(4).images)


# ---- the terms of the loss -----------------------------------------------------------------------


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


def test_gradient_distance_depends_on_edges_alone():
    flat = torch.zeros(2, 3, 16, 16)
    edge = flat.clone()
    edge[1, :, :, 8:] = 0.5
    assert gradient_distance(flat + 0.7, flat).abs().max() < 1e-6
    # one step of 0.5 in every row, among 15, 7 and 3 steps
    assert gradient_distance(edge, flat).tolist() == pytest.approx(
        [0, 0.5 / 15 + 0.5 / 7 + 0.5 / 3]
    )


class FakeLPIPS(nn.Module):
    """A stand-in for lpips.LPIPS, whose weights are a download of 528 MB."""

    def __init__(self, net, verbose):
        super().__init__()
        assert net == "vgg"
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, a, b):
        return self.scale * (a - b).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def lpips_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=FakeLPIPS))


def test_lpips_is_that_of_its_package(lpips_package, images):
    distance = lpips_distance()
    other = (images + 0.3 * torch.randn_like(images)).requires_grad_()
    found = distance(other, images)
    torch.testing.assert_close(found, 2 * (other - images).square().mean((1, 2, 3)))
    found.sum().backward()
    assert other.grad.abs().sum() > 0


def test_checkpoints_do_not_hold_the_network_of_the_distance(lpips_package):
    distance = lpips_distance()
    objective = VAEObjective(SMALL, distance)
    assert copy.deepcopy(objective).distance is distance
    assert set(objective.state_dict()) == {f"vae.{name}" for name in objective.vae.state_dict()}


def test_lpips_of_the_package_itself(images):
    """Identical images have distance 0, and others do not, where the package and its weights are at
    hand."""
    pytest.importorskip("lpips")
    try:
        distance = lpips_distance()
    except OSError:
        pytest.skip("no weights of VGG16")
    assert distance(images, images).abs().max() < 1e-6 < distance(-images, images).min()


# ---- the adversarial game ------------------------------------------------------------------------


def test_one_loss_gives_the_gradients_of_two_optimizers(images):
    """Brute force: the loss of each network by itself, with the other network as a constant."""
    torch.manual_seed(0)
    objective = VAEObjective(GAN)
    eps, on = torch.randn(4, 2, 12, 12), torch.ones(4, dtype=torch.bool)
    objective(images, eps, on).backward()

    def reconstruct(vae):
        mean, logvar = vae.posterior(images)
        return vae.decode(mean + torch.exp(logvar / 2) * eps), kl_divergence(mean, logvar).mean()

    vae, discriminator = (
        copy.deepcopy(objective.vae),
        copy.deepcopy(objective.discriminator).requires_grad_(False),
    )
    vae.zero_grad()
    fake, kl = reconstruct(vae)
    (
        F.l1_loss(fake, images)
        + GAN.kl_weight * kl
        - GAN.adversarial_weight * discriminator(fake).mean()
    ).backward()
    for (name, p), q in zip(objective.vae.named_parameters(), vae.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    without = torch.autograd.grad(
        F.l1_loss(reconstruct(vae)[0], images), vae.decoder.conv_out.weight
    )[0]
    assert (
        vae.decoder.conv_out.weight.grad - without
    ).norm() > 1e-3 * without.norm()  # the adversarial term matters

    discriminator = copy.deepcopy(objective.discriminator)
    discriminator.zero_grad()
    with torch.no_grad():
        fake, _ = reconstruct(vae)
    loss = 0.5 * (
        torch.clamp(1 - discriminator(images), min=0).mean()
        + torch.clamp(1 + discriminator(fake), min=0).mean()
    )
    loss.backward()
    for (name, p), q in zip(
        objective.discriminator.named_parameters(), discriminator.named_parameters(), strict=True
    ):
        torch.testing.assert_close(p.grad, q[1].grad, msg=name)


def test_the_discriminator_learns_and_scores_images_independently():
    torch.manual_seed(0)
    discriminator, real = Discriminator(), to_float(data(8).images)
    fake = F.avg_pool2d(real, 3, 1, 1)  # blurred
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for _ in range(15):
        _, loss = adversarial_losses(discriminator, real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert discriminator(real).mean() > discriminator(fake).mean() + 0.5
    torch.testing.assert_close(
        discriminator(real)[2:3], discriminator(real[2:3]), atol=1e-5, rtol=1e-4
    )


def test_the_field_of_a_score_is_70_pixels():
    x = torch.zeros(1, 3, 160, 160, requires_grad=True)
    net = nn.Sequential(
        *(m for m in Discriminator() if isinstance(m, nn.Conv2d))
    )  # norms see the whole image
    scores = net(x)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert (rows.max() - rows.min() + 1).item() == 70


# ---- training ------------------------------------------------------------------------------------


def test_it_learns_and_the_export_has_unit_variance(tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=60, lr=1e-2, eval_every=30, flip=False, ema=0.9)
    vae = run(tmp_path, dataclasses.replace(SMALL, perceptual="gradients"), recipe)
    losses, psnrs = [x for _, x in lines(tmp_path, "loss")], [x for _, x in lines(tmp_path, "psnr")]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5]) and psnrs[-1] > psnrs[0] > 8, (losses, psnrs)
    assert lines(tmp_path, "kl")[-1][1] > 0 and len(lines(tmp_path, "channel_std")[-1][1]) == 2
    assert sorted(p.name for p in (tmp_path / "samples").iterdir())[-1] == "step_000060.png"

    loaded = VAE.from_pretrained(tmp_path)
    assert same(vae, loaded) and loaded.config == vae.config and loaded.config.scaling_factor != 1
    validation = data().at(
        torch.randperm(40, generator=torch.Generator().manual_seed(RECIPE.seed))[:4]
    )
    with torch.no_grad():
        latents = loaded.encode(to_float(validation))
        back = loaded.decode(latents)
    assert latents.std().item() == pytest.approx(1, abs=1e-4)
    assert psnr(back.clamp(-1, 1), to_float(validation)).mean().item() == pytest.approx(
        psnrs[-1], abs=1e-3
    )


def test_the_metric_of_pixels_changes_latents_and_no_image(tmp_path):
    """Of a run that is otherwise the same."""
    config = dataclasses.replace(SMALL, latent_channels=4)
    plain = run(tmp_path / "plain", config)
    run(tmp_path / "metric", dataclasses.replace(config, pixel_metric=True))
    exported, x = VAE.from_pretrained(tmp_path / "metric"), to_float(data().images)
    with torch.no_grad():
        latents = exported.encode(x)
        torch.testing.assert_close(
            exported.decode(latents), plain.decode(plain.encode(x)), atol=1e-4, rtol=0
        )
        before = plain.encode(x).std((0, 2, 3))
    assert (latents.std((0, 2, 3)).diff() < 0).all() and not (before.diff() < 0).all()
    assert exported.config.scaling_factor != plain.config.scaling_factor


def test_killed_with_the_adversarial_loss_active_it_resumes_bit_for_bit(tmp_path):
    straight = check_resume(run, tmp_path, 5, "psnr", "kl")
    losses = [x for _, x in lines(tmp_path / "straight", "loss")]
    # the hinge loss is about 1 at first, and active in the second half of the run
    assert min(losses[3:]) > max(losses[:3]) + 0.3
    names = names_in(newest(tmp_path / "straight"))
    assert any(n.startswith("model.discriminator.") for n in names)
    assert not hasattr(straight, "discriminator")
    again = run(tmp_path / "straight")  # a finished run is exported as it was
    assert same(straight, again) and again.config == straight.config


def test_micro_batches_and_ranks_equal_one_whole(tmp_path):
    recipe = dataclasses.replace(RECIPE, eval_every=6)
    whole = run(tmp_path / "whole", recipe=recipe)
    parts = run(tmp_path / "parts", recipe=dataclasses.replace(recipe, micro_batch=3))
    script = tmp_path / "two.py"
    script.write_text(f"""
from minflextok import TrainConfig
from minflextok.config import VAEConfig
from minflextok.data import Images, load_dataset
from minflextok.training.vae import train_vae
images = load_dataset("cifar10-sample", "test").images[:40, :, 4:28, 4:28].contiguous()
crops = Images("crops", images)
train_vae({GAN!r}, {recipe!r}, crops, {str(tmp_path / "two")!r}, "cpu", quiet=True)
""")
    on_two_ranks(script)
    two = VAE.from_pretrained(tmp_path / "two")
    for a, b, c in zip(whole.parameters(), parts.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(a, c, atol=2e-4, rtol=1e-3)


def test_without_lpips_it_trains_on_gradients_and_says_so(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, perceptual="lpips")
    monkeypatch.setitem(sys.modules, "lpips", None)  # as if it were not installed
    for _ in range(2):  # the second time it finds its own checkpoint
        with pytest.warns(
            UserWarning, match=r"'lpips' cannot .*'gradients' .*pip install"
        ) as warned:
            vae = run(tmp_path, config)
        assert sum("lpips" in str(w.message) for w in warned) == 1
        assert vae.config.perceptual == "gradients"
    for name in ("run.json", "config.json"):
        record = json.loads((tmp_path / name).read_text())
        assert record.get("model", record)["perceptual"] == "gradients"
    fake = SimpleNamespace(LPIPS=FakeLPIPS)
    monkeypatch.setitem(sys.modules, "lpips", fake)
    with pytest.raises(
        ValueError, match="another run .*perceptual='gradients' there, 'lpips' here"
    ):
        run(tmp_path, config)


@pytest.mark.parametrize(
    "size, change", [(8, {"perceptual": "gradients"}), (24, {"adversarial_weight": 1.0})]
)
def test_the_smallest_images_that_settings_allow(size, change):
    config = dataclasses.replace(SMALL, image_size=size, **change)
    distance = {"gradients": gradient_distance}.get(config.perceptual)
    loss = VAEObjective(config, distance)(
        torch.zeros(1, 3, size, size),
        torch.zeros(1, 2, size // 2, size // 2),
        torch.ones(1, dtype=torch.bool),
    )
    assert loss.isfinite()


def test_images_of_another_size_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"crops has \(3, 24, 24\) images, this model takes \(3, 32, 32\)"
    ):
        run(tmp_path, dataclasses.replace(SMALL, image_size=32))


# ---- the commands --------------------------------------------------------------------------------


def test_help_leaves_out_what_only_a_tokenizer_needs(capsys):
    with pytest.raises(SystemExit):
        main(["train", "vae", "--help"])
    out = capsys.readouterr().out
    assert "--nested-from" not in out and "--lr" in out and "adversarial_weight" in out


def test_from_nothing_to_reconstructions_through_latents(tmp_path, capsys):
    steps = [
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--val-images",
        "8",
        "--device",
        "cpu",
        "--data",
        "cifar10-sample",
    ]
    vae, tokenizer, photo = (str(tmp_path / name) for name in ("vae", "tok", "photo.png"))
    pixels = load_dataset("cifar10-sample", "test").images[0].permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(photo)

    def model(*fields):
        return [part for field in fields for part in ("--model", field)]

    small = model("widths=[8,8]", "groups=4")
    main(["train", "vae", "--preset", "f2-small", "--out", vae, *steps, *small])
    small = model("in_channels=4", "image_size=16", "enc_depth=1", "dec_depth=1")
    train = ["train", "tokenizer", "--preset", "cifar10-tiny", "--vae", vae, "--out", tokenizer]
    main([*train, *steps, *small])
    assert "one-step PSNR" in capsys.readouterr().out
    options = ["--steps", "2", "--tokens", "4", "--out", str(tmp_path / "r.png")]
    main(["reconstruct", photo, "--weights", tokenizer, *options])
    assert "1 images, 32x32" in capsys.readouterr().out
    assert Image.open(tmp_path / "r.png").size[0] > 50
    tok, trained = FlexTok.from_pretrained(tokenizer), VAE.from_pretrained(vae)
    assert same(tok.vae, trained) and same(tok.vae, VAE.from_pretrained(tokenizer))
    assert tok.vae.config.scaling_factor == trained.config.scaling_factor != 1
    record = json.loads((tmp_path / "tok/run.json").read_text())
    assert record["vae"]["scaling_factor"] == trained.config.scaling_factor
