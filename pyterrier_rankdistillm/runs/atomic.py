"""Files that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..scratch import scratch_file, sync


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write to: it takes the target's place at the end, and vanishes after an error.

    Readers see the old file or the new one, also when the process is killed; what that leaves, the next writer of the
    target removes.
    """
    with scratch_file(target) as scratch:
        yield scratch
        sync(scratch)
        scratch.replace(target)


def write_json(file: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    with replacing(file) as scratch:
        scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
