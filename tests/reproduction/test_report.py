"""What is printed, on a literal result."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from pyterrier_rankdistillm import Reproduction
from pyterrier_rankdistillm.reproduction.arguments import CONDENSED
from pyterrier_rankdistillm.reproduction.catalogue import FIRST_STAGE, Cell, Table, Task
from pyterrier_rankdistillm.reproduction.comparison import MeasuredCell, compare
from pyterrier_rankdistillm.reproduction.evaluation import CELL
from pyterrier_rankdistillm.reproduction.report import Entry, grid, panels

VALUES = {FIRST_STAGE: 0.48, "a_b": 0.7202, "c & d": 0.7198, "<e>": 0.731}


REASON = "within tolerance of the paper's value"
COUNTS = "2 reproduced, 2 not published; 1 published cells were not run"


def make(settings: tuple[str, ...] = ("bm25/y19",), measures: tuple[str, ...] = ("nDCG@10",)) -> Reproduction:
    """Three systems; a_b is the baseline, the first stage differs from it significantly."""
    rows = [
        {
            "setting": setting, "system": system, "measure": measure, "value": value, "topics": 2, "documents": 9,
            "retrieved": 9, "p_value": None if system == "a_b" else 0.04, "p_value_corrected": None,
            "better": 0, "worse": 2, "significant": None if system == "a_b" else system == FIRST_STAGE,
        }
        for setting in settings for measure in measures for system, value in VALUES.items()
    ]  # fmt: skip
    table = Table(
        "t",
        (Task("y19", "c"),),
        (
            Cell("paper", FIRST_STAGE, "bm25/y19", 0.48, True),
            Cell("paper", "base", "bm25/y19", 0.72, False),
            Cell("readme", "base", "bm25/y19", 0.71, None),
            Cell("paper", "<other>", "bm25/y19", 0.5, False),
        ),
    )
    names = {FIRST_STAGE: FIRST_STAGE, "a_b": "base"}
    measured = [MeasuredCell(s, system, names.get(system), v, 0.004) for s in settings for system, v in VALUES.items()]
    by_query = [
        {"setting": s, "system": system, "qid": qid, "query": f"what <is> {qid}", "measure": "nDCG@10", "value": value}
        for s in settings for system, of in VALUES.items() for qid, value in (("2", of + 0.1), ("10", of - 0.1))
    ]  # fmt: skip
    return Reproduction(
        name="t",
        mode="corrected",
        measures=measures,
        baseline="a_b",
        cells=pd.DataFrame(rows, columns=list(CELL)).astype(CELL),
        comparison=compare(table, measured),
        per_query=pd.DataFrame(by_query),
        tasks=pd.DataFrame(columns=["task", "system", "measure", "value", "topics"]),
        not_run=pd.DataFrame([("z", "No data.", "Get it.")], columns=["task", "why", "what to do"]),
        notes=("Mind the gap.",),
        provenance={"versions": {"python": "3"}, "runs": [{"task": "y19", "systems": {}}], "depth": 100},
    )


def test_markdown() -> None:
    assert (
        make().to_markdown()
        == f"""\
| system | bm25/y19 |
| --- | --- |
| first stage | 0.480\\* |
| a_b | *0.720* |
| c & d | *0.720* |
| &lt;e> | **0.731** |

t: nDCG@10 over 2 topics; \\* differs from a_b (paired t-test, Holm, alpha 0.05).

| setting | system | measured | paper | difference | readme | readme difference | tolerance | status | reason |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| bm25/y19 | first stage | 0.480 | 0.480 | +0.0000 |  |  | 0.0040 | reproduced |  |
| bm25/y19 | a_b | 0.720 | 0.720 | +0.0002 | 0.710 | +0.0102 | 0.0040 | reproduced | {REASON} |
| bm25/y19 | c & d | 0.720 |  |  |  |  |  | not published |  |
| bm25/y19 | &lt;e> | 0.731 |  |  |  |  |  | not published |  |

Everything that was run and has a published cell was reproduced ({COUNTS}).

