"""SPLIT.json, the record beside shards that `write_shards` wrote: how many there are, their class
names, and of latents the VAE."""

import json
from pathlib import Path

from ..checks import first_line
from ..weights import read_json, write_atomic


def shard_name(split: str, i: int) -> str:
    return f"{split}-{i:05d}.tar"


def claim(out: Path, split: str, record: dict) -> None:
    """Write the record of the shards to come; where there is one, it must be the same."""
    path = out / f"{split}.json"
    out.mkdir(parents=True, exist_ok=True)
    if path.exists():
        stored = read_json(path)
        if stored != record:
            changed = [
                k for k in record if not isinstance(stored, dict) or stored.get(k) != record[k]
            ]
            raise ValueError(
                f"out={str(out)!r} holds other shards of split {split} (they differ in "
                f"{', '.join(changed) or 'more than this version writes'}): give another out"
            )
        return
    if (out / shard_name(split, 0)).exists():
        raise ValueError(
            f"out={str(out)!r} holds shards without their record {path.name}: give another out"
        )
    write_atomic(path, json.dumps(record, indent=2) + "\n")


def read_record(directory: Path, split: str) -> dict | None:
    """The record of shards that `write_shards` wrote; None for a directory without any. ValueError
    where one is damaged, or has no such split."""
    path = directory / f"{split}.json"
    found = [
        p.stem for p in directory.glob("*.json") if (directory / shard_name(p.stem, 0)).exists()
    ]
    if not path.exists():
        if found:
            raise FileNotFoundError(
                f"{directory} has no shards of split {split}: it has {', '.join(found)}"
            )
        return None
    record = read_json(path)
    try:
        if not (record["shards"] >= 1 and all(isinstance(c, str) for c in record["classes"])):
            raise ValueError("it names no shards or classes")
        if "latents" in record:
            shape = record["latents"]["shape"]
            if len(shape) != 5 or not all(isinstance(n, int) and n > 0 for n in shape):
                raise ValueError(f"shape={shape}")
            float(record["latents"]["scaling_factor"])
        return record
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(
            f"{path} is no record of shards ({first_line(e)}): write them again"
        ) from None
