"""Headers of a configuration: what can be sent is taken, the rest is refused by name and never by value."""

from __future__ import annotations

import pytest

from coe_server.config.types import filled_in, parse_request_headers


def test_a_variable_in_a_value_is_replaced_wherever_it_stands() -> None:
    headers = {"Authorization": "Token {env.A}", "X-Both": " {env.A}:{env.B_2} ", "X-Plain": "{a} $B ${C} {env}"}
    assert parse_request_headers(headers) == headers
    told: list[tuple[str, str]] = []

    def secret(header: str, variable: str) -> str:
        told.append((header, variable))
        return variable.lower()

    assert filled_in(headers, secret) == {
        "Authorization": "Token a",
        "X-Both": "a:b_2",
        "X-Plain": "{a} $B ${C} {env}",
    }
    assert told == [("Authorization", "A"), ("X-Both", "A"), ("X-Both", "B_2")]


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "content-length", "Transfer-Encoding", "CONNECTION", "Keep-Alive", "TE", "Trailer", "Upgrade"),
        *("Proxy-Authorization", "Proxy-Connection", "Proxy-Authenticate", "Expect", "HTTP2-Settings"),
        *("Accept-Encoding", "Content-Encoding"),
    ],
)
def test_what_the_connection_or_the_body_decides_cannot_be_set(name: str) -> None:
    with pytest.raises(ValueError, match=f"^'{name}' cannot be set: "):
        parse_request_headers({name: "s3cret"})


@pytest.mark.parametrize("name", ["", "X A", "X:A", "X\n", "Ä", "a/b", 7, None])
def test_what_is_no_headers_name_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="is not a header name"):
        parse_request_headers({name: "s3cret"})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("s3cret\nX: 1", "has a line break"),
        ("s3cret\x00", "has a control character"),
        ("s3cret\u2019", "has a character outside Latin-1"),
        (" ", "is empty"),
        ("", "is empty"),
        (7, "must have a text as its value; put the value in quotes"),
        (None, "must have a text as its value"),
        (["s3cret"], "must have a text as its value"),
        ("{env.}", "without a variable name"),
        ("{env.A B}", "without a variable name"),
        ("s3cret {env.A", "without a variable name"),
    ],
)
def test_a_value_that_cannot_be_sent_is_refused_and_not_shown(content: object, fault: str) -> None:
    with pytest.raises(ValueError, match=r"^'X-A' ") as refused:
        parse_request_headers({"X-A": content})
    assert fault in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_one_header_in_two_spellings_is_refused() -> None:
    with pytest.raises(ValueError, match="'x-a' occurs twice; header names ignore case"):
        parse_request_headers({"X-A": "1", "x-a": "2"})
