"""Compressed bodies over real sockets: what an engine gets of them, and what is refused."""

import gzip
import json
import socket
import zlib
from functools import cache

import brotli
import pytest

from coe_server.http.bodies.body import LARGE_BYTES
from coe_server.upstream.content_coding import CHUNK_BYTES, TAKEN, zstd
from tests.http.server import running_server
from tests.http.test_api import simulated
from tests.http.test_engine_paths import BODIES, Listening
from tests.patience import PATIENCE_SECONDS

ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
    "Identity": lambda data: data,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
}
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def engine():
    return Listening(simulated("a"))


@pytest.fixture(scope="module")
def server(engine):
    with running_server({"a": engine}, max_body_bytes=LIMIT) as running:
        yield running


def post(server, path, raw, coding):
    status, headers, answer = server.ask("POST", path, raw, {"content-encoding": coding})
    return status, headers, json.loads(answer) if headers["content-type"] == "application/json" else {}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("coding", ENCODERS)
def test_a_compressed_body_reaches_the_engine_decoded(server, engine, path, coding):
    body = json.dumps({"model": "a", "x": 1.5, **BODIES[path]}).encode()
    assert post(server, path, ENCODERS[coding](body), coding)[0] == 200
    sent = engine.seen[-1]
    assert sent.body == body
    assert "content-encoding" not in dict(sent.headers)


@pytest.mark.parametrize("coding", ENCODERS)
def test_a_large_compressed_body_is_read_like_any_other(server, engine, coding):
    question = "wörd " * LARGE_BYTES
    fields = {"model": "a", "messages": [{"role": "user", "content": question}], "max_tokens": 5}
    raw = json.dumps(fields, ensure_ascii=False).encode()
    assert post(server, "/v1/chat/completions", ENCODERS[coding](raw), coding)[0] == 200
    assert b"".join(engine.seen[-1].body) == raw


@pytest.mark.parametrize("coding", ENCODERS)
def test_every_endpoint_that_reads_a_body_reads_compressed_ones(server, coding):
    decided = post(server, "/v1/route", ENCODERS[coding](json.dumps({"model": "a", "prompt": "x"}).encode()), coding)
    assert (decided[0], decided[2]["expert"]) == (200, "a")
    rating = json.dumps({"decision_id": "x", "score": 0.5}).encode()
    status, _, answer = post(server, "/v1/feedback", ENCODERS[coding](rating), coding)
    assert (status, answer["error"]["code"]) == (404, "decision_not_found")  # it was read: there is no decision log


def test_codings_in_several_headers_are_one_list(server):
    body = json.dumps({"model": "a", **BODIES["/v1/completions"]}).encode()
    raw = zstd.compress(zlib.compress(body))
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-encoding: deflate\r\ncontent-encoding: zstd\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(raw), raw)
        )
        assert wire.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("coding", ["compress", "gzip, lzma", "aws-chunked", "*", ",".join(["gzip"] * 5), "é" * 100])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/feedback", "/v1/route"])
def test_another_coding_is_refused_and_told_what_is_taken(server, path, coding):
    status, headers, answer = post(server, path, b"{}", coding.encode())
    assert (status, answer["error"]["code"]) == (415, "unsupported_content_encoding")
    assert headers["accept-encoding"] == ", ".join(TAKEN)
    message = answer["error"]["message"]
    assert all(name in message for name in TAKEN)
    assert len(message) < 200


@pytest.mark.parametrize("coding", TAKEN)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])
def test_wrong_or_truncated_data_is_told_so(server, path, coding):
    whole = ENCODERS[coding](json.dumps({"model": "a", **BODIES["/v1/chat/completions"]}).encode())
    for raw in (b"", whole[:-3], whole + b"x", b'{"model": "a"}'):
        status, _, answer = post(server, path, raw, coding)
        assert (status, answer["error"]["code"]) == (400, "invalid_request")
        assert f"is not what its content-encoding says: {coding}: " in answer["error"]["message"]


@cache
def bomb(coding):
    return ENCODERS[coding](bytes(100 << 20))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
@pytest.mark.parametrize(("path", "limit"), [("/v1/chat/completions", LIMIT), ("/v1/feedback", 65_536)])
def test_what_expands_beyond_the_limit_is_refused(server, path, limit, coding):
    status, headers, answer = post(server, path, bomb(coding), coding)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    assert str(limit) in answer["error"]["message"]
    assert headers["connection"] == "close"


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_compressed_body_may_fill_the_limit(server, coding):
    start = b'{"model": "a", "messages": [{"role": "user", "content": "x"}], "y": "'
    body = start + b"y" * (LIMIT - len(start) - 2) + b'"}'
    assert post(server, "/v1/chat/completions", ENCODERS[coding](body), coding)[0] == 200
    assert post(server, "/v1/chat/completions", ENCODERS[coding](body + b" "), coding)[0] == 413


def test_a_compressed_body_in_many_chunks_is_read(server):
    body = json.dumps({"model": "a", **BODIES["/v1/completions"], "y": "y" * CHUNK_BYTES}).encode()
    raw = gzip.compress(body, 0)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(raw[i : i + 99]), raw[i : i + 99]) for i in range(0, len(raw), 99))
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as wire:
        wire.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n"
            b"connection: close\r\n\r\n" + chunks + b"0\r\n\r\n"
        )
        assert wire.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_compressed_body_may_be_in_any_encoding_of_unicode(server, encoding):
    body = json.dumps({"model": "a", **BODIES["/v1/messages"]}).encode(encoding)
    assert post(server, "/v1/messages", gzip.compress(body), "gzip")[0] == 200


def test_a_compressed_body_without_its_header_is_told_what_to_say(server):
    status, _, raw = server.ask("POST", "/v1/chat/completions", gzip.compress(b"{}"))
    assert status == 400
    assert "content-encoding: gzip" in json.loads(raw)["error"]["message"]
