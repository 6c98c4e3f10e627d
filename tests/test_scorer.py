from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from pyterrier_rankdistillm.errors import PrecisionWarning
from pyterrier_rankdistillm.scoring import scorer as module
from pyterrier_rankdistillm.scoring.checkpoint import Checkpoint
from pyterrier_rankdistillm.scoring.devices import resolve_device
from pyterrier_rankdistillm.scoring.onednn import PackedLinear
from pyterrier_rankdistillm.scoring.scorer import Precision, Scorer

QUERIES = ["why does bread rise", "why does it rain", "cat", "is it not the moon and the sun and the rain and the snow"]
TEXTS = [("the cat sat on the mat and the sun rose " * 3)[: 7 * i] + f"{i}" for i in range(12)]
ALL = [(query, text) for query in QUERIES for text in TEXTS]


@pytest.fixture(scope="module")
def opened(model: tiny.Tiny) -> Checkpoint:
    return Checkpoint.open(model.folder)


@pytest.fixture
def scorer(opened: Checkpoint) -> Scorer:
    return Scorer(opened, device="cpu")


@pytest.fixture(scope="module")
def expected(model: tiny.Tiny) -> np.ndarray[Any, Any]:
    return np.array([model.score(query, text) for query, text in ALL], dtype=np.float32)


class Watched:
    """An encoder that notes the shapes it is given, and runs out of memory above a number of rows."""

    def __init__(self, encoder: Any, rows: int = 10**9, error: BaseException | None = None) -> None:
        self.encoder, self.rows, self.error = encoder, rows, error
        self.sees_lists = encoder.sees_lists
        self.shapes: list[tuple[int, int]] = []
        self.failures = 0

    def __call__(self, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(ids) > self.rows and self.error is not None:
            self.failures += 1
            raise self.error
        self.shapes.append(tuple(ids.shape))
        return self.encoder(ids, *rest)

    @property
    def encoded(self) -> int:
        return sum(rows for rows, _ in self.shapes)


def watch(scorer: Scorer, rows: int = 10**9, error: BaseException | None = None) -> Watched:
    (place,) = scorer.places
    watched = Watched(place.encoder, rows, error)
    place.encoder = watched  # type: ignore[assignment]
    return watched


def score(scorer: Scorer, pairs: list[tuple[str, str]], **more: Any) -> np.ndarray[Any, Any]:
    return scorer.score([query for query, _ in pairs], [text for _, text in pairs], **more).scores


def test_scores_equal_transformers(scorer: Scorer, expected: np.ndarray[Any, Any]) -> None:
    scores = score(scorer, ALL)
    assert scores.dtype == np.float32
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 30, 64, 301, 10**6])
def test_scores_do_not_depend_on_the_batch_budget(
    opened: Checkpoint, expected: np.ndarray[Any, Any], batch_tokens: int
) -> None:
    scores = score(Scorer(opened, device="cpu", batch_tokens=batch_tokens), ALL)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_scores_do_not_depend_on_order_and_company(scorer: Scorer, expected: np.ndarray[Any, Any], seed: int) -> None:
    some = np.random.default_rng(seed).permutation(len(ALL))[: 20 + seed]
    scores = score(scorer, [ALL[i] for i in some])
    np.testing.assert_allclose(scores, expected[some], rtol=0, atol=1e-5)


def test_batches_keep_the_budget(opened: Checkpoint) -> None:
    scorer = Scorer(opened, device="cpu", batch_tokens=60)
    watched = watch(scorer)
    score(scorer, ALL)
    assert watched.encoded == len(ALL)
    assert max(rows * tokens for rows, tokens in watched.shapes) <= 60
    assert len(watched.shapes) > 5


def test_equal_pairs_are_encoded_once(scorer: Scorer, expected: np.ndarray[Any, Any]) -> None:
    watched = watch(scorer)
    repeated = [*ALL[:5], *ALL[:5], ALL[2], ALL[2]]
    scored = scorer.score([query for query, _ in repeated], [text for _, text in repeated])
    assert (watched.encoded, scored.distinct) == (5, 5)
    np.testing.assert_allclose(scored.scores, expected[[*range(5), *range(5), 2, 2]], rtol=0, atol=1e-5)
    assert scored.scores[2] == scored.scores[7] == scored.scores[10] == scored.scores[11]


