"""Arrow files that are made once from other files, to be memory-mapped: rankings of a run, texts of a Parquet file."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..extras import require
from .atomic import replacing
from .digests import blake2b_of

_LAYOUT = "1"
_REPLACES_MAPPED = os.name != "nt"  # Windows neither replaces nor removes a file that is mapped
_SAMPLE = 64 << 10  # bytes at either end of a file that are part of its identity


@dataclass(frozen=True)
class MappedForm:
    """The mapped form of a file, kept and reused until the file changes.

    Args:
        path: The path of the mapped form.
        kind: What it holds, which is also the end of its name: ``rankings``.
        identity: The identity of the file that it is made from.
    """

    path: Path
    kind: str
    identity: str

    @classmethod
    def of(cls, source: Path, kind: str, folder: str | os.PathLike[str] | None) -> MappedForm:
        """The mapped form of a file in its current state, made or not: beside the file, or in ``folder``.

        Raises:
            FileNotFoundError: There is no such file.
        """
        identity = _identity(source)
        if folder is None:
            form = cls(source.with_name(f"{source.name}.{kind}"), kind, identity)
        else:  # files from different folders can have the same name
            name = f"{source.name}.{blake2b_of(os.fsencode(source.parent), size=4)}.{kind}"
            form = cls(Path(folder).expanduser().absolute() / name, kind, identity)
        if _REPLACES_MAPPED:
            return form
        # The form of a file that has changed has a name of its own.
        another = replace(form, path=form.path.with_name(f"{form._stem}.of-{blake2b_of(identity, size=4)}.{kind}"))
        return another if another.path.exists() or form.made_of() not in (None, identity) else form

    def is_there(self) -> bool:
        """Whether it exists and was made from the file in its current state.

        Raises:
            ValueError: Another file has its name.
        """
        return self.made_of() == self.identity

    def made_of(self) -> str | None:
        """The identity of the file that what is at ``path`` was made of; None: nothing is there.

        Raises:
            ValueError: Something else has its name.
        """
        if not self.path.exists():
            return None
        pa, ipc = arrow()
        try:
            with pa.memory_map(str(self.path)) as source, ipc.open_file(source) as reader:
                made_of = (reader.schema.metadata or {}).get(self._key)
        except (pa.ArrowException, OSError):
            made_of = None
        if made_of is None:
            raise ValueError(
                f"{self.path} must be free for {self.kind} that are mapped into memory, but it is something else. Move "
                f"it away, or give another folder."
            )
        return str(made_of.decode())

    @contextmanager
    def writer(self, columns: Mapping[str, Any]) -> Iterator[Callable[[Sequence[Any]], None]]:
        """Writes it atomically. Yields a function that appends a part: an Arrow array for each of the columns.

        Forms of the file as it was before go, but for those that a process still maps on Windows.

        Args:
            columns: The columns' Arrow types, by name.

        Raises:
            PermissionError: The folder is not writable.
        """
        pa, ipc = arrow()
        schema = pa.schema(dict(columns), metadata={self._key: self.identity.encode()})
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(
                f"The folder of {self.kind} that are mapped into memory must be writable, got {str(folder)!r}. Give "
                f"another folder."
            )
        try:
            with replacing(self.path) as scratch, ipc.new_file(str(scratch), schema) as sink:
                yield lambda arrays: sink.write_batch(pa.record_batch(list(arrays), schema=schema))
        except PermissionError:  # on Windows, where another process has made the same meanwhile, and maps it
            if not self.is_there():
                raise
        self._remove_older()

    def table(self) -> Any:
        """The Arrow table, mapped."""
        pa, ipc = arrow()
        return ipc.open_file(pa.memory_map(str(self.path))).read_all()

    @property
    def _stem(self) -> str:
        """What the names of all forms of the file, as it is and as it was, begin with."""
        return re.sub(r"\.of-[0-9a-f]{8}$", "", self.path.name.removesuffix(f".{self.kind}"))

    def _remove_older(self) -> None:
        names = re.compile(rf"{re.escape(self._stem)}(\.of-[0-9a-f]{{8}})?\.{re.escape(self.kind)}")
        for file in self.path.parent.iterdir():
            if file != self.path and names.fullmatch(file.name):
                with contextlib.suppress(OSError):
                    file.unlink()

    @property
    def _key(self) -> bytes:
        """The entry in its metadata that says that it is ours, and which file it was made from."""
        return f"pyterrier_rankdistillm.{self.kind}".encode()


def arrow() -> tuple[Any, Any]:
    """Pyarrow and pyarrow.ipc.

    Raises:
        ImportError: They are not installed.
    """
    what = "Mapping a file into memory (frames are held in memory without it)"
    return require("pyarrow", what), require("pyarrow.ipc", what)


def _identity(path: Path) -> str:
    """A string that changes when the file changes, made without reading all of it."""
    status = path.stat()
    with path.open("rb") as file:
        ends = [file.read(_SAMPLE)]
        file.seek(max(0, status.st_size - _SAMPLE))
        ends.append(file.read())
    digest = blake2b_of(b"".join(ends))
    return f"{_LAYOUT} {status.st_size} {status.st_mtime_ns} {digest}"
