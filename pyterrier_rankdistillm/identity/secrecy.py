"""Which strings are secrets, by the names that they go by."""

from __future__ import annotations

import re
from typing import Any

_SURE = re.compile(
    r"(^|[_.\- ])((api|access|secret|private|account|subscription|signing|encryption)[_\-]?keys?|apikey|secrets?"
    r"|password|passwd|passphrase|pwd|credentials?|authori[sz]ation|bearer"
    r"|(access|api|auth|bearer|hf|hub|id|oauth|refresh|secret|security|session|github|gitlab|slack|user|login)[_\-]?token)$",
    re.IGNORECASE,
)
_PERHAPS = re.compile(r"(^|[_.\-])(token|key|auth)$", re.IGNORECASE)
_LOOKS = re.compile(r"(?=\S*\d)(?=\S*[A-Za-z])[\w\-.~+/=]{16,}")


def is_secret(name: str, value: Any) -> bool:
    """Whether a value that goes by a name is a secret: such a string enters neither records nor digests.

    ``token``, ``key`` and ``auth`` may be anything (``sep_token``, ``sort_key``): there it has to look like one.
    """
    if type(value) not in (str, bytes) and type(value).__name__ not in ("SecretStr", "SecretBytes"):
        return False
    if _SURE.search(name):
        return True
    return type(value) is str and _PERHAPS.search(name) is not None and _LOOKS.fullmatch(value) is not None
