"""Exercises of notebook 13: what training costs."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import Exercise, randint

# ---- ★ state of a training run -------------------------------------------------------------------


def state_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield from ((10, 1, False), (1000, 8, False), (1000, 8, True))
    for sharded in (False, True):
        yield 1000 * randint(g, 1, 900), 2 ** randint(g, 1, 6), sharded


def state_bytes(parameters: int, gpus: int, sharded: bool) -> float:
    total = 0.0
    for _ in ("weights", "gradients", "first moments", "second moments", "averaged weights"):
        total += parameters * 4
    return total / gpus if sharded else total


def four_numbers(parameters: int, gpus: int, sharded: bool) -> float:
    return state_bytes(parameters, gpus, sharded) * 4 / 5


def no_moments(parameters: int, gpus: int, sharded: bool) -> float:
    return state_bytes(parameters, gpus, sharded) * 3 / 5


def weights_alone(parameters: int, gpus: int, sharded: bool) -> float:
    return state_bytes(parameters, gpus, sharded) / 5


def in_bfloat16(parameters: int, gpus: int, sharded: bool) -> float:
    return state_bytes(parameters, gpus, sharded) / 2


def always_divided(parameters: int, gpus: int, sharded: bool) -> float:
    return state_bytes(parameters, gpus, True)


def never_divided(parameters: int, gpus: int, sharded: bool) -> float:
    return state_bytes(parameters, gpus, False)


def numbers_not_bytes(parameters: int, gpus: int, sharded: bool) -> float:
    return state_bytes(parameters, gpus, sharded) / 4


def of_all_gpus(parameters: int, gpus: int, sharded: bool) -> float:
    return state_bytes(parameters, gpus, False) * (1 if sharded else gpus)


def with_bfloat16_copies(parameters: int, gpus: int, sharded: bool) -> float:
    return state_bytes(parameters, gpus, sharded) * 22 / 20


def only_weights_sharded(parameters: int, gpus: int, sharded: bool) -> float:
    return 16.0 * parameters + 4.0 * parameters / (gpus if sharded else 1)


# ---- ★★ the largest micro-batch ------------------------------------------------------------------


def memory_inputs(g: torch.Generator) -> Iterator[tuple]:
    yield from ((72, 20, 5, 16), (72, 60, 1, 8), (72, 80, 1, 8), (72, 20, 5, 12))
    for _ in range(4):
        state = randint(g, 0, 60)
        yield 72, state, randint(g, 1, 6), 2 ** randint(g, 1, 4) * randint(g, 1, 5)


def micro_batch(usable: int, state: int, image: int, local: int) -> int:
    found = 0
    for size in range(1, local + 1):
        if local % size == 0 and state + size * image <= usable:
            found = size
    return found


def not_a_divisor(usable: int, state: int, image: int, local: int) -> int:
    return max(0, min(local, (usable - state) // image))


def power_of_two(usable: int, state: int, image: int, local: int) -> int:
    fits = [2**i for i in range(20) if 2**i <= local and state + 2**i * image <= usable]
    return max(fits, default=0)


def without_state(usable: int, state: int, image: int, local: int) -> int:
    return micro_batch(usable, 0, image, local)


def at_least_one(usable: int, state: int, image: int, local: int) -> int:
    return max(1, micro_batch(usable, state, image, local))


def all_at_once(usable: int, state: int, image: int, local: int) -> int:
    return local if state + local * image <= usable else 0


def never_all_at_once(usable: int, state: int, image: int, local: int) -> int:
    fits = [n for n in range(1, local) if local % n == 0 and state + n * image <= usable]
    return max(fits, default=0)


def number_of_micro_batches(usable: int, state: int, image: int, local: int) -> int:
    size = micro_batch(usable, state, image, local)
    return local // size if size else 0


def smaller_than_the_memory(usable: int, state: int, image: int, local: int) -> int:
    """The memory must not be full to the last byte."""
    return micro_batch(usable - 1, state, image, local)


# ---- ★★★ ring all-reduce -------------------------------------------------------------------------


def rings(g: torch.Generator) -> Iterator[tuple]:
    yield ([[1.0, 1.0], [10.0, 10.0]],)
    for n in (3, 4):
        yield ([[10.0**rank] * n for rank in range(n)],)
    yield (torch.randint(-9, 10, (5, 5), generator=g).float().tolist(),)


def ring(
    gradients: list[list[float]],
    turns: int = 0,
    start: int = 1,
    to: int = 1,
    step: int = 1,
    replace: tuple[bool, bool] = (False, True),
) -> list[list[list[float]]]:
    """The gradients before the first turn and after each one.

    turns: more in each phase. start: the part that rank 0 sends first in the second phase. to: how
    far the receiver is. step: how the part changes from turn to turn. replace: whether the receiver
    replaces its part, in each phase; else it adds.
    """
    n = len(gradients)
    states = [[list(row) for row in gradients]]
    for phase in (0, 1):
        for turn in range(n - 1 + turns):
            after = [list(row) for row in states[-1]]
            for rank in range(n):
                part = (rank - step * turn + phase * start) % n
                value = states[-1][rank][part]
                receiver = (rank + to) % n
                after[receiver][part] = value + (0 if replace[phase] else after[receiver][part])
            states.append(after)
    return states


def as_tensor(f: Callable, gradients: list[list[float]]) -> Any:
    states = f(gradients)
    return torch.tensor(states) if isinstance(states, list | tuple) else states


# ---- ★★★ the number of GPUs up to which communication is hidden ----------------------------------


def clusters(g: torch.Generator) -> Iterator[tuple]:
    yield 2048, 350e9, 257e6, 400e12, 400e9
    for _ in range(4):
        yield (
            64 * randint(g, 4, 32),
            1e9 * randint(g, 300, 900),
            1e6 * randint(g, 200, 900),
            1e12 * randint(g, 100, 400),
            1e9 * randint(g, 10, 400),
        )


def hidden_gpus(
    batch: int,
    flops: float,
    parameters: float,
    speed: float,
    bandwidth: float,
    share: float = 2 / 3,
    size: float = 8,
    ring: bool = True,
) -> int:
    """share: of a step's computation that hides communication; size: bytes that are sent for each
    parameter; ring: without the part that each GPU already has."""
    n = 1
    while True:
        more = n + 1
        backward = share * batch / more * flops / speed
        sent = size * parameters * ((more - 1) / more if ring else 1)
        if sent / bandwidth > backward:
            return n
        n = more


def behind_the_step(
    batch: int, flops: float, parameters: float, speed: float, bandwidth: float
) -> int:
    return hidden_gpus(batch, flops, parameters, speed, bandwidth, share=1.0)


def behind_the_forward_pass(
    batch: int, flops: float, parameters: float, speed: float, bandwidth: float
) -> int:
    return hidden_gpus(batch, flops, parameters, speed, bandwidth, share=1 / 3)


def sent_once(batch: int, flops: float, parameters: float, speed: float, bandwidth: float) -> int:
    return hidden_gpus(batch, flops, parameters, speed, bandwidth, size=4)


def numbers_sent(
    batch: int, flops: float, parameters: float, speed: float, bandwidth: float
) -> int:
    return hidden_gpus(batch, flops, parameters, speed, bandwidth, size=2)


def one_more(batch: int, flops: float, parameters: float, speed: float, bandwidth: float) -> int:
    return 1 + hidden_gpus(batch, flops, parameters, speed, bandwidth)


def a_power_of_two(
    batch: int, flops: float, parameters: float, speed: float, bandwidth: float
) -> int:
    return 2 ** (hidden_gpus(batch, flops, parameters, speed, bandwidth).bit_length() - 1)


def not_rounded(
    batch: int, flops: float, parameters: float, speed: float, bandwidth: float
) -> float:
    backward = 2 / 3 * batch * flops / speed  # of all images
    return 1 + backward * bandwidth / (8 * parameters)


def three_passes_again(
    batch: int, flops: float, parameters: float, speed: float, bandwidth: float
) -> int:
    return hidden_gpus(batch, flops, parameters, speed, bandwidth, share=2)


def one_too_few(batch: int, flops: float, parameters: float, speed: float, bandwidth: float) -> int:
    return hidden_gpus(batch, flops, parameters, speed, bandwidth, ring=False)


EXERCISES = {
    "state_bytes": Exercise(
        state_inputs,
        state_bytes,
        [
            (
                four_numbers,
                "one of the five float32 numbers of a parameter is missing: the weight, its "
                "gradient, Adam's two moments, the averaged weight.",
            ),
            (
                no_moments,
                "Adam's moments are missing: it keeps the mean of the gradient and of its square "
                "for each parameter.",
            ),
            (
                weights_alone,
                "this counts the weights only. A training run has gradients, moments and averaged "
                "weights, too.",
            ),
            (
                in_bfloat16,
                "this is two bytes for each number. The matrix products are in bfloat16; the "
                "state is in float32, four bytes for each number.",
            ),
            (
                always_divided,
                "DDP has a copy of everything on each GPU. Only a sharded run divides by the "
                "number of GPUs.",
            ),
            (never_divided, "FSDP2 divides the state: each GPU has 1 / gpus of it."),
            (numbers_not_bytes, "these are numbers; each of them has 4 bytes."),
            (of_all_gpus, "this is the sum over all GPUs. Give the bytes on one of them."),
            (
                only_weights_sharded,
                "only the weights are divided. FSDP2 shards the gradients, the moments and the "
                "averaged weights as well.",
            ),
            (
                with_bfloat16_copies,
                "these are 22 bytes for each parameter: leave out the copies of the weights in "
                "bfloat16.",
            ),
        ],
    ),
    "micro_batch": Exercise(
        memory_inputs,
        micro_batch,
        [
            (
                not_a_divisor,
                "this number of images fits, but it does not divide the images of a GPU: the last "
                "micro-batch would be smaller than the others.",
            ),
            (
                power_of_two,
                "this is a power of two. Any divisor of the images of a GPU is allowed, for "
                "example 3, 6 or 12 of 12.",
            ),
            (without_state, "the state of the run needs memory, too: subtract it first."),
            (at_least_one, "if not even one image fits beside the state, the answer is 0."),
            (
                number_of_micro_batches,
                "this is the number of micro-batches. Give the number of images in one.",
            ),
            (
                smaller_than_the_memory,
                "a micro-batch that fills the usable memory exactly still fits.",
            ),
            (
                all_at_once,
                "the images of a GPU need not be computed all at once: try each of their divisors.",
            ),
            (
                never_all_at_once,
                "if all images of the GPU fit at once, the answer is `local` itself. "
                "range(1, local) ends before it.",
            ),
        ],
    ),
    "ring": Exercise(
        rings,
        ring,
        [
            (
                lambda x: ring(x, replace=(False, False)),
                "the second phase adds again, so parts are counted twice. The sums are finished "
                "there: the receiver replaces its part.",
            ),
            (
                lambda x: ring(x, start=0),
                "the second phase begins with part r, which is not finished. After the first phase "
                "the finished sum of rank r is part r + 1.",
            ),
            (
                lambda x: ring(x, step=0),
                "each rank sends the same part in all turns. It must pass on what it has just "
                "received: part r - turn.",
            ),
            (
                lambda x: ring(x, step=-1),
                "the part goes the wrong way round: in turn 1 a rank passes on what it received in "
                "turn 0, part r - 1.",
            ),
            (
                lambda x: ring(x, turns=1),
                "one turn too many in each phase: after n - 1 turns each part has met all ranks.",
            ),
            (
                lambda x: ring(x, replace=(True, True)),
                "the first phase replaces, so nothing is summed: the receiver adds the part to its "
                "own.",
            ),
            (
                lambda x: [ring(x)[-1]] * len(ring(x)),
                "all states are one and the same list, changed later: store a copy of each row.",
            ),
            (
                lambda x: ring(x)[1:],
                "the first state is missing: the gradients before any turn.",
            ),
        ],
        as_tensor,
    ),
    "hidden_gpus": Exercise(
        clusters,
        hidden_gpus,
        [
            (
                behind_the_step,
                "gradients exist only in the backward pass: two thirds of a step can hide their "
                "communication, not all of it.",
            ),
            (
                behind_the_forward_pass,
                "this is the time of the forward pass, a third of a step. Communication runs "
                "during the backward pass, the other two thirds.",
            ),
            (
                sent_once,
                "4 bytes for each parameter is half of the communication: each gradient is sent "
                "once to be summed, and its sum is sent once to all GPUs, both in float32.",
            ),
            (
                numbers_sent,
                "this counts numbers, not bytes: a float32 number has 4 bytes.",
            ),
            (
                one_more,
                "one GPU too many: with this number, communication takes longer than the backward "
                "pass. Round down.",
            ),
            (
                three_passes_again,
                "`flops` is already that of a whole training step, forward and backward. The "
                "backward pass is two thirds of it.",
            ),
            (
                one_too_few,
                "each GPU sends (n - 1) / n of the gradients in each of the two rounds: it "
                "already has its own part.",
            ),
            (a_power_of_two, "this is a power of two. Any whole number of GPUs is allowed."),
            (not_rounded, "this is not a whole number: round down."),
        ],
    ),
}
