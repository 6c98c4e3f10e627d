"""Digests that tell contents apart; none of them guards against somebody who wants two to be alike."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from typing import Any


def md5_of_text(text: str) -> str:
    """The MD5 of a text, 32 hexadecimal digits."""
    return hashlib.md5(_bytes_of(text), usedforsecurity=False).hexdigest()


def blake2b_of(content: str | bytes, *, size: int = 16) -> str:
    """The BLAKE2b of some content, of ``size`` bytes, as hexadecimal digits."""
    return hashlib.blake2b(_bytes_of(content), digest_size=size).hexdigest()


def blake2b_of_parts(parts: Iterable[Any]) -> bytes:
    """The BLAKE2b of strings, arrays and bytes one after another, each with its length: 16 bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else b"" if part is None else part
        data = memoryview(content)
        digest.update(b"%d " % data.nbytes)
        with contextlib.suppress(TypeError, ValueError):
            data = data.cast("B") if data.nbytes else memoryview(b"")
        digest.update(data)
    return digest.digest()


def _bytes_of(content: str | bytes) -> bytes:
    return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
