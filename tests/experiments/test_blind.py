"""The sheets of a recognition test, and its score."""

import json

import matplotlib.pyplot as plt
import pytest

from minflextok.experiments.blind import main, score


def test_sheets_show_the_same_images_in_another_order_and_answers_are_counted(tmp_path, capsys):
    small = ["--weights", "cifar10-tiny", "--num-images", "12", "--tokens", "2", "--steps", "1"]
    main([*small, "--out", str(tmp_path)])
    key = json.loads((tmp_path / "key.json").read_text())
    assert key["reconstructions"] != key["originals"]
    assert sorted(key["reconstructions"]) == sorted(key["originals"])
    for name in ("reconstructions", "originals"):
        assert plt.imread(tmp_path / f"{name}.png").std() > 0.1
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(key | {"originals": ["cat"] * 12}))
    main(["--out", str(tmp_path), "--answers", str(answers)])
    cats = key["originals"].count("cat")
    printed = capsys.readouterr().out
    assert "reconstructions: 12 of 12 right (100%)\n" in printed
    assert f"originals: {cats} of 12 right" in printed


def test_wrong_answers_are_listed_and_bad_ones_refused():
    key = ["cat", "cat", "dog", "ship"]
    assert score(key, ["dog", "dog", "dog", "cat"]) == (
        "1 of 4 right (25%); cat as dog (2), ship as cat"
    )
    assert score(key, ["cat", "cat", "dog", "boat"], ["boat"]) == "3 of 4 right (75%); ship as boat"
    with pytest.raises(ValueError, match="3 answers to 4 images"):
        score(key, ["cat"] * 3)
    with pytest.raises(ValueError, match=r"\['boat'\]: give names among cat, dog, ship"):
        score(key, ["cat", "cat", "dog", "boat"])


def test_data_without_enough_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give at least 2000 test images with classes"):
        main(["--weights", "cifar10-tiny", "--num-images", "2000", "--out", str(tmp_path)])
