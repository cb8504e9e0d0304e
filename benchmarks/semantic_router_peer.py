"""Milliseconds that aurelio's semantic-router takes for one decision; run by routing_speed.py in its own environment.

Reads {"routes": {name: [utterances]}, "asked": {name: [texts]}, "processor_time": bool} from standard input, writes
{name: [p50, p99]}.
The encoder is scikit-learn's TF-IDF of words, reduced to 128 dimensions.
"""

import json
import sys
import time
from typing import Any

import numpy as np
from semantic_router import Route
from semantic_router.encoders import DenseEncoder
from semantic_router.routers import IndexedRouter
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline


class TfidfSvd(DenseEncoder):
    """Words weighted by TF-IDF, reduced by truncated SVD."""

    pipeline: Any = None

    def __call__(self, docs: list[Any]) -> list[list[float]]:
        found: list[list[float]] = self.pipeline.transform(docs).tolist()
        return found


def main() -> None:
    """Builds the router from standard input and times it."""
    given = json.load(sys.stdin)
    texts = [text for utterances in given["routes"].values() for text in utterances]
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), TruncatedSVD(128, random_state=0)).fit(texts)
    routes = [Route(name=name, utterances=utterances) for name, utterances in given["routes"].items()]
    router = IndexedRouter(encoder=TfidfSvd(name="tfidf", pipeline=pipeline), routes=routes)
    clock = time.process_time if given["processor_time"] else time.perf_counter
    answer = {}
    for name, asked in given["asked"].items():
        seconds = []
        for number in range(300):
            began = clock()
            router(asked[number % len(asked)])
            seconds.append(clock() - began)
        answer[name] = (1000 * np.percentile(seconds, [50, 99])).tolist()
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
