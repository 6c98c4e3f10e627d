"""Shows a reproduction as text, Markdown, LaTeX, an HTML page, or a plot."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from ..extras import require
from .arguments import CONDENSED
from .catalogue import FIRST_STAGE
from .comparison import DIFFERS, NOT_COMPARABLE, NOT_PUBLISHED, NOT_RUN, REPRODUCED
from .evaluation import MAIN
from .systems import left_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .result import Reproduction

_WIDE = 5  # columns; wider tables are transposed, so that settings become rows
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": "$\\sim$",
    "^": r"\^{}",
}


@dataclass(frozen=True)
class Entry:
    """A number in a printed table.

    Args:
        text: The value with three digits; empty if nothing was measured.
        place: 1 for the best of its setting, 2 for the second best, else 0. Equal digits share a place.
        significant: Whether it differs significantly from the baseline.
    """

    text: str = ""
    place: int = 0
    significant: bool = False

    @property
    def marked(self) -> str:
        """The number, with a star if it is significant."""
        return f"{self.text}*" if self.significant else self.text


@dataclass(frozen=True)
class Grid:
    """A table as it is printed.

    Args:
        corner: The header of the column of row names.
        header: The columns' names.
        rows: The name and the entries of each row.
    """

    corner: str
    header: list[str]
    rows: list[tuple[str, list[Entry]]]

    def turned(self) -> Grid:
        """The transposed table."""
        names = [name for name, _ in self.rows]
        columns = [[entries[i] for _, entries in self.rows] for i in range(len(self.header))]
        return Grid("setting", names, list(zip(self.header, columns, strict=True)))


def row_names(cells: pd.DataFrame) -> dict[str, str]:
    """The names of the systems' rows, which say whether a system ranked only a part of the documents."""
    part = set(cells["system"][cells["documents"] < cells["retrieved"]])
    return {name: f"{name} (condensed)" if name in part - {CONDENSED} else name for name in cells["system"].unique()}


def grid(result: Reproduction) -> Grid:
    """The numbers of a result, ready to print."""
    entries: dict[tuple[str, str], dict[str, Entry]] = {}
    for (setting, measure), cells in result.cells.groupby(["setting", "measure"], sort=False):
        # The whole first stage does not compete with systems that ranked only a part of it.
        condensed = CONDENSED in set(cells["system"])
        shown = {row["system"]: f"{row['value']:.3f}" for row in cells.to_dict("records")}
        rivals = {text for system, text in shown.items() if not (condensed and system == FIRST_STAGE)}
        places = {text: place for place, text in enumerate(sorted(rivals, key=float, reverse=True)[:2], start=1)}
        entries[str(setting), str(measure)] = {
            row["system"]: Entry(
                text=shown[row["system"]],
                place=0 if condensed and row["system"] == FIRST_STAGE else places.get(shown[row["system"]], 0),
                significant=row["significant"] is True,
            )
            for row in cells.to_dict("records")
        }
    several_settings = len({setting for setting, _ in entries}) > 1
    several_measures = len(result.measures) > 1
    header = [
        f"{setting} {measure}" if several_settings and several_measures else measure if several_measures else setting
        for setting, measure in entries
    ]
    names = row_names(result.cells)
    rows = [(names[name], [column.get(name, Entry()) for column in entries.values()]) for name in names]
    found = Grid("system", header, rows)
    return found.turned() if len(header) > _WIDE else found


def caption(result: Reproduction) -> str:
    """A caption that says what the numbers are."""
    topics = sorted({int(n) for n in result.cells["topics"]})
    counts = f"{topics[0]} topics" if len(topics) == 1 else f"{topics[0]} to {topics[-1]} topics"
    how = f", tasks pooled {result.mode.replace('_', ' ')}" if not result.tasks.empty else ""
    test = f"; * differs from {result.baseline} (paired t-test, Holm, alpha 0.05)" if result.baseline else ""
    return f"{result.name}: {', '.join(result.measures)} over {counts}{how}{test}."


def outcome(result: Reproduction) -> str:
    """``"no"`` where a cell differs from its published ones; ``"in part"`` where some cannot be compared; or ``"yes"``.

    ``"nothing"`` where no cell can be compared.
    """
    statuses = set(result.comparison["status"])
    if DIFFERS in statuses:
        return "no"
    if REPRODUCED not in statuses:
        return "nothing"
    return "in part" if NOT_COMPARABLE in statuses else "yes"


def verdict(result: Reproduction) -> str:
    """One sentence on how many cells agree with the published ones."""
    counts = result.comparison["status"].value_counts()
    said = ", ".join(f"{counts[status]} {status}" for status in counts.index if status != NOT_RUN)
    left = f"; {counts[NOT_RUN]} published cells were not run" if NOT_RUN in counts else ""
    agrees = {
        "yes": "Everything that was run and has a published cell was reproduced",
        "no": "Not everything that was run was reproduced",
        "in part": "Everything that can be compared with published cells was reproduced",
        "nothing": "Nothing that was run can be compared with published cells",
    }[outcome(result)]
    return f"{agrees} ({said}{left})." if said else f"{agrees}."


