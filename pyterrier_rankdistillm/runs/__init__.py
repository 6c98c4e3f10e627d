"""Rankings on disk and on the net: run files, published runs, teachers' runs, score caches."""

from ..errors import DataFileError, DownloadError, RankingError, RunFileError, ShardError
from .cache import ScoreCache, file_name
from .files import check_ids, check_target, dataset_of, read_parts, write, writer
from .frames import deduplicate, merge, subsample
from .given import FrameText, MappedRun, add_queries, add_text, read
from .index_text import IndexText
from .llm import RankLlm
from .making import MadeRun, make_teacher_run
from .parquet_text import ParquetText
from .published import PublishedDataset, fetch, preflight, register, verify
from .rankings import Ranking, Rankings
from .text import TextLoader, documents, load_qrels, load_topics, text_loader

__all__ = [
    "DataFileError",
    "DownloadError",
    "FrameText",
    "IndexText",
    "MadeRun",
    "MappedRun",
    "ParquetText",
    "PublishedDataset",
    "RankLlm",
    "Ranking",
    "RankingError",
    "Rankings",
    "RunFileError",
    "ScoreCache",
    "ShardError",
    "TextLoader",
    "add_queries",
    "add_text",
    "check_ids",
    "check_target",
    "dataset_of",
    "deduplicate",
    "documents",
    "fetch",
    "file_name",
    "load_qrels",
    "load_topics",
    "make_teacher_run",
    "merge",
    "preflight",
    "read",
    "read_parts",
    "register",
    "subsample",
    "text_loader",
    "verify",
    "write",
    "writer",
]

register()
