"""A score cache that cannot be stale, since its keys include the model and the text."""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pandas as pd
import pyterrier as pt

from ..checks import first_no_text
from ..errors import CheckpointError, DataFileError, KeptWorkError
from ..extras import require
from ..locks import Lock, hold, lock_of
from ..notebook import card, size
from ..scratch import replacing_folder
from .atomic import write_json
from .digests import blake2b_of
from .kept import KeptWorkWarning
from .published import PREFIX
from .records import RECORD, json_file, model_identity, public, record

if TYPE_CHECKING:
    from ..reranker import CrossEncoderReRanker
    from ..scoring.checkpoint import Checkpoint

_KEY = "_text_digest"
_SCORES = "db.sqlite3"


class ScoreCache(pt.Artifact, pt.Transformer):
    """Keeps a re-ranker's scores on disk: ``first_stage >> ScoreCache(MonoElectra(), "scores")``.

    It gives exactly the results of the re-ranker. Each (query, text) pair is scored only once, also across processes.
    It is built on pyterrier-caching, with a separate cache for each model in ``folder``. The cache's name holds model,
    revision, lengths and precision, and a digest of the weights and of everything else that scores depend on. Keys are
    query and text, not docno, so another text under the same docno is another pair.

    The model is opened when the first rows arrive, since the cache's name depends on it. The device is not part of the
    name, so scores of CPU and GPU, which differ in the sixth digit, are mixed.

    One process at a time has a model's cache, from its first rows until ``close()`` or the end of the process, however
    it ends. Within that process any number of threads and of ``ScoreCache`` objects share it. A cache whose creation
    was interrupted is created again.

    One model's cache (``path``) is a PyTerrier artifact: ``pt.Artifact.load(path)``, ``to_hf`` and ``from_hf``. It
    knows its model, see ``load``.

    Args:
        reranker: The re-ranker, or a fitted ``FineTuning`` or ``Distillation``.
        folder: The folder of the caches of all models.

    Raises:
        ImportError: pyterrier-caching is not installed.
        RuntimeError: An estimator that is not fitted yet.
        TypeError: It is not a ``CrossEncoderReRanker``; for other scorers use pyterrier-caching's own ``ScorerCache``.
            Or it is a ``SetEncoderReRanker``, whose scores are not a pair's own.
        InUseError: From the first rows on: another process has this model's cache.
        OSError: From the first rows on: the cache cannot be read or written.
    """

    schematic: ClassVar[dict[str, str | None]] = {"label": "ScoreCache", "help_url": None}
    ARTIFACT_TYPE: ClassVar[str] = "scorer_cache"
    ARTIFACT_FORMAT: ClassVar[str] = "rankdistillm"
    ARTIFACT_PACKAGE_HINT: ClassVar[str] = "pyterrier-rankdistillm[cache]"
    ARTIFACT_SCHEMATIC_SHOW_AS_TRANSFORMER: ClassVar[bool] = True

    def __init__(self, reranker: CrossEncoderReRanker | pt.Estimator, folder: str | os.PathLike[str]) -> None:
        from ..reranker import CrossEncoderReRanker  # loads torch, which reading and writing runs does without
        from ..set_encoder import SetEncoderReRanker  # the same

        if isinstance(reranker, pt.Estimator) and hasattr(type(reranker), "reranker"):
            reranker = cast(Any, reranker).reranker  # the student that it trained; fit says so where there is none yet
        if not isinstance(reranker, CrossEncoderReRanker):
            raise TypeError(
                f"ScoreCache: reranker must be a MonoElectraReRanker or another CrossEncoderReRanker, whose model "
                f"it can identify, got {reranker!r}. Use pyterrier_caching.ScorerCache for others."
            )
        if isinstance(reranker, SetEncoderReRanker):
            raise TypeError(
                f"ScoreCache: reranker must give a (query, text) pair the same score in any list, got {reranker!r}, "
                f"whose scores depend on the query's other passages. Use it without a cache; or keep its run: "
                f"runs.write."
            )
        _caching()
        self.reranker = reranker
        self.folder = folder
        self._told = False
        self._loaded: _Loaded | None = None
        self._opened: _Opened | None = None

    @classmethod
    def load(  # type: ignore[override]  # a re-ranker is its only option
        cls, path: str | os.PathLike[str], *, reranker: CrossEncoderReRanker | None = None
    ) -> ScoreCache:
        """Opens one model's cache by its path; ``pt.Artifact.load(path)`` does the same.

        Scores that the cache holds are given without opening the model. For others the model that the cache's record
        names is opened; it must be the same model that made the cache.

        Args:
            path: The folder of one model's cache: ``ScoreCache(...).path``, or an unpacked artifact.
            reranker: The re-ranker that made it, where its record cannot say where the model lies (a folder of another
                machine, a model that was never saved).

        Raises:
            FileNotFoundError: There is no whole cache.
            DataFileError: Its record is damaged.
            KeptWorkError: ``reranker`` is not what made it. While scoring: the model that the record names is not, or
                settings that scores depend on were changed.
            CheckpointError: While scoring: a score is missing, and the model is not where the record says.
        """
        from ..reranker import CrossEncoderReRanker  # as above

        place = Path(path).expanduser().absolute()
        identity = _identity_of(place)
        if reranker is None:
            settings = {name: identity[name] for name in ("revision", *_SETTINGS)}
            name = identity["model"] if _is_there(identity) else public(identity["model"])
            cache = cls(CrossEncoderReRanker(name, **settings), place.parent)
        else:
            cache = cls(reranker, place.parent)
            _check_identity(place, identity, model_identity(reranker))
        cache._loaded = _Loaded(place, identity, _state(cache.reranker), given=reranker is not None)
        return cache

    @property
    def path(self) -> Path:  # type: ignore[override]  # which cache it is follows from the model
        """The folder of this model's cache (opens the model, unless the cache was loaded by its path)."""
        return self._loaded.path if self._loaded else self._open().place.path

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Gives the re-ranker's result."""
        from ..reranker import ranked  # as above

        text = self.reranker.text_field
        needed = ["qid", "query", "docno", text]
        fits = all(name in inp.columns for name in needed) and inp.columns.is_unique
        if inp.empty or not fits:
            return self.reranker.transform(inp)
        strings = all(first_no_text(inp[name].tolist()) is None for name in ("query", text))
        if not strings or inp[["qid", "docno"]].isna().to_numpy().any():
            return self.reranker.transform(inp)  # raises an error that says what is wrong
        pairs = inp[needed].reset_index(drop=True)
        pairs[_KEY] = [blake2b_of(value) for value in pairs[text]]
        # The cache needs distinct pairs, and the re-ranker needs distinct docnos per query.
        distinct = pairs.drop_duplicates(["query", _KEY])
        opened = self._open()
        with opened.place.turn, _faults(opened.place.path):
            known = opened.cache.transform(distinct)
        scores = dict(zip(zip(known["query"], known[_KEY], strict=True), known["score"], strict=True))
        found = [scores[pair] for pair in zip(pairs["query"], pairs[_KEY], strict=True)]
        return ranked(inp, pd.Series(found, dtype="float64").to_numpy(dtype="float32"))

    def close(self) -> None:
        """Closes the file, and lets other processes have it; it is opened again when needed."""
        with _OPENING:
            if self._opened is not None and self._opened.process == os.getpid():
                with self._opened.place.turn:
                    self._opened.cache.close()
            self._opened = None

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._loaded:
            return f"ScoreCache.load({os.fspath(self._loaded.path)!r})"
        return f"ScoreCache({self.reranker!r}, {os.fspath(self.folder)!r})"

    def _repr_html_(self) -> str:
        """What there is, without opening a model."""
        folder = self._loaded.path if self._loaded else Path(self.folder).expanduser()
        places = [folder] if self._loaded else sorted(file.parent for file in folder.glob(f"*/{_SCORES}"))
        kept = [(place.name, size((place / _SCORES).stat().st_size)) for place in places if (place / _SCORES).is_file()]
        return card("Score cache", [("re-ranker", self.reranker), ("folder", folder), *kept])

    @property
    def model_identity(self) -> dict[str, Any]:
        """What the scores are of: model, revision, lengths, precision, and a digest of weights and tokenizer."""
        return dict(self._loaded.identity) if self._loaded else model_identity(self.reranker)

    def _package_files(self) -> Iterator[tuple[str, str | io.BytesIO]]:
        """The files of ``build_package`` and ``to_hf``, while nobody writes them."""
        opened = self._open()
        with opened.place.turn:
            for name, file in super()._package_files():
                if name == RECORD:
                    yield name, json_file(public(json.loads((opened.place.path / name).read_text(encoding="utf-8"))))
                else:
                    yield name, file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _open(self) -> _Opened:
        with _OPENING:
            loaded = self._loaded
            if loaded is not None and loaded.state != _state(self.reranker):
                raise KeptWorkError(
                    f"ScoreCache: {loaded.path} holds scores with other settings than {self.reranker!r} has now. Load "
                    f"it again, or give ScoreCache(reranker, folder) a re-ranker with such settings."
                )
            # Settings of the re-ranker may have changed since; then it has opened another checkpoint.
            checkpoint = None if loaded else self.reranker.checkpoint
            settings = self.reranker.precision, self.reranker.activation
            opened = self._opened
            if opened is None or not opened.is_for(checkpoint, settings):
                self.close()
                identity = self.model_identity
                path = loaded.path if loaded else Path(self.folder).expanduser().absolute() / _name(identity)
                self._told = self._told or (loaded is None and _tell_of_others(path))
                place = _place(path)
                scorer = self.reranker if loaded is None else _Recorded(self.reranker, loaded)
                opened = self._opened = _Opened(checkpoint, settings, place, _cache(path, scorer, identity))
            return opened


