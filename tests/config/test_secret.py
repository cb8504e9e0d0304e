"""Secrets as environments hold them: blanks around them are left out, what no header can carry is refused unseen."""

from __future__ import annotations

import pytest

from coe_server.config.types import clean_secret
from coe_server.errors import ConfigError


@pytest.mark.parametrize("value", ["sk-abc", "sk-abc\n", " sk-abc", "\tsk-abc\r\n", "\n\nsk-abc \n", "sk-abc\u2028"])
def test_blanks_and_newlines_around_a_secret_are_left_out(value: str) -> None:
    assert clean_secret(value, "experts.a.api_key_env", "KEY") == "sk-abc"


def test_what_stands_inside_a_secret_stays() -> None:
    assert clean_secret("a b=\u00fc\n", "k", "KEY") == "a b=\u00fc"
    assert clean_secret('a"b"', "experts.a.api_key_env", "KEY") == 'a"b"'
    assert clean_secret("Bearers", "experts.a.api_key_env", "KEY") == "Bearers"


def test_a_header_of_ones_own_may_hold_its_scheme() -> None:
    assert clean_secret("Bearer sk-abc", "experts.a.headers.Authorization", "KEY") == "Bearer sk-abc"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "is not set"),
        ("", "is not set"),
        (" \n", "is blank"),
        ("sk-abc\nsk-def", "has a line break, which is invalid in an HTTP header"),
        ("sk-abc\rsk-def", "has a line break, which is invalid in an HTTP header"),
        ("sk-abc\tdef", "has a control character"),
        ("sk-abc\x7f", "has a control character"),
        ("sk-abc\x85def", "has a control character"),
        ("sk-abc\x00def", "has a control character"),
        ("sk-abc\u2019", "has a character outside Latin-1"),
        ("\ufeffsk-abc", "has a character outside Latin-1"),
        ("sk-abc\udcff", "has a character outside Latin-1"),
        ('"sk-abc"', "has quotation marks around it; set it to the key only"),
        ("'sk-abc'\n", "has quotation marks around it"),
        ("`sk-abc`", "has quotation marks around it"),
        ("Bearer sk-abc", "has the word 'Bearer' before the key; set it to the key only"),
        ("bearer  sk-abc", "has the word 'Bearer' before the key"),
    ],
)
def test_a_secret_that_no_header_can_carry_is_refused_and_not_shown(value: str | None, fault: str) -> None:
    with pytest.raises(ConfigError, match=r"^experts\.a\.api_key_env: the environment variable 'KEY' ") as refused:
        clean_secret(value, "experts.a.api_key_env", "KEY")
    assert fault in str(refused.value)
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["sk-proj-abc123", "gsk_a1B2c3", "abc/def", "AIzaSyX", "a1b2c3d4", "AKIAI44QH8DHBEXAMPLE", "x" * 32]
)
def test_a_secret_in_the_place_of_its_variables_name_is_not_shown(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        clean_secret(None, "experts.a.api_key_env", name)
    assert str(refused.value).startswith("experts.a.api_key_env: is no environment variable that is set; ")
    assert name not in str(refused.value)
    assert clean_secret("value", "experts.a.api_key_env", name) == "value"
