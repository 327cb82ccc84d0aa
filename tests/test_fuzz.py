"""Random bad calls to the public API: each ends in a ValueError, TypeError or OSError that the
package raises itself and that names the argument or its value; or the value was a good one."""

import dataclasses
import datetime
import importlib.util
import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, randomised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minflextok import FlexTok, Prior, PriorConfig, TokenizerConfig, TrainConfig
from minflextok.checks import show
from minflextok.compression import compress, decompress
from minflextok.config import VAEConfig, from_dict
from minflextok.course import check
from minflextok.data import Images, load_dataset, to_float, to_uint8
from minflextok.evaluation import fid, metrics
from minflextok.fsq import FSQ
from minflextok.guidance import APG
from minflextok.nested_dropout import sample_keep_k
from minflextok.vae import VAE

torch.manual_seed(0)
TOK = randomised()
VAE_CONFIG = VAEConfig(2, (8, 8), layers=1, groups=4, image_size=24, perceptual="none")
AUTOENCODER = VAE(VAE_CONFIG).eval()
LATENT = FlexTok(dataclasses.replace(TINY, in_channels=2)).eval()
PRIOR_CONFIG = PriorConfig(TINY.vocab_size, 6, 5, dim=16, depth=1, head_dim=8)
PRIOR = Prior(PRIOR_CONFIG).eval()
WORDS = ("blue", "circle")
TEXT = dataclasses.replace(
    PRIOR_CONFIG, num_classes=0, text="words", words=WORDS, text_dim=16, text_depth=1, text_length=4
)
TEXT_PRIOR = Prior(TEXT).eval()
QUANTIZER = FSQ((8, 5, 3))

X = torch.rand(2, 3, 8, 8) * 2 - 1
BIG = torch.rand(2, 3, 12, 12) * 2 - 1
IDS = torch.tensor([[0, 1, 2, 3, 4, 5], [119, 5, 4, 3, 2, 1]])
LABELS = torch.tensor([0, 4])
FEATURES = torch.randn(6, 3)
STATS = fid.FeatureStats().update(FEATURES)

# ---- which values of an argument are good --------------------------------------------------------

Good = Callable[[Any], bool]


def never(value: Any) -> bool:
    return False


def whole(low: int, high: int) -> Good:
    kinds = (int, np.integer)
    return lambda v: isinstance(v, kinds) and not isinstance(v, bool) and low <= v <= high


def number(low: float, high: float) -> Good:
    kinds = (int, float, np.integer, np.floating, Fraction)
    return lambda v: isinstance(v, kinds) and not isinstance(v, bool) and low <= v <= high


def one_of(*values: Any) -> Good:
    return lambda v: any(v is x or (type(v) is type(x) and v == x) for x in values)


def either(*goods: Good) -> Good:
    return lambda v: any(good(v) for good in goods)


NONE, SWITCH = one_of(None), one_of(True, False)
SCALE = number(-1e4, 1e4)
SEED = whole(0, 2**63 - 1)
GUIDE = either(SCALE, lambda v: v is int)  # int(t) is 0


def path(value: Any) -> bool:
    return isinstance(value, str | Path) and not {"", "\0", "\ud800"} & {*str(value), str(value)}


def folder_there(value: Any) -> bool:
    return path(value) and len(str(value)) < 99 and Path(value).is_dir()


def tensor(*dtypes: torch.dtype, ok: Callable[[torch.Tensor], bool] = lambda v: True) -> Good:
    """A dense tensor that holds values, finite ones."""

    def good(v: Any) -> bool:
        plain = isinstance(v, torch.Tensor) and v.layout == torch.strided
        if not plain or v.is_meta or v.is_nested or v.numel() == 0:
            return False
        return v.dtype in dtypes and bool(v.double().abs().amax() < 1e4) and ok(v)

    return good


FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

TIME = either(
    number(0, 1),
    tensor(*FLOATS, *INTEGERS, ok=lambda v: v.numel() <= 2 and 0 <= v.min() <= v.max() <= 1),
)

TOKENS = tensor(
    *INTEGERS, ok=lambda v: v.ndim == 2 and v.shape[1] <= 6 and 0 <= v.min() <= v.max() < 120
)
EMPTY = either(lambda v: show(v) == "torch.int64 (2, 0)")
CLASSES = tensor(*INTEGERS, ok=lambda v: v.shape == (2,) and 0 <= v.min() <= v.max() < 5)
NULL = either(SWITCH, tensor(torch.bool, ok=lambda v: v.shape == (2,)))

