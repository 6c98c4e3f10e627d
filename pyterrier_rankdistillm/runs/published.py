"""The published Rank-DistiLLM files, as PyTerrier and ir_datasets datasets.

Schlatt et al., Rank-DistiLLM, ECIR 2025, https://arxiv.org/abs/2405.07920. Ids and paths on disk are those of Lightning
IR, so that both packages share their downloads.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ir_datasets
import pandas as pd
import pyterrier as pt
from ir_datasets.datasets.base import Dataset as IrDataset
from ir_datasets.formats import BaseScoredDocs, GenericScoredDoc

from ..errors import DownloadError
from ..notebook import card, size
from .download import download, md5_of, remote_size
from .files import read_file
from .text import join_queries, load_topics

PREFIX = "rankdistillm:"
"""What names of this package's datasets begin with."""

PARENT = "msmarco-passage/train"
"""The ir_datasets collection whose queries, qrels and passages the published runs refer to."""

_HUGGING_FACE = "https://huggingface.co/datasets/webis/rank-distillm/resolve/main"
_ZENODO = "https://zenodo.org/records"


@dataclass(frozen=True)
class PublishedFile:
    """A file of the Rank-DistiLLM publication.

    Args:
        name: Its name at its publisher.
        urls: Its sources, with the same bytes, best first.
        md5: Its checksum; None if unknown, in which case this package does not download it.
        size: Its size in bytes; None if unknown (``preflight(online=True)`` asks the server).
        contents: What it contains.
        licence: Its licence; None if unknown. The passages that the ids refer to are MS MARCO's, for non-commercial
            research.
    """

    name: str
    urls: tuple[str, ...]
    md5: str | None
    contents: str
    size: int | None = None
    licence: str | None = None

    @property
    def suffix(self) -> str:
        """All of the name's suffixes from ``.run``, ``.parquet`` or ``.tar`` on."""
        return "".join(Path(self.name).suffixes)


def _hugging_face(name: str, md5: str, contents: str, *more_urls: str) -> PublishedFile:
    return PublishedFile(name, (f"{_HUGGING_FACE}/{name}", *more_urls), md5, contents)


def _zenodo(records: Sequence[int], name: str, md5: str | None, contents: str) -> PublishedFile:
    urls = tuple(f"{_ZENODO}/{record}/files/{name}?download=1" for record in records)
    return PublishedFile(name, urls, md5, contents)


_JUDGED = "of the MS MARCO training queries with a relevance judgment"
_RANKZEPHYR = _hugging_face(
    "__rankzephyr-colbert-10000-sampled-100__msmarco-passage-train-judged.parquet",
    "38f69a3c8a5ed21c639e882a6c2eff7c",
    f"RankZephyr's order of ColBERTv2's top 100 for 10,000 {_JUDGED}",
)
_SET_ENCODER = _hugging_face(
    "__set-encoder-colbert-all-100__msmarco-passage-train-judged.parquet",
    "a47206da7dc551e3ebd4e5b6866be78a",
    f"the Set-Encoder's order of ColBERTv2's top 100 for all {_JUDGED}",
)
_MONOELECTRA = _hugging_face(
    "__monoelectra-colbert-all-100__msmarco-passage-train-judged.parquet",
    "6561f33476a6c8408737f38ea85c848f",
    f"monoELECTRA's order of ColBERTv2's top 100 for all {_JUDGED}",
)
_COLBERT = _hugging_face(
    "__colbert__msmarco-passage-train-judged.parquet",
    "1e927d52af085516bf5a3de2865809d5",
    f"ColBERTv2's ranking for all {_JUDGED}",
    f"{_ZENODO}/15131907/files/__colbert__msmarco-passage-train-judged.parquet?download=1",
)
_RANKZEPHYR_RUN = _zenodo(
    (15131907, 12528410, 11147862),
    "__rankzephyr-colbert-10000-sampled-100__msmarco-passage-train-judged.run",
    "49f8dbf2c1ee7a2ca1fe517eda528af6",
    "as the Parquet file of that name",
)

FILES: tuple[PublishedFile, ...] = (
    _RANKZEPHYR,
    _SET_ENCODER,
    _MONOELECTRA,
    _COLBERT,
    _RANKZEPHYR_RUN,
    _zenodo(
        (15131907,),
        "__set-encoder-colbert__msmarco-passage-train-judged.run.gz",
        "1f069d0daa9842a54a858cc660149e1a",
        f"the Set-Encoder's order of ColBERTv2's ranking for {_JUDGED}",
    ),
    _zenodo(
        (12528410,),
        "__rankzephyr-colbert-10000-sampled-10__msmarco-passage-train-judged.run",
        "619bc815bd133bdca44d6331b241d39a",
        f"RankZephyr's order of ColBERTv2's top 10 for 10,000 {_JUDGED}",
    ),
    _zenodo(
        (12528410,),
        "__rankzephyr-bm25-10000-sampled-100__msmarco-passage-train-judged.run",
        "05e3137ea3526671e1565cc90f9a2c8a",
        f"RankZephyr's order of BM25's top 100 for 10,000 {_JUDGED}",
    ),
    _zenodo(
        (12528410,),
        "__colbert__msmarco-passage-train-judged.run",
        "6ed152027f7270f32fcbfaaa6def951e",
        f"ColBERTv2's top 500 for all {_JUDGED}",
    ),
    _zenodo(
        (12528410,),
        "__bm25__msmarco-passage-train-judged.run",
        "835372b2ab4d20acf10addeae526c559",
        f"BM25's top 500 for all {_JUDGED}",
    ),
    _zenodo((15150456,), "experiments.tar.gz", None, "the runs of the paper's experiments"),
)
"""All published files that are known by name.

Checksums come from Lightning IR (Hugging Face; Zenodo 15131907 in earlier versions) and from xpmir's datamaestro
definitions (Zenodo 12528410). Sizes and licences are not stated there.
"""

