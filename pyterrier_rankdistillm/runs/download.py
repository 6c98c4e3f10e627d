"""Downloads that can be resumed, are verified, and fall back to other sources.

The files have gigabytes, and ir_datasets' own downloads start again in every process and have only one source.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyterrier as pt
from huggingface_hub import utils

from ..errors import DownloadError

_CHUNK = 1 << 20
_USER_AGENT = "pyterrier-rankdistillm"


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
    verbose: bool = True,
) -> Path:
    """Downloads a file, unless it exists.

    Received data is kept in ``{target}.part``, and the next call, also in another process, continues from there. The
    target is created only when it is complete and its checksum is correct. Processes that download the same file wait
    for one another.

    Args:
        urls: The sources of the file, best first. All have the same bytes.
        target: The file to write.
        md5: Checksum of the whole file, 32 hexadecimal digits.
        size: Its size in bytes, if known.
        attempts: Largest number of attempts per source without any progress.
        timeout: Number of seconds without data after which a connection counts as broken.
        verbose: Show a progress bar.

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
            reason = _from_source(url, part, md5, size, attempts, timeout, verbose)
            if reason is None:
                part.replace(target)
                return target
            reasons.append(f"{url}: {reason}")
    raise DownloadError(
        f"{target.name} could not be downloaded. {'; '.join(reasons)}. Try again (what arrived is kept), or put the "
        f"file (MD5 {md5}) at {target} yourself."
    )


def remote_size(urls: Sequence[str], *, timeout: float = 10.0) -> int | None:
    """The size in bytes stated by the first source that answers; None if no source states it."""
    for url in urls:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": _USER_AGENT})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                if response.headers.get("Content-Length"):
                    return int(response.headers["Content-Length"])
        except (OSError, http.client.HTTPException):
            continue
    return None


def md5_of(file: Path) -> str:
    """The MD5 of a file, as hexadecimal digits."""
    with file.open("rb") as stream:
        return str(_read_into(hashlib.md5(usedforsecurity=False), stream).hexdigest())


def _from_source(
    url: str, part: Path, md5: str, size: int | None, attempts: int, timeout: float, verbose: bool
) -> str | None:
    """Completes ``part`` from one source; otherwise returns why the source does not have the right file."""
    left = attempts
    while True:
        before = _size(part)
        try:
            found = _continue(url, part, size, timeout, verbose)
        except _SourceError as error:
            return str(error)
        except (OSError, http.client.HTTPException) as error:
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
                return f"the file there has MD5 {found}, not {md5}: it is another one, or damaged"
            # The existing part may have been of another file: try once more, from the start.


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


_PATIENCE = 1.0
"""Factor for the pauses between attempts, in seconds; tests set it to 0."""


def _continue(url: str, part: Path, size: int | None, timeout: float, verbose: bool) -> str:
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
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: the part is complete, or belongs to another file
            return md5_of(part)
        raise
    with response:
        begins = _start_of(response)
        if begins > have:
            raise _SourceError(f"the server was asked for bytes from {have} on and answers from {begins} on")
        rest = response.headers.get("Content-Length")
        total = begins + int(rest) if rest is not None else None
        if size is not None and total is not None and total != size:
            raise _SourceError(f"the file there has {total} bytes, not {size}: it is another one")
        if total is not None and shutil.disk_usage(part.parent).free < total - have:
            raise _SourceError(f"it has {total} bytes, more than are free in {part.parent}")
        return _receive(response, part, begins, total, verbose)


def _receive(response: Any, part: Path, begins: int, total: int | None, verbose: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with part.open("r+b" if part.exists() else "w+b") as file:
        file.truncate(begins)  # 0 if the server cannot resume a download
        _read_into(digest, file)
        with pt.tqdm(
            total=total, initial=begins, desc=part.name.removesuffix(".part"), unit="B", unit_scale=True,
            disable=not verbose,
        ) as bar:  # fmt: skip
            while data := response.read1(_CHUNK):
                file.write(data)
                digest.update(data)
                bar.update(len(data))
        file.flush()
        os.fsync(file.fileno())
        have = file.tell()
    if total is not None and have < total:
        raise ConnectionError(f"the connection was cut after {have} of {total} bytes")
    return digest.hexdigest()


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
