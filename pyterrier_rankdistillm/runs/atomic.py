"""Files that are written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..scratch import scratch_file, sync


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write to. It replaces the target at the end, and is removed after an error.

    Readers see either the old file or the new one, also if the process is killed. What a killed process leaves behind,
    the next writer of the target removes.
    """
    with scratch_file(target) as scratch:
        yield scratch
        sync(scratch)
        scratch.replace(target)


def check_writable(target: Path) -> None:
    """Finds out, before the work, whether ``replacing(target)`` could write: by a scratch file beside it.

    Raises:
        IsADirectoryError: A folder has that name.
        OSError: The folder is not there and cannot be made, or is not writable, or the name is too long.
    """
    target = target.expanduser().absolute()
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; a file was to be written there. Choose another name.")
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        with scratch_file(target):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"{error.strerror} (nothing can be written there)", str(target)) from error
    with suppress(OSError):  # another process has begun to write there
        for folder in missing:  # nothing is left of a check
            folder.rmdir()


def write_json(file: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    with replacing(file) as scratch:
        scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
