"""The score cache: no forward pass twice, and never another model's scores."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import pytest
import tiny
import torch
from pandas.testing import assert_frame_equal

from pyterrier_rankdistillm import Checkpoint, FineTuning, KeptWorkWarning, MonoElectra, extras
from pyterrier_rankdistillm.errors import InUseError
from pyterrier_rankdistillm.locks import hold
from pyterrier_rankdistillm.runs import ScoreCache, file_name
from pyterrier_rankdistillm.runs import cache as module
from pyterrier_rankdistillm.scoring.encoder import CrossEncoder

pytest.importorskip("pyterrier_caching")
Make = Callable[..., ScoreCache]

FRAME = pd.DataFrame(
    {
        "qid": ["1", "1", "1", "2", "2"],
        "query": ["why does bread rise"] * 3 + ["rain"] * 2,
        "docno": ["a", "b", "c", "a", "b"],
        "text": ["yeast and bread", "the cat sat", "yeast and bread", "yeast and bread", "rain and snow " * 12],
        "score": [3.0, 2.0, 1.0, 2.0, 1.0],
        "rank": [0, 1, 2, 0, 1],
    },
    index=[5, 5, 1, 0, 9],
)


@pytest.fixture
def cached(tmp_path: Path, model: tiny.Tiny) -> Iterator[Make]:
    with ExitStack() as stack:

        def make(**settings: Any) -> ScoreCache:
            reranker = MonoElectra(settings.pop("model", model.folder), device="cpu", **settings)
            return stack.enter_context(ScoreCache(reranker, tmp_path / "scores"))

        yield make


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pairs in every forward pass."""
    seen: list[int] = []
    forward = CrossEncoder.forward

    def counted(self: CrossEncoder, ids: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        seen.append(len(ids))
        return forward(self, ids, *arguments, **options)

    monkeypatch.setattr(CrossEncoder, "forward", counted)
    return seen


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*cut.*beyond"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in:DeprecationWarning"),  # PyTerrier's add_ranks, pandas 3.1
]


def test_it_gives_what_the_re_ranker_gives(cached: Make) -> None:
    cache = cached()
    before = FRAME.copy()
    for _ in range(2):
        assert_frame_equal(cache(FRAME), cache.reranker(FRAME))
    assert_frame_equal(FRAME, before)


def test_no_pair_is_scored_twice(cached: Make, passes: list[int]) -> None:
    cached()(FRAME.iloc[:2])
    assert sum(passes) == 2
    cached()(FRAME)
    assert sum(passes) == 4  # the third row has the first row's text
    for again in (cached(), cached()):
        again(FRAME.sample(frac=1, random_state=0))
        again(FRAME.assign(docno=["x", "y", "z", "x", "y"]))
    assert sum(passes) == 4


def test_other_texts_under_the_same_docno_are_other_pairs(cached: Make, passes: list[int]) -> None:
    cache = cached()
    cache(FRAME)
    changed = FRAME.assign(text=FRAME["text"] + " moon")
    result = cache(changed)
    assert sum(passes) == 8
    assert_frame_equal(result, cache.reranker(changed))


@pytest.mark.parametrize(
    "settings", [{"query_length": 3}, {"doc_length": 8}, {"dtype": "int8"}, {"activation": "sigmoid"}]
)
def test_other_settings_have_their_own_cache(cached: Make, passes: list[int], settings: dict[str, Any]) -> None:
    cached()(FRAME)
    other = cached(**settings)
    result = other(FRAME)
    assert sum(passes) == 8
    assert other.path != cached().path
    assert_frame_equal(result, other.reranker(FRAME))


def test_settings_that_change_later_change_the_cache(cached: Make) -> None:
    cache = cached()
    first = cache.path
    cache.reranker.doc_length = 8
    assert "-d8-" in cache.path.name
    assert_frame_equal(cache(FRAME), cache.reranker(FRAME))
    assert cache.path != first


def test_settings_that_do_not_matter_share_it(cached: Make, passes: list[int]) -> None:
    cached()(FRAME)
    cached(batch_tokens=64, text_field="body", verbose=False)(FRAME.rename(columns={"text": "body"}))
    assert sum(passes) == 4


def test_a_replaced_checkpoint_is_another_model(cached: Make, copied: Callable[..., Path]) -> None:
    folder = copied()
    first = cached(model=folder)
    old, path = first(FRAME), first.path
    state = tiny.load_state(folder)
    name = next(name for name in state if "word_embeddings" in name)
    tiny.save_state(folder, state | {name: state[name] * 1.5})
    second = cached(model=folder)
    with pytest.warns(KeptWorkWarning, match=f"holds scores of another .*{path.name}.*They are kept, and not used"):
        assert second.path != path
    assert second.path.name.rpartition("-")[0] == path.name.rpartition("-")[0]
    assert second(FRAME)["score"].tolist() != old["score"].tolist()


