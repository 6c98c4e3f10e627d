"""Downloads from a server that cuts connections and serves wrong bytes, wrong sizes and errors."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from server import Site

from pyterrier_rankdistillm.runs import download as module
from pyterrier_rankdistillm.runs.download import DownloadError, download, md5_of, remote_size

DATA = bytes(range(256)) * 400
MD5 = hashlib.md5(DATA).hexdigest()


def get(site: Site, target: Path, *paths: str, size: int | None = None) -> Path:
    return download([site.url(path) for path in paths], target, md5=MD5, size=size, verbose=False, timeout=5)


def left_over(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "file.run"


def test_a_file_arrives_whole(site: Site, target: Path) -> None:
    site.files["/a"] = DATA
    assert get(site, target, "/a", size=len(DATA)) == target
    assert target.read_bytes() == DATA
    assert left_over(target) == ["file.run"]
    assert get(site, target, "/a") == target
    assert site.ranges("/a") == [None]


def test_a_cut_connection_goes_on_where_it_was_cut(site: Site, target: Path) -> None:
    site.files["/a"] = DATA
    site.cut["/a"] = [1000, 5000, 1]
    get(site, target, "/a")
    assert target.read_bytes() == DATA
    assert site.ranges("/a") == [None, "bytes=1000-", "bytes=6000-", "bytes=6001-"]


def test_many_cuts_do_not_exhaust_the_attempts_while_bytes_arrive(site: Site, target: Path) -> None:
    site.files["/a"] = DATA
    site.cut["/a"] = [5000] * 12
    get(site, target, "/a")
    assert target.read_bytes() == DATA


def test_a_server_without_ranges_starts_again(site: Site, target: Path) -> None:
    site.files["/a"], site.cut["/a"] = DATA, [1000]
    site.no_range.add("/a")
    get(site, target, "/a")
    assert target.read_bytes() == DATA


def test_a_server_without_lengths(site: Site, target: Path) -> None:
    site.files["/a"] = DATA
    site.no_length.add("/a")
    get(site, target, "/a")
    assert target.read_bytes() == DATA


def test_the_next_call_goes_on(site: Site, target: Path) -> None:
    site.files["/a"], site.cut["/a"] = DATA, [1000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"file.run could not be downloaded.*cut after 1000 of 102400 bytes"):
        get(site, target, "/a")
    assert left_over(target) == ["file.run.part"]
    assert (target.parent / "file.run.part").read_bytes() == DATA[:1000]
    get(site, target, "/a")
    assert site.ranges("/a")[-1] == "bytes=1000-"
    assert target.read_bytes() == DATA
    assert left_over(target) == ["file.run"]


def test_a_whole_part_is_only_checked(site: Site, target: Path) -> None:
    site.files["/a"] = DATA
    target.parent.mkdir()
    part = target.parent / "file.run.part"
    part.write_bytes(DATA)
    get(site, target, "/a", size=len(DATA))
    assert site.ranges("/a") == []
    target.replace(part)
    get(site, target, "/a")  # size unknown: the server says that nothing is left
    assert site.ranges("/a") == ["bytes=102400-"]
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("old", [b"x" * 1000, b"x" * len(DATA), b"x" * (len(DATA) + 1)])
@pytest.mark.parametrize("size", [None, len(DATA)])
def test_a_part_of_another_file_is_thrown_away(site: Site, target: Path, old: bytes, size: int | None) -> None:
    site.files["/a"] = DATA
    target.parent.mkdir()
    (target.parent / "file.run.part").write_bytes(old)
    get(site, target, "/a", size=size)
    assert target.read_bytes() == DATA


def test_the_next_source_is_tried(site: Site, target: Path) -> None:
    site.files["/wrong"], site.files["/long"], site.files["/a"] = DATA[::-1], DATA + b"x", DATA
    site.files["/gone"], site.status["/gone"] = DATA, (410, -1)
    site.files["/down"], site.status["/down"] = DATA, (503, -1)
    get(site, target, "/missing", "/gone", "/down", "/long", "/wrong", "/a", size=len(DATA))
    assert target.read_bytes() == DATA
    assert [path for _, path, _ in site.asked] == ["/missing", "/gone", *["/down"] * 3, "/long", "/wrong", "/a"]


def test_a_busy_server_is_asked_again(site: Site, target: Path) -> None:
    site.files["/a"], site.status["/a"] = DATA, (429, 2)
    get(site, target, "/a")
    assert target.read_bytes() == DATA


def test_what_one_source_sent_counts_for_the_next(site: Site, target: Path) -> None:
    site.files["/a"], site.cut["/a"] = DATA, [1000, 0, 0, 0]
    site.files["/b"] = DATA
    get(site, target, "/a", "/b")
    assert site.ranges("/b") == ["bytes=1000-"]
    assert target.read_bytes() == DATA


def test_wrong_bytes_leave_nothing(site: Site, target: Path) -> None:
    site.files["/a"], site.files["/b"] = DATA[::-1], DATA[:-1]
    wrong = hashlib.md5(DATA[::-1]).hexdigest()
    with pytest.raises(DownloadError) as caught:
        get(site, target, "/a", "/b", "/c")
    message = str(caught.value)
    assert f"/a: the file there has MD5 {wrong}, not {MD5}" in message
    assert "/c: the server answers 404 Not Found" in message
    assert f"put the file (MD5 {MD5}) at {target} yourself" in message
    assert left_over(target) == []
    with pytest.raises(DownloadError, match="the file there has 102399 bytes, not 102400"):
        get(site, target, "/b", size=len(DATA))
    assert left_over(target) == []


def test_no_server(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(DownloadError, match="refused"):
        download(["http://127.0.0.1:9/a"], target, md5=MD5, attempts=1, verbose=False)
    assert left_over(target) == []


def test_a_full_disk_is_said_before(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/a"] = DATA
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Free(100))
    with pytest.raises(DownloadError, match="it has 102400 bytes, more than are free"):
        get(site, target, "/a")


class Free:
    def __init__(self, free: int) -> None:
        self.free = free


def test_processes_wait_for_one_another(site: Site, target: Path) -> None:
    site.files["/a"] = DATA
    threads = [threading.Thread(target=get, args=(site, target, "/a")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == DATA
    assert site.ranges("/a") == [None]


def test_a_killed_download_goes_on(site: Site, target: Path) -> None:
    site.files["/a"] = DATA
    site.slow["/a"] = 0.01
    code = (
        "import sys; from pathlib import Path; from pyterrier_rankdistillm.runs.download import download;"
        "download([sys.argv[1]], Path(sys.argv[2]), md5=sys.argv[3], verbose=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, site.url("/a"), str(target), MD5])
    part = target.parent / "file.run.part"
    try:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert left_over(target) == ["file.run.part"]
    kept = part.stat().st_size
    site.slow.clear()
    get(site, target, "/a")
    assert target.read_bytes() == DATA
    assert site.ranges("/a")[-1] == f"bytes={kept}-"
    assert 0 < kept < len(DATA)


def test_sizes_are_asked_without_downloading(site: Site, tmp_path: Path) -> None:
    site.files["/a"] = DATA
    assert remote_size([site.url("/missing"), site.url("/a")]) == 102400
    assert remote_size([site.url("/missing"), "http://127.0.0.1:9/a"]) is None
    assert site.ranges("/a") == []
    (tmp_path / "x").write_bytes(DATA)
    assert md5_of(tmp_path / "x") == MD5


class Rude:
    """A server that writes what it is told to, byte by byte, and reads nothing but a request."""

    def __init__(self, head: str, body: Callable[[], Iterator[bytes]] | None = None, *, end: str = "\n\n") -> None:
        self.head, self.body = (head + end).replace("\n", "\r\n").encode(), body

    def __enter__(self) -> str:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.ended = threading.Event()
        threading.Thread(target=self.serve, daemon=True).start()
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/a"

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.socket.close()

    def serve(self) -> None:
        with suppress(OSError):
            while not self.ended.is_set():
                connection, _ = self.socket.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(self.head)
                    for piece in self.body() if self.body else ():
                        if self.ended.is_set():
                            break
                        connection.sendall(piece)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("HTTP/1.1 200 OK\nContent-Length: abc", "Content-Length 'abc'"),
        ("HTTP/1.1 200 OK\nContent-Length: -5", "Content-Length '-5'"),
        ("HTTP/1.1 206 Partial\nContent-Range: bytes x-y/z\nContent-Length: 102400", "206 with Content-Range"),
        ("HTTP/1.1 302 Found\nLocation: http://[::1", "ValueError"),
        ("HTTP/1.1 302 Found\nLocation: file:///etc/hostname", "302"),
        ("HTTP/1.1 abc", "BadStatusLine"),
        ("nonsense", "BadStatusLine"),
    ],
)
def test_a_malformed_answer_is_this_source_s_failure(site: Site, target: Path, head: str, reason: str) -> None:
    site.files["/a"] = DATA
    with Rude(head) as url:
        with pytest.raises(DownloadError, match=re.escape(reason)):
            download([url], target, md5=MD5, verbose=False, timeout=5)
        assert remote_size([url, site.url("/a")]) == len(DATA)
        download([url, site.url("/a")], target, md5=MD5, verbose=False, timeout=5)
    assert target.read_bytes() == DATA


def endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 65536


def trickle() -> Iterator[bytes]:
    while True:
        yield b"x"
        time.sleep(0.02)


def test_an_endless_body_is_bounded_by_what_was_announced(
    site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/a"] = DATA
    with Rude("HTTP/1.1 200 OK", endless) as url:
        with pytest.raises(DownloadError, match="it sends more than 102400 bytes"):
            download([url], target, md5=MD5, size=len(DATA), verbose=False, timeout=5)
        monkeypatch.setattr(module, "_RESERVE", shutil.disk_usage(target.parent).free - 300_000)
        with pytest.raises(DownloadError, match="it sends more than"):
            download([url], target, md5=MD5, verbose=False, timeout=5)
        assert all(file.stat().st_size == 0 for file in target.parent.iterdir())
        download([url, site.url("/a")], target, md5=MD5, size=len(DATA), verbose=False, timeout=5)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK\nContent-Length: 102400\n\n",
        "HTTP/1.1 200 OK\n\n",
        "",  # the status line
        "HTTP/1.1 200 OK\nContent-Length: 10",  # a header
        "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n",  # the size of a chunk
        "HTTP/1.1 302 Found\nLocation: http",
    ],
)
def test_a_source_that_trickles_is_given_up(
    head: str, site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it does so: each byte comes in time, but not the whole."""
    site.files["/a"] = DATA
    monkeypatch.setattr(module, "_WINDOW", 1.0)  # the good one needs its time on a busy machine
    with Rude(head, trickle, end="") as url:
        download([url, site.url("/a")], target, md5=MD5, verbose=False, timeout=5)
        assert target.read_bytes() == DATA
        monkeypatch.setattr(module, "_WINDOW", 0.2)
        with pytest.raises(DownloadError, match=r"it sent \d+ bytes in 0 s"):
            download([url], target.with_name("b"), md5=MD5, verbose=False, timeout=5)
        if not head.endswith("\n"):
            assert remote_size([url]) is None


def test_a_slow_source_that_sends_enough_is_not_given_up(
    site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/a"] = DATA
    site.slow["/a"] = 0.02  # 25 pieces of 4 KiB
    monkeypatch.setattr(module, "_WINDOW", 0.25)
    monkeypatch.setattr(module, "_LEAST", 1)
    get(site, target, "/a")
    assert target.read_bytes() == DATA
    assert site.ranges("/a") == [None]


def test_offline_nobody_is_asked(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.files["/a"] = DATA
    monkeypatch.setattr(module.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="/a: HF_HUB_OFFLINE is set, so it is not asked"):
        get(site, target, "/a")
    assert remote_size([site.url("/a")]) is None
    assert site.asked == []
