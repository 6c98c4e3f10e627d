"""Finds a checkpoint's files (in the package, in a folder, or on the Hugging Face hub) and reads them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError
from ..scratch import sweep

DEMO = "rankdistillm:demo"
"""The name of the checkpoint that ships with the package."""


_FILES = (
    "config.json",
    "record.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    # Sentence Transformers: which modules there are, and their settings and weights
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/*.json",
    "[0-9]_*/model.safetensors",
)


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
            f"{who + ': ' if who else ''}{model} is not a folder. Give a checkpoint's folder, a hub id or {DEMO!r}."
        )
    return _download(str(model), revision, local_files_only)


def commit_of(
    model: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> str | None:
    """The commit of a hub id, without its weights; None where the model is not a hub id.

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
        patterns = [*_FILES, *weights]
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
            f"{repo!r} is not a folder here, and {where} did not give it{at}: {type(error).__name__}: "
            f"{str(error).rstrip('.')}. Check the name and the connection, log in with `hf auth login` for private "
            f"models, or give a folder."
        ) from error
    return folder, folder.name


RECORD = "record.json"
"""How a checkpoint was trained, beside its weights."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """What ``record.json`` says, if there is one that can be read: nothing depends on it."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``.

    Raises:
        CheckpointError: It is missing, or is not a JSON object.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no checkpoint: config.json is missing.")
    return read_object(folder / "config.json")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one where the file is not there.

    Raises:
        CheckpointError: It is no JSON object.
    """
    content = _read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object, got {type(content).__name__}.")
    return content


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}.") from error


@dataclass(frozen=True)
class DenseModule:
    """A Dense module of Sentence Transformers: ``activation(x @ weight.T + bias)``."""

    weight: Tensor
    bias: Tensor | None
    activation: str


@dataclass(frozen=True)
class SentenceTransformer:
    """What Sentence Transformers' ``modules.json`` says of a folder.

    Args:
        names: The modules, by the last names of their types.
        transformer: The folder with the model and its tokenizer.
        pooling: How token vectors become one; None: there is no Pooling module.
        dense: The Dense modules.
        longest: Tokens of a pair that ``sentence_bert_config.json`` states; None: it states none.
    """

    names: tuple[str, ...]
    transformer: Path
    pooling: Literal["first", "mean", "max"] | None = None
    dense: tuple[DenseModule, ...] = ()
    longest: Any = None

    @property
    def is_modular(self) -> bool:
        """Whether the score is made by modules after the Transformer, rather than by its own head."""
        return len(self.names) > 1

    def unknown_head(self) -> dict[str, Tensor]:
        """The weights of its Dense modules, for messages."""
        return {f"Dense {number} ({module.activation})": module.weight for number, module in enumerate(self.dense)}

    @classmethod
    def read(cls, folder: Path) -> SentenceTransformer | None:
        """Reads ``modules.json``; None where there is none.

        Raises:
            CheckpointError: It names modules that are not known, or settings that would change scores.
        """
        file = folder / "modules.json"
        if not file.is_file():
            return None
        listing = _read_json(file)
        if not (isinstance(listing, list) and listing and all(isinstance(entry, dict) for entry in listing)):
            raise CheckpointError(f"{file} must hold a list of modules, got {listing!r:.80}.")
        names = tuple(str(entry.get("type")).rpartition(".")[2] for entry in listing)
        folders = [folder if entry.get("path") in ("", None) else _module(folder, entry["path"]) for entry in listing]
        known = ("Pooling", "Dense", "Normalize")
        if names[0] != "Transformer" or not set(names[1:]) <= set(known):
            others = [name for n, name in enumerate(names) if name not in (("Transformer",) if n == 0 else known)]
            raise CheckpointError(
                f"{file} names {listed(others)}; this package opens a Transformer with its own head, or followed by "
                f"Pooling and Dense."
            )
        prompt = read_object(folder / "config_sentence_transformers.json").get("default_prompt_name")
        settings = read_object(folders[0] / "sentence_bert_config.json")
        for name, value in (("default_prompt_name", prompt), ("do_lower_case", settings.get("do_lower_case") or None)):
            if value is not None:
                raise CheckpointError(f"{folder}: {name} is {value!r}, which this package does not know.")
        placed = list(zip(names, folders, strict=True))
        pooling = next((_pooling(place) for name, place in placed if name == "Pooling"), None)
        return cls(
            names=names,
            transformer=folders[0],
            # Anything but Pooling, then Dense, is a chain without a score of ours.
            pooling=pooling if names[1:] == ("Pooling", *["Dense"] * (len(names) - 2)) else None,
            dense=tuple(_dense(place) for name, place in placed if name == "Dense"),
            longest=settings.get("max_seq_length"),
        )


def _module(folder: Path, path: Any) -> Path:
    if not isinstance(path, str) or Path(path).name != path:
        raise CheckpointError(f"{folder / 'modules.json'} names a folder outside its own: {path!r}.")
    return folder / path


_POOLINGS: dict[str, Literal["first", "mean", "max"]] = {
    "cls": "first",
    "mean": "mean",
    "max": "max",
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}
"""By the names of a Pooling module's config, now and before version 5.5."""


def _pooling(folder: Path) -> Literal["first", "mean", "max"]:
    config = read_object(folder / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _POOLINGS:
        raise CheckpointError(f"{folder / 'config.json'}: pooling must be one of cls, mean and max, got {modes!r}.")
    return _POOLINGS[modes[0]]


def _dense(folder: Path) -> DenseModule:
    config = read_object(folder / "config.json")
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise CheckpointError(f"{folder / 'config.json'}: a Dense module must map the pooled vector, got {config!r}.")
    weights = read_weights(folder)
    weight, bias = weights.get("linear.weight"), weights.get("linear.bias")
    matrix = weight is not None and weight.ndim == 2 and weight.is_floating_point()
    if not matrix or set(weights) - {"linear.weight", "linear.bias"}:
        raise CheckpointError(f"{folder} must hold linear.weight and perhaps linear.bias, got {listed(weights)}.")
    assert weight is not None
    if bias is not None and bias.shape != weight.shape[:1]:
        raise CheckpointError(f"{folder}: linear.bias is {list(bias.shape)} instead of {list(weight.shape[:1])}.")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    return DenseModule(weight, bias, activation)


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