- z: not run. No data. Get it.
- Mind the gap.
"""
    )


def test_latex() -> None:
    latex = make().to_latex()
    assert r"first stage & 0.480$^{*}$ \\" in latex
    assert r"a\_b & \underline{0.720} \\" in latex
    assert r"c \& d & \underline{0.720} \\" in latex
    assert r"<e> & \textbf{0.731} \\" in latex
    assert latex.count(r"\begin{") == latex.count(r"\end{") == 2
    assert r"\begin{tabular}{lc}" in latex


def test_wide_tables_are_turned_over() -> None:
    settings = tuple(f"corpus {n}" for n in range(6))
    found = grid(make(settings))
    assert (found.index.name, list(found.columns)) == ("setting", list(VALUES))
    assert list(found.index) == list(settings)
    assert found.loc["corpus 5", "<e>"] == Entry("0.731", place=1)
    assert list(grid(make(settings[:5])).columns) == list(settings[:5])


def test_columns_name_what_differs() -> None:
    both = make(("x", "y"), ("nDCG@10", "RR@10"))
    expected = ["x nDCG@10", "x RR@10", "y nDCG@10", "y RR@10"]
    assert list(grid(both).columns) == list(both.table.columns) == expected
    assert list(grid(make(("x",), ("nDCG@10", "RR@10"))).columns) == ["nDCG@10", "RR@10"]


def test_a_grid_has_a_place_where_nothing_was_measured() -> None:
    result = make(("x", "y"))
    result = replace(result, cells=result.cells[(result.cells["setting"] == "x") | (result.cells["system"] != "a_b")])
    found = grid(result)
    assert list(found["x"]) == [Entry("0.480", 0, True), Entry("0.720", 2), Entry("0.720", 2), Entry("0.731", 1)]
    assert list(found["y"]) == [Entry("0.480", 0, True), Entry(), Entry("0.720", 2), Entry("0.731", 1)]
    assert "| a_b | *0.720* |  |\n" in result.to_markdown()


def test_the_whole_first_stage_does_not_compete_with_parts() -> None:
    """Its value is of another list, however high."""
    result = make()
    names = {"a_b": CONDENSED, "c & d": "c & d", "<e>": "<e>", FIRST_STAGE: FIRST_STAGE}
    cells = result.cells.assign(system=result.cells["system"].map(names))
    cells.loc[cells["system"] == FIRST_STAGE, "value"] = 0.9
    assert [entry.place for entry in grid(replace(result, cells=cells))["bm25/y19"]] == [0, 2, 2, 1]


def test_text_and_notebook() -> None:
    result = make()
    assert "first stage  0.480*\n" in str(result)
    assert "z: not run. No data. Get it." in str(result)
    shown = result._repr_html_()
    assert re.search(r"<th>&lt;e&gt;</th>\s*<td><b>0.731</b></td>", shown)
    assert "<e>" not in shown


class Page(HTMLParser):
    """Notes unclosed elements, and what would be fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_beside_it(tmp_path: Path) -> None:
    text = make().to_html(tmp_path / "deep" / "report.html")
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8") == text
    page = Page(text)
    assert page.open == []
    assert page.fetched == []
    assert "url(" not in text
    assert "@import" not in text
    assert "<e>" not in text
    assert "<b>0.731</b>" in text
    assert "what &lt;is&gt; 10 (10): 0.380 to 0.631" in text
    assert text.count('<rect class="up"') == 2 * 3 + 2  # against the first stage; against a_b, where <e> gains
    assert text.index(">2</td>") < text.index(">10</td>")
    assert re.search(r"<td class=\"text\">&lt;other&gt;</td>\s*<td>0.500</td>", text)


def test_the_plot_shows_measured_and_published() -> None:
    figure = make(("bm25/y19", "x")).plot()
    first = figure.axes[0]
    assert first.get_title() == "bm25/y19"
    lines = {line.get_label(): list(line.get_xdata()) for line in first.lines}
    assert lines == {"measured": list(VALUES.values()), "paper": [0.48, 0.72], "readme": [0.71]}
    assert [label.get_text() for label in first.get_yticklabels()] == list(VALUES)


@pytest.mark.parametrize(("package", "method"), [("jinja2", "to_html"), ("matplotlib", "plot")])
def test_missing_packages_are_named(package: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'pyterrier-rankdistillm\[report\]'"):
        getattr(make(), method)()


def test_odd_names_do_not_break_tables() -> None:
    from pyterrier_rankdistillm.reproduction.report import _pipes, _tex

    odd = pd.DataFrame({"a": ["two\nlines | <script>"]}, index=pd.Index(["x"], name="n"))
    assert _pipes(odd) == ["| n | a |", "| --- | --- |", "| x | two lines \\| &lt;script> |"]
    assert _tex("two\nlines & more") == r"two lines \& more"


def test_panels_share_one_scale_and_show_values() -> None:
    found = list(panels(make(("bm25/y19", "x"))))
    assert len({(panel["low"], panel["high"]) for panel in found}) == 1
    low, high = found[0]["low"], found[0]["high"]
    assert low < 0.48 < 0.731 < high
    figure = make(("bm25/y19", "x")).plot()
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.480", "0.720", "0.720", "0.731"]
    text = make().to_html()
    assert '<tspan font-weight="600">0.720</tspan><tspan class="quiet"> paper 0.720</tspan>' in text


@pytest.mark.parametrize(
    ("statuses", "kind", "said"),
    [
        (["reproduced", "differs"], "no", "Not everything that was run was reproduced"),
        (
            ["reproduced", "not comparable"],
            "in-part",
            "Everything that can be compared with published cells was reproduced",
        ),
        (["not comparable", "not published"], "nothing", "Nothing that was run can be compared with published cells"),
        (["reproduced", "not published"], "yes", "Everything that was run and has a published cell was reproduced"),
    ],
)
def test_red_is_for_a_difference_only(statuses: list[str], kind: str, said: str) -> None:
    result = make()
    run = result.comparison["status"] != "not run"
    result.comparison.loc[run, "status"] = [*statuses, *["not published"] * (run.sum() - 2)]
    text = result.to_html()
    assert f'<p class="verdict {kind}">{said} (' in text
    assert said in str(result)
