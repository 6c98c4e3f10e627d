"""What stands in pipelines, as ``identity.Walk`` counts it: arrays and frames, models, indexes, PyTerrier's and ours.

Indexes and checkpoints count by their files and weights, so that copies are equal wherever they lie, and collections by
their ids in ir_datasets. Java is asked for names only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyterrier as pt

from ..identity import SAYS, Kind, Shape, Walk, framed_together
from ..identity.owners import owner_of, version_of
from .digests import blake2b_of_parts

if TYPE_CHECKING:
    from ..scoring.checkpoint import Checkpoint

_HASHED = 1 << 22
_PASSING = frozenset(
    {
        "_ctxt", "_ctxt_key", "_index_obj", "_index_ref", "_tmpdir", "concurrentIL", "dataset_cache", "db", "docnos",
        "file", "file_name", "label", "manager", "memory", "meta", "overwrite", "RequestContextMatching", "_opened",
        "_warned", "_docnos",
    }
)  # fmt: skip
"""What PyTerrier and its plugins keep beside what their results follow from."""
_CACHES = ("scorer", "retriever", "transformer")


def values(value: Any, _: Walk) -> Shape | None:
    """Arrays, frames and tensors, by content."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return Shape(f"array {value.shape}", parts=[("items", value.reshape(-1).tolist())])
        return Shape("array", blake2b_of_parts([str((value.dtype.str, value.shape)), np.ascontiguousarray(value)]))
    if isinstance(value, np.generic):
        return Shape(f"number {value.dtype.str}", value.tobytes())
    if isinstance(value, np.dtype):
        return Shape("dtype", str(value).encode())
    if isinstance(value, pd.DataFrame):
        return frame(value, with_index=True)
    if isinstance(value, pd.Series | pd.Index):
        return Shape("column", parts=[("name", value.name), ("values", column(value))])
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    try:
        return Shape("tensor", tensor_digest(value))
    except (RuntimeError, TypeError, NotImplementedError):  # without storage of its own: meta, some quantised
        return Shape("torch.Tensor", unreadable=True, library=True)


def frame(given: pd.DataFrame, *, with_index: bool = False) -> Shape:
    """A frame: its columns by name, in any order; its index only where it says more than the rows' order."""
    parts: list[tuple[str, Any]] = [(str(name), column(given.iloc[:, n])) for n, name in enumerate(given.columns)]
    if with_index and not (isinstance(given.index, pd.RangeIndex) and given.index.start == 0):
        parts.append(("(index)", column(given.index)))
    return Shape(f"frame {len(given)}", parts=parts)


def column(given: Any) -> Shape:
    """A column: strings are the same in pandas 2's and 3's dtype."""
    dtype = given.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "biufcmM":
        return Shape("numbers", blake2b_of_parts([dtype.str, np.ascontiguousarray(given.to_numpy())]))
    items = given.tolist()
    flat = framed_together(items)
    return Shape("items", flat) if flat is not None else Shape("objects", parts=[("items", items)])


def tensor_digest(tensor: Any) -> bytes:
    """The digest of a tensor's type, shape and content, wherever it lies."""
    torch = sys.modules["torch"]
    plain = tensor.detach().cpu().contiguous()
    content = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else np.empty(0, np.uint8)
    return blake2b_of_parts([f"{tensor.dtype} {tuple(tensor.shape)}", content])


def tokenizers(value: Any, _: Walk) -> Shape | None:
    """Tokenizers as their file says them: cutting and padding are set by whoever calls them."""
    module = sys.modules.get("tokenizers")
    if module is not None and isinstance(value, module.Tokenizer):
        stated = json.loads(value.to_str())
        return Shape("tokenizer", parts=[(k, v) for k, v in stated.items() if k not in ("truncation", "padding")])
    return None


def java(value: Any, walk: Walk) -> Shape | None:
    """Java's objects by their classes, indexes by their files, and functions that Java calls back."""
    if isinstance(value, type) and "__javaclass__" in vars(value):
        return Shape("java class", str(vars(value)["__javaclass__"]).encode())
    if hasattr(type(value), "__javainterfaces__"):
        return Shape("java callback", parts=[("fn", getattr(value, "fn", None))])
    name = getattr(type(value), "__javaclass__", None)
    if name is None:
        return None
    if name in ("org/terrier/querying/IndexRef", "org/terrier/structures/Index"):
        return terrier_index(str(value.toString()), walk)
    if hasattr(value, "getInfo"):  # a weighting model, with its parameters
        return Shape("java object", f"{name} {value.getInfo()}".encode())
    return Shape("java object", str(name).encode())


