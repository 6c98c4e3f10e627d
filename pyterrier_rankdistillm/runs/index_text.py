"""The texts that a Terrier index keeps as metadata, by docno."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from ..errors import InputError
from .java import start_java
from .text import Loader

PROPERTIES = "data.properties"
"""The file that says what a Terrier index consists of; it is written last."""
_BATCH = 10_000  # documents whose texts Java gives at once


class IndexText(Loader):
    """Adds ``text`` by ``docno`` from a Terrier index, whatever ``docid`` says: that may be another index's.

    Pickles carry the index's location, not the index.

    Args:
        location: The index's properties file; None for an index in memory.
        key: The metadata key of the texts.
        opened: Java's object for the index, where there is one.
        who: The function that the user called, for messages.
    """

    schematic: ClassVar[dict[str, str | None]] = {"label": "IndexText", "help_url": None}

    def __init__(self, location: Path | None, key: str = "text", *, opened: Any = None, who: str = "IndexText") -> None:
        self.location = location
        self.key = key
        self._who = who
        self._index = opened

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds (or replaces) the column ``text``: None where the index has no such docno."""
        pt.validate.columns(inp, includes=["docno"], context=self)
        texts = self._texts(list(dict.fromkeys(inp["docno"].astype(str)))) if len(inp) else {}
        column = [texts.get(docno) for docno in inp["docno"].astype(str)]
        return inp.assign(text=pd.Series(column, index=inp.index, dtype=object))

    def attributes(self) -> list[Any]:
        """Drawings and records carry the index's name."""
        return [
            pt.inspect.TransformerAttribute("index", self._name),
            pt.inspect.TransformerAttribute("key", self.key),
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        if self.location is None:
            raise TypeError("An index in memory cannot be sent to another process: index to disk.")
        return type(self), (self.location, self.key)

    def __repr__(self) -> str:
        return f"IndexText({self._name!r})"

    @property
    def _name(self) -> str:
        return "in memory" if self.location is None else self.location.parent.name

    def _texts(self, docnos: list[str]) -> dict[str, str]:
        meta = self._opened().getMetaIndex()
        places = {docno: int(meta.getDocument("docno", docno)) for docno in docnos}
        there = [(docno, place) for docno, place in places.items() if place >= 0]  # -1: no such document
        texts: dict[str, str] = {}
        for start in range(0, len(there), _BATCH):
            some = there[start : start + _BATCH]
            items = meta.getItems([self.key], [place for _, place in some])
            texts.update((docno, str(item[0])) for (docno, _), item in zip(some, items, strict=True))
        return texts

    def _opened(self) -> Any:
        if self._index is None:
            assert self.location is not None
            start_java(self._who)
            try:
                self._index = pt.terrier.IndexFactory.of(os.fspath(self.location))
            except Exception as error:  # Java's, of any kind
                raise InputError(
                    self._who, f"the index {self.location} cannot be opened ({str(error)[:200]}). Make it again."
                ) from error
        return self._index


def index_at(given: Any) -> Path | None:
    """The properties file of the Terrier index that a path stands for: of the index's folder, or that file itself."""
    if not isinstance(given, str | os.PathLike):
        return None
    path = Path(given).expanduser()
    if path.suffix == ".properties" and path.is_file():
        return path.absolute()
    return path.absolute() / PROPERTIES if (path / PROPERTIES).is_file() else None


def is_index(given: Any) -> bool:
    """Whether something is a Terrier index, an object of Java or PyTerrier, or a loader of an index's texts."""
    kinds = (pt.terrier.TerrierIndex, pt.terrier.TerrierTextLoader)
    return isinstance(given, kinds) or _java_class(given) in ("Index", "IndexRef")


def is_meta_index(given: Any) -> bool:
    """Whether something is only a part of an index."""
    return _java_class(given).endswith("MetaIndex")


def properties_of(file: Path) -> dict[str, str]:
    """What an index says of itself; needs no Java."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.partition("=") for line in lines if line[:1] not in ("#", "!", ""))
    return {key.strip(): value.strip() for key, _, value in pairs}


def index_text(given: Any, *, who: str, argument: str, field: str = "text") -> pt.Transformer:
    """Texts of an index.

    Args:
        given: What ``is_index`` or ``index_at`` recognises.
        who: The function that the user called.
        argument: Its argument.
        field: The metadata key that is asked for; where there is none of that name it is ``text``.

    Raises:
        InputError: The index has no such metadata.
        FileNotFoundError: There is no index.
    """
    location, opened = _located(given, who, argument)
    if location is not None and opened is None:
        keys = [key for key in properties_of(location).get("index.meta.key-names", "").split(",") if key]
    else:
        meta = opened.getMetaIndex()
        keys = [] if meta is None else [str(key) for key in meta.getKeys()]
    wanted = getattr(given, "fields", None) if isinstance(given, pt.terrier.TerrierTextLoader) else None
    there = keys if wanted is None else [key for key in keys if key in wanted]
    key = next((name for name in (field, "text") if name in there), None)
    if key is None:
        raise InputError(
            who,
            f"{argument} is an index without texts: its metadata has {' and '.join(there) or 'nothing'}, but no "
            f"{' or '.join(dict.fromkeys((field, 'text')))}. Index with meta={{'docno': 100, 'text': 4096}}, or give "
            f"the texts from elsewhere.",
        )
    return IndexText(location, key, opened=opened, who=who)


def _located(given: Any, who: str, argument: str) -> tuple[Path | None, Any]:
    """Where an index lies on disk, and Java's object where it has to be asked."""
    if isinstance(given, pt.terrier.TerrierTextLoader):
        given = given._index
    if isinstance(given, pt.terrier.TerrierIndex):
        wrapped: Any = given
        given = wrapped.path if isinstance(wrapped.path, str | os.PathLike) else wrapped.index_obj()
    if isinstance(given, str | os.PathLike):
        location = index_at(given)
        if location is None:
            raise FileNotFoundError(f"{who}: {argument} must be an index, and there is none in {os.fspath(given)}.")
        return location, None
    location = index_at(str(given.toString()))  # both kinds say where they lie
    if location is not None:
        return location, None
    return None, pt.terrier.IndexFactory.of(given) if _java_class(given) == "IndexRef" else given


def _java_class(given: Any) -> str:
    name = getattr(type(given), "__javaclass__", "")
    return str(name).rpartition("/")[2] if str(name).startswith("org/terrier/") else ""
