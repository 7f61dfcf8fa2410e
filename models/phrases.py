"""Phrases: pairs of words that stand together far more often than chance would have it become one word, "new_york".

    score(a, b) = (count(ab) − δ) · N / (count(a) · count(b))      Mikolov et al. 2013b (arXiv:1310.4546), eq. 6

N is the number of words of the text, as in word2phrase.c, so that a score is how many times more often than by chance;
δ = `min_count` keeps pairs of rare words apart. Pairs above `threshold` are joined from left to right, none
overlapping; a second pass over the joined text finds phrases of up to four words.

The text is an array of ids, which may be memory-mapped: it is read a block at a time, and only the counts of the
different pairs are held (16 bytes each).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["find_phrases", "join_phrases"]

BLOCK = 1 << 22


def find_phrases(
    ids: np.ndarray, offsets: np.ndarray, counts: np.ndarray, *, min_count: int = 5, threshold: float = 100.0
) -> np.ndarray:
    """The pairs to be joined, as sorted keys a · 2³² + b, of the text `ids` with documents between `offsets` and
    `counts` of each id."""
    keys, times = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for start in range(0, len(ids), BLOCK):
        pairs = _keys(ids, offsets, start, min(start + BLOCK, len(ids)))
        new, new_times = np.unique(pairs[pairs >= 0], return_counts=True)
        keys, place = np.unique(np.concatenate([keys, new]), return_inverse=True)
        times = np.bincount(place, np.concatenate([times, new_times])).astype(np.int64)
    a, b = keys >> 32, keys & 0xFFFFFFFF
    common = (counts[a] >= min_count) & (counts[b] >= min_count)
    score = (times - min_count) / counts[a].astype(float) / np.maximum(counts[b], 1) * len(ids)
    return keys[common & (score > threshold)]


def join_phrases(
    ids: np.ndarray, offsets: np.ndarray, phrases: np.ndarray, first_id: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The text block by block with phrase n of `phrases` written as the one id `first_id` + n: (its ids, the place in
    the old text of each)."""
    start = 0
    while start < len(ids):
        stop = min(start + BLOCK, len(ids))
        pairs = _keys(ids, offsets, start, stop)
        number = np.minimum(np.searchsorted(phrases, pairs), max(len(phrases) - 1, 0))
        joined = _every_other(phrases[number] == pairs) if len(phrases) else np.zeros(stop - start, bool)
        out = np.where(joined, first_id + number, ids[start:stop])
        stays = ~np.append(False, joined)[: stop - start]  # the second word of a pair is gone
        yield out[stays].astype(np.int32), np.flatnonzero(stays) + start
        start = stop + bool(joined[-1])


def _keys(ids: np.ndarray, offsets: np.ndarray, start: int, stop: int) -> np.ndarray:
    """int64 [stop − start]: the pair that each word makes with the next one; −1 for the last word of a document."""
    block = np.asarray(ids[start : stop + 1], np.int64)
    keys = np.full(stop - start, -1, np.int64)
    keys[: len(block) - 1] = block[:-1] << 32 | block[1:]
    ends = offsets[np.searchsorted(offsets, start + 1) : np.searchsorted(offsets, stop, "right")] - 1 - start
    keys[ends] = -1
    return keys


def _every_other(match: np.ndarray) -> np.ndarray:
    """Of each run of matches the first, third, fifth …: what taking from left to right without overlap takes."""
    place = np.arange(len(match))
    last_miss = np.maximum.accumulate(np.where(match, -1, place))
    return match & ((place - last_miss) % 2 == 1)
