"""The drawings of notebooks 00 to 02 show the numbers that they are given."""

import numpy as np
import pytest
import torch

from minflextok.course import exercises
from minflextok.course.attention import attention_diagram
from minflextok.course.clocks import clock_faces
from minflextok.course.lineup import PAIRS, line_up
from minflextok.course.quickstart_figures import frame_failures, own_picture
from minflextok.course.register_figures import attention_maps, three_maps
from minflextok.evaluation.figures import image_grid


def test_attention_diagram_shows_the_weighted_mean():
    g = torch.Generator().manual_seed(0)
    scores, values = (
        3 * torch.randn(18, generator=g),
        torch.randn(18, 5, generator=g),
    )  # 16 patches, r0, r1
    weights = scores.softmax(0)
    fig = attention_diagram(torch.zeros(3, 8, 8), scores, weights, values)
    _, left, middle, right = fig.axes
    assert fig.axes[0].get_title().endswith("query: r1")
    shown = [
        [t.get_text() for t in ax.texts[1:]] for ax in (left, middle)
    ]  # the first text is the arrow
    assert shown == [[f"{s:.1f}" for s in scores], [f"{100 * w:.0f}" for w in weights]]

    lines = right.texts[0].get_text().split("\n\n")
    numbers = [
        [float(x) for x in line[line.index("(") + 1 :].split(",")[:3]]
        for line in lines
        if "(" in line
    ]
    parts = [float(line.split()[0]) if "×" in line else 1 for line in lines if "(" in line]
    *added, result = torch.tensor(numbers) * torch.tensor(parts)[:, None]
    assert torch.allclose(result, (weights @ values)[:3], atol=0.051)
    assert torch.allclose(sum(added), result, atol=0.25)  # sums of rounded numbers
    assert lines[0].endswith(f"p{int(weights[:16].argmax())}") or lines[0].endswith(
        f"r{int(weights[16:].argmax())}"
    )
    assert "14 others" in lines[4]


def test_attention_diagram_has_its_titles_in_one_line():
    weights = torch.ones(68).softmax(0)
    fig = attention_diagram(torch.zeros(3, 32, 32), torch.arange(68.0), weights, torch.randn(68, 8))
    fig.draw_without_rendering()
    tops = [ax.title.get_window_extent().y0 for ax in fig.axes[1:]]
    assert max(tops) - min(tops) < 0.01 * fig.bbox.height


def test_clock_hands_point_to_sine_and_cosine():
    angles = torch.arange(3.0)[:, None] * torch.tensor([torch.pi / 2, 0.1])
    fig = clock_faces(angles)
    for ax, row in zip(fig.axes, angles, strict=True):
        for line, a in zip(ax.lines, row, strict=True):
            tip = torch.tensor([line.get_xdata()[1], line.get_ydata()[1]]).float()
            assert torch.allclose(tip / tip.norm(), torch.stack([a.sin(), a.cos()]), atol=1e-6)
    assert [ax.get_title() for ax in fig.axes] == ["position 0", "position 1", "position 2"]
    with pytest.raises(ValueError, match="at most 4"):
        clock_faces(torch.zeros(2, 5))


def test_one_pair_of_the_line_up_is_right_and_three_pictures_are(tmp_path):
    x = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    verdicts = {name: exercises.find("patches.test_pair").solution(*f) for name, f in PAIRS.items()}
    assert [name for name, good in verdicts.items() if all(good)] == ["D"]
    exact = [
        name for name, (cut, back) in PAIRS.items() if torch.equal(back(cut(x, 4), 4, 2, 2), x)
    ]
    assert exact == ["B", "D", "F"]
    fig = line_up([x, x[:, :4]], verdicts=verdicts)
    assert len(fig.axes) == 12
    assert fig.axes[1].get_title() == "B\npatchify WRONG\nunpatchify WRONG"


def test_three_maps_show_their_largest_values():
    maps = torch.rand(3, 4, 16, generator=torch.Generator().manual_seed(0))
    fig = three_maps(*maps, (0, 2))
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[1] == f"r2\nmax {maps[0, 2].max():.0%}"
    assert titles[3] == f"max {maps[1, 2].max():.0%}" and titles[4] == f"max {maps[2, 0].max():.2f}"
    fig = attention_maps(torch.zeros(2, 3, 8, 8), {"block 0": maps[0].expand(2, 4, 16)}, (1, 3))
    assert [bool(ax.get_title()) for ax in fig.axes] == [False, True, True] * 2


def test_scenes_that_fail_are_framed():
    fig = image_grid({"a": torch.zeros(2, 3, 4, 4), "b": torch.zeros(2, 3, 4, 4)})
    frame_failures(fig, [True, False, False, True])
    assert [ax.spines["top"].get_visible() for ax in fig.axes] == [False, True, True, False]


def test_own_picture_has_a_column_for_each_number_of_tokens():
    pair = torch.zeros(2, 3, 8, 8)
    fig = own_picture(np.zeros((10, 6, 3), np.uint8), pair, {1: pair, 2: pair}, "a horse")
    assert [ax.get_title() for ax in fig.axes[:4]] == [
        "your picture",
        "8 x 8",
        "1 token",
        "2 tokens",
    ]
    [frame] = fig.axes[0].patches
    assert (frame.get_xy(), frame.get_width()) == ((0, 2), 5)
