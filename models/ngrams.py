"""Character n-grams of words, hashed into a fixed number of rows (Bojanowski et al. 2017, arXiv:1607.04606).

`where` is cut, with marks at its ends, into <wh, whe, her, ere, re>, … for n from `min_n` to `max_n`. The same hash as
fastText's puts an n-gram into one of `bucket` rows: FNV-1a of its UTF-8 bytes, each extended with its sign. A word's
vector is the mean of its own row and its n-grams' rows; a word that was never seen has only the latter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["fnv", "ngram_parts", "ngram_rows"]


def fnv(text: str) -> int:
    """32-bit FNV-1a of the UTF-8 bytes, each taken as a signed number as fastText does."""
    h = 2166136261
    for byte in text.encode():
        h = (h ^ (byte | 0xFFFFFF00 if byte > 127 else byte)) * 16777619 & 0xFFFFFFFF
    return h


def ngrams(word: str, min_n: int, max_n: int) -> list[str]:
    """The n-grams of `word` with < and > at its ends; a mark alone is none."""
    marked = f"<{word}>"
    return [
        marked[start : start + n]
        for start in range(len(marked))
        for n in range(min_n, max_n + 1)
        if start + n <= len(marked) and not (n == 1 and start in (0, len(marked) - 1))
    ]


def ngram_rows(word: str, min_n: int, max_n: int, bucket: int) -> list[int]:
    """The bucket, 0 … `bucket` − 1, of each n-gram of a word."""
    return [fnv(gram) % bucket for gram in ngrams(word, min_n, max_n)]


def ngram_parts(tokens: Sequence[str], min_n: int, max_n: int, bucket: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows int64, offsets int64 [V + 1]) of what each word is the mean of: its own row n, and its n-grams' buckets,
    which come after the words' V rows."""
    rows: list[int] = []
    offsets = [0]
    known: dict[str, int] = {}  # few n-grams are new
    for n, word in enumerate(tokens):
        rows.append(n)
        for gram in ngrams(word, min_n, max_n):
            if gram not in known:
                known[gram] = len(tokens) + fnv(gram) % bucket
            rows.append(known[gram])
        offsets.append(len(rows))
    return np.array(rows, np.int64), np.array(offsets, np.int64)
