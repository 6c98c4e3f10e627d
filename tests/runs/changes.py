"""Ways to change what makes a number: each gives a scorer for 1 and, for -1, the scorer that its user has edited."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

SCORED: list[int] = []
"""Grows whenever any of these scorers is asked."""

OWN = tempfile.TemporaryDirectory()
"""Where this process writes what it edits: a folder of its own, since others write files of the same names."""


def written(source: str, name: str, **names: Any) -> Any:
    """What a notebook's cell defines."""
    scope: dict[str, Any] = {"__name__": "__main__", "pt": pt, **names}
    exec(source, scope)
    return scope[name]


def module(sign: int, source: str, name: str) -> Any:
    """A module of the user's, edited on disk and loaded anew."""
    folder = Path(OWN.name)
    (folder / f"{name}.py").write_text(source.replace("SIGN", str(sign)))
    sys.path.insert(0, str(folder))
    try:
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        for cached in folder.glob(f"__pycache__/{name}.*"):
            cached.unlink()
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


class Weighted(pt.Transformer):
    """Scores by the texts' lengths, times what is found in what it was given."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        SCORED.append(len(inp))
        return pt.model.add_ranks(inp.assign(score=[float(_number(self._given)) * len(text) for text in inp["text"]]))

    def __getstate__(self) -> dict[str, Any]:
        return {"given": self._given}


def _number(given: Any) -> float:
    while not isinstance(given, int | float):
        if isinstance(given, torch.nn.Module):
            given = given(torch.ones(1)).item()
        elif isinstance(given, torch.Tensor):
            given = given.flatten()[0].item()
        elif isinstance(given, Path):
            given = float(given.read_text())
        elif isinstance(given, dict | list | tuple):
            given = list(given.values())[-1] if isinstance(given, dict) else given[-1]
        elif dataclasses.is_dataclass(given) or hasattr(given, "sign"):
            given = given.sign
        elif callable(given):
            given = given()
        else:
            given = float(torch.as_tensor(np.asarray(given, dtype=np.float64)).ravel()[0])
    return given


@dataclasses.dataclass
class Settings:
    sign: int


class Slotted:
    __slots__ = ("sign",)

    def __init__(self, sign: int) -> None:
        self.sign = sign


class Stated:
    def __init__(self, sign: int) -> None:
        self.hidden = object()
        self.sign = sign

    def __getstate__(self) -> dict[str, Any]:
        return {"sign": self.sign}


def doc_score(sign: int, function: Callable[..., float]) -> pt.Transformer:
    del sign
    return pt.apply.doc_score(function)


# --- functions ---


def body(sign: int) -> pt.Transformer:
    return pt.apply.doc_score(written(f"def score(row): return {sign}.0 * len(row['text'])", "score"))


def nested_body(sign: int) -> pt.Transformer:
    source = f"def score(row):\n    def inner(text): return {sign}.0 * len(text)\n    return inner(row['text'])"
    return pt.apply.doc_score(written(source, "score"))


def type_of_a_constant(sign: int) -> pt.Transformer:
    constant = "1" if sign > 0 else "True"
    return pt.apply.doc_score(written(f"def score(row): return len(row['text']) * {constant}", "score"))


def branch(sign: int) -> pt.Transformer:
    way = "<" if sign > 0 else ">"
    return pt.apply.doc_score(written(f"def score(row): return 1.0 if len(row['text']) {way} 10 else 0.0", "score"))


def closure(sign: int) -> pt.Transformer:
    return pt.apply.doc_score(lambda row: float(sign * len(row["text"])))


def default(sign: int) -> pt.Transformer:
    def score(row: Any, sign: int = sign) -> float:
        return float(sign * len(row["text"]))

    return pt.apply.doc_score(score)


def keyword_default(sign: int) -> pt.Transformer:
    def score(row: Any, *, sign: int = sign) -> float:
        return float(sign * len(row["text"]))

    return pt.apply.doc_score(score)


def partial(sign: int) -> pt.Transformer:
    return pt.apply.doc_score(functools.partial(_scored, sign=sign))


def _scored(row: Any, sign: int) -> float:
    return float(sign * len(row["text"]))


def wrapped(sign: int) -> pt.Transformer:
    def score(row: Any) -> float:
        return float(sign * len(row["text"]))

    @functools.wraps(score)
    def outer(*arguments: Any) -> float:
        return score(*arguments)

    return pt.apply.doc_score(outer)


def remembering(sign: int) -> pt.Transformer:
    @functools.lru_cache
    def score(text: str) -> float:
        return float(sign * len(text))

    return pt.apply.doc_score(lambda row: score(row["text"]))


def through_another_function(sign: int) -> pt.Transformer:
    source = f"def helper(text): return {sign}.0 * len(text)\ndef score(row): return helper(row['text'])"
    return pt.apply.doc_score(written(source, "score"))


def global_of_a_container(sign: int) -> pt.Transformer:
    return pt.apply.doc_score(written("def score(row): return K['a'][0] * len(row['text'])", "score", K={"a": [sign]}))


def bound_method(sign: int) -> pt.Transformer:
    return pt.apply.doc_score(Bound(sign).score)


class Bound:
    def __init__(self, sign: int) -> None:
        self.__sign = sign

    def score(self, row: Any) -> float:
        return float(self.__sign * len(row["text"]))


def attribute_of_a_function(sign: int) -> pt.Transformer:
    def score(row: Any) -> float:
        return float(score.sign * len(row["text"]))  # type: ignore[attr-defined]

    score.sign = sign  # type: ignore[attr-defined]
    return pt.apply.doc_score(score)


# --- modules ---


def module_function(sign: int) -> pt.Transformer:
    return pt.apply.doc_score(module(sign, "def score(row):\n    return SIGN * float(len(row['text']))", "mine").score)


def module_attribute(sign: int) -> pt.Transformer:
    found = module(sign, "VALUE = SIGN\ndef unused():\n    pass", "mine")
    return pt.apply.doc_score(written("def score(row): return mine.VALUE * len(row['text'])", "score", mine=found))


def module_imported_in_the_function(sign: int) -> pt.Transformer:
    module(sign, "VALUE = SIGN", "mine_inner")
    source = "def score(row):\n    from mine_inner import VALUE\n    return VALUE * len(row['text'])"
    return pt.apply.doc_score(written(source, "score"))


def module_changed_in_place(sign: int) -> pt.Transformer:
    found = module(1, "VALUE = SIGN", "mine_in_place")
    found.VALUE = sign
    return pt.apply.doc_score(written("def score(row): return m.VALUE * len(row['text'])", "score", m=found))


# --- objects ---


def private(sign: int) -> pt.Transformer:
    return Weighted(sign)


def array(sign: int) -> pt.Transformer:
    return Weighted(np.full(1000, sign, dtype=np.float32))


def array_of_another_type(sign: int) -> pt.Transformer:
    return Weighted(np.ones(3, dtype="float32" if sign > 0 else "float64"))


def tensor(sign: int) -> pt.Transformer:
    return Weighted(torch.full((2, 2), float(sign), dtype=torch.bfloat16))


def torch_module(sign: int) -> pt.Transformer:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, float(sign))
    return Weighted(layer)


def many_settings(sign: int) -> pt.Transformer:
    return Weighted({f"setting {n}": n for n in range(60)} | {"sign": sign})


def nested_list(sign: int) -> pt.Transformer:
    return Weighted([0, [1, [2, [3, sign]]]])


def dataclass(sign: int) -> pt.Transformer:
    return Weighted(Settings(sign))


def slots(sign: int) -> pt.Transformer:
    return Weighted(Slotted(sign))


def own_state(sign: int) -> pt.Transformer:
    return Weighted(Stated(sign))


def file(sign: int) -> pt.Transformer:
    place = Path(OWN.name) / f"{sign}.txt"
    place.write_text(str(sign))
    return Weighted(place)


def edited_class(sign: int) -> pt.Transformer:
    source = (
        "class Mine(pt.Transformer):\n    def transform(self, inp):\n"
        f"        return pt.model.add_ranks(inp.assign(score=[{sign}.0 * len(text) for text in inp['text']]))"
    )
    made: pt.Transformer = written(source, "Mine")()
    return made


def edited_base(sign: int) -> pt.Transformer:
    source = (
        f"class Base(pt.Transformer):\n    def value(self): return {sign}.0\n"
        "class Mine(Base):\n    def transform(self, inp):\n"
        "        return pt.model.add_ranks(inp.assign(score=[self.value() * len(text) for text in inp['text']]))"
    )
    made: pt.Transformer = written(source, "Mine")()
    return made


def class_attribute(sign: int) -> pt.Transformer:
    source = (
        f"class Mine(pt.Transformer):\n    sign = {sign}.0\n    def transform(self, inp):\n"
        "        return pt.model.add_ranks(inp.assign(score=[self.sign * len(text) for text in inp['text']]))"
    )
    made: pt.Transformer = written(source, "Mine")()
    return made


def in_a_pipeline(sign: int) -> pt.Transformer:
    return pt.apply.doc_score(lambda row: 1.0) >> closure(sign)  # noqa: ARG005


def factor(sign: int) -> pt.Transformer:
    return closure(1) * float(sign)


CHANGES: dict[str, Callable[[int], pt.Transformer]] = {
    make.__name__: make
    for make in (
        body, nested_body, type_of_a_constant, branch, closure, default, keyword_default, partial, wrapped, remembering,
        through_another_function, global_of_a_container, bound_method, attribute_of_a_function, module_function,
        module_attribute, module_imported_in_the_function, module_changed_in_place, private, array,
        array_of_another_type, tensor, torch_module, many_settings, nested_list, dataclass, slots, own_state, file,
        edited_class, edited_base, class_attribute, in_a_pipeline, factor,
    )
}  # fmt: skip

if __name__ == "__main__":
    from pyterrier_rankdistillm.runs.kinds import walk

    for name, make in CHANGES.items():
        print(name, walk().tree(make(1))["digest"], walk().tree(make(-1))["digest"])
