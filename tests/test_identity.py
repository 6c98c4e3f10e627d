"""What counts of a value and of code, and what does not."""

from __future__ import annotations

import collections
import copy
import datetime
import decimal
import functools
import logging
import random
import re
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyterrier_rankdistillm.identity import Walk, differences, is_secret
from pyterrier_rankdistillm.identity.bytecode import as_written


def digest(value: Any) -> str:
    return str(Walk().tree(value)["digest"])


def told(one: Any, other: Any) -> list[tuple[str, str]]:
    return [(found.path, found.why) for found in differences(Walk().tree(one), Walk().tree(other))]


def defined(source: str, name: str = "f") -> Any:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec", dont_inherit=True), scope)
    return scope[name]


SAME = {
    "lines, comments, docstring, annotations": (
        "def f(r): return 1.0 * len(r)",
        "# a\n\ndef f(r: 'int') -> float:\n    'doc'\n    # b\n    return (1.0 *\n        len(r))",
    ),
    "nested functions and classes": (
        "def f(r):\n def g(a, b=1): return a + r\n class C:\n  y = 3\n  def m(self): return r\n return g, C",
        "def f(r):\n def g(a: int, b: 'x' = 1) -> 'y':\n  'd'\n  return a + r\n class C:\n  'd'\n  y: int = 3\n"
        "  def m(self) -> list[int]:\n   return r\n return g, C",
    ),
    "comprehensions": (
        "def f(r):\n return sum(x * 2 for x in r if x) + max([y for y in r if y], key=lambda z: -z)",
        "def f(r):\n return sum(\n x * 2\n for x\n in r\n if x) + max(\n [y\n for y in r\n if y],\n key=lambda z:"
        "\n -z)",
    ),
    "handlers": (
        "def f(r):\n try: return r()\n except ValueError: return 0\n finally: r(1)",
        "def f(r):\n\n try:\n  return (\n   r())\n except ValueError:\n  return 0\n finally:\n  r(\n   1)",
    ),
    "branches": (
        "def f(r):\n for a in r:\n  if a: continue\n  b = a; c = b\n return c",
        "def f(r):\n for a in r:\n  if a:\n   continue\n  b = a\n  c = b\n return c",
    ),
    "the order of a set": ("def f(r): return r in {'a', 'b', 'c'}", "def f(r): return r in {'c', 'b', 'a'}"),
    "the order of definitions": (
        "def g(r): return f(r)\ndef f(r): return g(r)",
        "def f(r): return g(r)\ndef g(r): return f(r)",
    ),
    "its own name": ("def f(r): return r", "def g(r): return r\nf = g"),
}
OTHER = {
    "a constant": ("def f(r): return 1", "def f(r): return 2", [("code.constant 0", "1, now 2")]),
    "its type": ("def f(r): return 1", "def f(r): return 1.0", [("code.constant 0", "1, now 1.0")]),
    "a boolean": ("def f(r): return 1", "def f(r): return True", [("code.constant 0", "1, now true")]),
    "zero's sign": ("def f(r): return 0.0", "def f(r): return -0.0", [("code.constant 0", "0.0, now -0.0")]),
    "a way": ("def f(r): return 3 if r < 2 else 4", "def f(r): return 3 if r > 2 else 4", None),
    "a condition": ("def f(r):\n if r: return 3\n return 4", "def f(r):\n if not r: return 3\n return 4", None),
    "a handler": (
        "def f(r):\n try: return r()\n except ValueError: return 0",
        "def f(r):\n try: return r()\n except KeyError: return 0",
        [("code", "is another")],
    ),
    "a name": ("def f(r): return len(r)", "def f(r): return sum(r)", [("code", "is another")]),
    "a global": ("K = 1\ndef f(r): return K", "K = 2\ndef f(r): return K", [("global.K", "1, now 2")]),
    "a string": ("def f(r): return 'a'", "def f(r): return 'b'", [("code.constant 0", "is another")]),
    "a set": ("def f(r): return r in {'a', 'b'}", "def f(r): return r in {'a', 'c'}", None),
    "a nested default": (
        "def f(r):\n def g(a, b=1): return a\n return g(r)",
        "def f(r):\n def g(a, b=2): return a\n return g(r)",
        None,
    ),
    "a circle of functions": (
        "def g(r): return f(r)\ndef f(r): return g(r)",
        "def g(r): return f(r)\ndef f(r): return g(r) + 1",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_count_of_code(name: str) -> None:
    one, other = SAME[name]
    assert told(defined(one), defined(other)) == []
    assert digest(defined(one)) == digest(defined(other))


@pytest.mark.parametrize("name", OTHER)
def test_what_counts_of_code(name: str) -> None:
    one, other, found = OTHER[name]
    assert told(defined(one), defined(one)) == []
    assert told(defined(one), defined(other))
    if found is not None:
        assert told(defined(one), defined(other)) == found


def test_a_class_counts_by_its_code_and_bases() -> None:
    one = "class B:\n def m(self): return 1\nclass C(B):\n def n(self): return self.m()"
    same = "class B:\n 'doc'\n def m(self) -> int:\n  return 1\n\n\nclass C(B):\n x: int\n def n(self): return self.m()"
    assert digest(defined(one, "C")) == digest(defined(same, "C"))
    assert told(defined(one, "C"), defined(one.replace("1", "2"), "C")) == [("base.0.m.code.constant 0", "1, now 2")]
    assert told(defined(one, "C")(), defined(one.replace("1", "2"), "C")()) != []


class Plain:
    def __init__(self, value: Any, **more: Any) -> None:
        self._value = value
        self.__dict__.update(more)


def values(number: int) -> list[Any]:
    """Values of many types, of each another one for another number."""
    plain = Plain(number)
    plain.myself = plain  # type: ignore[attr-defined]
    return [
        number, float(number), str(number), str(number).encode(), complex(number, 1), [number], (number,), {number},
        {"a": number}, {number: "a"}, {("a", number)}, {("a", number): 1}, [[[number]]], [*range(50), number],
        {str(n): n for n in range(100)} | {"x": number}, frozenset([number]), range(number), slice(number), plain,
        datetime.date(2020, 1, number), decimal.Decimal(number), collections.Counter("a" * number),
        collections.deque([number]), collections.OrderedDict(a=number), re.compile(str(number)), random.Random(number),
        functools.partial(len, number), str(number).join, Path(f"nowhere-{number}"), bytearray(number),
        collections.defaultdict(int, a=number),
    ]  # fmt: skip


@pytest.mark.parametrize("place", range(len(values(1))))
def test_values_count_by_content(place: int) -> None:
    one, same, other = (values(number)[place] for number in (1, 1, 2))
    assert digest(one) == digest(same)
    assert digest(one) != digest(other)
    assert digest(one) == digest(copy.deepcopy(one))


def test_types_count() -> None:
    different = [1, 1.0, True, "1", b"1", [1], (1,), {1}, {1: 1}, None, "None", 0.0, -0.0, [[1], [2]], [[1, 2]], ["12"]]
    assert len({digest(value) for value in different}) == len(different)
    assert digest(float("nan")) == digest(-float("nan"))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_what_objects_hold_beside_what_counts() -> None:
    plain = Plain(1, lock=threading.Lock(), log=logging.getLogger("x"), device="cuda:1", n_jobs=8, verbose=True)
    assert digest(plain) == digest(Plain(1))
    assert digest(Plain(1, batch=8)) != digest(Plain(1, batch=9))


def test_what_an_object_says_of_itself_comes_first() -> None:
    class Says(Plain):
        def results_depend_on(self) -> Any:
            return {"version": self._value}

    assert digest(Says(1, hidden=1)) == digest(Says(1, hidden=2))
    assert told(Says(1), Says(2)) == [("version", "1, now 2")]


def test_what_an_object_s_state_is_by_its_class() -> None:
    class State(Plain):
        def __getstate__(self) -> dict[str, Any]:
            return {"value": self._value}

    assert digest(State(1, hidden=1)) == digest(State(1, hidden=2))
    assert told(State(1), State(2)) == [("value", "1, now 2")]


def test_derived_values_do_not_count() -> None:
    class Derived(Plain):
        @functools.cached_property
        def twice(self) -> int:
            return 2 * int(self._value)

    used = Derived(1)
    assert used.twice == 2
    assert digest(used) == digest(Derived(1))

    @functools.lru_cache
    def remembers(number: int) -> int:
        return number

    before = digest(remembers)
    remembers(1)
    assert digest(remembers) == before


def test_files_count_by_content(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one"), ("b.txt", "one"), ("c.txt", "two")):
        (tmp_path / name).write_text(text)
    one, copied, other = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt"))
    for kind in (Path, str):
        assert digest(Plain(kind(one))) == digest(Plain(kind(copied)))
        assert digest(Plain(kind(one))) != digest(Plain(kind(other)))
    one.write_text("two")
    assert digest(one) == digest(other)


def test_folders_of_models_and_indexes_count_by_their_files(tmp_path: Path) -> None:
    for name, weights in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "weights.bin").write_text(weights)
    one, copied, other = (str(tmp_path / name) for name in "abc")
    assert digest(one) == digest(copied)
    assert told(one, other) == [("weights.bin", "is another")]


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("api_key", "x", True), ("OPENAI_API_KEY", "x", True), ("access_token", "x", True), ("hf_token", "x", True),
        ("password", "x", True), ("Authorization", "Bearer x", True), ("client_secret", "x", True),
        ("x-api-key", "x", True), ("sep_token", "[SEP]", False), ("pad_token", "[PAD]", False), ("key", "docno", False),
        ("sort_key", "score", False), ("token", "hf_abcdefgh12345678", True), ("token", "[SEP]", False),
        ("password", 4, False), ("api_key", None, False), ("monkey", "x", False), ("tokens", "x", False),
    ],
)  # fmt: skip
def test_secrets_are_known_by_name(name: str, value: Any, secret: bool) -> None:
    assert is_secret(name, value) == secret


