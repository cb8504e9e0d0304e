"""What vLLM itself makes of the media domains that we give it: which URLs it would fetch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from coe_server.engines.vllm.command import VllmLaunch, serve_command

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

URLS = (
    *("http://a.example/i.png", "https://A.EXAMPLE:8443/i.png", "http://user@a.example/i.png"),
    *("http://127.0.0.1/i.png", "http://[::1]/i.png", "http://169.254.169.254/i.png", "http://b.example/i.png"),
    *("http://no-domain/", "http://no-domain%2F/i.png", "http://a.example.b.example/i.png", "HTTP://no-domain//i.png"),
    *("http:///i.png", "http://a.example@b.example/i.png", "http://b.example\\@a.example/i.png", "file:///etc/passwd"),
    *("httpx://no-domain/i.png", "http:no-domain/", "data:image/png;base64,AAAA"),
)
FETCHES = """
import json, sys
from vllm.multimodal.media.connector import MediaConnector

class Fetched(Exception):
    pass

class Connection:
    def get_bytes(self, url, **options):
        raise Fetched

class Media:
    def get_max_bytes(self):
        return 1
    def load_base64(self, media_type, data):
        return "read"

def outcome(connector, url):
    try:
        return connector.load_from_url(url, Media())
    except Fetched:
        return "fetched"
    except Exception as refused:
        return "refused"

for domains in json.loads(sys.argv[1]):
    connector = MediaConnector(connection=Connection(), allowed_media_domains=domains)
    print(json.dumps({url: outcome(connector, url) for url in json.loads(sys.argv[2])}))
"""


def domains_given(*domains: str) -> list[str]:
    launch = VllmLaunch("a", "/model", 1 << 20, Path("logs"), "cpu", allowed_media_domains=domains)
    command = serve_command(launch, Path("/run/engine.sock"))
    rest = command[command.index("--allowed-media-domains") + 1 :]
    return rest[: next(place for place, word in enumerate(rest) if word.startswith("--"))]


@pytest.fixture(scope="module")
def outcomes(vllm_environment: Path) -> list[dict[str, str]]:
    """For no domain, for one, and for an empty list as vLLM takes it: what becomes of each URL."""
    asked = [domains_given(), domains_given("a.example"), []]
    command = [str(vllm_environment / "bin/python"), "-c", FETCHES, json.dumps(asked), json.dumps(URLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


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
