"""Downloads from servers that do whatever they like: the right bytes, or an error that says why of each."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import Rounds

from pyterrier_rankdistillm.errors import DownloadError
from pyterrier_rankdistillm.runs import download as module
from pyterrier_rankdistillm.runs.download import download

DATA = random.Random(1).randbytes(50_000)
MD5 = hashlib.md5(DATA).hexdigest()

Answer = Callable[[int, random.Random], tuple[str, bytes, float]]
"""For the first byte that is wanted: the head, the body, and seconds between its pieces."""


def head(status: str, *lines: str) -> str:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "Connection: close"]) + "\r\n\r\n"


def whole(start: int, rng: random.Random) -> tuple[str, bytes, float]:
    del rng
    length = f"Content-Length: {len(DATA) - start}"
    if not start:
        return head("200 OK", length), DATA, 0.0
    place = f"Content-Range: bytes {start}-{len(DATA) - 1}/{len(DATA)}"
    return head("206 Partial Content", length, place), DATA[start:], 0.0


def cut(start: int, rng: random.Random) -> tuple[str, bytes, float]:
    first, body, _ = whole(start, rng)
    return first, body[: rng.randrange(len(body) + 1)], 0.0


def without_ranges(_: int, rng: random.Random) -> tuple[str, bytes, float]:
    return cut(0, rng)


def without_length(_: int, __: random.Random) -> tuple[str, bytes, float]:
    return head("200 OK"), DATA, 0.0


def other_range(start: int, rng: random.Random) -> tuple[str, bytes, float]:
    begins = rng.randrange(len(DATA))
    stated = rng.choice(
        (f"bytes {begins}-{len(DATA) - 1}/{len(DATA)}", "bytes */5", "", "bytes -3-4", f"bytes {start}")
    )
    return head("206 Partial Content", f"Content-Range: {stated}"), DATA[begins:], 0.0


def odd_length(_: int, rng: random.Random) -> tuple[str, bytes, float]:
    length = rng.choice(("abc", "-5", "1e3", "", "9" * 40, "5, 6", "0", "١٢"))
    return head("200 OK", f"Content-Length: {length}"), DATA, 0.0


def odd_redirect(_: int, rng: random.Random) -> tuple[str, bytes, float]:
    odd = (
        "http://[::1",
        "file:///etc/hostname",
        "",
        "/a",
        "ftp://127.0.0.1:9/a",
        "http://127.0.0.1:99999/",
        "\x00",
        "//",
    )
    return head(rng.choice(("301 x", "302 x", "308 x")), f"Location: {rng.choice(odd)}"), b"", 0.0


def error(_: int, rng: random.Random) -> tuple[str, bytes, float]:
    status = rng.choice(("400", "401", "403", "404", "410", "416", "418", "429", "451", "500", "502", "503", "999"))
    return head(f"{status} no", "Content-Length: 2"), b"no", 0.0


def nonsense(_: int, rng: random.Random) -> tuple[str, bytes, float]:
    return rng.choice(("", "\r\n\r\n", "hello\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nx" * 200)), b"", 0.0


def wrong_bytes(start: int, rng: random.Random) -> tuple[str, bytes, float]:
    first, body, _ = whole(start, rng)
    return first, body[::-1], 0.0


def another_file(_: int, rng: random.Random) -> tuple[str, bytes, float]:
    body = rng.randbytes(rng.randrange(1, 2 * len(DATA)))
    return head("200 OK", f"Content-Length: {len(body)}"), body, 0.0


def more(_: int, __: random.Random) -> tuple[str, bytes, float]:
    return head("200 OK"), DATA + bytes(1 << 20), 0.0


def trickle(start: int, rng: random.Random) -> tuple[str, bytes, float]:
    first, body, _ = whole(start, rng)
    return first, body, 0.1


def trickled_head(start: int, rng: random.Random) -> tuple[str, bytes, float]:
    """The head, or the size of a chunk, comes byte by byte, and never ends."""
    first, _, _ = whole(start, rng)
    chunked = head("200 OK", "Transfer-Encoding: chunked")
    return rng.choice(("", first[: rng.randrange(len(first) - 4)], chunked)), b"1" * 10**6, 0.1


BAD: dict[str, Answer] = {
    answer.__name__: answer
    for answer in (cut, without_ranges, without_length, other_range, odd_length, odd_redirect, error, nonsense,
                   wrong_bytes, another_file, more, trickle, trickled_head)
}  # fmt: skip


@contextmanager
def serving(answer: Answer, rng: random.Random) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        request = connection.recv(65536).decode()
                        wanted = request.lower().partition("range: bytes=")[2].partition("-")[0]
                        first, body, pause = answer(int(wanted or 0), rng)
                        connection.sendall(first.encode())
                        for start in range(0, len(body), 2000 if pause else len(body) or 1):
                            if ended.wait(pause):
                                break
                            connection.sendall(body[start : start + (100 if pause else len(body))])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/a"
        finally:
            ended.set()


def test_a_bad_server(rounds: Rounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    monkeypatch.setattr(module, "_WINDOW", 2.0)
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for number, kind in enumerate(rounds.of(*BAD)):
        target = tmp_path / str(number) / "file.run"
        size = rounds.random.choice((None, len(DATA)))
        before = rounds.random.choice((b"", DATA[:1000], b"x" * 1000))
        target.parent.mkdir()
        if before:
            target.with_name("file.run.part").write_bytes(before)
        with serving(BAD[kind], rounds.random) as bad, serving(whole, rounds.random) as good:
            started = time.monotonic()
            with suppress(DownloadError):
                download([bad], target, md5=MD5, size=size, verbose=False, timeout=2)
            assert time.monotonic() - started < 30
            if target.exists():
                assert target.read_bytes() == DATA
                target.unlink()
            download([bad, good], target, md5=MD5, size=size, verbose=False, timeout=2)
        assert target.read_bytes() == DATA
        assert {path.name for path in target.parent.iterdir()} <= {"file.run", "file.run.lock", "file.run.part"}
        rounds.hit(kind)
