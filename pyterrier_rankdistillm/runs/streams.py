"""Streams of files that may be packed by gz, damaged, or made to fill the memory; and their lines."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from ..errors import DataFileError, RunFileError

Source = str | os.PathLike[str] | IO[bytes] | IO[str]

LONGEST = 16 << 20  # bytes of a line of text, at most: what is longer is no line of a run
TOO_LONG = f"longer than {LONGEST >> 20} MiB, so it is not a line of a run"
BROKEN_GZ = (EOFError, zlib.error, gzip.BadGzipFile)
_BLOCK = 8 << 20  # bytes that are unpacked together
_SMALL, _TIMES = 64 << 20, 100  # bytes beyond which a gz file that grows more than so many times is taken for a bomb


@contextmanager
def opened(source: Source) -> Iterator[tuple[IO[bytes], str]]:
    """A stream of uncompressed bytes that can be rewound to where it starts, and its name for messages."""
    with ExitStack() as stack:
        stream: IO[bytes]
        if isinstance(source, str | os.PathLike):
            name = os.fspath(source)
            stream = stack.enter_context(Path(source).expanduser().open("rb"))
        else:
            name = str(getattr(source, "name", "the stream"))
            stream = _rewindable(source, stack)
        start = stream.tell()
        compressed = stream.read(2) == b"\x1f\x8b"
        stream.seek(start)
        packed = None
        if compressed:
            packed = stream.seek(0, os.SEEK_END) - start
            stream.seek(start)
            stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=stream, mode="rb")))
        yield cast(IO[bytes], _FromHere(stream, packed)), name


@contextmanager
def unpacked(source: Any, name: str, error: type[DataFileError]) -> Iterator[Any]:
    """The same to be read here and there, which is slow in a gz stream: that is unpacked into a temporary file.

    Args:
        source: What ``opened`` gives; anything else stays as it is.
        name: The file's, for messages.
        error: What is raised.

    Raises:
        DataFileError: As ``error``: the gz stream is broken, or so small that what it holds is no file of use.
    """
    packed = getattr(source, "packed", None)
    if packed is None:
        yield source
        return
    most = max(_SMALL, _TIMES * packed)
    with tempfile.TemporaryFile() as file:
        try:
            while data := source.read(_BLOCK):
                if file.tell() + len(data) > most:
                    raise error(
                        f"{name} holds more than {most >> 20} MiB in a gz stream of {packed} bytes, like files that "
                        f"are made to fill the memory. If you trust it, unpack it first (gunzip)."
                    )
                file.write(data)
        except BROKEN_GZ as fault:
            raise error(f"{name}: the gz stream is broken or ends too early ({fault}). Copy the file again.") from fault
        file.seek(0)
        yield file


def _rewindable(source: IO[bytes] | IO[str], stack: ExitStack) -> IO[bytes]:
    if isinstance(source, io.TextIOBase):
        return io.BytesIO(source.read().encode("utf-8", "surrogateescape"))
    source = cast(IO[bytes], source)
    if source.seekable():
        return source
    spool = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=64 << 20))  # noqa: SIM115
    shutil.copyfileobj(source, spool)
    spool.seek(0)
    return cast(IO[bytes], spool)


class _FromHere(io.RawIOBase):
    """A stream that starts at the current position of another stream, and does not close it.

    Attributes:
        packed: The size of the gz stream that it is unpacked from, in bytes; None: of none.
    """

    def __init__(self, stream: IO[bytes], packed: int | None) -> None:
        self._stream, self._start, self.packed = stream, stream.tell(), packed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)

    def readall(self) -> bytes:
        return self._stream.read()

    def readinto(self, buffer: Any) -> int:
        # read1, if it exists, returns the available bytes before it raises an error about a broken stream.
        data = getattr(self._stream, "read1", self._stream.read)(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset + (self._start if whence == os.SEEK_SET else 0), whence) - self._start

    def tell(self) -> int:
        return self._stream.tell() - self._start


def fields_of(line: str) -> list[str]:
    """The fields of a line, between spaces and tabs: other white space, such as U+00A0, may be part of an id."""
    return [field for field in line.replace("\t", " ").split(" ") if field]


def lines_of(stream: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines from the start, without the white space around them and without blank ones.

    Raises:
        RunFileError: A line is not UTF-8, or the gz stream is broken after it.
    """
    stream.seek(0)
    number = 0
    text = io.TextIOWrapper(
        io.BufferedReader(cast(Any, stream)), encoding="utf-8-sig", errors="surrogateescape", newline="\n"
    )
    try:
        for number, line in enumerate(iter(lambda: text.readline(LONGEST + 1), ""), start=1):
            if len(line) > LONGEST:
                raise RunFileError(f"{name}, line {number}: {TOO_LONG}.")
            if not line.isascii() and any("\udc80" <= character <= "\udcff" for character in line):
                raise RunFileError(
                    f"{name}, line {number}: not UTF-8.{_unpack(line) if number == 1 else ' Convert it to UTF-8.'}"
                )
            if stripped := line.rstrip(" \t\r\n").lstrip(" \t"):
                yield number, stripped
    except BROKEN_GZ as error:
        raise broken_gz(name, number + 1, error) from error
    finally:
        text.detach().detach()


_PACKED = {"BZh": "bzip2", "\udcfd7zXZ": "xz", "PK\x03\x04": "zip", "(\udcb5/\udcfd": "zstd", "7z": "7z"}


def _unpack(head: str) -> str:
    """What to do about a file that is not text, by its first bytes."""
    packed = next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None)
    return f" It is packed by {packed}: unpack it, or pack it with gzip." if packed else " Convert it to UTF-8."


def broken_gz(name: str, line: int, error: BaseException) -> RunFileError:
    """What to raise where a gz stream is broken in a line."""
    return RunFileError(
        f"{name}, line {line}: the gz stream is broken or ends too early ({error}). Copy the file again."
    )


def json_of(text: str) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: It is not JSON, or an object has a key twice, of which JSON does not say which one counts.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_with_distinct_keys)


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise ValueError(f"key {next(key for key in record if times[key] > 1)!r} occurs twice")
    return record
