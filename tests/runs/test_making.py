"""Teachers' runs: shards, killing and continuing, faulty teachers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_rankdistillm import runs
from pyterrier_rankdistillm.runs.kept import Work
from pyterrier_rankdistillm.runs.records import describe
from pyterrier_rankdistillm.runs.shards import Shard, ShardError, Shards

TOPICS = pd.DataFrame({"qid": [f"q{n}" for n in range(10)], "query": [f"query {n}" for n in range(10)]})
RUN = pd.DataFrame(
    [(f"q{n}", f"d{d}", float(-d), d, f"text {d}") for n in range(9) for d in range(6)],
    columns=["qid", "docno", "score", "rank", "text"],
)


class FakeLlm(pt.Transformer):
    """A listwise teacher that reverses rankings, as pyterrier-generative's would order them; notes what it is asked."""

    def __init__(self, model_id: str = "fake/llm", api_key: str = "s3cret", temperature: float = 0.0) -> None:
        self.model_id, self.api_key, self.temperature = model_id, api_key, temperature
        self.asked: list[list[str]] = []
        self.change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        self.asked.append(inp["qid"].unique().tolist())
        out = inp.assign(score=inp["rank"] + random.random() / 2 + np.random.random() / 4)  # noqa: NPY002
        out["rank"] = out.groupby("qid")["score"].rank(ascending=False).astype(int) - 1
        return self.change(out)

    def results_depend_on(self) -> dict[str, Any]:
        """Not on ``change``: a teacher that is stopped, or mended, is the same teacher."""
        return {"model_id": self.model_id, "temperature": self.temperature}


def make(output: Path, teacher: pt.Transformer | None = None, **options: Any) -> runs.MadeRun:
    options = {"depth": 4, "shard_size": 3, "verbose": False, **options}
    return runs.make_teacher_run(teacher or FakeLlm(), RUN, TOPICS, output, **options)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_run_and_its_record(tmp_path: Path) -> None:
    teacher = FakeLlm()
    made = make(tmp_path / "a.run", teacher, model="fake", revision="r1", settings={"prompt": "p"})
    run = made.read()
    assert run["docno"].tolist()[:4] == ["d3", "d2", "d1", "d0"]
    assert run["rank"].tolist() == [0, 1, 2, 3] * 9
    assert run["qid"].unique().tolist() == [f"q{n}" for n in range(9)]
    assert teacher.asked == [["q0", "q1", "q2"], ["q3", "q4", "q5"], ["q6", "q7", "q8"]]
    assert files(tmp_path) == ["a.run", "a.run.json"]
    record = json.loads((tmp_path / "a.run.json").read_text())
    assert record == made.record
    stated = ("model", "revision", "seed", "depth", "shard_size", "settings", "queries", "rows", "faults")
    assert [record[name] for name in stated] == ["fake", "r1", 42, 4, 3, {"prompt": "p"}, 10, 36, {}]
    assert record["without_documents"] == ["q9"]
    assert record["teacher"]["model_id"] == "fake/llm"
    assert record["teacher"]["temperature"] == 0.0
    assert record["teacher"]["api_key"] == "(left out)"
    assert "s3cret" not in (tmp_path / "a.run.json").read_text()
    assert record["versions"][0]["pandas"] == pd.__version__


def test_what_a_record_says_of_settings() -> None:
    class Backend:
        model_id = "some/model"

    class Teacher(pt.Transformer):
        def __init__(self, **settings: Any) -> None:
            self.settings = settings

        def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
            return inp

    settings: dict[str, Any] = {
        "backend": Backend(),
        "args": {"hf_token": "s3cret", "max_new_tokens": 5},
        "odd": float("nan"),
        "path": Path("a"),
        "order": (1, 2),
        "scorer": FakeLlm(),
        "long": "x" * 5000,
        "many": {str(n): "x" * 99 for n in range(500)},
        "frame": RUN,
    }
    described = describe(Teacher(**settings))["settings"]
    assert described["backend"]["model_id"] == "some/model"
    assert described["args"] == {"hf_token": "(left out)", "max_new_tokens": 5}
    assert (described["odd"], described["path"], described["order"]) == ("nan", "a", [1, 2])
    assert described["scorer"]["model_id"] == "fake/llm"
    assert described["frame"]["rows"] == len(RUN)
    assert len(json.dumps(described)) < 2000
    assert describe(Teacher(**settings | {"frame": RUN.iloc[1:]})) != describe(Teacher(**settings))
    assert describe(Teacher(**settings)) == describe(Teacher(**settings))


