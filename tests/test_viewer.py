"""Rankings to look at: what the page holds is right, and nothing in it is code but ours."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_rankdistillm import runs, view_rankings

EVIL = "</script><script>document.title='evil'</script><!--\u2028&"
TOPICS = pd.DataFrame({"qid": ["1", "2", "3"], "query": ["bread", EVIL, "not judged"]})
QRELS = pd.DataFrame([("1", "a", 2), ("1", "c", 0), ("2", "b", 1)], columns=["qid", "docno", "label"])
RUN = pd.DataFrame(
    [(qid, docno, 3.0 - n, n, f"text of {docno} {EVIL}") for qid in "12" for n, docno in enumerate("abc")],
    columns=["qid", "docno", "score", "rank", "text"],
)
BACKWARDS = RUN.assign(score=-RUN["score"], rank=2 - RUN["rank"])


def data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_a_page_holds_rankings_labels_values_and_texts(tmp_path: Path) -> None:
    systems = {"first": RUN, "second": pt.Transformer.from_df(BACKWARDS)}
    view = view_rankings(systems, TOPICS, QRELS, depth=2, measure="RR", title=EVIL)
    page = view.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    held = data(page)
    assert held == view.data
    assert (held["systems"], held["measure"], held["grades"]) == (["first", "second"], "RR", 2)
    docnos = [docno for docno, _ in held["docs"]]
    assert held["docs"][0] == ["a", f"text of a {EVIL}"]
    one, two, three = held["topics"]
    assert [[docnos[place] for place, _ in ranking] for ranking in one["lists"]] == [["a", "b"], ["c", "b"]]
    assert [score for _, score in one["lists"][1]] == [-1.0, -2.0]
    assert {docnos[int(place)]: label for place, label in one["labels"].items()} == {"a": 2, "c": 0}
    assert one["values"] == [1.0, pytest.approx(1 / 3)]  # over whole rankings, whatever is shown
    assert two["values"] == [0.5, 0.5]
    assert three == {"qid": "3", "query": "not judged", "values": [None, None], "labels": {}, "lists": [[], []]}
    assert view.table["second"].round(3).tolist()[:2] == [0.333, 0.5]
    assert repr(view) == "RankingView(2 systems, 3 topics)"


def test_nothing_that_was_given_is_code() -> None:
    view = view_rankings({EVIL: RUN}, TOPICS, title=EVIL)
    page = view.to_html()
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert (
        "\u2028" not in page.rpartition("</style>")[2].partition("application/json")[2]
    )  # it would end a line of code
    assert data(page)["systems"] == [EVIL]
    assert data(page)["measure"] is None
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|https?:""", page)  # it fetches nothing
    shown = view._repr_html_()
    assert shown.count("<") == 2  # one frame, whose content is an attribute
    srcdoc = re.search(r'srcdoc="([^"]*)"', shown)
    assert srcdoc
    assert html.unescape(srcdoc[1]) == page


def test_texts_come_from_where_they_are(tmp_path: Path) -> None:
    runs.write(RUN, tmp_path / "a.run")
    texts = pd.DataFrame({"docno": ["a", "b"], "text": ["of a", "x" * 9_000]})
    held = view_rankings({"file": tmp_path / "a.run"}, TOPICS.head(1), text=texts).data
    by_docno = dict(held["docs"])
    assert by_docno["a"] == "of a"
    assert len(by_docno["b"]) == 4_002  # cut, which an ellipsis says
    assert by_docno["c"] is None
    body = RUN.rename(columns={"text": "body"})
    held = view_rankings({"frame": body}, TOPICS.head(1), text_field="body").data
    assert dict(held["docs"])["b"] == f"text of b {EVIL}"


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        ({"systems": {}}, ValueError, "systems must be one or more pipelines or runs by name"),
        ({"systems": RUN}, ValueError, "systems must be one or more pipelines or runs by name"),
        ({"systems": {"a": 3}}, TypeError, "view_rankings: systems must be a re-ranker"),
        ({"depth": 0}, ValueError, "depth must be a whole number, at least 1, got 0"),
        ({"measure": "no such"}, ValueError, "measure must be one of ir-measures, got 'no such'"),
        ({"systems": {"a": pt.Transformer.from_df(RUN.drop(columns="docno"))}}, ValueError, r"systems\['a'\]"),
        ({"topics": 3}, TypeError, "view_rankings: topics must be"),
    ],
)
def test_what_cannot_be_shown_is_an_error(arguments: dict[str, Any], error: type[Exception], complaint: str) -> None:
    given: dict[str, Any] = {"systems": {"a": RUN}, "topics": TOPICS, "qrels": QRELS, **arguments}
    with pytest.raises(error, match=complaint):
        view_rankings(**given)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_draws_it(tmp_path: Path) -> None:
    view_rankings({"first": RUN, "second": BACKWARDS}, TOPICS, QRELS, measure="RR").to_html(tmp_path / "page.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "page.html").as_uri()], capture_output=True, text=True, check=True
    )
    drawn = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S)
    assert "<title>Rankings</title>" in drawn
    assert "worst change first" in drawn
    assert drawn.index("bread") < drawn.index("not judged")  # RR falls by 0.667
    assert "−0.667" in drawn  # noqa: RUF001
    assert drawn.count('class="doc"') == 6
    assert "▲ 2" in drawn
