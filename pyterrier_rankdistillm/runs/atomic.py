"""Files that appear whole or not at all."""

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
    """A path beside ``target`` to write to: it takes the target's place at the end, and vanishes after an error.

    Readers see the old file or the new one, also when the process is killed; then a hidden ``.{name}.*.tmp`` may stay.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield scratch
        with scratch.open("r+b") as written:  # Windows flushes a writable handle only
            os.fsync(written.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    with replacing(file) as scratch:
        scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
