"""Token counts estimated without a tokenizer, and which rules of a tokenizer.json are safe to run.

The package `tokenizers` runs the rules of such a file in this process. A rule may expand ten letters to gigabytes,
which aborts the process, or take exponential time. Only rules that are known to be linear are loaded.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import mul
from string import ascii_letters, digits
from typing import Any

import numpy as np
import numpy.typing as npt

from coe_server.system.visible import brief

_LETTER, _FOREIGN, _DIGIT, _SIGN, _WIDE, _LINE, _SPACE = range(7)
_WIDE_FROM = 0x2E80  # Chinese, Japanese, Korean, emoji: a character is about a token

# Cost in 1/100 token of each word (a run of letters), ASCII letter, other letter, digit, sign, wide character and run
# of line ends. Spaces, and repetitions of the same sign or wide character, cost nothing: such runs take few tokens.
# Measured on 615 texts (code, JSON, logs, tables, prose, some thirty languages) with seven tokenizers of 32 to 200
# thousand tokens: GPT-4, GPT-4o, Qwen, DeepSeek, Claude, Llama 2, and Mistral's tekken. `_LEAST` is below 0.85 of the
# smallest count of the seven for every text. `_LIKELY` is 0.7 to 1.4 times their mean for 97 % of the texts (bytes / 4:
# for 72 %), and at worst half of it for real texts (base64: 0.54).
_LEAST = (75, 1, 3, 30, 3, 30, 40)
_LIKELY = (80, 10, 40, 110, 60, 85, 220)
_PIECE = 1 << 16  # characters per step, which bounds the extra memory


@dataclass(frozen=True, slots=True)
class TokenCount:
    """An estimate: `least` is below the count of every measured tokenizer, `likely` a typical count."""

    least: int = 0
    likely: int = 0

    @classmethod
    def of(cls, text: str) -> TokenCount:
        """The estimate for a text. It is monotone: no part of the text has a larger one."""
        least = likely = 0
        for piece in _pieces(text):
            counts = _counts(piece)
            least += sum(map(mul, counts, _LEAST))
            likely += sum(map(mul, counts, _LIKELY))
        return cls(least // 100, -(-likely // 100))

    def __add__(self, other: TokenCount) -> TokenCount:
        return TokenCount(self.least + other.least, self.likely + other.likely)


NOTHING = TokenCount()


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces, each preceded by the last character of the piece before."""
    for start in range(0, len(text), _PIECE):
        yield text[start - 1 : start + _PIECE] if start else " " + text[:_PIECE]


def _counts(piece: str) -> tuple[int, ...]:
    """The number of units of each kind, in the order of the costs."""
    codes, kinds = _kinds_of(piece)
    here, before = kinds[1:], kinds[:-1]
    is_letter = here <= _FOREIGN
    letters = np.count_nonzero(here == _LETTER)
    is_new = codes[1:] != codes[:-1]
    return (
        int(np.count_nonzero(is_letter & (before > _FOREIGN))),
        int(letters),
        0 if piece.isascii() else int(np.count_nonzero(here == _FOREIGN)),
        int(np.count_nonzero(here == _DIGIT)),
        int(np.count_nonzero((here == _SIGN) & is_new)),
        0 if piece.isascii() else int(np.count_nonzero((here == _WIDE) & is_new)),
        int(np.count_nonzero((here == _LINE) & (before != _LINE))),
    )


