"""Where two trees of ``Walk.tree`` differ."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """One part that is another.

    Args:
        path: Which, from the outside in, joined by dots; empty for the whole.
        why: What is different, in words.
    """

    path: str
    why: str


def differences(old: Tree, new: Tree, *, ignoring: Collection[str] = ()) -> list[Difference]:
    """Where two values differ: the innermost parts that are told apart.

    Args:
        old: The one that was kept.
        new: The one that is given.
        ignoring: Paths of parts that do not count.
    """
    if new.get("unknown") or old.get("unknown"):
        what = ", ".join(sorted(set((new if new.get("unknown") else old).get("unseen", {}).values())))
        return [Difference("", f"what {what} computes cannot be known")]
    found = list(_differences(old, new, "", _other_python(old)))
    return [d for d in found if not any(d.path == path or d.path.startswith(f"{path}.") for path in ignoring)]


def _differences(old: Tree, new: Tree, path: str, python: str | None) -> Iterator[Difference]:
    if old["digest"] == new["digest"]:
        return
    olds, news = old.get("parts"), new.get("parts")
    if olds is None or news is None or old.get("what") != new.get("what"):
        yield Difference(path, _why(old, new, python))
        return
    if old.get("either") and any(olds[name]["digest"] == news[name]["digest"] for name in olds.keys() & news.keys()):
        return
    explained = False
    for name in dict.fromkeys((*olds, *news)):
        inside = f"{path}.{name}" if path else name
        if name not in olds or name not in news:
            yield Difference(inside, "is new" if name in news else "no longer exists")
        elif olds[name]["digest"] != news[name]["digest"]:
            yield from _differences(olds[name], news[name], inside, python)
        else:
            continue
        explained = True
    if not explained:
        yield Difference(path, _why(old, new, python))


def _why(old: Tree, new: Tree, python: str | None) -> str:
    if python is not None and old.get("code") and new.get("code"):
        now = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"made under Python {python}; code cannot be compared under {now}"
    if "value" in old or "value" in new:
        shown = [json.dumps(tree["value"]) if "value" in tree else "something else" for tree in (old, new)]
        return f"{shown[0].strip(chr(34))}, now {shown[1].strip(chr(34))}"
    return "is another"


def _other_python(old: Tree) -> str | None:
    made = old.get("python")
    return None if made in (None, f"{sys.version_info.major}.{sys.version_info.minor}") else str(made)
