"""The text-only control: can the wording of a prompt alone tell its class?

Published lists of memorized and ordinary prompts differ in wording, and a bag-of-words classifier separates them. On
a fair benchmark it must not: its interval includes 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import BernoulliNB
from sklearn.pipeline import make_pipeline


@dataclass(frozen=True)
class AreaUnderCurve:
    """AUC with its 95% bootstrap interval."""

    value: float
    lower: float
    upper: float


def bootstrap_auc(positive: Sequence[bool], scores: Sequence[float], draws: int = 2000) -> AreaUnderCurve:
    """AUC of scores that should be higher where `positive`, with a bootstrap over the items of each class."""
    labels, values = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    rng = np.random.default_rng(0)
    ups, downs = values[labels], values[~labels]
    areas = []
    for _ in range(draws):
        up, down = rng.choice(ups, len(ups)), rng.choice(downs, len(downs))
        areas.append(float(np.mean((up[:, None] > down) + 0.5 * (up[:, None] == down))))
    lower, upper = np.quantile(areas, [0.025, 0.975])
    return AreaUnderCurve(float(roc_auc_score(labels, values)), float(lower), float(upper))


def text_only_auc(prompts: Sequence[str], positive: Sequence[bool]) -> AreaUnderCurve:
    """Cross-validated AUC of a naive Bayes classifier on the words of the prompts.

    Args:
        prompts: all of them.
        positive: the class to be told from the rest.
    """
    labels = np.asarray(positive, dtype=bool)
    folds = StratifiedKFold(n_splits=min(10, int(labels.sum()), int((~labels).sum())), shuffle=True, random_state=0)
    model = make_pipeline(CountVectorizer(binary=True), BernoulliNB())
    scores = cross_val_predict(model, list(prompts), labels, cv=folds, method="predict_proba")[:, 1]
    return bootstrap_auc(list(labels), list(scores))
