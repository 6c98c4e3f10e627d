"""The result of a reproduction, as frames, as files, and in the forms of ``report``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..runs.atomic import replacing, write_json
from ..runs.records import RECORD, record
from . import report
from .comparison import DIFFERS, NOT_COMPARABLE, REPRODUCED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT, PER_QUERY = "result.json", "per_query.parquet"


@dataclass(frozen=True, repr=False, eq=False)
class Reproduction:
    """The result of ``reproduce``. It is printed as a table with its comparison.

    Args:
        name: The table that was reproduced, or the dataset that was evaluated.
        mode: How the tasks of a corpus were pooled.
        measures: The measures' names; nDCG@10 is the first.
        baseline: The system that the others are tested against; None if nothing was tested.
        cells: One row per setting, system and measure: ``value``, ``topics``, ``documents`` (ranked), ``retrieved``
            (by the first stage), ``better`` and ``worse`` (topics, compared with the baseline), ``p_value``,
            ``p_value_corrected`` (Holm, over the systems of the call) and ``significant``.
        comparison: Measured cells beside published ones; see ``comparison.compare``.
        per_query: One row per setting, system, topic and measure: ``setting``, ``system``, ``qid``, ``query``,
            ``measure``, ``value``.
        tasks: Like ``cells``, task by task, if a setting pools several tasks; else empty.
        not_run: ``task``, ``why`` and ``what to do`` for everything that could not be run.
        notes: What a reader of the numbers needs to know.
        provenance: How the numbers were made: models, files, settings, software and hardware.
    """

    name: str
    mode: str
    measures: tuple[str, ...]
    baseline: str | None
    cells: pd.DataFrame
    comparison: pd.DataFrame
    per_query: pd.DataFrame
    tasks: pd.DataFrame
    not_run: pd.DataFrame
    notes: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """Systems by settings; if there are several measures, columns also name the measure."""
        cells = self.cells
        columns = cells["setting"] if len(self.measures) == 1 else cells["setting"] + " " + cells["measure"]
        return report.wide(cells, columns, cells["value"]).rename_axis(columns=None)

    @property
    def agrees(self) -> bool | None:
        """Whether every cell that was run and has a published value was reproduced; None if there is no such cell."""
        statuses = set(self.comparison["status"])
        if statuses & {DIFFERS, NOT_COMPARABLE}:
            return False
        return True if REPRODUCED in statuses else None

    def to_markdown(self) -> str:
        """The table (best bold, second italic, * for significance), the comparison and the notes."""
        return report.markdown(self)

    def to_latex(self) -> str:
        """The table for a paper: booktabs, best bold, second underlined, * for significance."""
        return report.latex(self)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One self-contained page: table, comparison, differences by query, plot, and provenance.

        Args:
            path: A file to which the page is also written.

        Raises:
            ImportError: jinja2 or matplotlib is missing.
        """
        text = report.page(self)
        if path is not None:
            with replacing(Path(path).expanduser().absolute()) as scratch:
                scratch.write_text(text, encoding="utf-8")
        return text

    def plot(self) -> Figure:
        """nDCG@10 of the systems in every setting, measured and published.

        Raises:
            ImportError: matplotlib is missing.
        """
        return report.plot(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``result.json`` and ``per_query.parquet``, from which ``Reproduction.open`` restores the result.

        ``record.json`` beside them says what the numbers were made with, in the shape that all records have.
        """
        folder = Path(folder).expanduser()
        frames = {name: _records(getattr(self, name)) for name in _FRAMES}
        plain = {"name": self.name, "mode": self.mode, "measures": list(self.measures), "baseline": self.baseline}
        content = {**plain, **frames, "notes": list(self.notes), "provenance": self.provenance}
        with replacing(folder / PER_QUERY) as scratch:
            self.per_query.to_parquet(scratch, index=False)
        with replacing(folder / RESULT) as scratch:
            scratch.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        made = self.provenance
        names = ["table", "mode", "depth", "condensed", "significance"]
        settings: dict[str, Any] = {name: made[name] for name in names if name in made}
        write_json(
            folder / RECORD,
            {
                **record("reproduce", settings=settings, models=made.get("systems", {}), data=made.get("runs", [])),
                # of when it was made, which may not be when it is saved
                **{name: made[name] for name in ("versions", "hardware") if name in made},
            },
        )
        return folder

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Reproduction:
        """Reads what ``save`` wrote."""
        folder = Path(folder).expanduser()
        content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        frames = {name: _frame(content[name]) for name in _FRAMES}
        return cls(
            name=content["name"],
            mode=content["mode"],
            measures=tuple(content["measures"]),
            baseline=content["baseline"],
            per_query=pd.read_parquet(folder / PER_QUERY),
            notes=tuple(content["notes"]),
            provenance=content["provenance"],
            **frames,
        )

    def __str__(self) -> str:
        return report.text(self)

    def __repr__(self) -> str:
        return f"Reproduction({self.name!r}, agrees={self.agrees})"

    def _repr_html_(self) -> str:
        return report.fragment(self)


_FRAMES = ("cells", "comparison", "tasks", "not_run")


def _records(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame as JSON values, column by column, with their types."""
    values = frame.astype(object).where(frame.notna(), None)
    return {
        "columns": {str(column): str(frame[column].dtype) for column in frame.columns},
        "rows": [[value.item() if hasattr(value, "item") else value for value in row] for row in values.to_numpy()],
    }


def _frame(content: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame(content["rows"], columns=list(content["columns"]), dtype=object)
    # Texts are "str" in pandas 3 and "object" in pandas 2, and one version may read what the other has written.
    kinds = {name: kind for name, kind in content["columns"].items() if kind not in ("object", "str")}
    texts = [name for name, kind in content["columns"].items() if kind == "str"]
    return frame.astype(kinds).astype(dict.fromkeys(texts, str if texts else object))
