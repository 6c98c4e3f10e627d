"""``rankdistillm rerank --engine ray``, on the demo collection with a tiny checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest
import tiny

from pyterrier_rankdistillm import MonoElectra, cli, runs
from pyterrier_rankdistillm.scale import Estimate, estimate_rerank

# The tiny checkpoint reads 6 and 16 tokens.
pytestmark = pytest.mark.filterwarnings("ignore::pyterrier_rankdistillm.TruncationWarning")

DEMO = "rankdistillm:demo"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    run = pt.get_dataset(DEMO).get_results()
    runs.write(run.loc[run["qid"] < "q05", ["qid", "docno", "score", "rank"]], tmp_path / "bm25.run.gz")
    return tmp_path / "bm25.run.gz"


@pytest.mark.usefixtures("cluster")
def test_both_engines_write_the_same(
    run_file: Path, tmp_path: Path, model: tiny.Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    def rerank(name: str, *options: str) -> str:
        command = ["rerank", str(run_file), str(tmp_path / name), "--dataset", DEMO, "--model", str(model.folder)]
        assert cli.main([*command, "--depth", "5", "--device", "cpu", *options]) == 0
        return capsys.readouterr().out

    assert rerank("local.run").replace("local", "ray") == rerank("ray.run", "--engine", "ray", "--num-workers", "1")
    local, ray = (runs.read(tmp_path / name) for name in ("local.run", "ray.run"))
    pd.testing.assert_frame_equal(ray, local, rtol=0, atol=1e-5)
    assert (tmp_path / "ray.run").read_text().split()[5] == (tmp_path / "local.run").read_text().split()[5]


@pytest.mark.usefixtures("cluster")
def test_what_a_dry_run_says(
    run_file: Path,
    tmp_path: Path,
    model: tiny.Tiny,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reranker = MonoElectra(model.folder, device="cpu")
    before = sorted(tmp_path.iterdir())
    found = estimate_rerank(run_file, reranker, tmp_path / "out.run", text=DEMO, depth=5, num_workers=1, sample=9)
    assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "bm25.run.gz.rankings"]
    run = runs.read(run_file, dataset=DEMO)
    run = run[run["rank"] < 5]
    tokenizer = reranker.checkpoint.tokenizer
    queries, docs = tokenizer.encode_queries(run["query"].tolist()), tokenizer.encode_docs(run["text"].tolist())
    tokens = sum(len(tokenizer.join(query, doc).ids) for query, doc in zip(queries, docs, strict=True))
    assert (found.queries, found.pairs, found.sampled_pairs, found.tokens) == (4, 20, 20, tokens)  # all are sampled
    assert found.hours * 3600 * found.pairs_per_second == pytest.approx(20)
    assert (found.num_workers, found.cpus_per_worker, found.gpus_per_worker, found.gpu_gb) == (1, 3, 0, 0)
    assert 0.1 < found.worker_gb < 10
    asked: dict[str, object] = {}

    def estimate(*arguments: object, **options: object) -> Estimate:
        asked.update(options, arguments=arguments[::2])
        return found

    monkeypatch.setattr("pyterrier_rankdistillm.scale.estimate_rerank", estimate)
    command = ["rerank", str(run_file), str(tmp_path / "out.run"), "--dataset", DEMO, "--model", str(model.folder)]
    assert cli.main([*command, "--depth", "5", "--engine", "ray", "--dry-run", "--num-workers", "1"]) == 0
    said = capsys.readouterr().out
    assert asked == {"arguments": (str(run_file), tmp_path / "out.run"), "text": DEMO, "topics": DEMO, "depth": 5,
                     "num_workers": 1, "address": None}  # fmt: skip
    assert said.startswith(f"20 pairs of 4 queries, about {tokens} tokens\n")
    assert re.search(
        r"hours with 1 workers \(each 3 cores\) at [\d.,]+ pairs per second each, measured on 20 pairs", said
    )
    assert re.search(r"memory: [\d.]+ GB per worker, [\d.]+ GB here; disk: 0.0 GB", said)


@pytest.mark.parametrize("option", [["--num-workers", "2"], ["--address", "local"], ["--dry-run"]])
def test_options_of_the_other_engine(
    run_file: Path, tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["rerank", str(run_file), str(tmp_path / "out.run"), "--dataset", DEMO, *option]) == 1
    assert capsys.readouterr().err == f"rankdistillm rerank: {option[0]} must come with --engine ray.\n"


@pytest.mark.usefixtures("cluster")
def test_what_is_wrong_is_one_line(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rerank", str(run_file), str(tmp_path / "out.run"), "--dataset", DEMO, "--model", DEMO]
    assert cli.main([*command, "--engine", "ray", "--num-workers", "9"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("rankdistillm rerank: rerank_dataset: num_workers must be from 1 to 3")
    assert err.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]
