"""Weights on disk and on the Hugging Face hub: model.safetensors, config.json beside it. Nothing is
ever unpickled."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .checks import first_line
from .config import WEIGHTS_DIR, from_dict, to_json

# A folder that holds one of these is a folder of weights, or of a training run.
MARKS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "config.json",
    "run.json",
    "metrics.jsonl",
)
JSON_BYTES = 2**26  # the largest JSON file that is read


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Adds a file's name to an error of the operating system that has none, such as a full disk."""
    try:
        yield
    except OSError as e:
        if e.errno is None or e.filename is not None:
            raise
        raise OSError(e.errno, f"cannot write: {e.strerror}", str(path)) from None


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the name `path` when it is complete; after an error there
    is none."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming(path), open(part, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a file (text as UTF-8) whole or not at all."""
    with atomic_file(path) as f:
        f.write(data.encode("utf-8") if isinstance(data, str) else data)


def read_json(path: Path) -> Any:
    """The value in a JSON file. ValueError, which names the file, if it is none."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise ValueError(f"more than {JSON_BYTES} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply: write it again") from None
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} cannot be read as JSON: {first_line(e)}") from None


def save(
    model: nn.Module,
    directory: str | Path,
    dtype: torch.dtype | None = None,
    skip: tuple[str, ...] = (),
) -> None:
    """Write model.safetensors (as `dtype`, if given) and config.json; each appears whole or not at
    all.

    Tensors whose name starts with one of `skip` are left out.
    """
    directory = Path(directory)
    state = {
        k: v.detach().to(dtype if dtype and v.is_floating_point() else v.dtype).contiguous()
        for k, v in model.state_dict().items()
        if not k.startswith(skip)
    }
    part = directory / f".model.{os.getpid()}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode
        # One key: the order of several is random.
        save_file(state, part, metadata={"minflextok": type(model).__name__})
        part.chmod(mode)  # safetensors makes files that their owner alone can read
        os.replace(part, directory / "model.safetensors")
        part.write_text(to_json(model.config))
        os.replace(part, directory / "config.json")
    except (OSError, SafetensorError) as e:
        raise OSError(
            f"could not write weights to {directory} ({e}): is the disk full or read-only?"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def is_marked(directory: Path) -> bool:
    """Whether a folder holds weights or a training run."""
    return any((directory / mark).exists() for mark in MARKS)


def find(name: str | Path, prefix: str = "") -> Path:
    """The directory that holds the weights called `name`: a directory, a shipped name, or
    "owner/name" on the hub. A published model may also be given by its .safetensors file. A folder
    without weights does not hide shipped weights of the same name.

    Shipped weights of a model that shares its name with another lie in `prefix` + name: those of a
    tokenizer and of the prior over its ids are both called by the tokenizer's name.
    """
    if str(name).endswith(".safetensors"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"no file {name}")
        return Path(name)
    directory, shipped_one = Path(name), WEIGHTS_DIR / f"{prefix}{name}"
    # One component: "..", "" or an absolute path names no shipped weights.
    ships = re.fullmatch(r"[\w-][\w.-]*", str(name)) is not None and shipped_one.is_dir()
    if directory.is_dir() and not (ships and not is_marked(directory)):
        if ships:
            warnings.warn(
                f"{name!s} is a folder here and the name of shipped weights: reading the folder; "
                f"rename it, or give {shipped_one} to read the shipped ones",
                stacklevel=3,
            )
        return directory
    if ships:
        return shipped_one
    shipped = (
        ", ".join(sorted(d.name.removeprefix(prefix) for d in WEIGHTS_DIR.glob(f"{prefix}*/")))
        or "none"
    )
    problem = (
        f"no weights {str(name)!r}: shipped are {shipped}; "
        "else give a directory with model.safetensors and config.json"
    )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise FileNotFoundError(problem)
    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.safetensors", "config.json"]))
    except Exception as e:  # no connection, no such repository, no access, ...
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise FileNotFoundError(
            f"{problem}, or a repository of the Hugging Face hub (it answered: {why})"
        ) from None


def fingerprint(tensors: dict[str, Tensor], settings: Sequence[float] | None = None) -> str:
    """16 hexadecimal digits that identify these tensors and numbers (SHA-256). Floats count as
    bfloat16, so that a model has one fingerprint, whether it is loaded as float32 or bfloat16."""
    if settings is not None:
        tensors = tensors | {"settings": torch.tensor(settings, dtype=torch.float64)}
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        x = x.detach().cpu().to(torch.bfloat16 if x.is_floating_point() else x.dtype).contiguous()
        digest.update(f"{name} {tuple(x.shape)}".encode())
        digest.update(x.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def load(
    cls: Callable[..., nn.Module],
    config_class: type,
    directory: Path,
    dtype: torch.dtype = torch.float32,
):
    """The model that `save` wrote, on the CPU and in eval mode; what does not fit is an error that
    names it."""
    for name in ("model.safetensors", "config.json"):
        if not (directory / name).exists():
            raise FileNotFoundError(
                f"{directory} has no {name}: was it written by save_pretrained?"
            )
    values = read_json(directory / "config.json")
    try:
        config = from_dict(config_class, values)
    except (ValueError, TypeError) as e:
        raise ValueError(f"{directory / 'config.json'}: {first_line(e)}") from None
    file = directory / "model.safetensors"
    held = read_metadata(file).get("minflextok", cls.__name__)
    if held not in (cls.__name__, *getattr(cls, "former_names", ())):
        raise ValueError(
            f"{file} holds a {held}, not a {cls.__name__}: load it with {held}.from_pretrained"
        )
    check_shapes(config, read_shapes(file), file)
    return build(cls, config, read_tensors(file, dtype), file).to(dtype)


@torch.no_grad()
def start_from(model: nn.Module, other: nn.Module, source: str | Path) -> None:
    """Copy the weights of `other` into `model`; both may have more rows of something (registers),
    which stay as they are.

    Raises ValueError, and changes nothing, where another difference than a number of rows stands
    between them.
    """
    mine, theirs = model.state_dict(), other.state_dict()
    for name in sorted(mine.keys() | theirs.keys()):
        a, b = (s[name].shape if name in s else None for s in (mine, theirs))
        if a is None or b is None or a[1:] != b[1:] or (a != b and len(a) < 2):
            raise ValueError(
                f"cannot start from {source}: {name} is {tuple(b) if b else 'absent'} there and "
                f"{tuple(a) if a else 'absent'} here; only the number of registers may differ"
            )
    for name, tensor in mine.items():
        rows = min(len(tensor), len(theirs[name]))
        tensor[:rows] = theirs[name][:rows]


class NothingToDraw(TorchFunctionMode):
    """Skips nn.init.normal_ on the meta device, where torch would load its symbolic algebra (two
    seconds) for nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **(kwargs or {}))