def test_the_name_says_model_revision_lengths_and_precision(cached: Make) -> None:
    assert cached().path.name.partition("@")[2].startswith("local-q6-d16-float32-")
    identity = {
        "model": "webis/monoelectra-base", "revision": "0123456789abcdef", "query_length": 32, "doc_length": None,
        "pair_length": 512, "dtype": "bfloat16", "activation": "sigmoid", "weights": "w",
    }  # fmt: skip
    name = module._name(identity)
    assert name.startswith("webis-monoelectra-base@0123456789ab-q32-dall-bfloat16-sigmoid-")
    for key in identity:
        assert module._name(identity | {key: "other"}) != name


def test_an_open_checkpoint_counts_by_its_weights(cached: Make, model: tiny.Tiny) -> None:
    checkpoint = Checkpoint.open(model.folder)
    cache = cached(model=checkpoint)
    assert_frame_equal(cache(FRAME), cache.reranker(FRAME))


def test_bad_frames_are_refused_as_by_the_re_ranker(cached: Make) -> None:
    cache = cached()
    with pytest.raises(ValueError, match=r"text of docno 'b' \(qid '1'\) is missing"):
        cache(FRAME.assign(text=["a", None, "c", "d", "e"]))
    with pytest.raises(ValueError, match="qid is missing"):
        cache(FRAME.assign(qid=["1", None, "1", "2", "2"]))
    with pytest.raises(pt.validate.InputValidationError, match="text_loader"):
        cache(FRAME.drop(columns="text"))
    assert_frame_equal(cache(FRAME.iloc[:0]), cache.reranker(FRAME.iloc[:0]))


def test_it_is_a_good_transformer(cached: Make) -> None:
    cache = cached()
    assert pt.inspect.transformer_inputs(cache) == pt.inspect.transformer_inputs(cache.reranker)
    columns = ["qid", "query", "docno", "text"]
    assert pt.inspect.transformer_outputs(cache, columns) == pt.inspect.transformer_outputs(cache.reranker, columns)
    cache(FRAME)
    with pickle.loads(pickle.dumps(cache)) as twin:
        assert_frame_equal(twin(FRAME), cache(FRAME))


def test_only_re_rankers_whose_model_is_known(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be a MonoElectraReRanker"):
        ScoreCache(pt.apply.doc_score(len), tmp_path)  # type: ignore[arg-type]


def test_a_student_is_cached_once_it_is_fitted(tmp_path: Path, model: tiny.Tiny) -> None:
    student = FineTuning(model.folder, steps=1, sample_size=2, device="cpu")
    with pytest.raises(RuntimeError, match="no trained re-ranker yet"):
        ScoreCache(student, tmp_path)
    student._reranker = MonoElectra(model.folder, device="cpu")
    with ScoreCache(student, tmp_path) as cache:
        assert_frame_equal(cache(FRAME), student.reranker(FRAME))


def test_without_pyterrier_caching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-rankdistillm\[cache\]'"):
        ScoreCache(MonoElectra("rankdistillm:demo"), tmp_path)


def test_a_cache_whose_making_was_stopped_is_made_anew(cached: Make) -> None:
    cache = cached()
    right, path = cache(FRAME), cache.path
    cache.close()
    (path / "pt_meta.json").unlink()
    assert_frame_equal(cached()(FRAME), right)
    assert sorted(file.name for file in path.iterdir()) == ["db.sqlite3", "pt_meta.json", "record.json"]


def test_threads_take_turns(cached: Make) -> None:
    cache, other = cached(), cached()
    right = cache.reranker(FRAME)
    with ThreadPoolExecutor(4) as threads:
        for result in threads.map(lambda one: one(FRAME), [cache, other] * 4):
            assert_frame_equal(result, right)


def test_another_process_is_told_who_has_it(cached: Make) -> None:
    cache = cached()
    cache(FRAME)
    lock = cache.path.with_name(f"{cache.path.name}.lock")
    code = "import sys; from pathlib import Path; from pyterrier_rankdistillm.locks import hold; "
    code += "hold(Path(sys.argv[1]), 'ScoreCache')"
    done = subprocess.run([sys.executable, "-c", code, str(lock)], capture_output=True, text=True, check=False)
    assert f"InUseError: ScoreCache is in use by process {os.getpid()} on " in done.stderr
    cache.close()
    assert not lock.exists()
    with hold(lock, "somebody"), pytest.raises(InUseError, match=r"ScoreCache: .* is in use by .*Call close\(\) there"):
        cache(FRAME)


def test_a_damaged_cache_is_named(cached: Make) -> None:
    cache = cached()
    path = cache.path
    cache.close()
    (path / "db.sqlite3").write_bytes(b"rubbish" * 1000)
    with pytest.raises(OSError, match=r"ScoreCache: .* cannot be read or written: .* delete the folder"):
        cached()(FRAME)


def test_a_file_name_is_a_models_own(model: tiny.Tiny, cached: Make) -> None:
    name = file_name(MonoElectra(model.folder, device="cpu"))
    assert name == cached().path.name
    assert pt.io.ok_filename(name)
    assert file_name(MonoElectra(model.folder, device="cpu", doc_length=8)) != name
    assert file_name(MonoElectra(model.folder, device="cpu", batch_tokens=64)) == name
