"""Makes foreign text safe to print: control and format characters are escaped."""

from __future__ import annotations

from unicodedata import category

OBEYED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # categories: control, format, surrogate, line separator
NEEDED = frozenset("\u200c\u200d\u200e\u200f")  # joiners and marks of Persian, Hindi and emoji; harmless


def visible(text: str) -> str:
    """The text on one line. Characters that move the cursor or change the writing direction are escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(one) if category(one) in OBEYED and one not in NEEDED else one for one in text)


def visible_lines(text: str) -> str:
    """The same, but line breaks are kept. Only for text whose line breaks this program made."""
    return "\n".join(map(visible, text.split("\n")))


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")


def brief(text: str, most: int = 300) -> str:
    """At most `most` characters of the text, escaped as by `visible`; for messages that quote a value."""
    line = visible(text[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"
