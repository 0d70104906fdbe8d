"""Prompts that are nearly the same: a measurement of a list of prompts, on their text alone.

Two prompts are nearly the same when nothing but case, punctuation and spaces tells them apart, or when their sets of
character four-grams, taken inside words, have a Jaccard similarity of `SIMILARITY` or more (those in common over all;
Broder, "On the resemblance and containment of documents", 1997). At 0.7 that finds a misspelt word nearly always, and a
word replaced, added or left out in nine of ten prompts of eight words or more; shorter ones must differ by less. A
group is a connected component: its members need not all resemble each other.

Every pair that is similar enough is found, yet few are compared: if A and B have α = ⌈s max(|A|, |B|)⌉ members in
common, as they must, then the |A| − ⌈s|A|⌉ + k rarest members of A and the same of B have at least k ≤ α in common
(prefix filter: Chaudhuri, Ganti and Kaushik, "A primitive operator for similarity joins", 2006; with k > 1: Wang, Li
and Feng, "Can we beat the prefix filtering?", 2012). Sets are counted in integers, so that no rounding decides.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import HashingVectorizer

#: Jaccard similarity of two prompts that are nearly the same.
SIMILARITY = Fraction(7, 10)
_GRAM = 4
#: k, the members that rarest parts must have in common.
_IN_COMMON = 5
#: Multiplications of one block of the product, and pairs that are compared at once: what bounds the memory.
_BLOCK = 2**22
_PAIRS = 2**16

_Indices = NDArray[np.int64]


def near_duplicates(prompts: Sequence[str]) -> list[list[int]]:
    """Groups of different prompts that are nearly the same. The order of the list does not change who is in a group.

    Args:
        prompts: any number; exact copies count once.

    Returns:
        Per group, the positions of its prompts' first copies, at least two, ascending; groups by their first one.
    """
    first: dict[str, int] = {}
    for position, prompt in enumerate(prompts):
        first.setdefault(prompt, position)
    forms: dict[str, list[int]] = {}
    for prompt, position in first.items():
        forms.setdefault(plain(prompt), []).append(position)
    groups: dict[int, list[int]] = {}
    for label, positions in zip(_components(list(forms)).tolist(), forms.values(), strict=True):
        groups.setdefault(label, []).extend(positions)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def plain(prompt: str) -> str:
    """A prompt without what is no difference: case, punctuation, spaces, invisible and compatibility characters."""
    # Upper case first: that is where the dotless i meets the other, and all the ways to write a Greek iota.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", prompt).upper().casefold())
    return " ".join(folded.translate(_LETTERS).split()) or " ".join(folded.split())


class _Letters(dict[int, str]):
    """Of str.translate: punctuation, spaces and controls are spaces, format characters nothing."""

    def __missing__(self, code: int) -> str:
        kind = unicodedata.category(chr(code))
        self[code] = "" if kind == "Cf" else " " if kind[0] in "PZC" else chr(code)
        return self[code]


_LETTERS = _Letters()


def _components(texts: Sequence[str]) -> NDArray[np.int32]:
    """A number per text, the same for those of one group."""
    labels = np.arange(len(texts), dtype=np.int32)
    if not texts:
        return labels
    sets = _gram_sets(texts)
    sizes = np.diff(sets.indptr)
    for rows, columns in _candidates(sets, sizes):
        for begin in range(0, len(rows), _PAIRS):
            row, column = rows[begin : begin + _PAIRS], columns[begin : begin + _PAIRS]
            apart = labels[row] != labels[column]
            row, column = row[apart], column[apart]
            common = sets[row].multiply(sets[column]).sum(axis=1)
            union = sizes[row] + sizes[column] - common
            similar = common * SIMILARITY.denominator >= union * SIMILARITY.numerator
            edges = labels[row[similar]], labels[column[similar]]
            graph = sparse.coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(len(texts), len(texts)))
            labels = connected_components(graph, directed=False)[1][labels]
    return labels


def _gram_sets(texts: Sequence[str]) -> sparse.csr_array:
    """A row of ones per text, its columns ordered from the rarest four-gram of all texts to the most frequent."""
    counted = HashingVectorizer(
        analyzer="char_wb", ngram_range=(_GRAM, _GRAM), lowercase=False, binary=True, norm=None, alternate_sign=False
    ).transform(texts)
    by_frequency = np.argsort(np.bincount(counted.indices, minlength=counted.shape[1]), kind="stable")
    place = np.empty(counted.shape[1], np.int32)
    place[by_frequency] = np.arange(counted.shape[1])
    ones = np.ones(counted.nnz, np.int32)
    sets = sparse.csr_array((ones, place[counted.indices], counted.indptr), shape=counted.shape)
    sets.sort_indices()
    return sets


def _candidates(sets: sparse.csr_array, sizes: _Indices) -> Iterator[tuple[_Indices, _Indices]]:
    """Pairs of rows that may be similar, each once: those whose rarest parts have enough in common."""
    needed = -(-sizes * SIMILARITY.numerator // SIMILARITY.denominator)
    in_common = np.minimum(needed, _IN_COMMON)
    lengths = sizes - needed + in_common
    rare = np.arange(sets.nnz) - np.repeat(sets.indptr[:-1], sizes) < np.repeat(lengths, sizes)
    columns, ends = sets.indices[rare], np.concatenate([[0], np.cumsum(lengths)])
    parts = sparse.csr_array((np.ones(len(columns), np.int32), columns, ends), shape=sets.shape)
    transposed = parts.T.tocsr()
    work = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=sets.shape[1])[columns])])[ends[1:]]
    borders = [0, *(np.flatnonzero(np.diff(work // _BLOCK)) + 1).tolist(), len(sizes)]
    for begin, end in pairwise(borders):
        product = (parts[begin:end] @ transposed).tocoo()
        row, column = product.row + begin, product.col
        enough = (row < column) & (product.data >= np.minimum(in_common[row], in_common[column]))
        yield row[enough], column[enough]
