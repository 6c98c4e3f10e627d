"""The benchmarks in miniature, and the arithmetic that they share. What they measure here says nothing."""

import importlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pyterrier_rankdistillm import Checkpoint

FOLDER = Path(__file__).parent.parent / "benchmarks"
Benchmark = Callable[[str], ModuleType]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Benchmark]:
    """Imports a benchmark as it is when it runs, with its folder on the path; for one test, since names are common."""
    monkeypatch.syspath_prepend(FOLDER)
    names = {file.stem for file in FOLDER.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SHAPE = {**TINY, "vocab_size": 30522, "embedding_size": 16, "max_position_embeddings": 512}


# --- what they share ---


def test_a_worker_answers_and_says_why_it_ended(tmp_path: Path, benchmark: Benchmark) -> None:
    file = tmp_path / "measured_in_a_test.py"
    file.write_text(
        "import os\n"
        "def opened(first):\n"
        "    print('a library prints')\n"
        "    os.system('echo and so does what it starts')\n"
        "    return lambda task: [first, 6 // task]\n"
        "def once(first, second):\n"
        "    return first + second\n"
    )
    measuring = benchmark("measuring")
    sys.path.insert(0, str(tmp_path))
    try:
        functions = importlib.import_module(file.stem)
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules[file.stem]
    with measuring.Worker("one", functions.opened, tmp_path) as worker:
        assert [worker.ask(task) for task in (1, 2)] == [[str(tmp_path), 6], [str(tmp_path), 3]]
        for _ in range(2):  # the second finds a process that is gone
            with pytest.raises(measuring.WorkerError, match=r"(?s)^one ended with 1:.*ZeroDivisionError"):
                worker.ask(0)
    assert measuring.in_a_process(functions.once, 2, 3) == 5
    with pytest.raises(measuring.WorkerError, match="TypeError"):
        measuring.in_a_process(functions.once, 2)


def test_rounds_alternate_and_ratios_are_of_rounds(benchmark: Benchmark) -> None:
    measuring = benchmark("measuring")
    order: list[str] = []
    calls = [lambda name=name: order.append(name) or len(order) for name in "ab"]
    assert measuring.alternated(3, calls) == [[1, 3, 5], [2, 4, 6]]
    assert order == list("ababab")
    theirs, ours = ([{"seconds": value} for value in values] for values in ([2, 9, 40], [1, 3, 10]))
    ratio = measuring.Spread.ratio(theirs, ours, "seconds")
    assert ratio == measuring.Spread(3, 2, 4)  # that of the medians is 3 too, of the sums 3.6
    assert str(ratio) == "3.00 (2.00 to 4.00)"
    assert measuring.table_head("a", "") + "\n" + measuring.table_row("x", ratio) == (
        "| a |  |\n|---|---|\n| x | 3.00 (2.00 to 4.00) |"
    )


def test_operations_are_those_that_torch_counts(
    tmp_path: Path, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = benchmark("scoring")
    monkeypatch.setattr(scoring, "BASE", SHAPE)
    path = scoring.make_checkpoints(tmp_path)["linear"]
    queries, texts = ["cat", "cat", "dog food"], ["the cat sat on the mat", "no", "dogs eat"]
    opened = Checkpoint.open(path)
    tokenizer = opened.tokenizer
    counted = 0
    for query, text in zip(queries, texts, strict=True):
        pair = tokenizer.join(*tokenizer.encode_queries([query]), *tokenizer.encode_docs([text]))
        ids, types, mask = (torch.from_numpy(x) for x in tokenizer.pad([pair]))
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:  # as products, which are counted
            opened.encoder(ids, types, mask)
        counted += counter.get_total_flops() - 2 * TINY["hidden_size"]  # the head
    assert benchmark("measuring").needed_operations(path, queries, texts) == counted


def test_memory_of_a_process_is_known_where_linux_tells_it(benchmark: Benchmark) -> None:
    memory_mb = benchmark("measuring").memory_mb
    found = memory_mb()
    if sys.platform == "linux":
        assert 0 < found["anonymous"] < found["now"] <= found["peak"]
    assert all(math.isnan(value) for value in memory_mb(2**31).values())  # no such process


# --- scoring ---


class Scripted:
    """In the place of a worker: its scores and what it took are known."""

    def __init__(self, name: str, _function: object, kind: str, *_: object, python: str = "") -> None:
        self.name, self.kind, self.python, self.asked = name, kind, python, 0

    def ask(self, pairs: list[list[str]]) -> dict[str, Any]:
        from measuring import WorkerError

        if self.kind == "onnxruntime":
            raise WorkerError("onnxruntime ended with 1:", "Traceback", "ModuleNotFoundError: No module named 'onnx'")
        self.asked += 1
        seconds = {"ours": 2.0, "ours-int8": 1.0, "openvino": 3.0, "openvino-int8": 2.5}[self.kind]
        apart = {"openvino": 1e-3, "openvino-int8": 0.25}.get(self.kind, 0.0)
        took = {"seconds": seconds * self.asked, "cpu": 2 * seconds * self.asked}
        return {**took, "scores": [apart] * len(pairs), "peak_mb": 1500.0}

    def close(self) -> None: ...

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None: ...


def test_peers_are_compared_in_their_own_precision(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scoring = benchmark("scoring")
    monkeypatch.setattr(scoring, "BASE", SHAPE)
    monkeypatch.setattr(scoring, "Worker", Scripted)
    monkeypatch.setattr(scoring, "matrix_product_rate", lambda _: 1e9)
    monkeypatch.setattr(scoring, "needed_operations", lambda *_: 1e9)
    monkeypatch.setattr(scoring, "SCORERS", {k: v for k, v in scoring.SCORERS.items() if k in KINDS})
    monkeypatch.setattr(
        "sys.argv",
        ["scoring.py", "--ours", "ours", "ours-int8", "--precisions", sys.executable, "--rounds", "3", "--depth", "4"],
    )
    scoring.main()
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")][2:]
    # seconds in the three rounds: twice, three and four times what Scripted says, so 12 pairs in three times that
    assert rows == [
        ["ours", "2.00", "1.00 (1.00 to 1.00)", "", "", "17%", "1,500", "0.0e+00"],
        ["ours-int8", "4.00", "0.50 (0.50 to 0.50)", "", "", "33%", "1,500", "0.0e+00"],
        ["openvino, 512 a batch", "1.33", *["1.50 (1.50 to 1.50)"] * 3, "11%", "1,500", "1.0e-03 DISAGREES"],
        ["openvino-int8, 512 a batch", "1.60", "1.25 (1.25 to 1.25)", *["2.50 (2.50 to 2.50)"] * 2, "13%", "1,500",
         "2.5e-01"],
    ]  # fmt: skip
    assert err == "Left out: onnxruntime ended with 1: ModuleNotFoundError: No module named 'onnx'\n"


KINDS = ("ours", "ours-int8", "onnxruntime", "openvino", "openvino-int8")


@pytest.mark.parametrize("named", ["openvin=python", "openvino"])
def test_a_scorer_that_is_not_known_is_told(named: str, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring = benchmark("scoring")
    monkeypatch.setattr(scoring, "BASE", SHAPE)
    monkeypatch.setattr(scoring, "Worker", Scripted)
    monkeypatch.setattr("sys.argv", ["scoring.py", "--peer", named])
    with pytest.raises(SystemExit, match=rf"NAME\[:BATCH,...\]=PYTHON, got '{named}'. Names: ours, .*openvino"):
        scoring.main()


# --- in miniature ---


def rows_of(out: str) -> list[list[str]]:
    """The cells of printed tables, without their heads."""
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    heads = {n for n, row in enumerate(table) if set(row) == {"---"}}
    return [row for n, row in enumerate(table) if not {n, n + 1} & heads]


@pytest.mark.slow
def test_scoring_runs_in_miniature(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scoring = benchmark("scoring")
    monkeypatch.setattr(scoring, "BASE", SHAPE)
    options = ["--rounds", "2", "--queries", "2", "--depth", "4", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["scoring.py", *options])
    scoring.main()
    (ours, int8) = rows_of(capsys.readouterr().out)
    assert (ours[0], ours[-1]) == ("ours", "0.0e+00")
    assert int8[0] == "ours-int8"
    assert 0 < float(int8[-1]) < 0.1
    # This package beside itself, by the name of another family's scorer.
    monkeypatch.setitem(scoring.FAMILIES, "bert (12 x 768)", ("BertConfig", TINY))
    monkeypatch.setitem(scoring.SCORERS, "sets", ("linear", [None]))
    monkeypatch.setattr("sys.argv", ["scoring.py", *options, "--family", "bert", "--peer", f"sets={sys.executable}"])
    with pytest.raises(SystemExit, match="No peer answered"):  # a BERT is no set encoder
        scoring.main()
    assert "Left out: sets ended with 1: " in capsys.readouterr().err


@pytest.mark.slow
def test_latency_runs_in_miniature(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    latency = benchmark("latency")
    monkeypatch.setitem(benchmark("scoring").FAMILIES, latency.SIZES["minilm"], ("BertConfig", TINY))
    monkeypatch.setattr("sys.argv", ["latency.py", "--ours", "ours", "--passages", "3", "10", "--threads", "1"])
    latency.main()
    rows = rows_of(capsys.readouterr().out)
    assert [row[:4] for row in rows] == [
        ["ours", passages, callers, calls]
        for passages, times in (("3", (8, 8)), ("10", (24, 24)))
        for callers, calls in zip(("1", "4"), map(str, times), strict=True)
    ]
    assert all(0 < float(row[5]) <= float(row[6]) < float(row[4]) for row in rows)  # p50, p95, cold


@pytest.mark.slow
def test_training_runs_in_miniature(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = benchmark("training")
    monkeypatch.setattr(training, "MINILM", SHAPE)
    options = ["--depth", "4", "--lists", "2", "--rounds", "2", "--no-memory"]
    monkeypatch.setattr("sys.argv", ["training.py", *options])
    training.main()
    ((name, rate, *ratios, _),) = rows_of(capsys.readouterr().out)
    assert (name, ratios) == ("this package", ["1.00 (1.00 to 1.00)"] * 2)
    assert float(rate) > 0


def test_gpu_runs_in_miniature(
    tmp_path: Path, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = benchmark("gpu")
    monkeypatch.setattr("sys.argv", ["gpu.py", "--small", "--no-peers", "--output", str(tmp_path / "gpu")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CPU without bfloat16 says so
        gpu.main()
    report = json.loads((tmp_path / "gpu.json").read_text())
    systems = {row["system"]: row for row in report["rows"]}
    assert {"ours, float32", "ours, bfloat16", "ours, float16"} <= systems.keys()
    assert systems["ours, float32"]["largest difference"] == 0
    assert all(row["pairs per second"] > 0 and row["largest difference"] < 0.1 for row in systems.values())
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("\n| tiny, ours") == len(systems)
    assert "tf32" in capsys.readouterr().out  # which a CPU does not have
