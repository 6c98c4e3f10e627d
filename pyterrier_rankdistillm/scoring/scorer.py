"""Scores (query, text) pairs with an open checkpoint: batches on their way to devices, and scores back.

Texts are tokenised ahead in a thread, window by window; windows are cut into batches of pairs of similar length, which
the threads of the devices pad, copy, launch and read (``devices``); the caller collects scores as they come.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import PrecisionWarning
from . import attention, onednn
from .attention import Kernel, Packed
from .batching import REDUCED_MULTIPLE, plan_batches, rounded_width
from .checkpoint import Checkpoint
from .devices import (
    Device,
    Threads,
    copied,
    float32_products,
    is_out_of_memory,
    padded_batch,
    resolve_devices,
    threads,
)
from .encoder import CrossEncoder, PairEncoder
from .tokenizer import Pair, Tokens

DType = Literal["float32", "bfloat16", "float16"]
Precision = Literal[DType, "int8", "tf32"]

# Measured (benchmarks/README.md): on CPU cores larger batches do not fit in the cache, and with smaller ones small
# encoders lose more to the overhead of calls than they save in padding. An accelerator needs far larger batches.
_DEFAULT_BATCH_TOKENS = {"cpu": 512}
_ACCELERATOR_BATCH_TOKENS = 32_768

_FIRST_WINDOW, _WINDOW = 1_024, 16_384
"""Number of pairs that are tokenised and sorted together: at first, so that devices need not wait long for the first
batches, and at most, which limits memory. Windows double from the one to the other."""


@dataclass(frozen=True)
class Scored:
    """The result of ``Scorer.score``.

    Args:
        scores: float32 logits, one per pair, in the order of the input, shape (pairs,).
        distinct: Number of distinct pairs that were encoded.
        query_cuts: Number of distinct pairs whose query was truncated.
        doc_cuts: Number of distinct pairs whose text was truncated.
    """

    scores: NDArray[np.float32]
    distinct: int
    query_cuts: int
    doc_cuts: int


@dataclass(frozen=True)
class _Task:
    """What a device computes at a time.

    Args:
        rows: Positions of its pairs among all, shape (pairs,).
        pairs: Its pairs.
        batches: Positions, among its pairs, of the pairs of each batch.
    """

    rows: NDArray[np.int64]
    pairs: list[Pair]
    batches: list[NDArray[np.int64]]

    @property
    def largest(self) -> NDArray[np.int64]:
        """Its batch of most pairs."""
        return max(self.batches, key=len)

    def longest(self, batch: NDArray[np.int64]) -> int:
        """Tokens of a batch's longest pair."""
        return max(len(self.pairs[i].ids) for i in batch)


class Place:
    """A device with an encoder on it.

    Args:
        device: The device.
        encoder: The encoder, whose weights are there.
        kernel: Attention for batches without padding; None: batches are padded.
    """

    def __init__(self, device: torch.device, encoder: PairEncoder, kernel: Kernel | None = None) -> None:
        self.device = device
        self.encoder = encoder
        self.kernel = kernel
        reduced = device.type == "cpu" and onednn.kind_in(encoder) not in (None, onednn.PackedLinear)
        self.multiple, self.most = REDUCED_MULTIPLE if reduced else 1, encoder.positions

    def width(self, longest: int) -> int:
        """Tokens that a batch is padded to, for the number of its longest pair."""
        return rounded_width(longest, self.multiple, self.most)

    def scores(self, batches: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]) -> torch.Tensor:
        """Launches some batches.

        Args:
            batches: Ids, types and mask of each, as ``PairTokenizer.pad`` gives them.

        Returns:
            float32 logits in the order of the batches, on the device, shape (pairs,).
        """
        if self.encoder.sees_lists:
            return self.encoder.together([padded_batch(self.device, *batch) for batch in batches])
        if self.kernel is not None:
            return torch.cat([self._packed(self.kernel, *batch) for batch in batches])
        return torch.cat([self.encoder(*padded_batch(self.device, *batch)) for batch in batches])

    def read(self, scores: torch.Tensor) -> Callable[[], NDArray[np.float32]]:
        """Begins to copy scores from the device; what it returns waits for them, but for nothing launched later."""
        if self.device.type != "cuda":
            values: NDArray[np.float32] = scores.float().cpu().numpy()
            return lambda: values
        copied = torch.empty(scores.shape, pin_memory=True)
        copied.copy_(scores, non_blocking=True)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def wait_for() -> NDArray[np.float32]:
            done.synchronize()
            return copied.numpy().copy()

        return wait_for

    def _packed(
        self, kernel: Kernel, ids: NDArray[np.int64], types: NDArray[np.int64], mask: NDArray[np.bool_]
    ) -> torch.Tensor:
        lengths = mask.sum(axis=1)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        pair_of = np.repeat(np.arange(len(lengths)), lengths)
        begins, owners, tokens, kinds = (copied(x, self.device) for x in (offsets, pair_of, ids[mask], types[mask]))
        return self.encoder.packed(tokens, kinds, Packed(begins, owners, int(lengths.max()), kernel))


