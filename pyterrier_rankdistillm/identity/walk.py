"""What a value is, as a digest of all that it holds: a typed walk over values and code.

Equal values in two processes have equal digests; values that compute something else have others. No bytes of pickle,
marshal or repr are hashed. What is walked is a graph: functions name one another, objects hold their parents. Its
strongly connected parts are told apart by refinement (nodes that nothing tells apart are equal), all else by its
children, so that a digest depends neither on where the walk began nor on the order of sets and dicts.
"""

from __future__ import annotations

import array
import collections
import copyreg
import enum
import functools
import hashlib
import importlib.util
import inspect
import math
import os
import re
import struct
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .bytecode import as_written, normalised
from .owners import PYTHON, owner_of, version_of
from .secrecy import is_secret

SAYS = "results_depend_on"
"""The method by which an object says what its results depend on."""

_PLACEMENT = frozenset(
    {"device", "devices", "device_map", "n_jobs", "num_threads", "num_workers", "threads", "verbose", "workers"}
)
_SKIPPED = frozenset(
    {
        "__abstractmethods__", "__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__",
        "__dataclass_fields__", "__dataclass_params__", "__dict__", "__doc__", "__firstlineno__", "__match_args__",
        "__module__", "__orig_bases__", "__parameters__", "__qualname__", "__slotnames__", "__slots__",
        "__static_attributes__", "__subclasshook__", "__type_params__", "__weakref__", "_abc_impl",
    }
)  # fmt: skip
_IDLE = re.compile(
    r"(_?thread(ing)?[.].*|logging[.].*|_?weakref[.].*|queue[.].*|_queue[.].*|concurrent[.]futures[.].*"
    r"|multiprocessing[.](pool|synchronize|queues|context|managers)[.].*|tqdm[.].*|tempfile[.]TemporaryDirectory"
    r"|itertools[.](count|cycle)|torch[.](device|cuda.*[.](Stream|Event)|Generator)|_asyncio[.].*|asyncio[.].*|contextvars[.].*)"
)
"""Objects that results do not follow from: locks, threads, loggers, pools, bars, devices, counters."""
_CLIENTS = frozenset(
    {
        "aiohttp", "anthropic", "boto3", "botocore", "cohere", "elasticsearch", "groq", "grpc", "httpcore", "httpx",
        "mistralai", "ollama", "openai", "opensearchpy", "psycopg", "psycopg2", "pymongo", "redis", "requests",
        "sqlalchemy", "urllib3", "websocket", "websockets",
    }
)  # fmt: skip
_CLIENT = re.compile(r"(Client|Session|Connection|Channel|Socket|socket|SSLContext)$")
_THE_WORK_ITSELF = frozenset({"fn", "func", "function", "self", "model", "_model", "wrapped", "bound"})
_SHOWN, _FLAT = 50, 20  # items of a mapping or sequence that are told apart one by one
_DEEPEST, _MOST = 12, 200  # of a tree that is recorded: levels, nodes
_CHUNK = 1 << 22


@dataclass
class Shape:
    """What a value consists of.

    Args:
        kind: What it is; counts.
        content: More that counts, as bytes.
        parts: What it holds, by name; names count, their order does not.
        ordered: Whether names tell parts apart; where not, parts are a set.
        code: Whether it is user's code, of this Python.
        unreadable: Whether its state cannot be read.
        library: Whether it is an object of a class that is not the user's.
        either: Whether it is the same where one of its parts is, such as a model's commit or its weights.
        value: A number, boolean or None, to be shown.
    """

    kind: str
    content: bytes = b""
    parts: Iterable[tuple[str, Any]] = ()
    ordered: bool = True
    code: bool = False
    unreadable: bool = False
    library: bool = False
    either: bool = False
    value: Any = None
    shows: bool = False


Kind = Callable[[Any, "Walk"], "Shape | None"]
"""Knows some values: says what they consist of, or None."""


