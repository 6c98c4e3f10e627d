"""What the benchmarks share: processes that measure, rounds that alternate, ratios, memory, operations, and tables.

At its top it imports the standard library only, since peers' environments run it too, which may lack this package.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# --- processes that measure -------------------------------------------------------------------------------------------


class WorkerError(Exception):
    """A worker ended before it answered."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))

    def left_out(self) -> None:
        """Says on stderr that others are measured without it, and why: the first and the last line."""
        first, *_, last = str(self).splitlines()
        print(f"Left out: {first} {last}", file=sys.stderr, flush=True)


class Worker:
    """A function of a benchmark's file in a process of its own, with an interpreter of its own.

    There the file is imported, and the function is called once, with the arguments. When it gives a function, that
    answers one task after another; anything else is the only answer. The process starts at once and opens by itself.
    Arguments, tasks and answers are JSON.

    Args:
        name: In tables and errors.
        function: At the top of its file.
        python: The interpreter: of this process, or of an environment where a peer is installed.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], *arguments: Any, python: str | Path = sys.executable
    ) -> None:
        self.name = name
        file = Path(inspect.getfile(function)).resolve()
        command = [str(python), __file__, str(file), function.__name__, json.dumps(arguments, default=str)]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
        )

    def ask(self, task: Any) -> Any:
        """The answer to a task.

        Raises:
            WorkerError: The process has ended; with the last that it said.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said is told below
        return self.answer()

    def answer(self) -> Any:
        """The next answer; raises as ``ask``."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().splitlines()
            raise WorkerError(
                f"{self.name} ended with {self._process.returncode}:", *(said[-20:] or ["it said nothing"])
            )
        return json.loads(line)

    def close(self) -> None:
        """Ends the process when it has answered."""
        self._process.communicate()
        self._said.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_a_process(function: Callable[..., T], *arguments: Any, python: str | Path = sys.executable) -> T:
    """What a function gives, called in a process that does nothing else, so that peaks are its own."""
    with Worker(function.__name__, function, *arguments, python=python) as worker:
        answer: T = worker.answer()
        return answer


def _serve(file: str, function: str, arguments: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print, in C++ too, must not disturb the answers
    sys.path.insert(0, str(Path(file).parent))
    answer = getattr(importlib.import_module(Path(file).stem), function)(*json.loads(arguments))
    if not callable(answer):
        print(json.dumps(answer), file=answers, flush=True)
        return
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


class Clock:
    """Time since it was made."""

    def __init__(self) -> None:
        self._seconds, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """``seconds``, and ``cpu``: processor seconds of all threads of this process."""
        return {"seconds": time.perf_counter() - self._seconds, "cpu": time.process_time() - self._cpu}


def memory_mb(process: int | str = "self") -> dict[str, float]:
    """MB of memory of a process: now, at its ``peak``, and what of it is ``anonymous`` or ``mapped`` from files.

    The peak is of this program alone: what ``getrusage`` says begins with its parent's. NaN where nothing is known:
    the process has ended, or the system is not Linux.
    """
    kinds = {"now": "VmRSS", "peak": "VmHWM", "anonymous": "RssAnon", "mapped": "RssFile"}
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        lines = []
    found = dict(line.split(":", 1) for line in lines)
    return {kind: int(found[key].split()[0]) / 1024 if key in found else float("nan") for kind, key in kinds.items()}


# --- rounds and ratios ------------------------------------------------------------------------------------------------


def alternated(rounds: int, calls: Sequence[Callable[[], T]]) -> list[list[T]]:
    """What each call gives in each round. A round makes each call once, so that a machine that drifts favours none."""
    found: list[list[T]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, given in zip(calls, found, strict=True):
            given.append(call())
    return found


@dataclass(frozen=True)
class Spread:
    """The median of what rounds gave, and its range."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def ratio(cls, above: Sequence[Mapping[str, float]], below: Sequence[Mapping[str, float]], what: str) -> Spread:
        """Of the per-round ratios of what two systems took, such as their ``seconds`` or ``cpu``."""
        return cls.of(a[what] / b[what] for a, b in zip(above, below, strict=True))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def median(rounds: Iterable[Mapping[str, float]], what: str) -> float:
    """The median over rounds of what was taken."""
    return statistics.median(one[what] for one in rounds)


def largest_difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Between the scores that two systems give the same pairs."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def needed_operations(checkpoint: Path, queries: Sequence[str], texts: Sequence[str]) -> float:
    """Floating-point operations that the scores of pairs need: matrix products and attention of BERT-shaped layers.

    Of the last layer only the first position counts, since the score is read there; embeddings and head do not.
    """
    from pyterrier_rankdistillm import Checkpoint

    opened = Checkpoint.open(checkpoint)
    config, tokenizer = opened.encoder.config, opened.tokenizer
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    each = dict.fromkeys(queries)
    encoded = dict(zip(each, tokenizer.encode_queries(list(each)), strict=True))
    total = 0.0
    for query, text in zip(queries, tokenizer.encode_docs(texts), strict=True):
        tokens = len(tokenizer.join(encoded[query], text).ids)
        full = 2 * tokens * (4 * hidden**2 + 2 * hidden * inner) + 4 * tokens**2 * hidden
        last = 2 * (2 * tokens + 2) * hidden**2 + 2 * 2 * hidden * inner + 4 * tokens * hidden
        total += (layers - 1) * full + last
    return total


# --- what is told -----------------------------------------------------------------------------------------------------

PACKAGES = (
    "torch", "transformers", "sentence-transformers", "optimum-intel", "openvino", "nncf", "onnxruntime",
    "lightning-ir", "pyterrier-dr",
)  # fmt: skip
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Those that speed depends on, as Linux calls them."""


def versions() -> str:
    """Python's version, and those of torch and of the peers that are installed."""
    found = [f"Python {sys.version.split()[0]}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def processor() -> str:
    """This machine's processor, its instructions and cores, and how busy it was in the last minute."""
    from pyterrier_rankdistillm.runs.records import hardware

    told = hardware()
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    instructions = ", ".join(name for name in INSTRUCTIONS if name in flags) or told["machine"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else told["cores"]
    return f"{told['processor']} ({instructions}), {cores} cores, a load of {os.getloadavg()[0]:.1f}"


def describe(pythons: Iterable[str] = ()) -> None:
    """Prints what the numbers depend on: the machine, and the versions here and in peers' environments."""
    print(processor())
    for python in dict.fromkeys([sys.executable, *pythons]):
        print(versions() if python == sys.executable else in_a_process(versions, python=python), flush=True)


def table_row(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def table_head(*columns: str) -> str:
    """A Markdown table's first two lines."""
    return f"{table_row(*columns)}\n|{'---|' * len(columns)}"


if __name__ == "__main__":
    _serve(*sys.argv[1:])
