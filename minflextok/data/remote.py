"""Remote shards: read by curl, gsutil or a command of the user, with errors that say why.

webdataset reads them with the same programs. Its messages do not name the cause, it waits forever
for a server that sends nothing, and curl's own retries would repeat bytes that the reader has.
"""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import IO, Any
from urllib.parse import urlsplit

REMOTE = ("pipe:", "http:", "https:", "gs:")
TARS = (".tar", ".tar.gz", ".tgz")
CONNECT = 10  # seconds that a server may take to accept a connection
SILENCE = 30  # seconds that it may send nothing
RETRIES = 5  # after 1, 2, 4, ... seconds
UNKNOWN_HOST, NO_CONNECTION, HTTP_ERROR, TIMEOUT = 6, 7, 22, 28  # exit statuses of curl
WRONG_URL = (1, 3)  # a protocol that curl does not know; no URL
LOCALLY = "or copy the shards to a disk"


def unsigned(url: str) -> str:
    """The URL without what follows the name of the shard: a signature, which is a secret and
    expires, so that a run that is resumed has another one."""
    name = url.partition("?")[0]
    return name if url.startswith("http") and name.endswith(TARS) else url


@contextmanager
def remote_file(url: str, retries: int = RETRIES) -> Iterator[IO[bytes]]:
    """The bytes of a remote shard. ConnectionError, which says why and what to do, if they cannot
    be read to their end.

    What fails before the first byte is tried again, if the cause may pass.
    """
    with tempfile.TemporaryFile(buffering=0) as errors:
        process, data = begin(url, errors, retries)
        try:
            yield data
        except Exception:  # the shard is damaged, unless its bytes ended because the program failed
            if not data.read(1):
                check(url, process, errors)
            raise
        else:
            while data.read(2**20):  # to the end, because the exit status comes after it
                pass
            check(url, process, errors)
        finally:
            end(process)


def begin(url: str, errors: IO[bytes], retries: int) -> tuple[subprocess.Popen, IO[bytes]]:
    """A program that has written the first byte of this URL, and its output."""
    for attempt in range(retries + 1):
        errors.seek(0)
        errors.truncate()
        process = start(url, errors)
        data: Any = process.stdout  # buffered: peek waits for a byte
        try:
            if data.peek(1):
                break
            check(url, process, errors)
            break  # an empty file
        except ConnectionError:
            end(process)
            if attempt == retries or not may_pass(url, process.returncode, said(errors)):
                raise
        except BaseException:  # a signal, while it waited
            end(process)
            raise
        time.sleep(2**attempt)
    return process, data


def start(url: str, errors: IO[bytes]) -> subprocess.Popen:
    """The program that writes the bytes of this URL to its output."""
    command: str | list[str] = url.removeprefix("pipe:")
    if url.startswith("gs:"):
        command = ["gsutil", "cat", url]
    elif not url.startswith("pipe:"):
        command = ["curl", "--fail", "--silent", "--show-error", "--location", "--globoff"]
        command += ["--connect-timeout", str(CONNECT), "--url", url]
        command += ["--speed-limit", "1", "--speed-time", str(SILENCE)]  # bytes a second
    try:
        return subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdout=subprocess.PIPE,
            stderr=errors,
            # A worker ends with all commands in its group, see `end_with_parent`. Elsewhere, `end`
            # ends a command with what it has started.
            start_new_session=parent_process() is None,
        )
    except FileNotFoundError:
        raise ConnectionError(
            f"cannot read {url}: it needs the program {command[0]}: install it, {LOCALLY}"
        ) from None


def end(process: subprocess.Popen) -> None:
    """End a program that may not have finished, such as one of whose shard only a part is read."""
    assert process.stdout is not None
    process.stdout.close()
    if process.poll() is None:
        if hasattr(os, "killpg") and os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def said(errors: IO[bytes]) -> str:
    """The last line of what a program wrote to its standard error."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def check(url: str, process: subprocess.Popen, errors: IO[bytes]) -> None:
    """ConnectionError if a program whose output has ended has failed."""
    if status := process.wait():
        raise ConnectionError(f"cannot read {url}: {cause(url, status, said(errors))}") from None


def http_status(line: str) -> int:
    found = re.search(r"returned error: (\d{3})", line)
    return int(found[1]) if found else 0


def may_pass(url: str, status: int, line: str) -> bool:
    """Whether a failure may be gone in a few seconds. Commands have retries of their own."""
    if not url.startswith("http"):
        return False
    if status == HTTP_ERROR:
        return http_status(line) in (408, 429) or http_status(line) >= 500
    return status not in WRONG_URL


def cause(url: str, status: int, line: str) -> str:
    """Why a program failed, and what to do."""
    if not url.startswith("http"):
        program = "gsutil" if url.startswith("gs:") else "the command"
        why = f" ({line})" if line else ""
        return f"{program} ended with exit status {status}{why}: run it in a shell, {LOCALLY}"
    host, code = urlsplit(url).netloc.rpartition("@")[2], http_status(line)
    if status == UNKNOWN_HOST:
        return (
            f"the host {host} is unknown: check its spelling, and whether this machine has access "
            f"to the network; {LOCALLY}"
        )
    if status == NO_CONNECTION:
        return (
            f"no connection to {host} (refused, or no route): check the port, and whether the "
            f"server runs; {LOCALLY}"
        )
    if status == TIMEOUT:
        return (
            f"no answer from {host} within {CONNECT} s, or no data for {SILENCE} s: try again when "
            f"the server is less busy, check the firewall, {LOCALLY}"
        )
    if code in (401, 403):
        return f"HTTP status {code}: access is denied; give a URL whose signature has not expired"
    if code in (404, 410):
        return f"HTTP status {code}: the server has no such file; check the name"
    if code:
        later = "try again later" if may_pass(url, status, line) else "check the URL"
        return f"HTTP status {code}: {later}, {LOCALLY}"
    return f"{line or f'curl ended with exit status {status}'}: try again later, {LOCALLY}"
