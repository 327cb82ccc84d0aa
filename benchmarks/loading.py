"""Peak memory of loading a published checkpoint.

    python benchmarks/loading.py [--preset d18-d28]

Writes a file of that size in the published format, VAE included, and loads it in new processes. All
values are zero, except for the position tables: a sparse file, which takes no space on disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from minflextok import PRESETS, FlexTok, TokenizerConfig
from minflextok.patches import sincos_positions
from minflextok.presets import VAE_PRESETS
from minflextok.published import RENAME, TABLES
from minflextok.training.runtime import peak_memory
from minflextok.vae import VAE


def published_tensors(config: TokenizerConfig) -> dict[str, tuple]:
    """The name and the shape of every tensor of a published file."""
    with torch.device("meta"):
        tok, vae = FlexTok(config), VAE(VAE_PRESETS["f8"])
    shapes = {f"vae.vae.{name}": tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    for name, tensor in tok.state_dict().items():
        theirs, ours = next(
            (t, o) for t, o in RENAME.items() if name == o or name.startswith(o + ".")
        )
        theirs = theirs + name[len(ours) :].replace(".adaln.", ".adaLN_modulation.1.")
        shapes[theirs] = (
            (1, 1, *tensor.T.shape) if ours == "decoder.register_positions" else tuple(tensor.shape)
        )
    for table, dim in zip(TABLES, (config.enc_dim, config.dec_dim), strict=True):
        shapes[table] = (1, dim, config.grid, config.grid)
    return shapes


def write_sparse(path: Path, config: TokenizerConfig) -> None:
    """A safetensors file: the length of a JSON header, the header, the bytes of the tensors."""
    settings = {
        "encoder": {},
        "decoder": {"max_timestep": 1.0},
        "regularizer": {"levels": list(config.fsq_levels)},
        "vae": {"latent_channels": config.in_channels, "scaling_factor": 1.0},
    }
    header = {"__metadata__": {k: str(v) for k, v in settings.items()}}
    at, tables = 0, {}
    for name, shape in published_tensors(config).items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        if name in TABLES:
            table = sincos_positions(shape[1], config.grid).permute(2, 0, 1)  # (D, h, w)
            tables[at] = table.contiguous().numpy().tobytes()
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for offset, data in tables.items():
            f.seek(8 + len(text) + offset)
            f.write(data)
        f.truncate(8 + len(text) + at)


def measure(file: Path, dtype: str) -> dict:
    """In a new process: load, then read every weight once, as the first forward pass does.

    GB of the weights, GB of peak memory after loading and after reading them, seconds of loading.
    """
    before, start = peak_memory(), time.perf_counter()
    tok = FlexTok.from_pretrained(file, getattr(torch, dtype))
    seconds, loaded = time.perf_counter() - start, peak_memory() - before
    held = sum(p.numel() * p.element_size() for p in tok.parameters()) / 1e9
    for p in tok.parameters():
        p.sum()
    used = peak_memory() - before
    return {"weights": held, "loaded": loaded, "used": used, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=["d12-d12", "d18-d18", "d18-d28"], default="d18-d28")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "DTYPE"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(Path(a.measure[0]), a.measure[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        write_sparse(file, PRESETS[a.preset])
        size = file.stat().st_size / 1e9
        print(f"{a.preset} with its VAE, {size:.2f} GB as float32; peak memory without the process")
        columns = "weights GB", "after loading", "all read once", "ratio", "seconds"
        print(f"{'as':>9}{''.join(f'{name:>15}' for name in columns)}")
        for dtype in ("float32", "bfloat16"):
            command = [sys.executable, __file__, "--measure", file, dtype]
            m = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            values = m["weights"], m["loaded"], m["used"], m["used"] / m["weights"], m["seconds"]
            print(f"{dtype:>9}{''.join(f'{value:15.2f}' for value in values)}")


if __name__ == "__main__":
    main()
