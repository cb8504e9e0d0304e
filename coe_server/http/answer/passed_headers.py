"""Which headers of an expert's answer its caller gets, and as what kind of content. Pure.

An answer leaves from this server's own address: what its expert says must not become a page there, nor speak to
browsers, caches or proxies in this server's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

Pairs = Iterable[tuple[str, str]]

_PASSED = frozenset(
    (
        *("cache-control", "content-encoding", "content-language", "content-length"),
        *("retry-after", "retry-after-ms", "x-should-retry"),  # OpenAI's and Anthropic's clients read them
        *("openai-model", "openai-processing-ms", "openai-version", "request-id"),
    )
)
_SHOWN = frozenset(  # no browser runs these; SVG, XML and HTML it would
    (
        *("application/json", "application/problem+json", "application/x-ndjson", "application/jsonl"),
        *("text/event-stream", "text/plain"),
        *("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp", "image/tiff"),
        *("audio/mpeg", "audio/mp3", "audio/mp4", "audio/aac", "audio/ogg", "audio/opus", "audio/flac", "audio/webm"),
        *("audio/wav", "audio/wave", "audio/x-wav", "audio/vnd.wave", "audio/x-flac", "audio/x-m4a", "audio/basic"),
        *("audio/pcm", "audio/l16", "audio/l24"),
    )
)
_ATTACHED = (("content-type", "application/octet-stream"), ("content-disposition", "attachment"))
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(  # RFC 9110, 8.3.1; of two types in one value browsers take the last, so a comma is none of it
    rf"[ \t]*({_TOKEN}/{_TOKEN})(?:[ \t]*;[ \t]*(?:{_TOKEN}=(?:{_TOKEN}|\"[^\",\\\x00-\x1f\x7f-\uffff]*\"))?)*[ \t]*"
)


def passed_headers(headers: Pairs) -> Iterator[tuple[str, str]]:
    """What of an expert's headers the caller gets; content of another kind than `_SHOWN` to be saved, not shown."""
    headers = tuple(headers)
    yield from ((name, value) for name, value in headers if name.lower() in _PASSED)
    if content_type(headers) in _SHOWN:
        yield from ((name, value) for name, value in headers if name.lower() == "content-type")
    else:
        yield from _ATTACHED


def content_type(headers: Pairs) -> str | None:
    """The one type that the headers name, in lower case and without parameters; None where it is none or unclear."""
    values = [value for name, value in headers if name.lower() == "content-type"]
    found = _TYPE.fullmatch(values[0]) if len(values) == 1 else None
    return found and found[1].lower()
