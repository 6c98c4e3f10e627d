"""The re-ranker as a PyTerrier transformer: a frame in, a frame out."""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, ParamSpec, cast, get_args

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from numpy.typing import NDArray

from .checks import first_no_text, is_text, is_whole, told, whole
from .errors import CheckpointError
from .notebook import card
from .progress import bar
from .query_language import RewrittenQueryWarning, remedy, rewritten
from .scoring.checkpoint import Checkpoint, Format
from .scoring.devices import Device, resolve_devices
from .scoring.folders import locate, looks_like_path
from .scoring.scorer import Precision, Scored, Scorer, precision_on

Activation = Literal["sigmoid"]

_ELSEWHERE = {
    "batch_size": "batch_tokens, the tokens of a batch (padding included)",
    "max_length": "doc_length, the tokens of a text, and query_length, those of a query",
    "max_seq_length": "doc_length, the tokens of a text, and query_length, those of a query",
    "torch_dtype": "dtype, such as 'bfloat16'",
    "precision": "dtype, such as 'bfloat16'",
    "fp16": "dtype='float16'",
    "bf16": "dtype='bfloat16'",
    "model_name": "model",
    "model_name_or_path": "model",
    "text_attr": "text_field",
    "show_progress_bar": "verbose",
}
"""Arguments by what other re-rankers call them."""

P = ParamSpec("P")
_BOX = 20
"""The characters that have room in a box of PyTerrier's drawings."""


def _with_our_names(constructor: Callable[P, None]) -> Callable[P, None]:
    """Answers arguments that go by another name elsewhere with their name here."""

    @functools.wraps(constructor)
    def checked(*arguments: P.args, **named: P.kwargs) -> None:
        elsewhere = next((name for name in named if name in _ELSEWHERE), None)
        if elsewhere is not None:
            raise TypeError(
                f"{type(arguments[0]).__name__}: there is no {elsewhere}, as other packages have it. Give "
                f"{_ELSEWHERE[elsewhere]}."
            )
        constructor(*arguments, **named)

    return checked


_OPENING = ("model", "revision", "local_files_only", "device", "dtype", "batch_tokens", "query_length", "doc_length")
"""The settings that decide what is opened. The others only decide how frames are handled."""


class TruncationWarning(UserWarning):
    """Queries or texts were longer than the model reads."""


