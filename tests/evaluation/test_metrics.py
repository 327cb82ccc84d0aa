"""Metrics against their definitions, and `minflextok evaluate` as a whole."""

import json
import math
import urllib.error
import weakref

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minflextok import FlexTok
from minflextok.cli.parser import main
from minflextok.config import DATA_DIR
from minflextok.data import Images, Stream, in_order, load_dataset, to_float
from minflextok.evaluation.metrics import (
    CodeCounts,
    FeatureStats,
    bootstrap,
    bootstrap_frechet,
    code_usage,
    collect,
    frechet_distance,
    health,
    inception,
    mae,
    psnr,
    ssim,
)
from minflextok.evaluation.tokenizer import Evaluation, Scores, encoding, gfid, image_noise


def draw(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(
        d, d, generator=g, dtype=torch.float64
    )


def stats_of(mean, cov) -> FeatureStats:
    """Statistics with exactly this mean and covariance."""
    root = scipy.linalg.sqrtm(np.asarray(cov, float)).real
    d = len(root)
    x = np.concatenate([np.eye(d), -np.eye(d)]) * math.sqrt((2 * d - 1) / 2)  # covariance 1
    return FeatureStats().update(torch.tensor(x @ root + np.asarray(mean)))


# ---- sets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "d, n, m", [(1, 5, 9), (4, 50, 30), (32, 400, 500), (16, 10, 12)]
)  # the last: singular covariances
def test_frechet_agrees_with_scipy(d, n, m):
    a, b = draw(n, d, 1), draw(m, d, 2, 0.7, 0.3)
    A, B = (np.cov(x.numpy(), rowvar=False).reshape(d, d) for x in (a, b))
    cross = scipy.linalg.sqrtm(A @ B)
    want = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(A + B - 2 * cross.real)
    got = frechet_distance(FeatureStats().update(a), FeatureStats().update(b))
    assert got == pytest.approx(
        want, abs=1e-6 if n > d else 1e-4
    )  # scipy's root of a singular matrix has lost digits


def test_frechet_of_commuting_covariances_is_the_closed_form():
    a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25])
    turn = np.linalg.qr(np.arange(9).reshape(3, 3) + np.eye(3))[
        0
    ]  # they commute in any common basis
    got = frechet_distance(
        stats_of([0, 0, 1], turn @ np.diag(a) @ turn.T),
        stats_of([2, 0, 0], turn @ np.diag(b) @ turn.T),
    )
    assert got == pytest.approx(5 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-9)


