"""Scores that are collected batch by batch."""

from collections import Counter

import numpy as np
import pytest
import torch

from minflextok.data.shapes import check, make_shapes, parse_caption, render
from minflextok.evaluation.metrics import psnr, ssim
from minflextok.evaluation.scores import (
    CaptionScores,
    Scores,
    image_noise,
    other_captions,
    share,
)

IMAGES, CAPTIONS, SCENES = make_shapes(24, seed=5)


def test_noise_belongs_to_the_image():
    whole = image_noise((6, 3, 4, 4), seed=5, first=0)
    assert torch.equal(whole[2:5], image_noise((3, 3, 4, 4), seed=5, first=2))
    assert not torch.equal(whole, image_noise((6, 3, 4, 4), seed=6, first=0))
    assert len(torch.unique(whole)) == whole.numel()


def test_scores_take_uneven_batches_and_keep_one_tensor_a_value():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(20, 3, 12, 12, generator=g) for _ in range(2))
    labels = torch.arange(20) % 2
    scores = Scores(  # 30 were announced, 20 come
        30, lambda x: x.flatten(1)[:, :4], lambda x: torch.eye(2)[[0] * len(x)]
    )
    for part in torch.arange(20).split([7, 1, 12]):
        scores.update(a[part], labels[part], b[part])
        held = [x for x in vars(scores).values() if isinstance(x, (list, tuple))]
        assert not held and all(
            isinstance(x, torch.Tensor) and len(x) == 30 for x in scores.values.values()
        )
    found = scores.summary()
    assert found["psnr"]["mean"] == pytest.approx(psnr(a, b).mean().item(), rel=1e-6)
    assert found["ssim"]["mean"] == pytest.approx(ssim(a, b).mean().item(), rel=1e-5)
    assert found["accuracy"]["mean"] == 0.5 and "features" not in found
    assert scores.distance(scores)["ci95"] == pytest.approx([0, 0], abs=1e-9)


# ---- captions ------------------------------------------------------------------------------------


def test_an_image_meets_its_caption_and_a_spoilt_one_does_not():
    scores, spoilt = CaptionScores(), CaptionScores()
    others = other_captions(CAPTIONS)
    scores.update(torch.from_numpy(IMAGES), CAPTIONS, others)
    spoilt.update(torch.from_numpy(np.stack([render(s[1:]) for s in SCENES])), CAPTIONS, others)
    found, lost = scores.summary(), spoilt.summary()
    counts = Counter(len(s) for s in SCENES)
    assert list(found["met"]) == ["all", *(str(n) for n in sorted(counts))]
    for n, count in counts.items():
        assert (
            found["met"][str(n)]["mean"] == found["things"][str(n)]["mean"] == 1
            and found["met"][str(n)]["n"] == count
        )
        assert lost["met"][str(n)]["mean"] == 0 and lost["things"][str(n)]["mean"] == pytest.approx(
            1 - 1 / n
        )
        right = [
            check(i, o).met
            for i, o, s in zip(IMAGES, others, SCENES, strict=True)
            if len(s) == n and o
        ]
        assert found["shuffled"][str(n)]["mean"] == pytest.approx(sum(right) / len(right))
    assert found["met"]["all"]["n"] == 24 and found["shuffled"]["all"]["mean"] < 0.2


def test_the_control_is_another_caption_that_says_as_much():
    one, two = ["a red circle", "a blue square"], ["a red circle above a blue square"]
    assert other_captions([one[0], two[0], one[1]]) == [one[1], None, one[0]]
    others = other_captions(CAPTIONS)
    assert Counter(others) == Counter(CAPTIONS)  # each serves once
    assert all(
        len(parse_caption(a)[0]) == len(parse_caption(b)[0])
        for a, b in zip(CAPTIONS, others, strict=True)
    )
    with pytest.raises(ValueError, match="cannot read the caption 'a cat'"):
        other_captions(["a cat"])


def test_shares_have_wilsons_interval():
    n, z = (
        10,
        1.959964,
    )  # https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval
    for hits in (0, 3, 10):
        p, found = hits / n, share([i < hits for i in range(n)])
        middle, half = (
            (p + z**2 / 2 / n) / (1 + z**2 / n),
            z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / 4 / n**2) ** 0.5,
        )
        assert found["mean"] == p and found["ci95"] == pytest.approx(
            [middle - half, middle + half], abs=1e-5
        )
