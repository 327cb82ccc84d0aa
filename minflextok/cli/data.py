"""The commands that prepare data: data shard, data cache-latents."""

import argparse

from ..data import cache_latents, load_dataset, shard_folder
from ..training.runtime import Ranks
from ..vae import VAE
from .flags import say


def shard(a: argparse.Namespace) -> None:
    n = shard_folder(a.directory, a.out, a.split, a.per_shard, a.seed)
    say(f"{n} shards of split {a.split} -> {a.out}; read them with --data {a.out}")


def latents(a: argparse.Namespace) -> None:
    ranks = Ranks(a.device)
    vae = VAE.from_pretrained(a.vae).to(ranks.device)
    size = a.image_size or vae.config.image_size
    data = load_dataset(a.data, a.split, size, a.workers, reader_minutes=a.reader_minutes)
    n = cache_latents(
        data,
        vae,
        a.out,
        flip=a.flip,
        per_shard=a.per_shard,
        batch_size=a.batch_size,
        bf16=a.bf16,
        rank=ranks.rank,
        world=ranks.world_size,
        quiet=not ranks.is_main,
        reader_minutes=a.reader_minutes,
    )
    ranks.wait()
    if ranks.is_main:
        say(
            f"{n} shards of split {a.split} -> {a.out}; read them with --data {a.out} --vae {a.vae}"
        )
    ranks.close()
