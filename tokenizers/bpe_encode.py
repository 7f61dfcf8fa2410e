"""The fast path of byte-level BPE: compiled by Numba, the same ids as `encode_by_the_book` in bpe.py.

cache   text repeats itself: most pieces are found, with their ids, in a hash table of pieces met before
scan    a new piece of up to 64 bytes: look for the best pair again after each join
heap    a longer one: candidates (rank, place) in a heap, neighbours in a linked list, so n log n steps; a megabyte
        of one letter takes a second, not a day
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from luthier.tokenizers.pretokenize import boundaries

__all__ = ["Encoder"]

Ids = npt.NDArray[np.int32]


class Encoder:
    """The tables that encoding needs, and the pieces met so far.

    `ids` bytes → id of every token that text can become; `merges` [M, 2] in order of rank and `joined` [M] the id each
    makes; `whole_pieces`: a piece that is a token is taken whole, whatever the merges say.
    """

    def __init__(self, ids: Mapping[bytes, int], merges: Ids, joined: Ids, *, whole_pieces: bool) -> None:
        self.byte_ids = np.array([ids.get(bytes([b]), -1) for b in range(256)], np.int32)
        slots = 1 << (2 * len(merges) + 2).bit_length()
        self._pairs = _Pairs(self.byte_ids, np.zeros(slots, np.int64), np.zeros(slots, np.int64))
        _fill_pairs(self._pairs, merges, joined)
        self._whole = _words(1, 0, 0)
        if whole_pieces:
            self._whole = _words(len(ids), sum(map(len, ids)), len(ids))
            ends = np.cumsum([len(token) for token in ids], dtype=np.int64)
            _fill_words(
                self._whole, np.frombuffer(b"".join(ids), np.uint8), ends, np.array(list(ids.values()), np.int32)
            )
        self._caches: list[_Words] = []  # borrowed by one thread at a time

    def encode(self, text: str, pattern: str) -> Ids:
        """Ids of `text`, cut into pieces by `pattern`. Any number of threads may call it."""
        data, ends = boundaries(text, pattern)
        ids = np.empty(len(data), np.int32)
        try:
            cache = self._caches.pop()
        except IndexError:
            cache = _words(CACHE_PIECES, CACHE_PIECES * 16, CACHE_PIECES * 4)
        room = np.empty((6, _longest(ends)), np.int64)
        count = _encode(data, ends, self._pairs, self._whole, cache, room, ids)
        self._caches.append(cache)
        return ids[:count].copy() if 2 * count < len(ids) else ids[:count]

    def forget(self) -> None:
        """Empty the cache of pieces met before; ids do not change."""
        self._caches.clear()


# No function below makes an array, so Numba need not count references; only outer ones are called from Python.
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)

CACHE_PIECES: Final = 1 << 17  # pieces that a thread remembers, 16 MB when full; then it starts afresh
SHORT: Final = 64  # bytes; longer pieces go through the heap and are not remembered


class _Pairs(NamedTuple):
    """What can be joined. Hash table with open addressing: `keys` (left << 32 | right) + 1, 0 where free; `values`
    rank << 32 | id of the joined token, so that the smaller value is the earlier merge."""

    byte_ids: Ids
    keys: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]


class _Words(NamedTuple):
    """Pieces and their ids. Hash table whose slots hold what a look-up needs side by side, in one line of the
    processor's cache: hash with the lowest bit set (0 where free), place in `letters`, place in `ids`, bytes << 32 |
    number of ids. `used` is how many pieces, letters and ids there are."""

    slots: npt.NDArray[np.uint64]  # [slots, 4]
    letters: npt.NDArray[np.uint8]
    ids: Ids
    used: npt.NDArray[np.int64]
    pieces: npt.NDArray[np.int64]  # [1]: how many pieces fit


def _words(pieces: int, letters: int, ids: int) -> _Words:
    """An empty table with room for so many pieces, letters and ids in all."""
    return _Words(
        np.zeros((1 << (2 * pieces).bit_length(), 4), np.uint64),
        np.empty(letters, np.uint8),
        np.empty(ids, np.int32),
        np.zeros(3, np.int64),
        np.array([pieces], np.int64),
    )


@_inner
def _pair_slot(pairs, left, right):
    """The slot of a pair, or the free one where it would go."""
    key = (np.int64(left) << 32 | np.int64(right)) + 1
    mask = np.uint64(len(pairs.keys) - 1)
    s = ((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask
    while pairs.keys[s] != 0 and pairs.keys[s] != key:
        s = (s + np.uint64(1)) & mask
    return s


@_inner
def _value(pairs, left, right):
    """rank << 32 | id of the joined token; larger than any where the pair has no merge."""
    s = _pair_slot(pairs, left, right)
    return pairs.values[s] if pairs.keys[s] else np.int64(1 << 62)


@_outer
def _fill_pairs(pairs, merges, joined):
    for k in range(len(merges)):
        s = _pair_slot(pairs, merges[k, 0], merges[k, 1])
        pairs.keys[s] = (np.int64(merges[k, 0]) << 32 | np.int64(merges[k, 1])) + 1
        pairs.values[s] = np.int64(k) << 32 | np.int64(joined[k])


@_inner
def _hash(data, begin, end):
    h = np.uint64(14695981039346656037)  # FNV-1a
    for i in range(begin, end):
        h = (h ^ np.uint64(data[i])) * np.uint64(1099511628211)
    return (h ^ h >> np.uint64(32)) | np.uint64(1)


@_inner
def _word_slot(words, h, data, begin, end):
    """The slot of a piece, or the free one where it would go."""
    mask = np.uint64(len(words.slots) - 1)
    s = (h >> np.uint64(1)) & mask
    while words.slots[s, 0]:
        if words.slots[s, 0] == h and np.int64(words.slots[s, 3] >> np.uint64(32)) == end - begin:
            start, i = words.slots[s, 1], np.uint64(begin)
            while i < np.uint64(end) and words.letters[start] == data[i]:
                start, i = start + np.uint64(1), i + np.uint64(1)
            if i == np.uint64(end):
                break
        s = (s + np.uint64(1)) & mask
    return s


@_inner
def _copy_ids(words, s, out, o):
    """Write the ids of the piece in slot s to out[o:]; returns where they end."""
    first = words.slots[s, 2]
    for i in range(np.int64(words.slots[s, 3] & np.uint64(0xFFFFFFFF))):
        out[o] = words.ids[first + np.uint64(i)]
        o += 1
    return o


@_inner
def _remember(words, s, h, data, begin, end, ids, first, last):
    """Put a piece and its ids, ids[first:last], into the free slot s. A full table is emptied first."""
    size, count = end - begin, last - first
    if (
        words.used[0] >= words.pieces[0]
        or words.used[1] + size > len(words.letters)
        or words.used[2] + count > len(words.ids)
    ):
        words.slots[:] = 0
        words.used[:] = 0
        s = _word_slot(words, h, data, begin, end)
    letter, place = words.used[1], words.used[2]
    for i in range(size):
        words.letters[letter + i] = data[begin + i]
    for i in range(count):
        words.ids[place + i] = ids[first + i]
    words.slots[s, 0], words.slots[s, 1], words.slots[s, 2] = h, letter, place
    words.slots[s, 3] = size << 32 | count
    words.used[0] += 1
    words.used[1] += size
    words.used[2] += count


@_outer
def _fill_words(words, letters, ends, ids):
    begin = np.int64(0)
    for k in range(len(ends)):
        h = _hash(letters, begin, ends[k])
        s = _word_slot(words, h, letters, begin, ends[k])
        _remember(words, s, h, letters, begin, ends[k], ids, k, k + 1)
        begin = ends[k]


@_outer
def _longest(ends):
    """Bytes of the longest piece, at least SHORT."""
    longest, begin = SHORT, 0
    for k in range(len(ends)):
        longest = max(longest, ends[k] - begin)
        begin = ends[k]
    return longest


@_outer
def _encode(data, ends, pairs, whole, cache, room, out):
    """Write the ids of all pieces into `out`; returns how many. `room` [6, longest piece] is scratch."""
    o, begin = np.int64(0), np.int64(0)
    for k in range(len(ends)):
        end = ends[k]
        if end - begin == 1:
            out[o] = pairs.byte_ids[data[begin]]
            o += 1
        elif end - begin > SHORT:
            o = _whole_or_joined(data, begin, end, pairs, whole, room, out, o)
        else:
            h = _hash(data, begin, end)
            s = _word_slot(cache, h, data, begin, end)
            if cache.slots[s, 0]:
                o = _copy_ids(cache, s, out, o)
            else:
                first = o
                o = _whole_or_joined(data, begin, end, pairs, whole, room, out, o)
                _remember(cache, s, h, data, begin, end, out, first, o)
        begin = end
    return o


@_inner
def _whole_or_joined(data, begin, end, pairs, whole, room, out, o):
    """Ids of one piece into out[o:]; returns where they end."""
    if whole.used[0]:
        s = _word_slot(whole, _hash(data, begin, end), data, begin, end)
        if whole.slots[s, 0]:
            return _copy_ids(whole, s, out, o)
    for i in range(end - begin):
        out[o + i] = pairs.byte_ids[data[begin + i]]
    ids = out[o : o + end - begin]
    return o + (_scan(ids, pairs, room[0]) if end - begin <= SHORT else _heap(ids, pairs, room))


@_inner
def _scan(ids, pairs, values):
    """Join in place; returns how many ids are left. values[i] is what _value says of ids[i], ids[i + 1]."""
    n = len(ids)
    for i in range(n - 1):
        values[i] = _value(pairs, ids[i], ids[i + 1])
    while n > 1:
        best = 0
        for i in range(1, n - 1):
            if values[i] < values[best]:
                best = i
        if values[best] == 1 << 62:
            break
        ids[best] = values[best] & 0xFFFFFFFF
        n -= 1
        for i in range(best + 1, n):
            ids[i] = ids[i + 1]
            values[i - 1] = values[i]
        if best:
            values[best - 1] = _value(pairs, ids[best - 1], ids[best])
        if best < n - 1:
            values[best] = _value(pairs, ids[best], ids[best + 1])
    return n


@_inner
def _heap(ids, pairs, room):
    """The same through a heap of rank << 32 | place. A candidate whose pair has changed since is dropped when it comes
    up: joining changed the rank at its place or took the place away."""
    n = len(ids)
    after, before, rank, heap = room[0], room[1], room[2], room[3:].reshape(-1)  # a join adds at most two to the heap
    size = np.int64(0)
    for i in range(n):
        after[i], before[i] = i + 1, i - 1
        rank[i] = _value(pairs, ids[i], ids[i + 1]) >> 32 if i + 1 < n else 1 << 30  # 1 << 30: no pair starts here
        if rank[i] < 1 << 30:
            heap[size] = rank[i] << 32 | i
            size += 1
    for i in range(size // 2, -1, -1):
        _sink(heap, i, size)
    while size:
        top, i = heap[0] >> 32, heap[0] & 0xFFFFFFFF
        size -= 1
        heap[0] = heap[size]
        _sink(heap, np.int64(0), size)
        if top != rank[i]:
            continue
        j = after[i]
        ids[i] = _value(pairs, ids[i], ids[j]) & 0xFFFFFFFF
        rank[j] = 1 << 30
        after[i] = after[j]
        if after[i] < n:
            before[after[i]] = i
        for left in (before[i], i):
            if left >= 0:
                rank[left] = 1 << 30
                if after[left] < n:
                    rank[left] = _value(pairs, ids[left], ids[after[left]]) >> 32
                if rank[left] < 1 << 30:
                    size = _push(heap, size, rank[left] << 32 | left)
    i, count = np.int64(0), 0
    while i < n:
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
def _sink(heap, i, size):
    item = heap[i]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = item
