"""Settings of any kind of badness end in one sentence, and none in gigabytes."""

import tracemalloc
from fnmatch import fnmatch
from pathlib import Path

import pytest

from coe_server.config.file import LONGEST_FILE_BYTES, UnusableYaml, parse_yaml, read_settings_file
from coe_server.config.mistakes import plainly
from coe_server.config.schema import load_config
from coe_server.errors import ConfigError

GOOD = "experts:\n- {name: a, engine: simulated}\n"
LEVELS = "".join(f"- &n{level} [{', '.join([f'*n{level - 1}'] * 10)}]\n" for level in range(1, 9))
BOMB = f"- &n0 [{', '.join(['x'] * 10)}]\n{LEVELS}"


def refusal(path):
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    told = str(caught.value)
    assert told.isprintable()
    assert len(told) < 1_000 + len(str(path))
    return told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("experts:\n  - name: x\n   engine: y\n", "line 3: is not YAML: expected <block end>, * as its neighbours are"),
        (
            "experts:\n  - name: x\n     engine: y\n",
            "line 3: is not YAML: mapping values * quote a value that*",
        ),
        ("experts:\n  - name: x\n\tengine: y\n", "line 3: is not YAML: found character '\\t' *; indent with spaces"),
        ("a: 1\nexperts:\n- {name: x\n- {name: y}\n", "line 4: *; close the bracket that line 3 opens"),
        ("a: 'x\nb: 1\n", "line 3: *; close the quote that line 1 opens"),
        ("a: @x\n", "line 1: *; put the value in quotes"),
        ("a: {{x}}\n", "line 1: *; put a text with braces or brackets in quotes"),
    ],
)
def test_a_mistake_in_yaml_says_what_to_do(tmp_path, text, told):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    assert fnmatch(refusal(path), f"{path}, {told}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD + "state_directory:\n" + BOMB, "is longer than 1,048,576 characters after expansion of its aliases"),
        (GOOD + "aliases:\n" + BOMB, "after expansion of its aliases"),
        (GOOD + "http: &a\n  host: *a\n", "after expansion of its aliases"),
        (GOOD + "http: &a {<<: [*a, *a]}\n", "after expansion of its aliases"),
        (GOOD + "x: &a " + "y" * 100_000 + "\nz: [" + "*a, " * 20 + "]\n", "after expansion of its aliases"),
        (GOOD + "http: {port: " + "9" * 5000 + "}\n", "a value is invalid"),
        (GOOD + "http: {port: " + "9" * 4000 + "}\n", "http.port: "),
        (GOOD + "http: {host: 2026-13-45}\n", "a value is invalid"),
        (GOOD + "http: {port: !!int x}\n", "a value is invalid"),
        (GOOD + "http: {port: !!bool x}\n", "a value is invalid"),
        (GOOD + "http: {port: !!timestamp x}\n", "a value is invalid"),
        (GOOD + "? [a, [b]]\n: 1\n", "line 3: is not YAML: found unhashable key"),
        (GOOD + "http: " + "[" * 50_000, "is nested deeper than 64 levels"),
        (GOOD + "http: {host: [" + "x, " * 10_000 + "]}\n", "http.host: must be a string"),
        (GOOD + '"\\e]0;mine\\a": 1\n', r"\x1b]0;mine\x07: there is no such key"),
        (GOOD + "? " + "x" * 10_000 + "\n: 1\n", "xxx…"),
        ('experts:\n- {name: "\\e[31m", engine: simulated}\n', "is not a name"),
        (GOOD + "# " + "x" * LONGEST_FILE_BYTES, "is longer than 1,048,576 characters"),
    ],
)
def test_what_is_wrong_is_told_in_one_short_sentence(tmp_path, text, told):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    tracemalloc.start()
    try:
        assert told in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("Value error, 'x' has a control character", "'x' has a control character"),
        ("Input should be less than or equal to 100000", "must be at most 100000"),
        ("Input should be greater than or equal to 2", "must be at least 2"),
        ("Input should be a valid integer, got a number with a fractional part", "must be a whole number"),
        ("Input should be a valid number, unable to parse string as a number", "must be a number"),
        ("Field required", "field required"),
    ],
)
def test_what_pydantic_says_is_told_as_a_predicate(message, plain):
    assert plainly(message) == plain


def test_a_file_in_another_encoding_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "serve.yaml").write_bytes(GOOD.encode() + "# Köln\n".encode("latin-1"))
    assert refusal(tmp_path / "serve.yaml").endswith(f"is not UTF-8 text (byte {len(GOOD) + 4}); save it as UTF-8")


def test_a_key_that_occurs_twice_is_told_with_the_line_of_the_second(tmp_path):
    (tmp_path / "serve.yaml").write_text("http: {port: 1}\n" + GOOD + "http: {port: 2}\n")
    assert refusal(tmp_path / "serve.yaml").endswith("serve.yaml, line 4: is not YAML: the key 'http' occurs twice")


def test_a_file_without_an_end_is_read_no_further_than_a_file_may_be_long():
    with pytest.raises(ConfigError, match=r"/dev/zero: is longer than 1,048,576 characters"):
        read_settings_file(Path("/dev/zero"), "configs/serve.yaml")


def test_aliases_within_bounds_stand_for_what_they_name():
    text = "a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n"
    assert parse_yaml(text, 100) == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}], "c": {"x": 1, "y": 2}}
    assert parse_yaml("", 10) is None


def test_any_yaml_without_aliases_that_is_short_enough_is_read():
    text = "[" + "," * 40 + "]"  # empty entries are no YAML, but nothing is longer
    with pytest.raises(UnusableYaml, match="is not YAML"):
        parse_yaml(text, len(text))
    assert parse_yaml("[a,b,c]", 7) == ["a", "b", "c"]
    with pytest.raises(UnusableYaml, match="is longer than 6 characters"):
        parse_yaml("[a,b,c]", 6)
