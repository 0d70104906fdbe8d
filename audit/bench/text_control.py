"""The text-only control: can the wording of a prompt alone tell its class?

Published lists of memorized and ordinary prompts differ in wording, and a bag-of-words classifier separates them. On
a fair benchmark it must not: its interval includes 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import BernoulliNB
from sklearn.pipeline import make_pipeline

from audit.bench.scores import Estimate, bootstrap_auc


def text_only_auc(prompts: Sequence[str], positive: Sequence[bool]) -> Estimate:
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
