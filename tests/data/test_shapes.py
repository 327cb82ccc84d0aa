"""Procedural scenes, their captions and the checker."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minflextok.data import load, load_dataset
from minflextok.data.shapes import (
    COLORS,
    GROUND,
    SHAPES,
    SIZES,
    Thing,
    caption,
    check,
    coverage,
    holds,
    make_shapes,
    parse_caption,
    random_scene,
    read_scene,
    render,
)


@pytest.mark.parametrize("side, count, least", [(16, 100, 0.98), (32, 80, 0.98), (64, 30, 0.98)])
def test_the_checker_reads_what_was_rendered_and_nothing_else(side, count, least):
    images, captions, _ = make_shapes(count, side, seed=11)
    assert np.mean([check(i, c).met for i, c in zip(images, captions, strict=True)]) >= least
    assert (
        np.mean([check(i, c).met for i, c in zip(images, captions[1:] + captions[:1], strict=True)])
        < 0.02
    )
    noisy = (
        (images + np.random.default_rng(0).normal(0, 10, images.shape))
        .clip(0, 255)
        .astype(np.uint8)
    )
    assert np.mean([check(i, c).met for i, c in zip(noisy, captions, strict=True)]) >= least - 0.03


def test_the_checker_says_what_is_wrong():
    scene = [
        Thing("circle", "red", "small", 0.25, 0.25),
        Thing("square", "blue", "large", 0.25, 0.75),
    ]
    image = render(scene, 32)
    assert check(image, "a small red circle above a large blue square").met
    assert check(image, "A red circle  above a blue square.").met
    for text, field in [
        ("a red circle below a blue square", "wrong_relations"),
        ("a green circle above a blue square", "missing"),
        ("a red circle", "extra"),
        ("a large red circle above a blue square", "missing"),
    ]:
        verdict = check(image, text)
        assert not verdict.met and getattr(verdict, field), text
    assert read_scene(np.full((3, 16, 16), 24, np.uint8)) == []


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_captions_are_true_and_parse_back(seed, sizes):
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    things, relations = parse_caption(caption(scene, sizes, rng))
    assert [(t.shape, t.color, t.size) for t in things] == [
        (t.shape, t.color, t.size if sizes else None) for t in scene
    ]
    assert all(holds(a, r, b) for a, r, b in zip(scene[:-1], relations, scene[1:], strict=True))


def test_shapes_are_reproducible_and_splits_differ():
    a, b = make_shapes(20, 16, 0)[0], make_shapes(20, 16, 0)[0]
    assert np.array_equal(a, b)
    train, test = load_dataset("shapes", "train"), load_dataset("shapes", "test")
    assert len(train) == 20_000 and len(test) == 2_000 and len(test.captions) == 2_000
    assert len(np.unique(train.images[:2000].flatten(1).numpy(), axis=0)) > 1900
    assert not any(
        torch.equal(i, j) for i, j in zip(train.images[:50], test.images[:50], strict=True)
    )


positions = st.floats(-0.3, 1.3)
things = st.builds(
    Thing,
    st.sampled_from(SHAPES),
    st.sampled_from(list(COLORS)),
    st.sampled_from(list(SIZES)),
    positions,
    positions,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(things, max_size=4), st.sampled_from([16, 32]))
def test_a_thing_is_drawn_wherever_it_is(scene, side):
    image = np.array(GROUND, float)[:, None, None] * np.ones((1, side, side))
    for thing in scene:
        alpha = coverage(thing, side)  # of all pixels; `render` computes a window of them
        color = np.array(COLORS[thing.color], float)[:, None, None]
        image = image * (1 - alpha) + color * alpha
    assert np.array_equal(render(scene, side), image.round().astype(np.uint8))


def test_more_scenes_have_the_same_test_split(monkeypatch):
    monkeypatch.setitem(load.SHAPES, "shapes-100k", 30)
    assert len(load_dataset("shapes-100k")) == 30
    test = load_dataset("shapes-100k", "test")
    assert test.name == "shapes-100k"
    assert torch.equal(test.images, load_dataset("shapes", "test").images)


def test_shapes_bad_input():
    for text in ("", "a pink circle", "red circle", "a red circle near a blue square"):
        with pytest.raises(ValueError, match="cannot read the caption"):
            parse_caption(text)
    with pytest.raises(ValueError, match="8x8"):
        load_dataset("shapes", image_size=8)
    with pytest.raises(ValueError, match="uint8"):
        read_scene(np.zeros((16, 16, 3)))
