"""The arguments of ``reproduce``, checked together, and values derived from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pyterrier as pt
from ir_measures import Measure

from ..checks import is_whole, whole
from ..extras import is_installed, missing
from ..runs.given import GivenRun
from .catalogue import DEPTH, FIRST_STAGE, Table, Task
from .comparison import MODEL_TOLERANCE, RUN_TOLERANCE
from .pooling import Mode
from .texts import wants_text

CONDENSED = "first stage, condensed"
"""The row for the first stage cut to the documents that have a text."""


@dataclass(frozen=True)
class Arguments:
    """The arguments of ``reproduce``; see there for their meaning.

    Raises:
        ValueError: Arguments are invalid or contradict each other. The message names all of them.
    """

    table: Table
    systems: dict[str, pt.Transformer | GivenRun | str]
    measures: tuple[Measure, ...]
    baseline: str | None
    mode: Mode
    depth: int
    published: dict[str, str]
    topics: Any
    qrels: Any
    text: Any
    condensed: bool
    folder: Path | None
    verbose: bool | None
    reuse: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", whole(self.depth))
        problems = [*self._problems_of_systems(), *self._problems_of_the_rest()]
        if problems:
            raise ValueError("\n".join(f"reproduce: {problem}" for problem in problems))

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that were asked for, of the table's."""
        wanted = self.only
        return tuple(t for t in self.table.tasks if wanted is None or t.name in wanted or t.corpus in wanted)

    @property
    def reusable(self) -> list[str]:
        """What ``reuse`` may name."""
        return [f"systems.{n}" for n, system in self.systems.items() if isinstance(system, pt.Transformer)] + [
            "first stage"
        ]

    @property
    def first_row(self) -> str:
        """The first stage among the systems that are compared."""
        return CONDENSED if self.condensed else FIRST_STAGE

    @property
    def tested_against(self) -> str | None:
        """The row that the others are tested against."""
        first = next(iter(self.systems), None)
        row = self.baseline or (FIRST_STAGE if len(self.systems) == 1 else first)
        return self.first_row if row == FIRST_STAGE else row

    @cached_property
    def wanting_text(self) -> frozenset[str]:
        """The systems that get texts."""
        live = {name: system for name, system in self.systems.items() if isinstance(system, pt.Transformer)}
        return frozenset(name for name, system in live.items() if wants_text(system))

    def published_as(self, system: str) -> str | None:
        """The published row that a system is compared with."""
        if system == FIRST_STAGE:
            return FIRST_STAGE
        model = getattr(self.systems.get(system), "model", None)
        candidates = (self.published.get(system), model if isinstance(model, str) else None, system)
        return next((row for row in candidates if row in self.table.systems), None)

    def tolerance(self, system: str) -> float:
        """The largest difference from a published value at which a row counts as reproduced."""
        return MODEL_TOLERANCE if isinstance(self.systems.get(system), pt.Transformer) else RUN_TOLERANCE

    def _problems_of_systems(self) -> Iterator[str]:
        for name in self.systems:
            if not isinstance(name, str) or not name.strip() or name in (FIRST_STAGE, CONDENSED):
                yield f"names of systems must be strings, and not {FIRST_STAGE!r}, got {name!r}. Rename it."
        files = [file_name(name) for name in self.systems if isinstance(name, str)]
        if len(set(files)) < len(files):
            yield f"names of systems must differ in letters and digits, got {', '.join(map(str, self.systems))}."

    def _problems_of_the_rest(self) -> Iterator[str]:
        rows = [FIRST_STAGE, *self.systems]
        if self.baseline not in (None, *rows):
            yield f"baseline must be one of {', '.join(map(str, rows))}, got {self.baseline!r}."
        if self.mode not in get_args(Mode):
            yield f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}."
        if not is_whole(self.depth, least=1) or self.depth > DEPTH:
            yield f"depth must be from 1 to {DEPTH}, got {self.depth!r}."
        for name, row in self.published.items():
            if name not in self.systems:
                yield f"published must have systems as keys, got {name!r}."
            if row not in self.table.systems:
                known = ", ".join(self.table.systems) or "none"
                yield f"published rows of {self.table.name} are {known}, got {row!r}."
        if self.condensed and self.text is None:
            yield "condensed=True ranks only the documents that text has, but text is None. Give a frame or a file."
        places = list(dict.fromkeys(name for task in self.table.tasks for name in (task.corpus, task.name)))
        if self.only is not None and not self.only:
            yield f"tasks must name some of {', '.join(places)}, got none."
        for name in self.only or ():
            if name not in places:
                yield f"tasks of {self.table.name} are {', '.join(places)}, got {name!r}."
        for part in self.reuse:
            if part not in self.reusable:
                yield f"reuse must name what an error printed, of {', '.join(self.reusable)}, got {part!r}."
        if self.folder is not None and not is_installed("pyarrow"):
            yield str(missing("pyarrow", "folder"))


def file_name(name: str) -> str:
    """A name in a form that can be a file name."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "unnamed"
