"""Whether kept work is the work that is asked for: what made it, part by part, and what to do where that differs.

A part is anything that a result depends on, under the name that messages use: ``systems.base``, ``first stage``,
``topics``, ``depth``. It is taken once, before the work begins, and again when it ends: what the work itself changed
(memos, counters, models that were opened) is recorded as such and does not count.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import KeptWorkError
from ..identity import Difference, differences
from .kinds import walk

Record = dict[str, Any]


class KeptWorkWarning(UserWarning):
    """Results are kept that depend on something whose state cannot be known."""


@dataclass(frozen=True)
class Refusal:
    """Kept work that something else made.

    Args:
        path: Where it lies.
        found: What differs, by part.
        what: What is wrong with it, in words.
    """

    path: Path
    found: Mapping[str, list[Difference]]
    what: str = "exists and is of other work"

    @property
    def why(self) -> str:
        """What differs, in words."""
        shown = []
        for part, found in self.found.items():
            whys: dict[str, list[str]] = {}
            for one in found:
                whys.setdefault(one.why, []).append(f"{part}.{one.path}" if one.path else part)
            shown += [f"{_some(places)}: {why}" for why, places in whys.items()]
        return "; ".join(shown)


class Work:
    """What a result is made by.

    Args:
        parts: What it depends on, by name: transformers, frames, arrays, files (as paths), numbers.
        certain: Which of them cannot be overridden, since what they are is known for sure: numbers and given data.
        reuse: Parts that count as unchanged, because the user says so.
        who: The function that the user called, for messages.
        taken: Trees that were taken in this call, by part.

    Raises:
        ValueError: ``reuse`` has a name that is not a part's.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        *,
        certain: Collection[str] = (),
        reuse: Collection[str] = (),
        who: str = "",
        taken: Mapping[str, Record] | None = None,
    ) -> None:
        self.parts = dict(parts)
        self.certain = frozenset(certain)
        self.reuse = frozenset(reuse)
        self.who = who
        self._walk = one = walk()
        known = dict(taken or {})
        self.trees: dict[str, Record] = {
            name: known[name] if name in known else one.tree(value) for name, value in self.parts.items()
        }
        self.imports = dict(one.imports)

    @property
    def reusable(self) -> list[str]:
        """The parts that ``reuse`` may name."""
        return [name for name in self.parts if name not in self.certain]

    def begun(self) -> Record:
        """What is recorded when the work begins, as JSON values."""
        return {
            "parts": {name: [tree] for name, tree in self.trees.items()},
            "changed": {},
            "imports": self.imports,
            "reused": [],
        }

    def refusal(
        self, path: Path, kept: Mapping[str, Any] | None, *, only: Collection[str] | None = None
    ) -> Refusal | None:
        """Why kept work is not this work; None where it is, or the user says that it is.

        Args:
            path: Where it lies.
            kept: What was recorded with it.
            only: The parts that are compared; None for all.
        """
        waved = self.reuse - self.certain
        differ = self._differences(kept).items()
        found = {part: found for part, found in differ if part not in waved and (only is None or part in only)}
        return Refusal(path, found) if found else None

    def check(
        self, path: Path, kept: Mapping[str, Any] | None, *, remedy: str, what: str = "exists and is of other work"
    ) -> None:
        """Refuses kept work that something else made.

        Args:
            path: Where it lies.
            kept: What was recorded with it.
            remedy: What to do, but for ``reuse``.
            what: What is wrong with it, in words.

        Raises:
            KeptWorkError: It is of other work.
        """
        found = self.refusal(path, kept)
        if found is not None:
            raise refused(self.who, [replace(found, what=what)], remedy=remedy, reusable=self.reusable)

    def going_on(self, kept: Record) -> Record:
        """What is recorded when kept work is used: other identities too, where the user overrode them."""
        waved = {
            part: found
            for part, found in self._differences(kept).items()
            if part in self.reuse and part in kept["parts"]
        }
        if not waved:
            return kept
        parts = {part: [*kept["parts"][part], *([self.trees[part]] if part in waved else [])] for part in kept["parts"]}
        reused = [
            {"part": part, "at": now(), "differs": [f"{d.path}: {d.why}" if d.path else d.why for d in found]}
            for part, found in waved.items()
        ]
        return {**kept, "parts": parts, "reused": [*kept["reused"], *reused]}

    def ended(self, kept: Record, only: Collection[str]) -> Record:
        """What is recorded when the work stops or ends: what it changed itself.

        Args:
            kept: What was recorded before.
            only: The parts that work can change.
        """
        again = walk(self._walk)
        parts, changed = dict(kept["parts"]), dict(kept["changed"])
        for name in only:
            before, after = self.trees[name], again.tree(self.parts[name])
            found = [] if before.get("unknown") else differences(before, after)
            if found:
                changed[name] = sorted({*changed.get(name, ()), *(one.path for one in found)})
            elif before["digest"] != after["digest"]:  # it was opened, and is known better now
                parts[name] = [after if tree["digest"] == before["digest"] else tree for tree in parts[name]]
        return {**kept, "parts": parts, "changed": changed}

    def notes(self, kept: Mapping[str, Any]) -> list[str]:
        """What somebody who uses kept work has to know of it."""
        told = [
            f"{one['part']} is not what made it ({'; '.join(one['differs'])}); reused on request, {one['at']}"
            for one in kept.get("reused", ())
        ]
        unseen = unseen_of(self.trees)
        if unseen:
            told.append(f"what cannot be known of it: {unseen}")
        for name, made in kept.get("imports", {}).items():
            if self.imports.get(name, made) != made:
                told.append(f"made with {name} {made}, now {self.imports[name]}")
        return told

    def warn(self, *, stacklevel: int = 3) -> None:
        """Warns, once, of what cannot be known."""
        unseen = unseen_of(self.trees)
        if unseen:
            warnings.warn(
                f"{self.who}: kept work is used again whatever becomes of {unseen}: its state cannot be read. If "
                f"results follow from it, let its owner say what they depend on, in a method results_depend_on().",
                KeptWorkWarning,
                stacklevel=stacklevel,
            )

    def _differences(self, kept: Mapping[str, Any] | None) -> dict[str, list[Difference]]:
        if not kept or "parts" not in kept:
            return {"its record": [Difference("", "does not say what made it")]}
        found: dict[str, list[Difference]] = {}
        for name in dict.fromkeys((*kept["parts"], *self.trees)):
            if name not in self.trees or name not in kept["parts"]:
                found[name] = [Difference("", "is new" if name in self.trees else "no longer exists")]
                continue
            ignoring = kept["changed"].get(name, ())
            each = [differences(old, self.trees[name], ignoring=ignoring) for old in kept["parts"][name]]
            if all(each):
                found[name] = each[-1]
        return found


