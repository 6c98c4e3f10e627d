"""How a training went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..extras import require
from ..notebook import card, curve, finite
from .settings import Settings, Stage

_HERE = ("folder", "resume", "verbose", "report_to", "device")
"""Settings of where and how it was run, which say nothing of what came out."""


@dataclass(frozen=True, repr=False)
class Training:
    """How a training went.

    Args:
        stage: ``"finetune"`` or ``"distill"``.
        losses: The loss or losses, in readable form.
        settings: All settings.
        queries: The number of queries that were trained on.
        left_out: The number of queries that were left out, by reason; of several runs, that of their rankings.
        log: Columns ``step``, ``loss`` (mean per list since the row before), ``learning_rate`` and, with a validation,
            the measure; NaN where a step has none.
        best_step: The step whose weights were kept; None without a validation.
        steps: The number of optimiser steps made.
        about: Where the data came from: ``teacher``, ``rankings`` and ``texts``.
        seconds: Wall-clock time of this process, from the first step to the last.
        notes: What there is to know about kept work that was used.
        student: What the training started from.
        lists: The number of lists of an epoch: one per query and run.
    """

    stage: Stage
    losses: str
    settings: Settings
    queries: int
    left_out: Mapping[str, int]
    log: pd.DataFrame
    best_step: int | None
    steps: int
    seconds: float
    about: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    student: str = ""
    lists: int = 0

    @property
    def table(self) -> pd.DataFrame:
        """The summary: columns ``what`` and ``value``."""
        measure = self.settings.measure
        lines: list[tuple[str, Any]] = [("student", self.student)] if self.student else []
        lines += [(name, self.about[name]) for name in ("teacher", "rankings", "texts") if name in self.about]
        lines += [("loss", self.losses), ("queries", self.queries)]
        lines += [("lists per epoch", self.lists)] if self.lists > self.queries else []
        lines += [(f"left out: {reason}", number) for reason, number in self.left_out.items()]
        lines += [("steps", self.steps), ("lists per step", self.settings.batch_size)]
        loss = self.log["loss"].dropna()
        if len(loss):
            lines += [("first loss", f"{loss.iloc[0]:.4f}"), ("last loss", f"{loss.iloc[-1]:.4f}")]
        if measure in self.log:
            values = self.log[["step", measure]].dropna()
            at = values["step"] == self.best_step
            lines += [
                (f"{measure} before", f"{values[measure].iloc[0]:.4f}"),
                (f"{measure} best, kept", f"{values.loc[at, measure].iloc[-1]:.4f} at step {self.best_step}"),
                (f"{measure} last", f"{values[measure].iloc[-1]:.4f} at step {values['step'].iloc[-1]}"),
            ]
        lines.append(("seconds", f"{self.seconds:.0f}"))
        lines += [("note", note) for note in self.notes]
        return pd.DataFrame(lines, columns=["what", "value"])

    def as_record(self) -> dict[str, Any]:
        """What a published checkpoint says of its training, as JSON values: settings, data, validation, time."""
        settings = {name: value for name, value in self.settings.as_dict().items() if name not in _HERE}
        measured = None
        if self.settings.measure in self.log:
            values = self.log[["step", self.settings.measure]].dropna().set_index("step")[self.settings.measure]
            measured = {
                "measure": self.settings.measure,
                "before": float(values.iloc[0]),
                "kept": None if self.best_step is None else float(values.loc[self.best_step]),
                "step": self.best_step,
            }
        return {
            "stage": self.stage, "loss": self.losses, "settings": settings, "data": dict(self.about),
            "queries": self.queries, "lists per epoch": self.lists, "left out": dict(self.left_out),
            "steps": self.steps, "validation": measured, "seconds": round(self.seconds, 1),
        }  # fmt: skip

    def plot(self) -> Any:
        """Plots the loss and, with a validation, the measure against steps.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: Without matplotlib.
        """
        figure_type = require("matplotlib.figure", "Training.plot").Figure
        curves = [("loss", "training loss")]
        if self.settings.measure in self.log:
            curves.append((self.settings.measure, f"validation {self.settings.measure}"))
        figure = figure_type(figsize=(5 * len(curves), 3.2), layout="constrained")
        for place, (column, label) in enumerate(curves, start=1):
            axes = figure.add_subplot(1, len(curves), place)
            points = self.log[["step", column]].dropna()
            axes.plot(points["step"], points[column], marker="o" if column != "loss" else None, markersize=4)
            if column != "loss" and self.best_step is not None:
                axes.axvline(self.best_step, color="0.6", linestyle=":", label="kept")
                axes.legend(frameon=False)
            axes.set_xlabel("step")
            axes.set_ylabel(label)
            axes.grid(color="0.9")
            axes.spines[["top", "right"]].set_visible(False)
        return figure

    def __str__(self) -> str:
        return self.table.to_string(index=False, header=False)

    def __repr__(self) -> str:
        return f"Training({self.stage}, {self.losses}, {self.steps} steps)"

    def _repr_html_(self) -> str:
        measure = self.settings.measure
        drawn = [("loss", "training loss", None), (measure, f"validation {measure}", self.best_step)]
        figures = []
        for column, label, mark in drawn:
            points = finite(self.log[["step", column]].itertuples(index=False)) if column in self.log else []
            if len(points) > 1:
                figures.append(curve(points, label, mark=mark, dots=column == measure))
        title = {"finetune": "Fine-tuning", "distill": "Distillation"}[self.stage]
        return card(title, self.table.itertuples(index=False), figures=figures)
