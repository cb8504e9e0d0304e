"""A configuration's text with one expert more or less: every other line stays, comments and blanks too."""

from contextlib import suppress

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from coe_server.config.edit import one_line, with_expert, without_expert
from coe_server.errors import ConfigError
from tests.examples import examples

PRETTY = """\
# My server
http: {port: 8080}   # local

experts:
  # the first one
  - name: a
    engine: simulated   # pretends
    start_seconds: 0.10
  # the second one,
  # which is small
  - {name: b, engine: simulated, weights_bytes: "1MiB"}  # beside

  # a remark at the end
aliases:
  gpt-4o: a   # a client
"""
ENTRY = {"name": "c", "engine": "vllm", "model": "org/model", "args": {"max_model_len": 8192}, "sleep": False}


def added(text, entry):
    return {**yaml.safe_load(text), "experts": [*yaml.safe_load(text)["experts"], entry]}


def test_a_new_expert_stands_after_the_last_one():
    assert with_expert(PRETTY, ENTRY) == PRETTY.replace(
        "# beside\n",
        "# beside\n  - name: c\n    engine: vllm\n    model: org/model\n    args: {max_model_len: 8192}\n"
        "    sleep: false\n",
    )


def test_a_removed_expert_goes_with_the_comment_lines_directly_above_it():
    assert without_expert(PRETTY, "b") == PRETTY.replace(
        '  # the second one,\n  # which is small\n  - {name: b, engine: simulated, weights_bytes: "1MiB"}  # beside\n',
        "",
    )
    first = "  # the first one\n  - name: a\n    engine: simulated   # pretends\n    start_seconds: 0.10\n"
    assert without_expert(PRETTY, "a") == PRETTY.replace(first, "")


@pytest.mark.parametrize(
    "text",
    [
        "experts:\n- name: a\n  engine: simulated\n",
        "experts:\n- name: a\n  engine: simulated",
        "experts:\n-   name: a\n    engine: simulated\nhttp: {}\n",
        "experts: [{name: a, engine: simulated}]   # all of them\nhttp: {}  # kept\n",
        "experts: []\n# kept\n",
        "experts:\n  - name: a\n    engine: command\n    command: |\n      run\n      # no comment\nlog: {}\n",
        "experts:\n  - &one {name: a, engine: simulated}\naliases: {}\n",
        "experts: [\n  {name: a, engine: simulated},  # one\n  {name: b, engine: simulated},\n]\n",
        "{experts: [{name: a}], http: {port: 1}}\n",
        "# windows\r\nexperts:\r\n  - name: a\r\n    engine: simulated\r\nhttp: {}\r\n",
        "---\nexperts:\n  - name: a\n...\n",
    ],
)
def test_any_style_takes_an_expert_and_lets_it_go(text):
    grown = with_expert(text, ENTRY)
    assert yaml.safe_load(grown) == added(text, ENTRY)
    assert [line for line in grown.splitlines() if "kept" in line] == [
        line for line in text.splitlines() if "kept" in line
    ]
    assert yaml.safe_load(without_expert(grown, "c")) == yaml.safe_load(text)


def test_the_last_expert_leaves_an_empty_list():
    assert yaml.safe_load(without_expert("experts:\n  - name: a\nhttp: {}\n", "a")) == {"experts": [], "http": {}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (PRETTY, r"experts\.b: is there already"),
        ("http: {}\n", "experts: is no list"),
        ("experts: x\n", "experts: is no list"),
        ("- a\n", "must be a mapping"),
        ("experts: [\n", "line 2: is not YAML"),
    ],
)
def test_what_cannot_take_it_is_told(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        with_expert(text, {**ENTRY, "name": "b"})


def test_lines_that_end_as_on_windows_stay_and_new_ones_end_so_too():
    text = PRETTY.replace("\n", "\r\n")
    grown = with_expert(text, ENTRY)
    assert grown == with_expert(PRETTY, ENTRY).replace("\n", "\r\n")
    assert without_expert(grown, "c") == text


def test_a_list_that_is_merged_in_is_refused_with_a_sentence_or_edited():
    text = "<<: {experts: [{name: a, engine: simulated}]}\nhttp: {port: 1}\n"
    with suppress(ConfigError):
        assert yaml.safe_load(with_expert(text, ENTRY)) == added(text, ENTRY)
    with suppress(ConfigError):
        assert yaml.safe_load(without_expert(text, "a"))["experts"] == []


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(ConfigError, match="there is no expert 'z' in the file; there are a, b"):
        without_expert(PRETTY, "z")


words = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=8)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(-1e6, 1e6), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=4,
)


@given(values)
@example(1e-7)
def test_a_value_on_one_line_is_read_back(value):
    line = one_line(value)
    assert "\n" not in line
    assert yaml.safe_load(line) == value


entries = st.dictionaries(st.sampled_from(["model", "pin", "args", "x"]), values, max_size=3)


@examples(30)
@given(st.lists(entries, min_size=1, max_size=4), values)
def test_what_was_added_to_a_list_of_any_entries_is_taken_out_again(others, value):
    experts = [{"name": f"e{number}", **one} for number, one in enumerate(others)]
    text = yaml.safe_dump({"experts": experts, "last": 1}, default_flow_style=None, allow_unicode=True)
    grown = with_expert(text, {"name": "new", "value": value})
    assert yaml.safe_load(grown) == {"experts": [*experts, {"name": "new", "value": value}], "last": 1}
    assert without_expert(grown, "new") == text


@examples(30)
@given(st.lists(entries, max_size=4), values)
def test_a_list_of_another_style_is_written_anew_rightly_or_not_at_all(others, value):
    experts = [{"name": f"e{number}", **one} for number, one in enumerate(others)]
    text = yaml.safe_dump({"experts": experts, "last": 1}, default_flow_style=True, allow_unicode=True)
    with suppress(ConfigError):
        grown = with_expert(text, {"name": "new", "value": value})
        assert yaml.safe_load(grown) == {"experts": [*experts, {"name": "new", "value": value}], "last": 1}