def _kinds_of(piece: str) -> tuple[npt.NDArray[np.uint8] | npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """Code points and their kinds."""
    if piece.isascii():
        encoded = piece.encode("ascii")
        kinds = np.frombuffer(encoded.translate(_ASCII_KINDS), dtype=np.uint8)
        return np.frombuffer(encoded, dtype=np.uint8), kinds
    codes = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return codes, _KINDS.take(codes, mode="clip")


def _kinds() -> npt.NDArray[np.uint8]:
    """The kind of each code point; those from `_WIDE_FROM` on share the last entry."""
    kinds = np.full(_WIDE_FROM + 1, _SIGN, dtype=np.uint8)
    kinds[0x80:0x2000] = _FOREIGN
    kinds[_WIDE_FROM] = _WIDE
    for kind, signs in ((_LETTER, ascii_letters), (_DIGIT, digits), (_LINE, "\r\n"), (_SPACE, " \t\v\f\u00a0")):
        kinds[[ord(sign) for sign in signs]] = kind
    return kinds


_KINDS = _kinds()
_ASCII_KINDS = _KINDS[:256].tobytes()


MOST_GROWTH = 1_000  # upper bound on output characters per input character; NFKC alone can make 18
LONGEST_TEXT = 64  # of a text in a rule
LONGEST_WORD = 200  # WordPiece takes quadratic time in the length of a word
_MOST_RULES, _MOST_LEVELS = 300, 6
_GROWTH = {  # of rules that map single characters; afterwards any character may be any other
    **dict.fromkeys(("NFC", "Nmt", "Strip", "StripAccents", "Prepend"), 1),
    **{"Lowercase": 2, "BertNormalizer": 3, "NFD": 4, "ByteLevel": 4, "NFKC": 18, "NFKD": 18},
}
_SPLITTERS = {
    **dict.fromkeys(("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits", "Split"), 1),
    **dict.fromkeys(("UnicodeScripts", "CharDelimiterSplit", "FixedLength"), 1),
    **{"Metaspace": 2, "ByteLevel": 4},
}
_MODELS = frozenset(("WordPiece", "WordLevel", "BPE", "Unigram"))
_UNREAD = frozenset(("vocab", "merges", "precompiled_charsmap", "Regex"))
# From GPT-2, Llama 3 and Qwen 2, CLIP: unambiguous, so linear.
_KNOWN = frozenset(
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    )
)
_ATOM = r"(?:\\[sSdDwWnrt]|\\[pP]\{\w+\}|\[[^\[\]\\&]+\]|[^\\\[\](){}*+?|.^$])"
_ONE_REPEATED = re.compile(rf"{_ATOM}(?:\+|\{{[1-9]\d?(?:,\d{{0,2}})?\}})?")  # at least once, so linear


class UnsafeRule(Exception):
    """A rule that is refused; the message names the rule and the reason."""