# ---- the calls: function, good arguments, which other values of each are good ------------------


@dataclasses.dataclass
class Call:
    function: Callable
    arguments: dict[str, Any]  # a good call
    good: dict[str, Good]  # of the arguments that are varied


IMAGES = {"images": never}
BUDGET = {"num_tokens": either(whole(1, 6), NONE), "batch_size": either(whole(1, 2**31 - 1), NONE)}
DECODE = {
    "ids": either(TOKENS, lambda v: show(v) == "[tensor([1])]"),
    "steps": whole(1, 200),
    "guidance": GUIDE,
    "apg": SWITCH,
    "noise": NONE,
    "generator": NONE,
    "progress": SWITCH,
    "to_images": SWITCH,
    "batch_size": BUDGET["batch_size"],
}
PAIR = {"a": never, "b": never}
DTYPE = one_of(torch.float32, torch.bfloat16, torch.float16)
CALLS = {
    "FlexTok": Call(FlexTok, {"config": TINY}, {"config": one_of(TINY), "vae": NONE}),
    "to_latents": Call(TOK.to_latents, {"images": X}, IMAGES),
    "encode_continuous": Call(TOK.encode_continuous, {"images": X}, IMAGES),
    "encode": Call(TOK.encode, {"images": X}, IMAGES | BUDGET),
    "encode_latents": Call(TOK.encode_latents, {"x": X}, {"x": never} | BUDGET),
    "velocity": Call(
        TOK.velocity,
        {"x_t": X, "t": 0.5, "ids": IDS},
        {"x_t": never, "t": TIME, "ids": TOKENS, "null": NULL},
    ),
    "decode": Call(TOK.decode, {"ids": IDS, "steps": 2}, DECODE),
    "decode with all": Call(
        TOK.decode, {"ids": [IDS[0], IDS[1, :2]], "steps": 2, "noise": X, "guidance": 3.0}, DECODE
    ),
    "reconstruct": Call(
        TOK.reconstruct,
        {"images": X, "steps": 2},
        IMAGES | BUDGET | {key: DECODE[key] for key in DECODE if key != "ids"},
    ),
    "encode_adaptive": Call(
        TOK.encode_adaptive,
        {"images": X, "target": 5.0, "steps": 1},
        IMAGES
        | {
            "target": either(number(-1e30, 1e30), tensor(*FLOATS, ok=lambda v: v.shape == (2,))),
            "metric": one_of("psnr"),
            "seed": whole(0, 2**63 - 1),
            "batch_size": whole(1, 2**63 - 1),
            "steps": DECODE["steps"],
        },
    ),
    "loss": Call(
        TOK.loss, {"images": X}, IMAGES | {"nested_prob": number(0, 1), "generator": NONE}
    ),
    "save": Call(
        TOK.save_pretrained, {"directory": "w"}, {"directory": path, "dtype": either(DTYPE, NONE)}
    ),
    "load": Call(
        FlexTok.from_pretrained, {"name": "saved"}, {"name": folder_there, "dtype": DTYPE}
    ),
    "attach": Call(LATENT.attach, {"vae": AUTOENCODER}, {"vae": never}),
    "Prior": Call(Prior, {"config": PRIOR_CONFIG}, {"config": never}),
    "generate": Call(
        PRIOR.generate,
        {"labels": LABELS},
        {
            "labels": tensor(*INTEGERS, ok=lambda v: v.ndim == 1 and 0 <= v.min() <= v.max() < 5),
            "num_tokens": BUDGET["num_tokens"],
            "guidance": GUIDE,
            "temperature": number(0, 1e4),
            "top_k": either(whole(1, 2**31 - 1), NONE),
            "top_p": either(number(1e-300, 1), NONE),
            "prefix": either(NONE, TOKENS, EMPTY),
            "generator": NONE,
            "use_cache": SWITCH,
        },
    ),
    "generate from text": Call(
        TEXT_PRIOR.generate, {"labels": ["blue"]}, {"labels": never, "guidance": GUIDE}
    ),
    "prior loss": Call(
        PRIOR.loss,
        {"ids": IDS, "labels": LABELS},
        {"ids": TOKENS, "labels": CLASSES, "generator": NONE},
    ),
    "logits": Call(
        PRIOR.logits,
        {"ids": IDS[:, :3], "conditions": LABELS},
        {"ids": EMPTY, "conditions": CLASSES, "null": either(NULL, NONE), "keep": NONE},
    ),
    "text logits": Call(
        TEXT_PRIOR.logits,
        {"ids": IDS[:, :3], "conditions": torch.tensor([[1, 0], [2, 1]])},
        {"ids": EMPTY, "conditions": never, "null": either(NULL, NONE), "keep": NONE},
    ),
    "prepare": Call(
        PRIOR.prepare,
        {"labels": LABELS},
        {"labels": tensor(*INTEGERS, ok=lambda v: v.ndim == 1 and 0 <= v.min() <= v.max() < 5)},
    ),
    "prepare text": Call(TEXT_PRIOR.prepare, {"labels": ["blue"]}, {"labels": never}),
    "classes": Call(PRIOR.classes, {"names": ["4", "0"]}, {"names": never}),
    "check_tokenizer": Call(PRIOR.check_tokenizer, {"tok": TOK}, {"tok": never}),
    "save prior": Call(
        PRIOR.save_pretrained, {"directory": "p"}, {"directory": path, "dtype": either(DTYPE, NONE)}
    ),
    "load prior": Call(
        Prior.from_pretrained, {"name": "saved prior"}, {"name": folder_there, "dtype": DTYPE}
    ),
    "VAE": Call(VAE, {"config": VAE_CONFIG}, {"config": never}),
    "vae encode": Call(
        AUTOENCODER.encode, {"images": BIG}, IMAGES | {"sample": SWITCH, "generator": NONE}
    ),
    "vae decode": Call(
        AUTOENCODER.decode, {"latents": torch.randn(2, 2, 6, 6)}, {"latents": never}
    ),
    "posterior": Call(AUTOENCODER.posterior, {"images": BIG}, IMAGES),
    "load vae": Call(VAE.from_pretrained, {"name": "saved vae"}, {"name": folder_there}),
    "FSQ": Call(FSQ, {"levels": (8, 5)}, {"levels": never}),
    "quantize": Call(
        QUANTIZER,
        {"z": X.movedim(1, -1)},
        {"z": tensor(*FLOATS, ok=lambda v: v.shape[-1:] == (3,))},
    ),
    "codes_to_ids": Call(
        QUANTIZER.codes_to_ids,
        {"codes": torch.zeros(2, 3)},
        {"codes": tensor(*FLOATS, ok=lambda v: v.shape[-1:] == (3,) and v.abs().max() < 1)},
    ),
    "ids_to_codes": Call(
        QUANTIZER.ids_to_codes,
        {"ids": IDS},
        {"ids": either(tensor(*INTEGERS, ok=lambda v: 0 <= v.min() <= v.max() < 120), EMPTY)},
    ),
    "psnr": Call(metrics.psnr, {"a": X, "b": X}, PAIR),
    "mae": Call(metrics.mae, {"a": X, "b": X}, PAIR),
    "ssim": Call(metrics.ssim, {"a": BIG, "b": BIG}, PAIR),
    "bootstrap": Call(
        metrics.bootstrap,
        {"values": FEATURES[:, 0], "resamples": 3},
        {
            "values": tensor(*FLOATS, *INTEGERS, torch.bool, ok=lambda v: v.ndim == 1),
            "resamples": whole(1, 100_000),
            "seed": SEED,
        },
    ),
    "code_usage": Call(
        metrics.code_usage,
        {"ids": IDS, "vocab_size": 120},
        {
            "ids": tensor(*INTEGERS, ok=lambda v: v.ndim == 2 and 0 <= v.min() <= v.max() < 120),
            "vocab_size": whole(120, 2**25),
        },
    ),
    "CodeCounts": Call(
        metrics.CodeCounts,
        {"num_registers": 2, "vocab_size": 5},
        {"num_registers": whole(1, 1000), "vocab_size": whole(1, 1000)},
    ),
    "one_step_psnr": Call(
        metrics.one_step_psnr,
        {"tok": TOK, "images": X, "ids": IDS},
        {"tok": never, "images": never, "ids": TOKENS, "seed": SEED},
    ),
    "FeatureStats": Call(
        lambda features: fid.FeatureStats().update(features),
        {"features": FEATURES},
        {"features": lambda v: isinstance(v, torch.Tensor) and v.ndim == 2 and v.dtype in FLOATS},
    ),
    "frechet_distance": Call(fid.frechet_distance, {"a": STATS, "b": STATS}, PAIR),
    "bootstrap_frechet": Call(
        fid.bootstrap_frechet,
        {"a": FEATURES, "b": FEATURES, "resamples": 2},
        PAIR | {"resamples": whole(2, 200), "seed": SEED},
    ),
    "load_dataset": Call(
        load_dataset,
        {"name_or_path": "folder", "image_size": 8},
        {
            "name_or_path": never,
            "split": one_of("train", "test"),
            "image_size": either(whole(1, 2**14), NONE),
            "workers": whole(0, 1024),
        },
    ),
    "to_float": Call(to_float, {"images": X}, {"images": tensor(torch.uint8)}),
    "to_uint8": Call(
        to_uint8,
        {"images": X},
        {"images": either(tensor(*FLOATS), lambda v: show(v).startswith("torch.float32 (0,"))},
    ),
    "Images": Call(
        Images,
        {"name": "n", "images": X.to(torch.uint8), "labels": LABELS, "classes": list("abcde")},
        {
            "name": lambda v: isinstance(v, str),
            "images": lambda v: show(v) == "torch.uint8 (2, 3, 8, 8)",
            "labels": either(NONE, CLASSES),
            "classes": lambda v: v is not None and show(v) == "[]",
            "captions": NONE,
        },
    ),
    "at": Call(
        Images("n", X.to(torch.uint8)).at,
        {"i": torch.tensor([0, 1])},
        {"i": tensor(*INTEGERS, ok=lambda v: v.ndim == 1 and 0 <= v.min() <= v.max() < 2)},
    ),
    "sample_keep_k": Call(
        sample_keep_k,
        {"batch": 2, "num_registers": 6, "mode": "pow2"},
        {
            "batch": whole(0, 2**24),
            "num_registers": whole(1, 2**31 - 1),
            "mode": one_of("uniform", "pow2", "uniform_pow2"),
            "generator": NONE,
        },
    ),
    "APG": Call(
        APG,
        {},
        {"momentum": number(-1, 1), "threshold": number(0, 1e9), "eta": SCALE},
    ),
    "APG call": Call(
        lambda **a: APG()(**a),
        {"cond": X, "uncond": X, "scale": 2.0},
        {"cond": never, "uncond": never, "scale": SCALE},
    ),
    "check": Call(
        check, {"name": "fsq.bound", "answer": len}, {"name": never, "answer": lambda v: True}
    ),
    "from_dict": Call(
        from_dict,
        {"cls": TokenizerConfig, "values": {}},
        {"cls": never, "values": one_of({})},
    ),
}
if importlib.util.find_spec("constriction"):
    CALLS["compress"] = Call(
        compress,
        {"ids": IDS, "tok": TOK},
        {"ids": TOKENS, "tok": never, "prior": NONE, "batch_size": whole(1, 2**63 - 1)},
    )
    CALLS["decompress"] = Call(
        decompress,
        {"data": compress(IDS, TOK), "tok": TOK},
        {"data": never, "tok": never, "prior": NONE, "batch_size": whole(1, 2**63 - 1)},
    )
