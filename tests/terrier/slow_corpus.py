"""A corpus whose documents come when they come; as a script: a first stage that is made of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from pyterrier_rankdistillm import reproduce

TOPICS = pd.DataFrame({"qid": ["1", "2", "3"], "query": ["title:egg", "what's 10^6 eggs", "bread (rise"]})
QRELS = pd.DataFrame([("1", "d1", 1), ("2", "d2", 1), ("3", "d0", 1)], columns=["qid", "docno", "label"])
WORDS = ["bread can rise", "an egg in a title", "10^6 eggs", "rain"]


class Corpus(pt.datasets.Dataset):
    """Documents d0, d1, ...

    Args:
        number: How many.
        seconds: Between two.
        breaks: After how many there is an error; None: never.
    """

    def __init__(self, number: int = 40, seconds: float = 0.0, breaks: int | None = None, length: int = 0) -> None:
        self.number, self.seconds, self.breaks, self.length = number, seconds, breaks, length

    def get_corpus_iter(self, *, verbose: bool = True) -> Iterator[dict[str, str]]:  # noqa: ARG002
        for n in range(self.number):
            if n == self.breaks:
                raise OSError("the download broke")
            if n == 5 and self.seconds:
                print("indexing", flush=True)
            time.sleep(self.seconds)
            yield {"docno": f"d{n}" + "x" * self.length * (n == 3), "text": WORDS[n % 4] if n < 4 else f"word {n}"}

    def __repr__(self) -> str:
        return "Corpus()"


def made(corpus: Corpus, indices: Path, **more: Any) -> Any:
    """A reproduction of the first stage alone."""
    return reproduce(corpus, {}, first_stage="bm25", topics=TOPICS, qrels=QRELS, indices=indices, **more)


if __name__ == "__main__":
    try:
        made(Corpus(number=2000, seconds=0.02), Path(sys.argv[1]))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(7)
    finally:
        print("finally", flush=True)