def test_secrets_do_not_count_wherever_they_stand() -> None:
    def closing(api_key: str) -> Callable[[], str]:
        return lambda: api_key

    def given(row: str, *, password: str = "one") -> str:
        return row + password

    changed = functools.partial(given, password="two")
    assert digest(Plain(1, api_key="one")) == digest(Plain(1, api_key="two"))
    assert digest(Plain({"hf_token": "one"})) == digest(Plain({"hf_token": "two"}))
    assert digest(closing("one")) == digest(closing("two"))
    assert digest(changed) == digest(functools.partial(given, password="three"))
    assert digest(Plain(1, sep_token="[SEP]")) != digest(Plain(1, sep_token="|"))


def test_what_cannot_be_known_is_named() -> None:
    with socket.socket() as connection:
        inside = Walk().tree(Plain(1, client=connection))
        assert (inside["unseen"], inside.get("unknown")) == ({"client": "socket.socket"}, None)
        itself = Walk().tree(connection.send)
        assert itself["unknown"] is True
        assert [found.why for found in differences(itself, itself)] == ["what socket.socket computes cannot be known"]
    assert Walk().tree(row for row in ())["unknown"] is True


def test_code_of_another_python_is_told_as_that() -> None:
    old = {**Walk().tree(defined("def f(r): return 1")), "python": "3.5"}
    new = Walk().tree(defined("def f(r): return 2"))
    now = f"{sys.version_info.major}.{sys.version_info.minor}"
    whys = {found.why for found in differences(_renamed(old), new)}
    assert f"made under Python 3.5; code cannot be compared under {now}" in whys
    assert differences({**Walk().tree([1]), "python": "3.5"}, Walk().tree([1])) == []