def terrier_index(place: str, walk: Walk) -> Shape:
    """A Terrier index by its files; what it says of itself without the dates."""
    path = Path(place)
    path = path if path.suffix == ".properties" else path / "data.properties"
    if not path.is_file():
        return Shape("org.terrier.structures.Index", unreadable=True, library=True)
    prefix = path.name.removesuffix("properties")
    parts: list[tuple[str, Any]] = []
    for file in sorted(path.parent.iterdir()):
        if file == path:
            lines = [
                line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line[:1] != "#"
            ]
            parts.append((file.name[len(prefix) :], Shape("lines", "\n".join(sorted(lines)).encode())))
        elif file.name.startswith(prefix):
            parts.append((file.name[len(prefix) :], Shape("file", walk.file(file).encode())))
    return Shape("terrier index", parts=parts)


def transformers(value: Any, walk: Walk) -> Shape | None:
    """PyTerrier's transformers and indexes, its plugins', and what they read."""
    if isinstance(value, type):
        return None
    ir_datasets = sys.modules.get("ir_datasets")
    if ir_datasets is not None and isinstance(value, ir_datasets.Dataset) and hasattr(value, "dataset_id"):
        return Shape("collection", str(value.dataset_id()).encode())
    if isinstance(value, pt.datasets.Dataset) and hasattr(value, "irds_ref"):
        return Shape("collection", str(value.irds_ref().dataset_id()).encode())
    if not isinstance(value, pt.Transformer | pt.Artifact) or hasattr(type(value), SAYS):
        return None
    kind = type(value)
    owner = owner_of(kind.__module__)
    if isinstance(value, pt.transformer.SourceTransformer) and owner is not None:
        return Shape("run", parts=[("df", frame(value.df)), *_version(owner)])
    if owner is None and not _reads_itself(kind):
        return None  # the user's own
    held: dict[str, Any] = {
        n: v for n, v in vars(value).items() if n not in _PASSING or (owner is None and n[:1] != "_")
    }
    made = _names(held)
    if isinstance(value, pt.Artifact) or hasattr(value, "path"):
        place = held.pop("path", None)
        for opened in ("_index_obj", "_index_ref"):  # an index that was given as an object of Java
            if not isinstance(place, str | os.PathLike) and vars(value).get(opened) is not None:
                made.append(("index", vars(value)[opened]))
                break
        filled = any(held.get(name) is not None for name in _CACHES)
        if place is not None and not filled:  # a cache over a scorer holds what that gives
            made.append(("files", _files(place, walk)))
    named = f"{kind.__module__}.{kind.__qualname__}" if owner is not None else "object"
    return Shape(named, parts=[*made, *(_version(owner) if owner is not None else [("class", kind)])])


def _names(held: dict[str, Any]) -> list[tuple[str, Any]]:
    from ..identity.walk import named  # the same for all objects: without secrets and placement

    return [(name, item) for name, item in named(held) if name != "path"]


def _reads_itself(kind: type) -> bool:
    """Whether the way in which a class is pickled is PyTerrier's: that of retrievers leaves the index out."""
    for base in kind.__mro__:
        if "__getstate__" in vars(base):
            return owner_of(base.__module__) is not None and base is not object
    return issubclass(kind, pt.Artifact)


def _files(place: Any, walk: Walk) -> Shape:
    if not isinstance(place, str | os.PathLike) or not Path(place).is_dir():
        return Shape("nowhere")
    if (Path(place) / "data.properties").is_file():
        return terrier_index(os.fspath(place), walk)
    files = sorted(file for file in Path(place).rglob("*") if file.is_file() and not file.name.startswith("."))
    return Shape(
        "folder",
        parts=[(file.relative_to(place).as_posix(), Shape("file", walk.file(file).encode())) for file in files],
    )


def _version(owner: str | None) -> list[tuple[str, Any]]:
    if owner in (None, "Python"):
        return []
    stated = version_of(str(owner))
    return [(f"version of {owner}", Shape("version", stated.encode(), value=stated, shows=True))]


