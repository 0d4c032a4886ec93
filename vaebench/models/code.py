"""What a model's own code reads and does beside its module: globals, closures, classes; prints.

A list of operators, a graph or a kernel that was made of a model holds the values that its code
read, and does nothing but compute. So what else the code reads is found, to be compared later, and
what else it does, to be left to the code itself.
"""

import contextlib
import dis
import functools
import inspect
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CellType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vaebench.system.garbage import no_collection

_TORCH = str(Path(torch.__file__).parent) + os.sep
_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_PYTHON = str(Path(os.__file__).parent) + os.sep
_INSTALLED = f"{os.sep}site-packages{os.sep}"  # which lies in Python's own folder
_STORES = ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR")
_COLLECTS = ("append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop")
_HANDS_OUT = ("tolist", "numpy")
_TELLING = {
    Tensor.__array__.__code__: "a tensor's values are handed to numpy",
    Tensor.register_hook.__code__: "a tensor's gradient is hooked",
}
_GLOBALS, _CELLS = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_DEREF", "LOAD_CLASSDEREF")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
_MISSING = object()


def is_models(file: str) -> bool:
    """Whether code of this file is a model's: not torch's, ours or Python's."""
    if file.startswith((_TORCH, _PACKAGE, "<frozen")):
        return False
    return not file.startswith(_PYTHON) or _INSTALLED in file


def _package(file: str) -> str:
    """The installed package that a file belongs to; "" if none."""
    _, installed, rest = file.partition(_INSTALLED)
    return rest.partition(os.sep)[0] if installed else ""


class Deeds(NamedTuple):
    """What a model's code does beside computing, in words.

    ``told``: it prints, logs, writes, looks at the values in a tensor or hooks its gradient.
    ``stored``: it may put something elsewhere. Whatever is stored in a function that is called
    counts, in a branch not taken too, and so does a list that is the function's own.
    """

    told: set[str]
    stored: set[str]


