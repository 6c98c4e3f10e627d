"""Scores (query, text) pairs with an open checkpoint: device, precision, batches, out-of-memory back-off."""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import PrecisionWarning
from . import onednn
from .batching import plan_batches
from .checkpoint import Checkpoint
from .encoder import Batch, CrossEncoder, PairEncoder
from .tokenizer import Pair, Tokens

DType = Literal["float32", "bfloat16", "float16"]
Precision = Literal[DType, "int8"]

# Measured on two CPU cores (benchmarks/README.md): larger batches do not fit in the cache, and with smaller ones small
# encoders lose more to the overhead of calls than they save in padding. An accelerator needs far larger batches. 32,768
# was not timed on one; by calculation it limits the activations of a base-size encoder to about 1 GB.
_DEFAULT_BATCH_TOKENS = {"cpu": 512}
_ACCELERATOR_BATCH_TOKENS = 32_768

_WINDOW = 16_384
"""Number of pairs that are tokenised and sorted together. It limits memory, and lets the next window be tokenised
while this one is encoded."""


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


class Scorer:
    """Scores pairs on one device.

    A pair's score depends on the pair only. Up to float32 rounding (1e-5), it does not depend on the order or on the
    other pairs of its batch.

    Args:
        checkpoint: Weights and tokenizer; never changed. Weights that are on the device already are not copied, but
            for those of the layers on an x86 CPU: there they are rearranged, for speed. What is made of them is shared
            by all scorers of the same weights on the same device.
        device: Torch device; default: CUDA where there is one, else the CPU. Apple's MPS only if named.
        dtype: ``"float32"``; ``"bfloat16"`` or ``"float16"`` for the layers, faster on a GPU (and bfloat16 on a CPU
            that multiplies it), other scores (in the second decimal); or ``"int8"``: linear layers in int8, for an x86
            CPU, other scores (in the first decimal). A half precision that a CPU does not gain from is computed in
            float32, with a ``PrecisionWarning``.
        batch_tokens: Tokens of a batch, padding included; default: 512 on the CPU, 32,768 elsewhere.

    Attributes:
        precision: What is computed in: ``dtype``, or what ``precision_on`` says.

    Raises:
        ValueError: torch does not know the device, it is not available, or it cannot compute in int8; or the encoder
            scores the passages of a query together.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device | None = None,
        dtype: Precision = "float32",
        batch_tokens: int | None = None,
    ) -> None:
        if checkpoint.encoder.sees_lists != isinstance(self, ListScorer):
            own = "ListScorer" if checkpoint.encoder.sees_lists else "Scorer"
            raise ValueError(
                f"{type(self).__name__}: checkpoint must be of the other kind, got {checkpoint}. Use {own}."
            )
        self.device = resolve_device(device)
        self.encoder = _scoring_encoder(checkpoint, self.device, dtype)
        self.tokenizer = checkpoint.tokenizer
        self.dtype = dtype
        self.precision = precision_on(self.device, dtype)
        if dtype in get_args(DType) and self.precision != dtype:
            warnings.warn(
                f"{type(self).__name__}: dtype={dtype!r} is computed in {self.precision} here: this CPU, or its torch, "
                f"has no fast products in {dtype} (bfloat16 takes AMX or AVX512-BF16). Give dtype={self.precision!r}, "
                f"or a GPU.",
                PrecisionWarning,
                stacklevel=2,
            )
        self.batch_tokens = batch_tokens or _DEFAULT_BATCH_TOKENS.get(self.device.type, _ACCELERATOR_BATCH_TOKENS)

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
        scores = np.empty(len(distinct), dtype=np.float32)
        query_cuts = doc_cuts = 0
        starts = range(0, len(distinct), _WINDOW)
        windows = [distinct[start : start + _WINDOW] for start in starts]
        for start, pairs in zip(starts, self._tokenised(windows), strict=True):
            query_cuts += sum(pair.query_cut for pair in pairs)
            doc_cuts += sum(pair.doc_cut for pair in pairs)
            lengths = np.fromiter((len(pair.ids) for pair in pairs), dtype=np.int64, count=len(pairs))
            pending = deque(plan_batches(lengths, self.batch_tokens))
            while pending:
                batch = pending.popleft()
                values = self._forward_within_memory([pairs[i] for i in batch])
                if values is None:  # plan the remaining pairs again, with the smaller batch size
                    rest = np.concatenate([batch, *pending])
                    pending = deque(rest[again] for again in plan_batches(lengths[rest], self.batch_tokens))
                    continue
                scores[start + batch] = values
                if progress is not None:
                    progress(int(repeats[start + batch].sum()))
        return Scored(scores[inverse], len(distinct), query_cuts, doc_cuts)

    def _tokenised(self, windows: Iterable[list[tuple[str, str]]]) -> Iterator[list[Pair]]:
        """Windows of tokenised pairs. The next window is tokenised while this one is encoded."""
        queries: dict[str, Tokens] = {}  # few, and repeated over windows
        with ThreadPoolExecutor(max_workers=1) as pool:
            tasks = (pool.submit(self._tokenise, window, queries) for window in windows)
            ahead = next(tasks, None)
            while ahead is not None:
                current = ahead.result()
                ahead = next(tasks, None)
                yield current

    def _tokenise(self, pairs: list[tuple[str, str]], queries: dict[str, Tokens]) -> list[Pair]:
        new = [query for query in dict.fromkeys(query for query, _ in pairs) if query not in queries]
        queries.update(zip(new, self.tokenizer.encode_queries(new), strict=True))
        texts = list(dict.fromkeys(text for _, text in pairs))
        docs = dict(zip(texts, self.tokenizer.encode_docs(texts), strict=True))
        return [self.tokenizer.join(queries[query], docs[text]) for query, text in pairs]

    def _forward_within_memory(self, *batches: list[Pair]) -> NDArray[np.float32] | None:
        """The scores of some batches together; None if memory ran out and the batch size was halved."""
        largest = max(batches, key=len)
        longest = max(len(pair.ids) for pair in largest)
        try:
            with torch.inference_mode(), self._autocast():
                scores = self._logits([self._batch(batch) for batch in batches])
                return scores.float().cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(largest) == 1:
                what, remedy = "a single pair", "or lower doc_length"
                if len(batches) > 1:
                    what = f"a list of {len(batches)} passages, the longest"
                    remedy = "lower doc_length, or re-rank fewer documents per query"
                raise MemoryError(
                    f"Out of memory on {self.device} with {what} of {longest} tokens. Free memory, choose another "
                    f"device, {remedy}."
                ) from error
        # After the handler, so that nothing refers to the failed batch's tensors any more.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch_tokens = (len(largest) + 1) // 2 * longest
        return None

    def _logits(self, batches: list[Batch]) -> torch.Tensor:
        return torch.cat([self.encoder(*batch) for batch in batches])

    def _batch(self, pairs: list[Pair]) -> Batch:
        ids, types, mask = self.tokenizer.pad(pairs)
        return self._to_device(ids), self._to_device(types), None if mask.all() else self._to_device(mask)

    def _to_device(self, array: NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.device.type == "cpu" or self.dtype == "float32":  # on a CPU the layers have the precision
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.dtype))


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
        scores = [np.empty(0, dtype=np.float32)]
        query_cuts = doc_cuts = 0
        windows = ([(query, text) for text in texts] for query, texts in zip(queries, lists, strict=True))
        for pairs in self._tokenised(windows):
            query_cuts += sum(pair.query_cut for pair in pairs)
            doc_cuts += sum(pair.doc_cut for pair in pairs)
            scores.append(self._score_list(pairs))
            if progress is not None:
                progress(len(pairs))
        joined = np.concatenate(scores)
        return Scored(joined, len(joined), query_cuts, doc_cuts)

    def _logits(self, batches: list[Batch]) -> torch.Tensor:
        return self.encoder.together(batches)

    def _score_list(self, pairs: list[Pair]) -> NDArray[np.float32]:
        lengths = np.fromiter((len(pair.ids) for pair in pairs), dtype=np.int64, count=len(pairs))
        values = None
        while values is None:
            plan = plan_batches(lengths, self.batch_tokens)
            values = self._forward_within_memory(*([pairs[row] for row in rows] for rows in plan))
        scores = np.empty_like(values)
        scores[np.concatenate(plan)] = values
        return scores


_TWINS: weakref.WeakKeyDictionary[PairEncoder, weakref.WeakValueDictionary[Hashable, PairEncoder]]
_TWINS = weakref.WeakKeyDictionary()
"""Encoders for scoring that are in use, by what they were made of: re-rankers of one checkpoint share them."""
_TWINS_LOCK = threading.Lock()


def _scoring_encoder(checkpoint: Checkpoint, device: torch.device, dtype: Precision) -> PairEncoder:
    if dtype == "int8" and not (device.type == "cpu" and onednn.kind_of(dtype)):
        raise ValueError(
            f"Scorer: dtype must be float32, bfloat16 or float16 on {device} here, got 'int8'. int8 needs an x86 CPU "
            f"and a torch whose oneDNN computes it right; use 'float32', or 'bfloat16' on a GPU."
        )
    kind = onednn.kind_of(dtype) if device.type == "cpu" else None
    encoder = checkpoint.encoder
    weights = list(encoder.parameters())
    if encoder.training or any(weight.requires_grad or weight.is_inference() for weight in weights):
        return _made(encoder, device, kind)  # weights that change: what is made of them now is of no use later
    # The versions tell weights that were written to since then.
    key = (device, kind, tuple((weight.data_ptr(), weight._version) for weight in weights))
    with _TWINS_LOCK:
        twins = _TWINS.setdefault(encoder, weakref.WeakValueDictionary())
        twin = twins.get(key)
        if twin is None:
            twin = twins[key] = _made(encoder, device, kind)
    return twin


def _made(encoder: PairEncoder, device: torch.device, kind: onednn.Kind | None) -> PairEncoder:
    twin = encoder.on(device)
    if kind is not None:
        onednn.replace_linears(twin, kind)
    near = 1e-3 if kind is onednn.PackedLinear else 0.1
    floats = kind in (onednn.PackedLinear, onednn.BFloat16Linear)
    if floats and not isinstance(twin, CrossEncoder) and not _agree(twin, encoder.on(device), near):
        return encoder.on(device)  # a module of transformers that reads its linear maps' weights itself
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


def precision_on(device: torch.device, dtype: Precision) -> str:
    """The precision that a device computes in where ``dtype`` is asked for."""
    return onednn.computed_in(dtype) if device.type == "cpu" else dtype


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device to score on: CUDA if available, else the CPU; MPS on request only.

    Raises:
        ValueError: torch does not know the device, or it is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on the device
        raise ValueError(f"device must be one that torch finds here, got {str(device)!r}: {error}") from error
    return resolved


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()  # the CPU's and MPS's allocators raise plain RuntimeErrors
    return "out of memory" in message or "can't allocate memory" in message or "not enough memory" in message
