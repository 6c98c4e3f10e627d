"""Runs on disk: TREC, Parquet and JSON lines, plain or gz, in PyTerrier's columns.

In frames, ranks count from 0, as in PyTerrier; in files they count from 1, as in those of trec_eval and Lightning IR.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
import os
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

import ir_datasets
import numpy as np
import pandas as pd
import pyterrier as pt

from ..errors import RunFileError
from ..extras import is_installed
from .atomic import check_writable, replacing
from .frames import deduplicate
from .parquet import ParquetFile, pyarrow
from .rank_llm import is_rank_llm, pieces_of
from .ranks import REQUIRED, Ids, check_columns, first_fault, positions
from .streams import BROKEN_GZ, LONGEST, TOO_LONG, Source, broken_gz, fields_of, json_of, lines_of, opened

Format = Literal["trec", "parquet", "jsonl"]
Append = Callable[[pd.DataFrame], None]

TAG = "pyterrier_rankdistillm"

RUN_SUFFIXES: dict[str, Format] = {
    **dict.fromkeys((".run", ".trec", ".res", ".txt", ".tsv"), "trec"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
}
_SEPARATORS = re.compile(r"[ \t\n\r\v\f]")  # what ends a field for trec_eval and for the readers here
_BLANK = b" \t\r\n"
_FIELDS = ("qid", "Q0", "docno", "rank", "score", "tag")
_ALIASES = {"qid": ("query_id",), "docno": ("doc_id", "docid")}  # as ir_datasets, Lightning IR and Terrier name them
_START = 1 << 16  # bytes by which formats are told apart
_ROWS = 500_000  # rows that are written together
_BLOCK = 8 << 20  # bytes of a text file that are parsed together
_BATCH = 100_000  # rows of a Parquet file that are parsed together
_TOO_LARGE = ", which 64 bits do not hold"
_NO_ROWS = "{} has no rows. Check that it was copied or written completely."


def read_file(source: Source, *, duplicates: Literal["error", "drop", "keep"] = "error") -> pd.DataFrame:
    """Reads a run file, or a stream; see ``runs.read``. With ``duplicates="keep"`` a document may be there twice."""
    with opened(source) as (stream, name):
        pieces, where = _parse(stream, name)
        first = next(pieces, None)
        if first is None:
            raise RunFileError(_NO_ROWS.format(name))
        run = pd.concat(itertools.chain([first], pieces), ignore_index=True)
        run = _checked(run, where, repeated=duplicates == "error")
    return deduplicate(run) if duplicates == "drop" else run


def read_parts(source: Source) -> Iterator[pd.DataFrame]:
    """Reads a run that is larger than memory: like ``read``, in frames of whole rankings, about 100,000 rows each.

    Only a few blocks of the file and the qids so far are held in memory. A gzipped Parquet file is unpacked into a
    temporary file.

    Args:
        source: As for ``read``. The rows of a query must be contiguous.

    Yields:
        Frames like those of ``read``; concatenated, they are the frame that ``read`` returns.

    Raises:
        RunFileError: As for ``read``, when the malformed place is reached; also if the rows of a query are not
            contiguous.
        ImportError: It is a Parquet file, and pyarrow is not installed.
    """
    seen: set[str] = set()
    before = 0  # rows of the file that were given already
    with opened(source) as (stream, name):
        pieces, where = _parse(stream, name)
        for part in _whole_rankings(pieces):
            run = _checked(part, where, before=before)
            row = _comes_again(run["qid"], seen)
            if row is not None:
                raise RunFileError(
                    f"{where(before + row)}: qid {run['qid'].iloc[row]!r} comes again after other queries. Sort the "
                    f"file by qid, so that the rows of a query lie together."
                )
            yield run
            before += len(run)
        if not before:
            raise RunFileError(_NO_ROWS.format(name))


def write(
    run: pd.DataFrame,
    target: Source,
    *,
    format: Format | None = None,  # noqa: A002
    tag: str = TAG,
) -> None:
    """Writes a run. Files are written atomically, and equal runs give equal bytes.

    Args:
        run: Columns ``qid``, ``docno``, ``score`` and optionally ``rank``, whose order is kept and written from 1
            without gaps. Without ``rank``, ranks follow the scores. TREC files hold these columns only, the other
            formats hold all.
        target: Path, or a stream (written to, left open).
        format: Default: by the path's suffix (.run, .trec, .res, .txt; .tsv with tabs; .parquet, .pq; .jsonl, .ndjson;
            each also with .gz); for streams TREC.
        tag: The system's name in TREC files, without white space.

    Raises:
        ValueError: The frame is not a run, or its ids do not fit the format; the message names the row.
        ImportError: The format is Parquet, and pyarrow is not installed.
    """
    with writer(target, format=format, tag=tag) as append:
        append(run)


@contextmanager
def writer(target: Source, *, format: Format | None = None, tag: str = TAG) -> Iterator[Append]:  # noqa: A002
    """Like ``write``, piece by piece: yields a function that appends a frame of whole rankings.

    Raises:
        ValueError: As for ``write``; also if a query is appended a second time, or nothing was appended at all.
    """
    seen: set[str] = set()
    with ExitStack() as stack:
        chosen, stream = _target(stack, target, format)
        if tag.split() != [tag]:
            raise ValueError(f"write: tag must be a word without white space, got {tag!r}.")
        tabs = isinstance(target, str | os.PathLike) and Path(target).name.removesuffix(".gz").endswith(".tsv")
        sink = stack.enter_context(_SINKS[chosen](stream, tag, "\t" if tabs else " "))

        def append(run: pd.DataFrame) -> None:
            run, qids = _to_write(run, chosen)
            twice = seen.intersection(qids)
            if twice:
                raise ValueError(f"write: qid {min(twice)!r} was appended before. Append each ranking whole.")
            for start in range(0, len(run), _ROWS):
                sink(run.iloc[start : start + _ROWS])
            seen.update(qids)

        yield append
        if not seen:
            raise ValueError("write: the run has no rows. Nothing was written.")


def dataset_of(path: str | os.PathLike[str]) -> str:
    """The ir_datasets id in a Lightning IR file name, such as ``__colbert__msmarco-passage-train-judged.run.gz``.

    Raises:
        ValueError: The name does not have that form, or fits no dataset or more than one.
    """
    name = Path(path).name
    stem = name.removesuffix(".gz")
    stem = stem.removesuffix(Path(stem).suffix) if Path(stem).suffix in (*RUN_SUFFIXES, ".json", ".csv") else stem
    dashed = stem.rpartition("__")[2]
    found = sorted(i for i in ir_datasets.registry if i.replace("/", "-") == dashed) if "__" in stem else []
    if len(found) != 1:
        why = f"{dashed!r} may be {' or '.join(found)}" if found else f"no ir_datasets id is written {dashed!r}"
        why = why if "__" in stem else "it has no '__'"
        raise ValueError(
            f"dataset_of: the file name must end with an ir_datasets id, its slashes as dashes "
            f"(__first-stage__msmarco-passage-train-judged.run), got {name!r}: {why}. Name the dataset yourself."
        )
    return str(found[0])


# --- reading ----------------------------------------------------------------------------------------------------------


def _parse(stream: Any, name: str) -> tuple[Iterator[pd.DataFrame], Callable[[int], str]]:
    """The rows in pieces, not yet checked across rows, and a function that names a row in messages."""
    start = bytearray(_START)
    try:
        del start[stream.readinto(start) :]  # what there is before a gz stream breaks
        stream.seek(0)
    except BROKEN_GZ as error:
        raise broken_gz(name, 1, error) from error
    first = start.partition(b"\n")[0].decode("utf-8", "replace").strip(" \t\r")
    trec = _trec_fault(first, first) is None  # then it is TREC, also where a qid is PAR1 or {1}
    if start.startswith(b"PAR1") and not trec:
        return _parquet_pieces(stream, name), lambda row: f"{name}, row {row + 1}"
    head = next(lines_of(stream, name), (0, ""))[1]
    if is_rank_llm(head) and not trec:
        return pieces_of(lines_of(stream, name), name), lambda row: f"{name}, row {row + 1}"
    if head.startswith("version https://git-lfs"):
        raise RunFileError(f"{name} is a Git LFS pointer, and not the file itself. Fetch it: git lfs pull.")
    parse, fault = (_records, _record_fault) if head.startswith("{") and not trec else (_trec, _trec_fault)
    return _text_pieces(stream, name, parse, fault), lambda row: f"{name}, line {_line_of(stream, row)}"


def _text_pieces(
    stream: IO[bytes], name: str, parse: Callable[[bytes], pd.DataFrame], fault: Callable[[str, str], str | None]
) -> Iterator[pd.DataFrame]:
    """The frames that a fast parser makes of blocks. If it fails, a slow one looks for the malformed line."""
    ranked = None
    try:
        for block in _blocks(stream):
            piece = parse(block)
            if ranked not in (None, "rank" in piece.columns):
                raise ValueError("rank is there for some rows and missing for others")
            ranked = "rank" in piece.columns
            yield piece
    except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError, RecursionError, *BROKEN_GZ) as error:
        head = ""
        for number, line in lines_of(stream, name):
            head = head or line
            what = fault(line, head)
            if what:
                raise RunFileError(f"{name}, line {number}: {what}.") from error
        raise RunFileError(f"{name} is not a run: {error}.") from error


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """The stream from its start, without its byte order mark, in blocks of whole lines that are not all blank.

    Raises:
        ValueError: A line is too long, or another one begins with such a mark, which parsers drop if it is their first.
    """
    stream.seek(0)
    if stream.read(len(BOM_UTF8)) != BOM_UTF8:
        stream.seek(0)
    rest = b""
    while data := stream.read(_BLOCK):
        end = data.rfind(b"\n") + 1
        block, rest = (rest + data[:end], data[end:]) if end else (b"", rest + data)
        if len(rest) > LONGEST:
            raise ValueError(TOO_LONG)
        if block.strip(_BLANK):
            yield _without_marks(block)
    if rest.strip(_BLANK):
        yield _without_marks(rest)


def _without_marks(block: bytes) -> bytes:
    if block.startswith(BOM_UTF8) or b"\n" + BOM_UTF8 in block:
        raise ValueError("a byte order mark within the file")
    return block


def _checked(run: pd.DataFrame, where: Callable[[int], str], *, before: int = 0, repeated: bool = True) -> pd.DataFrame:
    """Parsed rows in the form that ``read`` returns; ``before`` is the number of the file's rows before them."""
    ids = Ids.of(run)
    fault = first_fault(run, ids, repeated=repeated)
    if fault is not None:
        hint = " runs.read(..., duplicates='drop') keeps the better-ranked one." if fault.kind == "twice" else ""
        raise RunFileError(f"{where(before + fault.row)}: {fault.what}.{hint}")
    # Equal ids share one string: a column takes one pointer per row, not one string per row.
    run = run.assign(qid=ids.qids.take(ids.query), docno=ids.docnos.take(ids.document), rank=positions(run, ids))
    columns = [*REQUIRED, "rank", *(c for c in run.columns if c not in (*REQUIRED, "rank"))]
    return run[columns]


