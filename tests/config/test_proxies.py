"""Proxies as the environment names them."""

from __future__ import annotations

import pytest

from coe_server.config.proxies import Proxies, Proxy
from coe_server.errors import ConfigError

SECURE, PLAIN = "https://api.example.com/v1", "http://api.example.com/v1"


def proxy(address: str, **environment: str) -> str | None:
    found = Proxies.of(environment).for_address(address)
    return None if found is None else found.url


@pytest.mark.parametrize(
    ("address", "environment", "expected"),
    [
        (SECURE, {}, None),
        (SECURE, {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        (SECURE, {"https_proxy": "http://p:1"}, "http://p:1"),
        (SECURE, {"https_proxy": "http://low:1", "HTTPS_PROXY": "http://up:1"}, "http://low:1"),
        (SECURE, {"https_proxy": "", "HTTPS_PROXY": "http://up:1"}, None),
        (SECURE, {"HTTP_PROXY": "http://p:1"}, None),
        (PLAIN, {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        (PLAIN, {"http_proxy": "p:1"}, "http://p:1"),
        (PLAIN, {"HTTPS_PROXY": "http://p:1"}, None),
        (PLAIN, {"ALL_PROXY": "http://p:1"}, "http://p:1"),
        (SECURE, {"all_proxy": "http://p:1/"}, "http://p:1"),
        (SECURE, {"HTTPS_PROXY": "https://p:1", "ALL_PROXY": "http://q:1"}, "https://p:1"),
        (SECURE, {"HTTPS_PROXY": "http://p:1\n"}, "http://p:1"),
        ("http://[2001:db8::1]:8000/v1", {"HTTP_PROXY": "http://[2001:db8::2]:3128"}, "http://[2001:db8::2]:3128"),
    ],
)
def test_the_proxy_is_the_one_for_the_addresses_scheme(
    address: str, environment: dict[str, str], expected: str | None
) -> None:
    assert proxy(address, **environment) == expected


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]:1/v1", "http://a.localhost/v1"]
)
def test_this_machine_is_never_reached_through_a_proxy(address: str) -> None:
    assert proxy(address, ALL_PROXY="http://p:1") is None


@pytest.mark.parametrize(
    ("exceptions", "address", "is_direct"),
    [
        ("*", SECURE, True),
        ("example.com", SECURE, True),
        (".example.com", SECURE, True),
        ("*.example.com", SECURE, True),
        ("API.EXAMPLE.COM", SECURE, True),
        ("api.example.com:443", SECURE, True),
        ("api.example.com:8443", SECURE, False),
        ("ample.com", SECURE, False),
        ("other.com, api.example.com", SECURE, True),
        ("other.com api.example.com", SECURE, True),
        ("", SECURE, False),
        (",", SECURE, False),
        ("10.0.0.0/8", "http://10.1.2.3:8000/v1", True),
        ("10.0.0.0/8", "http://11.1.2.3:8000/v1", False),
        ("10.1.2.3", "http://10.1.2.3:8000/v1", True),
        ("10.1.2.3:8000", "http://10.1.2.3:8000/v1", True),
        ("10.1.2.3:8001", "http://10.1.2.3:8000/v1", False),
        ("2001:db8::1", "http://[2001:db8::1]:8000/v1", True),
        ("[2001:db8::1]:8000", "http://[2001:db8::1]:8000/v1", True),
        ("[2001:db8::1]:8001", "http://[2001:db8::1]:8000/v1", False),
        ("2001:db8::/32", "http://[2001:db8::1]:8000/v1", True),
        ("api.example.com", "https://api.example.com./v1", True),
        ("2.3", "http://10.1.2.3:8000/v1", False),
        ("[2001:DB8:0::1]:8000", "http://[2001:db8::1]:8000/v1", True),
        ("fe80::1", "http://[fe80::1%25eth0]:8000/v1", True),
        ("10.0.0.1", "http://10.1:8000/v1", True),
        ("10.0.0.0/8", "http://10.1:8000/v1", True),
        ("10.1", "http://10.0.0.1:8000/v1", True),
        ("m\u00fcnchen.example", "https://xn--mnchen-3ya.example/v1", True),
        ("XN--MNCHEN-3YA.example", "https://m\u00fcnchen.example/v1", True),
        (".m\u00fcnchen.example", "https://api.m\u00fcnchen.example/v1", True),
    ],
)
def test_no_proxy_names_the_hosts_reached_without_a_proxy(exceptions: str, address: str, is_direct: bool) -> None:
    for spelling in "NO_PROXY", "no_proxy":
        assert (proxy(address, ALL_PROXY="http://p:1", **{spelling: exceptions}) is None) == is_direct


def test_a_proxys_credentials_are_apart_from_its_address_and_never_shown() -> None:
    proxies = Proxies.of({"HTTPS_PROXY": "http://user:s3%2Fcret@p:1"})
    found = proxies.for_address(SECURE)
    assert found == Proxy("http://p:1", "user", "s3/cret")
    assert "cret" not in f"{found!r} {proxies!r}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("socks5://user:s3cret@p:1", "HTTPS_PROXY: 'socks5://...@p:1' is not an HTTP proxy, and no other kind"),
        ("http://user:s3cret@p:x", "HTTPS_PROXY: 'http://...@p:x' is not a proxy's address"),
        ("http://user:s3cret@", "HTTPS_PROXY: 'http://...@' is not a proxy's address"),
        ("http://user%0A:s3cret@p:1", "HTTPS_PROXY: the proxy's user name or password has characters that are invalid"),
        ("http://[::1:1", "HTTPS_PROXY: 'http://[::1:1' is not a proxy's address"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_where_it_would_be_used(text: str, sentence: str) -> None:
    proxies = Proxies.of({"HTTPS_PROXY": text})
    assert proxies.for_address(PLAIN) is None
    assert proxies.for_address("https://127.0.0.1/v1") is None
    with pytest.raises(ConfigError) as refused:
        proxies.for_address(SECURE)
    assert str(refused.value).startswith(sentence)
    assert "cret" not in str(refused.value)
