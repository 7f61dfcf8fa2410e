"""BPE-dropout: the same text cut in other ways, so that a model in training sees how words are made.

A model that always meets `soundboard` as one token learns nothing of `sound` and `board` from it. BPE-dropout
(Provilkov et al. 2020, arXiv:1910.13267, algorithm 1) leaves merges out at random while encoding. Before each join,
every merge that could be made now, at every place, is dropped with probability p; of those that are left the earliest
learned is made; when none is left, the piece is done:

    p = 0    every merge is made: the usual ids        sound·board
    p = 0.1  the paper's choice                        sou·nd·board
    p = 1    none is made: bytes                       s·o·u·n·d·b·o·a·r·d

Decoded, all of them are the text. Use it for training only, with a new seed for each pass over the text.

`drop_by_the_book` asks the coin for one merge after the other in order of rank and stops at the first that stays: what
becomes of the later ones does not matter, so the outcome has the same distribution as throwing all coins first. The
fast path does the same with the candidates in a heap: what is dropped is laid aside and put back after the join. Both
throw the same coins (SplitMix64; Steele et al. 2014), so they give the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from luthier.tokenizers.pretokenize import boundaries

__all__ = ["Dropout", "coins", "drop_by_the_book"]

Ids = npt.NDArray[np.int32]


def drop_by_the_book(
    piece: bytes,
    ranks: Mapping[tuple[int, int], tuple[int, int]],
    byte_ids: Sequence[int],
    dropped: Callable[[], bool],
) -> list[int]:
    """The ids of one piece: `ranks` maps a pair of ids to (rank, id of the joined token); `dropped` throws a coin."""
    ids = [byte_ids[b] for b in piece]
    while True:
        candidates = sorted((*ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks)
        kept = next((candidate for candidate in candidates if not dropped()), None)
        if kept is None:
            return ids
        _, new, i = kept
        ids[i : i + 2] = [new]


def coins(dropout: float, seed: int) -> Iterator[bool]:
    """True with probability `dropout`; the coins that `Dropout.encode` throws."""
    state, all_bits = seed & (1 << 64) - 1, (1 << 64) - 1
    while True:
        state = (state + 0x9E3779B97F4A7C15) & all_bits
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & all_bits
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & all_bits
        yield (z ^ z >> 31) >> 11 < dropout * 2**53


class Dropout:
    """The merges of a vocabulary: `byte_ids` [256], `merges` [M, 2] in order of rank, `joined` [M] what each makes."""

    def __init__(self, byte_ids: Ids, merges: Ids, joined: Ids) -> None:
        self._byte_ids = byte_ids
        self._pairs = np.zeros((1 << (2 * len(merges) + 2).bit_length(), 2), np.int64)
        _fill(self._pairs, merges, joined)

    def encode(self, parts: Sequence[str | int], pattern: str, dropout: float, seed: int) -> Ids:
        """Ids of stretches of text, cut into pieces by `pattern`, and of tokens between them, as they are."""
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout = {dropout}: expected a probability, 0 to 1")
        state, out = np.array([seed & (1 << 64) - 1], np.uint64), [np.empty(0, np.int32)]
        for part in parts:
            out.append(
                np.array([part], np.int32) if isinstance(part, int) else self._text(part, pattern, dropout, state)
            )
        return np.concatenate(out)

    def _text(self, text: str, pattern: str, dropout: float, state: npt.NDArray[np.uint64]) -> Ids:
        data, ends = boundaries(text, pattern)
        ids = np.empty(len(data), np.int32)
        room = np.empty((ROOM, int(np.diff(ends, prepend=0).max(initial=1))), np.int64)
        most = np.uint64(dropout * 2**53)
        return ids[: _encode(data, ends, self._byte_ids, self._pairs, most, state, room, ids)].copy()


_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)

ROOM: Final = 7  # rows of scratch, as long as the longest piece: neighbours, ranks, laid aside, three of candidates
NO_RANK: Final = 1 << 30


@_inner
def _slot(pairs, left, right):
    """The row of a pair in the hash table of (pair + 1, rank << 32 | joined), or the free one where it would go."""
    key = (np.int64(left) << 32 | np.int64(right)) + 1
    mask = np.uint64(len(pairs) - 1)
    s = ((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask
    while pairs[s, 0] != 0 and pairs[s, 0] != key:
        s = (s + np.uint64(1)) & mask
    return s


@_outer
def _fill(pairs, merges, joined):
    for k in range(len(merges)):
        s = _slot(pairs, merges[k, 0], merges[k, 1])
        pairs[s, 0] = (np.int64(merges[k, 0]) << 32 | np.int64(merges[k, 1])) + 1
        pairs[s, 1] = np.int64(k) << 32 | np.int64(joined[k])


@_inner
def _rank(pairs, left, right):
    s = _slot(pairs, left, right)
    return pairs[s, 1] >> 32 if pairs[s, 0] else np.int64(NO_RANK)


@_inner
def _dropped(most, state):
    """A coin: true in `most` of 2**53 cases."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return (z ^ z >> np.uint64(31)) >> np.uint64(11) < most


@_outer
def _encode(data, ends, byte_ids, pairs, most, state, room, out):
    """Write the ids of all pieces to `out`; returns how many."""
    o, begin = np.int64(0), np.int64(0)
    for k in range(len(ends)):
        for i in range(begin, ends[k]):
            out[o + i - begin] = byte_ids[data[i]]
        o += _join(out[o : o + ends[k] - begin], pairs, most, state, room)
        begin = ends[k]
    return o


@_inner
def _join(ids, pairs, most, state, room):
    """Join in place; returns how many ids are left. A candidate is rank << 32 | place; one whose pair has changed since
    is passed over when it comes up."""
    n = len(ids)
    after, before, rank, aside, heap = room[0], room[1], room[2], room[3], room[4:].reshape(-1)
    size, laid = np.int64(0), np.int64(0)
    for i in range(n):
        after[i], before[i] = i + 1, i - 1
        rank[i] = _rank(pairs, ids[i], ids[i + 1]) if i + 1 < n else NO_RANK
        if rank[i] < NO_RANK:
            size = _push(heap, size, rank[i] << 32 | i)
    while size:
        best = heap[0]
        size = _pop(heap, size)
        i = best & 0xFFFFFFFF
        if rank[i] != best >> 32:
            continue
        if _dropped(most, state):
            aside[laid] = best
            laid += 1
            continue
        j = after[i]
        ids[i] = pairs[_slot(pairs, ids[i], ids[j]), 1] & 0xFFFFFFFF
        rank[j] = NO_RANK
        after[i] = after[j]
        if after[i] < n:
            before[after[i]] = i
        for left in (before[i], i):
            if left >= 0:
                rank[left] = _rank(pairs, ids[left], ids[after[left]]) if after[left] < n else NO_RANK
                if rank[left] < NO_RANK:
                    size = _push(heap, size, rank[left] << 32 | left)
        for k in range(laid):
            size = _push(heap, size, aside[k])
        laid = 0
    return _close_up(ids, after)


@_inner
def _close_up(ids, after):
    i, count = np.int64(0), 0
    while i < len(ids):
        ids[count] = ids[i]
        count += 1
        i = after[i]
    return count


@_inner
def _push(heap, size, item):
    i = size
    while i and heap[(i - 1) // 2] > item:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = item
    return size + 1


@_inner
def _pop(heap, size):
    """Take the smallest away; returns the new size."""
    size -= 1
    item, i = heap[size], 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = item
    return size
