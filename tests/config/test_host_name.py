"""Names of servers as they stand in `Host` headers and in `http.allowed_hosts`."""

from __future__ import annotations

import pytest

from coe_server.config.addresses import HostPort, parse_host_name


@pytest.mark.parametrize(
    ("text", "name", "port"),
    [
        ("localhost:8080", "localhost", 8080),
        ("LocalHost.", "localhost", None),
        ("10.1.2.3:80", "10.1.2.3", 80),
        ("[::1]:8080", "::1", 8080),
        ("[0:0::0:1]", "::1", None),
        ("a_b-c.example:", "a_b-c.example", None),
        ("127.evil.example", "127.evil.example", None),
    ],
)
def test_a_host_has_one_spelling_and_perhaps_a_port(text: str, name: str, port: int | None) -> None:
    assert HostPort.of(text) == HostPort(name, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "::1",
        "[::1",
        "a b",
        "a@b",
        "user:pw@localhost",
        "localhost/x",
        "localhost#",
        "a:b",
        "a:80:80",
        "[localhost]",
    ],
)
def test_what_names_no_host_is_none(text: str) -> None:
    assert HostPort.of(text) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("AI.example.com", "ai.example.com"),
        ("coe", "coe"),
        ("my_service", "my_service"),
        ("10.1.2.3", "10.1.2.3"),
        ("[::1]", "::1"),
        ("FE80::1", "fe80::1"),
        ("FE80::1%enP2p1s0", "fe80::1%enP2p1s0"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_a_setting_names_a_host_in_any_spelling(text: str, name: str) -> None:
    assert parse_host_name(text) == name


@pytest.mark.parametrize(
    "text", ["", "*", "*.example.com", "coe:8080", "http://coe", "coe/v1", "a b", "-a", "[::1]:80"]
)
def test_what_is_no_hosts_name_is_refused_with_the_value(text: str) -> None:
    with pytest.raises(ValueError, match="is not a host name or address") as refused:
        parse_host_name(text)
    assert repr(text) in str(refused.value)
