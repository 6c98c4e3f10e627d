"""All errors of the package, as one tree. Each is also the builtin error that fits best.

::

    RankDistillmError
    ├── CheckpointError (ValueError)     a checkpoint cannot be opened
    ├── InputError (ValueError)          what was given has something wrong with it
    ├── DataFileError (ValueError)       a file of topics, judgments or texts cannot be read
    │   └── RunFileError                 a run file cannot be read
    ├── RankingError (ValueError)        a transformer does not rank what it was given
    ├── ShardError (ValueError)          saved shards belong to other work, or are unfinished or damaged
    │   └── KeptWorkError (FileExistsError)  saved work was made by something else
    ├── TrainingDataError (ValueError)   data cannot be trained on
    ├── ReproductionError (ValueError)   nothing of a table could be run
    ├── DownloadError (OSError)          a file could not be downloaded from any source
    ├── InUseError (OSError)             another process is doing the same work
    ├── JavaError (RuntimeError)         Java or Terrier cannot be started
    └── WorkerError (ChildProcessError)  workers of Ray died
"""

from __future__ import annotations


class RankDistillmError(Exception):
    """The base class of this package's own errors."""


class CheckpointError(RankDistillmError, ValueError):
    """A checkpoint that cannot be opened as a re-ranker; the message names what is missing or wrong."""


class InputError(RankDistillmError, ValueError):
    """Something that was given has something wrong with it.

    Args:
        who: The function that the user called.
        fact: What is wrong, for whoever gathers several faults.
    """

    def __init__(self, who: str, fact: str) -> None:
        super().__init__(f"{who}: {fact}")
        self.who, self.fact = who, fact

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str]]:
        return type(self), (self.who, self.fact)


class DataFileError(RankDistillmError, ValueError):
    """A file of topics, judgments or texts that cannot be read; the message names file and line."""


class RunFileError(DataFileError):
    """A run file that cannot be read; the message names file and line."""


class RankingError(RankDistillmError, ValueError):
    """A re-ranker (or first stage) does not rank the documents that it was given; the message names queries."""


class ShardError(RankDistillmError, ValueError):
    """A shard folder that belongs to other work, or is unfinished or damaged."""


class KeptWorkError(ShardError, FileExistsError):
    """Work that is kept was made by something else than is given now; the message names what differs, and where."""


class TrainingDataError(RankDistillmError, ValueError):
    """Data that cannot be trained on; the message lists all problems, with counts and examples."""


class ReproductionError(RankDistillmError, ValueError):
    """Nothing could be run, or a system did not rank the documents that it was given."""


class PrecisionWarning(UserWarning):
    """Scores are computed in another precision than was asked for, since the device does not gain from it."""


class OrderWarning(UserWarning):
    """A run's ranks contradict its scores, and only its depth was cut, by rank."""


class TeacherWarning(UserWarning):
    """No teacher was given, so that a first stage's ranking may be what is distilled."""


class DownloadError(RankDistillmError, OSError):
    """The file could not be downloaded from any source; the message says why for each of them."""


class InUseError(RankDistillmError, OSError):
    """Another process (or another thread of this one) does the same work; the message says which, and since when."""


class JavaError(RankDistillmError, RuntimeError):
    """Java, or Terrier in it, cannot be started; the message says what is missing, and how to get it."""


class WorkerError(RankDistillmError, ChildProcessError):
    """Workers died several times, or did not respond; the message names the shard, or says what to check."""
