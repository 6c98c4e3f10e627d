"""Downloads that can be resumed, are verified, and fall back to other sources.

The hub's files go through its own client. Others do not: ir_datasets' downloads start anew in every process and have
one source, pooch's start anew after a cut; these files are gigabytes.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, utils

from ..errors import DownloadError
from ..progress import bar, watched
from .atomic import replacing

_CHUNK = 1 << 20
_USER_AGENT = "pyterrier-rankdistillm"
_WINDOW, _LEAST = 60.0, 1 << 16  # a source that sends less than so many bytes in so many seconds is given up
_RESERVE = 1 << 30  # bytes that stay free where a source does not say how much it sends
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_ON_THE_HUB = re.compile(
    r"https://huggingface\.co/(?:(?P<kind>dataset|space)s/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"
)
_OFFLINE = "HF_HUB_OFFLINE is set, so it is not asked"


class _SourceError(Exception):
    """The file cannot be downloaded from this source; trying again does not help."""


def download(
    urls: Sequence[str],
    target: Path,
    *,
    md5: str,
    size: int | None = None,
    attempts: int = 3,
    timeout: float = 30.0,
    verbose: bool | None = None,
) -> Path:
    """Downloads a file, unless it exists.

    Received data is kept in ``{target}.part``, and the next call, also in another process, continues from there. The
    target is created only when it is complete and its checksum is correct. Processes that download the same file wait
    for one another.

    What lies on the Hugging Face hub is fetched by its client, with its settings (``HF_ENDPOINT``, ``HF_TOKEN``,
    ``HF_HUB_DOWNLOAD_TIMEOUT``) and its cache, which the target is then a link into; ``HF_HUB_OFFLINE`` holds for all
    sources. A source that sends less than 64 KiB a minute, more than it announced, or a malformed answer is given up.

    Args:
        urls: The sources of the file, best first. All have the same bytes.
        target: The file to write.
        md5: Checksum of the whole file, 32 hexadecimal digits.
        size: Its size in bytes, if known.
        attempts: Largest number of attempts per source without any progress.
        timeout: Number of seconds without data after which a connection counts as broken.
        verbose: Show a progress bar; None: in a terminal or a notebook.

    Raises:
        DownloadError: The file could not be downloaded from any source, or the disk is full.
    """
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with cast(Any, utils).WeakFileLock(target.with_name(target.name + ".lock")):
        if target.is_file():  # another process was faster
            return target
        reasons = []
        for url in urls:
            if _ON_THE_HUB.fullmatch(url):
                reason = _from_hub(url, target, md5, verbose)
            elif constants.HF_HUB_OFFLINE:
                reason = _OFFLINE
            else:
                reason = _from_source(url, part, md5, size, attempts, timeout, verbose)
                if reason is None:
                    part.replace(target)
            if reason is None:
                return target
            reasons.append(f"{url}: {reason}")
    raise DownloadError(
        f"{target.name} could not be downloaded. {'; '.join(reasons)}. Try again (what arrived is kept), or put the "
        f"file (MD5 {md5}) at {target} yourself."
    )


def remote_size(urls: Sequence[str], *, timeout: float = 10.0) -> int | None:
    """The size in bytes stated by the first source that answers; None if no source states it."""
    for url in urls:
        try:
            found = _size_on_hub(url, timeout) if _ON_THE_HUB.fullmatch(url) else _size_at(url, timeout)
        except Exception:  # malformed answers raise what they like
            continue
        if found is not None:
            return found
    return None


def _size_at(url: str, timeout: float) -> int | None:
    if constants.HF_HUB_OFFLINE:
        return None
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": _USER_AGENT})
    with _opener().open(request, timeout=timeout) as response:
        return _length_of(response)


def _size_on_hub(url: str, timeout: float) -> int | None:
    place = _place(url)
    address = hf_hub_url(place["repo"], place["file"], repo_type=place["kind"], revision=place["revision"])
    return get_hf_file_metadata(address, timeout=timeout).size


def _place(url: str) -> dict[str, Any]:
    found = _ON_THE_HUB.fullmatch(url)
    return {} if found is None else found.groupdict()


def _from_hub(url: str, target: Path, md5: str, verbose: bool | None) -> str | None:
    """Has the hub's client fetch a file, unless its cache has it, and links the target to it; or says why not."""
    place = _place(url)
    try:
        with _bars(verbose):
            cached = hf_hub_download(place["repo"], place["file"], repo_type=place["kind"], revision=place["revision"])
    except Exception as error:  # the client raises many unrelated types: HTTP, offline, gated, not found
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    file = Path(cached).resolve()
    found = md5_of(file)
    if found != md5:
        return f"the file there has MD5 {found}, not {md5}: it is another file, or damaged"
    _link(file, target)
    return None


