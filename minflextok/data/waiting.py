"""Waiting for data: with a limit, and open to signals."""

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def wait_for(
    read: Callable[[], T], seconds: float, signals: tuple[int, ...], received: list[int]
) -> T:
    """read(). KeyboardInterrupt if one of the signals comes meanwhile, which `received` then has;
    TimeoutError after so many seconds (0: no limit). Both only on the main thread of a POSIX
    system."""
    if not on_main_thread() or not hasattr(signal, "setitimer"):
        return read()
    late = []

    def interrupt(number, _):
        restore()  # a second signal must not interrupt what follows
        (late if number == signal.SIGALRM else received).append(number)
        raise KeyboardInterrupt  # no Exception: a reader that skips bad images must not catch it

    def restore():
        signal.setitimer(signal.ITIMER_REAL, 0)
        for s, handler in previous.items():
            signal.signal(s, handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the first batch has created a DataLoader

    previous = {s: signal.getsignal(s) for s in (signal.SIGALRM, *signals)}
    try:
        try:
            for s in previous:
                signal.signal(s, interrupt)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            return read()
        finally:
            restore()
    except KeyboardInterrupt as e:
        if late and not received:
            raise TimeoutError(f"no batch came for {seconds / 60:g} minutes") from e
        raise


def limited(read: Callable[[], T], data: Any, minutes: float) -> T:
    """read(), for a data set or its name, where no training loop waits. ValueError if nothing comes
    for so many minutes (0: no limit), or if a reading process is killed; SystemExit(143) on
    SIGTERM, so that what reads the data is ended too."""
    ends = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # else someone handles it
    name, workers = getattr(data, "name", data), getattr(data, "workers", 0)
    received: list[int] = []
    try:
        return wait_for(read, 60 * minutes, (signal.SIGTERM,) if ends else (), received)
    except KeyboardInterrupt:
        if received:
            raise SystemExit(143) from None
        raise
    except Exception as e:
        text = reader_error(e, name, minutes, workers)
        if text in ("", str(e)):
            raise
        raise ValueError(text) from None


def each(batches: Iterator[T], data: Any, minutes: float) -> Iterator[T]:
    """The batches, each waited for by `limited`."""
    end: Any = object()
    while (batch := limited(lambda: next(batches, end), data, minutes)) is not end:
        yield batch


def reader_error(e: BaseException, name: str, minutes: float, workers: int) -> str:
    """Why there is no batch of the data set `name`, in a line; "" for an error that has nothing to
    do with its readers.

    An error in a worker process comes here with the traceback of the worker in its text.
    """
    lines = str(e).strip().splitlines() or [type(e).__name__]
    if isinstance(e, TimeoutError):
        return (
            f"{name}: {lines[0]}: is its disk or server down? If it is only slow, give "
            f"reader_minutes={2 * minutes:g}"
        )
    # A killed worker may close its pipe before the DataLoader hears of its end.
    closed = isinstance(e, EOFError) or (isinstance(e, ConnectionError) and e.errno is not None)
    if closed or (isinstance(e, RuntimeError) and lines[0].startswith("DataLoader worker")):
        return (
            f"{name}: a process that reads it was killed ({lines[0].strip()}): was the memory "
            f"full? Give fewer than workers={workers}"
        )
    if not isinstance(e, ValueError | OSError):
        return ""
    if "in DataLoader worker process" in lines[0]:
        return lines[-1].partition(": ")[2]
    return str(e)
