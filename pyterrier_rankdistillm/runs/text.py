"""Queries, judgments and texts of any ir_datasets collection, as PyTerrier expects them: in ``query`` and ``text``.

Collections have one field or many (title, narrative, abstract, ...). ``default_text()`` of ir_datasets decides which of
them make up the text. Lightning IR reads the same fields, so models see what they were trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import ir_datasets
import pandas as pd
import pyterrier as pt

from ..checks import first_no_text, is_text, told
from .ranks import Ids

Dataset = str | pt.datasets.Dataset


def load_topics(dataset: Dataset, *, fields: Sequence[str] | None = None, who: str = "load_topics") -> pd.DataFrame:
    """The topics of a dataset.

    Args:
        dataset: An ir_datasets id (``"msmarco-passage/train"``), a PyTerrier dataset or its name with its provider
            (``"rankdistillm:demo"``).
        fields: The fields to join with a space; default: what ``default_text()`` of the collection takes.
        who: The function that messages name.

    Returns:
        Columns ``qid`` and ``query``. ``frame.attrs`` records ``dataset`` and ``query_fields``, the fields used.

    Raises:
        KeyError: There is no such dataset.
        ValueError: It has no topics, or no field of that name.
    """
    found = _resolve(dataset, who)
    if isinstance(found, pt.datasets.Dataset):
        _refuse_fields(fields, found, who)
        topics = found.get_topics()
        used: tuple[str, ...] = ("query",)
        if "query" not in topics.columns:
            raise ValueError(f"{who}: {found!r} gives no column 'query', but {list(topics.columns)}.")
        topics = topics[["qid", "query"]].reset_index(drop=True)
    else:
        if not found.has_queries():
            raise ValueError(f"{who}: {dataset!r} has no topics. Name a subset that has, such as '.../train'.")
        reader = _FieldReader(found.queries_cls(), fields, f"{who}: {dataset!r}")
        rows = [(query.query_id, reader.text(query)) for query in found.queries_iter()]
        topics, used = pd.DataFrame(rows, columns=["qid", "query"]), reader.used
    topics.attrs = {"dataset": _name(dataset), "query_fields": used}
    return topics


def load_qrels(dataset: Dataset, *, who: str = "load_qrels") -> pd.DataFrame:
    """The relevance judgments of a dataset.

    Args:
        dataset: As in ``load_topics``.
        who: As in ``load_topics``.

    Returns:
        Columns ``qid``, ``docno`` and ``label``.

    Raises:
        KeyError: There is no such dataset.
        ValueError: It has no judgments.
    """
    found = _resolve(dataset, who)
    if isinstance(found, pt.datasets.Dataset):
        return found.get_qrels()[["qid", "docno", "label"]].reset_index(drop=True)
    if not found.has_qrels():
        raise ValueError(f"{who}: {dataset!r} has no relevance judgments. Name a subset that has.")
    rows = [(judged.query_id, judged.doc_id, judged.relevance) for judged in found.qrels_iter()]
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


def text_loader(dataset: Dataset, *, fields: Sequence[str] | None = None, who: str = "text_loader") -> pt.Transformer:
    """A transformer that adds ``text`` by ``docno``, to be put after a first stage.

    Args:
        dataset: As in ``load_topics``.
        fields: As in ``load_topics``. The fields used are ``text_loader(...).fields``.
        who: As in ``load_topics``.

    Raises:
        KeyError: There is no such dataset.
        ValueError: It has no documents, or no field of that name.
    """
    found = _resolve(dataset, who)
    if isinstance(found, pt.datasets.Dataset):
        _refuse_fields(fields, found, who)
        return cast(Any, found).text_loader()  # type: ignore[no-any-return]
    if not found.has_docs():
        raise ValueError(f"{who}: {dataset!r} has no documents. Name the collection they are in.")
    return TextLoader(_name(dataset), found, fields, given=dataset)


class Loader(pt.Transformer):
    """What adds ``text`` by ``docno`` and leaves the rows as they are."""

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Lets ``loader % k`` apply the cutoff before it loads texts."""
        return pt.RankCutoff(k) >> self


