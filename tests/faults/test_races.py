"""Two processes, or many threads, at the same work: both are right, or the second is told who is at it."""

from __future__ import annotations

import pickle
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import child
import pytest
import tiny
import toy
import works
from conftest import Rounds

from pyterrier_rankdistillm import MonoElectra, runs
from pyterrier_rankdistillm.errors import InUseError

pytestmark = pytest.mark.filterwarnings("ignore")
ALONE = ("teacher", "cache", "reproduce", "fit")
"""Works that one process at a time may do."""


@pytest.fixture(scope="module")
def work(checkpoint: Callable[[str], tiny.Tiny]) -> works.Works:
    folder = checkpoint("lightning-ir-hub").folder
    return works.Works(folder, folder)


@pytest.mark.parametrize("name", works.NAMES)
def test_two_processes(name: str, work: works.Works, rounds: Rounds, tmp_path: Path) -> None:
    (tmp_path / "right").mkdir()
    value = child.run(works.of(work, name, tmp_path / "right")).value
    kinds = ("refused", "after") if name in ALONE else ("together",)
    for number, kind in enumerate(rounds.of(*kinds)):
        folder = tmp_path / str(number)
        folder.mkdir()
        children, ended = [], []
        for _ in range(rounds.random.choice((2, 3))):
            children.append(child.start(works.of(work, name, folder)))
            if kind == "after":
                ended.append(children.pop().wait())
            time.sleep(rounds.random.choice((0.0, 0.0, 0.05, 0.2)))
        ended += [one.wait() for one in children]
        assert not any(one.killed or one.hung for one in ended)
        done = [one for one in ended if one.error is None]
        assert done
        assert all(one.value == value for one in done), [one.value for one in done]
        for one in ended:
            if one.error is not None:
                assert name in ALONE, one.error
                assert one.error[0] == "InUseError", one.error
                assert re.search(r"is in use by (process (\d+) on \S+ since 20\d\d-|another process)", one.error[1])
                rounds.hit("refused")
        if name not in ALONE:
            rounds.hit("together")
        elif len(done) > 1:
            rounds.hit("after")
        assert child.run(works.of(work, name, folder)).value == value
        assert works.litter(folder) == []


def test_threads_share_a_cache(work: works.Works, rounds: Rounds, tmp_path: Path) -> None:
    right = work.reranker()(toy.RUN)["score"]
    for number, _ in enumerate(rounds.of("threads")):
        caches = [runs.ScoreCache(work.reranker(), tmp_path / str(number)) for _ in range(2)]
        wrong: list[BaseException | str] = []

        def use(cache: runs.ScoreCache, wrong: list[BaseException | str] = wrong) -> None:
            try:
                off = [(cache(toy.RUN)["score"] - right).abs().max() for _ in range(2)]
                wrong.extend("scores" for one in off if one > 1e-5)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=use, args=(caches[n % 2],)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for cache in caches:
            cache.close()
        assert wrong == []
        rounds.hit("threads")
        assert works.litter(tmp_path / str(number)) == []


def test_a_cache_is_another_process_s_until_that_ends(work: works.Works, tmp_path: Path) -> None:
    cache = runs.ScoreCache(work.reranker(), tmp_path)
    right = cache(toy.RUN)["score"].tolist()
    copy = pickle.dumps(cache)

    def inherited() -> list[float]:
        return list(cache(toy.RUN)["score"])

    def copied() -> list[float]:
        return list(pickle.loads(copy)(toy.RUN)["score"])

    for use in (inherited, copied):
        kind, message = child.run(use).error or ("", "")
        assert kind == "InUseError"
        assert "ScoreCache: " in message
        assert "Call close() there, or end that process" in message
    assert cache(toy.RUN)["score"].tolist() == right
    cache.close()
    for use in (inherited, copied):
        assert child.run(use).value == pytest.approx(right)


def test_an_open_lock_does_not_outlive_its_process_in_a_child_of_it(tmp_path: Path) -> None:
    """A process that is killed while its forked child lives on has let go."""
    from pyterrier_rankdistillm.locks import hold

    def parent() -> None:
        lock = hold(tmp_path / "x.lock", "work")
        child.start(lambda: time.sleep(20))
        (tmp_path / "ready").touch()
        time.sleep(20)
        lock.release()

    one = child.start(parent)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    with pytest.raises(InUseError, match=rf"work is in use by process {one.pid} on "):
        hold(tmp_path / "x.lock", "work")
    assert one.wait(kill_after=0.0).killed
    with hold(tmp_path / "x.lock", "work"), pytest.raises(InUseError, match=r"\(this one\)"):
        hold(tmp_path / "x.lock", "work")
    assert not (tmp_path / "x.lock").exists()


def test_the_tiny_model_is_scored_in_threads_as_alone(work: works.Works, rounds: Rounds) -> None:
    reranker = MonoElectra(work.model, device="cpu", verbose=False)
    frames = dict(list(toy.RUN.groupby("qid")))
    right = {qid: reranker(frame)["score"].tolist() for qid, frame in frames.items()}
    for _ in rounds.of("threads"):
        with ThreadPoolExecutor(len(frames)) as threads:
            found = dict(zip(frames, threads.map(reranker, frames.values()), strict=True))
        assert {qid: pytest.approx(run["score"].tolist(), abs=1e-5) for qid, run in found.items()} == right
        rounds.hit("threads")
