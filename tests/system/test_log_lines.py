"""A line of the log is one line, and nothing in it is obeyed by a terminal, whatever was quoted in it."""

import json
import logging
import sys
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.system.process import JsonLines, TextLines
from coe_server.system.visible import NEEDED, OBEYED

FORGED = "2026-01-01 00:00:00,000 WARNING coe: forged"
EVIL = f"answered \x1b]0;PWNED\x07 \x9b31m \x7f \u202e \u2028 \r\n{FORGED}"


def record(message, fields=None, error=None):
    made = logging.LogRecord("coe.requests", logging.WARNING, "a.py", 1, "decision x: %s", (message,), error)
    if fields is not None:
        made.fields = fields
    return made


def is_tame(line):
    return not any(category(one) in OBEYED and one not in NEEDED for one in line)


def test_what_a_server_said_stays_on_its_line_as_text():
    line = TextLines().format(record(EVIL))
    assert is_tame(line)
    assert line.endswith(rf"decision x: answered \x1b]0;PWNED\x07 \x9b31m \x7f \u202e \u2028 \r\n{FORGED}")


@pytest.mark.parametrize("form", [TextLines, JsonLines])
@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_any_message_and_field_is_one_tame_line(form, message, value):
    line = form().format(record(message, {"prompt": value}))
    assert is_tame(line)
    line.encode("ascii" if form is JsonLines else "utf-8")
    if form is JsonLines:
        read = json.loads(line)
        assert (read["message"], read["prompt"]) == (f"decision x: {message}", value)


def test_a_traceback_is_indented_below_its_line():
    try:
        raise ValueError(EVIL)
    except ValueError:
        text = TextLines().format(record("failed", error=sys.exc_info()))
    first, *rest = text.split("\n")
    assert first.endswith("decision x: failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(is_tame(line) and line.startswith("    ") for line in rest)
    assert f"    {FORGED}" in rest