def _link(file: Path, target: Path) -> None:
    """Gives a file a second name, without a second copy where the file systems can do that."""
    with suppress(OSError):
        os.link(file, target)
        return
    with suppress(OSError):
        target.symlink_to(file)
        return
    with replacing(target) as scratch:
        shutil.copyfile(file, scratch)


@contextmanager
def _bars(verbose: bool | None) -> Iterator[None]:
    """The hub's progress bars, only if they are wanted."""
    bars = cast(Any, utils)
    if (watched() if verbose is None else verbose) or bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()


def md5_of(file: Path) -> str:
    """The MD5 of a file, as hexadecimal digits."""
    with file.open("rb") as stream:
        return str(_read_into(hashlib.md5(usedforsecurity=False), stream).hexdigest())


def _from_source(
    url: str, part: Path, md5: str, size: int | None, attempts: int, timeout: float, verbose: bool | None
) -> str | None:
    """Completes ``part`` from one source; otherwise returns why the source does not have the right file."""
    left = attempts
    while True:
        before = _size(part)
        try:
            found = _continue(url, part, size, timeout, verbose)
        except _SourceError as error:
            return str(error)
        except (OSError, http.client.HTTPException, ValueError) as error:  # the last of malformed headers and redirects
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                return f"{part} cannot be written: {error}"
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 425, 429):
                return f"the server answers {error.code} {error.reason}"
            progress = _size(part) > before
            left = attempts if progress else left - 1
            if left <= 0:
                return f"{type(error).__name__}: {error}"
            time.sleep(0.0 if progress else min(2.0 ** (attempts - left), 10.0) * _PATIENCE)
        else:
            if found == md5:
                return None
            part.unlink()
            if before == 0:
                return f"the file there has MD5 {found}, not {md5}: it is another file, or damaged"
            # The existing part may have been of another file: try once more, from the start.


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


_PATIENCE = 1.0
"""Factor for the pauses between attempts, in seconds; tests set it to 0."""


def _continue(url: str, part: Path, size: int | None, timeout: float, verbose: bool | None) -> str:
    """Requests the missing data once, appends it, and returns the MD5 of the whole file.

    Raises:
        OSError, http.client.HTTPException: The connection failed or broke; trying again may help.
    """
    have = _size(part)
    if size is not None and have > size:
        part.unlink()
        have = 0
    if size is not None and have == size:
        return md5_of(part)
    headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: the part is complete, or belongs to another file
            return md5_of(part)
        raise
    with response:
        begins = _start_of(response)
        if begins > have:
            raise _SourceError(f"the server was asked for bytes from {have} on and answers from {begins} on")
        rest = _length_of(response)
        total = begins + rest if rest is not None else None
        if size is not None and total is not None and total != size:
            raise _SourceError(f"the file there has {total} bytes, not {size}: it is another file")
        free = shutil.disk_usage(part.parent).free
        if total is not None and free < total - have:
            raise _SourceError(f"it has {total} bytes, more than are free in {part.parent}")
        most = total or size or have + max(free - _RESERVE, 0)
        return _receive(response, part, begins, total, most, verbose)


