"""Every coding is decoded whatever pieces it comes in, and nothing that expands without end is held."""

import gzip
import os
import random
import zlib

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.upstream.content_coding import (
    CHUNK_BYTES,
    MOST_CODINGS,
    MOST_PARTS,
    TAKEN,
    Decoder,
    TooLong,
    UnknownCoding,
    WrongData,
    codings_of,
    is_coded,
    zstd,
)


def raw_deflate(data):
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


ENCODERS = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "deflate": zlib.compress,
    "br": lambda data: brotli.compress(data, quality=1),
    "zstd": zstd.compress,
}
FORMS = {**{name: (name, encode) for name, encode in ENCODERS.items()}, "raw deflate": ("deflate", raw_deflate)}


def decoded(codings, raw, limit_bytes=1 << 20, piece_bytes=1 << 16):
    decoder = Decoder(codings, limit_bytes)
    chunks = [
        chunk for start in range(0, len(raw), piece_bytes) for chunk in decoder.decode(raw[start : start + piece_bytes])
    ]
    decoder.end()
    return b"".join(chunks)


def test_there_is_an_encoder_for_every_coding_that_is_taken():
    assert set(ENCODERS) == set(TAKEN)


@given(st.binary(max_size=2000), st.sampled_from(sorted(FORMS)), st.integers(1, 50), st.integers(1, 200))
def test_what_was_encoded_comes_out_whatever_the_pieces(data, form, piece_bytes, times):
    coding, encode = FORMS[form]
    assert decoded((coding,), encode(data * times), piece_bytes=piece_bytes) == data * times


@given(st.binary(max_size=500), st.lists(st.sampled_from(TAKEN), min_size=1, max_size=MOST_CODINGS))
def test_codings_are_undone_from_the_last_to_the_first(data, codings):
    raw = data
    for coding in codings:
        raw = ENCODERS[coding](raw)
    assert decoded(codings, raw, piece_bytes=7) == data


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("window_bits", [9, 15, -9, -15])
def test_deflate_is_told_apart_with_and_without_zlibs_format(level, window_bits):
    data = bytes(range(256)) * 30
    compressor = zlib.compressobj(level, wbits=window_bits)
    assert decoded(("deflate",), compressor.compress(data) + compressor.flush(), piece_bytes=1) == data


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_parts_behind_each_other_are_one_body(coding):
    encode = ENCODERS[coding]
    raw = encode(b"one ") + encode(b"") + encode(b"two")
    for piece_bytes in (1, 3, len(raw)):
        assert decoded((coding,), raw, piece_bytes=piece_bytes) == b"one two"


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_parts_without_end_are_refused(coding):
    with pytest.raises(WrongData, match=f"more than {MOST_PARTS} parts"):
        decoded((coding,), ENCODERS[coding](b"") * (MOST_PARTS + 1))


@pytest.mark.parametrize("form", FORMS)
def test_the_limit_is_exact(form):
    coding, encode = FORMS[form]
    data = random.Random(1).randbytes(3 * CHUNK_BYTES)
    for whole in (data[:-1], data, data + b"x"):
        assert decoded((coding,), encode(whole), limit_bytes=len(whole)) == whole
    with pytest.raises(TooLong):
        decoded((coding,), encode(data), limit_bytes=len(data) - 1)


@pytest.mark.parametrize("form", FORMS)
def test_of_what_expands_a_thousandfold_no_more_is_held_than_the_limit_and_a_chunk(form):
    coding, encode = FORMS[form]
    bomb = encode(bytes(64 << 20))
    assert len(bomb) < 100_000
    limit_bytes = 1 << 20
    held = []
    chunks = Decoder((coding,), limit_bytes).chunks(bomb)
    with pytest.raises(TooLong):
        held.extend(map(len, chunks))
    assert max(held) <= 2 * CHUNK_BYTES
    assert limit_bytes - 2 * CHUNK_BYTES <= sum(held) <= limit_bytes


@pytest.mark.parametrize("outer", TAKEN)
def test_what_expands_between_two_codings_is_refused_as_well(outer):
    nothing = gzip.compress(b"") + b"\x1f\x8b\x08\x10\0\0\0\0\0\xff" + b"a" * (64 << 20)  # a name without end
    with pytest.raises(TooLong):
        decoded(("gzip", outer), ENCODERS[outer](nothing))


@pytest.mark.parametrize("form", FORMS)
def test_what_ends_too_early_is_refused(form):
    coding, encode = FORMS[form]
    raw = encode(os.urandom(300))
    for end in (0, 1, 2, len(raw) // 2, len(raw) - 1):
        with pytest.raises(WrongData, match=rf"^{coding}: "):
            decoded((coding,), raw[:end])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("piece_bytes", [1, 1000])
def test_what_follows_the_end_is_refused(form, piece_bytes):
    coding, encode = FORMS[form]
    with pytest.raises(WrongData, match=rf"^{coding}: "):
        decoded((coding,), encode(b"hello") + b"and more", piece_bytes=piece_bytes)


@pytest.mark.parametrize("coding", TAKEN)
@pytest.mark.parametrize("raw", [b'{"a": 1}', b"\x1f\x8b\x08", b"\xff" * 100], ids=["JSON", "half a head", "noise"])
def test_what_is_no_such_coding_is_refused(coding, raw):
    with pytest.raises(WrongData, match=rf"^{coding}: "):
        decoded((coding,), raw)


def test_a_zstd_window_that_is_larger_than_a_server_must_take_is_refused():
    large = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=large)
    raw = compressor.compress(b"hello") + compressor.flush()
    with pytest.raises(WrongData, match="too much memory"):
        decoded(("zstd",), raw)


@pytest.mark.parametrize(
    ("lines", "codings"),
    [
        ([], ()),
        (["identity"], ()),
        (["", " , "], ()),
        (["GZip"], ("gzip",)),
        (["x-gzip, identity,br"], ("gzip", "br")),
        (["deflate", "zstd"], ("deflate", "zstd")),
    ],
)
def test_codings_are_named_in_one_line_or_several(lines, codings):
    assert codings_of(lines) == codings
    assert is_coded(lines) == bool(codings)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["compress"], "compress"),
        (["gzip, lzma"], "lzma"),
        (["gzip"] * (MOST_CODINGS + 1), "5 nested codings"),
        (["*"], r"\*"),
    ],
)
def test_other_codings_and_too_many_are_refused(lines, named):
    with pytest.raises(UnknownCoding, match=named):
        codings_of(lines)