def test_query_and_text_are_not_confused(scorer: Scorer, model: tiny.Tiny) -> None:
    scores = score(scorer, [("cat", "moon"), ("moon", "cat")])
    np.testing.assert_allclose(scores, [model.score("cat", "moon"), model.score("moon", "cat")], rtol=0, atol=1e-5)
    assert abs(scores[0] - scores[1]) > 1e-3


def test_no_pairs(scorer: Scorer) -> None:
    scored = scorer.score([], [])
    assert scored.scores.shape == (0,)
    assert scored.scores.dtype == np.float32
    assert (scored.distinct, scored.query_cuts, scored.doc_cuts) == (0, 0, 0)


def test_queries_and_texts_of_different_number_are_an_error(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        scorer.score(["cat", "sun"], ["moon"])


def test_cuts_are_counted_over_distinct_pairs(scorer: Scorer) -> None:
    long_query, long_text = "sun " * (tiny.QUERY_LENGTH + 1), "sun " * (tiny.DOC_LENGTH + 1)
    just_query, just_text = "sun " * tiny.QUERY_LENGTH, "sun " * tiny.DOC_LENGTH
    pairs = [(long_query, "cat"), (long_query, long_text), (just_query, just_text), ("cat", long_text)]
    pairs += [("cat", long_text), (long_query, "mat")]
    scored = scorer.score([query for query, _ in pairs], [text for _, text in pairs])
    assert (scored.distinct, scored.query_cuts, scored.doc_cuts) == (5, 3, 2)


def test_progress_counts_the_input_pairs(opened: Checkpoint) -> None:
    told: list[int] = []
    pairs = [*ALL, *ALL[:7]]
    score(Scorer(opened, device="cpu", batch_tokens=100), pairs, progress=told.append)
    assert len(told) > 5
    assert sum(told) == len(pairs)


@pytest.mark.parametrize("window", [1, 3, 16, len(ALL)])
def test_windows_give_equal_scores(
    scorer: Scorer, expected: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(module, "_WINDOW", window)
    told: list[int] = []
    watched = watch(scorer)
    pairs = [*ALL, *reversed(ALL)]
    scored = scorer.score([query for query, _ in pairs], [text for _, text in pairs], progress=told.append)
    np.testing.assert_allclose(scored.scores, [*expected, *expected[::-1]], rtol=0, atol=1e-5)
    assert watched.encoded == scored.distinct == len(ALL)
    assert max(rows for rows, _ in watched.shapes) <= window
    assert sum(told) == len(pairs)


def test_windows_count_cuts_as_one_window_does(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, texts = [query for query, _ in ALL], [text for _, text in ALL]
    whole = scorer.score(queries, texts)
    monkeypatch.setattr(module, "_WINDOW", 5)
    parts = scorer.score(queries, texts)
    assert (parts.query_cuts, parts.doc_cuts) == (whole.query_cuts, whole.doc_cuts)
    assert whole.query_cuts == len(TEXTS)
    assert whole.doc_cuts > 0


OUT_OF_MEMORY: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
    lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    lambda: MemoryError(),
]


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "cpu", "mps", "windows", "python"])
def test_out_of_memory_halves_the_batch_and_gives_the_same_scores(
    opened: Checkpoint, expected: np.ndarray[Any, Any], error: Callable[[], BaseException], rows: int
) -> None:
    scorer = Scorer(opened, device="cpu", batch_tokens=10_000)
    watched = watch(scorer, rows, error())
    told: list[int] = []
    np.testing.assert_allclose(score(scorer, ALL, progress=told.append), expected, rtol=0, atol=1e-5)
    assert watched.failures > 0
    assert watched.encoded == len(ALL)
    assert sum(told) == len(ALL)
    assert scorer.batch_tokens < 10_000


