"""Scores (query, text) pairs with an open checkpoint: device, precision, batches, out-of-memory back-off."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from . import onednn
from .batching import plan_batches
from .checkpoint import Checkpoint
from .encoder import CrossEncoder, PairEncoder
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
        dtype: ``"float32"``, or autocast to ``"bfloat16"`` or ``"float16"``: faster on a GPU, other scores (in the
            second decimal); or ``"int8"``: linear layers in int8, for an x86 CPU, other scores (in the first decimal).
        batch_tokens: Tokens of a batch, padding included; default: 512 on the CPU, 32,768 elsewhere.

    Raises:
        ValueError: torch does not know the device, it is not available, or it cannot compute in int8.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device | None = None,
        dtype: Precision = "float32",
        batch_tokens: int | None = None,
    ) -> None:
        self.device = resolve_device(device)
        self.encoder = _scoring_encoder(checkpoint, self.device, dtype)
        self.tokenizer = checkpoint.tokenizer
        self.dtype = dtype
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
        for start, pairs in self._encoded_windows(distinct):
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

    def _encoded_windows(self, pairs: list[tuple[str, str]]) -> Iterator[tuple[int, list[Pair]]]:
        """Windows of tokenised pairs, with their start. The next window is tokenised while this one is encoded."""
        queries: dict[str, Tokens] = {}  # few, and repeated over windows
        starts = range(0, len(pairs), _WINDOW)
        with ThreadPoolExecutor(max_workers=1) as pool:
            tasks = (pool.submit(self._tokenise, pairs[start : start + _WINDOW], queries) for start in starts)
            ahead = next(tasks, None)
            for start in starts:
                assert ahead is not None
                current = ahead.result()
                ahead = next(tasks, None)
                yield start, current

    def _tokenise(self, pairs: list[tuple[str, str]], queries: dict[str, Tokens]) -> list[Pair]:
        new = [query for query in dict.fromkeys(query for query, _ in pairs) if query not in queries]
        queries.update(zip(new, self.tokenizer.encode_queries(new), strict=True))
        texts = list(dict.fromkeys(text for _, text in pairs))
        docs = dict(zip(texts, self.tokenizer.encode_docs(texts), strict=True))
        return [self.tokenizer.join(queries[query], docs[text]) for query, text in pairs]

    def _forward_within_memory(self, batch: list[Pair]) -> NDArray[np.float32] | None:
        """The scores of a batch; None if memory ran out and the batch size was halved."""
        longest = max(len(pair.ids) for pair in batch)
        try:
            return self._forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise MemoryError(
                    f"Out of memory on {self.device} with a single pair of {longest} tokens. Free memory, choose "
                    f"another device, or lower doc_length."
                ) from error
        # After the handler, so that nothing refers to the failed batch's tensors any more.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch_tokens = (len(batch) + 1) // 2 * longest
        return None

    def _forward(self, batch: list[Pair]) -> NDArray[np.float32]:
        ids, types, mask = self.tokenizer.pad(batch)
        with torch.inference_mode(), self._autocast():
            scores = self.encoder(
                self._to_device(ids), self._to_device(types), None if mask.all() else self._to_device(mask)
            )
            return scores.float().cpu().numpy()  # type: ignore[no-any-return]

    def _to_device(self, array: NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.dtype in ("float32", "int8"):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.dtype))


_TWINS: weakref.WeakKeyDictionary[PairEncoder, weakref.WeakValueDictionary[Hashable, PairEncoder]]
_TWINS = weakref.WeakKeyDictionary()
"""Encoders for scoring that are in use, by what they were made of: re-rankers of one checkpoint share them."""
_TWINS_LOCK = threading.Lock()


def _scoring_encoder(checkpoint: Checkpoint, device: torch.device, dtype: Precision) -> PairEncoder:
    if dtype == "int8" and not (device.type == "cpu" and onednn.works(onednn.Int8Linear)):
        raise ValueError(
            f"Scorer: dtype must be float32, bfloat16 or float16 on {device} here, got 'int8'. int8 needs an x86 CPU "
            f"and a torch whose oneDNN computes it right; use 'float32', or 'bfloat16' on a GPU."
        )
    kind: type[onednn.PackedLinear] | type[onednn.Int8Linear] | None = None
    if dtype == "int8":
        kind = onednn.Int8Linear
    elif dtype == "float32" and device.type == "cpu" and onednn.works(onednn.PackedLinear):
        kind = onednn.PackedLinear
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


def _made(
    encoder: PairEncoder, device: torch.device, kind: type[onednn.PackedLinear] | type[onednn.Int8Linear] | None
) -> PairEncoder:
    twin = encoder.on(device)
    if kind is not None:
        onednn.replace_linears(twin, kind)
    if kind is onednn.PackedLinear and not isinstance(twin, CrossEncoder) and not _agree(twin, encoder.on(device)):
        return encoder.on(device)  # a module of transformers that reads its linear maps' weights itself
    return twin


def _agree(packed: PairEncoder, plain: PairEncoder) -> bool:
    """Whether packed layers change nothing, found by trying."""
    ids = torch.arange(16).reshape(2, 8) % packed.vocab_size
    with torch.inference_mode():
        try:
            scores = packed(ids, torch.zeros_like(ids))
        except (AttributeError, RuntimeError, TypeError):
            return False
        return torch.allclose(scores, plain(ids, torch.zeros_like(ids)), rtol=1e-3, atol=1e-3)


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
