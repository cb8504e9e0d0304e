"""The baseline beside the router: plain logistic regression on TF-IDF, each category's mean scores, mixed softly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from router_training.data.dataset import Dataset

Vector = npt.NDArray[np.float64]


def plain_regression(training: Dataset, asked: Dataset) -> Vector:
    """[n, experts]: expected scores of the prompts `asked`, without a gate. All prompts need all outcomes and a
    category."""
    kinds = (
        TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2)),
        TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(3, 5), analyzer="char_wb", max_features=50_000),
    )
    seen, unseen = ([talk.turns[-1].text for talk in part.conversations] for part in (training, asked))
    vectors = sp.hstack([kind.fit_transform(seen) for kind in kinds]).tocsr()
    model = LogisticRegression(C=10.0, max_iter=200).fit(vectors, training.labels)
    shares = model.predict_proba(sp.hstack([kind.transform(unseen) for kind in kinds]).tocsr())
    means = [
        np.average(training.scores[rows], axis=0, weights=training.weights[rows])
        for rows in (training.labels == category for category in model.classes_)
    ]
    return np.asarray(shares @ np.array(means))
