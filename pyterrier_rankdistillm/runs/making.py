"""Making a run: any re-ranker over any first stage, in shards, so that days of work survive a crash."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pandas as pd
import pyterrier as pt

from ..checks import is_whole, whole
from ..errors import RankingError, RunFileError
from ..locks import hold, lock_of
from ..notebook import card
from ..progress import bar
from .download import md5_of
from .files import check_target
from .given import Door, GivenRun, MappedRun, Ranker, Run, Topics, first_stage_of, ids_of, ranker_of, read, topics_of
from .kept import Record, Work, check_reuse, made_at
from .kinds import frame
from .ranks import Ids, first_fault, order_disagrees, positions
from .records import describe, frame_digest, json_file, public, versions
from .shards import Shards, completed, folder_of, record_of

OnFault = Literal["error", "skip"]

FIRST_STAGE = "first stage"
"""The part of the work that finds the candidates."""
_COLUMNS = ["qid", "docno", "score", "rank"]


@dataclass(frozen=True)
class Roles:
    """What messages call the parts of the work: in the words of the function that the user called.

    Args:
        caller: That function.
        reranker: Such as ``"the teacher"``.
        ranking: Such as ``"the teacher's ranking"``.
        remedy: What to do about a faulty ranking.
        error: What a faulty ranking is.
        part: What the re-ranker is called as a part of the work; ``reuse`` takes it.
    """

    caller: str
    reranker: str
    ranking: str
    remedy: str
    error: type[ValueError] = RankingError
    part: str = "teacher"


_TEACHER = Roles(
    "make_teacher_run",
    "the teacher",
    "the teacher's ranking",
    "A teacher must be a re-ranker: it ranks just the documents that it is given. "
    "Correct it and call again (finished shards are kept), or "
    "leave such queries out with on_fault='skip'.",
)


@dataclass(frozen=True)
class Kept:
    """What of a run was not made in this call.

    Args:
        queries: How many.
        made: When.
        notes: What else there is to know.
    """

    queries: int
    made: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MadeRun(pt.Artifact):
    """A finished run: a PyTerrier artifact, and the name of its file wherever a run is given.

    ``pt.Artifact.load("rank-zephyr.run.gz")`` opens it again, ``to_hf("me/rank-zephyr")`` publishes it with its record
    (without local paths), and ``pt.Artifact.from_hf("me/rank-zephyr")`` brings it back.

    Args:
        path: The run file.
        record: How it was made; also in ``{path}.json``. Its ``made by`` has digests of all that the run depends on.
        kept: What of it an earlier call had made; None if nothing.
    """

    ARTIFACT_TYPE: ClassVar[str] = "run"
    ARTIFACT_FORMAT: ClassVar[str] = "rankdistillm"
    ARTIFACT_PACKAGE_HINT: ClassVar[str] = "pyterrier-rankdistillm"

    path: Path
    record: dict[str, Any] = field(repr=False)
    kept: Kept | None = field(default=None, compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MadeRun:  # type: ignore[override]  # it takes no options
        """Opens a run by its path.

        Args:
            path: The run file, with its record beside it; or a folder with just these, as an unpacked artifact is.

        Raises:
            FileNotFoundError: There is no run, or no record beside it.
            RunFileError: Run or record are damaged, or not each other's.
        """
        given = Path(path).expanduser().absolute()
        file = _run_in(given) if given.is_dir() else given
        for part in (file, record_of(file)):
            if not part.is_file():
                raise FileNotFoundError(f"MadeRun.load: {given} must be a run with its record; {part} is not there.")
        try:
            made = json.loads(record_of(file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFileError(f"MadeRun.load: {record_of(file)} is not JSON: {error}.") from error
        stated = made.get("md5") if isinstance(made, dict) else None
        if stated is None or "made by" not in made:
            raise RunFileError(f"MadeRun.load: {record_of(file)} is not the record of a made run.")
        found = md5_of(file)
        if found != stated:
            raise RunFileError(
                f"MadeRun.load: {file} is not the run that its record is of: it has MD5 {found}, not {stated}. Read it "
                f"as any run: runs.read."
            )
        return cls(file, made)

    def read(self, **options: Any) -> pd.DataFrame:
        """The run as a frame; options as for ``runs.read``."""
        return read(self.path, **options)

    def retriever(self) -> pt.Transformer:
        """The run as a first stage: for topics it gives its rankings."""
        return first_stage_of(self.path, who="MadeRun.retriever")

    def _repr_html_(self) -> str:
        named = {name: self.record.get(name) for name in ("teacher", "first_stage")}
        rows: list[tuple[str, Any]] = [("file", self.path)]
        rows += [(name.replace("_", " "), named_in(told) or None) for name, told in named.items() if told]
        rows += [(name, self.record.get(name)) for name in ("depth", "queries", "rows", "seconds", "md5")]
        if self.kept is not None:
            rows.append(("kept", f"{self.kept.queries:,} queries, made {self.kept.made}"))
        rows += [("note", note) for note in (() if self.kept is None else self.kept.notes)]
        return card("Made run", rows)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def _package_files(self) -> Iterator[tuple[str, str | io.BytesIO]]:
        """The files of ``build_package`` and ``to_hf``."""
        yield "pt_meta.json", json_file(self._build_metadata())
        yield record_of(self.path).name, json_file(public(self.record))
        yield self.path.name, os.fspath(self.path)


def named_in(described: Any) -> str:
    """A transformer that a record describes, in a few words; of a pipeline, which takes more of them, none."""
    if not isinstance(described, dict):
        return str(described)
    kind = str(described.get("class", "")).rpartition(".")[2]
    model = next((str(described[key]) for key in ("model", "model_id", "model_name") if described.get(key)), None)
    return f"{kind} {model}".strip() if model else "" if kind == "Compose" else kind


def _run_in(folder: Path) -> Path:
    runs = [record.with_suffix("") for record in folder.glob("*.json") if record.with_suffix("").is_file()]
    if len(runs) != 1:
        raise FileNotFoundError(
            f"MadeRun.load: {folder} must hold one run with its record, got {len(runs)}. Name the run's file."
        )
    return runs[0]


def make_teacher_run(
    teacher: Ranker,
    first_stage: pt.Transformer | Run,
    topics: Topics,
    output: str | os.PathLike[str],
    *,
    depth: int = 100,
    shard_size: int = 32,
    seed: int = 42,
    model: str | None = None,
    revision: str | None = None,
    settings: Mapping[str, Any] | None = None,
    on_fault: OnFault = "error",
    reuse: Collection[str] = (),
    verbose: bool | None = None,
) -> MadeRun:
    """Lets a teacher re-rank a first stage, and writes its run.

    The work is done in shards of queries, kept in ``{output}.shards``. If it stops, the same call continues after the
    last finished shard, and the file is byte for byte the same as without the interruption (if the teacher's ranking
    depends only on its input and the random seeds; those of ``random``, numpy and torch are set for every shard). At
    the end, the record ``{output}.json`` is written beside the run, and the shards are deleted. If run and record of
    the same work exist already, they are returned.

    Args:
        teacher: A re-ranker: any transformer, an open checkpoint, or a hub id or folder of one. It gets what the first
            stage gives, cut to ``depth``.
        first_stage: Finds the candidates, with text where the teacher reads it (``bm25 >> dataset.text_loader()``);
            or a run of them: a frame, a file, or a published run.
        topics: A frame with ``qid`` and ``query``, a file, or a dataset or its name.
        output: Run file to write; the suffix says the format, as in ``runs.write``.
        depth: Documents per query that the teacher gets, at most.
        shard_size: Queries per shard: what is lost at most, and what the teacher can batch over.
        seed: Of the random number generators.
        model: The teacher's model, for the record, where the teacher's own settings do not say it.
        revision: The model's revision, for the record.
        settings: Anything else for the record, as JSON values. If it changes, or any other argument except ``verbose``,
            the work counts as other work.
        on_fault: What to do with a query whose ranking lacks, adds or repeats documents, has a score that is not a
            number, or ranks that contradict the scores: an error, or leave the query out and note it in the record.
        reuse: Parts that differ from what made the kept work (``"teacher"``, ``"first stage"``), but that do not change
            a result: it is used anyway. An error names them.
        verbose: Show a progress bar; None: in a terminal or a notebook.

    Returns:
        The run and its record: ``settings``, ``teacher``, ``first_stage``, ``versions``, numbers of queries and rows,
        ``without_documents`` (queries that the first stage found nothing for), ``faults`` (by query), ``seconds``,
        and the run's ``md5``.

    Raises:
        RankingError: A faulty ranking; the shards finished so far stay.
        KeptWorkError: ``output`` or ``{output}.shards`` belongs to other work.
        InUseError: Another process makes this run.
    """
    who = _TEACHER.caller
    asked = topics_of(topics, who=who)
    ranker = ranker_of(teacher, who=who, argument="teacher")
    if isinstance(ranker, GivenRun):
        raise Door(who, "teacher", "a re-ranker").refuse(teacher, "A run needs no making.")
    stage = first_stage_of(first_stage, who=who)
    _check(depth, shard_size, on_fault)
    about = _as_json({"model": model, "revision": revision, "settings": dict(settings or {})})
    with hold(lock_of(output), f"{who}: {os.fspath(output)}"):
        return make_run(
            ranker, stage, asked, output, roles=_TEACHER, depth=depth, shard_size=shard_size, seed=seed,
            about=about, on_fault=on_fault, reuse=reuse, verbose=verbose,
        )  # fmt: skip


def make_run(
    reranker: pt.Transformer,
    first_stage: pt.Transformer | pd.DataFrame,
    topics: pd.DataFrame,
    output: str | os.PathLike[str],
    *,
    roles: Roles,
    depth: int,
    shard_size: int = 32,
    seed: int = 42,
    about: Mapping[str, Any] | None = None,
    on_fault: OnFault = "error",
    reuse: Collection[str] = (),
    taken: Mapping[str, Record] | None = None,
    keep: Callable[[pd.DataFrame], None] | None = None,
    verbose: bool | None = None,
) -> MadeRun:
    """A run of any re-ranker: a teacher, a system, or (with the identity as the re-ranker) a first stage.

    Args:
        reranker: What ranks; it gets what the first stage gives, cut to ``depth``.
        first_stage: As for ``make_teacher_run``.
        topics: As for ``make_teacher_run``; checked by then.
        output: As for ``make_teacher_run``.
        roles: What messages call things.
        depth: Documents per query, at most.
        shard_size: Queries per shard.
        seed: Of the random number generators.
        about: More that the run depends on, for its record, as JSON values.
        on_fault: As for ``make_teacher_run``.
        reuse: As for ``make_teacher_run``.
        taken: What was found out about parts in this call already.
        keep: Gets what the first stage found (all of its columns), shard by shard, before the shard is finished.
        verbose: Whether to show a progress bar.

    Raises:
        RankingError, KeptWorkError: As ``make_teacher_run``.
    """
    depth, shard_size, seed = whole(depth), whole(shard_size), whole(seed)
    path = Path(output).expanduser().absolute()
    is_given = isinstance(first_stage, pd.DataFrame | pt.transformer.SourceTransformer | MappedRun)
    if isinstance(first_stage, pd.DataFrame):
        first_stage = pt.Transformer.from_df(first_stage)
    settings = {"depth": depth, "shard_size": shard_size, "seed": seed, "on_fault": on_fault, **(about or {})}
    asked = topics[["qid", "query"]]
    live = (roles.part, FIRST_STAGE)
    work = Work(
        {roles.part: reranker, FIRST_STAGE: first_stage, "topics": frame(asked), **settings},
        certain=("topics", *settings, *((FIRST_STAGE,) if is_given else ())),
        reuse=check_reuse(roles.caller, reuse, live),
        who=roles.caller,
        taken=taken,
    )
    done = completed(path, work)
    if done is not None:
        work.warn(stacklevel=4)
        with bar(bool(verbose), total=len(topics), unit=" queries", desc=f"Ranking (kept, made {made_at(path)})",
                 initial=len(topics)):  # fmt: skip
            pass
        return MadeRun(path, done, Kept(len(topics), made_at(path), tuple(work.notes(done["made by"]))))
    check_target(path)  # before days of work
    record = {
        "teacher": describe(reranker), "first_stage": describe(first_stage), "topics": frame_digest(asked), **settings
    }  # fmt: skip
    shards = Shards(folder_of(path), topics["qid"].tolist(), size=shard_size, work=work)
    by_qid = topics.set_index("qid", drop=False)
    made_with = versions()
    drawn = bar(verbose, total=len(topics), unit=" queries", desc="Ranking")
    pending = shards.pending()
    already = len(topics) - sum(len(shard.qids) for shard in pending)
    kept = None
    if already:
        work.warn(stacklevel=4)
        kept = Kept(already, made_at(shards.folder), tuple(work.notes(shards.made_by)))
    try:
        with drawn:
            drawn.update(already)
            for shard in pending:
                started = time.monotonic()
                _seed(seed + shard.index)
                asked = by_qid.loc[list(shard.qids)].reset_index(drop=True)
                run, notes = _rank(reranker, first_stage, asked, depth, on_fault, roles, keep)
                notes |= {"versions": made_with, "seconds": round(time.monotonic() - started, 3)}
                shards.save(shard, run, notes)
                drawn.update(len(shard.qids))
    finally:  # also after an error or Ctrl-C: the same objects may be given again
        shards.ended(live)
    noted = shards.notes()
    if sum(len(notes["without_documents"]) for notes in noted) == len(topics):
        raise roles.error(
            f"{roles.caller}: the first stage found no document for any of the {len(topics)} topics, such as qid "
            f"{topics['qid'].iloc[0]!r}. Are they of its collection?"
        )
    found = {
        "without_documents": [qid for notes in noted for qid in notes["without_documents"]],
        "faults": {qid: what for notes in noted for qid, what in notes["faults"].items()},
    }
    return MadeRun(path, shards.complete(path, {**record, **found}), kept)


def _rank(
    reranker: pt.Transformer,
    first_stage: pt.Transformer,
    topics: pd.DataFrame,
    depth: int,
    on_fault: OnFault,
    roles: Roles,
    keep: Callable[[pd.DataFrame], None] | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The re-ranker's rankings for some topics, in their order, and what is to be noted."""
    given = _candidates(first_stage.transform(topics), topics, depth, roles)
    found = _docnos(given)
    empty = [qid for qid in topics["qid"] if qid not in found]
    if not found:
        return pd.DataFrame(columns=_COLUMNS), {"without_documents": empty, "faults": {}}
    if keep is not None:
        keep(given)
    ranked = reranker.transform(given)
    if {"qid", "docno"} <= set(ranked.columns):
        ranked = _with_string_ids(ranked, Door(roles.caller, roles.ranking, "a ranking"))
    faults = _faults(found, ranked, roles)
    if faults and on_fault == "error":
        shown = "; ".join(f"qid {qid!r}: {', '.join(what)}" for qid, what in list(faults.items())[:3])
        raise roles.error(
            f"{roles.caller}: {roles.ranking} is faulty for {len(faults)} of {len(found)} queries: {shown}. "
            f"{roles.remedy}"
        )
    ranked = ranked[ranked["qid"].isin([qid for qid in found if qid not in faults])].reset_index(drop=True)
    ranked = ranked.assign(score=ranked["score"].astype(np.float64))
    ranked["rank"] = positions(ranked, Ids.of(ranked))
    place = ranked["qid"].map({qid: n for n, qid in enumerate(topics["qid"])})
    order = np.lexsort([ranked["rank"].to_numpy(), place.to_numpy()])
    return ranked[_COLUMNS].iloc[order].reset_index(drop=True), {"without_documents": empty, "faults": faults}