def check_shapes(config, held: dict[str, tuple[int, ...]], source: str | Path) -> None:
    """Compare a config with the shapes in a file before anything is built: a model may take no more
    memory and time than its file justifies."""
    for name, shape in config.shapes().items():
        if name not in held:
            raise ValueError(f"{source} does not fit its config: it lacks {name}")
        if held[name] != shape:
            raise ValueError(
                f"{source} does not fit its config: {name} is {held[name]}, "
                f"the config makes it {shape}"
            )


def check_values(name: str, tensor: Tensor, own: Tensor, source: str | Path) -> None:
    """A tensor of a file must be of the kind of the model's own, and finite."""
    if tensor.is_floating_point() != own.is_floating_point() or (
        not own.is_floating_point() and tensor.dtype != own.dtype
    ):
        raise ValueError(
            f"{source}: {name} is {tensor.dtype}, a tensor like {own.dtype} is expected: save or "
            "download it again"
        )
    # A sum is quick and needs no memory; it may overflow though all values are finite.
    if own.is_floating_point() and not (tensor.sum().isfinite() or tensor.isfinite().all()):
        raise ValueError(
            f"{source}: {name} holds NaN or infinite values: save or download it again"
        )


def build(cls: Callable[..., nn.Module], config, tensors: dict[str, Tensor], source: str | Path):
    """A model around given tensors, uncopied, in eval mode; what does not fit is an error that
    names `source`."""
    # Shapes without memory: the weights take the parameters' places.
    with (
        torch.device("meta"),
        NothingToDraw(),
    ):
        model = cls(config)
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        tell = [
            f"{what} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''} "
            f"({len(names)} in all)"
            for what, names in (("lacks", missing), ("has unknown", extra))
            if names
        ]
        raise ValueError(f"{source} does not fit its config: it {' and '.join(tell)}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{source} does not fit its config: {name} is {tuple(tensor.shape)}, "
                f"the config makes it {tuple(own[name].shape)}"
            )
        check_values(name, tensor, own[name], source)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file to read from; ValueError if it is damaged."""
    try:
        with safe_open(path, "pt") as f:
            yield f
    except (SafetensorError, OSError) as e:
        raise ValueError(
            f"{path} is not a whole safetensors file ({first_line(e)}): download or save it again"
        ) from None


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a file holds beside its tensors."""
    with opened(path) as f:
        return f.metadata() or {}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a file. Its header is read, and none of their values."""
    with opened(path) as f:
        return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118


def read_tensors(
    path: Path, dtype: torch.dtype | None = None, only: Callable[[str], bool] = bool
) -> dict[str, Tensor]:
    """The tensors of a file whose names are `only` those; floats as `dtype`, where given.

    Those stored as `dtype` stay memory-mapped: they are read when first used, and many processes
    share them. Others are converted one at a time, each from a mapping of its own, so that no more
    than one stands in memory twice.
    """
    with opened(path) as f:
        names = list(f.keys())
        mapped = {name: f.get_tensor(name) for name in names if only(name)}
    for name, tensor in mapped.items():
        if dtype and tensor.is_floating_point() and tensor.dtype != dtype:
            with opened(path) as f:
                mapped[name] = f.get_tensor(name).to(dtype)
    return mapped