def test_frechet_of_a_set_to_itself_is_zero_and_symmetric():
    a, b = FeatureStats().update(draw(40, 6, 3)), FeatureStats().update(draw(40, 6, 4))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.floats(-1e4, 1e4), st.integers(0, 99)
)
def test_streaming_equals_the_whole(sizes, shift, seed):
    x = draw(
        sum(sizes) + 2, 3, seed, shift=shift
    ).float()  # float32, as networks give it, far from zero
    stats = FeatureStats()
    for part in x.split([2, *sizes]):
        stats.update(part)
    assert stats.count == len(x)
    np.testing.assert_allclose(stats.mean, x.double().mean(0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(
        stats.cov, np.cov(x.double().numpy(), rowvar=False), rtol=1e-8, atol=1e-8
    )


def test_fifty_thousand_images_need_no_more_memory_than_five_hundred():
    def held(n: int) -> tuple[int, int]:
        """Bytes that the statistics hold, and the most batches that lived at a time."""
        alive, most = weakref.WeakSet(), 0

        def batches():
            nonlocal most
            for _ in range(n // 500):
                batch = torch.rand(500, 64)
                alive.add(batch)
                most = max(most, len(alive))
                yield batch

        stats = collect(batches(), lambda x: x * 2)
        assert stats.count == n
        return sum(
            t.untyped_storage().nbytes()
            for t in vars(stats).values()
            if isinstance(t, torch.Tensor)
        ), most

    (few, _), (many, most) = held(500), held(50_000)
    assert few == many < 50_000 and most <= 2


def test_features_that_do_not_fit():
    stats = FeatureStats().update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="1 features so far: a covariance takes at least 2"):
        frechet_distance(stats, stats)
    with pytest.raises(ValueError, match="length 4, those before 3"):
        stats.update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="NaN"):
        stats.update(torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match=r"shape \(3,\): give \(B >= 1, D\)"):
        stats.update(torch.zeros(3))
    with pytest.raises(ValueError, match="compare those of one network"):
        frechet_distance(
            FeatureStats().update(torch.rand(4, 2)), FeatureStats().update(torch.rand(4, 3))
        )
    with pytest.raises(ValueError, match="0 features so far"):
        frechet_distance(FeatureStats(), stats)


def test_gfid_takes_images_or_what_was_collected_from_them():
    a, b = torch.rand(60, 3, 4, 4), torch.rand(50, 3, 4, 4) * 0.5

    def features(x):
        return x.flatten(1)[:, :5]

    want = frechet_distance(FeatureStats().update(features(a)), FeatureStats().update(features(b)))
    assert gfid(a.split(7), b.split(50), features) == pytest.approx(want)
    assert gfid(collect(a.split(60), features), b.split(9), features) == pytest.approx(want)


# ---- images ----------------------------------------------------------------------------------------------------------


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One image (C, H, W): window after window, pixel after pixel."""
    weight = {
        (i, j): math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2))
        for i in range(11)
        for j in range(11)
    }
    total, found = sum(weight.values()), []
    for c in range(a.shape[0]):
        for y in range(a.shape[1] - 10):
            for x in range(a.shape[2] - 10):
                pairs = [
                    (w / total, a[c, y + i, x + j], b[c, y + i, x + j])
                    for (i, j), w in weight.items()
                ]
                ma, mb = sum(w * p for w, p, _ in pairs), sum(w * q for w, _, q in pairs)
                va, vb = (
                    sum(w * (p - ma) ** 2 for w, p, _ in pairs),
                    sum(w * (q - mb) ** 2 for w, _, q in pairs),
                )
                cov = sum(w * (p - ma) * (q - mb) for w, p, q in pairs)
                c1, c2 = 0.02**2, 0.06**2
                found.append(
                    (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
                )
    return sum(found) / len(found)


def test_ssim_agrees_with_loops():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 13, 12, generator=g) * 2 - 1
    b = (a + 0.3 * torch.randn(a.shape, generator=g)).clamp(-1, 1)
    want = [slow_ssim(x, y) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(want, abs=1e-6)
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    assert ssim(torch.ones(1, 3, 11, 11), -torch.ones(1, 3, 11, 11)).item() < -0.99
    with pytest.raises(ValueError, match="images are 10x12: SSIM has an 11x11 window"):
        ssim(a[:, :, :10], b[:, :, :10])


def test_metrics_by_hand():
    a = torch.zeros(2, 3, 4, 4)
    assert psnr(a, a + 0.2).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)  # 10 log10(4 / 0.04)
    assert mae(a, a - 0.2).tolist() == pytest.approx([0.2, 0.2])
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        psnr(a, a[:1])
    used, perplexity = code_usage(torch.tensor([[0, 1], [1, 1], [2, 1], [3, 1]]), 5)
    assert used.tolist() == [4, 1] and perplexity.tolist() == pytest.approx([4, 1])
    assert "collapsed" in health({1: 10.0, 2: 12.0}, torch.tensor([1.0, 1.2]), 100)
    assert "nothing yet" in health({1: 10.0, 2: 10.1}, torch.tensor([50.0]), 100)
    assert health({1: 10.0, 2: 12.0}, torch.tensor([50.0]), 100) == ""


def test_code_counts_add_up_over_batches():
    ids = torch.randint(0, 7, (50, 3))
    counts = CodeCounts(3, 7)
    for part in ids.split(8):
        counts.update(part)
    for got, want in zip(counts.usage(), code_usage(ids, 7), strict=True):
        torch.testing.assert_close(got, want)


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_bootstrap_covers_a_known_mean():
    g = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap(3 + torch.randn(60, generator=g), resamples=200, seed=seed)
        hits += low <= 3 <= high
    assert 178 <= hits <= 199  # 95% of 200, give or take four standard deviations
    low, high = bootstrap(torch.tensor([0.0, 1.0] * 5000))
    assert high - low == pytest.approx(4 * 0.5 / 100, rel=0.15)
    with pytest.raises(ValueError, match="give"):
        bootstrap(torch.zeros(0))


def test_bootstrap_of_the_frechet_distance_tells_its_spread():
    def pair(seed):
        a = torch.randn(300, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return a, a * 1.5 + 1

    distances = torch.tensor(
        [frechet_distance(*(FeatureStats().update(x) for x in pair(seed))) for seed in range(40)]
    )
    low, high = bootstrap_frechet(*pair(0), resamples=40)
    whole = frechet_distance(*(FeatureStats().update(x) for x in pair(0)))
    assert low < whole < high and (low + high) / 2 == pytest.approx(whole)
    assert (high - low) / 2 == pytest.approx(1.96 * distances.std().item(), rel=0.5)
    assert (high - low) / 2 < 0.2 * whole


def test_inception_says_so_where_it_cannot_be_had(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(OSError, match="Inception-v3 weights cannot be had .*--features judge"):
        inception()


def test_inception_sees_what_torchvision_would_show_it(monkeypatch):
    import torchvision.models as models

    net = models.inception_v3(
        weights=None, init_weights=False, transform_input=True
    )  # as with weights
    monkeypatch.setattr(models, "inception_v3", lambda weights: net)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    got = inception()(x)
    assert got.shape == (2, 2048)
    net.transform_input = True
    preset = models.Inception_V3_Weights.IMAGENET1K_V1.transforms(crop_size=299, resize_size=299)
    with torch.no_grad():
        want = net(preset((x + 1) / 2))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


# ---- evaluate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample():
    return load_dataset("cifar10-sample", "test")


def test_evaluate_writes_its_protocol_and_its_numbers(tmp_path, capsys):
    out = tmp_path / "a/results.json"
    main(
        [
            "evaluate",
            "--num-images",
            "8",
            "--steps",
            "2",
            "--tokens",
            "1",
            "16",
            "--seed",
            "3",
            "--out",
            str(out),
        ]
    )
    printed = capsys.readouterr().out.splitlines()
    found = json.loads(out.read_text())
    assert printed[0] == found["protocol"]["line"]
    for said in (
        "8 reconstructions",
        "cifar10-sample, test split, JPEG",
        "judge-cifar10 features",
        "128-d",
        "2 Euler steps",
        "guidance 1",
        "seed 3",
        found["protocol"]["weights_sha256"][:12],
    ):
        assert said in printed[0], said
    assert list(found["tokens"]) == ["1", "16"] and found["tokens"]["16"]["bytes"] == 23
    for row in found["tokens"].values():
        for name in ("rfid", "psnr", "ssim", "mae", "agreement"):
            low, high = row[name]["ci95"]
            assert low <= row[name]["mean"] <= high, name
    assert found["originals"]["agreement"]["mean"] > 0.5
    assert (
        len(found["codes"]["ids_used"]) == 16 == len(found["codes"]["perplexity"])
        and found["codes"]["vocabulary"] == 2560
    )
    assert "agreement" in printed[1] and "results ->" in printed[-1]


def test_evaluate_does_not_depend_on_the_batch_size(sample):
    tok = FlexTok.from_pretrained("cifar10-tiny")
    one, other = (
        Evaluation(
            tok, "cifar10-tiny", sample, num_images=10, budgets=[4], steps=2, batch_size=b
        ).run()
        for b in (3, 10)
    )
    for name, value in one["tokens"]["4"].items():
        if isinstance(value, dict):
            assert value["mean"] == pytest.approx(other["tokens"]["4"][name]["mean"], rel=1e-3), (
                name
            )
            assert value["ci95"] == pytest.approx(other["tokens"]["4"][name]["ci95"], rel=2e-3), (
                name
            )
    assert one["codes"] == other["codes"] and one["originals"] == other["originals"]
    assert one["protocol"]["pixels_sha256"] == other["protocol"]["pixels_sha256"]


def test_noise_belongs_to_the_image():
    whole = image_noise((6, 3, 4, 4), seed=5, first=0)
    assert torch.equal(whole[2:5], image_noise((3, 3, 4, 4), seed=5, first=2))
    assert not torch.equal(whole, image_noise((6, 3, 4, 4), seed=6, first=0))
    assert len(torch.unique(whole)) == whole.numel()


def test_scores_take_uneven_batches_and_keep_one_tensor_a_value():
    g = torch.Generator().manual_seed(0)
    a, b, features = (
        torch.rand(20, 3, 12, 12, generator=g),
        torch.rand(20, 3, 12, 12, generator=g),
        torch.rand(20, 4, generator=g),
    )
    scores, labels = Scores(30), torch.arange(20) % 2  # 30 were announced, 20 came
    for part in torch.arange(20).split([7, 1, 12]):
        scores.update(a[part], b[part], labels[part], features[part], torch.eye(2)[[0] * len(part)])
        held = [x for x in vars(scores).values() if isinstance(x, (list, tuple))]
        assert not held and all(
            isinstance(x, torch.Tensor) and len(x) == 30 for x in scores.values.values()
        )
    found = scores.summary()
    assert found["psnr"]["mean"] == pytest.approx(psnr(a, b).mean().item(), rel=1e-6)
    assert found["ssim"]["mean"] == pytest.approx(ssim(a, b).mean().item(), rel=1e-5)
    assert found["agreement"]["mean"] == 0.5 and "features" not in found
    assert scores.distance(scores)["ci95"] == pytest.approx([0, 0], abs=1e-9)


def test_numbers_are_those_of_the_definitions(sample):
    tok = FlexTok.from_pretrained("cifar10-tiny")
    work = Evaluation(
        tok, "cifar10-tiny", sample, num_images=12, budgets=[8], steps=2, batch_size=5, seed=1
    )
    found = work.run()["tokens"]["8"]
    images = to_float(sample.images[:12])
    made = tok.decode(tok.encode(images)[:, :8], steps=2, noise=image_noise(images.shape, 1, 0))
    assert found["psnr"]["mean"] == pytest.approx(
        psnr(made, images).mean().item(), abs=0.02
    )  # made is not rounded to 8 bits
    right = (work.judge(made).argmax(1) == sample.labels[:12]).float().mean().item()
    assert found["agreement"]["mean"] == pytest.approx(right, abs=0.1)
    a, b = (FeatureStats().update(work.judge.features(x)) for x in (made, images))
    assert found["rfid"]["mean"] == pytest.approx(frechet_distance(a, b), rel=0.02)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"num_images": 5000}, "--num-images 5000: give 2 to 1000 of cifar10-sample, test split"),
        ({"num_images": 1}, "--num-images 1"),
        ({"budgets": [17]}, "--tokens 17: cifar10-tiny gives 1 to 16"),
        ({"features": "clip"}, "--features clip"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"judge": "nobody"}, "no weights 'nobody'"),
    ],
)
def test_bad_settings_are_named(sample, options, match):
    with pytest.raises((ValueError, OSError), match=match):
        Evaluation(FlexTok.from_pretrained("cifar10-tiny"), "cifar10-tiny", sample, **options)


def test_stored_order_and_encoding(sample, tmp_path):
    parts = list(in_order(sample, 4, 10))
    assert [len(x) for x, _ in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in parts]), sample.images[:10])
    assert torch.equal(torch.cat([y for _, y in parts]), sample.labels[:10])
    path = str(DATA_DIR / "cifar10-sample-test.tar.gz")
    streamed = list(in_order(Stream(path, [path], 32, 0), 4, 10))
    assert torch.equal(torch.cat([x for x, _ in streamed]), sample.images[:10])
    assert torch.equal(torch.cat([y for _, y in streamed]), sample.labels[:10])
    assert encoding(load_dataset(path, "test")) == "JPEG" == encoding(sample)
    assert encoding(Images("mine", sample.images)) == "unknown encoding"
