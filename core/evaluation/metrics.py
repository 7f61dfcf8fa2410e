"""What an answer is worth, and how sure we can be of an average.

Answers are compared after the normalisation of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250, §6.1): lower case,
punctuation and articles removed, white space folded; German articles beside the English ones.

    exact match   1 if the normalised answers are equal
    F1            2PR/(P+R) over the bags of words: P the share of the answer's words that are expected, R the reverse
    fact          1 if every expected fact ("CHF 85", "14 days") stands in the answer

Rates carry Wilson's score interval (Wilson 1927), which stays inside [0, 1] and is honest at 0 of 10; averages of F1
carry a bootstrap interval (Efron 1979) over questions with a fixed seed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "bootstrap", "exact_match", "has_facts", "normalise", "token_f1", "wilson"]

ARTICLES = re.compile(r"\b(a|an|the|der|die|das|den|dem|des|ein|eine|einen|einem|einer|eines)\b")
Z_95 = 1.959963984540054


def normalise(text: str) -> str:
    """Lower case, NFKC, thousands separators, punctuation and articles removed, white space folded.

    A point or comma between digits stays (`4.5` is not `45`); `%`, `°` and currency signs are words of their own.

    >>> normalise("The set-up costs  CHF 1,200.50!")
    'set up costs chf 1200.50'
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"(?<=\d)[,'’](?=\d{3}\b)", "", text)
    text = re.sub(r"(?<!\d)[.,](?=\d)|[.,](?!\d)", " ", text)
    text = re.sub(r"[^\w\s.,%€$£°]", " ", text)
    text = re.sub(r"([%€$£°])", r" \1 ", text)
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(answer: str, expected: str) -> float:
    """1.0 if the two are equal after `normalise`, else 0.0."""
    return float(normalise(answer) == normalise(expected))


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of word precision and recall, 0 to 1; two empty answers agree."""
    ours, theirs = normalise(answer).split(), normalise(expected).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def has_facts(answer: str, facts: Sequence[str]) -> float:
    """1.0 if every fact stands in the answer as whole words, after `normalise`; facts must not be empty."""
    if not facts:
        raise ValueError("an answer without facts cannot be checked by its facts")
    text = f" {normalise(answer)} "
    return float(all(f" {normalise(fact)} " in text for fact in facts))


@dataclass(frozen=True)
class Estimate:
    """An average over `n` questions with its 95% interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.n else "–"


def wilson(scores: Sequence[float]) -> Estimate:
    """Rate of successes (scores of 0 or 1) with Wilson's score interval at 95%."""
    n = len(scores)
    if n == 0:
        return Estimate(0.0, 0.0, 0.0, 0)
    p = sum(scores) / n
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * (p * (1 - p) / n + Z_95**2 / (4 * n * n)) ** 0.5
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def bootstrap(scores: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean with the percentile bootstrap interval at 95%."""
    n = len(scores)
    if n == 0:
        return Estimate(0.0, 0.0, 0.0, 0)
    values = np.asarray(scores, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), n)
