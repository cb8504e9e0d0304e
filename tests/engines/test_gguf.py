"""The header of a GGUF file: what it tells, and that no file, whatever it holds, takes memory or time."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.engines.gguf import HEADER_BYTES, NotGguf, parse_header, read_gguf
from tests.engines.make_gguf import LLAMA, header, write_gguf
from tests.examples import examples

NO_PLACE = "does not begin as a GGUF file"


def test_a_header_tells_architecture_context_and_what_a_token_takes(tmp_path: Path) -> None:
    found = read_gguf(write_gguf(tmp_path / "model.gguf", 5 << 20))
    assert (found.architecture, found.kind, found.context_tokens) == ("llama", "model", 131_072)
    assert found.token_bytes == 2 * 32 * 8 * 128 * 2
    assert found.parts == (0, 1)


def test_heads_that_differ_by_layer_and_sizes_of_their_own_are_counted() -> None:
    layers = {"llama.block_count": 4, "llama.attention.head_count_kv": [4, 4, 2, 2]}
    lengths = {"llama.attention.key_length": 64, "llama.attention.value_length": 32}
    assert parse_header(header(LLAMA | layers | lengths)).token_bytes == 12 * (64 + 32) * 2


def test_a_part_knows_its_number() -> None:
    assert parse_header(header(LLAMA | {"split.no": 1, "split.count": 3})).parts == (1, 3)


def test_keys_before_the_end_of_what_is_read_are_known() -> None:
    found = parse_header(header()[:400])
    assert found.architecture == "llama"
    assert parse_header(header()[:24]).architecture == ""


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", NO_PLACE),
        (b"GGML" + bytes(100), NO_PLACE),
        (header(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 99), "unknown kind"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1), "list of an unknown kind"),
    ],
)
def test_what_is_no_gguf_file_is_refused_with_a_reason(data: bytes, told: str) -> None:
    with pytest.raises(NotGguf, match=told):
        parse_header(data)


@pytest.mark.parametrize("kind", [4, 8])
def test_a_list_that_claims_to_be_endless_ends_with_the_file(kind: int) -> None:
    endless = b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63) + struct.pack("<Q1sIIQ", 1, b"k", 9, kind, 1 << 63)
    assert parse_header(endless + bytes(1000)).values == {}


@examples(200)
@given(st.integers(0, len(header())), st.binary(max_size=60))
def test_a_damaged_header_is_read_or_refused_and_nothing_else(cut: int, junk: bytes) -> None:
    whole = header()
    try:
        found = parse_header(whole[:cut] + junk + whole[cut + len(junk) :])
    except NotGguf:
        return
    assert found.token_bytes is None or found.token_bytes > 0
    assert found.context_tokens is None or found.context_tokens > 0


def test_a_pipe_or_a_folder_in_its_place_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(NotGguf, match="is no regular file"):
        read_gguf(tmp_path / "pipe.gguf")
    with pytest.raises((NotGguf, OSError)):
        read_gguf(tmp_path / "folder.gguf")


def test_no_more_than_the_first_mebibyte_is_read(tmp_path: Path) -> None:
    late = {"general.architecture": "llama", "long": "x" * HEADER_BYTES, "llama.context_length": 4096}
    assert read_gguf(write_gguf(tmp_path / "late.gguf", values=late)).values == {"general.architecture": "llama"}
