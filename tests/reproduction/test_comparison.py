"""Statuses of cells, on a literal table."""

from __future__ import annotations

import pytest

from pyterrier_rankdistillm.reproduction.catalogue import FIRST_STAGE, Cell, Table, Task
from pyterrier_rankdistillm.reproduction.comparison import (
    MODEL_TOLERANCE,
    RUN_TOLERANCE,
    MeasuredCell,
    compare,
    identify,
    mismatches,
)

TABLE = Table(
    "t",
    (Task("y19", "c"), Task("y20", "c")),
    (
        Cell("paper", FIRST_STAGE, "bm25/y19", 0.48, True),
        Cell("paper", FIRST_STAGE, "colbert/y19", 0.732, False),
        Cell("paper", "base", "bm25/y19", 0.72, False),
        Cell("paper", "large", "bm25/y19", 0.733, None),
        Cell("readme", "large", "bm25/y19", 0.72, None),
        Cell("paper", "other", "bm25/y19", 0.7, None),
    ),
)


def status(
    system: str, value: float, *why: str, setting: str = "bm25/y19", tolerance: float = MODEL_TOLERANCE
) -> tuple[str, str]:
    row = compare(TABLE, [MeasuredCell(setting, "mine", system, value, tolerance, mismatches=why)]).iloc[0]
    return row["status"], row["reason"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.72, "reproduced"), (0.724, "reproduced"), (0.716, "reproduced"), (0.7241, "differs"), (0.7159, "differs")],
)
def test_the_tolerance_is_inclusive(value: float, expected: str) -> None:
    assert status("base", value) == (expected, "")


def test_run_files_have_a_smaller_tolerance() -> None:
    assert status("base", 0.7204, tolerance=RUN_TOLERANCE)[0] == "reproduced"
    assert status("base", 0.7206, tolerance=RUN_TOLERANCE)[0] == "differs"


def test_one_of_two_published_sets_is_enough_and_said() -> None:
    assert status("large", 0.733) == ("reproduced", "within tolerance of the paper's value")
    assert status("large", 0.72) == ("reproduced", "within tolerance of the readme's value")
    assert status("large", 0.727) == ("differs", "")
    row = compare(TABLE, [MeasuredCell("bm25/y19", "large", "large", 0.733, MODEL_TOLERANCE)]).iloc[0]
    assert (row["difference"], row["readme difference"]) == (pytest.approx(0), pytest.approx(0.013))


def test_a_cell_that_is_right_by_chance_is_not_reproduced() -> None:
    assert status("base", 0.72, "42 of 43 topics of y19") == ("not comparable", "42 of 43 topics of y19")
    assert status("base", 0.72, "depth 50, not 100", "x") == ("not comparable", "depth 50, not 100; x")


def test_what_was_not_published_or_not_run() -> None:
    found = compare(TABLE, [MeasuredCell("bm25/y19", "mine", None, 0.5, MODEL_TOLERANCE)])
    assert found["status"].tolist() == ["not published", *["not run"] * 5]
    assert found["published as"].tolist()[1:] == [FIRST_STAGE, FIRST_STAGE, "base", "large", "other"]
    assert found[found["system"] == "large"][["paper", "readme"]].to_numpy().tolist() == [[0.733, 0.72]]


def test_first_stages_come_first() -> None:
    found = compare(
        TABLE,
        [
            MeasuredCell("bm25/y19", "mine", "base", 0.72, 0.004),
            MeasuredCell("bm25/y19", FIRST_STAGE, FIRST_STAGE, 0.48, 0.0005),
        ],
    )
    assert found["system"].tolist()[:2] == [FIRST_STAGE, "mine"]


BASE, SMALL = "webis/monoelectra-base", "small"
TESTED = Table(
    "t",
    (Task("y19", "c"),),
    tuple(
        Cell("paper", name, "bm25/y19", 0.7, mark)
        for name, mark in ((FIRST_STAGE, True), (BASE, False), (SMALL, False))
    ),
)


@pytest.mark.parametrize(
    ("baseline", "systems", "marks"),
    [
        (BASE, [FIRST_STAGE, SMALL], [True, False, None]),
        (SMALL, [FIRST_STAGE, SMALL], [None, None, None]),  # another baseline
        (BASE, [FIRST_STAGE], [None, None]),  # corrected over fewer
        (BASE, [FIRST_STAGE, SMALL, None], [None, None, None, None]),  # over more
        (None, [FIRST_STAGE, SMALL], [None, None, None]),
    ],
)
def test_the_paper_s_marks_stand_beside_those_of_the_same_tests_only(
    baseline: str | None, systems: list[str | None], marks: list[bool | None]
) -> None:
    cells = [MeasuredCell("bm25/y19", str(name), name, 0.7, 0.004, significant=True) for name in systems]
    cells.append(MeasuredCell("bm25/y19", BASE, BASE, 0.7, 0.004))
    found = compare(TESTED, cells, baseline=baseline).set_index("system")["paper significant"]
    assert [found[str(name)] for name in (*systems, BASE)] == marks


def test_what_is_not_held_against_published_cells() -> None:
    found = compare(TABLE, [MeasuredCell("bm25/y19", "mine", "base", 0.1, 0.004)], not_compared="because")
    assert found["status"].iloc[0] == "not compared"
    assert found["reason"].iloc[0] == "because"


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("x", 0.4796, "bm25"),
        ("bm25", 0.4796, "bm25"),
        ("x", 0.7316, "colbert"),
        ("x", 0.4794, None),
        ("bm25", 0.732, None),  # its name says otherwise
    ],
)
def test_first_stages_are_told_by_their_value(name: str, value: float, found: str | None) -> None:
    identified = identify(TABLE, name, "y19", value)
    assert identified.name == found
    assert (identified.problem is None) == (found is not None)
    assert found or "another first stage than the paper's" in str(identified.problem)


def test_a_task_without_published_first_stage_has_no_problem() -> None:
    assert identify(TABLE, "x", "y20", 0.5).problem is None


def test_mismatches_are_all_named() -> None:
    found = mismatches(first_stage="another", topics={"a": (43, 43), "b": (5, 54)}, depths=[100, 50])
    assert found == ("another", "5 of 54 topics of b", "depth 50, not 100")
    assert mismatches(first_stage=None, topics={"a": (3, 4), "b": (5, 6)}, depths=[]) == ("8 of 10 topics of 2 tasks",)
