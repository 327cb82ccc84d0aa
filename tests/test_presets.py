"""The registry of presets."""

import json
from pathlib import Path

import pytest

import minflextok
from minflextok import config, presets
from minflextok.config import from_dict, to_json
from minflextok.weights import find

BEFORE = json.loads((Path(__file__).parent / "presets.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("view", BEFORE)
def test_presets_have_not_changed(view):
    """Every field of every preset, against a dump of them: figures and weights depend on these
    values."""
    for name, before in BEFORE[view].items():
        found = json.loads(to_json(getattr(presets, view)[name]))
        assert {key: found[key] for key in before} == before, name


def test_every_preset_has_a_recipe_and_names_what_exists():
    for stage in (presets.TOKENIZERS, presets.VAES, presets.PRIORS, presets.CLASSIFIERS):
        for name, preset in stage.items():
            assert from_dict(type(preset.model), json.loads(to_json(preset.model))) == preset.model
            assert preset.data in (None, "shapes", "shapes-100k", "cifar10"), name
            if preset.tokenizer:
                tokenizer, prior = presets.PRESETS[preset.tokenizer], preset.model
                assert (prior.vocab_size, prior.num_tokens) == (
                    tokenizer.vocab_size,
                    tokenizer.num_registers,
                )


def test_shipped_weights_are_of_their_preset():
    for name in ("shapes", "shapes32", "cifar10-tiny", "cifar10", "cifar10-64", "imagenet64"):
        held = json.loads((find(name) / "config.json").read_text(encoding="utf-8"))
        assert from_dict(type(presets.PRESETS[name]), held) == presets.PRESETS[name]


def test_the_names_of_before():
    assert config.PRESETS is presets.PRESETS is minflextok.PRESETS
    assert config.PRIOR_RECIPES is presets.PRIOR_RECIPES
    with pytest.raises(AttributeError, match="NOTHING"):
        _ = config.NOTHING
