"""Shows a reproduction as text, Markdown, LaTeX, an HTML page, or a plot."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
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

    def marked(self, best: str, second: str, star: str) -> str:
        """The number with its marks: ``best`` and ``second`` hold it, ``star`` follows if it is significant."""
        return ("{}", best, second)[self.place].format(self.text) + (star if self.significant else "")


def row_names(cells: pd.DataFrame) -> dict[str, str]:
    """The names of the systems' rows, which say whether a system ranked only a part of the documents."""
    part = set(cells["system"][cells["documents"] < cells["retrieved"]])
    return {name: f"{name} (condensed)" if name in part - {CONDENSED} else name for name in cells["system"].unique()}


def wide(cells: pd.DataFrame, columns: pd.Series[str], values: Iterable[Any]) -> pd.DataFrame:
    """Systems by ``columns``, both in the order of the cells, and systems by the names of their rows."""
    found = cells.assign(column=columns, value=list(values)).pivot_table(
        index="system", columns="column", values="value", sort=False, aggfunc="first"
    )
    found = found.reindex(index=cells["system"].unique(), columns=columns.unique())
    return found.rename(index=row_names(cells)).rename_axis(columns="setting")


def grid(result: Reproduction) -> pd.DataFrame:
    """The table as it is printed: an ``Entry`` by system and setting, or by setting and system if settings are many."""
    cells = result.cells
    by = [cells["setting"], cells["measure"]]
    # The whole first stage does not compete with systems that ranked only a part of it.
    condensed = (cells["system"] == CONDENSED).groupby(by).transform("any")
    texts = cells["value"].map("{:.3f}".format)
    rivals = texts[~condensed | (cells["system"] != FIRST_STAGE)].astype(float)
    places = rivals.groupby(by).rank(method="dense", ascending=False).reindex(cells.index)
    entries = [
        Entry(text, int(place) if place <= 2 else 0, significant is True)
        for text, place, significant in zip(texts, places, cells["significant"].tolist(), strict=True)
    ]
    columns = cells["setting"] + " " + cells["measure"] if len(set(cells["setting"])) > 1 else cells["measure"]
    found = wide(cells, cells["setting"] if len(result.measures) == 1 else columns, entries)
    whole: pd.DataFrame = found.apply(lambda column: column.map(lambda it: it if isinstance(it, Entry) else Entry()))
    return whole.T if len(whole.columns) > _WIDE else whole


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


def compared(result: Reproduction) -> pd.DataFrame:
    """The rows of the comparison that were run, by setting, as they are printed; without empty columns."""
    run = result.comparison[result.comparison["status"] != NOT_RUN]
    tolerance = run["tolerance"].where(run["status"] != NOT_PUBLISHED)
    rows = pd.DataFrame({
        "system": run["system"],
        "measured": run["measured"].map(_number),
        "paper": run["paper"].map(_number),
        "difference": run["difference"].map(_signed),
        "readme": run["readme"].map(_number),
        "readme difference": run["readme difference"].map(_signed),
        "tolerance": tolerance.map(lambda value: _number(value, ".4f")),
        "status": run["status"],
        "reason": run["reason"],
    }).set_index(pd.Index(run["setting"], name="setting"))  # fmt: skip
    return rows.loc[:, (rows != "").any()]


def text(result: Reproduction) -> str:
    """For a terminal."""
    return "\n".join([
        caption(result), "", *_aligned(_marked(result, "{}", "{}", "*")), "", *_aligned(compared(result)), "",
        verdict(result), *_not_run(result), *(f"- {note}" for note in result.notes),
    ])  # fmt: skip


def markdown(result: Reproduction) -> str:
    """GitHub's Markdown: best bold, second italic."""
    return "\n".join([
        *_pipes(_marked(result, "**{}**", "*{}*", "\\*")), "", caption(result).replace("*", "\\*"), "",
        *_pipes(compared(result)), "",
        verdict(result), "", *(f"- {line}" for line in [*_not_run(result), *result.notes]),
    ]).rstrip() + "\n"  # fmt: skip


def latex(result: Reproduction) -> str:
    """For ``booktabs``: best bold, second underlined."""
    header, *rows = _lines(_marked(result, r"\textbf{{{}}}", r"\underline{{{}}}", "$^{*}$", _tex))
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption(result))}}}",
        rf"\begin{{tabular}}{{l{'c' * (len(header) - 1)}}}", r"\toprule",
        rf"{' & '.join(header)} \\", r"\midrule", *(rf"{' & '.join(row)} \\" for row in rows),
        r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]) + "\n"  # fmt: skip


def table(result: Reproduction) -> str:
    """The numbers in HTML: best bold, second underlined."""
    shown = _marked(result, "<b>{}</b>", "<u>{}</u>", "<sup>*</sup>", html.escape)
    numbers = shown.rename_axis(index=None, columns=str(shown.index.name)).to_html(escape=False, border=0)
    return f'<div class="scroll" style="overflow-x:auto">{numbers}</div>'


def fragment(result: Reproduction) -> str:
    """For a notebook."""
    lines = [caption(result), verdict(result), *_not_run(result), *result.notes]
    return table(result) + "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def page(result: Reproduction) -> str:
    """One self-contained HTML page."""
    jinja2 = require("jinja2", "The page")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((resources.files(__package__) / "report.html").read_text(encoding="utf-8"))
    left = result.comparison[result.comparison["status"] == NOT_RUN]
    return cast(
        str,
        template.render(
            result=result,
            table=table(result),
            caption=caption(result),
            verdict=verdict(result),
            outcome=outcome(result),
            compared=compared(result).reset_index(),
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


def _signed(value: Any) -> str:
    return _number(value, "+.4f")


def _not_run(result: Reproduction) -> list[str]:
    return left_out(result.not_run[["task", "why", "what to do"]].itertuples(index=False, name=None))


def _marked(
    result: Reproduction, best: str, second: str, star: str, escape: Callable[[str], str] = str
) -> pd.DataFrame:
    """The grid as texts, for a format that marks numbers and escapes names so."""
    shown: pd.DataFrame = grid(result).apply(lambda column: column.map(lambda it: it.marked(best, second, star)))
    return shown.rename(index=escape, columns=escape)


def _lines(frame: pd.DataFrame) -> list[list[str]]:
    """A header and rows, each with the row's name first."""
    rows = zip(frame.index, frame.to_numpy().tolist(), strict=True)
    return [[str(frame.index.name), *frame.columns], *([name, *row] for name, row in rows)]


def _aligned(frame: pd.DataFrame) -> list[str]:
    lines = _lines(frame)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{value:<{width}}" for value, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]


def _pipes(frame: pd.DataFrame) -> list[str]:
    header, *rows = [[_cell(value) for value in line] for line in _lines(frame)]
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]


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
