"""Suite files: what is refused, in which words, and that a suite survives being written down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from convbench.registry import UsageError
from convbench.suites.config.suite import (
    DOTTED_KEYS,
    KEYS,
    Suite,
    load_suite,
)
from full_suite import FULL, OTHER


def read(tmp_path: Path, text: str) -> Suite:
    path = tmp_path / "some.toml"
    path.write_text(text, encoding="utf-8")
    return load_suite(path)


def value(suite: Suite, dotted: str) -> object:
    table, _, name = dotted.rpartition(".")
    return getattr(getattr(suite, table) if table else suite, name)


@pytest.mark.parametrize("suite", [FULL, Suite(name="bare")], ids=["every key", "only a name"])
def test_written_and_read_back_it_is_the_same(tmp_path: Path, suite: Suite) -> None:
    assert read(tmp_path, suite.to_toml()) == suite


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xef\xbb\xbf" + FULL.to_toml().encode(), None),
        (FULL.to_toml().replace("\n", "\r\n").encode("utf-8-sig"), None),
        (FULL.to_toml().encode("utf-16"), "is UTF-16 text: save it in UTF-8"),
        ('name = "größe"'.encode("latin-1"), "line 1: byte 0xf6 is not UTF-8 text"),
        (b'name = "a"\ndescription = "x\0"\n', "is not text"),
        (b'name = "a"\nseeds = ' + b"[" * 10_000, "not a TOML file: its brackets are nested too deeply"),
        (b'name = "a"\nseeds = [' + b"9" * 5000 + b"]\n", "not a TOML file: Exceeds the limit"),
        (b'name = "a"\nseeds = [' + b"9" * 400 + b"]\n", r"line 2: seeds is 9{200}\.\.\. \(400 characters\)"),
        (b'name = "a"\n[budget]\nmemory_mb = ' + b"9" * 30, "line 3: .* it must be at most"),
        (b'name = "a"\n[recipe]\nlr = 1e400\n', "line 3: recipe.lr is inf; it must be finite"),
        (b"", "the key 'name' is missing"),
    ],
    ids=range(11),
)
def test_a_file_that_others_saved_is_read_or_refused_in_a_sentence(
    tmp_path: Path, content: bytes, sentence: str | None
) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(content)
    if sentence is None:
        assert load_suite(path) == FULL
        return
    with pytest.raises(UsageError, match=sentence) as caught:
        load_suite(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


NUMBERS = {
    key: each
    for key in DOTTED_KEYS
    if (each := KEYS[key.rpartition(".")[0]][key.rpartition(".")[2]]).kind in (int, float)
}


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize(
    "number", [10**400, -(10**400), 10**5000, float("inf"), float("nan"), 2**63], ids=range(6)
)
def test_no_number_is_too_large_to_be_refused(key: str, number: float) -> None:
    given = [number] * (NUMBERS[key].length or 1) if NUMBERS[key].many else number
    if number == 2**63 and NUMBERS[key].kind is float and NUMBERS[key].below is None:
        assert value(FULL.override({key: number}), key) == number
        return
    with pytest.raises(UsageError, match=f"^{key} is ") as caught:
        FULL.override({key: given})
    assert len(str(caught.value)) < 400


def test_every_key_is_in_the_file() -> None:
    written = FULL.to_toml()
    for table, keys in KEYS.items():
        assert not table or f"[{table}]" in written
        for key in keys:
            assert f"\n{key} = " in f"\n{written}", key


@pytest.mark.parametrize("key", DOTTED_KEYS)
def test_every_key_can_be_overridden(key: str) -> None:
    changed = FULL.override({key: OTHER[key]})

    assert value(changed, key) == OTHER[key] != value(FULL, key)
    assert value(changed.override({key: value(FULL, key)}), key) == value(FULL, key)


def test_a_number_without_a_ceiling_is_exact() -> None:
    timing = FULL.override({"timing.rounds": 3, "timing.steps": 9}).timing
    assert (timing.rounds, timing.max_rounds, timing.steps, timing.max_steps) == (3, None, 9, None)
    timing = FULL.override({"timing.rounds": 3, "timing.max_rounds": 8, "timing.steps": None}).timing
    assert (timing.rounds, timing.max_rounds, timing.steps, timing.max_steps) == (3, 8, 7, 70)


def test_what_is_different_for_a_backend() -> None:
    suite = FULL.override({"per_backend.t*.batch_sizes": [7], "per_backend.torch.modes": ["graph"]})
    assert (suite.of_backend("torch").batch_sizes, suite.of_backend("torch").modes) == ((7,), ("graph",))
    assert suite.of_backend("im2col") == suite
    assert suite.of_backend("acme:fft").batch_sizes == (1, 2)
    assert suite.of_backend("acme:fft").modes == FULL.modes
    assert FULL.override({"per_backend.fft.batch_sizes": [9]}).of_backend("acme:fft").batch_sizes == (9,)
    for typo, meant in (
        ("per_backend.torch.mode", "per_backend.torch.modes"),
        ("per_backnd.torch.modes", "per_backend.GLOB.modes"),
        ("batch_size", "batch_sizes"),
    ):
        with pytest.raises(UsageError, match=re.escape(f"unknown key {typo!r}; did you mean {meant!r}?")):
            FULL.override({typo: ["eager"]})


def test_none_overrides_nothing() -> None:
    assert FULL.override(dict.fromkeys(DOTTED_KEYS)) == FULL


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("epochs = 3", ("unknown key 'epochs'", "available:")),
        ("fuse = 1", ("fuse is 1; it must be true or false",)),
        ("test_translation_px = true", ("test_translation_px is True; it must be a whole number",)),
        ("backend = ['torch']", ("unknown key 'backend'", "did you mean 'backends'?", "devices")),
        ("[bugdet]", ("unknown key 'bugdet'", "did you mean 'budget'?")),
        (
            "[timing]\nroundz = 3",
            ("line 4", "unknown key 'timing.roundz'", "did you mean 'rounds'?", "steps"),
        ),
        ("[timing]\nrounds = 0", ("line 4", "timing.rounds is 0", "at least 1")),
        ("[timing]\nrounds = '3'", ("line 4", "timing.rounds is '3'", "whole number")),
        ("[timing]\nrounds = 1.5", ("timing.rounds is 1.5", "whole number")),
        ("[timing]\nrounds = true", ("timing.rounds is True", "whole number")),
        ("[timing]\n  'steps'  = -1", ("line 4", "timing.steps is -1", "at least 1")),
        ("[timing.deeper]\nsteps = 1", ("unknown key 'timing.deeper'",)),
        ("[timing]\nprecision = 0", ("line 4", "timing.precision is 0", "more than 0")),
        ("timing.steps = 0", ("timing.steps is 0",)),
        ("timing = {rounds = 1, steps = 0}", ("timing.steps is 0",)),
        ("timing = 3", ("timing must be a table, [timing]",)),
        ("[[timing]]\nrounds = 1", ("timing must be a table",)),
        ("[recipe]\nlr = nan", ("recipe.lr is nan", "finite")),
        ("[recipe]\nlr = inf", ("recipe.lr is inf", "finite")),
        ("[recipe]\nlr = 0.0", ("recipe.lr is 0.0", "more than 0")),
        ("[recipe]\nepochs = 0", ("line 4", "recipe.epochs is 0", "at least 1")),
        ("[recipe]\nresize = [56]", ("recipe.resize is [56]", "2 items")),
        (
            "[recipe]\ninit = 'xavier'",
            ("recipe.init is 'xavier'", "did you mean 'xavier_uniform'?", "default"),
        ),
        ("[budget]\ntrain_seconds = 0", ("budget.train_seconds is 0", "more than 0")),
        ("dtypes = ['float23']", ("'float23'", "did you mean 'float32'?", "bfloat16")),
        ("dtypes = 'float32'", ("dtypes is 'float32'", "list of texts")),
        ("dtypes = []", ("dtypes is []", "at least one")),
        ("dtypes = ['float32', 'float32']", ("every item must be different",)),
        ("batch_sizes = [0]", ("batch_sizes is 0", "at least 1")),
        ("batch_sizes = [128, 'x']", ("batch_sizes is 'x'", "whole number")),
        ("modes = ['jit']", ("modes is 'jit'", "available: compile, eager, graph")),
        ("seeds = [-1]", ("seeds is -1", "at least 0")),
        ("dataset = 1979-05-27", ("dataset is", "text")),
        ("per_backend = 3", ("line 3", "must be tables, [per_backend.GLOB] each")),
        ("[per_backend]\nscalar = 3", ("line 3", "must be tables, [per_backend.GLOB] each")),
        ("[per_backnd.scalar]\nseeds = [1]", ("line 3", "'per_backnd'; did you mean 'per_backend'?")),
        ("[per_backend.scalar]\nseeds = [1]", ("line 4", "unknown key 'per_backend.scalar.seeds'", "modes")),
        ("[per_backend.'s*']\nbatch_sizes = 1", ("line 4", "per_backend.s*.batch_sizes is 1", "list of")),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, line: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as refusal:
        read(tmp_path, f"# a comment\nname = 'some'\n{line}\n")
    message = str(refusal.value)

    assert message.startswith(f"{tmp_path / 'some.toml'}, line ")
    assert "line 1:" not in message
    for word in words:
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("rounds = 4\nmax_rounds = 3", "timing.max_rounds is 3; it must be at least timing.rounds, 4"),
        ("max_steps = 7", "timing.max_steps is 7; it must be at least timing.steps, 30"),
    ],
)
def test_a_ceiling_below_its_floor_is_refused(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(tmp_path, f"name = 'some'\n[timing]\n{lines}\n")


def test_the_line_is_that_of_the_key_in_its_own_table(tmp_path: Path) -> None:
    text = "name = 'some'\n[budget]\n# steps = 1\ntrain_seconds = 1\n[timing]\nsteps = 1\nrounds = 0\n"
    with pytest.raises(UsageError, match=r"line 7: timing\.rounds"):
        read(tmp_path, text)


@pytest.mark.parametrize("name", ["", "../elsewhere", "a b", "-x"])
def test_a_name_that_is_no_part_of_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name is"):
        read(tmp_path, f"name = {name!r}\n")


def test_a_file_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'name' is missing"):
        read(tmp_path, "dataset = 'fashion-mnist'\n")


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not a TOML file: .*line 2"):
        read(tmp_path, "name = 'some'\nseeds = [0}\n")


def test_a_missing_file_and_one_of_bytes_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\x80")
    with pytest.raises(UsageError, match="No such file"):
        load_suite(tmp_path / "none.toml")
    with pytest.raises(UsageError, match=r"cannot read suite .*none\.toml"):
        load_suite(str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match="not UTF-8"):
        load_suite(tmp_path / "bytes.toml")


def test_overriding_checks_as_a_file_does() -> None:
    with pytest.raises(UsageError, match=r"recipe.epochs is 0; it must be at least 1"):
        FULL.override({"recipe.epochs": 0})
    with pytest.raises(UsageError, match=r"unknown key 'recipe.epoch'; did you mean 'recipe.epochs'"):
        FULL.override({"recipe.epoch": 1})
    with pytest.raises(UsageError, match=r"unknown key 'recipes\.epochs'"):
        FULL.override({"recipes.epochs": 1})
