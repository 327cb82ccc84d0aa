"""A real all-reduce between processes of this machine, with PyTorch's gloo backend."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..checks import check_count


def measure(sizes: list[int], ranks: int = 2, repeats: int = 5) -> dict[str, dict[int, float]]:
    """Seconds of an all-reduce of so many float32 numbers, the fastest of some repeats, by size.

    "all-reduce": the sum over all ranks, for each rank. "exchange": each rank sends as many numbers
    to the next rank and receives as many from the one before. Raises RuntimeError with the text of
    the process that failed.
    """
    check_count(ranks, "ranks", 2, 16)
    check_count(repeats, "repeats", 1, 1000)
    for size in sizes:
        check_count(size, "a size", 1, 10**9)
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # no need to resolve the name of this machine
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __name__, str(Path(folder) / "meet"), str(repeats)]
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(ranks), *map(str, sizes)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            texts = [process.communicate(timeout=300) for process in processes]
        finally:
            for process in processes:
                process.kill()
    for process, (_, errors) in zip(processes, texts, strict=True):
        if process.returncode:
            raise RuntimeError(f"a process of the all-reduce failed: {errors.strip()[-500:]}")
    found = json.loads(texts[0][0])
    return {name: dict(zip(sizes, times, strict=True)) for name, times in found.items()}


def _work(file: str, repeats: int, rank: int, ranks: int, sizes: list[int]) -> None:
    """What each of the processes does. Rank 0 prints the times."""
    import torch
    import torch.distributed as dist

    store = dist.FileStore(file, ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)

    def fastest(action: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats + 1):  # the first one warms up
            dist.barrier()
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def exchange(mine: torch.Tensor, theirs: torch.Tensor) -> None:
        sent = dist.isend(mine, (rank + 1) % ranks)
        dist.recv(theirs, (rank - 1) % ranks)
        sent.wait()

    found: dict[str, list[float]] = {"all-reduce": [], "exchange": []}
    for size in sizes:
        mine, theirs = torch.ones(size), torch.empty(size)

        found["exchange"].append(fastest(partial(exchange, mine, theirs)))
        found["all-reduce"].append(fastest(partial(dist.all_reduce, mine)))
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    meet, count, *numbers = sys.argv[1:]
    _work(meet, int(count), int(numbers[0]), int(numbers[1]), [int(n) for n in numbers[2:]])