def _candidates(found: pd.DataFrame, topics: pd.DataFrame, depth: int, roles: Roles) -> pd.DataFrame:
    missing = [column for column in ("qid", "docno", "score") if column not in found.columns]
    if missing:
        raise roles.error(f"{roles.caller}: the first stage gives no column {', '.join(missing)}. Is it a retriever?")
    found = _with_string_ids(found, Door(roles.caller, "the run of the first stage", "a run"))
    found = found[found["qid"].isin(topics["qid"])].reset_index(drop=True)
    ids = Ids.of(found)
    fault = first_fault(found, ids)
    if fault is not None:
        raise roles.error(f"{roles.caller}: the first stage's run is faulty: {fault.what}.")
    found = found.assign(rank=positions(found, ids))
    return found[found["rank"] < depth + pt.model.FIRST_RANK].reset_index(drop=True)


def _faults(given: Mapping[str, list[str]], ranked: pd.DataFrame, roles: Roles) -> dict[str, list[str]]:
    """What is wrong with a re-ranker's rankings, by query."""
    missing = [column for column in ("qid", "docno", "score") if column not in ranked.columns]
    if missing:
        raise roles.error(f"{roles.caller}: {roles.reranker} gives no column {', '.join(missing)}. Is it a re-ranker?")
    if not pd.api.types.is_numeric_dtype(ranked["score"]):
        raise roles.error(
            f"{roles.caller}: the scores of {roles.reranker} must be numbers, got dtype {ranked['score'].dtype}."
        )
    returned = _docnos(ranked)
    odd_scores = set(ranked["qid"][~np.isfinite(ranked["score"].to_numpy(dtype=np.float64))])
    contradictory = set(order_disagrees(ranked)) if "rank" in ranked.columns else set()
    faults: dict[str, list[str]] = {}
    for qid in dict.fromkeys((*given, *returned)):
        asked, got = set(given.get(qid, ())), Counter(returned.get(qid, ()))
        what = [
            f"{verb} {len(docnos)} of {len(asked)} documents ({_some(docnos)})"
            for verb, docnos in (
                ("drops", [docno for docno in given.get(qid, ()) if docno not in got]),
                ("adds", [docno for docno in got if docno not in asked]),
                ("repeats", [docno for docno, times in got.items() if times > 1]),
            )
            if docnos
        ]
        if qid in odd_scores:
            what.append("has scores that are not finite")
        elif qid in contradictory:
            what.append("ranks contradict scores (a better rank with a lower score)")
        if what:
            faults[str(qid)] = what
    return faults


def _with_string_ids(run: pd.DataFrame, door: Door) -> pd.DataFrame:
    return run.assign(qid=ids_of(run["qid"], "qid", door), docno=ids_of(run["docno"], "docno", door))


def _docnos(run: pd.DataFrame) -> dict[str, list[str]]:
    return cast(Any, run.groupby("qid", sort=False)["docno"].agg(list).to_dict())  # type: ignore[no-any-return]


def _some(docnos: list[str]) -> str:
    return ", ".join(repr(docno) for docno in docnos[:3]) + (", ..." if len(docnos) > 3 else "")


def _check(depth: int, shard_size: int, on_fault: str) -> None:
    if on_fault not in ("error", "skip"):
        raise ValueError(f"make_teacher_run: on_fault must be 'error' or 'skip', got {on_fault!r}.")
    for name, value in (("depth", depth), ("shard_size", shard_size)):
        if not is_whole(value, least=1):
            raise ValueError(f"make_teacher_run: {name} must be at least 1, got {value!r}.")


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (teachers may use numpy's global generator)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(f"make_teacher_run: settings must hold JSON values: {error}.") from error
    return plain