def compared(result: Reproduction) -> list[dict[str, str]]:
    """The rows of the comparison that were run, as they are printed."""
    run = result.comparison[result.comparison["status"] != NOT_RUN]
    return [
        {
            "setting": row["setting"],
            "system": row["system"],
            "measured": _number(row["measured"]),
            "paper": _number(row["paper"]),
            "difference": _number(row["difference"], "+.4f"),
            "readme": _number(row["readme"]),
            "readme difference": _number(row["readme difference"], "+.4f"),
            "tolerance": _number(row["tolerance"], ".4f") if row["status"] != NOT_PUBLISHED else "",
            "status": row["status"],
            "reason": row["reason"],
        }
        for row in run.to_dict("records")
    ]


def text(result: Reproduction) -> str:
    """For a terminal."""
    found = grid(result)
    lines = [[found.corner, *found.header], *([name, *(e.marked for e in entries)] for name, entries in found.rows)]
    rows = compared(result)
    columns = _used_columns(rows)
    return "\n".join([
        caption(result), "", *_aligned(lines), "",
        *_aligned([columns, *([row[name] for name in columns] for row in rows)]), "",
        verdict(result), *_not_run(result), *(f"- {note}" for note in result.notes),
    ])  # fmt: skip


def markdown(result: Reproduction) -> str:
    """GitHub's Markdown: best bold, second italic."""
    found = grid(result)
    wrap = {0: "{}", 1: "**{}**", 2: "*{}*"}
    rows = compared(result)
    columns = _used_columns(rows)
    return "\n".join([
        *_pipes([found.corner, *found.header],
                [[name, *(wrap[e.place].format(e.text) + ("\\*" if e.significant else "") for e in entries)]
                 for name, entries in found.rows]),
        "", caption(result).replace("*", "\\*"), "",
        *_pipes(columns, [[row[name] for name in columns] for row in rows]), "",
        verdict(result), "", *(f"- {line}" for line in [*_not_run(result), *result.notes]),
    ]).rstrip() + "\n"  # fmt: skip


def latex(result: Reproduction) -> str:
    """For ``booktabs``: best bold, second underlined."""
    found = grid(result)
    wrap = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
    body = []
    for name, entries in found.rows:
        numbers = (wrap[e.place].format(e.text) + ("$^{*}$" if e.significant else "") for e in entries)
        body.append(" & ".join([_tex(name), *numbers]))
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption(result))}}}",
        rf"\begin{{tabular}}{{l{'c' * len(found.header)}}}", r"\toprule",
        " & ".join(_tex(name) for name in (found.corner, *found.header)) + r" \\", r"\midrule",
        *(rf"{line} \\" for line in body), r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]) + "\n"  # fmt: skip


def fragment(result: Reproduction) -> str:
    """For a notebook."""
    found = grid(result)
    wrap = {0: "{}", 1: "<b>{}</b>", 2: "<u>{}</u>"}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (found.corner, *found.header))
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(f"<td>{wrap[e.place].format(e.marked)}</td>" for e in entries)
        + "</tr>"
        for name, entries in found.rows
    )
    lines = [caption(result), verdict(result), *_not_run(result), *result.notes]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" + "".join(
        f"<p>{html.escape(line)}</p>" for line in lines
    )


def page(result: Reproduction) -> str:
    """One self-contained HTML page."""
    jinja2 = require("jinja2", "The page")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((resources.files(__package__) / "report.html").read_text(encoding="utf-8"))
    left = result.comparison[result.comparison["status"] == NOT_RUN]
    rows = compared(result)
    return cast(
        str,
        template.render(
            result=result,
            grid=grid(result),
            caption=caption(result),
            verdict=verdict(result),
            outcome=outcome(result),
            compared=rows,
            columns=_used_columns(rows),
            left=left.to_dict("records"),
            number=_number,
            tasks=task_rows(result),
            panels=list(panels(result)),
            differences=list(differences(result)),
            not_run=_not_run(result),
            provenance=_flat(result.provenance),
        ),
    )


