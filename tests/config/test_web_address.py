"""Addresses as people write them: those that work are taken as they are, the others are refused with what to write."""

from __future__ import annotations

import pytest

from coe_server.config.addresses import (
    ApiBase,
    is_loopback_address,
    is_loopback_host,
    parse_base_url,
    parse_web_address,
    shown_address,
)
from coe_server.http.apis import APIS, Api


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8000/v1",
        "http://127.0.0.1:8000/v1/",
        "HTTPS://API.EXAMPLE.COM/v1",
        "http://[::1]:8000/v1",
        "http://[2001:db8::1]/v1",
        "http://my_service:8000/v1",
        "http://localhost",
        "https://münchen.example/v1",
        "https://api.example.com./v1",
        "http://127.1:8000/v1",
        "http://[fe80::1%25eth0]:8000/v1",
        "https://api.example.com/m%C3%BC/v1;a=b,c/~x?api-version=1&k=a/b?c:@!$'()*+",
        "https://api.example.com/openai/deployments/d?api-version=2024-10-21",
        "https://api.example.com/models?api-version=2024-05-01",
        "https://api.example.com/openai/v1/?api-version=preview",
        "https://gateway.example/chat/v1",
    ],
)
def test_an_address_that_works_is_taken_as_it_is(address: str) -> None:
    assert parse_base_url(address) == address


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("", "'' is not an address (http://127.0.0.1:8000/v1, https://api.example.com/v1)"),
        ("api.example.com/v1", "is not an address (http://127.0.0.1"),
        ("localhost:8000/v1", "is not an address (http://127.0.0.1"),
        ("ftp://a/v1", "is not an address (http://127.0.0.1"),
        ("http:///v1", "is not an address (http://127.0.0.1"),
        ("http://:8000/v1", "is not an address (http://127.0.0.1"),
        ("http://a:b/v1", "its port is not one of 1 to 65535"),
        ("http://a:0/v1", "its port is not one of 1 to 65535"),
        ("http://a:99999/v1", "its port is not one of 1 to 65535"),
        ("http://a:-1/v1", "its port is not one of 1 to 65535"),
        ("http://::1:8000/v1", "an IPv6 host needs brackets: http://[::1]:8000/v1"),
        ("http://[::1/v1", "an IPv6 host is written http://[::1]:8000/v1"),
        ("http://[localhost]/v1", "an IPv6 host is written http://[::1]:8000/v1"),
        ("http://[::1]x:80/v1", "is between its host and its port"),
        ("http://a..b/v1", "'a..b' is not a host's name"),
        ("http://-a/v1", "'-a' is not a host's name"),
        ("http://a%41/v1", "'a%41' is not a host's name"),
        ("http://a\\b/v1", "'a\\b' is not a host's name"),
        (f"http://{'a' * 64}.example/v1", "is not a host's name"),
        (f"http://{'a.' * 127}example/v1", "is not a host's name"),
        ("http://1.2.3.256/v1", "is neither a name nor an IPv4 address"),
        (" http://a/v1", "has a blank or a control character"),
        ("http://a/v1\n", "has a blank or a control character"),
        ("http://a/v\t1", "has a blank or a control character"),
        ("http://a/v1\u00a0", "has a blank or a control character"),
        ("http://a/v\x071", "has a blank or a control character"),
        ("http://a/v1\u200b", "has a blank or a control character"),
        ("http://a\u200b/v1", "has a blank or a control character"),
        ("\ufeffhttp://a/v1", "has a blank or a control character"),
        ("http://a/v1/{model}", "has '{', which no address has; replace it, or write it as %7B"),
        ("http://a/v1?key={env.KEY}", "has '{', which no address has; replace it, or write it as %7B"),
        ("http://a/<deployment>", "has '<', which no address has; replace it, or write it as %3C"),
        ("http://a/v1\\x", "which no address has; replace it, or write it as %5C"),
        ("http://a/m\u00fc", "has '\u00fc', which no address has; replace it, or write it as %C3%BC"),
        ("http://a/%zz", "has '%', which no address has; replace it, or write it as %25"),
        ("http://a/v1#x", "has a fragment, which is never sent"),
        ("http://a/v1#", "has a fragment, which is never sent"),
        ("http://user:pw@a/v1", "has credentials in it; leave them out"),
        ("http://user@a/v1", "has credentials in it; leave them out"),
        ("http://:pw@a/v1", "has credentials in it; leave them out"),
        ("http://@a/v1", "has credentials in it; leave them out"),
    ],
)
def test_an_address_that_never_works_is_refused_with_the_reason(address: str, sentence: str) -> None:
    for parse in parse_web_address, parse_base_url:
        with pytest.raises(ValueError, match=r"^'") as refused:
            parse(address)
        assert sentence in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "instead"),
    [
        ("http://a/v1/chat/completions", "'/chat/completions': http://a/v1"),
        ("http://a/v1/chat/completions/", "'/chat/completions': http://a/v1"),
        ("http://a/chat/completions", "'/chat/completions': http://a"),
        ("http://a/v1/completions", "'/completions': http://a/v1"),
        ("http://a/v1/embeddings", "'/embeddings': http://a/v1"),
        ("http://a/v1/responses", "'/responses': http://a/v1"),
        ("http://a/v1/messages", "'/messages': http://a/v1"),
        ("http://a/v1/messages/count_tokens", "'/messages/count_tokens': http://a/v1"),
        ("http://a/v1/rerank", "'/rerank': http://a/v1"),
        ("http://a/v1/models", "'/models': http://a/v1"),
        ("http://a/V1/Chat/Completions", "'/Chat/Completions': http://a/V1"),
        ("http://a/d/chat/completions?api-version=1", "'/chat/completions': http://a/d?..."),
    ],
)
def test_a_whole_endpoint_is_no_base_and_the_base_is_named(address: str, instead: str) -> None:
    with pytest.raises(ValueError, match="is the address of one endpoint") as refused:
        parse_base_url(address)
    assert str(refused.value).endswith(f"write the part before {instead}")
    assert parse_web_address(address) == address, "where traces go is a whole endpoint"


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
def test_every_endpoint_that_is_served_here_is_known_as_one(api: Api) -> None:
    with pytest.raises(ValueError, match="is the address of one endpoint"):
        parse_base_url(f"http://a{api.path}")


