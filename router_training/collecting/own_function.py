"""A scorer of the user's own: a Python function named `module:function`, imported from their environment on purpose."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from coe_server.errors import ConfigError, DatasetError
from router_training.collecting.questions import Question
from router_training.collecting.scorers import Unscored

OwnFunction = Callable[[Mapping[str, Any], str], float | None]  # (the prompt's row, the answer's text) -> score


class FunctionScorer:
    """What the user's function says: 0 to 1, or None for no score."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._function = _imported(name)

    def check(self, question: Question) -> None:
        """What a prompt needs is the function's business."""

    def score(self, question: Question, expert: str, answer: str) -> float | Unscored:
        """Raises DatasetError, naming the prompt, if the function raises or returns anything else."""
        try:
            score = self._function(question.row, answer)
        except Exception as error:  # somebody else's code ends here
            reason = f"{type(error).__name__}: {error}"
            raise DatasetError(f"{self._name} failed on {expert!r}, {question.prompt_id!r}: {reason}") from error
        if score is None:
            return Unscored(f"{self._name} gave none")
        if not isinstance(score, int | float) or not 0.0 <= score <= 1.0:
            raise DatasetError(
                f"{self._name} returned {score!r} for {expert!r}, {question.prompt_id!r}: not a number in [0, 1]"
            )
        return float(score)


def _imported(name: str) -> OwnFunction:
    module, _, attribute = name.partition(":")
    try:
        function: OwnFunction = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"scorer.function: {name} cannot be imported ({error}); its folder must be on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigError(f"scorer.function: {name} is not a function")
    return function
