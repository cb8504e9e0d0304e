"""A secret as the environment holds it -> what a header can carry, or a sentence that does not show it. Pure."""

from __future__ import annotations

import unicodedata

from coe_server.errors import ConfigError


def clean_secret(value: str | None, key: str, variable: str) -> str:
    """The value without the blanks and newlines around it, as `echo KEY | base64` or an editor leaves them there.

    Raises ConfigError, which names the setting's key and the environment variable and never shows the value.
    """
    if not value:
        raise ConfigError(f"{key}: the environment variable '{variable}' is not set")
    stripped = value.strip()
    if not stripped:
        raise ConfigError(f"{key}: the environment variable '{variable}' holds nothing but blanks")
    if (fault := unfit_for_a_header(stripped)) is not None:
        raise ConfigError(f"{key}: the environment variable '{variable}' holds {fault}; set it to the key alone")
    return stripped


def unfit_for_a_header(text: str) -> str | None:
    """What in a text no HTTP header can carry, in words that do not show the text; None if all of it can stand there.

    RFC 9110, section 5.5: no control characters; what is not Latin-1 has no agreed encoding.
    """
    if "\n" in text or "\r" in text:
        return "a line break, which no HTTP header can carry"
    if any(unicodedata.category(character) == "Cc" for character in text):
        return "a control character, which no HTTP header can carry"
    if any(ord(character) > 0xFF for character in text):
        return "a character outside Latin-1, which no HTTP header can carry"
    return None
