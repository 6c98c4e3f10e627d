"""The front door: runs, topics, judgments and texts, however a user has them, in the one form that the package reads.

Nobody else looks at the type of what a user gave. Every function here is told who asks (the function that the user
called) and for which argument, so that messages are in the user's words.

A string is, in this order: ``rankdistillm:NAME``, a path that exists, a name with a file's suffix (then the file is
missing), the name of a dataset.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast, get_args

import numpy as np
import pandas as pd
import pyterrier as pt

from ..checks import first_no_text, is_text, told
from ..errors import InputError
from .files import RUN_SUFFIXES, dataset_of, read_file
from .frames import deduplicate
from .index_text import index_at, index_text, is_index, is_meta_index
from .parquet_text import ParquetText
from .published import NAMES, PREFIX, PublishedDataset, fetch
from .rankings import Rankings
from .ranks import Ids, first_fault, not_whole, order_disagrees, positions
from .readers import DOCNO, PARQUET, QID, QUERY, TEXT, pick, read_qrels, read_texts, read_topics
from .text import Dataset, Loader, join_queries, join_text, load_qrels, load_topics, text_loader

if TYPE_CHECKING:
    from ..scoring.checkpoint import Checkpoint

Path_: TypeAlias = "str | os.PathLike[str]"
Run: TypeAlias = "pd.DataFrame | str | os.PathLike[str]"
"""A frame, a run file, or the name of a published run."""
Runs: TypeAlias = "Run | GivenRun | Sequence[Run | GivenRun]"
"""A run, or several of the same topics."""
Topics: TypeAlias = "pd.DataFrame | str | os.PathLike[str] | pt.datasets.Dataset"
Qrels: TypeAlias = "pd.DataFrame | str | os.PathLike[str] | pt.datasets.Dataset"
Texts: TypeAlias = (
    "pt.Transformer | pt.text.HasTextLoader | pd.DataFrame | str | os.PathLike[str] | pt.datasets.Dataset"
)
"""Also Terrier's ``Index`` and ``IndexRef``, which are Java's."""
Ranker: TypeAlias = "pt.Transformer | Checkpoint | pd.DataFrame | str | os.PathLike[str]"
"""What ranks documents (any transformer, a checkpoint, a hub id, a folder), or has ranked them (a run)."""
Order = Literal["rank", "score"]
Duplicates = Literal["error", "drop", "keep"]

RUN = "a frame, a run file (TREC, Parquet, JSON lines; plain or gz), or 'rankdistillm:NAME'"
TOPICS = "a frame with qid and query, a file (tsv, JSON lines, Parquet), or a dataset or its name"
QRELS = "a frame with qid, docno and label, a TREC file, or a dataset or its name"
TEXTS = (
    "a text loader, anything with .text_loader(), a Terrier index or its folder, a frame with docno and text, a file "
    "(JSON lines, Parquet), or a dataset or its name"
)
RANKER = "a re-ranker (any transformer, an open checkpoint, a hub id or folder of one), or a run: " + RUN

_FILES = {*RUN_SUFFIXES, *PARQUET, ".json", ".csv", ".gz", ".qrels"}
_CONTRADICTION = "Read it with runs.read(..., order='rank') or order='score', which says which of them counts."


@dataclass(frozen=True)
class Door:
    """Who asks for what, for messages.

    Args:
        who: The function that the user called.
        argument: The argument, as that function calls it.
        accepted: What may be given.
    """

    who: str
    argument: str
    accepted: str

    def refuse(self, given: Any, hint: str = "") -> TypeError:
        """The error for something that is not accepted."""
        return TypeError(f"{self.who}: {self.argument} must be {self.accepted}; got {described(given)}. {hint}".strip())

    def wrong(self, what: str) -> InputError:
        """The error for something that is accepted, but has something wrong."""
        return InputError(self.who, f"{self.argument} {what}")

    def path(self, given: Path_) -> Path | None:
        """The file that is named; None for anything that is not a file's name.

        Raises:
            FileNotFoundError: It can only be a file's name, and there is no such file.
        """
        path = Path(given).expanduser()
        if os.fspath(given).startswith(PREFIX):
            return None
        if path.is_file():
            return path
        if isinstance(given, os.PathLike) or path.suffix in _FILES or os.fspath(given).startswith((".", "/", "~")):
            what = "is a folder" if path.is_dir() else "is not there"
            if path.is_dir() and self.accepted == TEXTS:
                what = "is a folder without a Terrier index"
            raise FileNotFoundError(f"{self.who}: {self.argument} must be {self.accepted}; the file {path} {what}.")
        return None


def described(given: Any) -> str:
    """What was given, for messages: short, whatever it is."""
    if isinstance(given, str | os.PathLike):
        return repr(os.fspath(given))
    if isinstance(given, pt.Transformer):
        return f"the transformer {str(given)[:80]}"
    return f"{type(given).__name__} {str(given)[:60]!r}" if isinstance(given, int | float) else type(given).__name__


# --- functions that take whatever a user has --------------------------------------------------------------------------


def read(
    source: Run | IO[bytes] | IO[str],
    *,
    dataset: Dataset | None = None,
    duplicates: Literal["error", "drop"] = "error",
    order: Order | None = None,
) -> pd.DataFrame:
    """Reads a run. A file's content says which format it is and whether it is compressed; its name does not matter.

    With a dataset, query and text are joined, so that re-ranking a file takes two lines::

        run = runs.read("bm25.run.gz", dataset="msmarco-passage/trec-dl-2019/judged")
        result = (pt.Transformer.from_df(run) >> MonoElectra("webis/monoelectra-base"))(topics)

    Args:
        source: Path, a stream of bytes or text (read to its end, left open), a frame, which is checked as a file is,
            or a published run (``"rankdistillm:colbert"``, tens of millions of rows; ``Rankings`` maps it instead).
        dataset: Where query and text come from: an ir_datasets id (``dataset_of(path)`` recovers it from a Lightning
            IR file name) or a PyTerrier dataset. All texts of the run are held in memory; for runs too large for that,
            join text later, in batches (``text_loader``).
        duplicates: What to do with a docno that is twice in a ranking: an error, or keep the better-ranked one.
        order: What counts where ranks contradict scores, as in a frame whose scores were replaced and whose ranks were
            not. ``"score"``: ranks are made anew from the scores. ``"rank"``: the ranks are kept and the column
            ``score`` is dropped, since what it says is not the order; such a run has no ties and no margins. None: both
            are kept as they are; where a run's order is learnt or measured, a contradiction is an error then.

    Returns:
        A new frame, in the run's order: ``qid`` and ``docno`` (strings), ``score`` (float64), ``rank`` (int64, from 0
        without gaps, in the order of the run's ranks, or of the scores where it has none); and, but from TREC files,
        the other columns.

    Raises:
        RunFileError: The file is malformed: wrong number of fields, something else where a number belongs, NaN or
            infinity, missing or duplicate ids, a JSON key or a column twice, invalid UTF-8, a line of more than 16 MiB,
            a gz stream that is broken or cut off, Parquet pages that do not match their checksum, no rows at all.
        ValueError: The same of a frame.
        ImportError: A Parquet file, without pyarrow.
    """
    if duplicates not in ("error", "drop"):
        raise ValueError(f"read: duplicates must be 'error' or 'drop', got {duplicates!r}.")
    if order not in (None, *get_args(Order)):
        raise ValueError(f"read: order must be None, 'rank' or 'score', got {order!r}.")
    door = Door("read", "source", RUN)
    if dataset is not None and (not isinstance(dataset, str | pt.datasets.Dataset) or names_a_file(dataset)):
        accepted = "an ir_datasets id or a PyTerrier dataset, which has queries and texts"
        raise Door("read", "dataset", accepted).refuse(dataset, "Use runs.add_queries and runs.add_text for others.")
    if isinstance(source, pd.DataFrame):
        run = checked_run(source, door, duplicates=duplicates)
    elif hasattr(source, "read") and not isinstance(source, os.PathLike):
        run = read_file(cast(Any, source), duplicates=duplicates)
    else:
        run = run_of(cast(Any, source), who="read", argument="source").frame(duplicates=duplicates)
    if order is not None:
        run = in_order(run, order)
    if dataset is not None:
        run = join_queries(run, load_topics(dataset, who="read"))
        run = join_text(run, text_loader(dataset, who="read"))
    return run


def add_queries(run: pd.DataFrame, topics: Topics) -> pd.DataFrame:
    """Adds (or replaces) the column ``query``.

    Args:
        run: A frame with ``qid``.
        topics: A frame with ``qid`` and ``query``, a file (qid, tab, query; JSON lines; Parquet), or a dataset or its
            name.

    Raises:
        KeyError: A qid has no query.
        ValueError: A qid has two queries, or the topics are none.
    """
    return join_queries(run, topics_of(topics, who="add_queries", missing="drop"))


def add_text(run: pd.DataFrame, text: Texts) -> pd.DataFrame:
    """Adds (or replaces) the column ``text``.

    Args:
        run: A frame with ``qid`` and ``docno``.
        text: Any text loader (``dataset.text_loader()``, ``pt.text.get_text(index)``), anything that has one (an
            index), a Terrier index (``TerrierIndex``, Java's ``Index`` or ``IndexRef``, or its folder) whose metadata
            has the texts, a frame with ``docno`` and ``text``, a file (JSON lines, Parquet), or a dataset or its name.

    Raises:
        KeyError: A docno has no text.
        ValueError: The loader gives no text, or the index has none.
    """
    return join_text(run, texts_of(text, who="add_text"))


# --- topics, judgments, texts -----------------------------------------------------------------------------------------


def topics_of(
    given: Topics, *, who: str, argument: str = "topics", missing: Literal["error", "drop"] = "error"
) -> pd.DataFrame:
    """Topics in the form that is read: columns ``qid`` (strings, each once) and ``query``.

    Args:
        given: What the user gave.
        who: The function that the user called.
        argument: Its argument.
        missing: What to do with a topic without a query: an error, or leave it out.

    Raises:
        TypeError: Something that cannot be topics.
        DataFileError: A malformed file.
        ValueError: A frame that is not topics, or a qid with two queries.
        KeyError: There is no such dataset.
    """
    door = Door(who, argument, TOPICS)
    found = _table(given, door, load=load_topics, read=read_topics)
    frame = _picked(found, door, (QID, QUERY))
    frame = frame.assign(qid=ids_of(frame["qid"], "qid", door))
    queries = frame["query"].tolist()
    absent = np.array([value is None or value is pd.NA or value != value for value in queries], dtype=bool)
    if missing == "drop":
        frame = frame[~absent]
        queries = frame["query"].tolist()
    place = first_no_text(queries)
    if place is not None:
        raise door.wrong(f"have no usable query for qid {frame['qid'].iloc[place]!r}: it is {told(queries[place])}.")
    several = frame[["qid", "query"]].drop_duplicates()
    again = several["qid"].duplicated()
    if again.any():
        qid = several["qid"][again].iloc[0]
        both = several["query"][several["qid"] == qid].tolist()[:2]
        raise door.wrong(f"have two queries for qid {qid!r}: {both[0]!r} and {both[1]!r}. Keep one.")
    several = several.reset_index(drop=True)
    several.attrs = dict(found.attrs)
    return several


def qrels_of(given: Qrels, *, who: str, argument: str = "qrels") -> pd.DataFrame:
    """Judgments in the form that is read: ``qid`` and ``docno`` (strings, each pair once) and ``label`` (int64).

    Raises:
        TypeError, DataFileError, KeyError: As ``topics_of``.
        ValueError: A frame that is not judgments, or one document judged twice, with different labels.
    """
    door = Door(who, argument, QRELS)
    found = _table(given, door, load=load_qrels, read=read_qrels)
    frame = _picked(found, door, (QID, DOCNO, ("label", "relevance")), empty=True)
    if frame.empty:
        return frame.astype({"qid": object, "docno": object, "label": np.int64})
    frame = frame.assign(qid=ids_of(frame["qid"], "qid", door), docno=ids_of(frame["docno"], "docno", door))
    labels = frame["label"]
    if labels.dtype.kind not in "iuf":
        raise door.wrong(f"must have whole numbers as labels, got dtype {labels.dtype}.")
    odd = not_whole(labels)
    if odd.any():
        row = int(odd.argmax())
        raise door.wrong(
            f"must have whole numbers as labels, got dtype {labels.dtype}: {labels.iloc[row]} in row {row} is not a "
            f"whole number of 64 bits."
        )
    frame = frame.assign(label=labels.astype(np.int64)).drop_duplicates()
    again = frame.duplicated(["qid", "docno"]).to_numpy()
    if again.any():
        qid, docno = frame[["qid", "docno"]].iloc[int(again.argmax())]
        both = frame["label"][(frame["qid"] == qid) & (frame["docno"] == docno)].tolist()[:2]
        raise door.wrong(f"judge docno {docno!r} twice for qid {qid!r}: {both[0]} and {both[1]}. Keep one.")
    return frame.reset_index(drop=True)


def texts_of(
    given: Texts, *, who: str, argument: str = "text", folder: Path | None = None, field: str = "text"
) -> pt.Transformer:
    """Where texts come from, as a transformer that adds ``text`` by ``docno``.

    Args:
        given: What the user gave.
        who: The function that the user called.
        argument: Its argument.
        folder: Where the mapped form of a Parquet file goes if the file's own folder is not writable.
        field: The metadata key of an index that is asked for first; else it is ``text``.

    Raises:
        TypeError, DataFileError, KeyError: As ``topics_of``.
        ValueError: A frame, dataset or index without texts, or a docno with two texts.
        FileNotFoundError: There is no such file, or no index in a folder.
    """
    door = Door(who, argument, TEXTS)
    if isinstance(given, pd.DataFrame):
        return FrameText(_text_by_docno(given, door), "a frame")
    if isinstance(given, pt.datasets.Dataset):
        return text_loader(given, who=who)
    if is_index(given) or index_at(given) is not None:
        return index_text(given, who=who, argument=argument, field=field)
    if is_meta_index(given):
        raise door.refuse(given, "Give the index that it is of.")
    if isinstance(given, pt.text.HasTextLoader):  # before transformers: an index may be both
        return given.text_loader()
    if isinstance(given, pt.Transformer):
        return given
    if not isinstance(given, str | os.PathLike):
        raise door.refuse(given)
    path = door.path(given)
    if path is None:
        return text_loader(_known(door, given), who=who)
    if path.name.endswith(PARQUET):
        path = path.absolute()
        writable = os.access(path.parent, os.W_OK)
        if writable or folder is not None:
            return ParquetText(path, folder=None if writable else folder)
    frame = read_texts(path)
    return FrameText(dict(zip(frame["docno"], frame["text"], strict=True)), path.name)


class FrameText(Loader):
    """Adds ``text`` by ``docno`` from texts that are held in memory: those of a frame or a file.

    Args:
        by_docno: The texts.
        origin: What they came from, for messages and drawings.
    """

    schematic: ClassVar[dict[str, str | None]] = {"label": "FrameText", "help_url": None}

    def __init__(self, by_docno: dict[str, str], origin: str) -> None:
        self._held = by_docno
        self.origin = origin

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds (or replaces) the column ``text``: None where there is none."""
        pt.validate.columns(inp, includes=["docno"], context=self)
        texts = [self._held.get(str(docno)) for docno in inp["docno"]]
        return inp.assign(text=pd.Series(texts, index=inp.index, dtype=object))

    def attributes(self) -> list[Any]:
        """Drawings carry the origin, not the collection."""
        return [pt.inspect.TransformerAttribute("origin", self.origin)]

    def __repr__(self) -> str:
        return f"FrameText({self.origin}, {len(self._held):,} texts)"


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GivenRun:
    """A run that was made elsewhere, and what it brings along. Nothing is read or downloaded before it is asked for.

    Args:
        source: A frame, a file, or the name of a published run (without its prefix).
        door: Who asked for it.
        order: What counts where ranks contradict scores, as for ``read``.
    """

    source: pd.DataFrame | Path | str
    door: Door = field(repr=False)
    order: Order | None = None

    @property
    def published(self) -> bool:
        """Whether it is one of the published runs."""
        return isinstance(self.source, str)

    @property
    def name(self) -> str:
        """What messages and records call it."""
        if isinstance(self.source, pd.DataFrame):
            return "a frame"
        return PREFIX + self.source if isinstance(self.source, str) else self.source.name

    @cached_property
    def file(self) -> Path | None:
        """Its file, downloaded where it is a published run; None for a frame."""
        if isinstance(self.source, pd.DataFrame):
            return None
        return fetch(self.source) if isinstance(self.source, str) else self.source

    def frame(self, *, duplicates: Duplicates = "error", scored: bool = True) -> pd.DataFrame:
        """The run in memory, as ``read`` gives it; without ``scored`` a frame may have ranks alone."""
        if isinstance(self.source, pd.DataFrame):
            run = checked_run(self.source, self.door, duplicates=duplicates, scored=scored)
        else:
            run = read_file(cast(Path, self.file), duplicates=duplicates)
        return run if self.order is None else in_order(run, self.order)

    def deduplicated(self) -> tuple[pd.DataFrame, int]:
        """The run in memory, each document of a ranking once, and how many rows went for that."""
        run = self.frame(duplicates="keep", scored=False)
        again = int(Ids.of(run).repeated().sum())
        return (_deduplicated(run) if again else run), again

    def rankings(self, folder: Path | None = None) -> Rankings:
        """The run by ranking. A file's is mapped rather than read, unless ``order`` changes it.

        Args:
            folder: Where the mapped form goes if the file's own folder is not writable; None: then it is read.
        """
        file = self.file
        if file is None or self.order is not None or find_spec("pyarrow") is None:
            return Rankings.from_frame(self.frame(scored=False))
        if os.access(file.absolute().parent, os.W_OK):
            return Rankings.from_file(file)
        return Rankings.from_frame(self.frame()) if folder is None else Rankings.from_file(file, folder=folder)

    def retriever(self) -> pt.Transformer:
        """The run as a first stage: for topics it gives its rankings."""
        return MappedRun(self.rankings(), self.name) if self.published else pt.Transformer.from_df(self.frame())

    @cached_property
    def dataset(self) -> pt.datasets.Dataset | str | None:
        """Where its topics, judgments and texts are: known of published runs and of Lightning IR's file names."""
        if isinstance(self.source, str):
            return PublishedDataset(self.source)
        if isinstance(self.source, Path):
            try:
                return dataset_of(self.source)
            except ValueError:
                return None
        return None


def run_of(given: Any, *, who: str, argument: str = "run", accepted: str = RUN, order: Order | None = None) -> GivenRun:
    """A run that was made elsewhere.

    Raises:
        TypeError: Something that cannot be a run.
        FileNotFoundError: There is no such file.
        ValueError: There is no published run of that name.
    """
    door = Door(who, argument, accepted)
    if isinstance(given, GivenRun):
        return given
    if isinstance(given, pd.DataFrame):
        return GivenRun(given, door, order)
    if not isinstance(given, str | os.PathLike):
        raise door.refuse(given)
    if os.fspath(given) == f"{PREFIX}demo":
        return GivenRun(pt.get_dataset(os.fspath(given)).get_results(), door, order)
    path = door.path(given)
    if path is not None:
        return GivenRun(path, door, order)
    name = str(given).removeprefix(PREFIX)
    if not str(given).startswith(PREFIX):
        raise FileNotFoundError(f"{who}: {argument} must be {accepted}; there is no file {os.fspath(given)!r}.")
    if name not in NAMES:
        raise door.wrong(f"names no published run: {str(given)!r}. There are: "
                         f"{', '.join(PREFIX + n for n in ('demo', *NAMES))}.")  # fmt: skip
    return GivenRun(name, door, order)


def runs_of(given: Any, *, who: str, argument: str = "run") -> tuple[GivenRun, ...]:
    """One run, or a list of several, of which messages name each by its place: ``run[1]``.

    Raises:
        TypeError, FileNotFoundError, ValueError: As ``run_of``, or the list is empty.
    """
    if not isinstance(given, list | tuple):
        return (run_of(given, who=who, argument=argument, accepted=f"{RUN}, or a list of them"),)
    if not given:
        raise Door(who, argument, RUN).wrong("is an empty list. Give at least one run.")
    return tuple(run_of(one, who=who, argument=f"{argument}[{place}]") for place, one in enumerate(given))


def first_stage_of(given: Any, *, who: str, argument: str = "first_stage") -> pt.Transformer:
    """Whatever finds documents for topics, as a transformer: a retriever as it is, a run by its rankings."""
    if isinstance(given, pt.transformer.SourceTransformer):  # from_df: with ids as they are everywhere
        door = Door(who, argument, RUN)
        frame = given.df
        ids = {name: ids_of(frame[name], name, door) for name in ("qid", "docno") if name in frame.columns}
        return given if all(ids[name] is frame[name] for name in ids) else pt.Transformer.from_df(frame.assign(**ids))
    if isinstance(given, pt.Transformer):
        return given
    return run_of(given, who=who, argument=argument, accepted=f"a retriever (any transformer), {RUN}").retriever()


def ranker_of(
    given: Any, *, who: str, argument: str, order: Order | None = None, look: bool = True
) -> pt.Transformer | GivenRun:
    """Whatever ranks documents (a teacher, a system), as a transformer; or the run that it once made.

    A transformer stays as it is: an estimator that is not fitted yet says so when it is used. A string is a run if it
    names a published run or a file, else a model; ``rankdistillm:demo`` is the checkpoint here.

    Args:
        given: What the user gave.
        who: The function that the user called.
        argument: Its argument.
        order: As for ``run_of``.
        look: Whether a model's name is looked up (of a hub id, the configuration is downloaded), so that a set encoder
            becomes a ``SetEncoderReRanker``.

    Raises:
        TypeError: Something that neither ranks nor is a run.
        FileNotFoundError: There is no such run file.
        CheckpointError: There is no such folder, or no such model.
    """
    from ..reranker import MonoElectraReRanker  # loads torch, which reading and writing runs does without
    from ..scoring.checkpoint import Checkpoint  # the same
    from ..set_encoder import of_its_kind  # the same

    door = Door(who, argument, RANKER)
    if isinstance(given, pt.Transformer):
        return given
    if isinstance(given, pd.DataFrame):
        return GivenRun(given, door, order)
    if isinstance(given, Checkpoint):
        return of_its_kind(MonoElectraReRanker(given))
    if not isinstance(given, str | os.PathLike):
        raise door.refuse(given)
    is_model = Path(given).expanduser().is_dir() or os.fspath(given) == f"{PREFIX}demo"
    if not is_model and (os.fspath(given).startswith(PREFIX) or door.path(given) is not None):
        return run_of(given, who=who, argument=argument, accepted=RANKER, order=order)
    return of_its_kind(MonoElectraReRanker(given)) if look else MonoElectraReRanker(given)


class MappedRun(pt.Transformer):
    """A run as a first stage: gives the rankings that it has for some topics, read from where they are mapped.

    Args:
        rankings: The run.
        origin: What it is called.
    """

    schematic: ClassVar[dict[str, str | None]] = {"label": "MappedRun", "help_url": None}

    def __init__(self, rankings: Rankings, origin: str) -> None:
        self._rankings = rankings
        self.origin = origin
        self._places: dict[str, int] | None = None

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Columns of the topics, ``docno``, ``score`` (the negated rank where the run has none) and ``rank``."""
        pt.validate.columns(inp, includes=["qid"], context=self)
        if self._places is None:
            self._places = {qid: place for place, qid in enumerate(self._rankings.qids)}
        frames = [pd.DataFrame({"qid": [], "docno": [], "score": [], "rank": []}).astype({"rank": np.int64})]
        for qid in inp["qid"].astype(str):
            if qid in self._places:
                one = self._rankings[self._places[qid]]
                ranks = np.arange(len(one.docnos)) + pt.model.FIRST_RANK
                scores = -ranks.astype(np.float64) if one.scores is None else one.scores
                frames.append(pd.DataFrame({"qid": qid, "docno": one.docnos, "score": scores, "rank": ranks}))
        found = pd.concat(frames[1:] or frames, ignore_index=True)
        kept = [name for name in inp.columns if name not in ("docno", "score", "rank")]
        return inp[kept].astype({"qid": str}).merge(found, on="qid")

    def attributes(self) -> list[Any]:
        """Drawings carry the origin, not the run."""
        return [pt.inspect.TransformerAttribute("origin", self.origin)]

    def __repr__(self) -> str:
        return f"MappedRun({self.origin!r})"


def checked_run(
    frame: pd.DataFrame, door: Door, *, duplicates: Duplicates = "error", scored: bool = True
) -> pd.DataFrame:
    """A frame as ``read`` gives it: string ids, float scores, ranks from 0 without gaps.

    Args:
        frame: What the user gave.
        door: Who asks.
        duplicates: As for ``read``.
        scored: Whether scores are needed; without, ranks may stand alone (and the column ``score`` stays out).
    """
    run = frame.reset_index(drop=True)
    ranked = "score" in run.columns or ("rank" in run.columns and not scored)
    if not {"qid", "docno"} <= set(run.columns) or not ranked:
        wanted = "score" if scored else "rank or score"
        raise door.wrong(f"must have the columns qid, docno, and {wanted}, got {', '.join(map(str, run.columns))}.")
    for column in ("qid", "docno"):
        if (run.columns == column).sum() > 1:
            raise door.wrong(f"has more than one column {column!r}. Drop one.")
        run = run.assign(**{column: ids_of(run[column], column, door)})
    for column, kinds, what in (("rank", "iuf", "whole numbers"), ("score", "iuf", "numbers")):
        if column in run.columns and run[column].dtype.kind not in kinds:
            raise door.wrong(f"is not a run: {column} must hold {what}, got dtype {run[column].dtype}.")
    if "rank" in run.columns:
        odd = not_whole(run["rank"])
        if odd.any():
            row = int(odd.argmax())
            raise door.wrong(
                f"must have a whole number of 64 bits as rank in every row, got {run['rank'].iloc[row]} in row {row}."
            )
        run = run.assign(rank=run["rank"].astype(np.int64))
    has_scores = "score" in run.columns
    run = run.assign(score=run["score"].astype(np.float64) if has_scores else -run["rank"].astype(np.float64))
    if run.empty:
        raise door.wrong("has no rows.")
    ids = Ids.of(run)
    fault = first_fault(run, ids, repeated=duplicates == "error")
    if fault is not None:
        raise door.wrong(f"is not a run: row {fault.row} (from 0): {fault.what}.{fault.remedy}")
    run = run.assign(rank=positions(run, ids))
    if duplicates == "drop":
        run = deduplicate(run)
    return run if has_scores else run.drop(columns="score")


def _deduplicated(run: pd.DataFrame) -> pd.DataFrame:
    """As ``deduplicate``, of runs with ranks alone too."""
    if "score" in run.columns:
        return deduplicate(run)
    return deduplicate(run.assign(score=-run["rank"].astype(np.float64))).drop(columns="score")


def in_order(run: pd.DataFrame, order: Order) -> pd.DataFrame:
    """A run whose order is that of its ranks (then without scores), or that of its scores (then with new ranks)."""
    if order == "rank":
        return run.drop(columns="score", errors="ignore")
    run = run.drop(columns="rank")
    return run.assign(rank=positions(run, Ids.of(run)))


def contradiction(run: pd.DataFrame) -> str | None:
    """What is wrong where a document has a better rank but a lower score than another one; else None."""
    if not {"rank", "score"} <= set(run.columns):
        return None
    odd = order_disagrees(run)
    if not len(odd):
        return None
    queries = run["qid"].nunique()
    return (
        f"has ranks that contradict its scores (a better rank with a lower score) for {len(odd)} of {queries} queries, "
        f"the first qid {odd[0]!r}. {_CONTRADICTION}"
    )


# --- ids and columns --------------------------------------------------------------------------------------------------


def ids_of(column: pd.Series, name: str, door: Door) -> pd.Series:
    """Ids as strings: whole numbers become their digits.

    Raises:
        ValueError: An id is missing, empty, or neither a string nor a whole number.
    """
    try:
        codes, distinct = pd.factorize(column)
    except TypeError:  # lists, arrays: nothing that can be looked up
        odd = next(value for value in column if not isinstance(value, str | int))
        raise door.wrong(f"must have strings or whole numbers as {name}, but one is {told(odd)}.") from None
    values = list(distinct)
    if (codes < 0).any():
        raise door.wrong(f"has no {name} in row {int((codes < 0).argmax())} (from 0). Every row needs one.")
    strings = [str(v) if isinstance(v, int | np.integer) and not isinstance(v, bool) else v for v in values]
    for value, text in zip(values, strings, strict=True):
        if not is_text(text) or not text:
            hint = "Convert the column to strings." if isinstance(value, float) else ""
            raise door.wrong(f"must have strings or whole numbers as {name}, but one is {told(text)}. {hint}".strip())
    if all(text is value for text, value in zip(strings, values, strict=True)):
        return column
    return pd.Series(np.array(strings, dtype=object)[codes], index=column.index)


def _table(
    given: Any, door: Door, *, load: Callable[..., pd.DataFrame], read: Callable[[Path], pd.DataFrame]
) -> pd.DataFrame:
    """A frame as it is, a dataset's table, or a file's."""
    if isinstance(given, pd.DataFrame):
        return given
    if isinstance(given, pt.datasets.Dataset):
        return load(given, who=door.who)
    if not isinstance(given, str | os.PathLike):
        raise door.refuse(given)
    path = door.path(given)
    return load(_known(door, given), who=door.who) if path is None else read(path)


def _picked(found: pd.DataFrame, door: Door, names: Sequence[Sequence[str]], *, empty: bool = False) -> pd.DataFrame:
    """Those columns of a frame that are read, by their canonical names."""
    columns = [pick(found.columns, choices) for choices in names]
    missing = [choices[0] for choices, column in zip(names, columns, strict=True) if column is None]
    wanted = [choices[0] for choices in names]
    if missing:
        raise door.wrong(f"must have the columns {', '.join(wanted)}, got no {', '.join(missing)}, but "
                         f"{', '.join(map(str, found.columns)) or 'none'}.")  # fmt: skip
    doubled = [name for name in columns if (found.columns == name).sum() > 1]
    if doubled:
        raise door.wrong(f"has more than one column {doubled[0]!r}. Drop one.")
    if found.empty and not empty:
        raise door.wrong("must not be empty.")
    return found[columns].set_axis(wanted, axis=1).reset_index(drop=True)


def _text_by_docno(frame: pd.DataFrame, door: Door) -> dict[str, str]:
    picked = _picked(frame, door, (DOCNO, TEXT))
    docnos, texts = ids_of(picked["docno"], "docno", door).tolist(), picked["text"].tolist()
    place = first_no_text(texts)
    if place is not None:
        raise door.wrong(f"has no usable text for docno {docnos[place]!r}: it is {told(texts[place])}.")
    held: dict[str, str] = {}
    for docno, text in zip(docnos, texts, strict=True):
        if held.setdefault(docno, text) != text:
            raise door.wrong(f"has two texts for docno {docno!r}. Keep one.")
    return held


def _known(door: Door, name: Path_) -> str:
    """A dataset's name; those of this package are looked up here, where it is known what is asked for."""
    text = str(name)
    if text.startswith(PREFIX) and text.removeprefix(PREFIX) not in ("demo", *NAMES):
        raise door.wrong(f"names no dataset of this package: {text!r}. There are: "
                         f"{', '.join(PREFIX + n for n in ('demo', *NAMES))}.")  # fmt: skip
    return text


def names_a_file(given: Any) -> bool:
    """Whether a string names a file, or the folder of an index, rather than a dataset."""
    return isinstance(given, str) and not given.startswith(PREFIX) and (
        Path(given).expanduser().is_file() or Path(given).suffix in _FILES or index_at(given) is not None
    )  # fmt: skip
