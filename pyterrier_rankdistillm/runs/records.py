"""Describes transformers and versions in JSON values, for records, and for the names of score caches.

Whether saved work is the same work is decided by ``runs.kept``, which looks at the content of everything.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import io
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import pyterrier as pt

from ..identity import is_secret
from .digests import md5_of_text
from .kinds import weights_digest

if TYPE_CHECKING:
    from ..reranker import CrossEncoderReRanker

_MODEL_NAMES = ("model_id", "model_name", "model_name_or_path", "name_or_path", "revision")
_DEEPEST, _LARGEST, _LONGEST = 6, 50, 1000  # levels, items, characters: what is more is only digested


def model_identity(reranker: CrossEncoderReRanker) -> dict[str, Any]:
    """All that a re-ranker's scores depend on, except the device: the model (which it opens), lengths, precision.

    The weights and the tokenizer count by content, so that a folder whose checkpoint was replaced is another model.
    """
    checkpoint = reranker.checkpoint
    lengths = checkpoint.tokenizer.lengths
    return {
        "model": checkpoint.source,
        "revision": checkpoint.revision,
        "query_length": lengths.query,
        "doc_length": lengths.doc,
        "pair_length": lengths.pair,
        "dtype": reranker.precision,
        "activation": reranker.activation,
        "weights": weights_digest(checkpoint),
    }


def describe(transformer: pt.Transformer) -> dict[str, Any]:
    """A transformer's class and settings, and those of the transformers in it. Secrets (API keys, ...) are left out.

    Monoelectra re-rankers are described by ``model_identity``; from objects that hold a model, its name is taken.
    """
    return cast(dict[str, Any], _described(transformer, 0))


def _described(value: Any, depth: int) -> Any:
    from ..reranker import CrossEncoderReRanker  # loads torch, which reading and writing runs does without

    if isinstance(value, CrossEncoderReRanker):
        return {"class": _class_name(value), **model_identity(value)}
    if isinstance(value, pt.Transformer):
        try:
            attributes = pt.inspect.transformer_attributes(value, strict=False)
        except pt.inspect.InspectError:
            attributes = []
        known = {a.name: a.value for a in attributes if a.value is not pt.inspect.TransformerAttribute.MISSING}
        return {"class": _class_name(value), **_names_of_model(value), **_json(known, depth)}
    return _json(value, depth)


def _json(value: Any, depth: int) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST:
        return {"characters": len(value), "md5": md5_of_text(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # not a JSON value, and NaN would not equal itself
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, pd.DataFrame):
        return {"rows": len(value), "columns": list(value.columns), "md5": frame_digest(value)}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if depth >= _DEEPEST:
        return _class_name(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset) and len(value) > _LARGEST:
        return {"class": _class_name(value), "items": len(value), "md5": md5_of_text(repr(value))}
    if isinstance(value, Mapping):
        return {
            str(key): "(left out)" if is_secret(str(key), item) and item else _described(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        items = [_described(item, depth + 1) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{_module_of(value)}.{value.__qualname__}"
    return {"class": _class_name(value), **_names_of_model(value)}


PACKAGES = (
    "pyterrier-rankdistillm", "python-terrier", "pyterrier", "pyterrier-caching", "pyterrier-generative", "torch",
    "transformers", "tokenizers", "accelerate", "vllm", "openai", "ray", "ir_datasets", "ir-measures",
    "pytrec_eval-terrier", "scipy", "statsmodels", "pandas", "numpy",
)  # fmt: skip
"""Packages that numbers depend on."""


def versions() -> dict[str, str]:
    """The versions of Python and of those of ``PACKAGES`` that are installed."""
    return dict(_versions())


@functools.cache  # each is read from a file, and what a process has imported does not change
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


RECORD = "record.json"
"""The record's file, in the folder of what it is of."""


def record(
    by: str, *, settings: Mapping[str, Any], models: Mapping[str, Any], data: Mapping[str, Any] | list[Any], **more: Any
) -> dict[str, Any]:
    """The shape that all records in folders have: caches, reproductions and trained checkpoints.

    Args:
        by: The function or class that made it.
        settings: How.
        models: By what: names, revisions and digests.
        data: From what: names and digests.
        **more: What else there is to say.

    Returns:
        These, with ``versions`` and ``hardware``, as JSON values.
    """
    return {
        "by": by, "settings": dict(settings), "models": dict(models), "data": data, **more, "versions": versions(),
        "hardware": hardware(),
    }  # fmt: skip


def public(record: Any) -> Any:
    """A record as others may read it: of local paths only the last name."""
    if isinstance(record, Mapping):
        return {public(key): public(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [public(value) for value in record]
    is_path = isinstance(record, str) and (record.startswith("~") or Path(record).is_absolute())
    return Path(record).name if is_path else record


def json_file(content: Any) -> io.BytesIO:
    """A JSON file in memory, for what is published."""
    return io.BytesIO(json.dumps(content, indent=2).encode())


def frame_digest(frame: pd.DataFrame) -> str:
    """The MD5 of a frame's columns and rows (not of its index)."""
    digest = hashlib.md5(usedforsecurity=False)
    for column in frame.columns:
        digest.update(json.dumps([str(column), [str(value) for value in frame[column]]]).encode())
    return digest.hexdigest()


def _names_of_model(value: Any) -> dict[str, str]:
    found = {name: getattr(value, name, None) for name in _MODEL_NAMES}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def _class_name(value: Any) -> str:
    return f"{_module_of(type(value))}.{type(value).__qualname__}"


def _module_of(value: Any) -> str:
    """The module's name; of a script that is being run, the name it has where it is imported."""
    name: str = value.__module__
    if name != "__main__":
        return name
    main = sys.modules[name]
    if main.__spec__ is not None:  # python -m
        return main.__spec__.name
    file = getattr(main, "__file__", None)  # a notebook has none
    return name if file is None else Path(file).stem


def hardware() -> dict[str, Any]:
    """Processor, cores, and the GPUs that torch sees, where it is in use."""
    found: dict[str, Any] = {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
