"""Passages of a Parquet file by docno, mapped into memory: a docstore for those who have no other."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from ..runs._atomic import replacing

SUFFIX = ".texts"
"""What the name of a Parquet file's mapped form ends with."""

_KEY = b"pyterrier_rankdistillm.texts"  # in the form's metadata: the file that it was made of
_DOCNO = ("docno", "doc_id", "docid", "id")
_BATCH = 10_000  # passages that are copied together


class ParquetText(pt.Transformer):
    """Adds ``text`` by ``docno`` from a Parquet file; one of a corpus's size, since nothing of it is held in memory.

    Parquet can only be read by the million rows, so that the file is copied once, as Arrow: beside it, under its name
    and ``.texts``, as large as the texts are. It is mapped into memory, which processes of a machine share, and used
    again until the file changes. Finding a frame's documents takes one pass over all docnos (some 0.2 s for nine
    million): ask for many at once.

    Args:
        source: Parquet file with the columns ``docno`` (or doc_id, docid, id) and ``text``, strings.
        folder: Where the copy is kept; default: beside the file.

    Raises:
        ValueError: The file has no such columns.
        PermissionError: The folder is not writable.
        ImportError: Without pyarrow.
    """

    schematic: ClassVar[dict[str, str | None]] = {"label": "ParquetText", "help_url": None}

    def __init__(self, source: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None) -> None:
        self.source = Path(source).expanduser().absolute()
        self.folder = self.source.parent if folder is None else Path(folder).expanduser().absolute()
        self._table: Any = None
        self._open()

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds (or replaces) the column ``text``: None where the file has no such docno.

        Raises:
            ValueError: The file has a docno twice, with different texts.
        """
        pt.validate.columns(inp, includes=["docno"], context=self)
        pa, compute = import_module("pyarrow"), import_module("pyarrow.compute")
        wanted = pa.array(inp["docno"].unique().tolist(), pa.string())
        table = self._open()
        # By a mask, not by places: those would be looked up in all texts as one piece, which is too large for Arrow.
        found = table.filter(compute.is_in(table["docno"], value_set=wanted))
        texts: dict[str, str] = {}
        for docno, text in zip(found["docno"].to_pylist(), found["text"].to_pylist(), strict=True):
            if texts.setdefault(docno, text) != text:
                raise ValueError(f"ParquetText: {self.source} has docno {docno!r} twice, with different texts.")
        return inp.assign(text=pd.Series([texts.get(d) for d in inp["docno"]], index=inp.index, dtype=object))

    def __repr__(self) -> str:
        return f"ParquetText({os.fspath(self.source)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def _open(self) -> Any:
        if self._table is None:
            pa, ipc = _arrow()
            form = self.folder / f"{self.source.name}{SUFFIX}"
            status = self.source.stat()
            identity = f"{status.st_size} {status.st_mtime_ns}".encode()
            if not (form.exists() and _made_of(form) == identity):
                _make(self.source, form, identity)
            self._table = ipc.open_file(pa.memory_map(str(form))).read_all()
        return self._table


def _made_of(form: Path) -> bytes | None:
    pa, ipc = _arrow()
    try:
        with pa.memory_map(str(form)) as source, ipc.open_file(source) as reader:
            made_of: bytes | None = (reader.schema.metadata or {}).get(_KEY)
    except (pa.ArrowException, OSError):
        made_of = None
    if made_of is None:
        raise ValueError(
            f"ParquetText: {form} must be free for the mapped form of the texts, but it is something else. Move it "
            f"away, or give another folder."
        )
    return made_of


def _make(source: Path, form: Path, identity: bytes) -> None:
    pa, ipc = _arrow()
    file = import_module("pyarrow.parquet").ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
    names = file.schema_arrow.names
    docno = next((name for name in _DOCNO if name in names), None)
    if docno is None or "text" not in names:
        raise ValueError(f"ParquetText: {source} must have the columns docno and text, it has {', '.join(names)}.")
    if not os.access(form.parent, os.W_OK):
        raise PermissionError(f"ParquetText: folder must be writable, got {str(form.parent)!r}. Give another folder.")
    schema = pa.schema({"docno": pa.string(), "text": pa.string()}, metadata={_KEY: identity})
    with replacing(form) as scratch, ipc.new_file(str(scratch), schema) as sink:
        for batch in file.iter_batches(batch_size=_BATCH, columns=[docno, "text"]):
            columns = [batch.column(name).cast(pa.string()) for name in (docno, "text")]
            sink.write_batch(pa.record_batch(columns, schema=schema))


def _arrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.ipc")
    except ImportError as error:
        raise ImportError(
            "ParquetText reads Parquet, which needs pyarrow: pip install 'pyterrier-rankdistillm[scale]'."
        ) from error
