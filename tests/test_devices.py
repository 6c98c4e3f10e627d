"""Where batches are computed: several devices, threads, precision, and a device that never waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyterrier_rankdistillm import Checkpoint, MonoElectra
from pyterrier_rankdistillm.reranker import TruncationWarning
from pyterrier_rankdistillm.scoring import devices
from pyterrier_rankdistillm.scoring import scorer as module
from pyterrier_rankdistillm.scoring.scorer import ListScorer, Place, Scorer

PAIRS = [(query, f"the cat sat on the mat {n} " * (n % 5 + 1)) for query in ("cat", "why rain") for n in range(24)]
QUERIES, TEXTS = [query for query, _ in PAIRS], [text for _, text in PAIRS]


@pytest.fixture(scope="module")
def opened(model: tiny.Tiny) -> Checkpoint:
    return Checkpoint.open(model.folder)


@pytest.fixture(scope="module")
def expected(model: tiny.Tiny) -> np.ndarray[Any, Any]:
    return np.array([model.score(query, text) for query, text in PAIRS], dtype=np.float32)


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(devices, "cores", lambda: 3)
    monkeypatch.setattr(devices, "_POOLS", {})
    before = torch.get_num_threads()
    torch.set_num_threads(5)  # what a thread would compute with that is not told otherwise
    yield
    torch.set_num_threads(before)
    for pool in devices._POOLS.values():
        pool.shutdown()


def compute_with(place: Place, encoder: Callable[..., torch.Tensor]) -> None:
    """Lets a function score a place's batches."""
    encoder.sees_lists = False  # type: ignore[attr-defined]
    place.encoder = encoder  # type: ignore[assignment]


# --- cores ---


@pytest.mark.usefixtures("three_cores")
def test_cores_take_batches_of_their_own(opened: Checkpoint, expected: np.ndarray[Any, Any]) -> None:
    scorer = Scorer(opened, device="cpu", batch_tokens=60)
    (place,) = scorer.places
    encoder, seen, all_at_once = place.encoder, set(), threading.Barrier(3, timeout=20)

    def noted(*batch: Any) -> torch.Tensor:
        if threading.get_ident() not in {thread for thread, _ in seen}:
            seen.add((threading.get_ident(), torch.get_num_threads()))
            all_at_once.wait()
        return encoder(*batch)

    compute_with(place, noted)
    np.testing.assert_allclose(scorer.score(QUERIES, TEXTS).scores, expected, rtol=0, atol=1e-5)
    assert len(seen) == 3
    assert {threads for _, threads in seen} == {1}
    assert threading.get_ident() not in {thread for thread, _ in seen}


@pytest.mark.usefixtures("three_cores")
def test_threads_that_start_later_have_the_callers_number_of_torch_threads(opened: Checkpoint) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Scorer(opened, device="cpu", batch_tokens=60).score(QUERIES, TEXTS)
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_few_pairs_are_computed_by_all_cores_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(devices, "cores", lambda: 3)
    assert devices.threads(torch.device("cpu"), 1) is devices.HERE
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(devices, "cores", lambda: 1)
    assert devices.threads(torch.device("cpu"), 100) is devices.HERE


@pytest.mark.usefixtures("three_cores")
def test_a_containers_share_holds_for_few_pairs_too() -> None:
    few = devices.threads(torch.device("cpu"), 1)
    assert few.submit(torch.get_num_threads, lambda found: found).result() == 3
    assert torch.get_num_threads() == 5


@pytest.mark.usefixtures("three_cores")
@pytest.mark.parametrize(("tasks", "lanes"), [(1, 1), (2, 3), (100, 3)])
def test_half_as_many_tasks_as_cores_have_a_core_each(tasks: int, lanes: int) -> None:
    assert devices.threads(torch.device("cpu"), tasks).number == lanes


@pytest.mark.usefixtures("three_cores")
def test_few_pairs_are_spread_over_cores(opened: Checkpoint) -> None:
    scorer = Scorer(opened, device="cpu", batch_tokens=10_000)
    told: list[int] = []
    scorer.score(["cat"] * 6, [f"sun {letter}" for letter in "abcdef"], progress=told.append)
    assert told == [2, 2, 2]


@pytest.mark.usefixtures("three_cores")
def test_concurrent_calls_share_the_cores(opened: Checkpoint, expected: np.ndarray[Any, Any]) -> None:
    scorer = Scorer(opened, device="cpu", batch_tokens=60)
    with ThreadPoolExecutor(4) as callers:
        results = list(callers.map(lambda _: scorer.score(QUERIES, TEXTS).scores, range(8)))
    for scores in results:
        np.testing.assert_array_equal(scores, results[0])
    np.testing.assert_allclose(results[0], expected, rtol=0, atol=1e-5)
    assert len(devices._POOLS) == 1