class TextLoader(Loader):
    """Adds ``text`` to a frame with ``docno``, from an ir_datasets collection; made by ``text_loader``.

    Each distinct document is fetched once per frame, and rows with the same document share its text in memory.

    Args:
        dataset: The collection's id.
        collection: The open collection.
        fields: The fields to join; None for ``default_text()``.
        given: What the collection is opened by again in another process; default: its id.
    """

    schematic: ClassVar[dict[str, str | None]] = {"label": "TextLoader", "help_url": None}

    def __init__(
        self, dataset: str, collection: Any, fields: Sequence[str] | None = None, *, given: Dataset | None = None
    ) -> None:
        self.dataset = dataset
        self.collection = collection
        self._given: Dataset = dataset if given is None else given
        self._fields = fields
        self._reader = _FieldReader(collection.docs_cls(), fields, f"text_loader: {dataset!r}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the texts are made of (with ``default_text()``, known once a text has been loaded)."""
        return self._reader.used

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds (or replaces) the column ``text``.

        Raises:
            KeyError: A docno is not in the collection.
        """
        pt.validate.columns(inp, includes=["docno"], context=self)
        docnos = inp["docno"].tolist()
        wanted = dict.fromkeys(docnos)
        found = self.collection.docs_store().get_many_iter(list(wanted)) if wanted else ()
        texts = {doc.doc_id: self._reader.text(doc) for doc in found}
        return _with_strings(inp, "text", docnos, texts, f"{self.dataset} has no document")

    def attributes(self) -> list[pt.inspect.TransformerAttribute]:
        """Drawings carry the collection's id and the fields that were asked for, and nothing of the collection."""
        return [
            pt.inspect.TransformerAttribute("dataset", self.dataset),
            pt.inspect.TransformerAttribute("fields", None if self._fields is None else ", ".join(self._fields)),
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._given, self._fields)

    def __repr__(self) -> str:
        return f"TextLoader({self.dataset!r})"


def _reopened(given: Dataset, fields: Sequence[str] | None) -> pt.Transformer:
    return text_loader(given, fields=fields)


def documents(dataset: Dataset, *, fields: Sequence[str] | None = None) -> Iterator[dict[str, str]]:
    """All documents, to be indexed: records with ``docno`` and ``text``, as ``text_loader`` would give them."""
    found = _resolve(dataset, "documents")
    if isinstance(found, pt.datasets.Dataset):
        _refuse_fields(fields, found, "documents")
        yield from ({"docno": r["docno"], "text": r["text"]} for r in found.get_corpus_iter(verbose=False))
        return
    reader = TextLoader(_name(dataset), found, fields)._reader
    for doc in found.docs_iter():
        yield {"docno": doc.doc_id, "text": reader.text(doc)}


def join_queries(run: pd.DataFrame, topics: pd.DataFrame) -> pd.DataFrame:
    """Adds (or replaces) the column ``query``, from a frame with ``qid`` and ``query``.

    Raises:
        KeyError: A qid has no query.
    """
    queries = dict(zip(topics["qid"], topics["query"], strict=True))
    return _with_strings(run, "query", run["qid"].astype(str).tolist(), queries, "the topics have no qid")


def join_text(run: pd.DataFrame, loader: pt.Transformer) -> pd.DataFrame:
    """Adds (or replaces) the column ``text``, by a text loader.

    Raises:
        KeyError: A docno has no text.
        ValueError: The loader gives no text.
    """
    # Asked for each document once: loaders keep a copy a row.
    ids = Ids.of(run)
    asked = pd.DataFrame({"qid": "", "docno": ids.docnos.astype(str)})
    loaded = loader.transform(asked)
    if "text" not in loaded.columns:
        raise ValueError(f"{loader!r} gives no column 'text', but {', '.join(loaded.columns)}. Ask it for 'text'.")
    texts = dict(zip(loaded["docno"], loaded["text"], strict=True))
    return _with_strings(run, "text", run["docno"].astype(str).tolist(), texts, f"{loader!r} has no text for")


def texts_by(loader: pt.Transformer, docnos: Sequence[str]) -> dict[str, str]:
    """The texts that a loader has for some documents; those that it has not are left out.

    Raises:
        ValueError: The loader gives no column ``text``.
    """
    try:
        loaded = loader.transform(pd.DataFrame({"qid": "", "docno": list(docnos)}))
    except KeyError:  # a loader that gives all or none: each is asked for alone
        if len(docnos) < 2:
            return {}
        half = len(docnos) // 2
        return texts_by(loader, docnos[:half]) | texts_by(loader, docnos[half:])
    if "text" not in loaded.columns:
        raise ValueError(f"{loader!r} gives no column 'text', but {', '.join(loaded.columns)}. Ask it for 'text'.")
    return {d: t for d, t in zip(loaded["docno"].astype(str), loaded["text"], strict=True) if is_text(t)}


def _with_strings(
    inp: pd.DataFrame, column: str, keys: list[str], values: dict[str, str], complaint: str
) -> pd.DataFrame:
    missing = dict.fromkeys(key for key in keys if not isinstance(values.get(key), str))
    if missing:
        raise KeyError(
            f"{complaint} {next(iter(missing))!r}; {len(missing)} are missing. Is it the right collection or split?"
        )
    distinct = list(values)
    odd = first_no_text([values[key] for key in distinct])
    if odd is not None and distinct[odd] in set(keys):
        raise ValueError(f"{column} of {distinct[odd]!r} is {told(values[distinct[odd]])}.")
    # Objects, not pandas' strings: rows with the same text then share it.
    return inp.assign(**{column: pd.Series([values[key] for key in keys], index=inp.index, dtype=object)})


def _resolve(dataset: Dataset, who: str) -> Any:
    """An ir_datasets collection where there is one behind the name or the object, else a PyTerrier dataset."""
    if isinstance(dataset, str):
        provider, separator, name = dataset.rpartition(":")
        if not separator or provider == "irds":
            try:
                return ir_datasets.load(name)
            except KeyError:
                raise KeyError(
                    f"{who}: there is no ir_datasets collection {name!r}: see https://ir-datasets.com, or "
                    f"ir_datasets.registry.register your own."
                ) from None
        dataset = pt.get_dataset(dataset)
    return cast(Any, dataset).irds_ref() if hasattr(dataset, "irds_ref") else dataset


def _refuse_fields(fields: Sequence[str] | None, found: pt.datasets.Dataset, context: str) -> None:
    if fields is not None:
        raise ValueError(f"{context}: fields must be None for {found!r}, which is not an ir_datasets collection.")


def _name(dataset: Dataset) -> str:
    return dataset.removeprefix("irds:") if isinstance(dataset, str) else repr(dataset)


class _FieldReader:
    """Makes one text of a record, and records the fields that it used."""

    def __init__(self, record_type: type, fields: Sequence[str] | None, context: str) -> None:
        names = [name for name in cast(Any, record_type)._fields if name not in ("doc_id", "query_id")]
        self._default = getattr(record_type, "default_text", None)
        if fields is None and self._default is None:
            if len(names) != 1:
                raise ValueError(f"{context} does not say which of its fields to read. Give fields, of {names}.")
            fields = names
        unknown = [name for name in fields or () if name not in names]
        if unknown or (fields is not None and not fields) or isinstance(fields, str):
            raise ValueError(f"{context}: fields must be a list of some of {names}, got {fields!r}.")
        self._fields = fields
        self.used: tuple[str, ...] = tuple(fields or ())

    def text(self, record: Any) -> str:
        if self._fields is not None:
            return " ".join(str(getattr(record, name)) for name in self._fields)
        if not self.used:
            self.used = _fields_asked(cast(Any, self._default), record)
        return str(record.default_text())


def _fields_asked(default_text: Any, record: Any) -> tuple[str, ...]:
    witness = _Witness(record)
    try:
        default_text(witness)
    except TypeError:  # it does more with its record than read fields
        return ("default_text()",)
    return tuple(witness.__dict__["asked"])


class _Witness:
    """A record that notes which of its fields are read."""

    def __init__(self, record: Any) -> None:
        self.__dict__.update(record=record, asked={})

    def __getattr__(self, name: str) -> Any:
        record = self.__dict__["record"]
        if name in record._fields:
            self.__dict__["asked"][name] = True
        return getattr(record, name)
