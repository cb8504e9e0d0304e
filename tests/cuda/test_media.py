"""What vLLM itself makes of the media domains that we give it: which URLs it would fetch."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe_server.engines.vllm.command import VllmLaunch, serve_command
from tests.cuda import rules

pytestmark = pytest.mark.vllm

URLS = (
    *("http://a.example/i.png", "https://A.EXAMPLE:8443/i.png", "http://user@a.example/i.png"),
    *("http://127.0.0.1/i.png", "http://[::1]/i.png", "http://169.254.169.254/i.png", "http://b.example/i.png"),
    *("http://no-domain/", "http://no-domain%2F/i.png", "http://a.example.b.example/i.png", "HTTP://no-domain//i.png"),
    *("http:///i.png", "http://a.example@b.example/i.png", "http://b.example\\@a.example/i.png", "file:///etc/passwd"),
    *("httpx://no-domain/i.png", "http:no-domain/", "data:image/png;base64,AAAA"),
)


def domains_given(*domains: str) -> list[str]:
    launch = VllmLaunch("a", "/model", 1 << 20, Path("logs"), "cpu", allowed_media_domains=domains)
    command = serve_command(launch, Path("/run/engine.sock"))
    rest = command[command.index("--allowed-media-domains") + 1 :]
    return rest[: next(place for place, word in enumerate(rest) if word.startswith("--"))]


@pytest.fixture
def outcomes(
    vllm_environment: Path, vllm_rules: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, str]]:
    """For no domain, for one, and for an empty list as vLLM takes it: what becomes of each URL."""
    for name, value in vllm_rules.items():
        monkeypatch.setenv(name, value)
    return [rules.fetched(domains, URLS) for domains in (domains_given(), domains_given("a.example"), [])]


def test_without_a_domain_nothing_is_fetched_and_what_the_request_holds_is_read(outcomes: list[dict[str, str]]) -> None:
    none, _, _ = outcomes
    assert {url for url, outcome in none.items() if outcome != "refused"} == {"data:image/png;base64,AAAA"}
    assert none["data:image/png;base64,AAAA"] == "read"


def test_with_one_domain_that_one_is_fetched_from(outcomes: list[dict[str, str]]) -> None:
    _, one, _ = outcomes
    assert {url for url, outcome in one.items() if outcome == "fetched"} == {*URLS[:3]}


def test_an_empty_list_would_allow_every_domain(outcomes: list[dict[str, str]]) -> None:
    """Why we never give one."""
    _, _, empty = outcomes
    assert empty["http://169.254.169.254/i.png"] == "fetched"
