"""A small HTTP server on this machine that misbehaves on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server answers, by path.

    Args:
        files: Content.
        status: Another status than 200, and how many times; -1 for ever.
        cut: Cut the connection after so many bytes, the next so many times.
        no_range: Paths for which ranges are ignored.
        no_length: Paths that are sent without Content-Length.
        slow: Seconds to wait after every 4 KiB.
        asked: (method, path, Range) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, tuple[int, int]] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    no_range: set[str] = field(default_factory=set)
    no_length: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""

    def url(self, path: str) -> str:
        return f"{self.address}{path}"

    def ranges(self, path: str) -> list[str | None]:
        return [wanted for method, asked, wanted in self.asked if method == "GET" and asked == path]


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            wanted = self.headers.get("Range")
            site.asked.append((self.command, self.path, wanted))
            status, times = site.status.get(self.path, (200, 0))
            if times:
                site.status[self.path] = status, times - 1
                self.send_error(status)
                return
            if self.path not in site.files:
                self.send_error(404)
                return
            whole = site.files[self.path]
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.path not in site.no_range else 0
            if start and start >= len(whole):
                self.send_error(416)
                return
            body = whole[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
            if self.path not in site.no_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                cuts = site.cut.get(self.path, [])
                self.send(body[: cuts.pop(0)] if cuts else body)

        def send(self, body: bytes) -> None:
            pause = site.slow.get(self.path, 0.0)
            with suppress(ConnectionError):  # the client may be gone
                for start in range(0, len(body), 4096):
                    self.wfile.write(body[start : start + 4096])
                    time.sleep(pause)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
