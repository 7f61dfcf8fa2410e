"""A vector for a sentence from the vectors of its words: smooth inverse frequency (Arora, Liang & Ma 2017).

    v(s) = 1/|s| Σ_{w∈s} a / (a + p(w)) · v(w)          a = 1e-3, p(w) the word's share of the counts
    v(s) ← v(s) − u uᵀ v(s)                             u the first right singular vector of all sentences' rows
    v(s) ← v(s) / ‖v(s)‖                                so that a dot product is the cosine

Frequent words count little, and u takes out what all sentences have in common (mostly grammar). A weighted average and
one projection are hard to beat for similarity at this size, and exact search is one matrix product a block of rows.

    N sentences, V words or tokens, D dimensions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["A", "Sif", "fit_sif"]

A = 1e-3


@dataclass(frozen=True)
class Sif:
    """Vectors of words `words_VD`, already weighted, and the common direction `common_D`."""

    words_VD: np.ndarray
    common_D: np.ndarray

    def encode(self, sentences: Sequence[np.ndarray]) -> np.ndarray:
        """Unit rows [N, D] float32 for sentences given as row numbers of words; a sentence without words is zero."""
        rows_ND = _average(self.words_VD, sentences)
        rows_ND -= np.outer(rows_ND @ self.common_D, self.common_D)
        return _unit(rows_ND)


def fit_sif(vectors_VD: np.ndarray, counts_V: np.ndarray, sentences: Sequence[np.ndarray]) -> Sif:
    """Weigh the words by their counts and find what all `sentences` have in common."""
    share_V = counts_V / max(1.0, float(counts_V.sum()))
    words_VD = (vectors_VD * (A / (A + share_V))[:, None]).astype(np.float32)
    rows_ND = _average(words_VD, sentences)
    if not len(rows_ND):
        return Sif(words_VD, np.zeros(words_VD.shape[1], np.float32))
    # The first right singular vector of [N, D] is the first eigenvector of the small [D, D] product.
    common_D = np.linalg.eigh(rows_ND.T.astype(np.float64) @ rows_ND)[1][:, -1].astype(np.float32)
    return Sif(words_VD, common_D)


def _average(words_VD: np.ndarray, sentences: Sequence[np.ndarray]) -> np.ndarray:
    rows_ND = np.zeros((len(sentences), words_VD.shape[1]), np.float32)
    for row_D, words in zip(rows_ND, sentences, strict=True):
        if len(words):
            row_D[:] = words_VD[words].mean(axis=0)
    return rows_ND


def _unit(rows_ND: np.ndarray) -> np.ndarray:
    norms_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return rows_ND / np.where(norms_N1 > 1e-6, norms_N1, 1.0)
