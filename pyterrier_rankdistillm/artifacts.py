"""What ``pt.Artifact.load`` finds of ours: made runs and score caches (PyTerrier asks by entry points).

PyTerrier imports this file whenever any artifact without metadata is loaded, so it imports little.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runs.cache import ScoreCache
    from .runs.making import MadeRun


def made_run(path: str | os.PathLike[str], **options: Any) -> MadeRun:
    """Opens a run with its record."""
    from .runs.making import MadeRun

    return MadeRun.load(path, **options)


def score_cache(path: str | os.PathLike[str], **options: Any) -> ScoreCache:
    """Opens one model's score cache."""
    from .runs.cache import ScoreCache

    return ScoreCache.load(path, **options)


def metadata(path: str | os.PathLike[str], files: Collection[str]) -> Mapping[str, str] | None:
    """What an artifact without metadata is: a run file with its record beside it is a made run.

    Args:
        path: The file or folder.
        files: The names of a folder's files.
    """
    if files or not Path(path).is_file():
        return None
    try:
        record = json.loads(Path(f"{os.fspath(path)}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and {"md5", "made by"} <= set(record)
    return {"type": "run", "format": "rankdistillm"} if ours else None
