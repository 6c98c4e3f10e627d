"""The passages of a memory-mapped Parquet file by docno: a docstore for those who have no other."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from .mapped import MappedForm, arrow
from .parquet import ParquetFile
from .text import Loader

_DOCNO = ("docno", "doc_id", "docid", "id")
_BATCH = 10_000  # passages that are copied together


class ParquetText(Loader):
    """Adds ``text`` by ``docno`` from a Parquet file, which may be of any size, since it is not read into memory.

    Parquet files can only be read in groups of up to a million rows, so the file is copied once, as Arrow. The copy is
    kept beside the file, with the suffix ``.texts``, and is as large as the texts. It is memory-mapped, shared by the
    processes of a machine, and reused until the file changes. Finding a frame's documents takes one pass over all
    docnos (about 0.2 s for nine million), so request many documents at once.

    Args:
        source: Parquet file with the columns ``docno`` (or doc_id, docid, id) and ``text``, strings.
        folder: Where the copy is kept; default: beside the file.

    Raises:
        ValueError: The file has no such columns.
        DataFileError: It is damaged, or has two columns of one name.
        PermissionError: The folder is not writable.
        ImportError: pyarrow is not installed.
    """

    schematic: ClassVar[dict[str, str | None]] = {"label": "ParquetText", "help_url": None}

    def __init__(self, source: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None) -> None:
        self.source = Path(source).expanduser().absolute()
        self.folder = None if folder is None else Path(folder).expanduser().absolute()
        self._table: Any = None
        self._open()

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds (or replaces) the column ``text``: None if the file has no such docno.

        Raises:
            ValueError: The file has a docno twice, with different texts.
        """
        pt.validate.columns(inp, includes=["docno"], context=self)
        (pa, _), compute = arrow(), import_module("pyarrow.compute")
        wanted = pa.array(inp["docno"].unique().tolist(), pa.string())
        table = self._open()
        # By a mask rather than by positions: for these, Arrow would join all texts into one piece, which is too large.
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
            form = MappedForm.of(self.source, "texts", self.folder)
            if not form.is_there():
                _make(form, self.source)
            self._table = form.table()
        return self._table


def _make(form: MappedForm, source: Path) -> None:
    with ParquetFile.opened(source, os.fspath(source)) as parquet:
        docno = next((name for name in _DOCNO if name in parquet.names), None)
        if docno is None or "text" not in parquet.names:
            raise ValueError(
                f"ParquetText: {source} must have the columns docno and text, it has {', '.join(parquet.names)}."
            )
        string = parquet.arrow.string()
        with form.writer({"docno": string, "text": string}) as append:
            for batch in parquet.batches([docno, "text"], rows=_BATCH):
                with parquet.guarded():
                    columns = [batch.column(name).cast(string) for name in (docno, "text")]
                append(columns)