@dataclass(eq=False)
class _Node:
    shape: Shape
    parts: list[tuple[str, _Node]] = field(default_factory=list)
    what: bytes = b""
    digest: bytes = b""
    number: int = -1
    container: bool = False
    blocked: bool = False


class Walk:
    """The walk over the values of one call: what was read once is not read again while it lasts.

    Args:
        kinds: What is known beyond Python's own values, asked in order.
        before: An earlier walk of the call, whose files are not read again unless they changed since.
    """

    def __init__(self, kinds: Iterable[Kind] = (), *, before: Walk | None = None) -> None:
        self.kinds = tuple(kinds)
        self.imports: dict[str, str] = {}
        self._nodes: dict[tuple[int, bool], _Node] = {}
        self._alive: list[Any] = []
        self._files: dict[str, tuple[tuple[int, ...], str]] = {} if before is None else before._files
        self._modules: dict[tuple[int, frozenset[str]], Shape] = {}
        self._expanders = self._made_of()

    def tree(self, value: Any) -> dict[str, Any]:
        """A value's digest, and those of what it consists of, as JSON values.

        Returns:
            ``digest``; ``value`` of numbers, booleans and None; ``what`` and ``parts`` by name, as deep as is told;
            ``code`` where it is user's code; and, of the whole, ``python`` where there is any of that, ``unseen``
            (what cannot be known, by name) and ``unknown`` where that is the work itself.
        """
        root = self._built(value)
        self._block(root)
        _digest_all(root)
        unseen: dict[str, str] = {}
        _find_unseen(root, "", unseen, set())
        tree = _told(root)
        if _has_code(root):
            tree["python"] = f"{sys.version_info.major}.{sys.version_info.minor}"
        if unseen:
            tree["unseen"] = unseen
            if any(_is_the_work(path) for path in unseen):
                tree["unknown"] = True
        return tree

    def file(self, path: str | os.PathLike[str]) -> str:
        """The digest of a file's content."""
        name = os.path.realpath(path)
        status = os.stat(name)  # noqa: PTH116  (a resolved name)
        now = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._files.get(name)
        if known is None or known[0] != now:
            digest = _hash()
            with open(name, "rb") as file:  # noqa: PTH123  (a resolved name)
                while data := file.read(_CHUNK):
                    digest.update(data)
            known = self._files[name] = now, digest.hexdigest()
        return known[1]

    # --- building the graph ---

    def _built(self, value: Any) -> _Node:
        todo: list[tuple[_Node, bool]] = []
        root = self._node(value, False, todo)
        while todo:
            node, merely = todo.pop()
            used = merely or node.shape.code
            for name, part in node.shape.parts:
                node.parts.append((name, self._node(part, used, todo)))
        return root

    def _node(self, value: Any, merely: bool, todo: list[tuple[_Node, bool]]) -> _Node:
        key = (id(value), merely)
        if key in self._nodes:
            return self._nodes[key]
        shape = self._shape(value, merely)
        node = _Node(shape, container=isinstance(value, dict | list | tuple | set | frozenset))
        self._nodes[key] = node
        self._alive.append(value)  # or its id would become another's
        todo.append((node, merely))
        return node

    def _shape(self, value: Any, merely: bool) -> Shape:
        if isinstance(value, Shape):
            return value
        said = getattr(type(value), SAYS, None)
        if said is not None and not isinstance(value, type):
            stated = said(value)
            named_ = isinstance(stated, dict) and all(type(name) is str for name in stated)
            return Shape("says", parts=named(stated) if named_ else [("says", stated)])
        if type(value) in (dict, list, tuple, set, frozenset):
            return _contained(value) or Shape("empty")
        atom = _atom(value)
        if atom is not None:
            if type(value) is str and (found := self._path(value)) is not None:
                return found
            shows = value is None or (type(value) in (bool, int, float) and value == value and abs(value) != math.inf)
            return Shape(atom[0], atom[1], value=value if shows else None, shows=shows)
        for kind in self.kinds:
            if (known := kind(value, self)) is not None:
                return known
        return self._by_type(value, merely)

    def _by_type(self, value: Any, merely: bool) -> Shape:
        for kinds, expand in self._expanders:
            if isinstance(value, kinds):
                found: Shape = expand(value)
                return found
        if isinstance(value, types.ModuleType):
            return self._module(value, frozenset(vars(value)))
        if isinstance(value, type):
            return self._class(value, merely)
        if isinstance(value, types.FunctionType):
            return self._function(value, merely)
        if inspect.isroutine(value) or type(value).__name__ in ("cython_function_or_method", "ufunc"):
            return self._routine(value, merely)
        return self._object(value)

    def _made_of(self) -> tuple[tuple[Any, Callable[[Any], Shape]], ...]:
        return (
            (enum.Enum, lambda v: Shape(f"enum {type(v).__qualname__}.{v.name}", parts=[("value", v._value_)])),
            (types.MethodType, lambda v: Shape("method", parts=[("function", v.__func__), ("self", v.__self__)])),
            (functools.partial, _partial),
            (functools.partialmethod, _partial),
            (staticmethod | classmethod, lambda v: Shape(type(v).__name__, parts=[("wrapped", v.__func__)])),
            (property, lambda v: Shape("property", parts=[("get", v.fget), ("set", v.fset), ("delete", v.fdel)])),
            (functools.cached_property, lambda v: Shape("cached property", parts=[("wrapped", v.func)])),
            (functools._lru_cache_wrapper, _remembering),
            (re.Pattern, lambda v: Shape("pattern", parts=[("pattern", v.pattern), ("flags", v.flags)])),
            (types.CodeType, self._code),
            (types.MappingProxyType, lambda v: Shape("mapping", parts=[("of", dict(v))])),
            (types.SimpleNamespace, lambda v: Shape("namespace", parts=named(vars(v)))),
            (types.CellType, _cell),
            (os.PathLike, self._path_like),
            (bytearray | memoryview, lambda v: Shape("bytes", bytes(v))),
            (array.array, lambda v: Shape(f"array {v.typecode}", v.tobytes())),
            (range, lambda v: Shape("range", parts=[("start", v.start), ("stop", v.stop), ("step", v.step)])),
            (slice, lambda v: Shape("slice", parts=[("start", v.start), ("stop", v.stop), ("step", v.step)])),
            (types.GenericAlias, lambda v: Shape("type", str(v).encode())),
        )

    # --- code ---

    def _code(self, value: types.CodeType) -> Shape:
        code = normalised(as_written(value))
        content = b"".join(_framed(atom) for atom in code.shape)
        return Shape(
            "code", content, [(f"constant {place}", constant) for place, constant in code.constants], code=True
        )

    def _function(self, value: types.FunctionType, merely: bool) -> Shape:
        owner = owner_of(value.__module__, value.__globals__)
        if owner is not None:
            return self._of_library(value, owner, merely)
        code = normalised(as_written(value.__code__))
        parts: list[tuple[str, Any]] = [("code", value.__code__)]
        arguments = value.__code__.co_varnames[: value.__code__.co_argcount]
        defaults = value.__defaults__ or ()
        parts += named(dict(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)), "default.")
        parts += named(value.__kwdefaults__ or {}, "default.")
        captured: dict[str, Any] = {}
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if name != "__class__":  # of super(): the class that the function is in
                captured[name] = cell.cell_contents if _is_filled(cell) else Shape("empty")
        parts += named(captured, "closure.")
        parts += named(dict(self._globals(value.__globals__, code.reads, code.attributes)), "global.")
        for name, level in sorted(code.imports):
            module = _imported(name, level, value.__globals__)
            if module is not None and owner_of(module.__name__) is None:
                parts.append((f"import.{name}", self._module(module, code.attributes)))
            else:
                self._note(name.partition(".")[0])
        parts += named({name: held for name, held in vars(value).items() if name != "__wrapped__"}, "attribute.")
        if hasattr(value, "__wrapped__"):
            parts.append(("wrapped", value.__wrapped__))
        return Shape("function", parts=parts, code=True)

    def _globals(
        self, namespace: Mapping[str, Any], names: Iterable[str], attributes: frozenset[str]
    ) -> Iterator[tuple[str, Any]]:
        for name in sorted(names):
            if name in namespace:
                value = namespace[name]
                if isinstance(value, types.ModuleType):
                    value = self._module(value, attributes)
                yield name, value

    def _module(self, value: types.ModuleType, attributes: frozenset[str]) -> Shape:
        """What may be used of a module: of the user's own all of it that has one of the names, else its name."""
        owner = owner_of(value.__name__)
        if owner is not None:
            self._note(value.__name__.partition(".")[0])
            return Shape("module", value.__name__.encode())
        key = (id(value), attributes)
        if key not in self._modules:
            self._modules[key] = shape = Shape("user's module", code=True)
            used = attributes - set(dir(types.ModuleType))
            shape.parts = named(dict(self._globals(vars(value), used, attributes)))
        return self._modules[key]

    def _class(self, value: type, merely: bool) -> Shape:
        owner = owner_of(value.__module__)
        if owner is not None and _is_found(value):
            return self._of_library(value, owner, merely)
        held = {
            name: item
            for name, item in vars(value).items()
            if name not in _SKIPPED and not inspect.ismemberdescriptor(item) and not inspect.isgetsetdescriptor(item)
        }
        if issubclass(value, enum.Enum):
            members = {name: member._value_ for name, member in value.__members__.items()}
            held = {n: i for n, i in held.items() if not n.startswith("_") and n not in members} | members
        parts = [*named(held), *((f"base.{n}", base) for n, base in enumerate(value.__bases__))]
        if type(value) is not type:
            parts.append(("metaclass", type(value)))
        return Shape("class", value.__name__.encode(), parts, code=True)

    def _routine(self, value: Any, merely: bool) -> Shape:
        bound = getattr(value, "__self__", None)
        if bound is not None and not isinstance(bound, types.ModuleType | type):
            return Shape(f"method {value.__name__}", parts=[("self", bound)])
        module = getattr(value, "__module__", None)
        owner = owner_of(module)
        if owner is None:
            file = getattr(sys.modules.get(str(module)), "__file__", None)
            content = self.file(file) if file is not None and Path(file).is_file() else ""
            return Shape("compiled function", f"{_name_of(value)} {content}".encode(), unreadable=not content)
        return self._of_library(value, owner, merely)

    def _of_library(self, value: Any, owner: str, merely: bool) -> Shape:
        module = getattr(value, "__module__", None)
        self._note(str(module).partition(".")[0])
        name = f"{module}.{_name_of(value)}"
        return Shape("named", name.encode(), () if merely else self._version(owner))

    def _version(self, owner: str | None) -> list[tuple[str, Any]]:
        """The version of the distribution that defines what stands in a pipeline."""
        if owner is None or owner == PYTHON:
            return []
        return [
            (f"version of {owner}", Shape("version", version_of(owner).encode(), value=version_of(owner), shows=True))
        ]

    def _note(self, package: str) -> None:
        owner = owner_of(package) if package in sys.modules else None
        if owner is not None and owner != PYTHON:
            self.imports[owner] = version_of(owner)

    # --- objects ---

    def _object(self, value: Any) -> Shape:
        kind = type(value)
        module, name = str(kind.__module__), kind.__qualname__
        if _IDLE.fullmatch(f"{module}.{name}"):
            return Shape("idle")
        owner = owner_of(module) if _is_found(kind) else None
        library = owner is not None
        label = f"{module}.{name}" if library else "object"
        contained = _contained(value)
        if contained is None and library and (module.partition(".")[0] in _CLIENTS or _CLIENT.search(name)):
            return Shape(label, parts=self._version(owner), unreadable=True, library=True)
        if isinstance(value, types.GeneratorType | types.CoroutineType | types.AsyncGeneratorType) or (
            module in ("io", "_io") and hasattr(value, "fileno")
        ):
            return Shape(label, unreadable=True, library=True)
        parts: list[tuple[str, Any]] = self._version(owner) if library else [("class", kind)]
        state = _state(value, only_held=contained is not None)
        if state is None:
            return Shape(label, parts=parts, unreadable=True, library=True)
        if contained is not None:
            parts.append(("items", contained))
        parts += _held(state, kind)
        return Shape(label, parts=parts, library=library)

    def _path(self, value: str) -> Shape | None:
        """The file, model or index that a string names; None where it names none."""
        if not value or len(value) > 1000 or "\n" in value or "\0" in value:
            return None
        named = "/" in value or os.sep in value or re.search(r"[.]\w{1,12}$", value) is not None
        place = Path(value).expanduser()
        try:
            if named and place.is_file():
                return Shape("file", self.file(place).encode())
            return self.folder(place) if place.is_dir() else None
        except OSError:  # not to be read, or no path at all
            return None

    def _path_like(self, value: os.PathLike[str]) -> Shape:
        place = Path(value).expanduser()
        if place.is_file():
            return Shape("file", self.file(place).encode())
        found = self.folder(place) if place.is_dir() else None
        return found or Shape("path", os.fsencode(value))

    def folder(self, place: Path) -> Shape | None:
        """A folder that holds a model or an index, by its files; None for any other."""
        if not any((place / name).is_file() for name in MODELS_AND_INDEXES):
            return None
        files = sorted(file for file in place.rglob("*") if file.is_file() and not file.name.startswith("."))
        if len(files) > 10_000:
            return Shape("folder", unreadable=True, library=True)
        return Shape(
            "folder", parts=[(file.relative_to(place).as_posix(), _file_part(self.file(file))) for file in files]
        )

    # --- what cannot be read ---

    def _block(self, root: _Node) -> None:
        """An object of a library in which something cannot be read cannot be read as a whole."""
        order: list[_Node] = []
        seen = {id(root)}
        todo = [root]
        above: dict[int, list[_Node]] = {}
        while todo:
            node = todo.pop()
            order.append(node)
            for _, part in node.parts:
                above.setdefault(id(part), []).append(node)
                if id(part) not in seen:
                    seen.add(id(part))
                    todo.append(part)
        spreading = [node for node in order if node.shape.unreadable]
        reached = {id(node) for node in spreading}
        for node in spreading:
            node.blocked = True
        while spreading:
            node = spreading.pop()
            for parent in above.get(id(node), ()):
                if id(parent) in reached or not (parent.shape.library or parent.container):
                    continue
                reached.add(id(parent))
                parent.blocked = parent.shape.library
                spreading.append(parent)
        for node in order:
            if node.blocked:
                node.parts = [(name, part) for name, part in node.parts if name.startswith("version of ")]