_SETTINGS = ("query_length", "doc_length", "dtype", "activation")


def _state(reranker: CrossEncoderReRanker) -> tuple[Any, ...]:
    """The settings that scores depend on, as they stand in the re-ranker."""
    return tuple(getattr(reranker, name) for name in ("model", "revision", *_SETTINGS))


@dataclass(frozen=True)
class _Loaded:
    """A cache that was loaded by its path.

    Args:
        path: Its folder.
        identity: Whose scores it holds, by its record.
        state: The settings of its re-ranker at that time.
        given: Whether the re-ranker was given, rather than taken from the record.
    """

    path: Path
    identity: dict[str, Any]
    state: tuple[Any, ...]
    given: bool


def _is_there(identity: Mapping[str, Any]) -> bool:
    """Whether a record says where its model lies: on the hub, in the package, or in a folder that there still is."""
    model = identity["model"]
    return identity["revision"] is not None or model.startswith(PREFIX) or Path(model).expanduser().is_dir()


class _Recorded(pt.Transformer):
    """The re-ranker of a loaded cache: opened for the first pair that the cache does not hold, and compared then."""

    def __init__(self, reranker: CrossEncoderReRanker, loaded: _Loaded) -> None:
        self.reranker, self.loaded = reranker, loaded
        self._compared = False

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        if not (inp.empty or self._compared):
            if not (self.loaded.given or _is_there(self.loaded.identity)):
                raise CheckpointError(
                    f"ScoreCache: {self.loaded.path} lacks {len(inp)} of the scores, and its model, "
                    f"{self.loaded.identity['model']}, is not here. Give it: ScoreCache.load(path, reranker=...)."
                )
            _check_identity(self.loaded.path, self.loaded.identity, model_identity(self.reranker))
            self._compared = True
        return self.reranker.transform(inp)


