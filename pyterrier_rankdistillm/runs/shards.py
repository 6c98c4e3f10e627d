"""Long work on a run, cut into shards that are done once each and survive the process.

A folder holds a manifest (what is to be done, written once) and, for each finished shard, a run file and its notes.
A shard is finished when its notes are there; they are written last, and whole. So work can stop at any moment, and
several workers can take shards of one folder: nothing but finished shards is ever shared.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ._atomic import replacing
from .download import md5_of
from .files import read, write

_VERSION = 1


class ShardError(ValueError):
    """A shard folder that is of other work, unfinished or damaged."""


@dataclass(frozen=True)
class Shard:
    """A piece of work.

    Args:
        index: Its place, from 0.
        qids: The queries to be done.
    """

    index: int
    qids: tuple[str, ...]


class Shards:
    """The shards of a folder; made where there is none, else continued.

    Args:
        folder: Where to; its own.
        qids: All queries, in the order of the result.
        size: Queries a shard.
        settings: What the result depends on, as JSON values: work is only continued under the same settings.

    Raises:
        ShardError: The folder is of other work; the message names what differs.
    """

    def __init__(self, folder: Path, qids: Sequence[str], *, size: int, settings: Mapping[str, Any]) -> None:
        if size < 1:
            raise ValueError(f"Shards: size must be at least 1 query, got {size!r}.")
        self.folder = folder
        plan = {"version": _VERSION, "size": size, "settings": dict(settings), "qids": list(qids)}
        plan = json.loads(json.dumps(plan))  # as it reads back
        file = folder / "manifest.json"
        if file.is_file():
            _check_same(file, json.loads(file.read_text(encoding="utf-8")), plan)
        else:
            write_json(file, plan)
        self.all = [Shard(n, tuple(qids[start : start + size])) for n, start in enumerate(range(0, len(qids), size))]

    def pending(self) -> list[Shard]:
        """The shards that are not finished, in order."""
        return [shard for shard in self.all if not self._notes_file(shard).is_file()]

    def save(self, shard: Shard, run: pd.DataFrame, notes: Mapping[str, Any] | None = None) -> None:
        """Finishes a shard.

        Args:
            shard: The shard.
            run: Its rankings; may be empty.
            notes: Anything to be remembered with it, as JSON values.
        """
        md5 = None
        if len(run):
            write(run, self._run_file(shard))
            md5 = md5_of(self._run_file(shard))
        write_json(self._notes_file(shard), {"rows": len(run), "md5": md5, "notes": dict(notes or {})})

    def notes(self) -> list[dict[str, Any]]:
        """What was noted for each shard, in order.

        Raises:
            ShardError: Not all are finished.
        """
        return [self._finished(shard)["notes"] for shard in self.all]

    def runs(self) -> Iterator[pd.DataFrame]:
        """The rankings of each shard that has any, in order.

        Raises:
            ShardError: Not all are finished, or a file was changed since.
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
            yield read(file)

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder)

    def _finished(self, shard: Shard) -> dict[str, Any]:
        file = self._notes_file(shard)
        if not file.is_file():
            raise ShardError(f"{self.folder}: shard {shard.index} of {len(self.all)} is not finished.")
        finished: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return finished

    def _run_file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.index:06d}.jsonl.gz"

    def _notes_file(self, shard: Shard) -> Path:
        return self.folder / f"{shard.index:06d}.json"


def write_json(file: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    with replacing(file) as scratch:
        scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, as ``name: old, new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys((*old, *new))
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
    return [] if old == new else [f"{name}: {_short(old)}, now {_short(new)}"]


def _check_same(file: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = differences(old, new)
    if changed:
        raise ShardError(
            f"{file.parent} holds unfinished work of another kind: {'; '.join(changed)}. Use the old settings to "
            f"continue it, or delete the folder to start anew."
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
