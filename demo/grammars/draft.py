"""The draft: one worded question before it has an id. Knows no topic."""

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Draft:
    """A question's meaning (`key`, what the split is decided on), its phrasing family, and its two texts."""

    key: str
    family: str
    prompt: str
    answer: str


def worded(rng: Random, phrasings: dict[str, tuple[str, ...]], **fields: str) -> tuple[str, str]:
    """One phrasing, picked by `rng`, filled in; as (family, prompt)."""
    family, template = rng.choice([(name, text) for name, texts in phrasings.items() for text in texts])
    prompt = template.format(**fields)
    return family, prompt[0].upper() + prompt[1:]
