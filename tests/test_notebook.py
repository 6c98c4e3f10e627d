"""What notebooks show: everything is escaped, nothing is opened or downloaded for it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest
import tiny

from pyterrier_rankdistillm import Checkpoint, CrossEncoderReRanker, MonoElectra, runs
from pyterrier_rankdistillm.notebook import card, curve, finite, size

EVIL = '<script>alert("x")</script>'


def test_a_card_escapes_and_leaves_out_what_is_not_there() -> None:
    shown = card(EVIL, [(EVIL, EVIL), ("nothing", None), ("number", 3)], note=EVIL)
    assert "<script" not in shown
    assert "nothing" not in shown
    ET.fromstring(shown)  # well-formed


def test_a_curve_is_where_its_values_are() -> None:
    root = ET.fromstring(curve([(0, 0.2), (5, 0.6), (10, 0.4)], "nDCG <10>", mark=5, dots=True))
    (line,) = root.findall("polyline")
    xs, ys = zip(*(map(float, point.split(",")) for point in line.attrib["points"].split()), strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])
    assert ys[1] < ys[2] < ys[0]  # higher is further up
    assert ys[2] == pytest.approx((ys[0] + ys[1]) / 2)
    assert [circle[0].text for circle in root.findall("circle")] == [
        "step 0: 0.2000", "step 5: 0.6000", "step 10: 0.4000",
    ]  # fmt: skip
    assert root.find("line").attrib["x1"] == f"{xs[1]:.1f}"  # type: ignore[union-attr]
    assert {"0.6", "0.2"} <= {text.text for text in root.findall("text")}
    ET.fromstring(curve([(1, 2.0)], "one"))
    assert finite([(1, float("nan")), (2, 1.0), (3, float("inf"))]) == [(2, 1.0)]


def test_a_flat_curve_stands_at_its_value() -> None:
    root = ET.fromstring(curve([(0, 0.4), (5, 0.4)], "nDCG"))
    (line,) = root.findall("polyline")
    heights = {point.split(",")[1] for point in line.attrib["points"].split()}
    labels = [text.attrib["y"] for text in root.findall("text") if text.text == "0.4"]
    assert [float(height) + 4 for height in heights] == [float(label) for label in labels]


def test_cells_say_themselves_where_they_are_aligned() -> None:
    """Notebooks' styles are of cells: what a table or a row says does not count."""
    cells = ET.fromstring(card("a title", [("name", "value")])).findall(".//td")
    assert all("text-align:left" in cell.attrib["style"] for cell in cells)
    assert len(cells) == 2


@pytest.mark.parametrize(("count", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2_345_678, "2.3 MB")])
def test_sizes(count: float, said: str) -> None:
    assert size(count) == said


def test_a_checkpoint_says_what_it_is(model: tiny.Tiny) -> None:
    checkpoint = Checkpoint.open(model.folder)
    checkpoint.record = {
        "training": {"loss": EVIL, "steps": 3000, "validation": {"measure": "nDCG@10", "kept": 0.71234}},
        "data": {"teacher": "RankZephyr"},
    }
    shown = checkpoint._repr_html_()
    for said in (
        "Cross-encoder",
        "2 layers",
        "query 6 tokens",
        "3,000 steps",
        "RankZephyr",
        "0.7123 on the validation",
    ):
        assert said in shown
    assert EVIL not in shown


def test_a_re_ranker_says_where_it_runs_once_it_is_open(model: tiny.Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyterrier.documentation.objects_inv", dict)
    reranker = MonoElectra(model.folder, device="cpu")
    assert "when the first rows are scored" in (reranker._repr_html_() or "")
    assert reranker._opened is None
    _ = reranker.scorer
    shown = reranker._repr_html_() or ""
    assert "cpu, float32" in shown
    assert "query 6, text 16" in shown
    assert str(model.folder) in (CrossEncoderReRanker(reranker.checkpoint)._repr_html_() or "").replace("<wbr>", "")


def test_datasets_say_what_they_hold_and_download_nothing() -> None:
    shown = pt.get_dataset("rankdistillm:demo")._repr_html_()
    for said in ("238, such as", "32, such as", "33 of grade 3", "get_index()"):
        assert said in shown
    shown = pt.get_dataset("rankdistillm:rankzephyr")._repr_html_()
    assert "not downloaded yet" in shown
    assert "runs.preflight(&#x27;rankzephyr&#x27;)" in shown


@pytest.mark.filterwarnings("ignore:.*cut.*beyond")
def test_caches_and_made_runs(model: tiny.Tiny, frame: pd.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("pyterrier_caching")
    with runs.ScoreCache(MonoElectra(model.folder, device="cpu"), tmp_path / "scores") as cache:
        assert cache.reranker._opened is None
        assert "KB" not in cache._repr_html_()
        assert cache.reranker._opened is None
        cache(frame)
        assert cache.path.name in cache._repr_html_()
    first_stage = frame.assign(score=1.0)
    topics = frame[["qid", "query"]].drop_duplicates()
    made = runs.make_teacher_run(
        MonoElectra(model.folder, device="cpu"), first_stage, topics, tmp_path / "t.run", depth=2, verbose=False
    )
    shown = made._repr_html_()
    assert f"MonoElectraReRanker {model.folder}" in shown.replace("<wbr>", "")
    assert made.record["md5"] in shown