@contextlib.contextmanager
def deeds() -> Iterator[Deeds]:
    """Collect what a model's own code does beside computing, while this lasts."""
    found, looks = Deeds(set(), set()), _Looks()

    def see(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename == logging.__file__:
            if frame.f_back and is_models(frame.f_back.f_code.co_filename):
                found.told.add(f"{frame.f_back.f_code.co_name} logs")
        elif event == "call" and code in _TELLING:
            found.told.add(_TELLING[code])
        elif event == "call" and is_models(code.co_filename):
            found.stored.update(_stores(code))
        elif event == "c_call" and is_models(code.co_filename):
            looks.within = frame, arg.__name__
            owner, name = getattr(arg, "__self__", None), arg.__name__
            if (
                arg is print
                or name == "write"
                or (isinstance(owner, Tensor) and name in _HANDS_OUT)
            ):
                found.told.add(f"{code.co_name} calls {name}")
            elif isinstance(owner, list | dict | set | deque) and name in _COLLECTS:
                found.stored.add(f"{code.co_name} calls {name}")
        elif event in ("c_return", "c_exception") and looks.within and looks.within[0] is frame:
            looks.within = None

    before: Any = sys.getprofile()
    if before is not None and not callable(before):  # cProfile's, which could not be put back
        found.told.add("a profiler watches it")
        yield found
        return
    sys.setprofile(see)
    try:
        with no_collection(), looks:
            yield found
    finally:
        sys.setprofile(before)
        looks.within = None  # a frame keeps alive what it holds
        found.told.update(looks.told)


class _Looks(TorchDispatchMode):
    """Sees a model's code turn a tensor into a number: ``if``, ``float``, ``item``.

    What one of torch's functions looks at, to check it, is no deed of the model's.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.told: set[str] = set()
        self.within: tuple[FrameType, str] | None = None  # who has called which builtin function

    def call(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator; its caller's frame is the next one."""
        if torch.Tag.data_dependent_output in func.tags:
            frame: FrameType | None = sys._getframe(1)
            while frame and frame.f_code.co_name == "__torch_function__":  # of another mode
                frame = frame.f_back
            torchs = self.within and self.within[0] is frame and self.within[1] != "item"
            if frame and is_models(frame.f_code.co_filename) and not torchs:
                self.told.add(f"{frame.f_code.co_name} looks at values")
        return func(*args, **(kwargs or {}))


# Not in the class's body: what stands there is wrapped, and the wrapper loads the compiler.
_Looks.__torch_dispatch__ = _Looks.call  # type: ignore[assignment]


@cache
def _stores(code: CodeType) -> frozenset[str]:
    """Where a function puts anything but into a variable of its own, or into a new object."""
    new = ("STORE_ATTR",) if code.co_name == "__init__" else ()
    return frozenset(
        f"{code.co_name} stores {each.argval or 'an item'}"
        for each in dis.get_instructions(code)
        if (each.opname in _STORES and each.opname not in new)
        or (each.opname == "STORE_DEREF" and each.argval in code.co_freevars)
    )


class Outside(NamedTuple):
    """What a model's code reads and writes that is no attribute of one of its modules.

    ``values``: by what the code calls them: attributes of classes, globals, variables of enclosing
    functions, defaults, and the functions among them. ``globals`` (a module's, and the name) and
    ``cells`` are those that it writes.
    """

    values: dict[str, Any]
    globals: list[tuple[dict[str, Any], str]]
    cells: list[CellType]

    def remember(self) -> Callable[[], None]:
        """Give what puts back what is written, as it is now; not what is in it."""
        variables = [(space, name, space.get(name, _MISSING)) for space, name in self.globals]
        enclosed = [(cell, _content(cell)) for cell in self.cells]

        def put_back() -> None:
            for space, name, value in variables:
                if value is not _MISSING:
                    space[name] = value
            for cell, value in enclosed:
                if value is not _MISSING:
                    cell.cell_contents = value

        return put_back


def outside(model: nn.Module, sources: Iterable[Callable[..., Any]] = ()) -> Outside:
    """Find what a model's code reads and writes outside its modules.

    Args:
        model: its modules' ``forward``, ``encode`` and ``decode``, the functions that they hold,
            and all that these call, are looked through; but not other packages that they use, which
            may fill caches of their own.
        sources: what else is called to encode and decode.
    """
    reader = _Reader(model)
    for source in sources:
        reader.take(getattr(source, "__qualname__", "source"), source)
    for module in model.modules():
        for name in ("forward", "encode", "decode"):
            if hasattr(type(module), name):
                reader.take(f"{type(module).__qualname__}.{name}", getattr(type(module), name))
        for name, value in vars(module).items():
            held = value if isinstance(value, list | tuple) else [value]
            for i, each in enumerate(value.values() if isinstance(value, dict) else held):
                if callable(each) and not isinstance(each, nn.Module) and not name.startswith("_"):
                    reader.take(f"{name}[{i}]", each)
    reader.go_through()
    return reader.found


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty one
        return _MISSING


class _Reader:
    """Goes through functions, from each to those that it reads."""

    def __init__(self, model: nn.Module) -> None:
        self.found = Outside({}, [], [])
        self.seen: set[int] = set()
        self.pending: list[tuple[str, FunctionType]] = []
        self.asked: dict[str, None] = {}  # names of attributes, of objects that nobody knows
        self.classes: dict[type, None] = {}  # that these may be of
        files = (_file_of(base) for m in model.modules() for base in type(m).__mro__)
        self.packages = {_package(file) for file in files} | {""}
        for module in model.modules():
            self._meet(type(module))

    def _meet(self, cls: type) -> None:
        """Look up what was asked for in a class and its bases."""
        for base in cls.__mro__:
            if self._is_own(base) and base not in self.classes:
                self.classes[base] = None
                for name in tuple(self.asked):
                    self._attribute(base, name)

    def _ask(self, name: str) -> None:
        if name not in self.asked:
            self.asked[name] = None
            for base in tuple(self.classes):
                self._attribute(base, name)

    def _attribute(self, base: type, name: str) -> None:
        if name in vars(base):
            self.take(f"{base.__qualname__}.{name}", vars(base)[name])

    def take(self, name: str, value: Any) -> None:
        """Note a value under a name, to go through it if it is code."""
        if isinstance(value, MethodType):
            value = value.__func__
        elif isinstance(value, functools.partial):
            for i, each in enumerate((*value.args, *value.keywords.values())):
                self.take(f"{name}({i})", each)
            value = value.func
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, staticmethod | classmethod):
            value = value.__func__
        elif self._is_own(type(value)) and not isinstance(value, nn.Module) and callable(value):
            self.take(f"{name}()", inspect.getattr_static(type(value), "__call__", None))
        self.found.values[name] = value
        new = isinstance(value, FunctionType) and id(value) not in self.seen
        if new and self._is_mine(value.__code__.co_filename):
            self.seen.add(id(value))
            self.pending.append((name, value))

    def go_through(self) -> None:
        """Look through what was noted, and what that reads, to the end."""
        while self.pending:
            self._through(*self.pending.pop())

    def _is_mine(self, file: str) -> bool:
        return is_models(file) and _package(file) in self.packages

    def _is_own(self, cls: type) -> bool:
        """Whether a class is the model's, as its functions are."""
        return cls.__module__ != "builtins" and self._is_mine(_file_of(cls))

    def _through(self, name: str, function: FunctionType) -> None:
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        for i, default in enumerate(defaults):
            self.take(f"{name}'s default {i}", default)
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        for kind, variable in _writes(function.__code__):
            if kind == "STORE_GLOBAL":
                self.found.globals.append((function.__globals__, variable))
            elif variable in cells:
                self.found.cells.append(cells[variable])
        for path in _paths(function.__code__):
            first, *rest = path
            if first in cells:
                if (content := _content(cells[first])) is not _MISSING:
                    self._along(f"{name}'s ", path, content)
            elif first in function.__globals__:
                self._along("", path, function.__globals__[first])
            for each in rest:
                self._ask(each)

    def _along(self, where: str, path: tuple[str, ...], value: Any) -> None:
        """Note what lies at the end of a path, or as far along it as can be seen."""
        name = where + path[0]
        for step in path[1:]:
            inner = self._looked_up(value, step)
            if inner is _MISSING:
                break
            if isinstance(inner, FunctionType) and not isinstance(value, ModuleType | type):
                self.take(name, value)  # a method reads its object
                self._meet(type(value))
            name, value = f"{name}.{step}", inner
        if not (isinstance(value, type) and not self._is_own(value)):
            self.take(name, value)

    def _looked_up(self, value: Any, name: str) -> Any:
        """An attribute, without any code of its owner's being run."""
        if isinstance(value, ModuleType):
            return vars(value).get(name, _MISSING)
        if isinstance(value, nn.Module | Tensor):
            return _MISSING
        held = getattr(value, "__dict__", {})
        if name in held or self._is_own(value if isinstance(value, type) else type(value)):
            return inspect.getattr_static(value, name, _MISSING)
        return _MISSING


def _file_of(cls: type) -> str:
    """The file that a class is defined in; "" where there is none, as in a notebook."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or ""


@cache
def _paths(code: CodeType) -> tuple[tuple[str, ...], ...]:
    """What a function's code reads: a first name and the attributes asked of it, one after another.

    Attributes of what is no name, such as a call's result, are paths whose first name is empty.
    """
    found: list[list[str]] = []
    open_path: list[str] | None = None
    for each in dis.get_instructions(code):
        if each.opname in _GLOBALS + _CELLS:
            open_path = [str(each.argval)]
            found.append(open_path)
        elif each.opname in _ATTRIBUTES:
            if open_path is None:
                open_path = [""]
                found.append(open_path)
            open_path.append(str(each.argval))
        else:
            open_path = None
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return (*(tuple(path) for path in found), *(path for c in inner for path in _paths(c)))


@cache
def _writes(code: CodeType) -> tuple[tuple[str, str], ...]:
    """The globals and enclosed variables that a function's code stores, and by which operation."""
    return tuple(
        (each.opname, str(each.argval))
        for each in dis.get_instructions(code)
        if each.opname in ("STORE_GLOBAL", "STORE_DEREF")
    )
