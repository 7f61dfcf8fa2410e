"""The fast path of unigram tokenization, compiled by Numba: Viterbi over a trie, word by word, with a memory.

No piece holds a ▁ after another character (in most vocabularies), so a text's best segmentation is that of its words,
one after the other, and a word met before is found with its ids in a hash table.

Rounding is part of the result: ids are the same as sentencepiece's (0.2.3) to the last tie. It keeps the running sum of
log-probabilities in single precision and starts it afresh below -100,000, so which of two nearly equal segmentations
wins depends on where in the text they stand. A remembered word therefore has a `limit`: how large the running sum may
be before rounding could overrule the word's lead over its second-best segmentation. Beyond, the word is segmented anew,
from the running sum and in the same arithmetic.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from luthier.tokenizers.unigram_trie import BASE, CHECK, VALUE, Model

__all__ = ["Encoder"]

Ids = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class Encoder:
    """A vocabulary and the words met so far. `cut` 2: text falls into words before every ▁, 1: before a ▁ after another
    character, 0: it does not."""

    def __init__(self, model: Model, cut: int) -> None:
        self.model, self.cut = model, cut
        self._desks: list[tuple[_Words, _Room]] = []  # borrowed by one thread at a time

    def encode(self, data: Bytes, starts: Longs) -> tuple[Ids, Longs]:
        """Ids of all texts, one after the other, and where each starts among them. Text i is the normalized UTF-8
        data[starts[i] : starts[i + 1]]. Any number of threads may call it."""
        ids, offsets, unknown = self.best(data, starts)
        return self.finish(data, starts, ids, offsets)[:2] if unknown else (ids, offsets)

    def best(self, data: Bytes, starts: Longs) -> tuple[Ids, Longs, int]:
        """The same with an id for each unknown character, and the number of words that have any."""
        ids, offsets = np.empty(len(data) + 4, np.int32), np.zeros(len(starts), np.int64)
        try:
            words, room = self._desks.pop()
        except IndexError:
            words, room = _words(), _room(1 << 12)
        desk = words, room if len(room.start) > len(data) else _room(len(data))
        unknown = _encode(data, starts, *self.model, *words, *desk[1], self.cut, ids, offsets)
        self._desks.append((words, room))
        count = offsets[-1]
        return ids[:count].copy() if 2 * count < len(ids) else ids[:count], offsets, unknown

    def finish(self, data: Bytes, starts: Longs, ids: Ids, offsets: Longs) -> tuple[Ids, Longs, Longs]:
        """Runs of unknown characters as one id, or their bytes' ids; where each text starts among the ids, and where
        each id ends in `data`."""
        finished, ends, firsts = np.empty(len(data), np.int32), np.empty(len(data), np.int64), np.zeros_like(offsets)
        count = _finish(data, starts, ids, offsets, *self.model, finished, ends, firsts)
        return finished[:count].copy(), firsts, ends[:count]

    def forget(self) -> None:
        """Empty the cache of words met before."""
        self._desks.clear()


# No compiled function makes an array, so Numba need not count references; only outer ones are called from Python.
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)

AFRESH: Final = np.float32(-100_000)  # a running sum below this starts again at 0
SHORT: Final = 64  # bytes; longer words are not remembered
CACHE_WORDS: Final = 1 << 17  # words that a thread remembers, 12 MB when full; then it starts afresh
HASH: Final = np.uint64(0xFFFFFFFF00000000)  # the part of a slot that is hash


class _Room(NamedTuple):
    """Viterbi's scratch: for each place of a word the best way's score, the second best, and the best way's last piece:
    where it starts (-1: no way yet) and its id."""

    score: npt.NDArray[np.float32]
    second: npt.NDArray[np.float32]
    start: Ids
    ids: Ids


class _Words(NamedTuple):
    """Words met before. `slots`: upper half of the hash, and where the word's record is (0: free). A record is its
    limit, its score, bytes << 16 | unknown << 15 | number of ids, ids, letters; `floats` and `letters` are views of the
    same memory as other types. `used` [2]: words, and numbers in records."""

    slots: npt.NDArray[np.uint64]
    records: Ids
    floats: npt.NDArray[np.float32]
    letters: Bytes
    used: Longs


def _room(n: int) -> _Room:
    scores = np.empty((2, n + 1), np.float32)
    return _Room(scores[0], scores[1], np.empty(n + 1, np.int32), np.empty(n + 1, np.int32))


def _words() -> _Words:
    records = np.empty(16 * CACHE_WORDS, np.int32)
    return _Words(
        np.zeros(4 * CACHE_WORDS, np.uint64),
        records,
        records.view(np.float32),
        records.view(np.uint8),
        np.array([0, 1], np.int64),
    )


# ---------------------------------------------------------------- Viterbi


@_inner
def _character(byte):
    """Bytes of the UTF-8 character that starts with `byte`."""
    return 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


@_inner
def _offer(room, i, j, piece, gain):
    """A way to place j through i; the first of equals stays."""
    score, second = room.score[i] + gain, room.second[i] + gain
    if room.start[j] < 0:
        room.second[j] = second
    elif score > room.score[j]:
        room.second[j] = max(room.score[j], second)
    else:
        room.second[j] = max(room.second[j], score)
        return
    room.score[j], room.start[j], room.ids[j] = score, i, piece


@_inner
def _viterbi(data, begin, end, running, model, room):
    """Find the best way to every place of data[begin:end], starting from the sum `running`; returns its lead over the
    second best."""
    n, unknown = end - begin, model.facts[0]
    room.score[0], room.second[0] = running, -np.inf
    for j in range(1, n + 1):
        room.start[j] = -1
    i = 0
    while i < n:
        if room.score[i] < AFRESH:
            _start_afresh(room, i, min(n, i + model.facts[1]))
        size, single = min(_character(data[begin + i]), n - i), False
        node, j = np.int64(0), i
        while j < n:
            child = np.int64(model.trie[node, BASE]) + data[begin + j]
            if model.trie[child, CHECK] != node:
                break
            node, j = child, j + 1
            piece = model.trie[node, VALUE]
            if piece >= 0:
                _offer(room, i, j, piece, model.weights[piece])
                single |= j - i == size
        if not single:
            _offer(room, i, i + size, unknown, model.weights[unknown])
        i += size
    return room.score[n] - room.second[n]


@_inner
def _start_afresh(room, i, last):
    """Take the score of place i from all scores from there on."""
    score = room.score[i]
    room.score[i], room.second[i] = 0, room.second[i] - score
    for j in range(i + 1, last + 1):
        if room.start[j] >= 0:
            room.score[j] -= score
            room.second[j] -= score


@_inner
def _trace(room, n, out, o):
    """Write the ids of the best way to place n to out[o:]; returns where they end."""
    count, j = 0, n
    while j > 0:
        count, j = count + 1, room.start[j]
    j = n
    for k in range(o + count - 1, o - 1, -1):
        out[k] = room.ids[j]
        j = room.start[j]
    return o + count


@_inner
def _is_space(data, i):
    return data[i] == 0xE2 and i + 2 < len(data) and data[i + 1] == 0x96 and data[i + 2] == 0x81


@_inner
def _cuts(data, i, begin, cut):
    """Whether a ▁ at place i starts a word, after the word that starts at `begin`."""
    return _is_space(data, i) and (cut == 2 or (cut == 1 and not (i - 3 >= begin and _is_space(data, i - 3))))


@_inner
def _word(data, begin, limit, cut):
    """The end of the word that starts at `begin`, `limit` at most, and its hash."""
    h = np.uint64(14695981039346656037)  # FNV-1a, over all but a ▁ in front
    end = begin + 3 if limit - begin >= 3 and _is_space(data, begin) else begin
    while end < limit and (data[end] != 0xE2 or end == begin or not _cuts(data, end, begin, cut)):
        h = (h ^ np.uint64(data[end])) * np.uint64(1099511628211)
        end += 1
    return end, h ^ h << np.uint64(32)


@_outer
def _encode(
    data,
    starts,
    trie,
    weights,
    lengths,
    byte_ids,
    facts,
    slots,
    records,
    floats,
    letters,
    used,
    score,
    second,
    start,
    ids,
    cut,
    out,
    offsets,
):
    """Write the best segmentations into `out` and where each ends there into offsets[1:]; returns how many words hold
    unknown characters. Arrays come one by one because Numba unpacks tuples slowly.

    `about` is the running sum but for rounding, enough to compare with a limit; the exact one, `running`, is of the
    first `summed` ids and catches up when it is needed."""
    model, words = Model(trie, weights, lengths, byte_ids, facts), _Words(slots, records, floats, letters, used)
    room = _Room(score, second, start, ids)
    o, begin, unknown = np.int64(0), np.int64(0), 0
    for t in range(len(starts) - 1):
        running, about, summed = np.float32(0), np.float32(0), o
        while begin < starts[t + 1]:
            end, h = _word(data, begin, starts[t + 1], cut)
            record = _find(words, h, data, begin, end, model, room) if end - begin <= SHORT else np.int64(0)
            if record and -about < floats[record]:
                about += floats[record + 1]
                info = records[record + 2]
                unknown += info >> 15 & 1
                for k in range(4):  # nearly always all of them
                    out[o + k] = records[record + 3 + k]
                for k in range(4, info & 0x7FFF):
                    out[o + k] = records[record + 3 + k]
                o += info & 0x7FFF
            else:
                for k in range(summed, o):
                    running += weights[out[k]]
                running = np.float32(0) if running < AFRESH else running
                _viterbi(data, begin, end, running, model, room)
                first, o = o, _trace(room, end - begin, out, o)
                unknown += _count(out, first, o, facts[0])
                running, about, summed = room.score[end - begin], room.score[end - begin], o
            begin = end
        offsets[t + 1] = o
    return unknown


@_inner
def _count(ids, first, last, unknown):
    count = 0
    for k in range(first, last):
        count += ids[k] == unknown
    return count


@_outer
def _finish(data, starts, ids, offsets, trie, weights, lengths, byte_ids, facts, out, ends, firsts):
    """Join runs of unknown characters, or spell them in bytes; writes ids, their ends, and where each text's end into
    firsts[1:]; returns how many."""
    unknown, count, place = facts[0], 0, np.int64(0)
    for t in range(len(starts) - 1):
        before = np.int64(-1)
        for k in range(offsets[t], offsets[t + 1]):
            piece = np.int64(ids[k])
            size = np.int64(lengths[piece])
            if piece == unknown:
                size = min(_character(data[place]), len(data) - place)
            if piece == unknown and len(byte_ids):
                for i in range(size):
                    out[count], ends[count] = byte_ids[data[place + i]], place + i + 1
                    count += 1
            else:
                count += 0 if piece == unknown and before == unknown else 1
                out[count - 1], ends[count - 1] = piece, place + size
            place, before = place + size, piece
        firsts[t + 1] = count
    return count


# ---------------------------------------------------------------- words met before


@_inner
def _slot(words, h, data, begin, end):
    """The slot of a word, or the free one where it would go."""
    mask, size = np.uint64(len(words.slots) - 1), end - begin
    s = (h >> np.uint64(12)) & mask
    while words.slots[s]:
        record = np.int64(words.slots[s] & ~HASH)
        info = words.records[record + 2]
        if words.slots[s] & HASH == h & HASH and info >> 16 == size:
            place, i = 4 * (record + 3 + (info & 0x7FFF)), 0
            while i < size and words.letters[place + i] == data[begin + i]:
                i += 1
            if i == size:
                break
        s = (s + np.uint64(1)) & mask
    return s


@_inner
def _find(words, h, data, begin, end, model, room):
    """The record of a word, made if it was not met before."""
    s = _slot(words, h, data, begin, end)
    if words.slots[s]:
        return np.int64(words.slots[s] & ~HASH)
    size = end - begin
    if words.used[0] >= CACHE_WORDS or words.used[1] + 7 + 2 * SHORT > len(words.records):
        words.slots[:] = 0
        words.used[0], words.used[1] = 0, 1
        s = _slot(words, h, data, begin, end)
    record = words.used[1]
    lead = _viterbi(data, begin, end, np.float32(0), model, room)
    count = _trace(room, size, words.records, record + 3) - (record + 3)
    unknown = _count(words.records, record + 3, record + 3 + count, model.facts[0])
    words.floats[record] = min(lead / size * np.float32(2.0**20), -AFRESH) + 2 * room.score[size] - 100
    words.floats[record + 1] = room.score[size]
    words.records[record + 2] = size << 16 | min(unknown, 1) << 15 | count
    for i in range(size):
        words.letters[4 * (record + 3 + count) + i] = data[begin + i]
    words.used[0] += 1
    words.used[1] = record + 3 + count + (size + 3) // 4
    words.slots[s] = (h & HASH) | np.uint64(record)
    return record