def ours(value: Any, walk: Walk) -> Shape | None:
    """This package's transformers, and what they are made of."""
    module = type(value).__module__
    if isinstance(value, type) or not module.startswith(__package__.partition(".")[0]):
        reranker = sys.modules.get(f"{__package__.partition('.')[0]}.reranker")
        if reranker is None or not isinstance(value, reranker.CrossEncoderReRanker):
            return None
        return Shape(
            "object", parts=[("model", _reranker(value)), ("class", type(value)), *_names(_without_model(value))]
        )
    name = type(value).__name__
    version = _version(owner_of(module))
    if hasattr(value, "clone") and hasattr(value, "checkpoint") and hasattr(value, "model"):
        return Shape(name, parts=[*_reranker(value).parts, *version])
    if name == "Checkpoint":
        return Shape(name, parts=[*_checkpoint(value), *version])
    if name == "ScoreCache" and value._loaded:  # whose model may lie elsewhere
        whose = {key: item for key, item in value.model_identity.items() if key not in ("model", "revision")}
        return Shape(name, parts=[*whose.items(), *version])
    if name == "ScoreCache":
        return Shape(name, parts=[("reranker", value.reranker), *version])
    if name == "ParquetText":
        return Shape(name, parts=[("source", Shape("file", walk.file(value.source).encode())), *version])
    if name == "TextLoader":
        return Shape(name, parts=[("dataset", value.collection), ("fields", value._fields), *version])
    if name == "IndexText":
        index = value._index if value.location is None else terrier_index(os.fspath(value.location), walk)
        return Shape(name, parts=[("index", index), ("key", value.key), *version])
    if name == "FrameText":
        return Shape(name, parts=[("texts", value._held), *version])
    if name == "MappedRun":
        return Shape(name, parts=[("rankings", value._rankings), *version])
    if name in ("FineTuning", "Distillation"):
        return Shape(name, parts=[("reranker", value._reranker), *version])
    if name == "Rankings":
        return Shape(name, rankings_digest(value))
    if name == "JoinedRankings":
        return Shape(name, parts=[(f"run {number}", run) for number, run in enumerate(value.runs)])
    return None


def _without_model(reranker: Any) -> dict[str, Any]:
    skipped = {"model", "revision", "local_files_only", "device", "batch_tokens", "_opened", "_warned"}
    return {name: item for name, item in vars(reranker).items() if name not in skipped}


def _reranker(value: Any) -> Shape:
    settings = {name: getattr(value, name, None) for name in ("activation", "text_field")}
    settings["dtype"] = getattr(value, "precision", None)  # what this machine computes in
    from ..scoring.checkpoint import Checkpoint
    from ..scoring.folders import commit_of

    is_open = value._opened is not None or isinstance(value.model, Checkpoint)
    commit = None if is_open else commit_of(
        value.model, revision=value.revision, local_files_only=value.local_files_only
    )  # fmt: skip
    if commit is not None:
        lengths = {"query_length": value.query_length, "doc_length": value.doc_length}
        model = Shape("model", parts=[("commit", commit)], either=True)
        return Shape("re-ranker", parts=[*settings.items(), *lengths.items(), ("model", model)])
    checkpoint = value.checkpoint
    return Shape(
        "re-ranker",
        parts=[
            *settings.items(), ("query_length", value.query_length), ("doc_length", value.doc_length),
            *_checkpoint(checkpoint, with_lengths=isinstance(value.model, Checkpoint)),
        ],
    )  # fmt: skip


def _checkpoint(checkpoint: Checkpoint, *, with_lengths: bool = True) -> Iterator[tuple[str, Any]]:
    known: list[tuple[str, Any]] = [("weights", weights_digest(checkpoint))]
    if checkpoint.revision is not None:
        known.append(("commit", checkpoint.revision))
    yield "model", Shape("model", parts=known, either=True)
    if with_lengths:
        lengths = checkpoint.tokenizer.lengths
        yield "lengths", [lengths.query, lengths.doc, lengths.pair]


def weights_digest(checkpoint: Checkpoint) -> str:
    """A digest of all that scores follow from, but for lengths: weights, encoder and tokenizer."""
    stated = json.loads(checkpoint.tokenizer.tokenizer.to_str())
    parts: list[Any] = [
        json.dumps(stated, sort_keys=True),
        f"{checkpoint.tokenizer.template} {checkpoint.encoder.signature}",
    ]
    for name, tensor in sorted(checkpoint.encoder.state_dict().items()):
        parts += [name, tensor_digest(tensor)]
    return blake2b_of_parts(parts).hex()


def rankings_digest(rankings: Any) -> bytes:
    """A digest of every ranking: queries, documents, scores; in bounded memory."""
    parts: list[Any] = [str(rankings.has_scores)]
    size = 1_000
    qids = list(rankings.qids[:])
    for start in range(0, len(qids), size):
        some = [rankings[position] for position in range(start, min(start + size, len(qids)))]
        parts.append(framed_together(one.qid for one in some))
        parts.append(np.array([len(one.docnos) for one in some], dtype=np.int64))
        parts.append(framed_together(docno for one in some for docno in one.docnos))
        parts += [np.asarray(one.scores, dtype=np.float64) for one in some if one.scores is not None]
        parts = [blake2b_of_parts(parts)]
    return bytes(parts[0]) if parts else b""


KINDS: tuple[Kind, ...] = (values, tokenizers, java, ours, transformers)
"""What is known, asked in this order."""


def walk(before: Walk | None = None) -> Walk:
    """A walk that knows what stands in pipelines; see ``Walk``."""
    return Walk(KINDS, before=before)
