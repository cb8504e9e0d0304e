"""Forms with files as clients send them, and as an engine's own server receives them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coe_server.engines.remote import RemoteEngine
from coe_server.http.bodies.uploads import UploadLimits, Uploads
from tests.http.server import Running, running_server
from tests.http.test_api import simulated
from tests.patience import PATIENCE_SECONDS, until

BOUNDARY = b"a-boundary"
PATH = "/v1/audio/transcriptions"
AUDIO = bytes(range(256)) * 4096  # 1 MiB
TYPE = {"content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


def field_of(name: str, value: str) -> bytes:
    return b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (
        BOUNDARY,
        name.encode(),
        value.encode(),
    )


def file_of(content: bytes) -> bytes:
    head = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav'
    return b"--%b\r\n%b\r\n\r\n%b\r\n" % (BOUNDARY, head, content)


END = b"--%b--\r\n" % BOUNDARY
MODEL_FIRST = field_of("model", "%s") + field_of("language", "de") + file_of(AUDIO) + END
FILE_FIRST = file_of(AUDIO) + field_of("model", "%s") + END


@dataclass
class Whisper:
    """A server of transcriptions: what it received, and how it answers."""

    status: int = 200
    content_type: str = "application/json"
    answer: bytes = b'{"text": "hello"}'
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Whisper:
        whisper = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:  # the other end left
                    self.close_connection = True
                    return
                whisper.seen.append((self.headers["content-type"], body))
                self.send_response(whisper.status)
                self.send_header("content-type", whisper.content_type)
                self.send_header("content-length", str(len(whisper.answer)))
                self.end_headers()
                self.wfile.write(whisper.answer)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def whisper() -> Iterator[Whisper]:
    with Whisper() as one:
        yield one


@pytest.fixture
def forms(tmp_path: Path) -> Uploads:
    (tmp_path / "spool").mkdir()
    return Uploads(tmp_path / "spool")


def serving(whisper: Whisper, host: str = "127.0.0.1", **more: object):  # type: ignore[no-untyped-def]
    engine = RemoteEngine("ears", f"http://{host}:{whisper.port}/v1", None)
    return running_server({"ears": engine, "other": simulated("other")}, remote=("ears",), **more)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])  # both HTTP clients
@pytest.mark.parametrize("form", [MODEL_FIRST, FILE_FIRST])
def test_a_form_reaches_the_engine_with_the_engines_name_of_the_model(whisper: Whisper, host: str, form: bytes) -> None:
    with serving(whisper, host) as server:
        status, headers, raw = server.ask("POST", PATH, form.replace(b"%s", b"ears"), TYPE)
    assert (status, json.loads(raw)) == (200, {"text": "hello"})
    assert headers["x-coe-expert"] == "ears"
    assert whisper.seen == [(TYPE["content-type"], form.replace(b"%s", b"ears"))]


def test_only_the_value_of_model_changes_and_the_length_is_that_of_the_changed_form(whisper: Whisper) -> None:
    with serving(whisper, aliases={"whisper-1": "ears"}) as server:
        for form in (MODEL_FIRST, FILE_FIRST):
            assert server.ask("POST", PATH, form.replace(b"%s", b"whisper-1"), TYPE)[0] == 200
    assert [body for _, body in whisper.seen] == [form.replace(b"%s", b"ears") for form in (MODEL_FIRST, FILE_FIRST)]


def test_a_form_without_a_length_waits_on_disk(whisper: Whisper) -> None:
    form = MODEL_FIRST.replace(b"%s", b"ears")
    pieces = (form[at : at + 100_000] for at in range(0, len(form), 100_000))
    with serving(whisper) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
        connection.request("POST", PATH, pieces, TYPE, encode_chunked=True)
        assert connection.getresponse().status == 200
        connection.close()
    assert [body for _, body in whisper.seen] == [form]


def test_a_form_on_disk_goes_to_the_next_expert_and_leaves_nothing(
    whisper: Whisper, forms: Uploads, tmp_path: Path
) -> None:
    whisper.status, whisper.answer = 503, b'{"error": {"message": "overloaded"}}'
    with serving(whisper, router=_by_path(tmp_path, ["ears", "other"]), forms=forms) as server:
        status, headers, raw = server.ask("POST", PATH, file_of(AUDIO) + END, TYPE)
        assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "other", "fallback")
        assert "received a form of" in json.loads(raw)["text"]
        assert forms.on_disk.held_bytes == 0
    assert list((tmp_path / "spool").iterdir()) == []
    assert len(whisper.seen) == 1


def _by_path(folder: Path, experts: list[str]):  # type: ignore[no-untyped-def]
    """A router with one route for transcriptions."""
    from coe_server.build.drafts import drafted  # noqa: PLC0415  only here
    from coe_server.routing.router import Router  # noqa: PLC0415  only here

    routes = folder / "routes.yaml"
    routes.write_text(
        f"routes:\n  audio: {{experts: {json.dumps(experts)}, match: {{path: {PATH}}}, examples: [one, two]}}\n"
        "default: other\n"
    )
    return Router(drafted(routes, ["ears", "other"], None, None))


def test_audio_is_routed_by_a_rule_alone(whisper: Whisper, tmp_path: Path) -> None:
    with serving(whisper, router=_by_path(tmp_path, ["ears"])) as server:
        status, headers, _ = server.ask("POST", PATH, file_of(AUDIO) + END, TYPE)
        assert (status, headers["x-coe-expert"], headers["x-coe-reason"]) == (200, "ears", "route")
        status, _, raw = server.ask("POST", "/v1/audio/translations", file_of(AUDIO) + END, TYPE)
        assert status == 400
        assert "is routed only by a route with this path in match.path" in json.loads(raw)["error"]["message"]
    assert b'name="model"\r\n\r\nears\r\n' in whisper.seen[0][1]


@pytest.mark.parametrize("answer", [(b"1\n00:00 --> 00:01\nhello\n", "text/plain"), (b"\x00RIFF", "audio/wav")])
def test_an_answer_of_any_type_passes_byte_for_byte(whisper: Whisper, answer: tuple[bytes, str]) -> None:
    whisper.answer, whisper.content_type = answer
    with serving(whisper) as server:
        status, headers, raw = server.ask("POST", PATH, MODEL_FIRST.replace(b"%s", b"ears"), TYPE)
    assert (status, headers["content-type"], raw) == (200, answer[1], answer[0])


def test_an_empty_answer_is_a_failure(whisper: Whisper) -> None:
    whisper.answer, whisper.content_type = b"", "text/plain"
    with serving(whisper) as server:
        assert server.ask("POST", PATH, MODEL_FIRST.replace(b"%s", b"ears"), TYPE)[0] == 502


def test_speech_and_images_are_served_by_name() -> None:
    with running_server({"other": simulated("other")}) as server:
        status, headers, raw = server.ask("POST", "/v1/audio/speech", json.dumps({"model": "other", "input": "hi"}))
        assert (status, headers["content-type"], raw[:4]) == (200, "audio/wav", b"RIFF")
        body = json.dumps({"model": "other", "prompt": "a cat"})
        status, _, raw = server.ask("POST", "/v1/images/generations", body)
        assert status == 200
        assert json.loads(raw)["data"][0]["b64_json"].startswith("iVBORw0KGgo")


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (field_of("model", "ears") + field_of("coe", "{}") + file_of(b"a") + END, "a form has no options"),
        (field_of("model", "unknown-one") + file_of(b"a") + END, "unknown model 'unknown-one'"),
        (field_of("model", "ears") + file_of(AUDIO) + field_of("model", "other") + END, "more than one field `model`"),
        (field_of("model", "ears"), "no end"),
    ],
)
def test_a_form_that_cannot_be_served_is_refused_with_the_reason(whisper: Whisper, form: bytes, told: str) -> None:
    with serving(whisper) as server:
        status, _, raw = server.ask("POST", PATH, form, TYPE)
        assert 400 <= status < 500
        assert told in json.loads(raw)["error"]["message"]
        _, _, metrics = server.ask("GET", "/metrics")
    assert b'coe_errors_total{code="engine_died"}' not in metrics  # the caller's fault, not the engine's


@pytest.mark.parametrize(("coding", "expected"), [("", 200), ("identity", 200), ("identity, ", 200), ("gzip", 415)])
def test_a_form_may_say_that_it_is_in_no_coding(whisper: Whisper, coding: str, expected: int) -> None:
    with serving(whisper) as server:
        form = MODEL_FIRST.replace(b"%s", b"ears")
        assert server.ask("POST", PATH, form, {**TYPE, "content-encoding": coding})[0] == expected


def test_json_where_a_form_is_due_is_refused(whisper: Whisper) -> None:
    with serving(whisper) as server:
        status, _, raw = server.ask("POST", PATH, b"{}", {"content-type": "application/json"})
    assert status == 400
    assert "is not a form; send multipart/form-data" in json.loads(raw)["error"]["message"]


def test_limits_of_size_and_disk_hold(whisper: Whisper, forms: Uploads) -> None:
    small = file_of(AUDIO[:60_000]) + field_of("model", "ears") + END  # what waits in a socket must not be much
    with serving(whisper, forms=forms, uploads=UploadLimits(largest_bytes=50_000)) as server:
        status, _, raw = server.ask("POST", PATH, small, TYPE)
    assert (status, "http.max_upload" in json.loads(raw)["error"]["message"]) == (413, True)
    larger = file_of(AUDIO[:200_000]) + field_of("model", "ears") + END
    with serving(whisper, forms=forms, uploads=UploadLimits(disk_bytes=100_000)) as server:
        status, _, raw = server.ask("POST", PATH, larger, TYPE)
        assert (status, "(http.uploads)" in json.loads(raw)["error"]["message"]) == (503, True)
        assert forms.on_disk.held_bytes == 0
        assert server.ask("POST", PATH, MODEL_FIRST.replace(b"%s", b"ears"), TYPE)[0] == 200  # streamed


def test_a_client_that_sends_all_of_a_form_that_is_too_large_reads_why(whisper: Whisper) -> None:
    large = file_of(AUDIO * 16) + field_of("model", "ears") + END  # more than waits in sockets
    with serving(whisper, uploads=UploadLimits(largest_bytes=50_000)) as server:
        status, headers, raw = server.ask("POST", PATH, large, TYPE)
        assert (status, json.loads(raw)["error"]["code"], headers["connection"]) == (413, "body_too_large", "close")
        pieces = (large[at : at + 100_000] for at in range(0, len(large), 100_000))  # without a length
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
        connection.request("POST", PATH, pieces, TYPE, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
    assert whisper.seen == []


class TornUploads(Uploads):
    """Forms whose files lose their end on disk."""

    async def received(self, *arguments, **options):  # type: ignore[no-untyped-def]
        upload = await super().received(*arguments, **options)
        upload._file.truncate(1000)  # type: ignore[attr-defined]
        return upload


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])  # both HTTP clients
def test_a_form_that_cannot_be_read_from_disk_is_this_servers_failure(
    whisper: Whisper, host: str, tmp_path: Path
) -> None:
    torn = TornUploads(tmp_path)
    with serving(whisper, host, forms=torn) as server:
        status, _, raw = server.ask("POST", PATH, FILE_FIRST.replace(b"%s", b"ears"), TYPE)
        error = json.loads(raw)["error"]
        assert (status, error["code"]) == (500, "internal_error")
        assert error["message"] == "this server cannot read the form that it keeps on disk; send it again"
        _, _, metrics = server.ask("GET", "/metrics")
        rows = json.loads(server.ask("GET", "/admin/experts")[2])
        assert torn.on_disk.held_bytes == 0
    assert b'coe_errors_total{code="engine_died"}' not in metrics  # nor does it count against the expert
    assert [row["failure"] for row in rows] == [None, None]


@pytest.mark.parametrize("form", [MODEL_FIRST, FILE_FIRST])
def test_a_client_that_leaves_midway_leaves_nothing(whisper: Whisper, forms: Uploads, form: bytes) -> None:
    with serving(whisper, forms=forms) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
        connection.putrequest("POST", PATH)
        for name, value in {**TYPE, "content-length": str(len(form))}.items():
            connection.putheader(name, value)
        connection.endheaders(form.replace(b"%s", b"ears")[:200_000])
        connection.close()
        until(lambda: _leases(server) == 0)
        assert forms.on_disk.held_bytes == 0
        assert server.ask("POST", PATH, form.replace(b"%s", b"ears"), TYPE)[0] == 200
    assert len(whisper.seen) == 1


def _leases(server: Running) -> int:
    return sum(one.leases + one.queued for one in server.cache.status())


@pytest.mark.parametrize("form", [MODEL_FIRST, FILE_FIRST])
def test_a_form_that_makes_no_progress_is_given_up(whisper: Whisper, forms: Uploads, form: bytes) -> None:
    with serving(whisper, forms=forms, uploads=UploadLimits(stall_seconds=0.3)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
        connection.putrequest("POST", PATH)
        for name, value in {**TYPE, "content-length": str(len(form))}.items():
            connection.putheader(name, value)
        connection.endheaders(form.replace(b"%s", b"ears")[:200_000])
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (408, "body_too_slow")
        connection.close()
        until(lambda: _leases(server) == 0)
        assert forms.on_disk.held_bytes == 0


def test_a_streamed_form_is_not_sent_to_a_second_expert(whisper: Whisper, tmp_path: Path) -> None:
    whisper.status, whisper.answer = 503, b'{"error": {"message": "overloaded"}}'
    router = _by_path(tmp_path, ["ears", "other"])
    with serving(whisper, router=router) as server:
        status, headers, _ = server.ask("POST", PATH, MODEL_FIRST.replace(b"%s", b"auto"), TYPE)
    assert status >= 500
    assert headers["x-coe-expert"] == "ears"
    assert len(whisper.seen) == 1
