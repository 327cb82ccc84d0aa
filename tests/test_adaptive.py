"""The shortest prefix that meets a target."""

import pytest
import torch

from minflextok import FlexTok
from minflextok.adaptive import LengthHead, psnr
from minflextok.config import LengthConfig
from minflextok.data import load_dataset, to_float
from minflextok.draws import seeded_noise
from minflextok.weights import fingerprint


@pytest.fixture(scope="module")
def photos():
    data = load_dataset("cifar10-sample", "test")
    return FlexTok.from_pretrained("cifar10-tiny"), to_float(data.images[:16])


def all_values(tok, x, **options):
    """PSNR at every length, from the same noise: (K, B)."""
    ids, noise = tok.encode(x), seeded_noise(x.shape, 0)
    return torch.stack(
        [psnr(tok.decode(ids[:, :k], noise=noise, **options), x) for k in range(1, 17)]
    )


def test_it_is_the_search_over_all_lengths(photos):
    tok, x = photos
    table = all_values(tok, x, steps=2)
    target = table[6].median().item()
    found = tok.encode_adaptive(x, target, steps=2, batch_size=7)
    ids = tok.encode(x)
    for i, row in enumerate(found.ids):
        k = len(row)
        assert torch.equal(row, ids[i, :k])
        assert found.values[i] == pytest.approx(table[k - 1, i].item(), abs=1e-3)
        assert found.met[i] == (table[-1, i] >= target)
        if found.met[i]:
            assert table[k - 1, i] >= target - 1e-3 and (k == 1 or table[k - 2, i] < target + 1e-3)
        else:
            assert k == 16
    assert found.met.any() and len({len(r) for r in found.ids}) > 3


def test_targets_and_metrics_of_ones_own(photos):
    tok, x = photos
    x = x[:4]
    each = torch.tensor([-1e3, 1e3, 0.0, 1e3])
    found = tok.encode_adaptive(x, each, steps=1)
    assert [len(r) for r in found.ids][:2] == [1, 16] and found.met.tolist()[:2] == [True, False]
    same = tok.encode_adaptive(
        x, -5.0, lambda made, real: -made.abs().flatten(1).mean(1) * 0, steps=1
    )
    assert [len(r) for r in same.ids] == [1] * 4 and same.met.all()


@pytest.mark.parametrize(
    "options, match",
    [
        ({"metric": "ssim"}, "metric='ssim': give 'psnr' or a function"),
        ({"metric": lambda a, b: a}, "give a function to"),
        ({"metric": lambda a, b: 1.0}, "metric gives float"),
        ({"target": torch.zeros(3)}, r"target has shape \(3,\): give \(2,\)"),
        ({"target": float("nan")}, "target=nan"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_bad_arguments_are_errors(photos, options, match):
    tok, x = photos
    with pytest.raises(ValueError, match=match):
        tok.encode_adaptive(x[:2], **({"target": 10.0} | options))


def test_predicted_lengths_rise_with_confidence_and_can_be_learned():
    torch.manual_seed(0)
    z = torch.randn(256, 8, 3)
    want = 1 + (z[:, 0, 0] > 0).long() * 5  # 1 or 6
    head = LengthHead(LengthConfig(8, 3, 32))
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    suffices = (torch.arange(1, 9) >= want[:, None]).float()
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(z), suffices)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head.lengths(z) == want).float().mean() > 0.9
    assert (head.lengths(z, 0.99) >= head.lengths(z, 0.5)).all()
    assert (head(z).diff(dim=1) >= 0).all() and head.lengths(z, 1.0).max() == 8


def test_a_stored_head_predicts_the_same_and_refuses_another_tokenizer(photos, tmp_path):
    tok, x = photos
    torch.manual_seed(0)
    c = LengthConfig(16, 4, 32, target=15.0, tokenizer=fingerprint(tok.state_dict()))
    LengthHead(c).save_pretrained(tmp_path)
    head = LengthHead.from_pretrained(tmp_path)
    assert head.config == c and not head.training
    z, ids = tok.encode_continuous(x), tok.encode(x)
    lengths = head.lengths(z)
    found = head.encode(tok, x, batch_size=5)
    assert [len(row) for row in found] == lengths.tolist()
    assert all(torch.equal(row, full[: len(row)]) for row, full in zip(found, ids, strict=True))
    assert all(len(row) == 16 for row in head.encode(tok, x[:2], confidence=1.0))
    other = FlexTok.from_pretrained("cifar10-tiny")
    other.decoder.register_positions.data += 1  # lengths depend on the decoder, too
    with pytest.raises(ValueError, match="lengths for the tokenizer .*, this is"):
        head.encode(other, x)
    with pytest.raises(ValueError, match="confidence=2"):
        head.lengths(z, 2.0)
