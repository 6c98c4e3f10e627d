"""All errors of the package, as one tree: each is also the builtin that its like would be elsewhere.

::

    RankDistillmError
    ├── CheckpointError (ValueError)     a checkpoint cannot be opened
    ├── RunFileError (ValueError)        a run file cannot be read
    ├── RankingError (ValueError)        a transformer does not rank what it was given
    ├── ShardError (ValueError)          kept shards are of other work, unfinished or damaged
    ├── TrainingDataError (ValueError)   data cannot be trained on
    ├── ReproductionError (ValueError)   nothing of a table could be run
    ├── DownloadError (OSError)          no source gave a file
    ├── InUseError (OSError)             another process is at the same work
    └── WorkerError (ChildProcessError)  Ray's workers died
"""

from __future__ import annotations


class RankDistillmError(Exception):
    """Any error that this package raises under a name of its own."""


class CheckpointError(RankDistillmError, ValueError):
    """A checkpoint that cannot be opened as a re-ranker; the message names what is missing or wrong."""


class RunFileError(RankDistillmError, ValueError):
    """A run file that cannot be read; the message names file and line."""


class RankingError(RankDistillmError, ValueError):
    """A re-ranker (or first stage) that does not rank what it was given; the message names queries."""


class ShardError(RankDistillmError, ValueError):
    """A shard folder that is of other work, unfinished or damaged."""


class TrainingDataError(RankDistillmError, ValueError):
    """Data that cannot be trained on; the message lists all that is wrong, with counts and examples."""


class ReproductionError(RankDistillmError, ValueError):
    """Nothing could be run, or a system gave no ranking of what it was given."""


class DownloadError(RankDistillmError, OSError):
    """No source gave the file; the message says why for each of them."""


class InUseError(RankDistillmError, OSError):
    """Another process (or another thread of this one) is at the same work; the message says which, and since when."""


class WorkerError(RankDistillmError, ChildProcessError):
    """Workers died again and again, or gave no sign of life; the message names the shard, or what to look at."""
