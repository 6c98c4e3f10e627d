"""The model card of a saved checkpoint: what it is, what it was made of, how it was trained, how well it did."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


def public_name(source: str) -> str:
    """What a checkpoint came from, as others may read it: a hub id, or a folder's own name without where it lies."""
    path = Path(source).expanduser()
    is_path = path.is_absolute() or source.startswith((".", "~")) or os.sep * 2 in source or path.is_dir()
    return path.name if is_path else source


class _Kind(NamedTuple):
    title: str
    tags: list[str]
    reranker: str
    method: str


_RANK_DISTILLM = "Rank-DistiLLM (Schlatt et al., ECIR 2025, https://arxiv.org/abs/2405.07920)"
_SET_ENCODER = "Set-Encoder (Schlatt et al., ECIR 2025, https://arxiv.org/abs/2404.06912)"
_TAGS = ["cross-encoder", "monoelectra"]
_KINDS = {
    "monoelectra": _Kind("A monoELECTRA passage re-ranker", _TAGS, "CrossEncoderReRanker", _RANK_DISTILLM),
    "cross-encoder": _Kind("A cross-encoder passage re-ranker", _TAGS, "CrossEncoderReRanker", _RANK_DISTILLM),
    "set-encoder": _Kind("A Set-Encoder passage re-ranker", ["set-encoder"], "SetEncoderReRanker", _SET_ENCODER),
}


def card(kind: str, *, source: str, lengths: str, notes: str, format: str, record: Mapping[str, Any] | None) -> str:  # noqa: A002
    """The text of ``README.md``.

    Args:
        kind: What the model is: ``"monoelectra"``, another ``"cross-encoder"``, or a ``"set-encoder"``.
        source: Where its weights came from.
        lengths: What it reads of a query and a passage.
        notes: What else a user has to know; may be empty.
        format: Whose format the files have.
        record: How it was trained, as in ``record.json``, if it was.
    """
    title, tags, reranker, method = _KINDS[kind]
    header: dict[str, Any] = {
        "library_name": "pyterrier-rankdistillm",
        "pipeline_tag": "text-ranking",
        "tags": tags,
    }
    training = None if record is None else record.get("training")
    results = _results(title, training or {})
    if results:
        header["model-index"] = results
    # JSON is YAML, and quotes whatever needs it.
    lines = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in header.items())
    parts = [
        f"---\n{lines}---\n\n# {title}\n\nWeights from: {source}.\n\n{lengths}\n",
        notes,
        f"```python\nfrom pyterrier_rankdistillm import {reranker}\n\n"
        f'pipeline = first_stage >> {reranker}("this/folder")\n```\n',
        "" if training is None else _training(training, record or {}),
        f"Format: {format}. Method: {method}.\n",
    ]
    return "\n".join(part for part in parts if part)


def _results(title: str, training: Mapping[str, Any]) -> list[dict[str, Any]]:
    validation = training.get("validation") or {}
    if validation.get("kept") is None:
        return []
    measured = {"type": validation["measure"], "name": validation["measure"], "value": round(validation["kept"], 4)}
    result = {
        "task": {"type": "text-ranking"},
        "dataset": {"type": "validation", "name": "the validation topics of the training"},
        "metrics": [measured],
    }
    return [{"name": title, "results": [result]}]


def _training(training: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    rows = [("stage", training["stage"]), ("loss", training["loss"])]
    rows += list(record["data"].items())
    rows += [("queries", training["queries"]), ("steps", training["steps"])]
    rows += [(f"left out: {reason}", number) for reason, number in training["left out"].items()]
    validation = training.get("validation")
    if validation:
        kept = "last" if validation["kept"] is None else f"{validation['kept']:.4f} at step {validation['step']}"
        rows.append((f"{validation['measure']} on validation topics", f"{validation['before']:.4f} before, {kept}"))
    settings = {name: value for name, value in record["settings"].items() if value is not None and name != "loss"}
    rows.append(("settings", ", ".join(f"{name}={value!r}" for name, value in settings.items())))
    versions = record.get("versions", {})
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    table = "".join(f"| {key} | {str(value).replace('|', '/')} |\n" for key, value in rows)
    return f"## Training\n\n| | |\n|---|---|\n{table}\nThe whole record is in `record.json`.\n"
