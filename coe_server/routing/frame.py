"""The words around a prompt that mean nothing for routing: greetings, thanks, requests for help, a given role.

A sentence at the head or tail is set aside if all of its words are in `FRAME_WORDS`, or two in three of a courteous
one, as long as one such sentence is courteous. What stands inside is not looked at, a text of nothing else is kept
whole, and so is one whose rest means less than what would go. Knows nothing about categories; takes some ten
microseconds, whatever the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from coe_server.routing.frame_words import COURTESIES, FRAME_WORDS, OPENERS, ROLES, THANKS

Normalisation = Literal["plain", "unframed-1"]  # other words or rules need another name
NEWEST: Normalisation = "unframed-1"

REACH = 400  # characters read at either end
MOST_SENTENCES = 6  # set aside at either end
MOST_UNKNOWN = 3  # words of a courteous sentence
WORDS_FOR_UNKNOWN = 3  # so many words, at least, for each unknown one
LEAST_REST = 1  # unknown words that stay for each one set aside
SHORT = 3  # words of a heading such as "### Instruction:", or of a name below a greeting
TALK = 5  # words, at least, of a sentence to the model that means nothing
WORDS_OF_TALK_FOR_UNKNOWN = 5
ADDRESSES = frozenset(("you", "me"))
OPENINGS = {
    *((first, who) for first in ("can", "could", "would", "will") for who in ("you", "u", "someone", "anyone")),
    *(("you", verb) for verb in ("are", "will", "must", "act")),
    *(("your", what) for what in ("role", "task", "job", "goal")),
    *(("good", time) for time in ("morning", "afternoon", "evening", "day", "night")),
    *(("act", "as"), ("as", "a"), ("as", "an"), ("looking", "forward")),
}  # first words of a courteous sentence

_ENDS = ".!?:…\u3002\uff01\uff1f\uff1a\n"  # also the full-width ones
_SENTENCE = re.compile(rf"[^{_ENDS}]*(?:[{_ENDS}]+[\s)\"'`*]*|$)")
_SENTENCE_BACKWARDS = re.compile(rf"[\s)\"'`*]*[{_ENDS}]*[^{_ENDS}]*")
_CLAUSE = re.compile(r"[^,;\uff0c\u3001]*[,;\uff0c\u3001]\s*")
_SIGNATURE = re.compile(r",?[ \t]*\n\s*\w+(?:[ .]+\w+)?[\s.]*$")
_HIRAGANA, _IDEOGRAPHS = "\u3040-\u309f", "\u4e00-\u9fff"  # without spaces: runs and characters are words
_WORD = re.compile(rf"[{_HIRAGANA}]+|[{_IDEOGRAPHS}]|[^\W_{_HIRAGANA}{_IDEOGRAPHS}]+")
_ORNAMENTS = " []<>|/\t\r\n-_*#>`\"'~.,:;!?)(\u2026\u00a1\u00bf\u3002\uff0c\uff01\uff1f\uff1a\u3001"


def read_as(text: str, normalisation: Normalisation) -> str:
    """The part of a text that features are made of."""
    return text if normalisation == "plain" else unframed(text)


def unframed(text: str) -> str:
    """The text without the courteous sentences at its head and tail."""
    head, tail = _head(text[:REACH]), _tail(text[-REACH:])
    if head.length == 0 and tail.length == 0:
        return text
    rest = text[head.length : len(text) - tail.length]
    words = [word.lower() for word in _WORD.findall(rest[: 2 * REACH])]
    if not words:
        return text
    unknown = head.unknown + tail.unknown
    is_more = unknown == 0 or sum(word not in FRAME_WORDS for word in words) >= LEAST_REST * unknown
    return rest if is_more else text


@dataclass(frozen=True, slots=True)
class Cut:
    """`length` characters at one end of a text, and the number of `unknown` words among them."""

    length: int = 0
    unknown: int = 0


def _head(text: str) -> Cut:
    first = _WORD.search(text)
    if first is None or first.group().lower() not in FRAME_WORDS:
        return Cut()
    reached, cut, is_courteous, unknown = 0, Cut(), False, 0
    for _ in range(MOST_SENTENCES):
        sentence = _match(_SENTENCE, text, reached)
        words = _words(sentence)
        if words is None or not _belongs(sentence, words):
            greeting = _greeting(sentence) if reached == cut.length else 0
            return Cut(reached + greeting, unknown) if greeting else cut
        reached += len(sentence)
        unknown += _unknown(words)
        is_courteous = is_courteous or _is_courteous(sentence, words)
        if is_courteous:
            cut = Cut(reached, unknown)
    return cut


def _tail(text: str) -> Cut:
    backwards = text[::-1]
    reached, cut, unknown = _signature(text), Cut(), 0
    for _ in range(MOST_SENTENCES):
        sentence = _match(_SENTENCE_BACKWARDS, backwards, reached)[::-1]
        words = _words(sentence)
        if words is None or not _belongs(sentence, words):
            thanks = _thanks(sentence, cut.length > 0)
            return Cut(reached + thanks, unknown) if thanks else cut
        reached += len(sentence)
        unknown += _unknown(words)
        if _is_courteous(sentence, words):
            cut = Cut(reached, unknown)
    return cut


def _match(expression: re.Pattern[str], text: str, at: int) -> str:
    """The sentence that begins there; at the end of the text nothing."""
    found = expression.match(text, at)
    assert found is not None, "every expression of sentences matches the empty text"
    return found.group()


def _words(sentence: str) -> list[str] | None:
    """The words of a sentence, in lower case; None with too many unknown ones, and where there is nothing to read."""
    words, unknown = [], 0
    for word in _WORD.finditer(sentence):
        words.append(word.group().lower())
        unknown += words[-1] not in FRAME_WORDS
        if unknown > MOST_UNKNOWN:
            return None
    return words if words or (sentence and not sentence.strip(_ORNAMENTS)) else None


def _unknown(words: Sequence[str]) -> int:
    return sum(word not in FRAME_WORDS for word in words)


def _belongs(sentence: str, words: Sequence[str]) -> bool:
    """True if a sentence means nothing; a courteous one may have some unknown words, such as a name."""
    unknown = _unknown(words)
    if unknown == 0:
        return True
    is_greeting = words[0] in OPENERS and len(words) <= SHORT and unknown == 1
    return is_greeting or (WORDS_FOR_UNKNOWN * unknown <= len(words) and _is_courteous(sentence, words))


def _is_courteous(sentence: str, words: Sequence[str]) -> bool:
    """True for a courteous word or opening, two roles, a heading such as "### Instruction:", and empty talk."""
    if not COURTESIES.isdisjoint(words) or tuple(words[:2]) in OPENINGS:
        return True
    roles = len(ROLES.intersection(words))
    if roles > 1 or (roles == 1 and len(words) <= SHORT and sentence.rstrip().endswith(":")):
        return True
    is_talk = len(words) >= max(TALK, WORDS_OF_TALK_FOR_UNKNOWN * _unknown(words))
    return is_talk and not ADDRESSES.isdisjoint(words)


def _greeting(sentence: str) -> int:
    """Characters of the greeting, or "please", before the first comma of a sentence that goes on with a meaning."""
    clause = _CLAUSE.match(sentence)
    if clause is None:
        return 0
    words = _WORD.findall(clause.group().lower())
    return clause.end() if 0 < len(words) <= SHORT and words[0] in OPENERS else 0


def _thanks(sentence: str, is_before_courtesy: bool) -> int:
    """Characters of the thanks at the end of a sentence that begins with a meaning and has no full stop between.

    They begin with a capital letter, or with a word of thanks and go on.
    """
    *_, last = ["", *sentence.rstrip(_ORNAMENTS).rsplit(None, 1)]
    length = 0
    words: list[str] = []
    if last.lower() not in FRAME_WORDS:
        return length
    for word in reversed(list(_WORD.finditer(sentence, max(0, len(sentence) - REACH // 4)))):
        read = word.group().lower()
        if read not in FRAME_WORDS:
            break
        words.insert(0, read)
        is_courteous = is_before_courtesy or _is_courteous(sentence, words)
        is_thanks = read in THANKS and (len(words) > 1 or is_before_courtesy)
        is_new = word.group()[0].isupper() and is_courteous and (len(words) > 1 or read in THANKS | ROLES)
        if is_thanks or is_new:
            length = len(sentence) - word.start()
    return length


def _signature(text: str) -> int:
    """Characters of the name in a line below "Kind regards," or the like."""
    name = _SIGNATURE.search(text, max(0, len(text) - 40))
    if name is None:
        return 0
    words = _WORD.findall(text[: name.start()].lower())[-SHORT:]
    return len(text) - name.start() if not THANKS.isdisjoint(words) else 0