class Scorer:
    """Scores pairs on one device, or on several.

    A pair's score depends on the pair only. Up to float32 rounding (1e-5), it does not depend on the order or on the
    other pairs of its batch. In less precision such roundings decide now and then to which of two steps a number is
    rounded, and grow (with the demo checkpoint to 0.02 in bfloat16; benchmarks/README.md).

    Args:
        checkpoint: Weights and tokenizer; never changed. Weights that are on the device already are not copied, but
            for those of the layers on an x86 CPU: there they are rearranged, for speed. What is made of them is shared
            by all scorers of the same weights on the same device.
        device: Torch device; default: CUDA where there is one, else the CPU. Apple's MPS only if named. Several, such
            as ``["cuda:0", "cuda:1"]``: each batch goes to whichever is free.
        dtype: ``"float32"``; ``"bfloat16"`` or ``"float16"`` for the layers, faster on a GPU (and bfloat16 on a CPU
            that multiplies it), other scores (in the second decimal); ``"tf32"``: float32 with products of 10-bit
            fractions, on a GPU; or ``"int8"``: linear layers in int8, for an x86 CPU, other scores (in the first
            decimal). A half precision that a CPU does not gain from is computed in float32, with a
            ``PrecisionWarning``.
        batch_tokens: Tokens of a batch, padding included; default: 512 on the CPU, where each core has a batch of its
            own, 32,768 elsewhere.

    Attributes:
        precision: What is computed in: ``dtype``, or what ``precision_on`` says.

    Raises:
        ValueError: torch does not know a device, it is not available, or it cannot compute in that precision; or the
            encoder scores the passages of a query together.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: Device = None,
        dtype: Precision = "float32",
        batch_tokens: int | None = None,
    ) -> None:
        if checkpoint.encoder.sees_lists != isinstance(self, ListScorer):
            own = "ListScorer" if checkpoint.encoder.sees_lists else "Scorer"
            raise ValueError(
                f"{type(self).__name__}: checkpoint must be of the other kind, got {checkpoint}. Use {own}."
            )
        self.places = [_place(checkpoint, one, dtype) for one in resolve_devices(device)]
        self.tokenizer = checkpoint.tokenizer
        self.dtype = dtype
        self.precision = precision_on([place.device for place in self.places], dtype)
        if dtype in get_args(DType) and self.precision != dtype:
            warnings.warn(
                f"{type(self).__name__}: dtype={dtype!r} is computed in {self.precision} here: this CPU, or its torch, "
                f"has no fast products in {dtype} (bfloat16 takes AMX or AVX512-BF16). Give dtype={self.precision!r}, "
                f"or a GPU.",
                PrecisionWarning,
                stacklevel=2,
            )
        defaults = (_DEFAULT_BATCH_TOKENS.get(place.device.type, _ACCELERATOR_BATCH_TOKENS) for place in self.places)
        self.batch_tokens = batch_tokens or min(defaults)

    @property
    def encoder(self) -> PairEncoder:
        """The encoder on the first device."""
        return self.places[0].encoder

    @property
    def devices(self) -> str:
        """The names of the devices."""
        return ", ".join(str(place.device) for place in self.places)

    def score(
        self, queries: Sequence[str], texts: Sequence[str], *, progress: Callable[[int], object] | None = None
    ) -> Scored:
        """Scores ``queries[i]`` against ``texts[i]``, equal pairs once.

        Args:
            queries: One per pair.
            texts: One per pair, as many as queries.
            progress: Called with the number of input pairs that a batch has scored.
        """
        pair_of: dict[tuple[str, str], int] = {}
        inverse = np.fromiter(
            (pair_of.setdefault(pair, len(pair_of)) for pair in zip(queries, texts, strict=True)),
            dtype=np.int64,
            count=len(queries),
        )
        distinct = list(pair_of)
        repeats = np.bincount(inverse, minlength=len(distinct))
        scored = self._scored(_windows(distinct), len(distinct), len(distinct), progress, repeats)
        return replace(scored, scores=scored.scores[inverse])

    def _plan(self, lengths: NDArray[np.int64], lanes: int) -> list[list[NDArray[np.int64]]]:
        """The batches of each task, for pairs of these lengths."""
        return [[batch] for batch in plan_batches(lengths, self.batch_tokens, lanes)]

    def _scored(
        self,
        windows: Iterable[list[tuple[str, str]]],
        pairs: int,
        tasks: int,
        progress: Callable[[int], object] | None,
        repeats: NDArray[np.int64] | None = None,
    ) -> Scored:
        """Scores the pairs of all windows.

        Args:
            windows: Pairs that are tokenised and planned together.
            pairs: Their number.
            tasks: Number of tasks that they can be split into.
            progress: Called with the number of pairs of each task, each counted as often as ``repeats`` says.
            repeats: One per pair; default: 1.
        """
        scores = np.empty(pairs, dtype=np.float32)
        feeders = [threads(place.device, tasks) for place in self.places]
        todo = _Tasks(self._tokenised(windows), self._plan, sum(feeder.number for feeder in feeders))
        computed = self._computed(todo, list(zip(self.places, feeders, strict=True)))
        with float32_products("tf32" if self.dtype == "tf32" else "ieee"), contextlib.closing(computed):
            for rows, values in computed:
                scores[rows] = values
                if progress is not None:
                    progress(len(rows) if repeats is None else int(repeats[rows].sum()))
        return Scored(scores, pairs, todo.query_cuts, todo.doc_cuts)

    def _computed(
        self, todo: _Tasks, places: list[tuple[Place, Threads]]
    ) -> Generator[tuple[NDArray[np.int64], NDArray[np.float32]], None, None]:
        """Rows and their scores, in the order in which devices finish tasks."""
        running: dict[Future[NDArray[np.float32] | _OutOfMemory], tuple[_Task, int, bool]] = {}
        # Tasks that a device is given at a time: those that it computes, and as many that wait for it.
        room = [feeder.ahead for _, feeder in places]
        over = threading.Event()
        try:
            while True:
                while True:
                    given = Counter(number for _, number, _ in running.values())
                    number = min(range(len(places)), key=lambda n: given[n] / room[n])
                    if given[number] >= room[number] or (task := todo.take()) is None:
                        break
                    place, feeder = places[number]
                    future = feeder.submit(functools.partial(self._launch, place, task, over), _read)
                    running[future] = task, number, room[number] == 1
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task, number, alone = running.pop(future)
                    values = future.result()
                    if not isinstance(values, _OutOfMemory):
                        yield task.rows, values
                        continue
                    device = places[number][0].device
                    if len(task.largest) == 1 and alone:
                        raise _no_room(device, task) from values.error
                    if len(task.largest) == 1:
                        room[number] = 1
                    self._lower_budget(task)
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                    todo.again(task)
        finally:  # nothing computes on after an error, or an interrupt
            over.set()
            for future in running:
                future.cancel()
            wait(running)

    def _launch(
        self, place: Place, task: _Task, over: threading.Event
    ) -> Callable[[], NDArray[np.float32]] | _OutOfMemory:
        """Launches a task; what it returns waits for its scores, in the order of its batches."""
        if over.is_set():
            raise CancelledError
        try:
            padded = [
                self.tokenizer.pad([task.pairs[i] for i in batch], place.width(task.longest(batch)))
                for batch in task.batches
            ]
            with torch.inference_mode():
                return place.read(place.scores(padded))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _OutOfMemory(error.with_traceback(None))  # without what holds the failed batch's tensors

    def _lower_budget(self, task: _Task) -> None:
        """Halves what did not fit; several tasks of the same size halve it once."""
        half = (len(task.largest) + 1) // 2 * task.longest(task.largest)
        self.batch_tokens = min(self.batch_tokens, half)

    def _tokenised(self, windows: Iterable[list[tuple[str, str]]]) -> Iterator[list[Pair]]:
        """Windows of tokenised pairs. The next window is tokenised, in a thread, while this one is encoded."""
        queries: dict[str, Tokens] = {}  # few, and repeated over windows
        rest = iter(windows)
        current = [self._tokenise(window, queries) for window in islice(rest, 1)]  # nothing to encode yet
        following = next(rest, None)
        if following is None:
            yield from current
            return
        with ThreadPoolExecutor(max_workers=1) as pool:
            for window in chain([following], rest):
                ahead = pool.submit(self._tokenise, window, queries)
                yield from current
                current = [ahead.result()]
        yield from current

    def _tokenise(self, pairs: list[tuple[str, str]], queries: dict[str, Tokens]) -> list[Pair]:
        new = [query for query in dict.fromkeys(query for query, _ in pairs) if query not in queries]
        queries.update(zip(new, self.tokenizer.encode_queries(new), strict=True))
        texts = list(dict.fromkeys(text for _, text in pairs))
        docs = dict(zip(texts, self.tokenizer.encode_docs(texts), strict=True))
        return [self.tokenizer.join(queries[query], docs[text]) for query, text in pairs]


class ListScorer(Scorer):
    """Scores each query's passages together, with an encoder that ``sees_lists``; see ``Scorer``.

    A score depends on the query and on the set of its passages. Up to float32 rounding (1e-5), it does not depend on
    their order, on batches, or on other queries.
    """

    def score_lists(
        self,
        queries: Sequence[str],
        lists: Sequence[Sequence[str]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> Scored:
        """Scores each query's passages. Each is a member of the list, equal texts too.

        Args:
            queries: One per list.
            lists: The passages of each query, at least one.
            progress: Called with the number of passages that were scored.

        Returns:
            Scores in the order of the lists, one list after another, shape (passages,).
        """
        windows = ([(query, text) for text in texts] for query, texts in zip(queries, lists, strict=True))
        return self._scored(windows, sum(map(len, lists)), len(lists), progress)

    def _plan(self, lengths: NDArray[np.int64], lanes: int) -> list[list[NDArray[np.int64]]]:  # noqa: ARG002
        """One task: a list, whose batches are computed together."""
        return [plan_batches(lengths, self.batch_tokens)]


class _Tasks:
    """The tasks of all windows, planned when they are asked for.

    Args:
        windows: Tokenised pairs.
        plan: The batches of each task, for pairs of given lengths and a number of lanes.
        lanes: Number of tasks that are computed at the same time.

    Attributes:
        query_cuts: Number of pairs so far whose query was truncated.
        doc_cuts: Number of pairs so far whose text was truncated.
    """

    def __init__(
        self,
        windows: Iterator[list[Pair]],
        plan: Callable[[NDArray[np.int64], int], list[list[NDArray[np.int64]]]],
        lanes: int,
    ) -> None:
        self.windows, self.plan, self.lanes = windows, plan, lanes
        self.query_cuts = self.doc_cuts = 0
        self._pairs = 0
        self._waiting: deque[_Task] = deque()

    def take(self) -> _Task | None:
        """The next task; None: there are no more."""
        while not self._waiting:
            pairs = next(self.windows, None)
            if pairs is None:
                return None
            self.query_cuts += sum(pair.query_cut for pair in pairs)
            self.doc_cuts += sum(pair.doc_cut for pair in pairs)
            self._add(np.arange(self._pairs, self._pairs + len(pairs)), pairs)
            self._pairs += len(pairs)
        return self._waiting.popleft()

    def again(self, task: _Task) -> None:
        """Plans a task again that did not fit, and those that wait, since batches are smaller now."""
        tasks = [task, *self._waiting]
        self._waiting.clear()
        self._add(np.concatenate([one.rows for one in tasks]), [pair for one in tasks for pair in one.pairs])

    def _add(self, rows: NDArray[np.int64], pairs: list[Pair]) -> None:
        lengths = np.fromiter((len(pair.ids) for pair in pairs), dtype=np.int64, count=len(pairs))
        for batches in self.plan(lengths, self.lanes) if pairs else ():
            members = np.concatenate(batches)
            starts = np.cumsum([0, *map(len, batches)])
            own = [np.arange(start, stop) for start, stop in pairwise(starts)]
            self._waiting.append(_Task(rows[members], [pairs[i] for i in members], own))


@dataclass(frozen=True)
class _OutOfMemory:
    """What a task that did not fit returns instead of scores."""

    error: BaseException


def _read(launched: Callable[[], NDArray[np.float32]] | _OutOfMemory) -> NDArray[np.float32] | _OutOfMemory:
    return launched if isinstance(launched, _OutOfMemory) else launched()


def _no_room(device: torch.device, task: _Task) -> MemoryError:
    longest = max(task.longest(batch) for batch in task.batches)
    what, remedy = "a single pair", "or lower doc_length"
    if len(task.batches) > 1:
        what = f"a list of {len(task.batches)} passages, the longest"
        remedy = "lower doc_length, or re-rank fewer documents per query"
    return MemoryError(
        f"Out of memory on {device} with {what} of {longest} tokens. Free memory, choose another device, {remedy}."
    )


def _windows(pairs: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    rest, size = iter(pairs), min(_FIRST_WINDOW, _WINDOW)
    while window := list(islice(rest, size)):
        yield window
        size = min(2 * size, _WINDOW)


_TWINS: weakref.WeakKeyDictionary[PairEncoder, weakref.WeakValueDictionary[Hashable, PairEncoder]]
_TWINS = weakref.WeakKeyDictionary()
"""Encoders for scoring that are in use, by what they were made of: re-rankers of one checkpoint share them."""
_TWINS_LOCK = threading.Lock()


def _place(checkpoint: Checkpoint, device: torch.device, dtype: Precision) -> Place:
    encoder = _scoring_encoder(checkpoint, device, dtype)
    kernel = None
    if isinstance(encoder, CrossEncoder) and encoder.packs:
        head_size = encoder.config.hidden_size // encoder.config.num_attention_heads
        kernel = attention.kernel(device, _half(device, dtype) or torch.float32, head_size)
    return Place(device, encoder, kernel)


def _scoring_encoder(checkpoint: Checkpoint, device: torch.device, dtype: Precision) -> PairEncoder:
    if dtype == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise ValueError(
            f"Scorer: dtype must be float32, bfloat16, float16 or int8 on {device} here, got 'tf32'. TF32 needs an "
            f"NVIDIA GPU of capability 8.0 or later; use 'float32'."
        )
    if dtype == "int8" and not (device.type == "cpu" and onednn.kind_of(dtype)):
        raise ValueError(
            f"Scorer: dtype must be float32, bfloat16 or float16 on {device} here, got 'int8'. int8 needs an x86 CPU "
            f"and a torch whose oneDNN computes it right; use 'float32', or 'bfloat16' on a GPU."
        )
    kind = onednn.kind_of(dtype) if device.type == "cpu" else None
    half = _half(device, dtype)
    encoder = checkpoint.encoder
    weights = list(encoder.parameters())
    if encoder.training or any(weight.requires_grad or weight.is_inference() for weight in weights):
        return _made(encoder, device, kind, half)  # weights that change: what is made of them now is of no use later
    # The versions tell weights that were written to since then.
    key = (device, kind, half, tuple((weight.data_ptr(), weight._version) for weight in weights))
    with _TWINS_LOCK:
        twins = _TWINS.setdefault(encoder, weakref.WeakValueDictionary())
        twin = twins.get(key)
        if twin is None:
            twin = twins[key] = _made(encoder, device, kind, half)
    return twin


def _half(device: torch.device, dtype: Precision) -> torch.dtype | None:
    """What torch's own layers are cast to; None: nothing. A CPU has layers of its own for each precision."""
    return getattr(torch, dtype) if device.type != "cpu" and dtype in ("bfloat16", "float16") else None