MODELS_AND_INDEXES = ("config.json", "data.properties", "pt_meta.json", "pt_pisa_config.json")
"""Files by which a folder is known to be a model or an index."""


def _file_part(digest: str) -> Shape:
    return Shape("file", digest.encode())


# --- values ---


def _hash() -> Any:
    return hashlib.blake2b(digest_size=16)


def _atom(value: Any) -> tuple[str, bytes] | None:
    """A value without parts: its type and its content."""
    kind = type(value)
    if kind is str:
        return "str", value.encode("utf-8", "surrogatepass")
    if kind is bytes:
        return "bytes", value
    if value is None or value is Ellipsis or value is NotImplemented:
        return "constant", str(value).encode()
    if kind is bool or kind is int:
        return kind.__name__, b"%d" % value
    if kind is float:
        return "float", b"nan" if value != value else struct.pack("<d", value)
    if kind is complex:
        return "complex", struct.pack("<dd", value.real, value.imag)
    return None


def _framed(value: Any) -> bytes:
    kind, content = _atom(value) or ("", b"")
    return b"%s %d " % (kind.encode(), len(content)) + content


def framed_together(values: Iterable[Any]) -> bytes | None:
    """Many atoms, one after another; None where one is none."""
    values = list(values)
    kinds: dict[str, int] = {}
    which = bytearray()
    if set(map(type, values)) == {str}:  # most columns
        kinds["str"] = 0
        contents = [value.encode("utf-8", "surrogatepass") for value in values]
    else:
        contents = []
        for value in values:
            atom = _atom(value)
            if atom is None:
                return None
            which.append(kinds.setdefault(atom[0], len(kinds)))
            contents.append(atom[1])
    lengths = array.array("q", map(len, contents))
    digest = _hash()
    digest.update(b" ".join(kind.encode() for kind in kinds))
    if len(kinds) > 1:
        digest.update(bytes(which))
    if sys.byteorder == "big":
        lengths.byteswap()
    digest.update(lengths.tobytes())
    digest.update(b"".join(contents))
    return bytes(digest.digest())