def test_after_out_of_memory_the_next_call_keeps_the_lower_budget(opened: Checkpoint) -> None:
    scorer = Scorer(opened, device="cpu", batch_tokens=10_000)
    watched = watch(scorer, 6, torch.OutOfMemoryError("out of memory"))
    same_length = [("cat", f"sun {letter}") for letter in "abcdefghijklmnopqrstuvwx"]
    score(scorer, same_length)
    assert watched.failures > 0
    watched.failures = 0
    score(scorer, same_length)
    assert watched.failures == 0


def test_after_out_of_memory_later_batches_are_smaller_at_once(opened: Checkpoint) -> None:
    # 24 pairs of 6 tokens in 3 batches of 8, of which 4 fit: one failure is enough to know.
    scorer = Scorer(opened, device="cpu", batch_tokens=8 * 6)
    watched = watch(scorer, 4, torch.OutOfMemoryError("out of memory"))
    score(scorer, [("cat", f"sun {letter}") for letter in "abcdefghijklmnopqrstuvwx"])
    assert watched.shapes == [(4, 6)] * 6
    assert watched.failures == 1


def test_a_single_pair_out_of_memory_is_an_error_that_says_what_to_do(scorer: Scorer) -> None:
    watch(scorer, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(MemoryError, match=r"Out of memory on cpu with a single pair of 5 tokens.*doc_length"):
        score(scorer, [("cat", "sun")])


def test_other_errors_of_the_encoder_pass_through_at_once(scorer: Scorer) -> None:
    watched = watch(scorer, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        score(scorer, ALL)
    assert watched.failures == 1


@pytest.mark.parametrize("window", [3, 1_000])
def test_errors_of_the_tokenizer_pass_through_its_thread(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    def encode(texts: list[str]) -> list[Any]:
        raise LookupError(f"no vocabulary for {texts[0]!r}")

    monkeypatch.setattr(module, "_WINDOW", window)
    monkeypatch.setattr(scorer.tokenizer, "encode_docs", encode)
    with pytest.raises(LookupError, match="no vocabulary for"):
        score(scorer, ALL)


def test_errors_of_the_progress_callback_pass_through(scorer: Scorer) -> None:
    def stop(_pairs: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(scorer, ALL, progress=stop)


@pytest.mark.parametrize("device", ["warp", "cuda:99", "cpu:x"])
def test_devices_that_are_not_there_are_errors_that_name_them(opened: Checkpoint, device: str) -> None:
    with pytest.raises(ValueError, match=f"device must be one that torch finds here, got '{device}'"):
        Scorer(opened, device=device)


def test_the_default_device_is_cuda_or_the_cpu_never_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(None) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(None) == torch.device("cuda")


def test_the_checkpoint_is_not_changed_and_its_weights_are_shared(opened: Checkpoint) -> None:
    before = {name: tensor.clone() for name, tensor in opened.encoder.state_dict().items()}
    scorer = Scorer(opened, device="cpu")
    score(scorer, ALL[:3])
    assert scorer.encoder.linear.weight.data_ptr() == opened.encoder.linear.weight.data_ptr()
    assert all(torch.equal(before[name], tensor) for name, tensor in opened.encoder.state_dict().items())


@tiny.needs_bfloat16
def test_bfloat16_scores_are_float32_and_near(opened: Checkpoint, expected: np.ndarray[Any, Any]) -> None:
    scores = score(Scorer(opened, device="cpu", dtype="bfloat16"), ALL)
    assert scores.dtype == np.float32
    assert 0 < np.abs(scores - expected).max() < 0.3
    assert not np.array_equal(scores, torch.from_numpy(scores).bfloat16().float().numpy())


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=tiny.needs_bfloat16), "int8"])
def test_reduced_precision_on_a_cpu_sees_few_shapes(opened: Checkpoint, dtype: Precision) -> None:
    """Since code is made for each; never wider than the encoder reads."""
    scorer = Scorer(opened, device="cpu", dtype=dtype)
    watched = watch(scorer)
    score(scorer, ALL)
    widths = {tokens for _, tokens in watched.shapes}
    assert (widths <= {16, 32, tiny.POSITIONS}) == (dtype != "float32")
    assert [scorer.places[0].width(longest) for longest in (1, 16, 17, 48)] == (
        [1, 16, 17, 48] if dtype == "float32" else [16, 16, 32, 48]
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_where_the_cpu_does_not_gain_is_float32_with_a_warning(
    opened: Checkpoint, monkeypatch: pytest.MonkeyPatch, dtype: Precision
) -> None:
    whole = Scorer(opened, device="cpu")
    works = module.onednn.works
    monkeypatch.setattr(module.onednn, "works", lambda kind: kind is not module.onednn.BFloat16Linear and works(kind))
    with pytest.warns(PrecisionWarning, match=f"dtype='{dtype}' is computed in float32 here.*AMX or AVX512-BF16"):
        scorer = Scorer(opened, device="cpu", dtype=dtype)
    assert scorer.precision == "float32"
    assert scorer.encoder is whole.encoder
    assert np.array_equal(score(scorer, ALL), score(whole, ALL))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=tiny.needs_bfloat16), "int8"])