def _identity_of(path: Path) -> dict[str, Any]:
    """Whose scores a cache holds, by its record."""
    for file in (path / "pt_meta.json", path / RECORD, path / _SCORES):
        if not file.is_file():
            raise FileNotFoundError(
                f"ScoreCache.load: {path} must be the folder of one model's cache, as ScoreCache(...).path; there is "
                f"no {file.name}."
            )
    try:
        identity = json.loads((path / RECORD).read_text(encoding="utf-8"))["models"]["reranker"]
        missing = {"model", "revision", "pair_length", "weights", *_SETTINGS} - set(identity)
    except (ValueError, KeyError, TypeError) as error:
        raise DataFileError(f"ScoreCache.load: {path / RECORD} is not the record of a score cache.") from error
    if missing:
        raise DataFileError(f"ScoreCache.load: {path / RECORD} does not say {', '.join(sorted(missing))}.")
    return dict(identity)


def _check_identity(path: Path, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses another model; where it lies does not count."""
    differ = [name for name in kept if name not in ("model", "revision") and kept[name] != given.get(name)]
    if differ:
        shown = ", ".join(f"{name} {str(kept[name])[:16]}, not {str(given.get(name))[:16]}" for name in differ)
        raise KeptWorkError(
            f"ScoreCache: {path} holds scores of {kept['model']} with {shown}. Give the re-ranker that made it: "
            f"ScoreCache.load(path, reranker=...)."
        )


class _Place:
    """A model's cache as this process has it: locked against others, its threads one after another.

    The lock goes with the last that uses it.
    """

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path = path
        self.turn = threading.RLock()
        self.process = os.getpid()
        weakref.finalize(self, lock.release)


@dataclass(frozen=True, eq=False)
class _Opened:
    """What a ``ScoreCache`` has opened, and for which model."""

    checkpoint: Checkpoint | None
    settings: tuple[str, str | None]
    place: _Place
    cache: Any
    process: int = field(default_factory=os.getpid)

    def is_for(self, checkpoint: Checkpoint | None, settings: tuple[str, str | None]) -> bool:
        """Whether it serves; what a forked process inherited does not."""
        return self.checkpoint is checkpoint and self.settings == settings and self.process == os.getpid()


_OPENING = threading.RLock()
_PLACES: weakref.WeakValueDictionary[Path, _Place] = weakref.WeakValueDictionary()


def _place(path: Path) -> _Place:
    place = _PLACES.get(path)
    if place is None or place.process != os.getpid():
        lock = hold(
            lock_of(path),
            f"ScoreCache: {path}",
            "Call close() there, or end that process; or give another folder.",
        )
        place = _PLACES[path] = _Place(path, lock)
    return place


def _cache(path: Path, reranker: pt.Transformer, identity: dict[str, Any]) -> Any:
    """Pyterrier-caching's cache, made where there is none that was made to its end."""
    make, options = _caching().Sqlite3ScorerCache, {"group": "query", "key": _KEY, "value": "score"}
    with _faults(path):
        if not (path / "pt_meta.json").is_file():
            with replacing_folder(path) as new:
                new.rmdir()  # it makes its folder itself
                make(new, reranker, **options).close()
                _as_ours(new / "pt_meta.json")
                settings = {name: identity[name] for name in ("dtype", "activation")}
                write_json(
                    new / RECORD, record("ScoreCache", settings=settings, models={"reranker": identity}, data={})
                )
        cache = make(path, reranker, **options)
        cache.db.close()
        cache.db = sqlite3.connect(path / _SCORES, check_same_thread=False)  # they take turns
        return cache


def _as_ours(file: Path) -> None:
    """Has ``pt.Artifact.load`` open a cache by this package, which knows its model."""
    metadata = json.loads(file.read_text(encoding="utf-8"))
    ours = {"type": ScoreCache.ARTIFACT_TYPE, "format": ScoreCache.ARTIFACT_FORMAT}
    write_json(file, metadata | ours | {"package_hint": ScoreCache.ARTIFACT_PACKAGE_HINT})


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(
            f"ScoreCache: {path} cannot be read or written: {error}. Make room, or delete the folder: what it held is "
            f"scored again."
        ) from error


def _tell_of_others(path: Path) -> bool:
    """Tells of scores of a model that goes by the same name, but is another one by content; whether there are any."""
    name = path.name.rpartition("-")[0]
    others = [] if path.exists() else sorted(other.name for other in path.parent.glob(f"{name}-*") if other.is_dir())
    if others:
        warnings.warn(
            f"ScoreCache: {path.parent} holds scores of another {name.partition('@')[0]} ({others[0]}), with other "
            f"weights or another tokenizer. They are kept, and not used.",
            KeptWorkWarning,
            stacklevel=5,
        )
    return bool(others)


def file_name(reranker: CrossEncoderReRanker) -> str:
    """A name for files of what a re-ranker made, such as the ``names`` of ``pt.Experiment(..., save_dir=...)``.

    It holds model, revision, lengths and precision, and a digest of the weights and of everything else that scores
    depend on: re-rankers that score alike have the same name on all machines, and others have another one. It opens
    the model.
    """
    return _name(model_identity(reranker))


def _name(identity: dict[str, Any]) -> str:
    """A name such as ``webis-monoelectra-base@1a2b3c4d-q32-d256-float32-0123456789ab``."""
    model = re.sub(
        r"[^\w.]+", "-", Path(identity["model"]).name if os.sep == identity["model"][:1] else identity["model"]
    )
    revision = (identity["revision"] or "local")[:12]
    lengths = f"q{identity['query_length'] or 'all'}-d{identity['doc_length'] or 'all'}"
    activation = f"-{identity['activation']}" if identity["activation"] else ""
    digest = blake2b_of(json.dumps(identity, sort_keys=True))[:16]
    return f"{model.strip('-')[:60]}@{revision}-{lengths}-{identity['dtype']}{activation}-{digest}"


def _caching() -> Any:
    return require("pyterrier_caching", "ScoreCache")
