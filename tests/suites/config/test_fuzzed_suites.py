"""Suite files with arbitrary damage: read as they are written, or refused in a sentence."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from convbench.registry import UsageError
from convbench.suites.config.suite import KEYS, Suite, load_suite
from fuzzing import VALUES, edited_text, fuzzed

DEFINITIONS = Path(__file__).parents[3] / "suites" / "convbench" / "suites" / "definitions"
SUITES = [path.read_text() for path in sorted(DEFINITIONS.glob("*.toml"))]


def load(text: str) -> Suite | None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "suite.toml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            return load_suite(path)
        except UsageError as refusal:
            assert str(path) in str(refusal), "it does not say which file"  # noqa: PT017
            return None


@fuzzed(60, 1500, text=st.sampled_from(SUITES).flatmap(edited_text))
def test_a_damaged_suite_is_read_or_refused(text: str) -> None:
    suite = load(text)
    if suite is not None:
        assert suite.name == tomllib.loads(text.removeprefix("\ufeff"))["name"]


KEYS_OF_TABLES = [(table, key) for table, keys in KEYS.items() for key in keys]


@st.composite
def with_another_value(draw: DrawFn) -> str:
    """A suite file with one key that has any value."""
    table, key = draw(st.sampled_from(KEYS_OF_TABLES))
    value = draw(st.sampled_from([*VALUES, ["torch"], [1, 2], 3, 0.25]) | st.integers() | st.floats())
    written = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    for json_has, toml_has in (("NaN", "nan"), ("Infinity", "inf"), ("null", "[]")):
        written = written if isinstance(value, str) else written.replace(json_has, toml_has)
    name = 'name = "a"\n' if key != "name" else ""
    return f"{name}{f'[{table}]' if table else ''}\n{key} = {written}\n"


@fuzzed(80, 1500, text=with_another_value())
def test_a_value_is_taken_as_it_is_or_refused(text: str) -> None:
    """What was taken is written back, and read again as the same suite."""
    suite = load(text)
    if suite is not None:
        assert load(suite.to_toml()) == suite
