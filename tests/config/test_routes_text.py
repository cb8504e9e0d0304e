"""An example is added to the text of a routes file, and nothing else of the text changes."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coe_server.config.routes_text import with_example
from coe_server.errors import ConfigError

BLOCK = """# mine
routes:
  code:   # programs
    expert: coder
    examples:
      - "Sort a list"   # the first
      # a remark
      - Join tables  # the last

    otherwise: generalist
  law: {expert: legal, examples: ["A will?", 'My rent']}  # short
  sums: {expert: maths, description: sums}
  text:
    expert: writer  # no examples yet
    description: |
      long
      texts
default:
  expert: generalist
  examples:
  - Tell me a joke
"""
FORMS = ["code", "law", "sums", "text", "default"]


def target(text: str, route: str) -> dict[str, list[str]]:
    read = yaml.safe_load(text)
    found: dict[str, list[str]] = read["default"] if route == "default" else read["routes"][route]
    return found


@pytest.mark.parametrize("route", FORMS)
def test_an_example_is_the_last_one_and_every_comment_stays(route: str) -> None:
    changed = with_example(BLOCK, route, "Is this: new? # yes")
    assert target(changed, route)["examples"] == [*target(BLOCK, route).get("examples", []), "Is this: new? # yes"]
    for comment in ("# mine", "# programs", "# the first", "# a remark", "# the last", "# short", "# no examples yet"):
        assert comment in changed


@given(st.sampled_from(FORMS), st.text(min_size=1, max_size=60).filter(lambda text: "\x00" not in text))
def test_any_text_is_read_back_as_it_is_or_refused(route: str, example: str) -> None:
    try:
        changed = with_example(BLOCK, route, example)
    except ConfigError:
        return
    before, after = yaml.safe_load(BLOCK), yaml.safe_load(changed)
    assert target(changed, route)["examples"][-1] == example
    (after["default"] if route == "default" else after["routes"][route]).pop("examples")
    (before["default"] if route == "default" else before["routes"][route]).pop("examples", None)
    assert before == after


def test_a_plain_text_is_never_refused() -> None:
    for example in ("a", "what is 'this'?", 'say "hi"', "zwei\nZeilen", "\U0001f600 emoji", "- dash", "{x: 1}"):
        assert target(with_example(BLOCK, "law", example), "law")["examples"][-1] == example


@pytest.mark.parametrize(
    ("text", "route", "said"),
    [
        (BLOCK, "nosuch", "no mapping for route 'nosuch'"),
        (BLOCK, "law", "has this example already"),
        ("routes: {a: {expert: x}}\ndefault: generalist\n", "default", "no mapping for route 'default'"),
        ("routes: {a: {expert: x, examples: []}}\ndefault: g\n", "a", "not a list with entries"),
        ("routes: [", "a", "not YAML"),
    ],
)
def test_what_cannot_be_changed_safely_is_refused(text: str, route: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        with_example(text, route, "A will?")
