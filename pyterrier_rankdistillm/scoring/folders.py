"""Finds a checkpoint's files (in the package, in a folder, or on the Hugging Face hub) and reads them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError
from ..scratch import sweep

DEMO = "rankdistillm:demo"
"""The name of the checkpoint that ships with the package."""


def demo_folder() -> Path:
    """The folder of the checkpoint that ships with the package."""
    return Path(str(resources.files("pyterrier_rankdistillm") / "demo" / "checkpoint"))


def locate(
    model: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False, who: str = ""
) -> tuple[Path, str | None]:
    """The folder of a checkpoint, downloaded from the hub if needed, and its commit there.

    Raises:
        CheckpointError: There is no such folder, or it cannot be downloaded from the hub.
    """
    if model == DEMO:
        return demo_folder(), None
    folder = Path(model).expanduser()
    if not folder.is_dir():
        sweep(folder.absolute())  # a save that was killed where folders cannot be exchanged in one step
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"revision={revision!r} was given, but {model} is a folder. Drop the revision.")
        return folder, None
    if looks_like_path(model):
        raise CheckpointError(
            f"{who + ': ' if who else ''}{model} is no folder. Give a checkpoint's folder, a hub id or {DEMO!r}."
        )
    return _download(str(model), revision, local_files_only)


def commit_of(
    model: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> str | None:
    """The commit of a hub id, without its weights; None where the model is no hub id.

    Raises:
        CheckpointError: The hub cannot give it.
    """
    if model == DEMO or looks_like_path(model) or Path(model).expanduser().is_dir():
        return None
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return _download(str(model), revision, local_files_only, ("config.json",))[1]


def looks_like_path(model: str | os.PathLike[str]) -> bool:
    """Whether a name can only mean a folder, since it is not a hub id (``name`` or ``owner/name``)."""
    return not isinstance(model, str) or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) is None or model.startswith(".")


def _download(
    repo: str, revision: str | None, local_files_only: bool, only: tuple[str, ...] = ()
) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download  # slow to load, and only needed for models of the hub

    def fetch(*weights: str) -> Path:
        patterns = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", *weights]
        return Path(
            snapshot_download(repo, revision=revision, local_files_only=local_files_only, allow_patterns=patterns)
        )

    try:
        folder = fetch(*only or ("model*.safetensors", "model.safetensors.index.json"))
        if not only and not any(folder.glob("model*.safetensors")):
            folder = fetch("pytorch_model.bin")
    except Exception as error:  # the hub client raises many unrelated types: HTTP, offline, not found, bad name
        where = "the hub's local cache (local_files_only)" if local_files_only else "the Hugging Face hub"
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{repo!r} is no folder here, and {where} did not give it{at}: {type(error).__name__}: {error}. "
            f"Check the name and the connection, log in with `hf auth login` for private models, or give a folder."
        ) from error
    return folder, folder.name


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``.

    Raises:
        CheckpointError: It is missing, or is not a JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no checkpoint: config.json is missing.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got {type(config).__name__}.")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of ``model.safetensors`` or its shards, else of ``pytorch_model.bin`` (without unpickling objects).

    Raises:
        CheckpointError: There are none, or they cannot be read.
    """
    index, single, pickled = (
        folder / name for name in ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
    )
    try:
        if index.is_file():
            weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = {name: load_file(_inside(folder, name)) for name in sorted(set(weight_map.values()))}
            missing = [name for name, shard in weight_map.items() if name not in shards[shard]]
            if missing:
                raise CheckpointError(f"{folder}: {listed(missing)} named in {index.name}, but not in its file.")
            return {name: shards[shard][name] for name, shard in weight_map.items()}
        if single.is_file():
            return load_file(single)
        if pickled.is_file():
            state = torch.load(pickled, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
                raise CheckpointError(f"{pickled} holds no tensors by name. Save the model's state_dict there.")
            return {str(name): tensor for name, tensor in state.items()}
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"The weights in {folder} cannot be read: {type(error).__name__}: {error}.") from error
    raise CheckpointError(f"{folder} holds no weights: expected model.safetensors (or its shards with an index).")


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(f"{folder}: the weight index names a file outside the folder: {name!r}.")
    return folder / name


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names, and the number of further ones."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