def test_a_script_s_class_is_known_by_the_script_s_name(tmp_path: Path) -> None:
    script = tmp_path / "some_teacher.py"
    script.write_text(
        "import pyterrier as pt\nfrom pyterrier_rankdistillm.runs.records import describe\n"
        "class Own(pt.Transformer):\n    def transform(self, inp):\n        return inp\n"
        "print(describe(Own())['class'])\n"
    )
    for arguments in ([str(script)], ["-m", "some_teacher"], ["-c", "import some_teacher"]):
        run = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        )
        assert run.stdout == "some_teacher.Own\n"


def test_a_finished_run_is_not_made_again(tmp_path: Path) -> None:
    first = make(tmp_path / "a.run")
    teacher = FakeLlm()
    assert make(tmp_path / "a.run", teacher) == first
    assert teacher.asked == []
    with pytest.raises(FileExistsError, match="is of other work: depth: 4, now 5"):
        make(tmp_path / "a.run", depth=5)
    with pytest.raises(FileExistsError, match=r"teacher.temperature: 0.0, now 1.0"):
        make(tmp_path / "a.run", FakeLlm(temperature=1.0))
    (tmp_path / "a.run").write_text("x")
    with pytest.raises(FileExistsError, match="was changed after it was written"):
        make(tmp_path / "a.run")
    (tmp_path / "a.run.json").unlink()
    with pytest.raises(FileExistsError, match=r"exists, without a.run.json"):
        make(tmp_path / "a.run")


@pytest.mark.parametrize("stop_at", [0, 1, 2])
@pytest.mark.parametrize("suffix", [".run", ".run.gz", ".jsonl.gz"])
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path: Path, stop_at: int, suffix: str) -> None:
    whole = make(tmp_path / f"whole{suffix}")

    def stop(frame: pd.DataFrame) -> pd.DataFrame:
        if len(teacher.asked) > stop_at:
            raise KeyboardInterrupt
        return frame

    teacher = FakeLlm()
    teacher.change = stop
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / f"part{suffix}", teacher)
    assert not (tmp_path / f"part{suffix}").exists()
    again = FakeLlm()
    part = make(tmp_path / f"part{suffix}", again)
    assert len(again.asked) == 3 - stop_at
    assert part.path.read_bytes() == whole.path.read_bytes()
    assert part.record | {"seconds": 0} == whole.record | {"seconds": 0}


SCRIPT = """
import sys, time
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import test_making
from pathlib import Path
teacher = test_making.FakeLlm()
def slow(frame):
    time.sleep(0.1)
    return frame
teacher.change = slow
test_making.make(Path(sys.argv[3]), teacher, shard_size=1)
"""


