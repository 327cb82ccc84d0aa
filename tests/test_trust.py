"""Files from elsewhere: damaged, hostile or too large, they are refused by name, at once, and take
no more memory than their size justifies."""

import dataclasses
import json
import shutil
import time
import warnings

import pytest
import torch
from conftest import TINY, changed, randomised
from safetensors.torch import load_file, save_file

from minflextok import FlexTok, TokenizerConfig
from minflextok.config import WEIGHTS_DIR, ClassifierConfig, PriorConfig, VAEConfig, from_dict
from minflextok.evaluation.classifier import Classifier
from minflextok.prior import Prior
from minflextok.vae import VAE
from minflextok.weights import find, read_json, write_atomic

CLASSES = ClassifierConfig(image_size=8, widths=(8, 8), strides=(1, 2), num_features=8)
LATENTS = VAEConfig(latent_channels=4, widths=(8, 16), layers=2, groups=4, image_size=24)
TOKENS = PriorConfig(vocab_size=120, num_tokens=6, num_classes=3, dim=64, depth=2, head_dim=32)
WORDS = dataclasses.replace(
    TOKENS, num_classes=0, text="words", words=("red",), text_dim=32, text_length=4
)
MODELS = [(FlexTok, TINY), (VAE, LATENTS), (Classifier, CLASSES), (Prior, TOKENS), (Prior, WORDS)]


@pytest.fixture
def saved(tmp_path):
    randomised().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, **fields):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | fields), encoding="utf-8")


# ---- configs that would exhaust the machine ------------------------------------------------------

HUGE = [
    (FlexTok, {"dec_dim": 10**9 - 10**9 % 64}),
    (FlexTok, {"dec_dim": 10**9}),
    (FlexTok, {"enc_dim": 2**15}),
    (FlexTok, {"dec_dim": 2**16}),
    (FlexTok, {"image_size": 10**6}),
    (FlexTok, {"image_size": 1024}),
    (FlexTok, {"enc_depth": 20_000}),
    (FlexTok, {"dec_depth": 1000}),
    (FlexTok, {"num_registers": 10**9}),
    (FlexTok, {"patch_size": 10**9, "image_size": 10**9}),
    (FlexTok, {"in_channels": 10**9}),
    (FlexTok, {"head_dim": 10**12}),
    (FlexTok, {"fsq_levels": [2] * 10**5}),
    (FlexTok, {"fsq_levels": [10**9] * 50}),
    (FlexTok, {"token_std": 10**400}),
    (VAE, {"widths": [4] * 10**5}),
    (VAE, {"widths": [10**9, 10**9]}),
    (VAE, {"layers": 10**5}),
    (VAE, {"layers": 1000}),
    (VAE, {"latent_channels": 10**9}),
    (VAE, {"groups": 10**9}),
    (Classifier, {"widths": [8] * 10**5, "strides": [1] * 10**5}),
    (Classifier, {"widths": [8] * 1000, "strides": [1] * 1000}),
    (Classifier, {"widths": [8, 10**9]}),
    (Classifier, {"num_classes": 10**9}),
    (Classifier, {"num_features": 10**9}),
    (Prior, {"depth": 10**5}),
    (Prior, {"depth": 1000}),
    (Prior, {"dim": 10**9 - 10**9 % 32}),
    (Prior, {"vocab_size": 10**9}),
    (Prior, {"num_tokens": 10**9}),
    (Prior, {"num_classes": 10**9}),
]


@pytest.mark.parametrize("cls, fields", HUGE)
def test_a_config_cannot_ask_for_more_than_its_file_holds(tmp_path, cls, fields):
    config = next(c for kind, c in MODELS if kind is cls)
    cls(config).save_pretrained(tmp_path)
    rewrite(tmp_path, **fields)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"config.json: .*give|does not fit its config") as e:
        cls.from_pretrained(tmp_path)
    assert time.perf_counter() - start < 2
    assert len(str(e.value)) < 500 and "\n" not in str(e.value)


def test_nothing_is_built_for_a_config_that_does_not_fit(saved, monkeypatch):
    rewrite(saved, dec_dim=2**14)
    monkeypatch.setattr(FlexTok, "__init__", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(ValueError, match=r"decoder.patch_proj.weight is \(64, 12\), .*16384"):
        FlexTok.from_pretrained(saved)


@pytest.mark.parametrize("cls, config", MODELS, ids=lambda x: getattr(x, "__name__", ""))
def test_shapes_are_those_of_the_model(cls, config):
    state = {name: tuple(x.shape) for name, x in cls(config).state_dict().items()}
    shapes = config.shapes()
    assert shapes == {name: state[name] for name in shapes}


@pytest.mark.parametrize("fields", [{"dec_dim": 10**9}, {"image_size": 10**6}])
def test_a_model_in_python_has_the_same_bounds(fields):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"{next(iter(fields))}=.*give"):
        changed(**fields)
    assert time.perf_counter() - start < 1


