"""What a code object does, without what it is called, where it stands, and how it is written.

Instructions rather than bytes: constants by value instead of by place, jumps by instruction, and without line markers,
docstrings, annotations, and what 3.13 adds to classes. One source gives one result under one minor version of Python.
"""

from __future__ import annotations

import dis
import weakref
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

_FLAGS = 0x04 | 0x08 | 0x20 | 0x80 | 0x200  # *args, **kwargs, generator, coroutine, asynchronous generator
_SILENT = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "RESUME", "SETUP_ANNOTATIONS"})
_ABOUT_THE_CLASS = frozenset(
    {"__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "__classdictcell__"}
)
_CLOSURE, _ANNOTATIONS = 8, 4  # of MAKE_FUNCTION, and of 3.13's SET_FUNCTION_ATTRIBUTE

Atom = str | int | None


@dataclass(frozen=True)
class Code:
    """A code object, normalised.

    Args:
        shape: Arguments, instructions and exception handlers; a constant stands here as the place it is loaded at.
        constants: The constants in the order they are loaded, as (place, value); nested code among them.
        reads: The names that are looked up among globals (or builtins), those of nested code too.
        attributes: All names that are looked up anywhere: the candidates for what is used of a module.
        imports: Modules that it imports when it runs, as (name, level).
    """

    shape: tuple[Atom, ...]
    constants: tuple[tuple[int, Any], ...]
    reads: frozenset[str]
    attributes: frozenset[str]
    imports: frozenset[tuple[str, int]]


_known: weakref.WeakKeyDictionary[CodeType, Code] = weakref.WeakKeyDictionary()


def normalised(code: CodeType) -> Code:
    """What a code object does."""
    if code not in _known:
        _known[code] = _normalised(code)
    return _known[code]


def as_written(code: CodeType) -> CodeType:
    """A function's code as its source says it, where pytest has rewritten its ``assert`` statements; else itself."""
    if not _is_rewritten(code):
        return code
    try:
        whole = compile(Path(code.co_filename).read_text(encoding="utf-8"), code.co_filename, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return code
    same = (code.co_name, code.co_firstlineno)
    return next((found for found in _nested(whole) if (found.co_name, found.co_firstlineno) == same), code)


@dataclass(frozen=True)
class _Step:
    offset: int
    name: str
    number: int
    arg: int | None
    value: Any


def _normalised(code: CodeType) -> Code:
    steps = _without_annotations([step for step in _steps(code) if step.name not in _SILENT])
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    shape: list[Atom] = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS]
    shape += [*names, "captured", *code.co_freevars, "code"]
    constants: list[tuple[int, Any]] = []
    reads, attributes, imports = set(), set(), set()
    flow = _Flow(code, steps)
    for place in flow.order:
        step = steps[place]
        shape += [_name(step), *flow.goes_on(place)]
        if step.number in dis.hasconst:
            constants.append((len(constants), step.value))
        elif isinstance(step.value, str) and _is_named(step.number):
            shape.append(step.value)
        elif not _jumps(step):
            shape.append(step.arg)
        if step.name in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            reads.add(step.value)
        if step.number in dis.hasname:
            attributes.add(step.value)
        if step.name == "IMPORT_NAME":
            level = steps[place - 2].value if place > 1 else 0
            imports.add((step.value, level if isinstance(level, int) else 0))
    for _, value in constants:
        if isinstance(value, CodeType):
            inner = normalised(value)
            reads |= inner.reads
            attributes |= inner.attributes
            imports |= inner.imports
    return Code(tuple(shape), tuple(constants), frozenset(reads), frozenset(attributes), frozenset(imports))


class _Flow:
    """In which order instructions are run, whatever their order in the file: that depends on line breaks in 3.12.

    Args:
        code: The code.
        steps: Its instructions that count.
    """

    def __init__(self, code: CodeType, steps: list[_Step]) -> None:
        self._steps = steps
        self._offsets = [step.offset for step in steps]
        self._handlers = list(getattr(dis.Bytecode(code), "exception_entries", ()))  # from 3.11 on
        numbers: dict[int, int] = {}
        todo = [self._after_jumps(0)] if steps else []
        while todo:
            place = todo.pop()
            if place in numbers or place >= len(steps):
                continue
            numbers[place] = len(numbers)
            handler = self._handler(place)
            todo += [*(() if handler is None else handler[:1]), *reversed(self._next(place))]
        self.order = list(numbers)
        self._numbers = numbers

    def goes_on(self, place: int) -> list[int]:
        """Where an instruction may be followed by others, by their places in ``order``: in the end, by its handler."""
        after = [self._numbers.get(later, -1) for later in self._next(place)]
        handler = self._handler(place)
        return after if handler is None else [*after, self._numbers.get(handler[0], -1), *handler[1:]]

    def _next(self, place: int) -> list[int]:
        step = self._steps[place]
        if step.name.startswith(("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE")):
            return []
        after = [self._after_jumps(place + 1)]
        if _jumps(step):
            after.append(self._after_jumps(bisect_left(self._offsets, step.value)))
            if step.name.endswith(("IF_FALSE", "IF_NOT_NONE")):
                after.reverse()
        return after

    def _after_jumps(self, place: int) -> int:
        seen: set[int] = set()
        while place < len(self._steps) and self._steps[place].name in _ALWAYS and place not in seen:
            seen.add(place)
            place = bisect_left(self._offsets, self._steps[place].value)
        return place

    def _handler(self, place: int) -> tuple[int, int, int] | None:
        offset = self._offsets[place]
        for entry in self._handlers:
            if entry.start <= offset < entry.end:
                return self._after_jumps(bisect_left(self._offsets, entry.target)), entry.depth, int(entry.lasti)
        return None


_ALWAYS = frozenset(
    {"JUMP", "JUMP_ABSOLUTE", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_FORWARD", "JUMP_NO_INTERRUPT"}
)


def _jumps(step: _Step) -> bool:
    return step.number in dis.hasjrel or step.number in dis.hasjabs


def _name(step: _Step) -> str:
    """An instruction's name; of a jump under a condition, whichever way round it is written."""
    name = step.name.replace("_FORWARD", "").replace("_BACKWARD", "") if _jumps(step) else step.name
    return {"POP_JUMP_IF_FALSE": "POP_JUMP_IF_TRUE", "POP_JUMP_IF_NOT_NONE": "POP_JUMP_IF_NONE"}.get(name, name)


def _is_named(number: int) -> bool:
    return number in dis.hasname or number in dis.haslocal or number in dis.hasfree


def _steps(code: CodeType) -> Iterator[_Step]:
    for found in dis.get_instructions(code):
        if isinstance(found.argval, tuple) and "_FAST_" in found.opname:  # two in one, where they share a line
            kinds = found.opname.split("_FAST_", 1)
            for kind, local in zip((f"{kinds[0]}_FAST", kinds[1]), found.argval, strict=True):
                yield _Step(found.offset, kind, dis.opmap[kind], 0, local)
            continue
        yield _Step(found.offset, found.opname, found.opcode, found.arg, found.argval)


def _without_annotations(steps: list[_Step]) -> list[_Step]:
    """Drops what is said about functions and classes: annotations, docstrings, qualified names, first lines."""
    dropped: set[int] = set()
    kept = list(steps)
    for place, step in enumerate(steps):
        if step.name == "STORE_NAME" and step.value in _ABOUT_THE_CLASS:
            dropped |= {place, place - 1}
        elif step.name == "STORE_SUBSCR" and steps[place - 2].value == "__annotations__":
            begin = _operand(steps, place - 2)
            dropped |= set(range(begin, place + 1))
        elif step.name == "MAKE_FUNCTION":
            operands = place - 1
            if steps[operands].name == "LOAD_CONST" and isinstance(steps[operands].value, str):  # 3.10's name
                dropped.add(operands)
                operands -= 1
            flags, setters = step.arg or 0, {}
            for later in range(place + 1, len(steps)):
                if steps[later].name != "SET_FUNCTION_ATTRIBUTE":
                    break
                setters[steps[later].arg or 0] = later
                flags |= steps[later].arg or 0
            if flags & _ANNOTATIONS:
                end = _operand(steps, operands) if flags & _CLOSURE else operands
                dropped |= set(range(_operand(steps, end), end))
                if _ANNOTATIONS in setters:
                    dropped.add(setters[_ANNOTATIONS])
                else:
                    kept[place] = _Step(step.offset, step.name, step.number, flags & ~_ANNOTATIONS, None)
    return [step for place, step in enumerate(kept) if place not in dropped]


def _operand(steps: list[_Step], end: int) -> int:
    """Where the code begins that leaves the one value that is on the stack before ``end``."""
    begin, left = end, 0
    while begin > 0 and left < 1:
        begin -= 1
        step = steps[begin]
        left += dis.stack_effect(step.number, step.arg if step.number >= dis.HAVE_ARGUMENT else None, jump=False)
    return begin


def _is_rewritten(code: CodeType) -> bool:
    return any(name.startswith("@py") for found in _nested(code) for name in (*found.co_names, *found.co_varnames))


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _nested(value)
