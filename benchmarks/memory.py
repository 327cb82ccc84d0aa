"""How much memory a process has held."""

import re
import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The most that this process ever held. (On Linux, getrusage would also count what its parent held at the fork.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
