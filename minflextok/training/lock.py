"""One training run at a time in a directory."""

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..weights import write_atomic

LOCK, OWNER = ".run.lock", ".run.owner.json"
PATIENCE = 20.0  # seconds for the data workers of a killed run to end


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Holds the lock of the directory `out`. ValueError, which names the run that has it, if
    another one does.

    The operating system ends the lock with the process that holds it, however that ends. The owner
    file says who holds it; alone, it locks nothing.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(out / LOCK), out / OWNER
    try:
        held = acquire(lock, owner)
    except Timeout:
        raise ValueError(
            f"out={str(out)!r} is in use by another run ({describe(read_owner(owner))}): wait for "
            "it or stop it, or give another out"
        ) from None
    try:
        if held:
            me = {"host": socket.gethostname(), "process": os.getpid(), "since": now()}
            write_atomic(owner, json.dumps(me) + "\n")
        yield
    finally:
        if held:
            owner.unlink(missing_ok=True)
            lock.release()


def acquire(lock: FileLock, owner: Path) -> bool:
    """Take the lock, or raise Timeout. False, with a warning, on a file system without locks."""
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            # Before filelock 3.30, the data workers of a killed run inherit its lock; they end a
            # few seconds after it.
            if not is_dead(read_owner(owner)):
                raise
            lock.acquire(timeout=PATIENCE)
    except NotImplementedError:
        warnings.warn(
            f"{owner.parent} is on a file system without locks: start no other run there",
            stacklevel=5,
        )
        return False
    return True


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def read_owner(path: Path) -> dict:
    """Host, process and start of the run that holds the lock; {} if they are not known."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def describe(owner: dict) -> str:
    known = [f"{key} {owner[key]}" for key in ("host", "process", "since") if key in owner]
    return ", ".join(known) or "which one is not known"


def is_dead(owner: dict) -> bool:
    """Whether the owner was a process of this host that has ended."""
    process = owner.get("process")
    if owner.get("host") != socket.gethostname() or type(process) is not int or os.name == "nt":
        return False
    try:
        os.kill(process, 0)  # sends no signal
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
