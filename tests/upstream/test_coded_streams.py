"""Compressed answers come out as they were, piece by piece, and never larger than a piece may be."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.upstream.content_coding import CHUNK_BYTES, FREE_BYTES, MOST_TIMES, StreamDecoder, TooLong, WrongData


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "Deflate ": bare_deflate}


def unpacked(coding: str, *data: bytes) -> bytes:
    decoder = StreamDecoder.of([coding])
    assert decoder is not None
    out = b"".join(piece for chunk in data for piece in decoder.chunks(chunk))
    decoder.end()
    return out


@given(
    coding=st.sampled_from(sorted(PACKERS)),
    data=st.binary() | st.binary(min_size=1, max_size=3).map(lambda part: part * CHUNK_BYTES),
    cuts=st.lists(st.integers(0, 400)),
)
def test_what_was_packed_comes_out_wherever_it_was_cut(coding: str, data: bytes, cuts: list[int]) -> None:
    packed, at = PACKERS[coding](data), sorted(cuts)
    chunks = [packed[start:end] for start, end in zip([0, *at], [*at, len(packed)], strict=True)]
    assert unpacked(coding, *chunks) == data


def test_each_word_of_a_stream_comes_out_before_the_next_goes_in() -> None:
    packer, decoder = zlib.compressobj(wbits=31), StreamDecoder.of(["gzip"])
    assert decoder is not None
    for word in (b"one", b"two", b"three"):
        assert b"".join(decoder.chunks(packer.compress(word) + packer.flush(zlib.Z_SYNC_FLUSH))) == word


def test_codings_upon_each_other_are_undone_in_reverse() -> None:
    assert unpacked("deflate, gzip", gzip.compress(zlib.compress(b"words"), mtime=0)) == b"words"
    decoder = StreamDecoder.of(["gzip", "identity, gzip"])
    assert decoder is not None
    assert b"".join(decoder.chunks(gzip.compress(gzip.compress(b"words"), mtime=0))) == b"words"


@pytest.mark.parametrize("named", [[], [""], ["identity"], ["br"], ["zstd"], ["gzip, br"], ["gzip"] * 4, ["gzip;q=1"]])
def test_what_needs_no_decoding_or_cannot_be_decoded_has_no_decoder(named: list[str]) -> None:
    assert StreamDecoder.of(named) is None


def test_members_of_gzip_are_read_on_and_padding_is_not() -> None:
    members = gzip.compress(b"one", mtime=0) + gzip.compress(b"", mtime=0) + gzip.compress(b"two", mtime=0)
    assert unpacked("gzip", members) == b"onetwo"
    assert unpacked("gzip", *(members[at : at + 1] for at in range(len(members)))) == b"onetwo"
    assert unpacked("gzip", members + bytes(1000)) == b"onetwo"
    assert unpacked("gzip", members, b"", bytes(3), b"\x1f\x8bno") == b"onetwo"
    assert unpacked("deflate", zlib.compress(b"one") + b"more") == b"one"


def test_a_body_that_is_empty_was_not_cut_short() -> None:
    assert unpacked("gzip") == b""
    assert unpacked("deflate", b"") == b""


@pytest.mark.parametrize("coding", sorted(PACKERS))
def test_data_cut_short_are_told(coding: str) -> None:
    with pytest.raises(WrongData, match="the data end too early"):
        unpacked(coding, PACKERS[coding](b"words " * 100)[:-9])


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("gzip", b'{"plain": "text"}'),
        ("deflate", b"\x78\x9cnot so"),
        ("deflate", b"\xff\xff\xff"),
        ("gzip", gzip.compress(b"words " * 100, mtime=0)[:-8] + b"12345678"),
        ("gzip", gzip.compress(b"one", mtime=0) + b"\x1f\x8bno"),
    ],
)
def test_data_of_another_kind_are_told(coding: str, data: bytes) -> None:
    with pytest.raises(WrongData, match=rf"^{coding}: error"):
        unpacked(coding, data)


def opened(coding: str, packed: bytes) -> tuple[list[int], str]:
    """The sizes of the pieces until it ends or is refused, and why it is."""
    decoder = StreamDecoder.of([coding])
    assert decoder is not None
    sizes: list[int] = []
    try:
        for piece in decoder.chunks(packed):
            sizes.append(len(piece))
        decoder.end()
    except (WrongData, TooLong) as error:
        return sizes, str(error)
    return sizes, ""


def test_what_expands_much_comes_in_small_pieces() -> None:
    packed = gzip.compress(bytes(FREE_BYTES), mtime=0)
    for coding, data in (("gzip", packed), ("gzip, gzip", gzip.compress(packed, mtime=0))):
        sizes, why = opened(coding, data)
        assert (sum(sizes), why) == (FREE_BYTES, "")
        assert max(sizes) <= CHUNK_BYTES


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_what_expands_a_thousandfold_is_refused_early(layers: int) -> None:
    packed = bytes(64 << 20)
    for _ in range(layers):
        packed = gzip.compress(packed, mtime=0)
    sizes, why = opened(", ".join(["gzip"] * layers), packed)
    assert why == f"the compressed data expand to more than {MOST_TIMES} times their size"
    assert sum(sizes) <= FREE_BYTES + MOST_TIMES * len(packed) + CHUNK_BYTES


def test_text_is_never_taken_for_a_bomb() -> None:
    events = b"".join(b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number for number in range(100_000))
    assert unpacked("gzip", gzip.compress(events, 9)) == events


def test_members_that_hold_nothing_give_a_turn_each() -> None:
    """A piece is a step of bounded work, after which others have their turn."""
    members = gzip.compress(b"", mtime=0) * 500
    decoder = StreamDecoder.of(["gzip, gzip"])
    assert decoder is not None
    assert len(list(decoder.chunks(gzip.compress(members, mtime=0)))) >= 500
