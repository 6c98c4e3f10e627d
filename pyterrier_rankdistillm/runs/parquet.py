"""Parquet files of any origin: pages are verified where they have checksums, and what is damaged is refused by name."""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as BinasciiError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import DataFileError
from ..extras import require
from .streams import unpacked


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file that is open for reading.

    Args:
        name: The file's, for messages.
        error: What is raised where it is damaged.
        arrow: Pyarrow.
        file: The ``pyarrow.parquet.ParquetFile``.
    """

    name: str
    error: type[DataFileError]
    arrow: Any
    file: Any

    @classmethod
    @contextmanager
    def opened(
        cls, source: Path | IO[bytes], name: str, error: type[DataFileError] = DataFileError
    ) -> Iterator[ParquetFile]:
        """Opens a path, or a stream as ``streams.opened`` gives it.

        Raises:
            DataFileError: As ``error``: the file is damaged, or has two columns of one name.
            ImportError: Pyarrow is not installed.
        """
        arrow, parquet = pyarrow(f"{name}, a Parquet file,")
        with unpacked(source, name, error) as stream:
            found = cls(name, error, arrow, None)
            with found.guarded():
                # Without a buffer of its own it holds all that it has read.
                file = parquet.ParquetFile(
                    stream, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
                )
            found = cls(name, error, arrow, file)
            contradiction = found._contradiction()
            if contradiction is not None:
                raise error(f"{name} is broken: {contradiction}. Copy the file again.")
            names = found.names
            twice = next((column for column in names if names.count(column) > 1), None)
            if twice is not None:
                raise error(f"{name}: column {twice!r} occurs twice. Keep one.")
            yield found

    def _contradiction(self) -> str | None:
        """What its footer says twice, and not alike: no checksum guards it, and a run would lose rows or ranks."""
        about = self.file.metadata
        rows = sum(about.row_group(number).num_rows for number in range(about.num_row_groups))
        if rows != about.num_rows:
            return f"it has {about.num_rows} rows, and {rows} in its groups"
        stored = (about.metadata or {}).get(b"ARROW:schema")
        if stored is not None:
            with self.guarded():
                names = self.arrow.ipc.read_schema(self.arrow.py_buffer(b64decode(stored))).names
            if names != self.names:
                return f"its columns are {', '.join(self.names)} for Parquet, and {', '.join(names)} for Arrow"
        return None

    @property
    def names(self) -> list[str]:
        """The names of its columns."""
        return list(self.file.schema_arrow.names)

    def batches(self, columns: Sequence[str] | None = None, *, rows: int = 100_000) -> Iterator[Any]:
        """Its rows in Arrow's batches, none of them empty, all of them valid.

        Args:
            columns: Default: all.
            rows: At most so many in a batch.
        """
        found = self.file.iter_batches(batch_size=rows, columns=columns)
        while True:
            with self.guarded():
                batch = next(found, None)
                if batch is None:
                    return
                batch.validate(full=True)  # strings that are not UTF-8 would be found only where they are used
            if batch.num_rows:
                yield batch

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What Arrow finds wrong meanwhile is an ``error``."""
        try:
            yield
        except (self.arrow.ArrowException, OSError, UnicodeDecodeError, BinasciiError) as fault:
            raise self.error(f"{self.name} is broken: {fault}. Copy the file again.") from fault


def pyarrow(what: str) -> tuple[Any, Any]:
    """Pyarrow and pyarrow.parquet.

    Raises:
        ImportError: They are not installed; the message begins with what needs them.
    """
    return require("pyarrow", what), require("pyarrow.parquet", what)
