"""Text from outside, safe to print: what a terminal or a page would obey is written as an escape."""

from __future__ import annotations

from unicodedata import category

OBEYED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # controls, formats, halves of surrogate pairs, line separators
NEEDED = frozenset("\u200c\u200d\u200e\u200f")  # to write Persian, Hindi or families of emoji: they change no neighbour


def visible(text: str) -> str:
    """The same on one line, without what moves the cursor or turns the direction of what follows."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(one) if category(one) in OBEYED and one not in NEEDED else one for one in text)


def visible_lines(text: str) -> str:
    """The same of a text whose line breaks are ours."""
    return "\n".join(map(visible, text.split("\n")))


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")


def brief(text: str, most: int = 300) -> str:
    """No more than so many characters of it, visible: for a sentence about something of any length."""
    line = visible(text[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"