def _whole_rankings(pieces: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The same rows in frames that end where a ranking ends."""
    rest = pd.DataFrame()
    for piece in pieces:
        rows = piece if rest.empty else pd.concat([rest, piece], ignore_index=True)
        others = np.flatnonzero(rows["qid"] != rows["qid"].iloc[-1])
        end = int(others[-1]) + 1 if len(others) else 0
        rest = rows.iloc[end:].reset_index(drop=True)
        if end:
            yield rows.iloc[:end]
    if not rest.empty:
        yield rest


def _comes_again(qid: pd.Series, seen: set[str]) -> int | None:
    """The first row of a query that was seen before, if any; new queries are added to ``seen``."""
    starts = np.flatnonzero(qid != qid.shift())
    for start, value in zip(starts, qid.iloc[starts], strict=True):
        if value in seen:
            return int(start)
        seen.add(value)
    return None


def _trec(block: bytes) -> pd.DataFrame:
    # Parsers take them for spaces, or for the end of a line, or not: each as it likes.
    if b"\x0b" in block or b"\x0c" in block or (b"\r" in block and _RETURN.search(block)):
        raise ValueError("a control character")
    head = block.lstrip().partition(b"\n")[0]
    run = _plain_trec(block, "\t" if b"\t" in head else " ")
    if run is not None:
        return run
    # One column more than a line has, so that the parser, which pads short lines, does not silently cut long ones.
    names = [*_FIELDS, "more"]
    kinds = {**dict.fromkeys(names, str), "rank": np.int64, "score": np.float64}
    # pandas before 3 reads numbers to the last digit only with this option, and pandas 3 warns about it.
    exact: dict[str, Any] = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}
    if len(head.split()) > len(_FIELDS):  # the parser would allow that many fields in all lines
        raise ValueError("too many fields")
    with np.errstate(invalid="raise"):  # the parser casts ranks such as inf or 1e300, and what comes out is any number
        parsed: pd.DataFrame = pd.read_csv(
            io.BytesIO(block), sep=r"\s+", header=None, names=names, index_col=False, dtype=cast(Any, kinds),
            quoting=csv.QUOTE_NONE, na_filter=False, encoding="utf-8", **exact,
        )  # fmt: skip
    if parsed["rank"].dtype != np.int64:  # pandas 2.0 makes unsigned numbers of 2^63 and above
        raise ValueError("a rank of more than 64 bits")
    if "" in parsed["tag"].unique() or set(parsed["more"].unique()) - {""}:
        raise ValueError("a line has too few or too many fields")
    return parsed[["qid", "docno", "score", "rank"]]


_RETURN = re.compile(rb"\r(?![\r\n]|\Z)")  # a carriage return within a line
_HEXADECIMAL = re.compile(rb"[ \t][+-]?0[xX]")  # what pyarrow's parser reads as numbers, and others do not


def _plain_trec(block: bytes, separator: str) -> pd.DataFrame | None:
    """The fastest parser, pyarrow's, if installed, for well-formed lines with one separator between fields.

    For other lines it returns None; the other parser then reads them, or says what is wrong.
    """
    if not is_installed("pyarrow"):
        return None
    if _HEXADECIMAL.search(block):
        return None
    pa, csv_reader, compute = (import_module(f"pyarrow{name}") for name in ("", ".csv", ".compute"))
    word, few = pa.string(), pa.dictionary(pa.int32(), pa.string())
    kinds = {"qid": word, "Q0": few, "docno": word, "rank": pa.int64(), "score": pa.float64(), "tag": few}
    try:
        table = csv_reader.read_csv(
            pa.BufferReader(block),
            # All in one block: Arrow's threads can hang where a line is longer than a block.
            read_options=csv_reader.ReadOptions(column_names=list(kinds), block_size=len(block)),
            parse_options=csv_reader.ParseOptions(delimiter=separator, quote_char=False),
            convert_options=csv_reader.ConvertOptions(column_types=kinds, null_values=[]),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    for name in ("qid", "Q0", "docno", "tag"):
        for piece in table[name].chunks:
            words = piece.dictionary if kinds[name] == few else piece
            if compute.any(compute.match_substring_regex(words, "^$|[ \t]")).as_py():
                return None
    if not compute.all(compute.is_finite(table["score"])).as_py():
        return None
    return cast(pd.DataFrame, table.select(["qid", "docno", "score", "rank"]).to_pandas())


def _trec_fault(line: str, head: str) -> str | None:
    del head
    if line.startswith("\ufeff"):
        return "a byte order mark (U+FEFF), as where files are joined. Remove it"
    if "\x0b" in line or "\x0c" in line or "\r" in line:
        return "a control character (vertical tab, form feed or carriage return) within the line"
    fields = fields_of(line)
    if len(fields) != len(_FIELDS):
        return f"{len(fields)} fields, a TREC run has {len(_FIELDS)} ({' '.join(_FIELDS)})"
    rank = _number(fields[3])
    if not rank.is_integer() or abs(rank) >= 2**63:
        return f"rank must be a whole number, got {_shown(fields[3])}{_TOO_LARGE if rank.is_integer() else ''}"
    if not math.isfinite(_number(fields[4])):
        return f"score must be a finite number, got {_shown(fields[4])}"
    return None


def _number(text: str) -> float:
    """A number as the parsers read it; of anything else, not a number."""
    try:
        return float(text) if text.isascii() and text.isprintable() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def _line_of(stream: IO[bytes], row: int) -> int:
    """The number of the line that became a row."""
    return next(number for place, (number, _) in enumerate(lines_of(stream, "")) if place == row)


def _records(block: bytes) -> pd.DataFrame:
    """A frame with the right names and types; its errors do not say which line is wrong."""
    lines = block.decode("utf-8").split("\n")
    frame = pd.DataFrame.from_records([json_of(line) for line in lines if line and not line.isspace()])
    frame = frame.rename(columns=_aliases(frame.columns))
    for key in ("qid", "docno"):
        if pd.api.types.infer_dtype(frame[key], skipna=False) == "integer":
            frame[key] = [str(value) for value in frame[key]]
        if pd.api.types.infer_dtype(frame[key], skipna=False) != "string":
            raise TypeError(f"{key} must hold strings")
    for key, kinds in (("score", "iuf"), ("rank", "iu")):
        if key in frame and frame[key].dtype.kind not in kinds:
            raise TypeError(f"{key} must hold numbers")
    if "rank" in frame and frame["rank"].dtype.kind == "u":  # as many as 2**63 or more are read
        raise OverflowError("rank must be below 2**63")
    if frame["score"].isna().any():
        raise ValueError("score is missing")
    return frame.astype({"score": np.float64})


def _aliases(columns: Collection[str]) -> dict[str, str]:
    """Which columns go under another name; beside a canonical one, an alias is a column like any other."""
    found = {}
    for name, aliases in _ALIASES.items():
        alias = next((alias for alias in aliases if alias in columns), None)
        if name not in columns and alias is not None:
            found[alias] = name
    return found


def _record_fault(line: str, head: str) -> str | None:
    try:
        record = json_of(line)
    except ValueError as error:
        return f"not valid JSON: {error}"
    except RecursionError:
        return "not readable JSON: it is nested too deeply"
    if not isinstance(record, dict):
        return f"a line must hold a JSON object, got {type(record).__name__}"
    aliases = _aliases(record)
    record = {aliases.get(key, key): value for key, value in record.items()}
    for key in REQUIRED:
        if record.get(key) is None:
            return f"{key} is missing"
    for key in ("qid", "docno"):
        if not isinstance(record[key], str | int) or isinstance(record[key], bool):
            return f"{key} must be a string or a whole number, got {record[key]!r}"
    score, rank = record["score"], record.get("rank")
    if type(score) not in (int, float) or not (abs(score) <= sys.float_info.max):
        return f"score must be a finite number, got {_shown(score)}"
    if "rank" in record and (type(rank) is not int or abs(rank) >= 2**63):
        return f"rank must be a whole number, got {_shown(rank)}{_TOO_LARGE if type(rank) is int else ''}"
    if ("rank" in record) != ("rank" in json_of(head)):
        return "rank must be in all lines or in none, " + (
            "the first has none" if "rank" in record else "it is missing"
        )
    return None


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a very large number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _parquet_pieces(stream: Any, name: str) -> Iterator[pd.DataFrame]:
    with ParquetFile.opened(stream, name, RunFileError) as parquet:
        aliases = _aliases(parquet.names)
        names = {aliases.get(column, column): column for column in parquet.names}
        missing = [column for column in REQUIRED if column not in names]
        if missing:
            raise RunFileError(f"{name}: no column {', '.join(missing)}; there are: {', '.join(names)}.")
        for column in names:
            _check_type(parquet.arrow, parquet.file.schema_arrow.field(names[column]).type, column, name)
        for batch in parquet.batches(rows=_BATCH):
            with parquet.guarded():
                piece = _from_arrow(parquet.arrow, batch, names, name)
            yield piece


def _check_type(pa: Any, kind: Any, column: str, name: str) -> None:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    fits = {
        "qid": text or pa.types.is_integer(kind),
        "docno": text or pa.types.is_integer(kind),
        "score": number,
        "rank": number,
    }
    if not fits.get(column, True):
        raise RunFileError(f"{name}: column {column} must hold {'numbers' if column in ('score', 'rank') else 'ids'}, "
                           f"it holds {kind}.")  # fmt: skip


def _from_arrow(pa: Any, batch: Any, names: dict[str, str], name: str) -> pd.DataFrame:
    columns = {ours: batch.column(theirs) for ours, theirs in names.items()}
    for key in ("qid", "docno"):
        columns[key] = columns[key].cast(pa.string())
    columns["score"] = columns["score"].cast(pa.float64(), safe=False)  # whole numbers beyond 2**53 are rounded
    if "rank" in columns:
        rank = columns["rank"]
        if rank.null_count:
            raise RunFileError(f"{name}: rank is missing in {rank.null_count} rows.")
        try:
            columns["rank"] = rank.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise RunFileError(f"{name}: column rank must hold whole numbers of 64 bits: {error}.") from error
    return cast(pd.DataFrame, pa.table(columns).to_pandas())


# --- writing ----------------------------------------------------------------------------------------------------------


def check_target(path: str | os.PathLike[str], *, format: Format | None = None) -> Format:  # noqa: A002
    """The format that a path would be written in; what would stand in the way is an error already now.

    Raises:
        ValueError: The suffix says no format.
        OSError: The path is a folder, or nothing can be written there.
        ImportError: Parquet, without pyarrow.
    """
    target = Path(path).expanduser()
    found = _format_of(target, format)
    check_writable(target)
    return found


def check_ids(run: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Finds out, before the work, whether a run's ids can be written to a path; see ``write``.

    Raises:
        ValueError: An id has white space, and the path is that of a TREC file.
    """
    if _format_of(Path(path), None) == "trec":
        _check_trec_ids(*([str(value) for value in run[name].unique()] for name in ("qid", "docno")))


def _check_trec_ids(qids: Sequence[str], docnos: Sequence[str]) -> None:
    marked = next((qid for qid in qids if qid.startswith("\ufeff")), None)
    if marked is not None:
        raise ValueError(
            f"write: qid {marked!r} begins with a byte order mark, which at the start of a line of a TREC file is not "
            f"part of its text. Write .jsonl or .parquet, or remove it."
        )
    odd = [value for value in (*qids, *docnos) if _SEPARATORS.search(value)]
    if odd:
        raise ValueError(
            f"write: {odd[0]!r} has white space, which separates the fields of a TREC file. Write .jsonl or "
            f".parquet, or rename such ids ({len(odd)} such ids)."
        )


def _format_of(path: Path, chosen: Format | None) -> Format:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    found = chosen or RUN_SUFFIXES.get(suffix)
    if found is None:
        raise ValueError(
            f"write: the path must end with one of {', '.join(RUN_SUFFIXES)} (and .gz), got {path.name!r}. Rename it, "
            f"or give a format."
        )
    if found == "parquet":
        pyarrow("Writing Parquet (TREC and JSON lines do not)")
    return found


def _target(stack: ExitStack, target: Source, chosen: Format | None) -> tuple[Format, Any]:
    """The format, and a stream that becomes the file when the stack is closed without an error."""
    if chosen not in (None, *get_args(Format)):
        raise ValueError(f"write: format must be None or one of {', '.join(get_args(Format))}, got {chosen!r}.")
    if not isinstance(target, str | os.PathLike):
        text = isinstance(target, io.TextIOBase)
        if text and chosen == "parquet":
            raise ValueError("write: Parquet needs a stream of bytes, got a stream of text.")
        return chosen or "trec", _Encoded(cast(IO[str], target)) if text else target
    path = Path(target).expanduser()
    found = _format_of(path, chosen)
    scratch = stack.enter_context(replacing(path.absolute()))
    stream: Any = stack.enter_context(scratch.open("wb"))
    if path.name.endswith(".gz"):  # without name and time, so that equal runs are equal files
        stream = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0))
    return found, stream