def refused(who: str, refusals: Iterable[Refusal], *, remedy: str, reusable: Collection[str]) -> KeptWorkError:
    """The error that refuses kept work: all that differs, where, and the ways on."""
    places: dict[tuple[str, str], list[str]] = {}
    parts: dict[str, None] = {}
    for one in refusals:
        places.setdefault((one.what, one.why), []).append(str(one.path))
        parts |= dict.fromkeys(one.found)
    told = [f"{_some(paths)} {what}: {why}." for (what, why), paths in places.items()]
    ways = [remedy]
    if all(part in reusable for part in parts):
        ways.append(f"Or use it anyway, if what differs does not change a result: reuse={list(parts)!r}.")
    prefix = f"{who}: " if who else ""
    joined = f"{prefix}{told[0]}" if len(told) == 1 else "\n".join([f"{prefix}kept work is of other work.", *told])
    return KeptWorkError(f"{joined}{' ' if len(told) == 1 else chr(10)}{' '.join(ways)}")


def check_reuse(who: str, reuse: Any, parts: Collection[str]) -> tuple[str, ...]:
    """The names of ``reuse``.

    Raises:
        ValueError: One is not a part that can be reused.
    """
    names = (reuse,) if isinstance(reuse, str) else tuple(reuse)
    odd = [name for name in names if name not in parts]
    if odd:
        raise ValueError(
            f"{who}: reuse must name parts of the work that a refusal printed, of {', '.join(parts) or 'none'}, got "
            f"{odd[0]!r}."
        )
    return names


def unseen_of(trees: Mapping[str, Record]) -> str:
    """What cannot be known of some parts, in words; empty where all is known."""
    return ", ".join(
        f"{part}.{path} ({kind})" if path else f"{part} ({kind})"
        for part, tree in trees.items()
        for path, kind in tree.get("unseen", {}).items()
    )


def made_at(path: Path) -> str:
    """When a file was made."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def now() -> str:
    """The time, for records."""
    return time.strftime("%Y-%m-%d %H:%M")


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