NAMES: dict[str, tuple[PublishedFile, ...]] = {
    "rankzephyr": (_RANKZEPHYR, _RANKZEPHYR_RUN),
    "set-encoder": (_SET_ENCODER,),
    "monoelectra": (_MONOELECTRA,),
    "colbert": (_COLBERT,),
}
"""``pt.get_dataset("rankdistillm:{name}")``: its file, and files that can stand in for it."""


def fetch(name: str, *, verbose: bool | None = None) -> Path:
    """The run file of a published dataset, downloaded if needed.

    Args:
        name: ``"rankzephyr"``, ``"set-encoder"``, ``"monoelectra"`` or ``"colbert"``.
        verbose: Show a progress bar; None: in a terminal or a notebook.

    Raises:
        KeyError: There is no such dataset.
        DownloadError: It could not be downloaded from any source.
    """
    files = _files(name)
    there = [file for file in files if _place(name, file).is_file()]
    failures = []
    for file in there or files:
        found = _fetch_file(name, file, verbose)
        if isinstance(found, Path):
            return found
        failures.append(str(found))
    raise DownloadError(" ".join(failures))


def verify(name: str) -> bool:
    """Whether the downloaded file of a published dataset still has its checksum (reads all of it).

    Raises:
        FileNotFoundError: It has not been downloaded.
    """
    for file in _files(name):
        if _place(name, file).is_file():
            return md5_of(_place(name, file)) == file.md5
    raise FileNotFoundError(f"rankdistillm:{name} is not downloaded. fetch({name!r}) does that.")


def preflight(*names: str, online: bool = False) -> pd.DataFrame:
    """What using published datasets will download, how large it is, and where it is stored. It downloads nothing.

    Args:
        names: Datasets, as for ``fetch``; default: all.
        online: Ask the servers for sizes that are not known.

    Returns:
        One row per file, including those of the parent collection: ``dataset``, ``file``, ``bytes`` (Int64, missing if
        unknown), ``there`` (whether it is downloaded), ``target``, ``free`` (bytes on that disk), ``url``, ``md5``,
        ``contents``, ``licence`` (missing if unknown).
    """
    rows = []
    for name in names or NAMES:
        file = _files(name)[0]
        there = next((f for f in _files(name) if _place(name, f).is_file()), None)
        target = _place(name, there or file)
        size = target.stat().st_size if there else file.size
        if size is None and online:
            size = remote_size(file.urls)
        rows.append((f"rankdistillm:{name}", file.name, size, there is not None, target, file.urls[0], file.md5,
                     file.contents, file.licence))  # fmt: skip
    rows += _parent_files()
    columns = ["dataset", "file", "bytes", "there", "target", "url", "md5", "contents", "licence"]
    table = pd.DataFrame(rows, columns=columns)
    table["bytes"] = table["bytes"].astype("Int64")
    table.insert(5, "free", shutil.disk_usage(ir_datasets.util.home_path()).free)
    return table


def register() -> None:
    """Adds the published runs to ir_datasets under Lightning IR's ids; existing ids are not changed."""
    for name in NAMES:
        dataset_id = f"{PARENT}/rank-distillm-{name}"
        if dataset_id not in ir_datasets.registry._registered:
            parent = ir_datasets.load(PARENT)
            constituents = parent.docs_handler(), parent.queries_handler(), parent.qrels_handler()
            ir_datasets.registry.register(dataset_id, IrDataset(*constituents, PublishedScoredDocs(name)))