def _contained(value: Any) -> Shape | None:
    """The items of a mapping, sequence or set."""
    if isinstance(value, dict):
        return _mapping(value)
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        if len(value) > _FLAT and (flat := framed_together(value)) is not None:
            return Shape(f"{kind} {len(value)}", flat)
        return Shape(f"{kind} {len(value)}", parts=[(str(place), item) for place, item in enumerate(value)])
    if isinstance(value, set | frozenset):
        atoms = [_framed(item) for item in value if _atom(item) is not None]
        if len(atoms) == len(value):
            return Shape("set", framed_together(sorted(atoms)) or b"")
        return Shape("set", parts=[("", item) for item in value], ordered=False)
    if isinstance(value, collections.deque):
        return _contained(list(value))
    for base in (str, bytes, int, float, complex):
        if isinstance(value, base):
            return Shape(base.__name__, _framed(base(value)))  # type: ignore[arg-type]
    return None


def _mapping(value: Mapping[Any, Any]) -> Shape:
    simple = all(_atom(key) is not None for key in value)
    if simple and len(value) > _SHOWN:
        left = {key: item for key, item in value.items() if not (isinstance(key, str) and is_secret(key, item))}
        pairs = sorted((_framed(key), key) for key in left)
        flat = framed_together(left[key] for _, key in pairs)
        if flat is not None:
            return Shape("mapping", (framed_together(key for key, _ in pairs) or b"") + flat)
    if simple:
        named = [
            (_key(key), item) for key, item in value.items() if not (isinstance(key, str) and is_secret(key, item))
        ]
        return Shape("mapping", parts=named)
    pairs_ = [("", Shape("pair", parts=[("key", key), ("value", item)])) for key, item in value.items()]
    return Shape("mapping", parts=pairs_, ordered=False)