@pytest.mark.parametrize(
    "address",
    [
        "http://user:s3cret@a/v1",
        "http://user:s3/cret@a/v1",
        "http://user:s3#cret@a:1/v1",
        "http://us:s3?cret@a:x/v1",
        "user:s3cret@a/v1",
        "http://a:99999/v1?key=s3cret",
        "http://a/v1/embeddings?key=s3cret",
        "http://a/v1?key=s3cret#x",
        "http://a b/v1?key=s3cret",
        "http://user:s3cret@[::1/v1",
    ],
)
def test_a_refusal_shows_no_secret(address: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as refused:
        parse_base_url(address)
    assert "cret" not in str(refused.value)


def test_a_query_of_the_base_stands_behind_every_path() -> None:
    base = ApiBase.of("https://a/openai/deployments/d/?api-version=1")
    assert base.root == "https://a/openai/deployments/d"
    assert base.url("/chat/completions") == "https://a/openai/deployments/d/chat/completions?api-version=1"
    assert base.with_query("/x?y=2") == "/x?y=2&api-version=1"
    assert ApiBase.of("https://a/v1//").url("/embeddings") == "https://a/v1/embeddings"
    assert ApiBase.of("https://a/v1?").url("/embeddings") == "https://a/v1/embeddings"


def test_what_is_shown_of_an_address_holds_neither_credentials_nor_a_querys_values() -> None:
    assert shown_address("http://a/v1?key=1") == "http://a/v1?..."
    assert shown_address("http://u:p@a/v1") == "http://...@a/v1"
    assert shown_address("http://a/v1") == "http://a/v1"


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.8.8.8", "::1")),
        *((host, True) for host in ("127.1", "::ffff:127.0.0.1")),
        *((host, False) for host in ("10.0.0.1", "localhost.example", "127.example", "::2", "a", "")),
        *((host, False) for host in ("127.evil.example", "127.0.0.1.evil.example", "127.0.0.1 evil.example", "127.")),
    ],
)
def test_a_loopback_host_is_known_in_every_spelling(host: str, is_ours: bool) -> None:
    assert is_loopback_host(host) == is_ours


@pytest.mark.parametrize("name", ["localhost", "a.localhost", "127.evil.example", "127.0.0.1.evil.example"])
def test_a_name_is_no_address_whatever_it_begins_with(name: str) -> None:
    assert not is_loopback_address(name)
