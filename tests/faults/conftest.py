"""What the suite of faults has in common: a seed, a budget, and counts of what really happened.

``pytest -m faults``; ``FAULTS_SEED`` (default 0) says what is drawn, and ``FAULTS_SECONDS`` (default 5) how long each
generator draws. ``FAULTS_ROUNDS`` instead says how often it goes through its kinds, so that every machine draws the
same. A generator goes through all its kinds at least once, whatever the budget, and fails where a kind never took
effect.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

for folder in ("", "../training", "../runs"):
    sys.path.append(str((Path(__file__).parent / folder).resolve()))

SEED = int(os.environ.get("FAULTS_SEED", "0"))
SECONDS = float(os.environ.get("FAULTS_SECONDS", "5"))
ROUNDS = int(os.environ["FAULTS_ROUNDS"]) if "FAULTS_ROUNDS" in os.environ else None
COUNTS: dict[str, Counter[str]] = {}


class Rounds:
    """Draws kinds until the budget is spent, and at least until each has taken effect.

    Attributes:
        random: The generator's source of randomness.
    """

    def __init__(self, name: str) -> None:
        self.random = random.Random(f"{SEED} {name}")
        self.hits: Counter[str] = COUNTS.setdefault(name, Counter())
        self.kinds: list[str] = []

    def of(self, *kinds: str) -> Iterator[str]:
        """Kinds in turn, shuffled anew each time, until the budget is spent; then those that are hard to hit."""
        self.kinds = list(kinds)
        started = time.monotonic()
        for number in itertools.count():
            spent = number / ROUNDS if ROUNDS is not None else (time.monotonic() - started) / SECONDS
            left = self.kinds if spent < 1 else self.missing()
            if not left or (spent > 5 and self._is_late(number, time.monotonic() - started)):
                return
            yield from self.random.sample(left, len(left))

    @staticmethod
    def _is_late(rounds: int, seconds: float) -> bool:
        """Whether a kind that took no effect until now will not do so."""
        return rounds > 100 if ROUNDS is not None else seconds > 60

    def hit(self, kind: str) -> None:
        """Notes that a fault of a kind took effect."""
        self.hits[kind] += 1

    def missing(self) -> list[str]:
        return [kind for kind in self.kinds if not self.hits[kind]]


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Iterator[Rounds]:
    made = Rounds(request.node.name.removeprefix("test_"))
    yield made
    assert made.missing() == [], "kinds that never took effect"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)
            if not hasattr(os, "fork"):
                item.add_marker(pytest.mark.skip(reason="the faults need fork"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COUNTS:
        budget = f"{SECONDS:g} s" if ROUNDS is None else f"{ROUNDS} rounds"
        terminalreporter.section(f"faults: seed {SEED}, {budget} for each generator")
        for name, hits in sorted(COUNTS.items()):
            counts = ", ".join(f"{kind} {number}" for kind, number in sorted(hits.items()))
            terminalreporter.write_line(f"{name}: {sum(hits.values())} ({counts})")
