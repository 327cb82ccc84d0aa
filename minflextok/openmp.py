"""How long the threads of OpenMP spin while they wait for each other: set before torch is loaded.

At the end of each parallel loop every thread waits for the others. GNU's OpenMP, which torch uses
on Linux, lets them spin for milliseconds; if other programs use the cores, the spinning threads
keep from them the thread that all wait for. Short spins cost little on an idle machine and save
much on a busy one (benchmarks/busy.py).
"""

import os
import sys

SPINS = "GOMP_SPINCOUNT"
# What a user sets stays as it is: OMP_WAIT_POLICY, too, says how threads wait.
if SPINS not in os.environ and "OMP_WAIT_POLICY" not in os.environ and "torch" not in sys.modules:
    os.environ[SPINS] = "1000"

# Whether this package was imported before torch, so that torch still has its own number of threads.
FIRST = "torch" not in sys.modules


def waiting() -> str:
    """How threads wait, in words. OpenMP read its variables when torch was loaded."""
    if "OMP_WAIT_POLICY" in os.environ:
        return f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}"
    if SPINS in os.environ:
        return f"{SPINS}={os.environ[SPINS]}"
    return (
        f"{SPINS} is not set, because torch was imported before minflextok: on a busy machine, set "
        f"{SPINS}=1000 before Python starts"
    )