class _Encoded:
    """A text stream as a stream of bytes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        self._stream.write(data.decode("utf-8"))
        return len(data)


def _to_write(run: pd.DataFrame, chosen: Format) -> tuple[pd.DataFrame, list[str]]:
    """The frame with string ids, float64 scores and ranks from 1, and its qids; everything checked."""
    check_columns(run, "write")
    if not pd.api.types.is_numeric_dtype(run["score"]):
        raise ValueError(f"write: score must hold numbers, got dtype {run['score'].dtype}.")
    run = run.reset_index(drop=True)
    ids = Ids.of(run)
    fault = first_fault(run, ids)
    if fault is not None:
        raise ValueError(f"write: row {fault.row} (from 0): {fault.what}.{fault.remedy}")
    qids, docnos = ([str(value) for value in values] for values in (ids.qids, ids.docnos))
    if chosen == "trec":
        _check_trec_ids(qids, docnos)
    rank = positions(run, ids) - pt.model.FIRST_RANK + 1
    run = run.assign(
        qid=pd.Index(qids, dtype=object).take(ids.query),
        docno=pd.Index(docnos, dtype=object).take(ids.document),
        rank=rank,
        score=run["score"].to_numpy(dtype=np.float64),
    )
    return run, qids


@contextmanager
def _trec_sink(stream: Any, tag: str, separator: str) -> Iterator[Append]:
    middle, end = f"{separator}Q0{separator}", f"{separator}{tag}\n"

    def append(run: pd.DataFrame) -> None:
        columns = (run[name].tolist() for name in ("qid", "docno", "rank", "score"))
        # repr is the shortest text that reads back as the same number.
        lines = [
            f"{qid}{middle}{docno}{separator}{rank}{separator}{score!r}{end}"
            for qid, docno, rank, score in zip(*columns, strict=True)
        ]
        stream.write("".join(lines).encode("utf-8"))

    yield append


@contextmanager
def _jsonl_sink(stream: Any, tag: str, separator: str) -> Iterator[Append]:
    del tag, separator

    def append(run: pd.DataFrame) -> None:
        gaps = [name for name in run.columns if run[name].isna().any()]
        for start in range(0, len(run), 10_000):
            piece = run.iloc[start : start + 10_000]
            piece = piece.assign(**{n: piece[n].astype(object).where(piece[n].notna(), None) for n in gaps})
            records = piece.to_dict(orient="records")
            try:
                lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
            except (TypeError, ValueError) as error:
                raise ValueError(f"write: a column does not fit JSON: {error}. Drop or convert it.") from error
            stream.write("".join(lines).encode("utf-8"))

    yield append


@contextmanager
def _parquet_sink(stream: Any, tag: str, separator: str) -> Iterator[Append]:
    del tag, separator
    pa, pq = pyarrow("Writing Parquet (TREC and JSON lines do not)")
    with ExitStack() as stack:
        parquet: Any = None

        def append(run: pd.DataFrame) -> None:
            nonlocal parquet
            try:
                table = pa.Table.from_pandas(run, schema=parquet and parquet.schema, preserve_index=False)
            except (pa.ArrowException, KeyError) as error:
                raise ValueError(f"write: a column does not fit Parquet: {error}. Drop or convert it.") from error
            if parquet is None:
                opened = pq.ParquetWriter(stream, table.schema, compression="zstd", write_page_checksum=True)
                parquet = stack.enter_context(opened)
            parquet.write_table(table)

        yield append


_SINKS = {"trec": _trec_sink, "jsonl": _jsonl_sink, "parquet": _parquet_sink}
