"""The prior in exact arithmetic: equal to the last bit whatever the order of its sums."""

from dataclasses import replace

import pytest
import torch

from minflextok import Prior, PriorConfig
from minflextok.exact import EXP, SIGMOID, STEP, ExactPrior

CONFIG = PriorConfig(
    vocab_size=120, num_tokens=6, num_classes=3, dim=64, depth=2, head_dim=32, dropout=0.0
)
TEXT = replace(
    CONFIG, num_classes=0, text="words", words=("a", "red", "blue"), text_dim=32, text_length=8
)


def random_prior(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    prior = Prior(config).eval()
    for p in prior.parameters():
        p.data += 0.1 * torch.randn_like(p)
        p.data = p.data.bfloat16().float()
    return prior


@pytest.fixture
def ids():
    return torch.randint(120, (70, 6), generator=torch.Generator().manual_seed(0))


def frequencies(prior, ids, batch=None):
    """Of every position, given the true ids before it: (n, K, V)."""
    parts = []
    for rows in ids.split(batch or len(ids)):
        exact, found = ExactPrior(prior), []
        exact.start(len(rows))
        for i in range(ids.shape[1]):
            found.append(exact.frequencies())
            if i + 1 < ids.shape[1]:
                exact.append(rows[:, i])
        parts.append(torch.stack(found, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("config", [CONFIG, TEXT])
def test_frequencies_are_the_probabilities_of_the_prior(ids, config):
    prior = random_prior(config)
    found = frequencies(prior, ids)
    assert (found.sum(-1) == 2**24).all() and found.min() >= 1
    null = torch.ones(len(ids), dtype=torch.bool)
    conditions = prior.prepare(["a"] * len(ids) if config.text else torch.zeros(70).long())
    with torch.no_grad():
        want = prior.logits(ids[:, :-1], conditions, null).softmax(-1)
    torch.testing.assert_close(found.double() / 2**24, want.double(), rtol=0.01, atol=1e-5)


def test_neither_threads_nor_batch_size_change_a_bit(ids):
    prior, threads = random_prior(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = frequencies(prior, ids, 1)
        torch.set_num_threads(2)
        assert torch.equal(frequencies(prior, ids, 64), one)
    finally:
        torch.set_num_threads(threads)


def test_the_order_of_sums_does_not_change_a_bit(ids):
    """The same network with its hidden channels in another order: each product sums in another."""
    prior = random_prior()
    want = frequencies(prior, ids)
    for block in prior.blocks:
        order = torch.randperm(len(block.mlp.fc1.weight))
        block.mlp.fc1.weight.data = block.mlp.fc1.weight.data[order]
        block.mlp.fc3.weight.data = block.mlp.fc3.weight.data[order]
        block.mlp.fc2.weight.data = block.mlp.fc2.weight.data[:, order]
    assert torch.equal(frequencies(prior, ids), want)
    with torch.no_grad():  # in floating point, it does
        conditions = torch.zeros(70, dtype=torch.long)
        a = random_prior().logits(ids[:, :-1], conditions)
        assert not torch.equal(prior.logits(ids[:, :-1], conditions), a)


def test_large_weights_are_clamped_not_wrong(ids):
    """Beyond its range the arithmetic stays exact: sums fit into a float64."""
    prior = random_prior()
    for p in prior.parameters():
        p.data *= 100
    found = frequencies(prior, ids[:4])
    assert torch.equal(frequencies(prior, ids[:4], 1), found) and (found.sum(-1) == 2**24).all()


def test_weights_count_as_their_fingerprint_does(ids):
    """In bfloat16: a model loaded as float32 and one saved as bfloat16 have one fingerprint."""
    prior = random_prior()
    want = frequencies(prior, ids[:4])
    assert torch.equal(frequencies(prior.bfloat16(), ids[:4]), want)


def test_tables_are_exp_and_sigmoid():
    x = -torch.arange(len(EXP), dtype=torch.float64) / STEP
    assert (EXP - x.exp()).abs().max() < 1e-6 and (SIGMOID - x.sigmoid()).abs().max() < 1e-6


def test_what_would_not_be_exact_is_refused():
    with pytest.raises(ValueError, match="dim=832: exact sums want at most 768"):
        ExactPrior(Prior(replace(CONFIG, dim=832, depth=1)))
    with pytest.raises(ValueError, match="vocab_size=120: give more than bits=8"):
        ExactPrior(random_prior(), bits=8)