for kind in (TokenizerConfig, VAEConfig, PriorConfig, TrainConfig):
    for f in dataclasses.fields(kind):
        CALLS[f"{kind.__name__} {f.name}"] = Call(kind, {}, {f.name: lambda v: True})

# ---- values --------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
DTYPES = [
    *(*FLOATS, *INTEGERS, torch.bool, torch.complex32, torch.complex64, torch.complex128),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn),
]


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no text")


def fails(*args):
    raise KeyError("of the caller")


VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 7, -1, 120, 2**31, 2**63, 10**30, -(10**30), 10**400, 10**5000),
    *(0.0, 0.5, 1.0, 1.5, -0.5, 1e-38, 1e5, 1e30, 1e308, -1e308, NAN, INF, -INF, 1 + 2j),
    *(np.int64(1), np.float32(0.5), np.float64(NAN), np.bool_(True), np.zeros(3), Fraction(1, 2)),
    *("x", "", "3", "\0", "\ud800", "a\nb", "../x", "x" * 5000, "nan", "pow2", b"x", Path("x")),
    *([], [1], ["a"], [[0, 1]], [None], (), (1, 2), {}, {"a": 1}, {1: 2}, {3}, {"image_size": 0}),
    *([torch.tensor([1])], [torch.tensor(1)], [torch.zeros(0).long()], ["blue", 3], ["\ud800"]),
    *(object(), Unprintable(), object, int, len, fails, lambda *a: NAN, lambda *a: "x"),
    *(torch.nn.Linear(2, 2), torch.Generator, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float64, torch.int8, torch.complex64, torch.float8_e4m3fn, torch.device("cpu"), TINY),
    *(datetime.date(2025, 2, 19), range(3), slice(2), ..., NotImplemented),
    *(torch.zeros(2, 3, 8, 8).to(dtype) for dtype in DTYPES if dtype not in FLOATS),
    *(torch.zeros(2, 6).to(dtype) for dtype in DTYPES),
    *(torch.zeros(2).to(dtype) for dtype in DTYPES),
    *(torch.full((2, 3, 8, 8), value) for value in (NAN, INF, 1e30, -1e5)),
    *(torch.full((2, 3, 12, 12), value) for value in (NAN, INF, 1e30)),
    *(torch.full((2, 2, 6, 6), value) for value in (NAN, 1e30)),
    *(torch.tensor(1.0), torch.tensor(1), torch.tensor([1]), torch.tensor([1.0])),
    *(torch.tensor([NAN]), torch.zeros(0), torch.zeros(0, 3, 8, 8), torch.zeros(2, 0).long()),
    *(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 7, 7), IDS - 1),
    *(IDS + 119, IDS.T, IDS[0], IDS.repeat(1, 2), LABELS - 1, LABELS + 1, torch.zeros(1, 1)),
    *(X.to("meta"), IDS.to("meta"), LABELS.to("meta"), X.to_sparse(), IDS.to_sparse()),
    *(LABELS.to_sparse(), FEATURES.to("meta"), FEATURES.to_sparse(), FEATURES * NAN),
    *(torch.nested.nested_tensor([IDS[0], IDS[1, :2]]), torch.randn(2, 6).to_sparse_csr()),
    torch.quantize_per_tensor(torch.zeros(2, 3, 8, 8), 0.1, 0, torch.quint8),
]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The current folder: saved models, and a folder of two images."""
    from PIL import Image

    path = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        TOK.save_pretrained("saved")
        PRIOR.save_pretrained("saved prior")
        AUTOENCODER.save_pretrained("saved vae")
        Path("folder").mkdir()
        for i in range(2):
            Image.new("RGB", (9, 8), (i, 0, 0)).save(f"folder/{i}.png")
        yield path


ALIASES = {
    "x": "latents",
    "a": "images|features",
    "b": "images|features",
    "values": "Config|image_size",
    "names": "class",
    "labels": "class|caption|word|ids: ",
    "vocab_size": "ids",
}


def finite(result: Any) -> bool:
    """Whether all numbers of a result are finite."""
    if isinstance(result, torch.Tensor) and result.is_floating_point():
        return bool(result.isfinite().all())
    if isinstance(result, tuple | list | dict):
        return all(map(finite, result.values() if isinstance(result, dict) else result))
    return not isinstance(result, float) or math.isfinite(result)


def text_of(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else show(value)


def try_call(name: str, spoiled: dict[str, Any]) -> None:
    """Call with these values in place of good ones."""
    call = CALLS[name]
    good = all(call.good[key](value) for key, value in spoiled.items())
    what = f"{name} with {', '.join(f'{k}={show(v)}' for k, v in spoiled.items())}"
    try:
        result = call.function(**call.arguments | spoiled)
    except (ValueError, TypeError, OSError) as error:
        at = error.__traceback__
        while at.tb_next is not None:
            at = at.tb_next
        source = Path(at.tb_frame.f_code.co_filename)
        ours = source.is_relative_to(ROOT / "minflextok") or source.name in (
            "test_fuzz.py",
            "_contextlib.py",
        )
        ours = ours or isinstance(error, OSError)
        assert ours, f"{what}: raised in {source}, not by the package: {error!r}"
        named = any(
            re.search(rf"\b({key}|{ALIASES.get(key, key)})", str(error))
            or text_of(value)[:30] in str(error)
            or show(value)[:30] in str(error)
            for key, value in spoiled.items()
        )
        assert named, f"{what}: names no argument: {error}"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    else:
        assert good, f"{what}: accepted in silence: {show(result)}"
        assert finite(result), f"{what}: {show(result)}"


@pytest.mark.filterwarnings("ignore")
@settings(
    derandomize=True,
    deadline=None,
    max_examples=1000,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(st.data())
def test_random_bad_calls_end_in_an_error_that_names_the_value(data):
    name = data.draw(st.sampled_from(sorted(CALLS)))
    keys = sorted(CALLS[name].good)
    chosen = data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2, unique=True))
    values = st.one_of(
        st.sampled_from(VALUES), st.integers(-150, 150), st.floats(), st.text(max_size=20)
    )
    try_call(name, {key: data.draw(values) for key in chosen})


def test_the_good_calls_are_good():
    for name, call in CALLS.items():
        if name not in ("to_float",):
            call.function(**call.arguments)
