"""What tokens carry: information against known joints, maps, swaps, and the command."""

import json
import math

import pytest
import torch
from conftest import TINY, randomised

from minflextok import FlexTok
from minflextok.config import ClassifierConfig
from minflextok.evaluation.classifier import Classifier
from minflextok.experiments.information import (
    Vocabulary,
    corrected_information,
    digits,
    entropy,
    mutual_information,
)
from minflextok.experiments.token_effects import (
    Decoder,
    effective_area,
    open_maps,
    open_summary,
    replaced,
    swaps,
    token_maps,
)
from minflextok.experiments.tokens import main

SMALL = ClassifierConfig(image_size=8, widths=(8, 8), strides=(1, 2), num_classes=4)


def pairs(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(200, (n,), generator=g), torch.randint(10, (n,), generator=g)


# ---- information ---------------------------------------------------------------------------------


def test_information_of_known_joints():
    # 3/8 of each of (0, 0), (1, 1), 1/8 of each of (0, 1), (1, 0)
    ids = torch.tensor([0, 0, 0, 0, 7, 7, 7, 7])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
    expected = 1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)
    assert mutual_information(ids, labels) == pytest.approx(expected)
    assert mutual_information(ids * 300, ids // 7) == pytest.approx(1)
    assert mutual_information(torch.zeros_like(ids), labels) == pytest.approx(0)
    assert entropy(torch.tensor([[1, 1, 2, 0], [0, 3, 0, 0]])).tolist() == [1.5, 0.0]


def test_the_correction_takes_the_bias_away():
    ids, labels = pairs(2000)
    found = corrected_information(ids, labels)
    assert found["plug-in"] > 0.5  # though the two are independent
    assert abs(found["corrected"]) < 0.06 and found["p"] > 0.05
    dependent = corrected_information(torch.where(ids < 100, labels, ids), labels)
    assert dependent["corrected"] > 0.5 and dependent["p"] < 0.05


def test_digits_are_those_of_fsq():
    tok = randomised()
    ids = torch.arange(tok.config.vocab_size)
    codes = (digits(ids, tok.config.fsq_levels) - tok.fsq.center) / tok.fsq.center
    assert torch.equal(codes, tok.fsq.ids_to_codes(ids))


def test_the_vocabulary_is_that_of_the_images_it_was_made_from():
    ids, labels = torch.tensor([4, 4, 4, 2, 2, 2]), torch.tensor([1, 1, 0, 0, 0, 0])
    vocabulary = Vocabulary(ids, labels, 6)
    assert vocabulary.classes.tolist() == [0, 0, 0, 0, 1, 0]  # unseen ids: the most frequent class
    assert vocabulary.correct(torch.tensor([4, 2, 5]), torch.tensor([1, 1, 0])).tolist() == [
        True,
        False,
        True,
    ]
    independent = Vocabulary(*pairs(2000), 200).correct(*pairs(2000, seed=1)).double().mean()
    assert independent < 0.14  # purity on its own images would be about twice as large


# ---- effects on the image ------------------------------------------------------------------------


def test_a_token_that_is_not_replaced_changes_nothing():
    ids = torch.arange(12).view(3, 4)
    assert replaced(ids, 2).tolist() == [[0, 1, 6, 3], [4, 5, 10, 7], [8, 9, 2, 11]]
    decode = Decoder(randomised(), steps=2)
    maps = token_maps(decode, torch.full((3, 6), 5))  # all images have the same ids
    assert len(maps["replaced"]) == 6 and len(maps["added"]) == 5
    assert max(m.max() for m in maps["replaced"]) == 0
    ids = torch.randint(0, 120, (3, 6), generator=torch.Generator().manual_seed(0))
    found = token_maps(decode, ids)
    swapped = replaced(ids, 1)
    expected = (decode(swapped) - decode(ids)).abs().mean(1)
    torch.testing.assert_close(found["replaced"][1], expected)
    torch.testing.assert_close(
        found["added"][2], (decode(ids[:, :4]) - decode(ids[:, :3])).abs().mean(1)
    )


def test_areas_of_points_and_of_planes():
    point, half = torch.zeros(8, 8), torch.zeros(8, 8)
    point[3, 4], half[:4] = 0.7, 0.2
    found = effective_area(torch.stack([point, half, torch.ones(8, 8)]))
    torch.testing.assert_close(found, torch.tensor([1 / 64, 0.5, 1.0]).double())


class Noisy:
    """Stands for a decoder whose images are 0.3 plus noise of standard deviation 0.5."""

    tok = randomised()

    def __call__(self, ids, seed=0):
        g = torch.Generator().manual_seed(seed)
        return 0.3 + 0.5 * torch.randn(len(ids), 3, 32, 32, generator=g)


def test_variance_and_bias_of_repeated_decodes():
    found = open_maps(Noisy(), torch.zeros(4, 6, dtype=torch.long), torch.zeros(4, 3, 32, 32), 6)
    for row in open_summary(found).values():
        assert row["standard deviation"] == pytest.approx(0.5, rel=0.03)
        assert row["squared bias"]["mean"] == pytest.approx(0.09, abs=0.01)
        assert row["share of variance"] == pytest.approx(0.25 / 0.34, abs=0.03)


def test_swaps_at_both_ends_are_reconstructions():
    tok = FlexTok(TINY).eval()
    decode, classifier = Decoder(tok, 1), Classifier(SMALL).eval()
    ids = torch.randint(0, 120, (12, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 4
    found = swaps(decode, ids, labels, classifier, 10)
    assert list(found) == ["0", "1", "2", "4", "6"] and found["0"]["A"]["n"] == 10
    predicted = classifier(decode(ids[:10])).argmax(1)
    assert found["6"]["A"]["mean"] == (predicted == labels[:10]).double().mean().item()


# ---- the command ---------------------------------------------------------------------------------


def test_the_command(tmp_path, two_colors, capsys):
    randomised().save_pretrained(tmp_path / "tiny")
    Classifier(SMALL).save_pretrained(tmp_path / "classifier")
    sizes = ["--train-images", "30", "--test-images", "20", "--decoded-images", "2"]
    effort = ["--repeats", "2", "--pairs", "4", "--steps", "1", "--data", two_colors]
    models = ["--weights", str(tmp_path / "tiny"), "--classifier", str(tmp_path / "classifier")]
    main([*sizes, *effort, *models, "--out", str(tmp_path)])
    results = json.loads((tmp_path / "tiny.json").read_text())
    assert list(results["positions"]) == [str(j) for j in range(1, 7)]
    assert "1" not in results["added"] and "0" in results["swaps"]
    assert results["first token"]["purity"]["n"] == 20
    assert {f.name for f in tmp_path.glob("*.png")} == {
        f"tiny-{kind}.png" for kind in ("vocabulary", "maps", "open", "numbers")
    }
    assert "class from the first id alone" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