# ---- tensors of other kinds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda x: x.to(torch.int32), "encoder.registers is torch.int32"),
        (lambda x: x > 0, "torch.bool"),
        (lambda x: x.to(torch.complex64), "torch.complex64"),
        (lambda x: x.to(torch.uint8), "torch.uint8"),
        (lambda x: torch.full_like(x, float("nan")), "encoder.registers holds NaN"),
        (lambda x: x.index_fill(0, torch.tensor([0]), float("inf")), "holds NaN or infinite"),
        (
            lambda x: x.index_fill(0, torch.tensor([0]), float("nan")).to(torch.bfloat16),
            "holds NaN or infinite",
        ),
    ],
)
def test_tensors_of_another_kind_are_refused(saved, change, match):
    file = saved / "model.safetensors"
    tensors = load_file(file)
    try:
        save_file(tensors | {"encoder.registers": change(tensors["encoder.registers"])}, file)
    except KeyError as e:
        pytest.skip(f"this version of safetensors writes no {e}")
    with pytest.raises(ValueError, match=f"model.safetensors: .*{match}"):
        FlexTok.from_pretrained(saved)


def test_counters_may_be_whole_numbers_but_nothing_else(tmp_path):
    Classifier(CLASSES).save_pretrained(tmp_path)
    Classifier.from_pretrained(tmp_path)
    file, name = tmp_path / "model.safetensors", "stem.1.num_batches_tracked"
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name].float()}, file)
    with pytest.raises(ValueError, match=f"{name} is torch.float32"):
        Classifier.from_pretrained(tmp_path)


def test_large_finite_half_precision_weights_load(saved):
    """Their sum overflows, they do not."""
    file = saved / "model.safetensors"
    tensors = {name: x.half() for name, x in load_file(file).items()}
    tensors["encoder.registers"] = torch.full_like(tensors["encoder.registers"], 6e4)
    save_file(tensors, file)
    assert FlexTok.from_pretrained(saved).encoder.registers.max() > 5e4


# ---- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**5,
        '{"a":' * 10**5 + "1" + "}" * 10**5,
        "",
        "null",
        "3",
        '{"image_size": {}}',
        '{"image_size": null}',
        '{"fsq_levels": [[8]]}',
        '{"fsq_levels": "8"}',
        '{"enc_dim": 1e999}',
        '{"enc_dim": ' + "9" * 5000 + "}",
        "\xff",
    ],
)
def test_any_config_json_ends_in_one_line_that_names_it(saved, text):
    (saved / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config.json") as e:
        FlexTok.from_pretrained(saved)
    assert "\n" not in str(e.value) and "Recursion" not in str(e.value)


def test_a_huge_json_file_is_not_read(tmp_path):
    with open(tmp_path / "x.json", "wb") as f:
        f.truncate(2**40)  # sparse: takes no room on the disk
    with pytest.raises(ValueError, match=r"x.json.*more than"):
        read_json(tmp_path / "x.json")


def test_a_float_may_be_a_large_whole_number_but_finite():
    assert from_dict(TokenizerConfig, {"repa_weight": 10**9}).repa_weight == 10**9
    with pytest.raises(ValueError, match="repa_weight="):
        from_dict(TokenizerConfig, {"repa_weight": 10**400})


# ---- names ---------------------------------------------------------------------------------------


def test_a_folder_without_weights_does_not_hide_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10-tiny").mkdir()
    (tmp_path / "cifar10-tiny/notes.txt").write_text("figures")
    assert find("cifar10-tiny") == WEIGHTS_DIR / "cifar10-tiny"
    assert FlexTok.from_pretrained("cifar10-tiny").config.num_registers == 16


def test_a_folder_with_weights_is_read_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    randomised().save_pretrained("cifar10-tiny")
    with pytest.warns(UserWarning, match=r"cifar10-tiny is a folder here.*reading the folder"):
        assert FlexTok.from_pretrained("cifar10-tiny").config == TINY
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FlexTok.from_pretrained("./cifar10-tiny")
    shutil.move("cifar10-tiny", "mine")
    assert FlexTok.from_pretrained("mine").config == TINY


@pytest.mark.parametrize("name", ["..", "../weights", "", ".", "cifar10-tiny/..", "judge-cifar10/"])
def test_only_plain_names_are_shipped_ones(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError)):
        assert WEIGHTS_DIR.parent not in find(name).resolve().parents
        FlexTok.from_pretrained(name)


# ---- a full disk ---------------------------------------------------------------------------------


def test_a_full_disk_is_named_with_its_file(tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")

    def fsync(_):
        raise full

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device.*run.json") as e:
        write_atomic(tmp_path / "run.json", "{}")
    assert e.value.errno == 28 and not list(tmp_path.iterdir())
