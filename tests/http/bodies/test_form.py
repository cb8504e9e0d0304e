"""Forms: their fields, the place of `model`, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import RequestError
from coe_server.http.bodies.form import LONGEST_FIELDS_BYTES, MOST_PARTS, Form, RestOfForm, boundary_of, read_form

BOUNDARY = b"xYz-123"
FILE = b'content-disposition: form-data; name="file"; filename="a.wav"\r\ncontent-type: audio/wav'


def part(head: bytes, content: bytes) -> bytes:
    return b"--%b\r\n%b\r\n\r\n%b\r\n" % (BOUNDARY, head, content)


def field(name: str, value: bytes) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"'.encode(), value)


END = b"--%b--\r\n" % BOUNDARY


def rewritten(body: bytes, form: Form, name: str) -> bytes:
    span, instead = form.with_model(name, BOUNDARY)
    return body[: span.start] + instead + body[span.end :]


def test_fields_are_read_and_only_the_value_of_model_is_replaced() -> None:
    body = field("model", b"whisper") + field("language", b"de") + part(FILE, b"RIFF\r\n--x\0") + END
    form = read_form(body, BOUNDARY, ends_here=True)
    assert dict(form.fields) == {"model": "whisper", "language": "de"}
    assert form.complete
    assert form.file == body.index(b"RIFF")
    assert rewritten(body, form, "large-v3") == body.replace(b"whisper", b"large-v3")


def test_a_form_without_a_model_gets_one_before_its_first_part() -> None:
    body = b"\r\n" + part(FILE, b"RIFF") + END
    form = read_form(body, BOUNDARY, ends_here=True)
    again = read_form(rewritten(body, form, "tiny"), BOUNDARY, ends_here=True)
    assert form.model is None
    assert dict(again.fields) == {"model": "tiny"}


def test_the_beginning_of_a_form_tells_the_fields_before_its_first_file() -> None:
    body = field("model", b"w") + part(FILE, b"RIFF" * 100) + field("prompt", b"p") + END
    cut = body.index(b"RIFFRIFF") + 10
    form = read_form(body[:cut], BOUNDARY)
    assert (dict(form.fields), form.file is not None, form.complete) == ({"model": "w"}, True, False)


@given(st.data())
def test_a_beginning_never_says_more_than_the_whole(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(["model", "language", "prompt"]), unique=True))
    parts = [field(name, name.encode() * 3) for name in names]
    parts.insert(data.draw(st.integers(0, len(parts))), part(FILE, data.draw(st.binary(max_size=50))))
    body = b"".join(parts) + END
    cut = data.draw(st.integers(0, len(body)))
    whole, beginning = read_form(body, BOUNDARY, ends_here=True), read_form(body[:cut], BOUNDARY)
    assert beginning.fields.items() <= whole.fields.items()
    assert beginning.model in {None, whole.model}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_form_or_refused(noise: bytes) -> None:
    for body in (noise, b"--" + BOUNDARY + noise, b"--" + BOUNDARY + b"\r\n" + noise):
        with suppress(RequestError):
            assert read_form(body, BOUNDARY, ends_here=True).complete


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (field("model", b"a") + field("model", b"b") + END, "more than one field `model`"),
        (field("model", b"\xff") + END, "not UTF-8"),
        (field("model", b"a"), "no end"),
        (b"abc", "no end"),
        (b"x--%b\r\n" % BOUNDARY, "no delimiter at its beginning"),
        (b"--%bx\r\n" % BOUNDARY, "not followed by a line"),
        (part(b"content-type: text/plain", b"a") + END, "a part without a name"),
        (field("a", b"") * (MOST_PARTS + 1) + END, "more than 256 parts"),
        (part(b"x: " + b"y" * 9000, b""), "longer than 8192 bytes"),
    ],
)
def test_what_is_no_form_is_refused_with_the_reason(body: bytes, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        read_form(body, BOUNDARY, ends_here=True)


def test_a_large_field_ends_the_fields_as_a_file_does() -> None:
    body = field("model", b"a") + field("prompt", b"p" * (LONGEST_FIELDS_BYTES + 1)) + END
    form = read_form(body, BOUNDARY, ends_here=True)
    assert (dict(form.fields), form.file is not None) == ({"model": "a"}, True)


@given(st.lists(st.integers(1, 40), max_size=20))
def test_a_model_behind_the_file_is_refused_however_the_pieces_are_cut(cuts: list[int]) -> None:
    rest, watch = b"RIFF\r\n--xYz-12\r\n" + b"\r\n" + field("model", b"other") + END, RestOfForm(BOUNDARY)
    with pytest.raises(RequestError, match="more than one field `model`"):
        _watch(watch, rest, cuts)


def _watch(watch: RestOfForm, rest: bytes, cuts: list[int]) -> None:
    for cut in [*cuts, len(rest)]:
        watch.watch(rest[:cut])
        rest = rest[cut:]


@given(st.lists(st.integers(1, 40), max_size=20))
def test_other_fields_behind_the_file_pass(cuts: list[int]) -> None:
    rest, watch = b"RIFF\r\n--xYz-12\r\n" + b"\r\n" + field("prompt", b"model") + END + b"after", RestOfForm(BOUNDARY)
    _watch(watch, rest, cuts)


def test_the_boundary_is_read_from_the_content_type() -> None:
    assert boundary_of('multipart/form-data; charset=utf-8; boundary="a b"') == b"a b"
    for wrong in (
        "application/json",
        "multipart/form-data",
        "multipart/mixed; boundary=a",
        "",
        "multipart/form-data; boundary=" + "a" * 80,
    ):
        with pytest.raises(RequestError, match=r"not a form|longer than 70"):
            boundary_of(wrong)
