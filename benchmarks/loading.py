"""Peak memory of loading a published checkpoint: python benchmarks/loading.py [--preset d18-d28]

Writes a file of that size in the published format, VAE included (all zeros but for the position tables; a sparse file,
so that it takes no disk), and loads it in fresh processes.
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
    """Name and shape of every tensor of a published file."""
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
    """A safetensors file: the length of a JSON header, the header, the tensors' bytes."""
    settings = {
        "encoder": {},
        "decoder": {"max_timestep": 1.0},
        "regularizer": {"levels": list(config.fsq_levels)},
        "vae": {"latent_channels": config.in_channels, "scaling_factor": 1.0},
    }
    header, at, tables = {"__metadata__": {k: str(v) for k, v in settings.items()}}, 0, {}
    for name, shape in published_tensors(config).items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        if name in TABLES:
            tables[at] = (
                sincos_positions(shape[1], config.grid)
                .permute(2, 0, 1)
                .contiguous()
                .numpy()
                .tobytes()
            )
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for offset, data in tables.items():
            f.seek(8 + len(text) + offset)
            f.write(data)
        f.truncate(8 + len(text) + at)


def measure(file: Path, dtype: str) -> dict:
    """To be run in a fresh process: load, then read every weight once, as a first forward pass does."""
    from minflextok.published import load_official

    before, start = peak_memory(), time.perf_counter()
    tok = load_official(file, getattr(torch, dtype))
    seconds, loaded = time.perf_counter() - start, peak_memory() - before
    held = sum(p.numel() * p.element_size() for p in tok.parameters()) / 1e9
    for p in tok.parameters():
        p.sum()
    used = peak_memory() - before
    return {
        "weights": held,
        "loaded": loaded,
        "used": used,
        "ratio": used / held,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=["d12-d12", "d18-d18", "d18-d28"], default="d18-d28")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "DTYPE"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(Path(a.measure[0]), a.measure[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        write_sparse(file, PRESETS[a.preset])
        print(
            f"{a.preset} with its VAE, {file.stat().st_size / 1e9:.2f} GB as float32; peak memory above the process's own"
        )
        print(
            f"{'as':>9}{'weights GB':>12}{'after loading':>15}{'all read once':>15}{'ratio':>7}{'seconds':>9}"
        )
        for dtype in ("float32", "bfloat16"):
            done = subprocess.run(
                [sys.executable, __file__, "--measure", file, dtype],
                check=True,
                stdout=subprocess.PIPE,
            )
            m = json.loads(done.stdout)
            print(
                f"{dtype:>9}{m['weights']:12.2f}{m['loaded']:15.2f}{m['used']:15.2f}{m['ratio']:7.2f}{m['seconds']:9.1f}"
            )


if __name__ == "__main__":
    main()
