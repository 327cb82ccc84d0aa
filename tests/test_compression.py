"""Ids in few bytes, and back: exactly, or an error."""

import warnings
from dataclasses import replace

import pytest
import torch
from conftest import TINY, randomised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minflextok import Prior, PriorConfig, compression
from minflextok.compression import compress, decompress

CONFIG = PriorConfig(
    vocab_size=120, num_tokens=6, num_classes=3, dim=64, depth=1, head_dim=32, dropout=0.0
)

pytest.importorskip("constriction")


@pytest.fixture(scope="module")
def tok():
    return randomised()


@pytest.fixture(scope="module")
def prior(tok):
    torch.manual_seed(0)
    prior = Prior(replace(CONFIG, tokenizer=tok.fingerprint())).eval()
    prior.ids.weight.data *= 40  # far from uniform
    return prior


def rows_of(lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(120, (k,), generator=g) for k in lengths]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.booleans(), st.integers(1, 9))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_ids_survive(tok, prior, lengths, with_prior, batch_size):
    rows, p = rows_of(lengths, len(lengths)), prior if with_prior else None
    data = compress(rows, tok, p)
    assert same(decompress(data, tok, p, batch_size), rows)
    assert compress(rows, tok, p, batch_size) == data


def test_several_groups_and_a_size_near_the_entropy(tok, prior, monkeypatch):
    monkeypatch.setattr(compression, "GROUP", 256)
    ids = prior.generate(torch.zeros(600, dtype=torch.long), generator=torch.Generator())
    null, labels = torch.ones(600, dtype=torch.bool), torch.zeros(600, dtype=torch.long)
    with torch.no_grad():
        nats = prior.token_losses(ids, labels, null).sum().item()
    data = compress(ids, tok, prior)
    assert same(decompress(data, tok, prior), list(ids))
    want = nats / torch.tensor(2.0).log().item() / 8
    assert want < len(data) < 1.01 * want + 28 + 4 * 9
    assert len(data) < 0.8 * len(compress(ids, tok)) and want < 0.75 * 600 * 6 * 6.907 / 8


def test_the_beginning_of_a_file_gives_shorter_prefixes(tok, prior):
    rows = rows_of([6, 6, 2, 5, 1])
    data = compress(rows, tok, prior)
    seen = set()
    for cut in range(len(data)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = decompress(data[:cut], tok, prior)
            except ValueError as e:
                assert "cut off" in str(e) or "no .ftk" in str(e) or "claim" in str(e)
                continue
        longest = max(map(len, found))
        seen.add(longest)
        assert same(found, [r[:longest] for r in rows])
        assert f"cut off: the first {longest} of up to 6 ids" in str(caught[0].message)
    assert seen == {1, 2, 4}


def test_a_flipped_bit_is_an_error(tok, prior):
    data = compress(rows_of([6, 3, 3]), tok, prior)
    for at in range(len(data)):
        for bit in (0, 3, 7):
            broken = bytearray(data)
            broken[at] ^= 1 << bit
            with pytest.raises(ValueError):
                decompress(bytes(broken), tok, prior)
    with pytest.raises(ValueError, match="3 bytes follow the end"):
        decompress(data + b"abc", tok, prior)


def test_another_tokenizer_or_prior_is_an_error(tok, prior):
    rows = rows_of([6, 3])
    data = compress(rows, tok, prior)
    other = Prior(prior.config)
    with pytest.raises(ValueError, match="compressed with the prior .*, this is"):
        decompress(data, tok, other)
    with pytest.raises(ValueError, match="this is none"):
        decompress(data, tok)
    with pytest.raises(ValueError, match="prior none, this is"):
        decompress(compress(rows, tok), tok, prior)
    with pytest.raises(ValueError, match="holds ids of the tokenizer"):
        decompress(compress(rows, tok), randomised(seed=1))
    with pytest.raises(ValueError, match="was trained with the tokenizer"):
        compress(rows, randomised(seed=1), prior)


def test_headers_that_claim_much_are_refused_at_once(tok):
    head = compress(rows_of([1]), tok)[:24]
    for counts, match in [
        ([2**60], "claim to hold 1152921504606846976 images"),
        ([0], "claim to hold 0 images"),
        ([5000, 0], "claim to hold 5000 lengths"),
        ([1, 2**40], "cut off|damaged"),
    ]:
        with pytest.raises(ValueError, match=match):
            decompress(head + b"".join(map(compression.varint, counts)), tok)
    with pytest.raises(ValueError, match="no .ftk file"):
        decompress(b"junk", tok)
    with pytest.raises(TypeError, match="data is a str"):
        decompress("x", tok)
    assert TINY.num_registers == 6


@given(st.integers(0, 2**62))
def test_varints(n):
    assert compression.read_varint(b"x" + compression.varint(n) + b"y", 1) == (
        n,
        1 + len(compression.varint(n)),
    )


def test_without_constriction_the_error_names_the_extra(tok, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(ImportError, match=r"pip install 'minflextok\[codec\]'"):
        compress(rows_of([1]), tok)
