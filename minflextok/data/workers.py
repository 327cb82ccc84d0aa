"""The processes that read and decode images."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent has died


def end_with_parent(worker: int) -> None:
    """For `worker_init_fn` of a DataLoader: nothing of a worker outlives the training, not even if
    it waits for data that never comes, or if the training is ended by SIGKILL (on Linux).

    A worker is a process group of its own, with the commands that it reads from (curl, pipe:).
    SIGTERM, which the DataLoader sends to a worker that does not end, ends them all.
    """
    if not hasattr(os, "setpgid"):  # Windows
        return
    os.setpgid(0, 0)
    # Without these two, a worker has the handlers of the training, which save and go on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
