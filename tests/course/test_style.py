"""Colors of token budgets, the diagram, animations."""

import io
from itertools import pairwise

import matplotlib.pyplot as plt
import PIL.Image
import pytest
import torch
from matplotlib.colors import to_rgb

from minflextok import FlexTok, Prior, PriorConfig, TokenizerConfig
from minflextok.course import check, relatives_figures, savings_figures, vae_figures
from minflextok.course.animation import animate
from minflextok.course.block_diagram import adaln_block
from minflextok.course.counting import operations
from minflextok.course.diagram import PARTS, architecture
from minflextok.course.mask import mask_diagram
from minflextok.course.style import k_color, k_line
from minflextok.course.text_figures import word_attention


def luminance(color: str) -> float:
    r, g, b = to_rgb(color)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_colors_grow_lighter_with_the_number_of_tokens():
    shades = [luminance(k_color(k)) for k in range(1, 257)]
    assert shades == sorted(shades)
    powers = [luminance(k_color(2**i)) for i in range(6)]
    assert all(b - a > 0.05 for a, b in pairwise(powers))
    assert k_line(1)["label"] == "1 token" and k_line(8)["label"] == "8 tokens"
    assert len({k_line(2**i)["marker"] for i in range(9)}) == 9
    with pytest.raises(ValueError, match="k=300"):
        k_color(300)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_can_be_highlighted(part, tmp_path):
    plain, highlighted = (tmp_path / f"{i}.png" for i in range(2))
    architecture(vae=True).savefig(plain, dpi=40)
    architecture(part, vae=True).savefig(highlighted, dpi=40)
    assert plain.read_bytes() != highlighted.read_bytes()


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match=r"highlight='unet': give names from image, vae"):
        architecture("unet")


def test_the_mask_has_a_cell_for_each_pair_of_registers_in_order():
    texts = [text.get_text() for text in mask_diagram().axes[0].texts]
    cells = {f"$r_{i}$ to $r_{j}$" for i in range(4) for j in range(4) if j <= i}
    assert {text for text in texts if " to $" in text} == cells


def test_the_block_diagram_shows_the_six_vectors_of_the_timestep():
    texts = [text for ax in adaln_block().axes for text in ax.texts]
    words = [text.get_text() for text in texts]
    for branch in ("attn", "mlp"):
        assert {f"1 + scale ({branch})", f"shift ({branch})", f"gate ({branch})"} <= set(words)
    assert min(text.get_fontsize() for text in texts) >= 9


def test_an_animation_has_its_frames_and_durations():
    figures = []
    for i in range(3):
        fig, ax = plt.subplots(figsize=(1, 1))
        ax.plot([0, i])
        figures.append(fig)
    data = animate(figures, seconds=0.1, hold=0.5).data
    picture = PIL.Image.open(io.BytesIO(data))
    assert picture.n_frames == 3
    durations = []
    for i in range(3):
        picture.seek(i)
        durations.append(picture.info["duration"])
    assert durations == [100, 100, 500]
    with pytest.raises(ValueError, match="of one size"):
        animate([])


def test_attention_to_words_adds_up_to_1_for_each_caption():
    words = ("a", "circle", "red")
    prior = Prior(PriorConfig(16, 4, 0, dim=32, depth=2, head_dim=16, text="words", words=words))
    weights = word_attention(prior, ["a red circle", "a circle"], torch.zeros(2, 3).long())
    assert weights.shape == (2, 2, 2, 4, 3)  # blocks, captions, heads, positions, words
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 2, 4))
    assert (weights[:, 1, :, :, 2] == 0).all()  # padding


@pytest.mark.parametrize("use", [(), *((s,) for s in savings_figures.SAVINGS)])
def test_a_guided_step_with_any_of_the_savings_is_the_plain_step(use):
    c = TokenizerConfig(8, 3, 2, 8, 1, 8, 2, head_dim=4, num_registers=6)
    decoder = FlexTok(c).eval().requires_grad_(False).decoder
    for p in decoder.parameters():
        p.add_(0.3 * torch.randn_like(p))
    codes, keep, everyone = torch.randn(2, 6, 6), torch.tensor([2, 2]), torch.ones(2).bool()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.4])
    registers, null = (decoder.embed_registers(codes, keep, n) for n in (~everyone, everyone))
    v, u = decoder(x, t, registers), decoder(x, t, null)
    found = savings_figures.guided_step(decoder, x, t, registers, 2, null, 3.0, use)
    assert torch.allclose(found, u + 3 * (v - u), atol=1e-4)


def test_the_bars_of_the_savings_end_at_100_percent_although_times_are_noisy():
    fig = savings_figures.saving_bars({"a": [10, 11, 8, 8.5, 5], "b": [4, 3, 3, 3, 2]})
    ends = [bar.get_x() + bar.get_width() for bar in fig.axes[0].patches]
    assert max(ends) == pytest.approx(100)


def test_operations_and_multiplications_are_counted():
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    assert operations(lambda: a @ b + 1) == (2, 2 * 3 * 4)


def test_the_parts_that_stand_in_for_unsolved_exercises_are_right():
    assert check("vae.k_means", vae_figures.k_means)
    assert check("relatives.evaluation", relatives_figures.evaluate)