@pytest.mark.slow
def test_killed_again_and_again_it_still_ends_the_same(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.run.gz", shard_size=1)
    output = tmp_path / "part.run.gz"
    here = Path(__file__).parent
    command = [sys.executable, "-c", SCRIPT, str(here.parent), str(here), str(output)]
    codes = []
    for finished in (1, 4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 120
            while len(list(tmp_path.glob("*.shards/0*.json"))) < finished and process.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.005)
            time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            codes.append(process.wait())
    assert -signal.SIGKILL in codes
    assert make(output, shard_size=1).record["md5"] == whole.record["md5"]
    assert output.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[] if step % 8 == 1 else pytest.mark.slow) for step in range(1, 42, 2)]
)
def test_stopping_at_any_change_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Every rename or deletion is a moment at which the process may vanish."""
    whole = make(tmp_path / "whole.run")
    count = 0

    def stopping(change: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                raise KeyboardInterrupt
            return change(*arguments, **options)

        return stopped

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir"):
            patch.setattr(Path, name, stopping(getattr(Path, name)))
            patch.setattr(os, name, stopping(getattr(os, name)))
        try:
            made = make(tmp_path / "part.run")
        except KeyboardInterrupt:
            made = None
    if made is None:
        made = make(tmp_path / "part.run")
    assert made.path.read_bytes() == whole.path.read_bytes()
    assert made.record | {"seconds": 0} == whole.record | {"seconds": 0}
    assert [name for name in files(tmp_path) if not name.startswith(".")] == [
        "part.run", "part.run.json", "whole.run", "whole.run.json",
    ]  # fmt: skip


def test_other_settings_do_not_continue(tmp_path: Path) -> None:
    def stop(frame: pd.DataFrame) -> pd.DataFrame:
        if "q3" in set(frame["qid"]):
            raise KeyboardInterrupt
        return frame

    teacher = FakeLlm()
    teacher.change = stop
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a.run", teacher)
    for options, what in (
        ({"seed": 1}, r"seed: 42, now 1"),
        ({"depth": 5}, r"depth: 4, now 5"),
        ({"shard_size": 4}, r"size: 3, now 4"),
        ({"revision": "x"}, r"revision: null, now something else"),
        ({"teacher": FakeLlm("other/llm")}, r"teacher.model_id: is another"),
    ):
        with pytest.raises(ShardError, match=what):
            make(tmp_path / "a.run", **options)
    assert files(tmp_path) == ["a.run.shards"]


FAULTS: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = [
    (lambda f: f[~((f["qid"] == "q4") & (f["docno"] == "d1"))], "drops 1 of 4 documents ('d1')"),
    (lambda f: f[f["qid"] != "q4"], "drops 4 of 4 documents ('d0', 'd1', 'd2', ...)"),
    (
        lambda f: f.assign(docno=f["docno"].where((f["qid"] != "q4") | (f["docno"] != "d1"), "x")),
        "drops 1 of 4 documents ('d1'), adds 1 of 4 documents ('x')",
    ),
    (lambda f: pd.concat([f, f[(f["qid"] == "q4") & (f["docno"] == "d2")]]), "repeats 1 of 4 documents ('d2')"),
    (
        lambda f: f.assign(score=f["score"].where((f["qid"] != "q4") | (f["docno"] != "d1"))),
        "has scores that are not finite",
    ),
    (lambda f: f.assign(rank=f["rank"].where(f["qid"] != "q4", 3 - f["rank"])), "ranks contradict scores"),
]


@pytest.mark.parametrize(("change", "what"), FAULTS)
def test_a_faulty_teacher_is_caught_per_query(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], what: str
) -> None:
    teacher = FakeLlm()
    teacher.change = change
    with pytest.raises(runs.RankingError) as caught:
        make(tmp_path / "a.run", teacher)
    assert "faulty for 1 of 3 queries: qid 'q4': " + what in str(caught.value)
    assert files(tmp_path) == ["a.run.shards"]
    again = FakeLlm()
    make(tmp_path / "a.run", again)  # mended
    assert again.asked == [["q3", "q4", "q5"], ["q6", "q7", "q8"]]

    skipped = make(tmp_path / "b.run", teacher, on_fault="skip")
    assert list(skipped.record["faults"]) == ["q4"]
    assert what in ", ".join(skipped.record["faults"]["q4"])
    assert skipped.read()["qid"].unique().tolist() == ["q0", "q1", "q2", "q3", "q5", "q6", "q7", "q8"]
    assert skipped.record["rows"] == 32


def test_a_query_out_of_nowhere(tmp_path: Path) -> None:
    teacher = FakeLlm()
    teacher.change = lambda f: pd.concat([f, f.iloc[:1].assign(qid="zz")])
    with pytest.raises(runs.RankingError, match="qid 'zz': adds 1 of 0 documents"):
        make(tmp_path / "a.run", teacher)


def test_a_faulty_first_stage(tmp_path: Path) -> None:
    def run(first_stage: pd.DataFrame | pt.Transformer) -> None:
        runs.make_teacher_run(FakeLlm(), first_stage, TOPICS, tmp_path / "a.run", verbose=False)

    twice, bare = pd.concat([RUN, RUN.iloc[:1]]), RUN.drop(columns="docno")
    with pytest.raises(ValueError, match=r"first_stage is not a run: .*docno 'd0' occurs twice"):
        run(twice)
    with pytest.raises(ValueError, match="first_stage must have the columns qid, docno, and"):
        run(bare)
    with pytest.raises(runs.RankingError, match="first stage's run is faulty: docno 'd0' occurs twice"):
        run(pt.Transformer.from_df(twice))
    shutil.rmtree(tmp_path / "a.run.shards", ignore_errors=True)
    with pytest.raises(runs.RankingError, match="first stage gives no column docno"):
        run(pt.Transformer.from_df(bare))


def test_a_first_stage_that_finds_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first_stage has no rows"):
        runs.make_teacher_run(FakeLlm(), RUN.iloc[:0], TOPICS, tmp_path / "a.run", verbose=False)
    with pytest.raises(runs.RankingError, match="the first stage found no document for any of the 10 topics"):
        runs.make_teacher_run(FakeLlm(), RUN, TOPICS.assign(qid=range(10)), tmp_path / "a.run", verbose=False)
    assert not (tmp_path / "a.run").exists()


@pytest.mark.parametrize(
    ("options", "topics", "what"),
    [
        ({"depth": 0}, TOPICS, "depth must be at least 1, got 0"),
        ({"shard_size": 0}, TOPICS, "shard_size must be at least 1, got 0"),
        ({"on_fault": "x"}, TOPICS, "on_fault must be 'error' or 'skip', got 'x'"),
        ({"settings": {"x": {1, 2}}}, TOPICS, "settings must hold JSON values"),
        ({}, TOPICS.drop(columns="query"), "topics must have the columns qid, query, got no query"),
        ({}, TOPICS.iloc[:0], "topics must not be empty"),
        ({}, pd.concat([TOPICS, TOPICS.assign(query="x")]), "topics have two queries for qid 'q0'"),
        ({}, TOPICS.assign(query=None), "topics have no usable query for qid 'q0': it is missing"),
        ({}, TOPICS.assign(qid=np.arange(10) + 0.5), "topics must have strings or whole numbers as qid"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], topics: pd.DataFrame, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        runs.make_teacher_run(FakeLlm(), RUN, topics, tmp_path / "a.run", **options)
    with pytest.raises(ValueError, match="must end with one of"):
        runs.make_teacher_run(FakeLlm(), RUN, TOPICS, tmp_path / "a.csv")
    assert files(tmp_path) == []


def test_shards_can_be_taken_by_several_workers(tmp_path: Path) -> None:
    def open_shards() -> Shards:
        return Shards(tmp_path / "s", ["a", "b", "c"], size=2, work=Work({"x": 1}))

    one, two = open_shards(), open_shards()
    assert one.all == [Shard(0, ("a", "b")), Shard(1, ("c",))]
    run = pd.DataFrame({"qid": ["c"], "docno": ["d"], "score": [0.1], "rank": [0]})
    two.save(two.pending()[1], run, {"by": "two"})
    assert one.pending() == [Shard(0, ("a", "b"))]
    with pytest.raises(ShardError, match="shard 0 of 2 is not finished"):
        one.notes()
    one.save(one.pending()[0], run.iloc[:0])
    assert [frame.to_dict("list") for frame in two.runs()] == [run.to_dict("list")]
    assert two.notes() == [{}, {"by": "two"}]
    (tmp_path / "s" / "000001.jsonl.gz").write_bytes(b"x")
    with pytest.raises(ShardError, match=r"000001.jsonl.gz is missing or was changed.*Delete .*000001.json,"):
        list(two.runs())
    (tmp_path / "s" / "000001.json").unlink()
    assert open_shards().pending() == [Shard(1, ("c",))]