def plot(result: Reproduction) -> Figure:
    """One panel per setting: dots for measured values, open diamonds for published ones."""
    require("matplotlib", "The plot")
    from matplotlib.figure import Figure

    drawn = list(panels(result))
    columns = min(3, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    height = 0.9 + 0.32 * max(len(panel["rows"]) for panel in drawn)
    figure = Figure(figsize=(1.5 + 3.2 * columns, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel, ax in zip(drawn, axes, strict=False):
        names = [row["system"] for row in panel["rows"]]
        places = range(len(names))
        ax.plot([row["measured"] for row in panel["rows"]], places, "o", color="C0", label="measured", zorder=3)
        for label, marker, key in (("paper", "D", "paper"), ("readme", "s", "readme")):
            there = [
                (row[key], place) for row, place in zip(panel["rows"], places, strict=True) if row[key] is not None
            ]
            if there:
                values, where = zip(*there, strict=True)
                ax.plot(values, where, marker, ls="", mfc="none", mec="C1", ms=9, label=label)
        for row, place in zip(panel["rows"], places, strict=True):
            ax.annotate(
                _number(row["measured"]), (row["measured"], place), xytext=(0, 7), textcoords="offset points",
                ha="center", fontsize="small",
            )  # fmt: skip
        ax.set(
            xlim=(panel["low"], panel["high"]),
            title=panel["setting"],
            xlabel=str(MAIN),
            yticks=list(places),
            yticklabels=names,
            ylim=(len(names) - 0.5, -0.5),
        )
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(drawn) :]:
        ax.set_visible(False)
    labelled = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def task_rows(result: Reproduction) -> list[tuple[str, list[str]]]:
    """nDCG@10 task by task, in the order of the systems."""
    main = result.tasks[result.tasks["measure"] == str(MAIN)]
    rows = main.groupby("task", sort=False)
    return [(str(task), [_number(value) for value in cells["value"]]) for task, cells in rows]


def panels(result: Reproduction) -> Iterator[dict[str, Any]]:
    """What is drawn for each setting: the values; and ``low`` and ``high``, which are the same for all."""
    run = result.comparison[result.comparison["status"] != NOT_RUN]
    names = row_names(result.cells)
    keys = ["measured", "paper", "readme"]
    low, high = run[keys].min().min(), run[keys].max().max()
    margin = max(0.01, 0.08 * (high - low))
    for setting, rows in run.groupby("setting", sort=False):
        records: list[dict[str, Any]] = [
            {"system": names[row["system"]], **{key: None if pd.isna(row[key]) else row[key] for key in keys}}
            for row in rows.to_dict("records")
        ]
        yield {
            "setting": setting,
            "rows": records,
            "low": max(0.0, low - margin),
            "high": min(1.0, high + margin),
        }


def differences(result: Reproduction) -> Iterator[dict[str, Any]]:
    """For each setting, the systems' differences by topic: from the first stage, and from the baseline."""
    main = result.per_query[result.per_query["measure"] == str(MAIN)]
    for setting, rows in main.groupby("setting", sort=False):
        values = rows.pivot_table(index="qid", columns="system", values="value", aggfunc="first")
        queries = dict(zip(rows["qid"], rows["query"], strict=True))
        first = CONDENSED if CONDENSED in values.columns else FIRST_STAGE
        order = [name for name in row_names(result.cells) if name in values.columns]
        systems = [name for name in order if name not in (FIRST_STAGE, CONDENSED)]
        pairs = [(name, first) for name in systems]
        if result.baseline in systems:
            pairs += [(name, str(result.baseline)) for name in systems if name != result.baseline]
        charts = [_chart(values[name] - values[other], name, other, values, queries) for name, other in pairs]
        topics = [
            {"qid": qid, "query": queries[qid], "values": [f"{values.loc[qid, name]:.3f}" for name in order]}
            for qid in sorted(values.index.tolist(), key=_by_number)
        ]
        yield {"setting": setting, "charts": charts, "systems": order, "topics": topics}


def _chart(
    change: pd.Series[float], system: str, other: str, values: pd.DataFrame, queries: Mapping[str, str]
) -> dict[str, Any]:
    change = change.sort_values(ascending=False, kind="stable")
    return {
        "title": f"{system} − {other}",  # noqa: RUF001
        "better": int((change > 0).sum()),
        "worse": int((change < 0).sum()),
        "equal": int((change == 0).sum()),
        "mean": f"{change.mean():+.3f}",
        "most": f"{change.abs().max():.3f}",
        "scale": max(0.01, round(float(change.abs().max()), 4)),
        "bars": [
            {
                "change": value,
                "title": f"{queries[qid]} ({qid}): {values.loc[qid, other]:.3f} to {values.loc[qid, system]:.3f}",
            }
            for qid, value in zip(change.index.tolist(), change.tolist(), strict=True)
        ],
    }


def _by_number(qid: str) -> tuple[str, int, str]:
    """Sorts topics by their numbers, if they have any."""
    task, _, number = qid.rpartition(":")
    return (task, int(number), "") if number.isdecimal() else (task, -1, number)


def _number(value: Any, form: str = ".3f") -> str:
    return "" if value is None or pd.isna(value) else format(value, form)


def _used_columns(rows: list[dict[str, str]]) -> list[str]:
    """The columns of the comparison that are not empty."""
    return [name for name in rows[0] if any(row[name] for row in rows)] if rows else []


def _not_run(result: Reproduction) -> list[str]:
    return left_out(result.not_run[["task", "why", "what to do"]].itertuples(index=False, name=None))


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{value:<{width}}" for value, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]


def _pipes(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [
        [_cell(value) for value in header],
        ["---"] * len(header),
        *([_cell(value) for value in row] for row in rows),
    ]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: str) -> str:
    """A text as a cell of a Markdown table: on one line, and without tags of its own."""
    return " ".join(value.split()).replace("|", "\\|").replace("<", "&lt;")


def _tex(value: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(value.split()))


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested values as lines of name and text."""
    if isinstance(value, Mapping):
        items = [(f"{name} {key}".strip(), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [(f"{name} {place}", item) for place, item in enumerate(value, start=1)]
    else:
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return [] if value is None or shown == "" else [(name, shown)]
    return [line for key, item in items for line in _flat(item, key)]
