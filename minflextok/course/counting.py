"""Count what a computation costs, without a clock."""

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(f: Callable[[], object]) -> tuple[int, int]:
    """Run f() and count: the operations of PyTorch that it calls, views included, and the
    multiplications inside its matrix products.

    The two products inside a fused attention are not counted.
    """
    with FlopCounterMode(display=False) as counter, _Calls() as calls:
        f()
    return calls.count, counter.get_total_flops() // 2
