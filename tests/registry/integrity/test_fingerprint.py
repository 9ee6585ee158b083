"""A fingerprint shows whatever is replaced in functions, classes and constants, and undoes it."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from convbench.registry.integrity import fingerprint
from convbench.registry.integrity.fingerprint import Change, Fingerprint, private_copy

SOURCE = """
import functools
from dataclasses import dataclass

BOUND = 1e-6
TABLE = {"float32": 1e-5, "float16": {"relative": 1e-2}}
LIST = [1, 2]
_counted = 0

def plain(x, share=0.5, *, limit=3):
    return x * share + limit

def decorated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper

@decorated
def wrapped(x):
    return x

@functools.cache
def cached(x):
    return x

class Base:
    def inherited(self):
        return 1

class Other:
    def inherited(self):
        return 5

class Layer(Base):
    size = 3
    def forward(self):
        return 2
    @staticmethod
    def static():
        return 3
    @property
    def width(self):
        return 4

@dataclass(frozen=True)
class Record:
    tolerance: float
    call: object

RECORDS = {"conv2d": Record(1e-6, plain)}
"""


@pytest.fixture
def subject() -> Iterator[Any]:
    module = ModuleType("subject")
    sys.modules["subject"] = module
    exec(SOURCE, vars(module))
    yield module
    del sys.modules["subject"]


def other(*args: object, **kwargs: object) -> None:
    """Takes the place of anything."""


def put(name: str, value: Any) -> Callable[[Any], None]:
    """What sets an attribute, or one of an attribute's."""

    def change(subject: Any) -> None:
        *owners, last = name.split(".")
        setattr(functools.reduce(getattr, owners, subject), last, value)

    return change


CHANGES: dict[str, Callable[[Any], Any]] = {
    "subject.plain was replaced by other of ": put("plain", other),
    "subject.plain's __code__ was replaced": put("plain.__code__", other.__code__),
    "subject.plain's __defaults__ was replaced": put("plain.__defaults__", (2.0,)),
    "subject.plain's __kwdefaults__ was replaced": put("plain.__kwdefaults__", {"limit": 9}),
    "subject.plain's __kwdefaults__ was changed": lambda subject: subject.plain.__kwdefaults__.update(
        limit=9
    ),
    "subject.wrapped's closure was changed": lambda subject: setattr(
        subject.wrapped.__closure__[0], "cell_contents", other
    ),
    "subject.wrapped's __code__ was replaced": put("wrapped.__wrapped__.__code__", other.__code__),
    "subject.cached's __code__ was replaced": put("cached.__wrapped__.__code__", (lambda x: 0).__code__),
    "subject.cached was replaced by other of ": put("cached", other),
    "subject.BOUND was replaced by float": put("BOUND", 1.0),
    "subject.TABLE was changed": lambda subject: subject.TABLE.update(float32=1.0),
    "subject.TABLE was changed ": lambda subject: subject.TABLE["float16"].update(relative=1.0),
    "subject.LIST was changed": lambda subject: subject.LIST.append(3),
    "subject.RECORDS was changed": lambda subject: object.__setattr__(
        subject.RECORDS["conv2d"], "tolerance", 1.0
    ),
    "subject.__getattr__ was added": put("__getattr__", other),
    "subject.max was added": put("max", other),
    "subject.Layer.forward was replaced by other of ": put("Layer.forward", other),
    "subject.Layer.forward's __code__ was replaced": put("Layer.forward.__code__", other.__code__),
    "subject.Layer.static's __code__ was replaced": put("Layer.static.__code__", other.__code__),
    "subject.Layer.width's __code__ was replaced": lambda subject: setattr(
        subject.Layer.width.fget, "__code__", (lambda self: 0).__code__
    ),
    "subject.Layer.size was replaced by int": put("Layer.size", 4),
    "subject.Layer.inherited was replaced by other of ": put("Layer.inherited", other),
    "subject.Layer.__getattr__ was added": put("Layer.__getattr__", other),
    "the class of subject.Layer was changed": lambda subject: put("Layer.__bases__", (subject.Other,))(
        subject
    ),
}


def fingerprint_of(subject: Any) -> Fingerprint:
    return Fingerprint([subject, *fingerprint.classes_of(subject)], ["subject"])


@pytest.mark.parametrize("words", CHANGES)
def test_a_change_is_named_and_undone(subject: Any, words: str) -> None:
    before = fingerprint_of(subject)
    assert before.changes() == []
    CHANGES[words](subject)
    changes = before.changes()
    assert len(changes) == 1, changes
    assert words.strip() in changes[0].text
    changes[0].undo()
    assert before.changes() == []


def test_ordinary_use_changes_nothing(subject: Any) -> None:
    before = fingerprint_of(subject)
    subject.cached(3)
    assert subject.wrapped(subject.plain(1.0)) == 3.5
    layer = subject.Layer()
    assert layer.forward() + layer.width == 6
    subject.another = object()  # a submodule, say
    assert before.changes() == []


def test_a_private_copy_is_not_touched_by_what_replaces_its_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by its code nor by the built-ins that it calls."""
    copy = private_copy(fingerprint)
    assert copy is not sys.modules[copy.__name__]
    before = copy.Fingerprint([json])
    for function in (Fingerprint.changes, Fingerprint._changed_members):
        monkeypatch.setattr(function, "__code__", (lambda self, *args: []).__code__)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.vars", lambda *args: {})
        patch.setattr("builtins.all", lambda *args: True)
        patch.setattr(json, "dumps", other)
        changes: list[Change] = before.changes()
    assert [change.text for change in changes] == [f"json.dumps was replaced by other of {__name__}"]
