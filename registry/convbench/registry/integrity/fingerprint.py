"""What functions, classes and constants are made of: finds out later which of them were changed, and undoes it.

The identity of a function is not enough: its code, its defaults and what its closure holds can be replaced, too.

This module uses nothing but Python's built-ins: `private_copy` makes one that no plugin can reach by name.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import module_from_spec
from operator import attrgetter, is_
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    ModuleType,
)
from typing import Any, NamedTuple

Owner = ModuleType | type
_IMMUTABLE = (int, float, complex, str, bytes, type(None), type, ModuleType, BuiltinFunctionType)
_MAPPINGS = (dict, MappingProxyType)
_COLLECTIONS = (list, tuple, set, frozenset)
_OF_A_FUNCTION = ("__code__", "__defaults__", "__kwdefaults__")
# what Python itself sets on a class or a module when it is first asked for
_PYTHONS_OWN = (
    "__annotations__",
    "__doc__",
    "__abstractmethods__",
    "__dict__",
    "__weakref__",
    "__builtins__",
)
# of `sys` and `threading`: debuggers and test runners set them, and nothing that is measured goes through them
_OF_OTHERS = (
    "excepthook",
    "unraisablehook",
    "displayhook",
    "breakpointhook",
    "last_exc",
    "last_type",
    "last_value",
    "last_traceback",
)
_NOTHING = object()
_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType)


class Change(NamedTuple):
    """Something that was changed: in words, and how to undo it."""

    text: str
    undo: Callable[[], object]


class Fingerprint:
    """Modules and classes with everything in them, as they are when this is made.

    Args:
        owners: the modules and classes; a class comes with those that it inherits from.
        constants: names of modules whose constants and tables count as well, with what they hold.
        wrappers: beginnings of paths; functions from there may wrap others, as those of torch's compiler do.
    """

    def __init__(
        self,
        owners: Iterable[Owner],
        constants: Iterable[str] = (),
        wrappers: tuple[str, ...] = (),
    ) -> None:
        self._wrappers = wrappers
        self._constants = frozenset(constants)
        self._seen: set[int] = set()
        self._members: list[tuple[Owner, dict[str, Any], frozenset[str], tuple[Any, ...]]] = []
        self._functions: list[tuple[Owner, str, FunctionType]] = []
        self._parts: dict[str, list[Any]] = {part: [] for part in _OF_A_FUNCTION}  # of each function
        self._cells: list[tuple[Owner, str, CellType, Any]] = []
        self._tables: list[tuple[str, Any, Any]] = []
        self._modules = dict(sys.modules)
        for owner in owners:
            for each in owner.__mro__ if isinstance(owner, type) else (owner,):
                if each is not object and self._is_new(each):
                    self._add(each)

    def changes(self) -> list[Change]:
        """What was changed since."""
        return [
            *self._changed_modules(),
            *(change for each in self._members for change in self._changed_members(*each)),
            *self._changed_functions(),
            *(change for each in self._tables for change in self._changed_tables(*each)),
        ]

    def _add(self, owner: Owner) -> None:
        module = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
        whole = module in self._constants
        members = {
            name: member
            for name, member in vars(owner).items()
            if (_counts(member) or (whole and _is_constant(member))) and not _is_compilers(name)
        }
        for name in (*_PYTHONS_OWN, *_OF_OTHERS):
            members.pop(name, None)
        self._members.append((owner, members, frozenset(vars(owner)), _kind(owner)))
        for name, member in members.items():
            self._look_into(owner, name, member, whole)

    def _look_into(self, owner: Owner, name: str, member: Any, whole: bool) -> None:
        """Note what a member is made of, and what that is made of."""
        kind = type(member)
        if kind in (staticmethod, classmethod):
            self._look_into(owner, name, member.__func__, whole)
        elif kind is property:
            for function in (member.fget, member.fset):
                self._look_into(owner, name, function, whole)
        elif kind is FunctionType:
            if self._is_new(member):
                self._functions.append((owner, name, member))
                for part, values in self._parts.items():
                    values.append(getattr(member, part))
                held = [(cell, _content(cell)) for cell in member.__closure__ or ()]
                self._cells += [(owner, name, cell, content) for cell, content in held if callable(content)]
                if member.__kwdefaults__:
                    text = f"{_possessive(owner, name)} __kwdefaults__"
                    self._tables.append((text, member.__kwdefaults__, dict(member.__kwdefaults__)))
                for each in (*(content for _, content in held), getattr(member, "__wrapped__", None)):
                    if callable(each):  # what else a closure holds may change
                        self._look_into(owner, name, each, whole)
        elif isinstance(member, _IMMUTABLE):
            return
        elif hasattr(member, "__wrapped__"):  # functools.cache
            self._look_into(owner, name, member.__wrapped__, whole)
        elif whole and self._is_new(member):
            self._look_into_a_constant(owner, name, member)

    def _look_into_a_constant(self, owner: Owner, name: str, member: Any) -> None:
        if not _is_constant(member):
            return
        if isinstance(member, _MAPPINGS):
            held = dict(member)
        elif isinstance(member, _COLLECTIONS):
            held = dict(enumerate(member))
        else:
            held = {field: getattr(member, field) for field in type(member).__dataclass_fields__}
        if not isinstance(member, (tuple, frozenset)):
            self._tables.append((f"{label(owner)}.{name}", member, held))
        for each in held.values():
            self._look_into(owner, name, each, True)

    def _is_new(self, value: object) -> bool:
        new = id(value) not in self._seen
        self._seen.add(id(value))  # whatever was seen is kept alive by what is noted of it
        return new

    def _changed_members(
        self, owner: Owner, before: dict[str, Any], names: frozenset[str], kind: tuple[Any, ...]
    ) -> Iterator[Change]:
        now = vars(owner)
        if not all(map(is_, map(now.get, before), before.values())):
            for name, member in before.items():
                if now.get(name) is not member and not self._only_wraps(now.get(name), member):
                    text = f"{label(owner)}.{name} was replaced{_by(now.get(name))}"
                    yield Change(text, partial(setattr, owner, name, member))
        for name in now.keys() - names:
            if _may_hide(owner, name, now[name]) and not self._only_wraps(now[name], _inherited(owner, name)):
                how = "added" if _inherited(owner, name) is None else "replaced"
                yield Change(
                    f"{label(owner)}.{name} was {how}{_by(now[name])}", partial(delattr, owner, name)
                )
        if _kind(owner) != kind:
            yield Change(f"the class of {label(owner)} was changed", partial(_set_kind, owner, kind))

    def _only_wraps(self, value: Any, before: Any) -> bool:
        """Whether a wrapper of torch's own took the place of what it wraps."""
        bare = self._unwrapped(value)
        return bare is not value and (bare is None or bare is self._unwrapped(before))

    def _unwrapped(self, value: Any) -> Any:
        """What torch's own wrappers wrap; None for one that does not say."""
        while str(getattr(getattr(value, "__code__", None), "co_filename", "")).startswith(self._wrappers):
            value = getattr(value, "_torchdynamo_orig_callable", getattr(value, "__wrapped__", None))
        return value

    def _changed_modules(self) -> Iterator[Change]:
        """Other modules under the names of these: an import within a function would get them."""
        for owner, *_ in self._members:
            name = owner.__name__
            if isinstance(owner, ModuleType) and self._modules.get(name) is owner:
                now = sys.modules.get(name)
                if now is not owner:
                    text = f"the module {name} was {'replaced' if now else 'removed'}"
                    yield Change(text, partial(sys.modules.__setitem__, name, owner))

    def _changed_functions(self) -> Iterator[Change]:
        functions = [function for _, _, function in self._functions]
        for part, before in self._parts.items():
            if all(map(is_, map(attrgetter(part), functions), before)):
                continue
            for (owner, name, function), value in zip(self._functions, before, strict=True):
                if getattr(function, part) is not value:
                    text = f"{_possessive(owner, name)} {part} was replaced"
                    yield Change(text, partial(setattr, function, part, value))
        for owner, name, cell, content in self._cells:
            if _content(cell) is not content:
                undo = partial(setattr, cell, "cell_contents", content)
                yield Change(f"{_possessive(owner, name)} closure was changed", undo)

    def _changed_tables(self, name: str, table: Any, before: dict[Any, Any]) -> Iterator[Change]:
        if isinstance(table, _MAPPINGS):
            now = dict(table)
        elif isinstance(table, _COLLECTIONS):
            now = dict(enumerate(table))
        else:
            now = {field: getattr(table, field, _NOTHING) for field in before}
        if len(now) == len(before) and all(now.get(key, _NOTHING) is before[key] for key in before):
            return

        def undo() -> None:
            if isinstance(table, dict):
                table.clear()
                table.update(before)
            elif isinstance(table, list):
                table[:] = before.values()
            elif isinstance(table, set):
                table.clear()
                table.update(before.values())
            else:
                for field, value in before.items():
                    object.__setattr__(table, field, value)

        yield Change(f"{name} was changed", undo)


