"""What the suite of faults has in common: a seed, a budget, and counts of what really happened.

``pytest -m faults``; ``FAULTS_SEED`` (default 0) and ``FAULTS_SECONDS`` (for each generator; default 5) say what is
drawn and for how long. A generator goes through all its kinds at least once, whatever the budget, and fails where a
kind never took effect.
"""

from __future__ import annotations

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
        """Kinds in turn, shuffled anew each time, until time is over."""
        self.kinds = list(kinds)
        until = time.monotonic() + SECONDS
        last = until + 60 + 5 * SECONDS  # for kinds that are hard to hit
        while time.monotonic() < until or (self.missing() and time.monotonic() < last):
            left = self.missing() if time.monotonic() >= until else self.kinds
            yield from self.random.sample(left, len(left))

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
        terminalreporter.section(f"faults: seed {SEED}, {SECONDS:g} s for each generator")
        for name, hits in sorted(COUNTS.items()):
            counts = ", ".join(f"{kind} {number}" for kind, number in sorted(hits.items()))
            terminalreporter.write_line(f"{name}: {sum(hits.values())} ({counts})")
