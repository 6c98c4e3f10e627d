"""Evaluates finished runs, with ``pt.Experiment`` and ir-measures only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import Measure, nDCG

from .pooling import Pool

MAIN = nDCG @ 10
"""The measure that the paper reports, and by which first stages are recognised."""

CELL = {
    "setting": "object", "system": "object", "measure": "object", "value": "float64", "topics": "int64",
    "documents": "int64", "retrieved": "int64", "better": "float64", "worse": "float64", "p_value": "float64",
    "p_value_corrected": "float64", "significant": "object",
}  # fmt: skip
"""The columns of ``Reproduction.cells`` and their types."""


def parse(measures: str | Measure | Sequence[str | Measure]) -> tuple[Measure, ...]:
    """Measures as objects, without duplicates, nDCG@10 first.

    Raises:
        ValueError: A measure is not one of ir-measures.
    """
    given = [measures] if isinstance(measures, str | Measure) else measures
    return tuple(dict.fromkeys((MAIN, *map(_parse, given))))


def with_relevance(measures: Sequence[Measure], relevant: int) -> tuple[Measure, ...]:
    """The measures, where binary ones without a relevance level of their own get this one."""
    return tuple(
        measure(rel=relevant) if "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params else measure
        for measure in measures
    )


def evaluate(pooled: Pool, measures: Sequence[Measure], baseline: str | None = None) -> list[dict[str, Any]]:
    """Means over the topics, and tests against a baseline if there is something to test.

    Returns:
        One record per system and measure: ``system``, ``measure``, ``value``, ``topics``, ``better``, ``worse``,
        ``p_value``, ``p_value_corrected`` (Holm) and ``significant`` (None if nothing was tested).
    """
    tests: dict[str, Any] = {}
    if baseline is not None and len(pooled.runs) > 1:
        tests = {"baseline": baseline, "test": _paired_t_test, "correction": "holm"}
    averages = _experiment(pooled, measures, **tests)
    names = [str(measure) for measure in measures]
    return [
        {
            "system": row["name"],
            "measure": name,
            "value": row[name],
            "topics": len(pooled.topics),
            "better": row.get(f"{name} +"),
            "worse": row.get(f"{name} -"),
            "p_value": row.get(f"{name} p-value"),
            "p_value_corrected": row.get(f"{name} p-value corrected"),
            "significant": bool(row[f"{name} reject"]) if tests and row["name"] != baseline else None,
        }
        for row in averages.to_dict(orient="records")
        for name in names
    ]


def by_query(pooled: Pool, measures: Sequence[Measure]) -> pd.DataFrame:
    """Columns ``system``, ``qid``, ``measure`` and ``value``."""
    return _experiment(pooled, measures, perquery=True).rename(columns={"name": "system"})


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; 0 if a value is 0."""
    return float(np.exp(np.mean(np.log(values)))) if min(values) > 0 else 0.0


def _experiment(pooled: Pool, measures: Sequence[Measure], **options: Any) -> pd.DataFrame:
    systems: Mapping[str, Any] = {name: pt.Transformer.from_df(run) for name, run in pooled.runs.items()}
    experiment = cast(Any, pt.Experiment)  # its overloads do not accept keyword arguments from a mapping
    # Not validated: what the frames hold was checked when they were made.
    frame: pd.DataFrame = experiment(systems, pooled.topics, pooled.qrels, list(measures), validate="ignore", **options)
    return frame


def _paired_t_test(values: Any, baseline: Any) -> tuple[float, float]:
    """Like scipy's, but p is 1 if systems differ on no topic: NaN (0 / 0) would become significant by correction."""
    from scipy import stats  # type: ignore[import-untyped]  # slow to load, and only needed for tests

    if np.array_equal(values, baseline) or len(values) < 2:
        return 0.0, 1.0
    statistic, p_value = stats.ttest_rel(values, baseline)
    return float(statistic), float(p_value)


def _parse(measure: str | Measure) -> Measure:
    if isinstance(measure, Measure):
        return measure
    try:
        return ir_measures.parse_measure(measure)
    except (NameError, ValueError, SyntaxError) as error:
        raise ValueError(f"reproduce: measures must be ir-measures' measures, got {measure!r}: {error}.") from error
