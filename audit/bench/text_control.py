"""The text-only control: can the wording of a prompt alone tell its class?

Published lists of memorized and ordinary prompts differ in wording, and a bag-of-words classifier separates them. On
a fair benchmark it must not: its interval includes 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
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


def balanced(prompts: Sequence[str], classes: Sequence[str]) -> NDArray[np.bool_]:
    """Which prompts to keep, that the words tell no class of those that are kept.

    One at a time is left out, the one without which words and classes are least associated (Pearson's χ² of each word
    with the classes, summed), until the interval of `text_only_auc` reaches down to 0.5 for every class.

    Args:
        prompts: all of them.
        classes: of each.

    Returns:
        (n,).

    Raises:
        ValueError: there is one class alone, or the words tell the classes until one is left with a prompt or none.
    """
    words = CountVectorizer(binary=True).fit_transform(prompts).toarray().astype(float)
    names = np.asarray(classes)
    member = names[:, None] == np.unique(names)
    if member.shape[1] < 2:
        raise ValueError("one class alone cannot be balanced")
    kept = np.ones(len(prompts), dtype=bool)
    while True:
        chosen = [prompt for prompt, keep in zip(prompts, kept, strict=True) if keep]
        if member[kept].sum(0).min() < 2:
            raise ValueError("the words of these prompts tell their classes, whichever are left out")
        if all(text_only_auc(chosen, list(own)).lower <= 0.5 for own in member[kept].T):
            return kept
        # Counts of words by classes without each prompt in turn: (kept, words, classes).
        rows = np.flatnonzero(kept)
        together = words[rows].T @ member[rows] - words[rows, :, None] * member[rows, None, :]
        words_left, members_left = words[rows].sum(0) - words[rows], member[rows].sum(0) - member[rows]
        expected = words_left[:, :, None] * members_left[:, None, :] / (len(rows) - 1)
        terms = (together - expected) ** 2 / np.where(expected > 0, expected, 1.0)
        kept[rows[terms.sum((1, 2)).argmin()]] = False
