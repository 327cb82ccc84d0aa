"""Sets in memory, held once by the ranks of a node."""

import atexit
import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

CALLS: Counter[str] = Counter()  # of this process, by key


def once_per_node(key: tuple, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """make(), called by one of the ranks that torchrun started on this node. All map the result
    from one file, so it takes its memory once. key: what the result depends on.

    The file is in the folder for temporary files, and removed when all ranks have mapped it, or
    when the one that wrote it ends. Without torchrun, or without space for the file: make().
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if ranks == 1 or os.name != "posix":
        return make()
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    CALLS[digest] += 1
    launch = os.getppid(), os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    folder = Path(tempfile.gettempdir()) / f"minflextok-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # another user could put a file of theirs in place
        return make()
    path = folder / "-".join(map(str, (*launch, digest, CALLS[digest])))
    # Its name ends in the number of ranks that have mapped it.
    names = [path.with_name(f"{path.name}.{n}") for n in range(ranks)]
    lock = path.with_name(f"{path.name}.lock")
    with FileLock(lock):
        n = next((n for n in range(ranks) if names[n].exists()), 0)
        if not names[n].exists():
            made = make()
            for file in (*names, lock):
                atexit.register(file.unlink, missing_ok=True)
            try:
                save_file({name: x.contiguous() for name, x in made.items()}, names[0])
            except (OSError, SafetensorError):
                names[0].unlink(missing_ok=True)
                return made
            del made
        found = load_file(names[n])
        if n + 1 < ranks:
            names[n].rename(names[n + 1])
        else:
            names[n].unlink()
            lock.unlink(missing_ok=True)
    return found