def _receive(response: Any, part: Path, begins: int, total: int | None, most: int, verbose: bool | None) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with part.open("r+b" if part.exists() else "w+b") as file:
        file.truncate(begins)  # 0 if the server cannot resume a download
        _read_into(digest, file)
        name = part.name.removesuffix(".part")
        with bar(verbose, total=total, initial=begins, desc=name, unit="B", unit_scale=True) as drawn:
            while data := response.read1(_CHUNK):
                if file.tell() + len(data) > most:
                    file.truncate(0)
                    raise _SourceError(f"it sends more than {most} bytes")
                file.write(data)
                digest.update(data)
                drawn.update(len(data))
        file.flush()
        os.fsync(file.fileno())
        have = file.tell()
    if total is not None and have < total:
        raise ConnectionError(f"the connection was cut after {have} of {total} bytes")
    return digest.hexdigest()


def _opener() -> urllib.request.OpenerDirector:
    """What opens one address, with all redirects, and gives a slow source up.

    The timeout of a connection is for each of its reads, so that a byte now and then would hold it for ever: in the
    headers, in the sizes of chunks, in the body.
    """
    meter = _Meter()

    class Metered(urllib.request.AbstractHTTPHandler):
        def do_open(self, http_class: Any, req: Any, **arguments: Any) -> Any:
            def connection(*place: Any, **options: Any) -> Any:
                made = http_class(*place, **options)
                made.response_class = lambda sock, *a, **k: http.client.HTTPResponse(
                    cast(Any, _Metered(sock, meter)), *a, **k
                )
                return made

            return super().do_open(cast(Any, connection), req, **arguments)

    class HTTP(Metered, urllib.request.HTTPHandler):
        pass

    class HTTPS(Metered, urllib.request.HTTPSHandler):
        pass

    return urllib.request.build_opener(HTTP, HTTPS)


class _Meter:
    """Counts the bytes that come from a source within a window of time, and then anew."""

    def __init__(self) -> None:
        self.since, self.bytes = time.monotonic(), 0

    def left(self) -> float | None:
        """The seconds in which more must come; None: enough has come for now.

        Raises:
            _SourceError: Too little came in a whole window.
        """
        left = self.since + _WINDOW - time.monotonic()
        if left <= 0:
            if self.bytes < _LEAST:
                raise _SourceError(f"it sent {self.bytes} bytes in {_WINDOW:.0f} s")
            self.since, self.bytes, left = time.monotonic(), 0, _WINDOW
        return None if self.bytes >= _LEAST else left


class _Metered(io.RawIOBase):
    """A connection that is read no longer than a meter allows, as ``http.client`` reads one: by ``makefile``."""

    def __init__(self, sock: socket.socket, meter: _Meter) -> None:
        self._socket, self._meter, self._timeout = sock, meter, sock.gettimeout()
        self._stream = sock.makefile("rb", buffering=0)

    def makefile(self, mode: str) -> io.BufferedReader:
        del mode
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._meter.left()
        self._socket.settimeout(
            min((seconds for seconds in (left, self._timeout) if seconds is not None), default=None)
        )
        try:
            count = self._stream.readinto(buffer)
        except TimeoutError:
            self._meter.left()
            raise
        self._meter.bytes += count or 0
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _length_of(response: Any) -> int | None:
    """How many bytes the server announces; None where it does not.

    Raises:
        _SourceError: It is not a number.
    """
    stated = response.headers.get("Content-Length")
    if stated is None:
        return None
    if not (stated.isascii() and stated.isdigit()):
        raise _SourceError(f"the server answers with Content-Length {stated!r}")
    return int(stated)


def _start_of(response: Any) -> int:
    """The position of the first byte that the server sends."""
    if response.status != 206:
        return 0
    stated = str(response.headers.get("Content-Range", ""))
    try:
        return int(stated.removeprefix("bytes").strip().split("-")[0])
    except ValueError as error:
        raise _SourceError(f"the server answers 206 with Content-Range {stated!r}") from error


def _read_into(digest: Any, stream: Any) -> Any:
    while data := stream.read(_CHUNK):
        digest.update(data)
    return digest
