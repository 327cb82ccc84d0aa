"""Captions to embeddings, and what a prior makes of them."""

import dataclasses

import pytest
import torch

from minflextok import PRIOR_PRESETS, Prior, PriorConfig
from minflextok.data.shapes import make_shapes
from minflextok.text import TextEncoder, pretrained, text_encoder, words_of

WORDS = ("a", "above", "blue", "circle", "red", "square")
CONFIG = PriorConfig(
    20,
    4,
    0,
    dim=32,
    depth=2,
    head_dim=8,
    text="words",
    words=WORDS,
    text_dim=16,
    text_depth=2,
    text_length=8,
)
BYTES = dataclasses.replace(CONFIG, text="bytes", words=(), text_length=32)


def encoder(config=CONFIG) -> TextEncoder:
    torch.manual_seed(0)
    made = text_encoder(config).eval()
    for p in made.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return made


def test_words_are_numbered_and_padded():
    tokens = encoder().tokenize(["a red circle.", "A  Blue square, above a RED circle"])
    assert tokens.tolist() == [[1, 5, 4, 0, 0, 0, 0], [1, 3, 6, 2, 1, 5, 4]]
    assert words_of(["a red circle", "Above a blue square,"]) == WORDS
    assert encoder(BYTES).tokenize(["ab", "é"]).tolist() == [[98, 99], [196, 170]]


def test_the_shapes_preset_knows_every_word_of_its_data():
    _, captions, _ = make_shapes(300)
    c = PRIOR_PRESETS["shapes"]
    assert words_of(captions) == c.words
    assert TextEncoder(c).tokenize(captions).shape[1] <= c.text_length


@pytest.mark.parametrize("config", [CONFIG, BYTES], ids=["words", "bytes"])
def test_a_caption_does_not_depend_on_its_neighbours(config):
    """Padding is not seen, the order of the words is."""
    made = encoder(config)
    captions = ["a red circle", "a blue square above a circle", "circle"]
    together, mask = made(made.tokenize(captions))
    for caption, x, m in zip(captions, together, mask, strict=True):
        alone, whole = made(made.tokenize([caption]))
        assert whole.all() and m.sum() == whole.shape[1]
        torch.testing.assert_close(x[m], alone[0], atol=1e-5, rtol=1e-5)
    swapped = [made(made.tokenize([c]))[0].mean(1) for c in ("red circle a", "circle red a")]
    assert (swapped[0] - swapped[1]).abs().max() > 1e-3


def test_a_prior_does_not_see_padding():
    prior = Prior(CONFIG)
    for p in prior.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(20, (2, 3), generator=torch.Generator().manual_seed(0))
    together = prior.logits(
        ids, prior.prepare(["a red circle", "a blue square above a red circle"])
    )
    torch.testing.assert_close(
        together[:1], prior.logits(ids[:1], prior.prepare(["a red circle"])), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    "config, captions, match",
    [
        (CONFIG, ["a red circle", ""], "caption '' has no words: say what the image shows"),
        (CONFIG, [" ., "], "has no words"),
        (BYTES, ["  "], "has no bytes"),
        (
            CONFIG,
            ["a red circel"],
            "unknown word 'circel': this prior learned 6 words, the closest are circle, ",
        ),
        (CONFIG, ["a " * 9], "has 9 words, this prior reads 8: shorten it"),
        (BYTES, ["x" * 33], "has 33 bytes, this prior reads 32"),
    ],
)
def test_captions_that_cannot_be_read(config, captions, match):
    prior = Prior(config)
    for call in (
        lambda: prior.generate(captions),
        lambda: prior.loss(torch.zeros(len(captions), 2, dtype=torch.long), captions),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_a_text_prior_learns_what_captions_say():
    """Four captions, each with its ids: told apart after a few steps, the encoder learning
    along."""
    torch.manual_seed(0)
    prior, captions = (
        Prior(CONFIG),
        ["a red circle", "a circle above a blue square", "a blue square above a circle", "circle"],
    )
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [1, 2, 13, 14]])
    start = [p.detach().clone() for p in prior.text_encoder.parameters()]
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    for _ in range(150):
        prior.loss(ids, captions, generator=torch.Generator().manual_seed(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(prior.generate(captions, temperature=0), ids)
    assert all(
        not torch.equal(a, b) for a, b in zip(start, prior.text_encoder.parameters(), strict=True)
    )


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A frozen encoder without a download: a tiny T5 with random weights and the tokenizer over
    bytes that needs no file."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (the extra `text`)"
    )
    folder = str(tmp_path_factory.mktemp("t5"))
    torch.manual_seed(0)
    transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=384, d_model=24, d_kv=4, d_ff=16, num_layers=1, num_heads=2
        )
    ).save_pretrained(folder)
    transformers.ByT5Tokenizer().save_pretrained(folder)
    return folder


def test_a_frozen_encoder_reads_captions(t5, tmp_path):
    config = dataclasses.replace(BYTES, text=t5, text_dim=24)
    torch.manual_seed(0)
    prior, captions = Prior(config), ["a red circle", "circle"]
    x, mask = prior.text_encoder(prior.text_encoder.tokenize(captions))
    assert x.shape == (2, 13, 24) and mask.sum(1).tolist() == [13, 7] and not x.requires_grad
    alone, _ = prior.text_encoder(prior.text_encoder.tokenize(captions[1:]))
    torch.testing.assert_close(x[1, :7], alone[0], atol=1e-5, rtol=1e-5)
    prior.loss(torch.ones(2, 4, dtype=torch.long), captions).backward()
    assert (
        not list(prior.text_encoder.parameters()) and pretrained(t5)[1].shared.weight.grad is None
    )
    prior.save_pretrained(tmp_path / "p")
    back = Prior.from_pretrained(tmp_path / "p")
    made = [
        p.generate(captions, guidance=2.0, generator=torch.Generator().manual_seed(0))
        for p in (prior, back)
    ]
    assert torch.equal(*made)
    for texts, match in (
        (["x" * 40], "has 41 pieces, this prior reads 32"),
        (["ok", " "], "has no pieces"),
    ):
        with pytest.raises(ValueError, match=match):
            prior.generate(texts)
    with pytest.raises(ValueError, match="width 24, not 16: set text_dim"):
        Prior(dataclasses.replace(config, text_dim=16)).generate(captions)


def test_a_frozen_encoder_that_is_not_there(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    prior = Prior(
        dataclasses.replace(BYTES, text="google/flan-t5-small")
    )  # built without asking for it
    with pytest.raises(
        ValueError, match=r"needs transformers .*pip install \"minflextok\[text\]\""
    ):
        prior.generate(["a red circle"])


def test_a_frozen_encoder_that_does_not_exist(monkeypatch, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed (the extra `text`)")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ValueError, match="no text encoder .*give 'words', 'bytes', a directory, or a name"
    ):
        Prior(dataclasses.replace(BYTES, text=str(tmp_path / "none"))).generate(["a red circle"])
