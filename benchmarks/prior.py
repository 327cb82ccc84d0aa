"""How fast the prior generates: with its KV cache, without it, and against transformers.

    python benchmarks/prior.py [--threads 1]      # writes prior.json

All sides sample the same number of ids after a prompt of one position (a class or a start token),
in float32. They take turns, because the speed of a machine changes over minutes; the table has
medians, and the lowest and highest ratio of a turn. Processor time is given too: on one thread,
other processes hardly change it.

- "cached" is `Prior.generate` as users call it.
- "uncached" recomputes all positions for each id.
- "transformers", where it is installed, is Hugging Face's Llama of the same width, depth, heads,
  hidden width, vocabulary and tied head. It has rotary positions and gains in its norms, but no QK
  norm.

Weights are random: time does not depend on their values. Results are stored after each batch size.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from report import machine
from torch import Tensor

from minflextok import PRIOR_PRESETS, Prior, PriorConfig
from minflextok.weights import write_atomic

try:
    import transformers
except ImportError:
    transformers = None


def flextok(c: PriorConfig, B: int, use_cache: bool) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    prior, labels = Prior(c).eval(), torch.arange(B) % c.num_classes

    def generate() -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return prior.generate(labels, generator=generator, use_cache=use_cache)

    return generate


def llama(c: PriorConfig, B: int) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.dim,
        intermediate_size=8 * c.dim // 3,
        num_hidden_layers=c.depth,
        num_attention_heads=c.dim // c.head_dim,
        max_position_embeddings=c.num_tokens + 1,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).float().eval()
    prompt, n = torch.zeros(B, 1, dtype=torch.long), c.num_tokens
    options = dict(do_sample=True, top_k=0, min_new_tokens=n, max_new_tokens=n, use_cache=True)
    mask = torch.ones_like(prompt)
    return lambda: model.generate(prompt, attention_mask=mask, **options)[:, 1:]


def compare(sides: dict[str, Callable[[], Tensor]], tokens: int, turns: int) -> dict:
    """Median seconds of each side over the turns after a warm-up, and their ratio to "cached"."""
    times, cpu = {side: [] for side in sides}, {side: [] for side in sides}
    for turn in range(turns + 1):
        for side, f in sides.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            ids = f()
            times[side] += [time.perf_counter() - start] * (turn > 0)
            cpu[side] += [time.process_time() - cpu_start] * (turn > 0)
            if ids.shape[1] != tokens:
                raise ValueError(f"{side} generated {ids.shape[1]} ids per image, not {tokens}")
    found = {}
    for side, seconds in times.items():
        ratios = [s / c for s, c in zip(seconds, times["cached"], strict=True)]
        found[side] = {
            "seconds": median(seconds),
            "ratio": median(seconds) / median(times["cached"]),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
            "cpu_seconds": median(cpu[side]),
            "cpu_ratio": median(cpu[side]) / median(cpu["cached"]),
        }
    return found


def run(a: argparse.Namespace) -> None:
    where = machine("cpu", []) | {
        "transformers": transformers and transformers.__version__,
    }
    print(f"{a.tokens} ids, medians of {a.turns} turns; times are multiples of those of cached")
    print(", ".join(f"{k} {v}" for k, v in where.items()), "(load: of the machine, at the start)")
    print(f"{'preset':14}{'B':>3}{'params':>8}  {'side':13}{'seconds':>8}  ", end="")
    print(f"{'ratio [of a turn]':24}{'CPU s':>7}  ratio")
    rows = []
    for name in a.presets:
        c = dataclasses.replace(PRIOR_PRESETS[name], num_tokens=a.tokens)
        params = sum(p.numel() for p in Prior(c).parameters())
        for B in a.batch:
            sides = {"cached": flextok(c, B, use_cache=True)}
            sides |= {} if a.no_uncached else {"uncached": flextok(c, B, use_cache=False)}
            sides |= {"transformers": llama(c, B)} if transformers else {}
            found = compare(sides, a.tokens, a.turns)
            rows.append({"preset": name, "B": B, "params": params, **found})
            for side, r in found.items():
                ratio = f"{r['ratio']:.2f}x [{r['ratio_low']:.2f}, {r['ratio_high']:.2f}]"
                print(f"{name:14}{B:3}{params / 1e6:7.1f}M  {side:13}{r['seconds']:8.2f}  ", end="")
                print(f"{ratio:24}{r['cpu_seconds']:7.2f}  {r['cpu_ratio']:.2f}x", flush=True)
            stored = {"tokens": a.tokens, "turns": a.turns, "machine": where, "rows": rows}
            write_atomic(a.out, json.dumps(stored, indent=1) + "\n")
    print(f"-> {a.out}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = [name for name, c in PRIOR_PRESETS.items() if not c.text]
    add("--presets", nargs="+", default=["cifar10"], choices=names)
    add("--tokens", type=int, default=256, help="ids per image; replaces the preset's number")
    add("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes")
    add("--turns", type=int, default=3)
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--no-uncached", action="store_true", help="do not measure the slow side")
    add("--out", type=Path, default=Path(__file__).with_name("prior.json"))
    a = parser.parse_args(argv)
    if min(a.tokens, a.turns, a.threads, *a.batch) < 1:
        parser.error("--tokens, --batch, --turns and --threads must be at least 1")
    torch.set_num_threads(a.threads)
    run(a)


if __name__ == "__main__":
    main()
