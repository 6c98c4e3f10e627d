"""MeasuredCell cells beside published ones: what was reproduced, what differs, and what does not compare, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from .catalogue import BASELINE, DEPTH, FIRST_STAGE, Table

RUN_TOLERANCE = 0.0005
"""For cells of run files: the effect of rounding to three digits."""
MODEL_TOLERANCE = 0.004
"""For cells of released weights that are scored again: their published values come from bf16-mixed runs."""

REPRODUCED, DIFFERS, NOT_COMPARABLE = "reproduced", "differs", "not comparable"
NOT_COMPARED, NOT_PUBLISHED, NOT_RUN = "not compared", "not published", "not run"

COLUMNS = [
    "setting", "system", "published as", "measured", "paper", "difference", "readme", "readme difference", "tolerance",
    "status", "reason", "significant", "paper significant",
]  # fmt: skip
_MARKS = ("significant", "paper significant")


@dataclass(frozen=True)
class MeasuredCell:
    """A measured nDCG@10, to be compared.

    Args:
        setting: First stage and task, corpus, or mean.
        system: Its row.
        published_as: The published row that it is compared with, if there is one.
        value: nDCG@10.
        tolerance: The largest difference that still counts as reproduced.
        significant: Whether it differs significantly from the baseline; None if that was not tested.
        mismatches: Why it is not comparable with the published cell.
        alike: Whether its tasks are pooled alike in both modes, so that it compares in both (if nothing else differs).
    """

    setting: str
    system: str
    published_as: str | None
    value: float
    tolerance: float
    significant: bool | None = None
    mismatches: tuple[str, ...] = ()
    alike: bool = False


@dataclass(frozen=True)
class Identified:
    """Which of the paper's first stages a run is.

    Args:
        name: The paper's name for it; None if it is not one of the paper's.
        problem: Why it is not one of the paper's; also None if nothing was published.
    """

    name: str | None
    problem: str | None = None


def identify(table: Table, name: str, place: str, value: float) -> Identified:
    """Finds out by nDCG@10 which of the paper's first stages a run is.

    Args:
        table: The table with the possible first stages.
        name: The user's name for it. If it is one of the paper's names, the run must be that first stage.
        place: The task, or the corpus if the table's settings are corpora.
        value: nDCG@10.
    """
    known: dict[str, float] = {}
    for cell in table.cells:
        stage, _, task = cell.setting.rpartition("/")
        if cell.system == FIRST_STAGE and place == (task if table.by != "corpus" else cell.setting):
            known["BM25" if table.by == "corpus" else stage] = cell.value
    if not known:
        return Identified(None)
    candidates = {name: known[name]} if name in known else known
    for candidate, published in candidates.items():
        if within(value - published, RUN_TOLERANCE):
            return Identified(candidate)
    theirs = ", ".join(f"{candidate} {published:.3f}" for candidate, published in candidates.items())
    return Identified(None, f"another first stage than the paper's ({value:.3f}; {theirs})")


def mismatches(
    *, first_stage: str | None, topics: Mapping[str, tuple[int, int]], depths: Sequence[int]
) -> tuple[str, ...]:
    """The reasons why measured cells are not comparable with published ones.

    Args:
        first_stage: The problem with the first stage, if there is one.
        topics: The actual and the expected number of topics, by task; the latter is 0 if it is not known.
        depths: The usual number of documents per topic, by task.
    """
    found = [first_stage] if first_stage else []
    odd = {task: counts for task, counts in topics.items() if counts[0] != counts[1]}
    if odd:
        there, wanted = (sum(counts) for counts in zip(*odd.values(), strict=True))
        found.append(f"{there} of {wanted} topics of {next(iter(odd)) if len(odd) == 1 else f'{len(odd)} tasks'}")
    # Small corpora and rare words also give shallower rankings than asked for, so only most rankings must be full.
    found += [f"depth {depth}, not {DEPTH}" for depth in sorted(set(depths)) if depth != DEPTH]
    return tuple(found)


def compare(
    table: Table, measured: Sequence[MeasuredCell], *, baseline: str | None = None, not_compared: str | None = None
) -> pd.DataFrame:
    """All cells, measured or published: first stages come first, and cells that were not run last.

    Args:
        table: The published cells.
        measured: The measured cells.
        baseline: The published row that was tested against. Marks of the paper stand beside others only where it and
            the systems that were tested are the paper's, since they were corrected over those.
        not_compared: Why measured cells that are not pooled alike are not compared; None if all are.

    Returns:
        The columns ``COLUMNS``, one row per cell.
    """
    tested: dict[str, set[str | None]] = {}
    for cell in measured:
        if cell.significant is not None:
            tested.setdefault(cell.setting, set()).add(cell.published_as)
    rows = []
    for cell in sorted(measured, key=lambda cell: cell.published_as != FIRST_STAGE):
        published = table.published(cell.published_as, cell.setting) if cell.published_as else {}
        row = {source: published_cell.value for source, published_cell in published.items()}
        differences = {source: cell.value - value for source, value in row.items()}
        status, reason = _status(cell, differences, not_compared)
        same_tests = baseline == BASELINE and tested.get(cell.setting) == _tested_in_paper(table, cell.setting)
        marked = same_tests and cell.significant is not None and "paper" in published
        rows.append({
            **row, "setting": cell.setting, "system": cell.system, "published as": cell.published_as,
            "measured": cell.value, "difference": differences.get("paper"),
            "readme difference": differences.get("readme"), "tolerance": cell.tolerance, "status": status,
            "reason": reason, "significant": cell.significant,
            "paper significant": published["paper"].significant if marked else None,
        })  # fmt: skip
    run = {(row["setting"], row["published as"]) for row in rows}
    left = dict.fromkeys((c.setting, c.system) for c in table.cells if (c.setting, c.system) not in run)
    for setting, system in left:
        published = table.published(system, setting)
        rows.append({
            "setting": setting, "system": system, "published as": system, "status": NOT_RUN, "reason": "",
            **{source: cell.value for source, cell in published.items()},
        })  # fmt: skip
    numbers = ["measured", "paper", "difference", "readme", "readme difference", "tolerance"]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    marks = {name: frame[name].astype(object).where(frame[name].notna(), None) for name in _MARKS}
    return frame.assign(**marks).astype(dict.fromkeys(numbers, float))


def _tested_in_paper(table: Table, setting: str) -> set[str]:
    """The systems that the paper's correction is over."""
    cells = (cell for cell in table.cells if (cell.source, cell.setting) == ("paper", setting))
    return {cell.system for cell in cells if cell.significant is not None and cell.system != BASELINE}


def within(difference: float, tolerance: float) -> bool:
    """Whether a difference is within a tolerance, up to floating-point rounding."""
    return abs(difference) <= tolerance + 1e-9


def _status(cell: MeasuredCell, differences: Mapping[str, float], not_compared: str | None) -> tuple[str, str]:
    if cell.published_as is None:
        return NOT_PUBLISHED, "; ".join(cell.mismatches)
    if not_compared and not (cell.alike and not cell.mismatches) and (differences or cell.mismatches):
        return NOT_COMPARED, not_compared
    if cell.mismatches:
        return NOT_COMPARABLE, "; ".join(cell.mismatches)
    if not differences:
        return NOT_PUBLISHED, ""
    agreeing = [source for source, difference in differences.items() if within(difference, cell.tolerance)]
    if not agreeing:
        return DIFFERS, ""
    return REPRODUCED, "" if len(agreeing) == len(differences) else f"within tolerance of the {agreeing[0]}'s value"
