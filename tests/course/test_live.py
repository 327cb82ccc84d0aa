"""The step that stands in for an unsolved exercise of notebook 06, and its drawings."""

import pytest
import torch

from minflextok import FlexTok
from minflextok.course import check, live
from minflextok.course.token_maps import changes, token_maps

HEART = ".rr..rr. rrrrrrrr rrrrrrrr rrrrrrrr .rrrrrr. ..rrrr.. ...rr... ........"


def test_the_step_that_stands_in_is_a_right_answer(capsys):
    assert check("training.step", live.training_step), capsys.readouterr().out


def test_a_drawing_is_an_image_of_blocks_of_2x2_pixels():
    image = live.drawing(HEART)
    assert image.shape == (3, 16, 16) and image.abs().max() <= 1
    assert torch.equal(image[:, ::2, ::2], image[:, 1::2, 1::2])
    red, ground = image[:, 4, 4], image[:, 15, 15]
    assert red[0] > red[1] and ground.max() < -0.7
    with pytest.raises(ValueError, match="8 lines of 8 letters"):
        live.drawing(HEART.replace("r", "q"))


def test_maps_show_where_a_token_acts():
    tok = FlexTok.from_pretrained("shapes")
    images = live.drawing(HEART).expand(2, -1, -1, -1).clone()
    images[1] = -1
    maps = changes(tok, tok.encode(images), 3)
    assert maps.shape == (3, 16, 16) and (maps.flatten(1).sum(1) > 0).any()
    same = changes(tok, tok.encode(images[:1]).expand(2, -1).clone(), 3)
    assert not same.any()
    assert len(token_maps({"a": maps, "b": maps}, columns=2).subfigs) == 2