def _key(key: Any) -> str:
    """A key as the name of a part: as it is where it is a word, else its digest."""
    if isinstance(key, str) and re.fullmatch(r"[\w\-/@ ]{1,60}", key):
        return key
    digest = _hash()
    digest.update(_framed(key))
    return f"[{key}]" if type(key) is int else f"[{digest.hexdigest()[:12]}]"


def named(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """What variables, arguments and attributes hold, but for secrets and where the work is done."""
    return [
        (prefix + name, item)
        for name, item in values.items()
        if not is_secret(name, item) and not (name.lower().strip("_") in _PLACEMENT and _is_plain(item))
    ]


def _is_plain(value: Any) -> bool:
    return _atom(value) is not None or type(value).__module__ == "torch" or isinstance(value, list | dict)


def _held(state: Mapping[str, Any], kind: type) -> list[tuple[str, Any]]:
    """What an object holds, but for what it derived from the rest."""
    derived = {name for base in kind.__mro__ for name, item in vars(base).items()
               if isinstance(item, functools.cached_property)}  # fmt: skip
    return [
        (name, item) for name, item in named(state) if name not in derived and not _IDLE.fullmatch(_class_name(item))
    ]


def _class_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _state(value: Any, *, only_held: bool) -> dict[str, Any] | None:
    """What an object says that it is, or all that it holds; None where that cannot be read."""
    kind = type(value)
    own = getattr(kind, "__getstate__", None)
    if own is not None and own is not getattr(object, "__getstate__", None):
        try:
            said = own(value)
        except Exception:  # it is the object's code, and may do anything
            said = None
        if said is not None:
            return {"state": said} if not isinstance(said, dict) or not all(isinstance(k, str) for k in said) else said
    held: dict[str, Any] = dict(vars(value)) if hasattr(value, "__dict__") else {}
    readable = hasattr(value, "__dict__")
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            readable = True
            name = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                held[name] = getattr(value, name)
    if isinstance(value, collections.defaultdict):
        held["default_factory"] = value.default_factory
    if only_held or (readable and (held or not _is_compiled(kind))):
        return held
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # as above: most say "cannot pickle"
        return None
    if isinstance(reduced, str):
        return {"named": reduced}
    function, arguments, *rest = reduced
    if function is copyreg.__newobj__:  # type: ignore[attr-defined]
        arguments = arguments[1:]
    found = {"made with": arguments}
    for name, part in zip(("state", "items", "pairs"), rest, strict=False):
        if part is not None:
            found[name] = part if name == "state" else list(part)
    return found if arguments or len(found) > 1 or kind.__module__ in ("builtins",) else held or None


def _is_compiled(kind: type) -> bool:
    return not kind.__flags__ & (1 << 9)  # Py_TPFLAGS_HEAPTYPE: made by a class statement


def _is_found(kind: type) -> bool:
    """Whether the module that a class says it is of is there."""
    return kind.__module__ in sys.modules


def _name_of(value: Any) -> str:
    return str(getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__)))


