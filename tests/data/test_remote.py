"""Shards by URL: a local server streams them well, or fails in each way that servers fail."""

import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import pytest
from image_files import png, shard

from minflextok.data import Stream, identity, load_dataset, remote, shards
from minflextok.data.remote import remote_file


class Server(ThreadingHTTPServer):
    """Serves a shard; `then` holds what the next requests get in its place: a status, or a number
    of bytes after which the connection ends."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.then, self.requests = content, [], []
        self.url = f"http://127.0.0.1:{self.server_port}/a.tar"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        s = self.server
        s.requests.append(self.path)
        what = s.then.pop(0) if s.then else len(s.content)
        if what in (302, 403, 404, 418, 429, 503):
            self.send_response(what)
            self.send_header("Location", "/b.tar?moved=1")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(s.content)))
        self.end_headers()
        self.wfile.write(s.content[:what])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    path = shard(
        tmp_path / "a.tar",
        [(f"{i}.{e}", c) for i in range(30) for e, c in (("png", png(i)), ("cls", b"%d" % i))],
    )
    with Server(path.read_bytes()) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        yield s
        s.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of seconds, not of half a minute."""
    monkeypatch.setattr(remote, "SILENCE", 1)
    monkeypatch.setattr(remote, "CONNECT", 2)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def soon(seconds: float = 3):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("query", ["", "?X-Amz-Date=20260101&sig=a%2Fb%3D"])
def test_a_server_streams_shards(server, workers, query):
    data = load_dataset(server.url.replace("a.tar", "{a,b}.tar") + query, "train", 8, workers)
    assert isinstance(data, Stream) and data.encoding == "PNG" and len(data.shards) == 2
    drawn = Counter(x for b in islice(data.batches(10, 0), 18) for x in b[:, 0, 0, 0].tolist())
    assert set(drawn) == set(range(30))
    assert [y.tolist() for _, y in data.in_order(30)] == [[*range(30)]] * 2
    assert {path.partition("?")[2] for path in server.requests} == {query[1:]}


def test_a_new_signature_is_no_other_data_set(server):
    plain, one, two, other = (
        load_dataset(server.url + query, image_size=8) for query in ("", "?sig=1", "?sig=2", "/?a")
    )
    assert plain.name == one.name == two.name == server.url != other.name
    assert identity(plain) == identity(one) == identity(two) != identity(other)


def test_a_redirection_is_followed(server):
    server.then = [302]
    assert load_dataset(server.url, image_size=8).encoding == "PNG"
    assert server.requests == ["/a.tar", "/b.tar?moved=1"]


@pytest.mark.parametrize(
    "status, match",
    [
        (404, "404: the server has no such file; check the name"),
        (403, "403: access is denied; give a URL whose signature has not expired"),
        (503, "503: try again later, or copy the shards to a disk"),
        (418, "418: check the URL, or copy the shards to a disk"),
    ],
)
def test_the_status_of_a_server_is_named(server, status, match):
    server.then = [status]
    with soon(), pytest.raises(ConnectionError, match=f"{server.url}: HTTP status {match}"):
        load_dataset(server.url, image_size=8)


def test_an_unknown_host_is_named():
    url, match = "http://no.such.host.invalid/a.tar", "no.such.host.invalid is unknown: check its"
    with soon(10), pytest.raises(ConnectionError, match=f"{url}: the host {match}"):
        load_dataset(url, image_size=8)


def test_a_refused_connection_is_named(server):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # no one listens
        url = f"http://user:secret@127.0.0.1:{s.getsockname()[1]}/a.tar"
        with soon(), pytest.raises(ConnectionError, match=r"no connection to 127.0.0.1:\d+ \(refu"):
            load_dataset(url, image_size=8)