def test_a_checkpoint_is_saved_and_trained_beside_packed_weights(
    opened: Checkpoint, tmp_path: Path, dtype: Precision
) -> None:
    before = {name: tensor.clone() for name, tensor in opened.encoder.state_dict().items()}
    scorer = Scorer(opened, device="cpu", dtype=dtype)
    first = score(scorer, ALL)
    again = Checkpoint.open(opened.save(tmp_path / "saved"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.encoder.state_dict().items())
    student = opened.encoder.copy()
    student.train()
    ids = torch.arange(5, 21).reshape(2, 8)
    student(ids, torch.zeros_like(ids)).sum().backward()
    grads = [weight.grad for weight in student.parameters()]
    assert all(grad is not None for grad in grads)
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    assert np.array_equal(score(scorer, ALL), first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in opened.encoder.state_dict().items())
    trained = Scorer(dataclasses.replace(opened, encoder=student.eval()), device="cpu", dtype=dtype)
    assert not np.array_equal(score(trained, ALL), first)


def test_int8_scores_are_float32_and_near(opened: Checkpoint, expected: np.ndarray[Any, Any]) -> None:
    scores = score(Scorer(opened, device="cpu", dtype="int8"), ALL)
    assert scores.dtype == np.float32
    assert 1e-4 < np.abs(scores - expected).max() < 0.3
    assert np.corrcoef(scores, expected)[0, 1] > 0.99


@pytest.mark.parametrize("batch_tokens", [1, 64, 10**6])
def test_int8_scores_do_not_depend_on_company(opened: Checkpoint, batch_tokens: int) -> None:
    # Not to 1e-5: float32 rounding, in the attention, decides now and then to which step a number is rounded.
    together = score(Scorer(opened, device="cpu", dtype="int8"), ALL)
    backwards = score(Scorer(opened, device="cpu", dtype="int8", batch_tokens=batch_tokens), ALL[::-1])[::-1]
    assert np.median(np.abs(together - backwards)) < 1e-5
    np.testing.assert_allclose(together, backwards, rtol=0, atol=0.05)


def test_int8_where_it_cannot_be_computed_is_an_error(opened: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.onednn, "works", lambda _kind: False)
    with pytest.raises(ValueError, match=r"dtype must be float32, .* on cpu here, got 'int8'. .* use 'float32'"):
        Scorer(opened, device="cpu", dtype="int8")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"dtype must be float32, .* on meta here, got 'int8'"):
        Scorer(opened, device="meta", dtype="int8")


def test_float32_without_packed_weights_gives_equal_scores(
    opened: Checkpoint, expected: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.onednn.works(PackedLinear)
    packed = Scorer(opened, device="cpu")
    monkeypatch.setattr(module.onednn, "works", lambda _kind: False)
    plain = Scorer(opened, device="cpu")
    assert [any(isinstance(m, PackedLinear) for m in s.encoder.modules()) for s in (packed, plain)] == [True, False]
    np.testing.assert_allclose(score(plain, ALL), expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_cuda_gives_the_scores_of_the_cpu(opened: Checkpoint, expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(score(Scorer(opened, device="cuda"), ALL), expected, rtol=0, atol=1e-4)