def _partial(value: Any) -> Shape:
    arguments = named(dict(value.keywords), "argument.")
    return Shape("partial", parts=[("func", value.func), ("arguments", tuple(value.args)), *arguments])


def _remembering(value: Any) -> Shape:
    settings = value.cache_parameters()
    return Shape("remembering", parts=[("wrapped", value.__wrapped__), ("typed", settings["typed"])])


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _cell(cell: types.CellType) -> Shape:
    return Shape("cell", parts=[("holds", cell.cell_contents)] if _is_filled(cell) else ())


def _imported(name: str, level: int, namespace: Mapping[str, Any]) -> types.ModuleType | None:
    """A module that a function imports when it runs, imported now; None where that fails, or it is a library's."""
    try:
        package = str(namespace.get("__package__") or "") if level else None
        absolute = importlib.util.resolve_name("." * level + name, package)
        if absolute in sys.modules:
            return sys.modules[absolute]
        top = absolute.partition(".")[0]
        if top in sys.stdlib_module_names:
            return None
        spec = importlib.util.find_spec(top)
        if spec is None or any(part in ("site-packages", "dist-packages") for part in Path(str(spec.origin)).parts):
            return None
        return importlib.import_module(absolute)
    except Exception:  # a user's module may raise anything; what the function would get is an error too
        return None