def require_safe(tokenizer: Mapping[str, Any]) -> None:
    """Check all rules. Raises UnsafeRule for the first unsafe one."""
    _require_known_patterns(tokenizer, 0)
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not (kind is None or kind in _MODELS):
        raise UnsafeRule(f"the model {kind!r} is not one of {', '.join(sorted(_MODELS))}")
    longest = model.get("max_input_chars_per_word", 100)
    if not isinstance(longest, int) or longest > LONGEST_WORD:
        raise UnsafeRule(f"max_input_chars_per_word is {longest!r}, more than {LONGEST_WORD}")
    growth = _growth_of_normalizers(list(_rules(tokenizer.get("normalizer"), "normalizers")))
    for rule in _rules(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if rule["type"] not in _SPLITTERS:
            raise UnsafeRule(f"the pre-tokenizer {rule['type']!r} is not known here")
        growth *= _SPLITTERS[rule["type"]]
    if growth > MOST_GROWTH:
        raise UnsafeRule(f"its rules may expand one character to {min(growth, 10**9):,.0f}, more than {MOST_GROWTH}")


def _require_known_patterns(node: object, level: int) -> None:
    """Check every regular expression and the length of every text in the rules, except vocabularies."""
    if level > _MOST_LEVELS:
        raise UnsafeRule(f"its rules are nested more than {_MOST_LEVELS} levels deep")
    if isinstance(node, Mapping):
        if "Regex" in node:
            _require_linear(node["Regex"])
        for name in node.keys() - _UNREAD:
            _require_known_patterns(node[name], level + 1)
    elif isinstance(node, list):
        for value in node:
            _require_known_patterns(value, level)
    elif isinstance(node, str) and len(node) > LONGEST_TEXT and level > 1:
        raise UnsafeRule(f"a text of {len(node):,} characters in a rule, more than {LONGEST_TEXT}")


def _require_linear(pattern: object) -> None:
    is_known = isinstance(pattern, str) and (pattern in _KNOWN or _ONE_REPEATED.fullmatch(pattern) is not None)
    if not is_known:
        raise UnsafeRule(f"the regular expression {brief(repr(pattern), 100)} is not known to take linear time")


def _rules(node: object, parts: str, level: int = 0) -> Iterator[Mapping[str, Any]]:
    """The rules, sequences flattened."""
    if node is None:
        return
    if not isinstance(node, Mapping) or not isinstance(node.get("type"), str) or level > _MOST_LEVELS:
        raise UnsafeRule(f"the {parts} are not rules")
    if node["type"] != "Sequence":
        yield node
        return
    listed = node.get(parts)
    if not isinstance(listed, list) or len(listed) > _MOST_RULES:
        raise UnsafeRule(f"the {parts} are not a list of at most {_MOST_RULES} rules")
    for one in listed:
        yield from _rules(one, parts, level + 1)


def _growth_of_normalizers(rules: list[Mapping[str, Any]]) -> float:
    """Upper bound on output characters per input character."""
    growth, replacements = 1.0, []
    for rule in rules[: _MOST_RULES + 1]:
        if rule["type"] == "Replace":
            replacements.append(rule)
            continue
        growth *= _growth_of_replacements(replacements) * _growth_of_map(rule)
        replacements = []
    if len(rules) > _MOST_RULES:
        raise UnsafeRule(f"there are more than {_MOST_RULES} normalizers")
    return growth * _growth_of_replacements(replacements)


def _growth_of_map(rule: Mapping[str, Any]) -> int:
    if rule["type"] == "Precompiled":
        return _longest_in_charsmap(rule.get("precompiled_charsmap"))
    if rule["type"] not in _GROWTH:
        raise UnsafeRule(f"the normalizer {rule['type']!r} is not known here")
    return _GROWTH[rule["type"]]


def _longest_in_charsmap(encoded: object) -> int:
    """The longest replacement. Format of SentencePiece: length of a trie, the trie, zero-terminated replacements."""
    try:
        blob = base64.b64decode(encoded if isinstance(encoded, str) else "", validate=True)
        texts = blob[4 + int.from_bytes(blob[:4], "little") :].decode("utf-8")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise UnsafeRule("its precompiled_charsmap is none") from error
    if not texts.endswith("\0"):
        raise UnsafeRule("its precompiled_charsmap is none")
    return max(1, *(len(text) for text in texts.split("\0")))


def _growth_of_replacements(rules: list[Mapping[str, Any]]) -> float:
    """Upper bound on output characters per input character, by a count of each kind of character."""
    pairs = [(*_pattern_of(rule), str(rule.get("content", ""))) for rule in rules]
    kinds = {character for _, pattern, content in pairs for character in pattern + content} | {" ", ""}
    return max(_grown({kind: 1.0}, pairs) for kind in kinds)


def _pattern_of(rule: Mapping[str, Any]) -> tuple[bool, str]:
    """(is a regular expression, the text to be replaced); for a regular expression any character."""
    pattern = rule.get("pattern")
    text = pattern.get("String") if isinstance(pattern, Mapping) else None
    if isinstance(text, str) and text:
        return False, text
    if (
        not isinstance(pattern, Mapping)
        or not isinstance(pattern.get("Regex"), str)
        or len(rule.get("content", "")) > 1
    ):
        raise UnsafeRule("it replaces an empty text, or a regular expression by more than one character")
    return True, ""


def _grown(counts: dict[str, float], pairs: list[tuple[bool, str, str]]) -> float:
    """Upper bound on all characters after these replacements.

    A pattern of several characters occurs at most as often as their mean. A regular expression matches at least one
    character, and may keep it.
    """
    for is_regex, pattern, content in pairs:
        if is_regex:
            counts[content] = sum(counts.values())
            continue
        found = sum(counts.get(one, 0.0) for one in set(pattern)) / len(pattern)
        if len(pattern) == 1:
            counts.pop(pattern, None)
        for one in content if found else "":
            counts[one] = counts.get(one, 0.0) + found
        if sum(counts.values()) > MOST_GROWTH:
            break
    return float(sum(counts.values()))
