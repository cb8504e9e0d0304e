"""The route that aurelio's semantic-router chooses for texts; run by first_day.py in an environment of its own.

Reads {"routes": {name: [examples]}, "asked": [texts], "embeddings": {text: [numbers]}} from standard input, writes
{aggregation: [[chosen name, score]]} of each text. There is no threshold. Its `fit` makes probabilities of the
scores and keeps their order, so it could change no choice.
"""

import json
import sys
from typing import Any, get_args

from semantic_router import Route
from semantic_router.encoders import DenseEncoder
from semantic_router.routers import IndexedRouter
from semantic_router.routers.indexed import Aggregation


class Known(DenseEncoder):
    """Embeddings that were computed before."""

    embeddings: Any = None

    def __call__(self, docs: list[Any]) -> list[list[float]]:
        return [self.embeddings[doc] for doc in docs]


def main() -> None:
    given = json.load(sys.stdin)
    routes = [Route(name=name, utterances=examples) for name, examples in given["routes"].items()]
    encoder = Known(name="known", embeddings=given["embeddings"])
    answer = {}
    for aggregation in get_args(Aggregation):
        router = IndexedRouter(encoder=encoder, routes=routes, aggregation=aggregation)
        chosen = map(router, given["asked"])
        answer[aggregation] = [(one.name, one.confidence) for one in chosen]
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
