"""A guess at a text's language: its script, and for Latin letters its commonest words. For tables, not for routing."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORDS = {
    "English": "the is of to in and what how do does i my for a an me with why this that you it from who are can",
    "German": "der die das und ist ein eine ich nicht wie was den dem für mit auf zu von mein meine warum kann es im",
    "French": "le la les des est une un je et que qui dans pour pas mon ma comment quel quelle du en sur ce pourquoi",
    "Spanish": "el la los las es una un que de en y mi por para cómo qué con no del cuál se puedo al",
    "Italian": "il lo la gli è una un che di in e mio per come non del quale con sono mi perché",
    "Portuguese": "o os as é uma um que de em e meu minha por para como não do da qual com eu",
    "Dutch": "de het een is en van ik niet hoe wat voor met op te mijn waarom dat zijn kan",
}
_MARKERS = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_SCRIPTS = {"CJK": "Chinese or Japanese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
OTHER = "other"


def language_of(text: str) -> str:
    """The likeliest language; the name of the script where that is all to be seen; `other` without a sign."""
    letters = [letter for letter in text[:2_000] if letter.isalpha()]
    scripts = Counter(unicodedata.name(letter, "?").split()[0] for letter in letters)
    if not scripts:
        return OTHER
    if {"HIRAGANA", "KATAKANA"} & set(scripts):
        return "Japanese"
    script, _ = scripts.most_common(1)[0]
    if script != "LATIN":
        return _SCRIPTS.get(script, script.capitalize())
    words = re.findall(r"\w+", text[:2_000].casefold())
    found = {name: sum(word in marked for word in words) for name, marked in _MARKERS.items()}
    best = max(found, key=found.__getitem__)
    return best if found[best] else OTHER