def _made(
    encoder: PairEncoder, device: torch.device, kind: onednn.Kind | None, half: torch.dtype | None
) -> PairEncoder:
    twin = encoder.on(device)
    if half is not None:
        twin.compute_in(half)
    if kind is not None:
        onednn.replace_linears(twin, kind)
    near = 1e-3 if kind is onednn.PackedLinear else 0.1
    floats = kind in (onednn.PackedLinear, onednn.BFloat16Linear)
    if floats and not isinstance(twin, CrossEncoder) and not _agree(twin, encoder.on(device), near):
        twin = encoder.on(device)  # a module of transformers that reads its linear maps' weights itself
        if kind is onednn.BFloat16Linear:
            twin.compute_in(torch.bfloat16)
    return twin


def _agree(packed: PairEncoder, plain: PairEncoder, near: float) -> bool:
    """Whether packed layers change scores by no more than rounding does, found by trying."""
    ids = torch.arange(16).reshape(2, 8) % packed.vocab_size
    with torch.inference_mode():
        try:
            scores = packed(ids, torch.zeros_like(ids))
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(scores, plain(ids, torch.zeros_like(ids)), rtol=near, atol=near)


def precision_on(devices: Sequence[torch.device], dtype: Precision) -> str:
    """The precision that devices compute in where ``dtype`` is asked for.

    Raises:
        ValueError: They differ.
    """
    found = {onednn.computed_in(dtype) if device.type == "cpu" else dtype for device in devices}
    if len(found) > 1:
        raise ValueError(
            f"device must be devices that compute alike, got {', '.join(map(str, devices))}, of which the CPU has no "
            f"fast {dtype}. Name GPUs only, or use dtype='float32'."
        )
    return found.pop()
