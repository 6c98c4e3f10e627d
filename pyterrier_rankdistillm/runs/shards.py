"""Long work on a run, split into shards that are each done once and survive the process.

A folder holds a manifest (what is to be done, written once) and, for each finished shard, a run file and its notes.
A shard is finished when its notes exist; they are written last, and atomically. So work can stop at any moment, and
several workers can work in one folder, since only finished shards are shared. When all shards are finished, they are
joined into one run file, with a record of how it was made beside it, and the folder is deleted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd

from ..errors import ShardError
from .atomic import write_json
from .download import md5_of
from .files import TAG, read_file, write, writer
from .kept import Record, Work
from .records import hardware

_VERSION = 2


@dataclass(frozen=True)
class Shard:
    """A piece of work.

    Args:
        index: Its position, from 0.
        qids: Its queries.
    """

    index: int
    qids: tuple[str, ...]


class ShardFolder:
    """The folder in which shards are kept. A worker that gets its shards from elsewhere needs only this.

    Args:
        folder: The folder.
        suffix: Format of the shards' run files, as in ``runs.write``.
    """

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder = folder
        self.suffix = suffix

    def begin(self, shard: Shard) -> int:
        """Records that work on a shard begins.

        Returns:
            How often it has begun, including this time: more than once if it killed a worker.
        """
        file = self._attempts_file(shard)
        with file.open("ab") as attempts:
            attempts.write(b".")
        return file.stat().st_size

    def forget_beginnings(self) -> None:
        """Resets these counts, since a shard that began in a process that was stopped did not fail."""
        for file in self.folder.glob("*.attempts"):
            file.unlink()

    def save(self, shard: Shard, run: pd.DataFrame, notes: Mapping[str, Any] | None = None) -> None:
        """Saves a finished shard.

        Args:
            shard: The shard.
            run: Its rankings; may be empty.
            notes: Anything to be saved with it, as JSON values.
        """
        md5 = None
        if len(run):
            write(run, self._run_file(shard))
            md5 = md5_of(self._run_file(shard))
        write_json(self._notes_file(shard), {"rows": len(run), "md5": md5, "notes": dict(notes or {})})

    def _run_file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.index:06d}{self.suffix}"

    def _notes_file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.index:06d}.json"

    def _attempts_file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.index:06d}.attempts"


class Shards(ShardFolder):
    """The shards of a folder, which is created if it does not exist, started again if none is finished, else continued.

    Args:
        folder: The folder, used for nothing else.
        qids: All queries, in the order of the result.
        size: Number of queries per shard.
        work: What the result depends on. Only the same work is continued.
        suffix: Format of the shards' run files, as in ``runs.write``.

    Raises:
        KeptWorkError: The folder belongs to other work; the message names what differs.
    """

    def __init__(self, folder: Path, qids: Sequence[str], *, size: int, work: Work, suffix: str = ".jsonl.gz") -> None:
        if size < 1:
            raise ValueError(f"Shards: size must be at least 1 query, got {size!r}.")
        super().__init__(folder, suffix)
        self.work = work
        self.all = [Shard(n, tuple(qids[start : start + size])) for n, start in enumerate(range(0, len(qids), size))]
        self.made_by = work.begun()
        kept = unfinished(folder)
        if kept is not None:
            work.check(folder, kept, remedy=_UNFINISHED, what="holds unfinished work of another kind")
            self.made_by = work.going_on(kept)
        if kept != self.made_by:
            self._note(self.made_by)

    def ended(self, parts: Collection[str]) -> None:
        """Notes what the work changed of its own parts.

        Args:
            parts: Those that it can change.
        """
        changed = self.work.ended(self.made_by, parts)
        if changed != self.made_by:
            self._note(changed)

    def _note(self, made_by: Record) -> None:
        self.made_by = made_by
        write_json(self.folder / _MANIFEST, {"version": _VERSION, "made by": made_by})

    def pending(self) -> list[Shard]:
        """The shards that are not finished, in order."""
        return [shard for shard in self.all if not self._notes_file(shard).is_file()]

    def notes(self) -> list[dict[str, Any]]:
        """The notes of each shard, in order.

        Raises:
            ShardError: Not all shards are finished.
        """
        return [self._finished(shard)["notes"] for shard in self.all]

    def runs(self) -> Iterator[pd.DataFrame]:
        """The rankings of each shard that has any, in order.

        Raises:
            ShardError: Not all shards are finished, or a file was changed since.
        """
        for shard in self.all:
            finished, file = self._finished(shard), self._run_file(shard)
            if not finished["rows"]:
                continue
            if not file.is_file() or md5_of(file) != finished["md5"]:
                raise ShardError(
                    f"{file} is missing or was changed after it was written. Delete {self._notes_file(shard)}, so "
                    f"that this shard is done again."
                )
            yield read_file(file)

    def complete(self, path: Path, record: Mapping[str, Any], *, tag: str = TAG) -> dict[str, Any]:
        """Joins the shards into one run, writes its record and deletes the folder. It can be interrupted and repeated.

        Args:
            path: Run file to write; the suffix decides the format.
            record: How the run was made, including the settings of the shards, as JSON values.
            tag: The system's name in TREC files.

        Returns:
            The record, also in ``{path}.json``, with ``versions`` and ``seconds``, which every shard's notes must have
            (several versions, if software was changed between two calls), the numbers of ``queries`` and ``rows``, and
            the run's ``md5``.

        Raises:
            ShardError: Not all shards are finished, or a file was changed since.
            ValueError: No shard has any rankings.
        """
        versions: list[dict[str, str]] = []
        seconds = 0.0
        for note in self.notes():
            seconds += note["seconds"]
            if note["versions"] not in versions:
                versions.append(note["versions"])
        rows = 0
        with writer(path, tag=tag) as append:
            for run in self.runs():
                append(run)
                rows += len(run)
        made = {
            **record,
            "versions": versions,
            "hardware": hardware(),
            "queries": sum(len(shard.qids) for shard in self.all),
            "rows": rows,
            "seconds": round(seconds, 3),
            "md5": md5_of(path),
            "made by": self.made_by,
        }
        write_json(record_of(path), made)
        shutil.rmtree(self.folder)
        return made

    def _finished(self, shard: Shard) -> dict[str, Any]:
        file = self._notes_file(shard)
        if not file.is_file():
            raise ShardError(f"{self.folder}: shard {shard.index} of {len(self.all)} is not finished.")
        finished: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return finished


def folder_of(path: Path) -> Path:
    """The folder in which the shards of a run are kept while it is made."""
    return path.with_name(f"{path.name}.shards")


def unfinished(folder: Path) -> Record | None:
    """What was recorded with work that is not complete; None where none of it is finished, so that nothing is lost."""
    manifest = folder / _MANIFEST
    if not manifest.is_file() or not any(file.stem.isdigit() for file in folder.glob("*.json")):
        return None
    return cast(Record, json.loads(manifest.read_text(encoding="utf-8")).get("made by") or {})


def completed(path: Path, work: Work) -> dict[str, Any] | None:
    """The record of a run that an earlier call completed, if one did.

    Args:
        path: The run file.
        work: What the run depends on.

    Raises:
        KeptWorkError: The file belongs to other work.
        FileExistsError: Nothing records what made the file, or it was changed.
    """
    record_file, folder = record_of(path), folder_of(path)
    if not path.exists():
        return None
    if not record_file.exists():
        if (folder / _MANIFEST).exists():  # stopped between the two
            return None
        raise FileExistsError(f"{path} exists, without {record_file.name}. Choose another output, or remove it.")
    record: dict[str, Any] = json.loads(record_file.read_text(encoding="utf-8"))
    kept = record.get("made by")
    work.check(path, kept, remedy=COMPLETED)
    if md5_of(path) != record["md5"]:
        raise FileExistsError(f"{path} was changed after it was written. Choose another output, or remove it.")
    goes_on = work.going_on(kept or {})
    if goes_on != kept:
        record["made by"] = goes_on
        write_json(record_file, record)
    if folder.exists():  # stopped while it was deleted
        shutil.rmtree(folder)
    return record


def kept_at(path: Path) -> tuple[Path, Record] | None:
    """Where a run is kept, finished or not, and what was recorded with it; None where there is none."""
    record_file, folder = record_of(path), folder_of(path)
    if path.exists() and record_file.exists():
        return path, json.loads(record_file.read_text(encoding="utf-8")).get("made by") or {}
    kept = unfinished(folder)
    return None if kept is None else (folder, kept)


def record_of(path: Path) -> Path:
    """Where the record of a run lies."""
    return path.with_name(f"{path.name}.json")


COMPLETED = "Choose another output, or remove it."
_UNFINISHED = "Give what made it to continue it, or delete the folder to start again."
_MANIFEST = "manifest.json"