# --- digests ---


def _what(node: _Node) -> bytes:
    digest = _hash()
    digest.update(_framed(node.shape.kind))
    digest.update(_framed(node.shape.content))
    return bytes(digest.digest())


def _joined(what: bytes, parts: Iterable[tuple[str, bytes]]) -> bytes:
    digest = _hash()
    digest.update(what)
    for name, part in sorted(parts):
        digest.update(_framed(name))
        digest.update(part)
    return bytes(digest.digest())


def _digest_all(root: _Node) -> None:
    """Tarjan's algorithm, without recursion: a component is digested when all that it leads to is."""
    low: dict[int, int] = {}
    open_: list[_Node] = []
    is_open: set[int] = set()
    counter = 0
    todo: list[tuple[_Node, int]] = [(root, 0)] if not root.digest else []
    while todo:
        node, place = todo.pop()
        if place == 0:
            node.number = low[id(node)] = counter
            counter += 1
            open_.append(node)
            is_open.add(id(node))
        for next_place in range(place, len(node.parts)):
            part = node.parts[next_place][1]
            if part.digest:
                continue
            if id(part) not in low:
                todo += [(node, next_place + 1), (part, 0)]
                break
            if id(part) in is_open:
                low[id(node)] = min(low[id(node)], part.number)
        else:
            if low[id(node)] == node.number:
                component = []
                while True:
                    member = open_.pop()
                    is_open.discard(id(member))
                    component.append(member)
                    if member is node:
                        break
                _digest_component(component)
            if todo:
                above = todo[-1][0]
                low[id(above)] = min(low[id(above)], low[id(node)])