@pytest.mark.usefixtures("three_cores")
def test_lists_go_to_cores_too() -> None:
    import test_set_encoder

    opened = Checkpoint.open(test_set_encoder.FIXTURE / "with-token")
    lists = [[f"the cat sat {n}" for n in range(size)] for size in (3, 5, 2, 4)]
    queries = ["cat", "sun", "rain", "moon"]
    together = ListScorer(opened, device="cpu", batch_tokens=30).score_lists(queries, lists)
    alone = [
        ListScorer(opened, device="cpu").score_lists([query], [texts]).scores
        for query, texts in zip(queries, lists, strict=True)
    ]
    np.testing.assert_allclose(together.scores, np.concatenate(alone), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("three_cores")
def test_an_error_ends_what_other_cores_compute(opened: Checkpoint) -> None:
    scorer = Scorer(opened, device="cpu", batch_tokens=30)
    (place,) = scorer.places
    encoder, calls, running = place.encoder, iter(range(1000)), []

    def failing(*batch: Any) -> torch.Tensor:
        running.append(1)
        try:
            if next(calls) == 4:
                raise LookupError("the fifth batch")
            time.sleep(0.01)
            return encoder(*batch)
        finally:
            running.pop()

    compute_with(place, failing)
    with pytest.raises(LookupError, match="the fifth batch"):
        scorer.score(QUERIES, TEXTS)
    assert not running
    assert next(calls) < 15  # of 24 batches


# --- several devices ---


def test_several_devices_give_equal_scores_and_all_work(opened: Checkpoint, expected: np.ndarray[Any, Any]) -> None:
    scorer = Scorer(opened, device=["cpu", "cpu"], batch_tokens=60)
    counts = [0, 0]
    for number, place in enumerate(scorer.places):

        def counting(*batch: Any, number: int = number, encoder: Any = place.encoder) -> torch.Tensor:
            counts[number] += 1
            return encoder(*batch)

        compute_with(place, counting)
    np.testing.assert_allclose(scorer.score(QUERIES, TEXTS).scores, expected, rtol=0, atol=1e-5)
    assert min(counts) > 2
    assert scorer.devices == "cpu, cpu"


def test_several_devices_of_a_re_ranker(opened: Checkpoint, expected: np.ndarray[Any, Any]) -> None:
    reranker = MonoElectra(opened, device=["cpu", "cpu"])
    with pytest.warns(TruncationWarning):
        out = reranker.rank("cat", TEXTS[:24]).sort_values("docno")
    np.testing.assert_allclose(out["score"], expected[:24], rtol=0, atol=1e-5)
    assert "device=['cpu', 'cpu']" in repr(reranker)
    with pytest.raises(ValueError, match=r"device must be one that torch finds here, got 'warp'"):
        MonoElectra(opened, device=["cpu", "warp"]).rank("cat", ["sun"])
    with pytest.raises(ValueError, match=r"device must be a device or several, got \[\]"):
        MonoElectra(opened, device=[]).rank("cat", ["sun"])


def test_a_device_has_the_next_batch_before_the_last_one_is_read(
    opened: Checkpoint, expected: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU computes in order what it is given, so it never waits if a batch is launched before the last is done."""
    scorer = Scorer(opened, device="cpu", batch_tokens=60)
    (place,) = scorer.places
    batches = len(
        scorer._plan(np.array([len(pair.ids) for pair in scorer._tokenise(list(dict.fromkeys(PAIRS)), {})]), 1)
    )
    launched: list[int] = []
    given = threading.Condition()
    encoder = place.encoder

    def launch(*batch: Any) -> torch.Tensor:
        scores = encoder(*batch)
        with given:
            launched.append(len(scores))
            given.notify_all()
        return scores

    compute_with(place, launch)
    reads = iter(range(1, batches + 1))

    def read(scores: torch.Tensor) -> Callable[[], np.ndarray[Any, Any]]:
        def wait_for() -> np.ndarray[Any, Any]:
            with given:
                needed = min(next(reads) + 1, batches)
                assert given.wait_for(lambda: len(launched) >= needed, timeout=20), "the device waits"
            return scores.numpy()

        return wait_for

    monkeypatch.setattr(place, "read", read)
    gpu = devices.Threads(ThreadPoolExecutor(1), ThreadPoolExecutor(1), number=1, ahead=3)
    monkeypatch.setattr(module, "threads", lambda *_: gpu)
    np.testing.assert_allclose(scorer.score(QUERIES, TEXTS).scores, expected, rtol=0, atol=1e-5)
    assert len(launched) == batches > 10
    assert gpu.reading is not None
    for pool in (gpu.launching, gpu.reading):
        pool.shutdown()


def test_the_first_window_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_WINDOW", 4)
    monkeypatch.setattr(module, "_WINDOW", 16)
    assert [len(window) for window in module._windows(PAIRS)] == [4, 8, 16, 16, 4]


# --- memory ---

ALLOCATION = [
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "HIP out of memory. Tried to allocate 20.00 GiB",
    "std::bad_alloc",
]


@pytest.mark.parametrize("text", ALLOCATION)
def test_failed_allocations_are_out_of_memory(text: str) -> None:
    assert devices.is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", ["CUDA error: device-side assert triggered", "CUBLAS_STATUS_EXECUTION_FAILED"])
def test_other_errors_are_not(text: str) -> None:
    assert not devices.is_out_of_memory(RuntimeError(text))


@pytest.mark.usefixtures("three_cores")
def test_a_pair_that_only_fits_alone_is_computed_alone(opened: Checkpoint, expected: np.ndarray[Any, Any]) -> None:
    scorer = Scorer(opened, device="cpu", batch_tokens=1)
    (place,) = scorer.places
    encoder, room = place.encoder, threading.Semaphore(1)

    def crowded(*batch: Any) -> torch.Tensor:
        if not room.acquire(blocking=False):
            raise torch.OutOfMemoryError("out of memory")
        try:
            time.sleep(0.002)
            return encoder(*batch)
        finally:
            room.release()

    compute_with(place, crowded)
    np.testing.assert_allclose(scorer.score(QUERIES, TEXTS).scores, expected, rtol=0, atol=1e-5)


# --- precision ---


def test_float32_is_float32_whatever_the_program_set() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with devices.float32_products("ieee"):
            assert not allows_tf32()
            with devices.float32_products("ieee"):
                assert not allows_tf32()
        assert allows_tf32()
        torch.set_float32_matmul_precision("highest")
        with devices.float32_products("tf32"):
            assert allows_tf32()
        assert not allows_tf32()
    finally:
        torch.set_float32_matmul_precision(before)


def allows_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


def test_scorers_of_different_precision_take_turns() -> None:
    seen: list[tuple[str, bool]] = []

    def use(precision: Any) -> None:
        with devices.float32_products(precision):
            time.sleep(0.01)
            seen.append((precision, allows_tf32()))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, ["ieee", "tf32"] * 4))
    assert len(seen) == 8
    assert all(found == (precision == "tf32") for precision, found in seen)


def test_tf32_needs_a_gpu(opened: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"dtype must be float32, .* on cpu here, got 'tf32'\. .* use 'float32'"):
        Scorer(opened, device="cpu", dtype="tf32")


class Casts(TorchDispatchMode):
    """Notes the shapes of the tensors that are cast."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op is torch.ops.aten._to_copy.default and "dtype" in kwargs:
            self.shapes.add(args[0].shape)
        return op(*args, **kwargs or {})


def test_half_precision_casts_no_weight_in_a_batch(tmp_path: Path) -> None:
    opened = Checkpoint.open(families.make(tmp_path / "model", "bert"))
    half = opened.encoder.on(torch.device("cpu"))
    half.compute_in(torch.bfloat16)
    tokenizer = opened.tokenizer
    pairs = [
        tokenizer.join(tokenizer.encode_queries(["cat"])[0], doc)
        for doc in tokenizer.encode_docs(["sun", "the rain", "the cat sat"])
    ]
    batch = [torch.from_numpy(x) for x in tokenizer.pad(pairs)]
    with torch.no_grad(), Casts() as casts:
        half(*batch)
    # Of a layer the input of its attention and of its first dense layer; and the mask.
    hidden = torch.Size([*batch[0].shape, 32])
    assert hidden in casts.shapes
    assert not {weight.shape for weight in half.parameters()} & casts.shapes


@pytest.mark.parametrize("name", ["electra", "roberta", "modernbert-cls", "deberta-v2", "albert"])
def test_half_precision_casts_the_layers_once_and_keeps_the_rest(name: str, tmp_path: Path) -> None:
    opened = Checkpoint.open(families.make(tmp_path / "model", name))
    whole = Scorer(opened, device="cpu")
    half = opened.encoder.on(torch.device("cpu"))
    half.compute_in(torch.bfloat16)
    linear = {id(getattr(m, n)) for m, n, *_ in half.linear_maps()}
    for module_name, part in half.named_modules():
        for parameter_name, parameter in part.named_parameters(recurse=False):
            expected = torch.bfloat16 if id(part) in linear else torch.float32
            assert parameter.dtype == expected, f"{module_name}.{parameter_name}"
    ids, types, mask = (torch.from_numpy(x) for x in whole.tokenizer.pad(whole._tokenise(families.PAIRS[:12], {})))
    with torch.inference_mode():
        scores, near = half(ids, types, mask), whole.encoder(ids, types, mask)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, near, rtol=0, atol=0.1)
    assert len(scores.unique()) == len(near.unique())  # the head does not collapse close scores
    assert all(weight.dtype == torch.float32 for weight in opened.encoder.parameters())