def private_copy(module: ModuleType) -> ModuleType:
    """A module once more, under no name and with built-ins of its own: nobody can replace what it calls."""
    spec = module.__spec__
    assert spec is not None
    assert spec.loader is not None
    copy = module_from_spec(spec)
    vars(copy)["__builtins__"] = dict(vars(builtins))
    spec.loader.exec_module(copy)
    return copy


def label(owner: Owner) -> str:
    """A module's or a class's name in messages."""
    return owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"


def classes_of(module: ModuleType) -> list[Owner]:
    """The classes that a module defines."""
    return [
        member
        for member in vars(module).values()
        if isinstance(member, type) and member.__module__ == module.__name__
    ]


def loaded(packages: Iterable[str]) -> list[ModuleType]:
    """Those of the packages and of the modules in them that are loaded, by name."""
    packages = tuple(packages)
    within = tuple(f"{package}." for package in packages)
    return [
        module
        for name, module in sorted(sys.modules.items())
        if isinstance(module, ModuleType) and (name in packages or name.startswith(within))
    ]


def _is_compilers(name: str) -> bool:
    """Whether it is a name such as `__compiled_fn_1`, which torch's compiler puts into modules and takes away."""
    return name.startswith("__") and not name.endswith("__")


def _counts(member: Any) -> bool:
    return callable(member) or isinstance(member, float) or hasattr(type(member), "__get__")