def _renamed(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree as another Python's bytecode gives it."""
    parts = {name: _renamed(part) for name, part in tree.get("parts", {}).items()}
    changed = {"digest": tree["digest"][::-1]} | ({"what": tree["what"][::-1]} if "what" in tree else {})
    return {**tree, **(changed if tree.get("code") else {}), **({"parts": parts} if parts else {})}


def test_functions_that_pytest_rewrote_are_taken_as_written() -> None:
    """This function is one of them: its code here, and as another process would import it."""

    def checks(row: int) -> int:
        assert row > 0, "no row"
        return row

    plain = as_written(checks.__code__)
    assert any(name.startswith("@py") for name in checks.__code__.co_names)
    assert not any(name.startswith("@py") for name in plain.co_names)
    source = 'def checks(row):\n    assert row > 0, "no row"\n    return row'
    assert digest(checks) == digest(defined(source, "checks"))


def test_deep_and_large_values() -> None:
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    assert digest(deep) == digest(copy.copy(deep))
    chain = [Plain(n) for n in range(200)]
    for one, other in zip(chain, [*chain[1:], chain[0]], strict=True):
        one.next, other.last = other, one  # type: ignore[attr-defined]
    before = digest(chain[0])
    chain[150]._value = -1
    assert digest(chain[0]) != before
