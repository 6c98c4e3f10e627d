"""Text loaders with something wrong about them, in a module of their own, so that workers can import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pandas as pd
import pyterrier as pt

WORDS = [
    "why",
    "does",
    "bread",
    "rise",
    "yeast",
    "and",
    "cat",
    "sat",
    "mat",
    "rain",
    "snow",
    "water",
    "garden",
    "onion",
]


def text_of(docno: str) -> str:
    number = int(docno.removeprefix("d"))
    return " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 3 + number % 7))


class Texts(pt.Transformer):
    """The texts of the tests' run. What goes wrong does not count, so that a mended loader is the same one.

    Args:
        folder: Where is noted who fetched what: a line a frame, in a file a process.
    """

    missing = ""
    """A document without a text."""
    deadly = ""
    """A document whose first readers are killed."""
    deaths = 1
    """How many of them."""
    stopping = ""
    """A document whose reader is stopped (SIGSTOP); its process id goes into ``stopped``."""
    seconds = 0.0
    """How long fetching takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        with (self.folder / f"{os.getpid()}.fetched").open("a") as log:
            log.write(f"{len(inp)}\n")
        time.sleep(self.seconds)
        if self.deadly in set(inp["docno"]):
            died = len(list(self.folder.glob("death-*")))
            if died < self.deaths:
                (self.folder / f"death-{died}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if self.stopping in set(inp["docno"]):
            (self.folder / "stopping").write_text(str(os.getpid()))
            (self.folder / "stopping").rename(self.folder / "stopped")  # whole, for who waits for it
            os.kill(os.getpid(), signal.SIGSTOP)
        return inp.assign(text=[None if docno == self.missing else text_of(docno) for docno in inp["docno"]])

    def results_depend_on(self) -> str:
        return "text_of"

    def __repr__(self) -> str:
        return "Texts()"