@pytest.mark.parametrize("accepts", [False, True])
def test_a_server_that_says_nothing_is_named(accepts):
    """It takes no more connections, or it takes one and sends nothing."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(8 if accepts else 0)
        for _ in range(0 if accepts else 4):  # fill its queue
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(s.getsockname())
        url = f"http://127.0.0.1:{s.getsockname()[1]}/a.tar"
        match = f"{url}: no answer from .* within 2 s, or no data for 1 s"
        with soon(6), pytest.raises(ConnectionError, match=match):
            load_dataset(url, image_size=8)


@pytest.mark.parametrize("after", [1000, 10_000])
def test_a_connection_that_ends_early_is_no_damaged_shard(server, after):
    data = load_dataset(server.url, image_size=8, workers=0)
    server.then = [after]
    with pytest.raises(ConnectionError, match=f"{server.url}: curl: .*: try again later"):
        list(data.in_order(10))
    server.then = [after]
    with pytest.raises(ConnectionError, match=f"{server.url}: curl: .*: try again later"):
        identity(data, content=True)


def test_a_busy_server_is_asked_again_in_a_run(server, monkeypatch):
    data, waits = load_dataset(server.url, image_size=8, workers=0), []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    server.then = [503, 429]
    assert sum(len(x) for x, _ in data.in_order(10)) == 30 and waits == [1, 2]
    server.then = [503] * 9
    with pytest.raises(ConnectionError, match="HTTP status 503"):
        list(data.in_order(10))
    assert waits == [1, 2, 1, 2, 4, 8, 16]
    server.then = [404]
    with pytest.raises(ConnectionError, match="HTTP status 404"):
        list(data.in_order(10))
    assert len(waits) == 7  # it will not be there in a second


def test_a_reader_may_take_longer_than_a_server_may_be_silent(server):
    server.content += bytes(2**22)  # more than the buffers of pipe and socket hold
    with remote_file(server.url) as f:
        first = f.read(1)
        time.sleep(2.5)
        assert first + f.read() == server.content


def test_a_damaged_remote_shard_is_named(server):
    server.content = b"no tar" * 1000
    with (
        soon(),
        pytest.raises(ValueError, match=rf"{server.url} to its end \(.*truncated, or no t"),
    ):
        load_dataset(server.url, image_size=8)


# ---- commands ------------------------------------------------------------------------------------


def test_a_command_may_end_in_anything(server, tmp_path):
    (tmp_path / "b.tar").write_bytes(server.content)
    data = load_dataset(f"pipe:cat {tmp_path}/{{a,b}}.tar | cat -", image_size=8, workers=0)
    assert len(data.shards) == 2 and sum(len(x) for x, _ in data.in_order(10)) == 60


@pytest.mark.parametrize(
    "command",
    ["cat {0}/none.tar", "head -c 9000 {0}/a.tar; cat {0}/none.tar", "cat {0}/a.tar {0}/none.tar"],
)
def test_a_command_that_fails_is_named(server, tmp_path, command):
    url = "pipe:" + command.format(tmp_path)
    match = r"the command ended with exit status 1 \(cat: .*none.tar.*\): run it in a shell"
    with soon(), pytest.raises(ConnectionError, match=match):
        list(load_dataset(url, image_size=8, workers=0).in_order(10))


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for url, program in (("http://h/a.tar", "curl"), ("gs://b/a.tar", "gsutil")):
        with pytest.raises(ConnectionError, match=f"{url}: it needs the program {program}"):
            load_dataset(url, image_size=8)


def test_s3_is_read_by_a_command():
    match = "give 'pipe:aws s3 cp s3://b/{000..127}.tar -'"
    with pytest.raises(ValueError, match=match):
        load_dataset("s3://b/{000..127}.tar", image_size=8)


def test_the_program_of_a_shard_of_which_a_part_is_read_is_ended(server):
    begun, ended = [], []
    real_start, real_end = remote.start, remote.end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "start", lambda *a: begun.append(real_start(*a)) or begun[-1])
        patch.setattr(remote, "end", lambda p: (real_end(p), ended.append(p)))
        first = shards.samples(shards.read_all([server.url]))
        assert next(first).key == "0"
        first.close()
    assert begun and begun == ended and all(p.returncode is not None for p in ended)
