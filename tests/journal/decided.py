"""Decisions made by hand."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class MadeUp:
    """The fields of a decision that the journal stores."""

    decision_id: str
    fields: dict = field(default_factory=dict)

    def as_json(self):
        return {"decision_id": self.decision_id, **self.fields}


def said(*texts):
    return [{"role": "user", "content": text} for text in texts]
