"""Files that are written atomically."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write to. It replaces the target at the end, and is removed after an error.

    Readers see either the old file or the new one. If the process is killed, a hidden ``.{name}.*.tmp`` may remain.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    with replacing(file) as scratch:
        scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
