"""Segmentations other than the best one: drawn by chance, or listed.

A text's lattice has a node at every place between two characters and an edge for every piece found there; a way from
the start to the end is a segmentation, and its score the sum of its edges'. `sample` draws a way with probability
proportional to exp(alpha · score) by forward filtering and backward sampling (Scott 2002), here from right to left:
summing over the pieces that start at i,

    total(i) = sum of exp(alpha · score) · total(j),      total(end) = 1

is the weight of all ways from i to the end, and walking from the start, the piece to take is drawn by its share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from luthier.tokenizers.unigram_trie import BASE, CHECK, VALUE, Model

__all__ = ["lattice", "sample"]

Ids = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


def sample(data: Bytes, model: Model, alpha: float, generator: np.random.Generator) -> Ids:
    """Ids of a segmentation of normalized UTF-8 text, each unknown character by itself."""
    ids = np.empty(len(data), np.int32)
    count = _sample(data, *model, alpha, np.empty(len(data) + 1), generator.random(len(data)), ids)
    return ids[:count]


def lattice(data: Bytes, model: Model) -> tuple[list[float], list[list[tuple[int, int, float]]]]:
    """For each place in the text the score of the best way to it, and the pieces that end there: (start, id, score)."""
    edges = np.empty((_edges(data, *model, np.empty((0, 3), np.int64)), 3), np.int64)
    _edges(data, *model, edges)
    best: list[float] = [0.0] + [-np.inf] * len(data)
    ends: list[list[tuple[int, int, float]]] = [[] for _ in best]
    for i, j, piece in edges.tolist():  # in order of i, so best[i] is final
        gain = float(model.weights[piece])
        ends[j].append((i, piece, gain))
        best[j] = max(best[j], best[i] + gain)
    return best, ends


_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)


@_inner
def _character(byte):
    """Bytes of the UTF-8 character that starts with `byte`."""
    return 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


@_inner
def _next(data, trie, facts, i, node, j, single):
    """The next piece that starts at place i, after following the trie to `node` at place j: (node, its end, id, whether
    a piece of one character was met). Where there is none of one character an unknown one ends the list, and id -1
    says that there are no more."""
    size = min(_character(data[i]), len(data) - i)
    while j < len(data) and node >= 0:
        child = np.int64(trie[node, BASE]) + data[j]
        if trie[child, CHECK] != node:
            break
        node, j = child, j + 1
        if trie[node, VALUE] >= 0:
            return node, j, np.int64(trie[node, VALUE]), single or j - i == size
    if single:
        return np.int64(-1), j, np.int64(-1), True
    return np.int64(-1), i + size, facts[0], True


@_outer
def _edges(data, trie, weights, lengths, byte_ids, facts, edges):
    """Write every piece found in `data` as (start, end, id), in order of starts, as far as there is room; returns how
    many there are."""
    count, i = np.int64(0), np.int64(0)
    while i < len(data):
        node, j, piece, single = _next(data, trie, facts, i, np.int64(0), i, False)
        while piece >= 0:
            if count < len(edges):
                edges[count, 0], edges[count, 1], edges[count, 2] = i, j, piece
            count += 1
            node, j, piece, single = _next(data, trie, facts, i, node, j, single)
        i += min(_character(data[i]), len(data) - i)
    return count


@_outer
def _sample(data, trie, weights, lengths, byte_ids, facts, alpha, total, draws, out):
    """Draw a segmentation into `out`; returns the number of ids. `total` [places] becomes the logarithm of the weight
    of all ways from each place to the end; `draws` numbers in [0, 1)."""
    n = len(data)
    total[n] = 0.0
    for i in range(n - 1, -1, -1):
        if data[i] & 0xC0 == 0x80:
            continue
        most, mass = -np.inf, 0.0
        node, j, piece, single = _next(data, trie, facts, i, np.int64(0), i, False)
        while piece >= 0:
            value = alpha * np.float64(weights[piece]) + total[j]
            if value > most:
                most, mass = value, mass * np.exp(most - value) + 1.0
            else:
                mass += np.exp(value - most)
            node, j, piece, single = _next(data, trie, facts, i, node, j, single)
        total[i] = most + np.log(mass)
    i, count = np.int64(0), 0
    while i < n:
        left = draws[count]
        node, j, piece, single = _next(data, trie, facts, i, np.int64(0), i, False)
        while piece >= 0:
            out[count], end = np.int32(piece), j
            left -= np.exp(alpha * np.float64(weights[piece]) + total[j] - total[i])
            if left < 0:
                break
            node, j, piece, single = _next(data, trie, facts, i, node, j, single)
        count, i = count + 1, end
    return count