def _digest_component(component: list[_Node]) -> None:
    for node in component:
        node.what = _what(node)
    if len(component) == 1 and all(part is not component[0] for _, part in component[0].parts):
        node = component[0]
        node.digest = _joined(node.what, ((name, part.digest) for name, part in node.parts))
        return
    colours = {id(node): node.what for node in component}
    classes = 0
    while len(set(colours.values())) > classes:
        classes = len(set(colours.values()))
        colours = {
            id(node): _joined(
                colours[id(node)], ((name, colours.get(id(part), part.digest)) for name, part in node.parts)
            )
            for node in component
        }
    whole = _joined(b"component", (("", colour) for colour in set(colours.values())))
    for node in component:
        node.digest = _joined(whole, [("", colours[id(node)])])


# --- what is told ---


def _told(root: _Node) -> dict[str, Any]:
    told: dict[str, Any] = {}
    seen: set[int] = set()
    left = _MOST
    todo: list[tuple[_Node, dict[str, Any], int]] = [(root, told, 0)]
    for node, into, depth in todo:  # level by level
        into["digest"] = node.digest.hex()
        if node.shape.either:
            into["either"] = True
        if node.shape.shows:
            into["value"] = node.shape.value
        if node.shape.code:
            into["code"] = True
        named = node.shape.ordered and len(node.parts) <= 2 * _SHOWN
        if not node.parts or id(node) in seen or depth >= _DEEPEST or not named or len(node.parts) > left:
            if node.parts and not node.shape.code and _has_code(node):
                into["code"] = True
            continue
        seen.add(id(node))
        left -= len(node.parts)
        into["what"] = node.what.hex()[:8]
        into["parts"] = {}
        for name, part in node.parts:
            into["parts"][name] = {}
            todo.append((part, into["parts"][name], depth + 1))
    return told


def _has_code(root: _Node) -> bool:
    seen = {id(root)}
    todo = [root]
    while todo:
        node = todo.pop()
        if node.shape.code:
            return True
        for _, part in node.parts:
            if id(part) not in seen:
                seen.add(id(part))
                todo.append(part)
    return False


def _find_unseen(root: _Node, path: str, found: dict[str, str], seen: set[int]) -> None:
    todo = [(root, path)]
    while todo:
        node, path = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.blocked:
            found[path] = node.shape.kind
            continue
        todo += [(part, f"{path}.{name}" if path else name) for name, part in node.parts]


_JOINTS = frozenset({"_transformers", "left", "right", "items", "transformer", "reranker", "state"})


def _is_the_work(path: str) -> bool:
    """Whether what lies there is a transformer, a function or a model itself, and not something that one holds."""
    steps = path.split(".") if path else []
    return all(step in _THE_WORK_ITSELF or step in _JOINTS or step.isdigit() for step in steps)