class PublishedScoredDocs(BaseScoredDocs):  # type: ignore[misc]  # ir_datasets has no types
    """A published run for ir_datasets; downloaded when it is first read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def scoreddocs_path(self) -> Path:
        """The file, downloaded if needed."""
        return fetch(self._name)

    def scoreddocs_iter(self) -> Iterator[GenericScoredDoc]:
        """The run's rows in the file's order."""
        run = read_file(fetch(self._name))
        for qid, docno, score in zip(run["qid"], run["docno"], run["score"], strict=True):
            yield GenericScoredDoc(qid, docno, score)


class PublishedDataset(pt.datasets.Dataset):
    """``pt.get_dataset("rankdistillm:rankzephyr")`` and the other published runs.

    Corpus, topics, qrels and ``text_loader()`` are those of MS MARCO's training split; ``get_results()`` is the run.
    Nothing is downloaded before it is used; ``preflight`` says what will be.
    """

    def __init__(self, name: str) -> None:
        self.files = _files(name)
        self.name = name
        register()
        self._irds: Any = pt.get_dataset(f"irds:{PARENT}/rank-distillm-{name}")

    def irds_ref(self) -> Any:
        """The ir_datasets dataset."""
        return self._irds.irds_ref()

    def get_corpus_iter(self, *, verbose: bool = True) -> pt.model.IterDict:
        """Records with ``docno`` and ``text``: the 8.8 million passages of MS MARCO."""
        return self._irds.get_corpus_iter(verbose=verbose)  # type: ignore[no-any-return]

    def get_corpus_lang(self) -> str:
        """English."""
        return "en"

    def get_topics(self, variant: Literal["run"] | None = None) -> pd.DataFrame:  # type: ignore[override]
        """Columns ``qid`` and ``query``: all training queries, or with ``"run"`` only those of the run."""
        if variant not in (None, "run"):
            raise ValueError(f"{self!r}: variant must be None or 'run', got {variant!r}.")
        topics = load_topics(f"{PARENT}/rank-distillm-{self.name}")
        if variant == "run":
            topics = topics[topics["qid"].isin(read_file(fetch(self.name))["qid"].unique())].reset_index(drop=True)
        return topics

    def get_topics_lang(self) -> str:
        """English."""
        return "en"

    def get_qrels(self, variant: str | None = None) -> pd.DataFrame:
        """Columns ``qid``, ``docno``, ``label`` (1: judged relevant) and ``iteration``, for all training queries."""
        if variant is not None:
            raise ValueError(f"{self!r} has no variants of its qrels, got {variant!r}.")
        qrels = pd.DataFrame(self.irds_ref().qrels_iter())
        qrels = qrels.rename(columns={"query_id": "qid", "doc_id": "docno", "relevance": "label"})
        return qrels[["qid", "docno", "label", "iteration"]]

    def get_results(self, variant: str | None = None) -> pd.DataFrame:
        """The run: ``qid``, ``query``, ``docno``, ``score`` and ``rank`` (from 0).

        The runs over all queries have tens of millions of rows, which take gigabytes in memory.
        """
        if variant is not None:
            raise ValueError(f"{self!r} has no variants of its results, got {variant!r}.")
        run = join_queries(read_file(fetch(self.name)), self.get_topics())
        return run[["qid", "query", "docno", "score", "rank"]]

    def text_loader(self, fields: list[str] | str | Literal["*"] = "*", *, verbose: bool = False) -> pt.Transformer:
        """A transformer that adds ``text`` by ``docno``."""
        return self._irds.text_loader(fields, verbose=verbose)  # type: ignore[no-any-return]

    def info_url(self) -> str:
        """Where the data is described."""
        return "https://huggingface.co/datasets/webis/rank-distillm"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, Any]] = []
        for file in self.files:
            there = _place(self.name, file).is_file()
            told = "" if file.size is None else f", {size(file.size)}"
            rows.append((file.name, f"{file.contents}{told}, {'downloaded' if there else 'not downloaded yet'}"))
        rows += [("topics, labels, passages", f"{PARENT} of ir_datasets"), ("licence", self.files[0].licence)]
        return card(
            f"rankdistillm:{self.name}", rows, note=f"runs.preflight({self.name!r}) says what will be downloaded."
        )

    def __repr__(self) -> str:
        return f"PublishedDataset('rankdistillm:{self.name}')"


def _files(name: str) -> tuple[PublishedFile, ...]:
    if name not in NAMES:
        raise KeyError(f"There is no published dataset {name!r}; there are: {', '.join(NAMES)}.")
    return NAMES[name]


def _place(name: str, file: PublishedFile) -> Path:
    return Path(ir_datasets.util.home_path()) / PARENT / f"rank-distillm-{name}{file.suffix}"


def _fetch_file(name: str, file: PublishedFile, verbose: bool | None) -> Path | DownloadError:
    if file.md5 is None:
        return DownloadError(f"{file.name} has no known checksum, so it is not downloaded unseen.")
    try:
        return download(file.urls, _place(name, file), md5=file.md5, size=file.size, verbose=verbose)
    except DownloadError as error:
        return error


def _parent_files() -> Iterable[tuple[Any, ...]]:
    """What ir_datasets downloads for passages, queries and qrels, according to its own table."""
    collection = PARENT.partition("/")[0]
    home = Path(ir_datasets.util.home_path()) / collection
    table = ir_datasets.util.DownloadConfig.context(collection).contents()
    for key, contents, final in (
        ("collectionandqueries", "passages", "collection.tsv"),
        ("queries", "queries", "train/queries.tsv"),
        ("train/qrels", "qrels", "train/qrels"),
    ):
        entry = table[key]
        there = any((home / place).exists() for place in (final, f"{final}.pklz4"))
        url = entry["url"]
        yield (collection, Path(url).name, entry.get("size_hint"), there, home / final, url, entry.get("expected_md5"),
               contents, "MS MARCO: non-commercial research")  # fmt: skip
