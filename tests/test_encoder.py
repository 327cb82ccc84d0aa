"""The encoder: what depends on what."""

import torch
from conftest import changed, randomised

from minflextok.encoder import prefix_mask


def test_prefix_mask_by_its_definition():
    mask = prefix_mask(4, 3)
    for q in range(7):
        for k in range(7):
            assert mask[q, k] == (k < 4 or (q >= 4 and k <= q))


def test_a_register_moves_only_itself_and_later_ones(tok, images):
    before = tok.encode_continuous(images)
    tok.encoder.registers.data[3] += torch.randn(64)
    moved = (tok.encode_continuous(images) - before).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False, False, False, True, True, True]


def test_encoding_a_prefix_equals_the_prefix_of_the_encoding(tok, images):
    ids = tok.encode(images)
    assert ids.shape == (3, 6) and ids.dtype == torch.int64
    for k in range(1, 7):
        assert torch.equal(tok.encode(images, k), ids[:, :k])


def test_registers_that_all_see_each_other(images):
    tok = randomised(changed(causal_registers=False))
    before = tok.encode_continuous(images)
    tok.encoder.registers.data[4] = torch.randn(64)
    moved = (tok.encode_continuous(images) - before).abs().amax((0, 2)) > 1e-6
    assert moved.all()  # register 4 reaches the first one too
    torch.testing.assert_close(tok.encoder(images)[:, :2], tok.encode_continuous(images)[:, :2])


def test_images_of_a_batch_do_not_see_each_other(tok, images):
    torch.testing.assert_close(
        tok.encode_continuous(images)[1:2], tok.encode_continuous(images[1:2]), atol=1e-5, rtol=0
    )
