"""Rankings on disk and on the net: run files, published runs, teachers' runs, score caches."""

from .cache import ScoreCache
from .files import RunFileError, check_target, dataset_of, read, write, writer
from .frames import deduplicate, merge, subsample
from .published import fetch, preflight, register, verify
from .teacher import TeacherError, TeacherRun, make_teacher_run
from .text import TextLoader, add_queries, add_text, documents, load_topics, text_loader

__all__ = [
    "RunFileError",
    "ScoreCache",
    "TeacherError",
    "TeacherRun",
    "TextLoader",
    "add_queries",
    "add_text",
    "check_target",
    "dataset_of",
    "deduplicate",
    "documents",
    "fetch",
    "load_topics",
    "make_teacher_run",
    "merge",
    "preflight",
    "read",
    "register",
    "subsample",
    "text_loader",
    "verify",
    "write",
    "writer",
]

register()
