"""Answers that are wrong for another reason than their content: truncated, refused, or without anything to compare."""

from __future__ import annotations

import re

from router_training.data.provenance import Fault

CUT_SHORT = "length"  # the finish_reason of an answer that reached max_tokens
FILTERED = "content_filter"
READ_CHARACTERS = 200
LONGEST_REFUSAL = 600  # characters; a longer answer that begins with an apology has content

_REFUSAL = re.compile(
    r"\A\W{0,5}(?:(?:i'?m|i am) (?:very |so |really )?sorry\b.{0,60}\b"
    r"(?:can'?t|cannot|can not|unable|not able|won'?t)\b"
    r"|sorry,? (?:but )?i (?:can'?t|cannot|am unable|won'?t)\b"
    r"|(?:unfortunately,? )?i (?:can'?t|cannot|can not|am unable to|am not able to|won'?t) "
    r"(?:help|assist|answer|provide|comply|do that|fulfil|fulfill|create|write|discuss|share)\b"
    r"|as an ai\b.{0,80}\b(?:can'?t|cannot|unable|not able)\b"
    r"|(?:es tut mir leid|tut mir leid|leider kann ich)\b.{0,80}\bnicht\b"
    r"|(?:je suis désolée?|désolée?),? .{0,60}\bne (?:peux|puis)\b"
    r"|lo siento,? .{0,40}\bno puedo\b)",
    re.IGNORECASE | re.DOTALL,
)


def fault_of(finish_reason: str | None, answer: str, *, parses: bool) -> Fault | None:
    """What is wrong with an answer besides its content; None if nothing."""
    if finish_reason == CUT_SHORT:
        return "truncated"
    if finish_reason == FILTERED or is_refusal(answer):
        return "refused"
    return None if parses else "unparsed"


def is_refusal(answer: str) -> bool:
    """True for a short answer that begins with a usual refusal, in English, German, French or Spanish."""
    text = answer.strip().replace("\u2019", "'")
    return len(text) <= LONGEST_REFUSAL and _REFUSAL.match(text[:READ_CHARACTERS]) is not None