class CrossEncoderReRanker(pt.Transformer):
    """Re-ranks passages with a cross-encoder: ``first_stage >> CrossEncoderReRanker("BAAI/bge-reranker-base")``.

    Takes a result frame with ``qid``, ``query``, ``docno`` and the text field; returns the same rows and columns with
    new ``score`` and ``rank`` (from 0), sorted by qid and rank. A score is the model's raw logit, computed in float32.
    It is unbounded, higher means more relevant, and scores are comparable within one query only. A score depends on
    query and text only, not on the order or the index of the rows, nor on other rows. Equal (query, text) pairs are
    scored once. Ties are broken by docno, descending, as trec_eval does, so that ranks, ``% k`` and measures agree.

    Opens Lightning IR's cross-encoders (monoELECTRA and its like), and those of Sentence Transformers and transformers
    over BERT, RoBERTa, DistilBERT, ELECTRA, ModernBERT, DeBERTa and other encoders. The model is opened when the first
    rows are scored, and shares its weights with all open re-rankers of the same checkpoint; pickles and deep copies
    carry its name, not its weights (unless ``model`` is an open ``Checkpoint``).

    Args:
        model: A Hugging Face hub id (``"webis/monoelectra-base"``, ``"cross-encoder/ms-marco-MiniLM-L6-v2"``), a
            checkpoint folder, ``"rankdistillm:demo"`` (a small one that ships with the package), or an open
            ``Checkpoint``.
        revision: Branch, tag or commit on the hub; default: its main branch. Give a commit for numbers that last.
        local_files_only: Use the hub's local cache only, never the network.
        device: Torch device, such as ``"cuda:1"``; default: CUDA if available, else the CPU. Apple's MPS is used on
            request only. Several, such as ``["cuda:0", "cuda:1"]``: each batch goes to whichever is free.
        dtype: ``"float32"``; ``"bfloat16"`` or ``"float16"`` for the layers, which is faster on a GPU (and bfloat16 on
            a CPU that multiplies it, with AMX or AVX512-BF16), and changes scores in the second or third digit; or
            ``"tf32"``, on an NVIDIA GPU from capability 8.0: float32 with products of rounded inputs, which changes
            scores in the second or third digit; or ``"int8"`` for the linear layers, which is faster on an x86 CPU and
            changes scores in the first or second digit. Where a CPU does not gain from a half precision, float32 is
            computed, with a ``PrecisionWarning``; ``precision``, ``repr`` and records say which. Other scores than
            float32's depend a little on the other pairs of their batch (with the demo checkpoint: bfloat16's by up to
            0.02 on a CPU).
        batch_tokens: Number of tokens per batch, padding included; default: 512 on the CPU, 32,768 elsewhere.
            float32 scores do not depend on it. When memory runs out, it is halved and the batch is tried again.
        query_length: Number of tokens read of a query; default: the checkpoint's (32 for the published ones).
        doc_length: Number of tokens read of a text; default: the checkpoint's (256 for the published ones). Longer
            texts are truncated, with one ``TruncationWarning``. For long documents, score passages:
            ``first_stage >> pt.text.sliding(text_attr="text", prepend_attr=None) >> MonoElectra() >>
            pt.text.max_passage()``.
        text_field: The column that holds the text.
        activation: ``"sigmoid"`` maps the logits to (0, 1), in float32; default: none. The order is the same, except
            that logits beyond 16 become ties.
        verbose: Show a progress bar with pairs per second. None: if it takes more than two seconds, in a terminal or a
            notebook.

    Queries in Terrier's query language, as RM3 leaves them, cause one ``RewrittenQueryWarning``:
    ``pt.rewrite.reset()`` before the re-ranker restores what was asked.

    Raises:
        ValueError: A setting is out of range. While scoring: a query or text is missing or is not a string, or a score
            is not finite; the message names the docno.
        CheckpointError: The model cannot be opened (raised while scoring, since it is opened then).
        pt.validate.InputValidationError: The frame lacks a column.

    Method: Schlatt et al., Rank-DistiLLM: Closing the Effectiveness Gap Between Cross-Encoders and LLMs for Passage
    Re-ranking, ECIR 2025, https://arxiv.org/abs/2405.07920.
    """

    label: ClassVar[str] = "CrossEncoder"
    """What progress bars, drawings and run files call it."""
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.07920"
    default_model: ClassVar[str | None] = None
    """What ``model`` is where it is not given; None: it has to be."""

    @_with_our_names
    def __init__(
        self,
        model: str | os.PathLike[str] | Checkpoint | None = None,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        device: Device = None,
        dtype: Precision = "float32",
        batch_tokens: int | None = None,
        query_length: int | None = None,
        doc_length: int | None = None,
        text_field: str = "text",
        activation: Activation | None = None,
        verbose: bool | None = None,
    ) -> None:
        self.model = self._named(model)
        self.revision = revision
        self.local_files_only = local_files_only
        self.device = device
        self.dtype: Precision = dtype
        self.batch_tokens = whole(batch_tokens)
        self.query_length = whole(query_length)
        self.doc_length = whole(doc_length)
        self.text_field = text_field
        self.activation = activation
        self.verbose = verbose
        self._opened: tuple[tuple[Any, ...], Checkpoint, Scorer] | None = None
        self._warned: frozenset[type[Warning]] = frozenset()
        self._check_settings()

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Re-ranks.

        Args:
            inp: Columns ``qid``, ``query``, ``docno`` and the text field, one row per (query, document); any index.

        Returns:
            A new frame with the same rows and columns, ``score`` (the float32 logit as float64) and ``rank`` (int64),
            and a default index.
        """
        self._check_settings()  # again: set_parameter changes them unchecked
        self.check_columns(inp)
        if inp.empty:
            return ranked(inp, np.empty(0, dtype=np.float32))
        self._check_ids(inp)
        queries = self._strings(inp, "query")
        texts = self._strings(inp, self.text_field)
        fact = rewritten(zip(inp["qid"].tolist(), queries, strict=True))
        self._warn_of_rewriting(fact, inp)
        with bar(self.verbose, total=len(inp), desc=self.label, unit=" pairs") as drawn:
            scored = self._scored(inp, queries, texts, drawn.update)
        self._check_finite(inp, scored.scores)
        self._warn_of_cuts(scored if fact is None else replace(scored, query_cuts=0))  # which was told by then
        return ranked(inp, self._activated(scored.scores))

    def transform_iter(self, inp: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """Like ``transform``, on records. All are read before the first is returned, since ranks depend on all."""
        records = list(inp)
        return cast(Any, self.transform(pd.DataFrame(records)).to_dict(orient="records")) if records else []

    @property
    def checkpoint(self) -> Checkpoint:
        """The open checkpoint (opened on first use), with this transformer's lengths."""
        return self._open()[0]

    @property
    def scorer(self) -> Scorer:
        """The scorer of (query, text) pairs (opened on first use)."""
        return self._open()[1]

    @property
    def precision(self) -> str:
        """What scores are computed in here: ``dtype``, or what stands for it on this CPU; nothing is opened."""
        try:
            return precision_on(resolve_devices(self.device), self.dtype)
        except ValueError:  # a device that is not here
            return self.dtype

    def clone(self, **changes: Any) -> CrossEncoderReRanker:
        """A re-ranker with the same settings, except ``changes``; open weights are shared where they are the same."""
        twin = cast(CrossEncoderReRanker, pt.inspect.transformer_apply_attributes(self, **changes))
        if self._opened is not None and self._opened[0] == twin._opening():
            twin._opened = self._opened
        return twin

    def rank(self, query: str, texts: Sequence[str] | Mapping[Any, str]) -> pd.DataFrame:
        """Ranks texts for one query, for those who have no result frame.

        Args:
            query: The query.
            texts: The texts; or by docno.

        Returns:
            A frame with ``docno`` (the text's place in the list, from 0, or its key), the text field, ``score`` and
            ``rank`` (from 0), best first.

        Raises:
            ValueError: The query or a text is not a string.
        """
        if not (isinstance(query, str) or query is None):  # a missing one is told with the docno
            raise ValueError(f"{type(self).__name__}.rank: query must be a string, got {query!r:.80}.")
        if isinstance(texts, str) or not isinstance(texts, Sequence | Mapping | pd.Series | np.ndarray):
            raise ValueError(
                f"{type(self).__name__}.rank: texts must be a list of strings, or a dict of docnos and strings, got "
                f"{texts!r:.80}."
            )
        by_docno = dict(texts) if isinstance(texts, Mapping) else dict(enumerate(texts))
        frame = pd.DataFrame(
            {
                "qid": "1",
                "query": query,
                "docno": pd.Series(list(by_docno), dtype=None if by_docno else object),
                self.text_field: pd.Series(list(by_docno.values()), dtype=object),
            }
        )
        return self.transform(frame)[["docno", self.text_field, "score", "rank"]]

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        format: Format | None = None,  # noqa: A002
        model_card: str | None = None,
    ) -> Path:
        """Writes the checkpoint, in Lightning IR's format or by transformers' names; see ``Checkpoint.save``."""
        return self.checkpoint.save(folder, format=format, model_card=model_card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        format: Format | None = None,  # noqa: A002
        model_card: str | None = None,
    ) -> str:
        """Uploads what ``save`` writes to the Hugging Face hub.

        Args:
            repo_id: ``"owner/name"``; created if it does not exist.
            private: Whether a new repository is private.
            token: Access token; default: the one of ``hf auth login``.
            format: As for ``save``: ``"transformers"`` for a model that transformers and Sentence Transformers open.
            model_card: Text of ``README.md``; default: a card that says where the weights came from.

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi  # slow to load, and only needed to upload

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save(Path(scratch) / "checkpoint", format=format, model_card=model_card)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a re-ranker")
        return commit.commit_url

    def _repr_html_(self) -> str | None:
        """PyTerrier's drawing, and what it does not tell: the model and, once it is open, where it runs."""
        drawn = cast(Any, super())._repr_html_()
        checkpoint = self.model if isinstance(self.model, Checkpoint) else None
        rows: list[tuple[str, Any]] = [("model", checkpoint.source if checkpoint else os.fspath(cast(str, self.model)))]
        rows += [("revision", self.revision)]
        if self._opened is None or self._opened[0] != self._opening():
            rows.append(("open", "when the first rows are scored"))
        else:
            lengths = self._opened[1].tokenizer.lengths
            rows.append(("reads", f"query {lengths.query or 'whole'}, text {lengths.doc or 'whole'} (tokens)"))
            rows.append(("runs on", f"{self._opened[2].devices}, {self.precision}"))
        return None if drawn is None else drawn + card(type(self).__name__, rows)

    def schematic(self, *, input_columns: Sequence[str] | None = None) -> dict[str, Any]:
        """How PyTerrier draws it: a box that says which model and, where they were given, which lengths."""
        del input_columns
        # Without an address PyTerrier looks one up on the net each time a pipeline is drawn.
        return {"label": self._box(), "help_url": self.paper}

    def _box(self) -> str:
        source = self.model.source if isinstance(self.model, Checkpoint) else os.fspath(self.model)
        model = Path(source.partition(",")[0].rpartition(":")[2]).name
        same = model.casefold().startswith(self.label.casefold())  # MonoElectra base, not MonoElectra monoelectra-base
        full = f"{self.label} {model[len(self.label) :].strip('-_ ') if same else model}".strip()
        lengths = {"q": self.query_length, "d": self.doc_length}
        tail = "".join(f" {letter}{length}" for letter, length in lengths.items() if length)
        room = _BOX - len(tail)
        fitting = next((name for name in (full, model) if len(name) <= room), f"{model[: room - 1]}…")
        return fitting + tail

    def __repr__(self) -> str:
        """The settings that differ from their defaults, so that tables and caches tell re-rankers apart.

        ``dtype`` is the precision that is computed in; see ``precision``.
        """
        # Of the method, since the class's is that of PyTerrier's __new__ before Python 3.11.4.
        defaults = {p.name: p.default for p in inspect.signature(type(self).__init__).parameters.values()}
        shown = {"dtype": self.precision} if self.precision in get_args(Precision) else {}
        changed = [
            f"{name}={shown.get(name, getattr(self, name))!r}"
            for name, default in defaults.items()
            if name not in ("self", "model") and getattr(self, name) != default
        ]
        model = self.model if isinstance(self.model, str | Checkpoint) else os.fspath(self.model)
        return f"{type(self).__name__}({', '.join([repr(model), *changed])})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _scored(
        self, inp: pd.DataFrame, queries: list[str], texts: list[str], progress: Callable[[int], object]
    ) -> Scored:
        """Scores in the order of the rows of ``inp``."""
        del inp  # a pair's score is its own
        return self.scorer.score(queries, texts, progress=progress)

    def _scorer_of(self, checkpoint: Checkpoint) -> Scorer:
        if checkpoint.encoder.sees_lists:
            raise CheckpointError(
                f"{type(self).__name__}: {checkpoint.source} is a set encoder, which scores the passages of a query "
                f"together. Open it with SetEncoderReRanker."
            )
        return Scorer(checkpoint, device=self.device, dtype=self.dtype, batch_tokens=self.batch_tokens)

    def _named(self, model: str | os.PathLike[str] | Checkpoint | None) -> str | os.PathLike[str] | Checkpoint:
        if model is None:
            model = self.default_model
        if model is None:
            raise ValueError(
                f"{type(self).__name__}: model must be a hub id, a folder, or an open Checkpoint, got None. Name one, "
                f"such as 'cross-encoder/ms-marco-MiniLM-L6-v2'."
            )
        return model

    def _opening(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in _OPENING)

    def _open(self) -> tuple[Checkpoint, Scorer]:
        # Settings may have changed since (set_parameter), so the open model is kept with the settings it was made with.
        if self._opened is None or self._opened[0] != self._opening():
            if isinstance(self.model, Checkpoint):
                checkpoint = self.model
            else:
                checkpoint = Checkpoint.open(self.model, revision=self.revision, local_files_only=self.local_files_only)
            checkpoint = checkpoint.with_lengths(query=self.query_length, doc=self.doc_length)
            self._opened = (self._opening(), checkpoint, self._scorer_of(checkpoint))
        return self._opened[1:]

    def _check_settings(self) -> None:
        def require(name: str, holds: bool, rule: str) -> None:
            if not holds:
                raise ValueError(f"{type(self).__name__}: {name} must be {rule}, got {getattr(self, name)!r}.")

        dtypes, activations = get_args(Precision), get_args(Activation)
        require("dtype", self.dtype in dtypes, f"one of {', '.join(dtypes)}")
        require("activation", self.activation in (None, *activations), f"None or one of {', '.join(activations)}")
        for name in ("batch_tokens", "query_length", "doc_length"):
            value = getattr(self, name)
            require(name, value is None or is_whole(value, least=1), "None or a number of tokens, at least 1")
        require("text_field", isinstance(self.text_field, str) and self.text_field != "", "the name of a column")
        require("model", self.model != "", "a hub id, a folder, or an open Checkpoint")
        if isinstance(self.model, Checkpoint):
            require("revision", self.revision is None, "None where model is an open Checkpoint")
        elif looks_like_path(self.model):
            locate(self.model, revision=self.revision, who=type(self).__name__)

    def check_columns(self, inp: pd.DataFrame) -> None:
        """Whether a frame has what ``transform`` needs.

        Raises:
            pt.validate.InputValidationError: It lacks a column.
            ValueError: It has one twice.
        """
        needed = ["qid", "query", "docno", self.text_field]
        try:
            pt.validate.columns(inp, includes=needed, context=self)
        except pt.validate.InputValidationError as error:
            if self.text_field not in error.modes[0].missing_columns:
                raise
            raise pt.validate.InputValidationError(
                f"{error.args[0]} Re-ranking needs the passages' text in column {self.text_field!r}: put "
                f"`>> dataset.text_loader()` (or, where an index has the texts, `>> pt.text.get_text(index, 'text')`) "
                f"before this re-ranker, or name another column with text_field.",
                error.modes,
            ) from None
        doubled = [name for name in needed if (inp.columns == name).sum() > 1]
        if doubled:
            raise ValueError(f"{type(self).__name__}: the frame has more than one column {doubled[0]!r}. Drop one.")

    def _check_ids(self, inp: pd.DataFrame) -> None:
        for name in ("qid", "docno"):
            missing = inp[name].isna().to_numpy()
            if missing.any():
                raise ValueError(
                    f"{type(self).__name__}: {name} is missing in {missing.sum()} of {len(inp)} rows, first in row "
                    f"{int(missing.argmax())} (from 0). Every row needs a qid and a docno."
                )
            strings = [value for value in inp[name].tolist() if isinstance(value, str)]
            odd = first_no_text(strings)
            if odd is not None:
                raise ValueError(f"{type(self).__name__}: {name} is {told(strings[odd])}. Such ids cannot be written.")

    def _strings(self, inp: pd.DataFrame, column: str) -> list[str]:
        values: list[Any] = inp[column].tolist()
        row = first_no_text(values)
        if row is None:
            return values
        bad = [value for value in values if not is_text(value)]
        value = values[row]
        docno, qid = (inp[name].iloc[[row]].tolist()[0] for name in ("docno", "qid"))
        remedy = (
            "Give every topic a query."
            if column == "query"
            else "Load the missing texts, or leave such documents out: "
            f"`pt.apply.generic(lambda df: df.dropna(subset=[{column!r}]))` (an empty string is scored)."
        )
        raise ValueError(
            f"{type(self).__name__}: {column} of docno {docno!r} (qid {qid!r}) is {told(value)}; so it is in "
            f"{len(bad)} of {len(values)} rows. {remedy}"
        )

    def _check_finite(self, inp: pd.DataFrame, scores: NDArray[np.float32]) -> None:
        bad = np.flatnonzero(~np.isfinite(scores))
        if not len(bad):
            return
        row = int(bad[0])
        remedy = (
            "The weights are broken: download or train the checkpoint again."
            if self.precision == "float32"
            else f"Use dtype='float32' instead of {self.dtype!r}."
        )
        raise ValueError(
            f"{type(self).__name__}: the score of docno {inp['docno'].iloc[row]!r} (qid {inp['qid'].iloc[row]!r}) is "
            f"{scores[row]}; {len(bad)} of {len(scores)} scores are not finite. {remedy}"
        )

    def _warn_of_rewriting(self, fact: str | None, inp: pd.DataFrame) -> None:
        if fact is not None:
            self._warn_once(
                RewrittenQueryWarning,
                f"reads queries as words, but {fact}. It ranks worse then. {remedy(inp.columns)}",
                stacklevel=4,
            )

    def _warn_of_cuts(self, scored: Scored) -> None:
        if not (scored.query_cuts or scored.doc_cuts):
            return
        lengths = self.checkpoint.tokenizer.lengths
        cuts = [
            f"{_share(number, scored.distinct)} of the {what} (beyond {limit} tokens)"
            for what, number, limit in (
                ("queries", scored.query_cuts, lengths.query or lengths.pair),
                ("texts", scored.doc_cuts, lengths.doc or lengths.pair),
            )
            if number
        ]
        remedies = []
        if scored.query_cuts:
            remedies.append("Longer queries are read with query_length=.")
        if scored.doc_cuts:
            sliding = f"pt.text.sliding(text_attr={self.text_field!r}, prepend_attr=None)"
            remedies.append(f"Score long documents by their passages: {sliding} >> ... >> pt.text.max_passage().")
        self._warn_once(
            TruncationWarning,
            f"cut {' and '.join(cuts)} in {scored.distinct} pairs. {' '.join(remedies)}",
            stacklevel=4,
        )

    def _warn_once(self, category: type[Warning], what: str, *, stacklevel: int) -> None:
        if category not in self._warned:
            self._warned |= {category}
            message = f"{type(self).__name__} {what} This warning is given once per transformer."
            warnings.warn(message, category, stacklevel=stacklevel)

    def _activated(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.activation is None:
            return scores
        return torch.sigmoid(torch.from_numpy(scores)).numpy()


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if part / whole >= 0.001 else "less than 0.1%"


class MonoElectraReRanker(CrossEncoderReRanker):
    """``CrossEncoderReRanker`` with the base-size monoELECTRA of Rank-DistiLLM where no model is named.

    ``first_stage >> MonoElectra("webis/monoelectra-large")``.
    """

    label: ClassVar[str] = "MonoElectra"
    default_model: ClassVar[str | None] = "webis/monoelectra-base"


MonoElectra = MonoElectraReRanker


def ranked(inp: pd.DataFrame, scores: NDArray[np.float32]) -> pd.DataFrame:
    """The rows of ``inp`` by qid, descending score, descending docno (trec_eval's order), with score and rank."""
    out = inp.drop(columns=["score", "rank"], errors="ignore").reset_index(drop=True)
    # float64, like PyTerrier's other scores; each value is the float32 one.
    keys = pd.DataFrame({"qid": out["qid"], "score": scores.astype(np.float64), "docno": out["docno"].astype(str)})
    keys = keys.sort_values(["qid", "score", "docno"], ascending=[True, False, False], kind="stable")
    out = out.iloc[keys.index.to_numpy()].reset_index(drop=True)
    out["score"] = keys["score"].to_numpy()
    out["rank"] = keys.groupby("qid", sort=False).cumcount().to_numpy(dtype=np.int64)
    return out
