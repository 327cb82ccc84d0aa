"""How fast the prior generates: with its cache, without it, and a Llama of the same size in Hugging Face transformers.

All sample the same number of ids from the same prompt length (one position: class, or start token), in float32, in
turns, because a machine's clock and its other users change over minutes; medians, and the lowest and highest ratio of a
turn. On one thread the processor's time is given too, which other users of the machine change less. "cached" is
`Prior.generate` as users call it: with its cache, and with its weights stored for products of few rows. "as trained" is
the cache alone; "uncached" has neither, as the loop that one writes first. The Llama has the same width, depth, heads,
hidden width, vocabulary and tied head; it differs in having rotary positions, gains in its norms and no QK norm. Weights
are random: time does not depend on their values. Numbers are stored as each is known.

    python benchmarks/prior.py        # transformers is compared where it can be imported
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from bench import machine
from torch import Tensor

from minflextok import PRIOR_PRESETS, Prior, PriorConfig
from minflextok.evaluation.reports import write_results
from minflextok.gpt import can_pack

try:
    import transformers
except ImportError:
    transformers = None


def ours(
    c: PriorConfig, B: int, use_cache: bool = True, packed: bool = True
) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    prior, labels = Prior(c).eval(), torch.arange(B) % c.num_classes

    def generate() -> Tensor:
        with patch("minflextok.prior.can_pack", can_pack if packed else lambda x: False):
            return prior.generate(
                labels, generator=torch.Generator().manual_seed(1), use_cache=use_cache
            )

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
    model, prompt = (
        transformers.LlamaForCausalLM(config).float().eval(),
        torch.zeros(B, 1, dtype=torch.long),
    )
    n = c.num_tokens
    return lambda: model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        top_k=0,
        min_new_tokens=n,
        max_new_tokens=n,
        use_cache=True,
    )[:, 1:]


def compare(sides: dict[str, Callable[[], Tensor]], tokens: int, turns: int) -> dict:
    """Seconds of each side, median of `turns` turns after one to warm up, and how many times slower than "cached"."""
    times, cpu = {side: [] for side in sides}, {side: [] for side in sides}
    for turn in range(turns + 1):
        for side, f in sides.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            ids = f()
            times[side] += [time.perf_counter() - start] * (turn > 0)
            cpu[side] += [time.process_time() - cpu_start] * (turn > 0)
            if ids.shape[1] != tokens:
                raise ValueError(f"{side} made {ids.shape[1]} ids, not {tokens}")
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--presets",
        nargs="+",
        default=["cifar10"],
        choices=[name for name, c in PRIOR_PRESETS.items() if not c.text],
    )
    parser.add_argument(
        "--tokens", type=int, default=256, help="ids an image; replaces the preset's"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images at a time")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-uncached", action="store_true", help="leave out the slow side")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("prior.json"))
    a = parser.parse_args(argv)
    if min(a.tokens, a.turns, a.threads, *a.batch) < 1:
        parser.error("give numbers of at least 1")
    torch.set_num_threads(a.threads)
    where = machine("cpu", []) | {
        "transformers": transformers and transformers.__version__,
        "busy": round(os.getloadavg()[0], 1),
    }
    print(
        f"{a.tokens} ids, medians of {a.turns} turns; {', '.join(f'{k} {v}' for k, v in where.items())} (busy: processes "
        f"that want to run, before the start)\n"
        f"{'preset':14}{'B':>3}{'params':>8}  {'side':13}{'seconds':>8}  "
        f"{'times ours [of a turn]':24}{'CPU s':>7}  times ours"
    )
    rows = []
    for name in a.presets:
        c = dataclasses.replace(PRIOR_PRESETS[name], num_tokens=a.tokens)
        params = sum(p.numel() for p in Prior(c).parameters())
        for B in a.batch:
            sides = {"cached": ours(c, B), "as trained": ours(c, B, packed=False)}
            sides |= {} if a.no_uncached else {"uncached": ours(c, B, use_cache=False)}
            sides |= {"transformers": llama(c, B)} if transformers else {}
            found = compare(sides, a.tokens, a.turns)
            rows.append({"preset": name, "B": B, "params": params, **found})
            for side, r in found.items():
                ratio = f"{r['ratio']:.2f}x [{r['ratio_low']:.2f}, {r['ratio_high']:.2f}]"
                print(
                    f"{name:14}{B:3}{params / 1e6:7.1f}M  {side:13}{r['seconds']:8.2f}  {ratio:24}"
                    f"{r['cpu_seconds']:7.2f}  {r['cpu_ratio']:.2f}x",
                    flush=True,
                )
            write_results(
                {"tokens": a.tokens, "turns": a.turns, "machine": where, "rows": rows}, a.out
            )
    print(f"-> {a.out}")


if __name__ == "__main__":
    main()