def _is_constant(member: Any) -> bool:
    """Whether it is a number, a text, a table or a frozen record; a lock, say, is none."""
    parameters = getattr(type(member), "__dataclass_params__", None)
    return isinstance(member, (*_IMMUTABLE, *_MAPPINGS, *_COLLECTIONS)) or getattr(
        parameters, "frozen", False
    )


def _kind(owner: Owner) -> tuple[Any, ...]:
    return (type(owner), *(owner.__mro__ if isinstance(owner, type) else ()))


def _may_hide(owner: Owner, name: str, member: Any) -> bool:
    """Whether a new name hides another, or answers for names that do not exist."""
    if isinstance(owner, type):
        return _counts(member) and name not in _PYTHONS_OWN and not isinstance(member, _DESCRIPTORS)
    return name == "__getattr__" or (name in vars(builtins) and not name.startswith("_") and callable(member))


def _inherited(owner: Owner, name: str) -> Any:
    """What a class inherits under a name; None where it inherits nothing."""
    parents = owner.__mro__[1:] if isinstance(owner, type) else ()
    return next((vars(each)[name] for each in parents if name in vars(each)), None)


def _set_kind(owner: Owner, kind: tuple[Any, ...]) -> None:
    if isinstance(owner, ModuleType):
        owner.__class__ = kind[0]
    else:
        owner.__bases__ = kind[2:3]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return _NOTHING


def _by(replacement: Any) -> str:
    if replacement is None:
        return " by nothing"
    name = getattr(replacement, "__qualname__", type(replacement).__qualname__)
    module = getattr(replacement, "__module__", None)
    return f" by {name}" + (f" of {module}" if module else "")


def _possessive(owner: Owner, name: str) -> str:
    return f"{label(owner)}.{name}'s"
