"""The fast path of unigram tokenization, compiled by Numba: Viterbi over a trie, word by word, with a memory.

trie    pieces as a double array: the child of node n for byte c is slot base[n] + c, if its `check` says n, so a step
        is one look at one line of memory (Aoki, Morimoto & Sato 1989)
words   no piece holds a ▁ after another character (in most vocabularies), so a text's best segmentation is that of its
        words, one after the other, and a word met before is found with its ids in a hash table

Rounding is part of the result: ids are the same as sentencepiece's (0.2.3) to the last tie. It keeps the running sum of
log-probabilities in single precision and starts it afresh below -100,000, so which of two nearly equal segmentations
wins depends on where in the text they stand. A remembered word therefore has a `limit`: how large the running sum may
be before rounding could overrule the word's lead over its second-best segmentation. Beyond, the word is segmented anew,
from the running sum and in the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["Encoder"]

Ids = npt.NDArray[np.int32]


class Encoder:
    """The trie, the scores and the words met so far.

    `spellings` UTF-8 → id of every piece that text can become; `weights` [V] the score of each id; `unknown` that of a
    character without a piece, whose id is `unk_id`; `byte_ids` byte → id, or empty; `cut` 2: text falls into words
    before every ▁, 1: before a ▁ after another character, 0: it does not.
    """

    def __init__(
        self,
        spellings: Mapping[bytes, int],
        weights: npt.NDArray[np.float32],
        unknown: float,
        byte_ids: Ids,
        unk_id: int,
        cut: int,
    ) -> None:
        weights = weights.copy()
        weights[unk_id] = unknown
        special = np.array([unk_id, max(map(len, spellings), default=1)])
        self.model = _Model(_trie(spellings), weights, _lengths(spellings, len(weights)), byte_ids, special)
        self.cut = cut
        self._caches: list[_Words] = []  # borrowed by one thread at a time

    def encode(self, text: str) -> Ids:
        """Ids of normalized text. Any number of threads may call it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of all texts, one after the other, and where each text starts among them."""
        encoded = [text.encode("utf-8") for text in texts]
        data = np.frombuffer(b"".join(encoded), np.uint8)
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        ids, offsets, unknown = self._best(data, ends)
        if unknown:
            parts = [
                self._finished(data[begin:end], ids[first:last])[0]
                for begin, end, first, last in zip(
                    [0, *ends.tolist()], ends.tolist(), offsets.tolist(), offsets[1:].tolist(), strict=False
                )
            ]
            np.cumsum([len(part) for part in parts], out=offsets[1:])
            ids = np.concatenate(parts)
        return ids, offsets

    def encode_with_ends(self, text: str) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The same, and where each token ends, in characters; one that ends inside a character ends with it."""
        data = _utf8(text)
        ids, ends = self._finished(data, self._best(data)[0])
        characters = np.cumsum((data & 0xC0) != 0x80)
        return ids, characters[ends - 1]

    def score(self, text: str) -> float:
        """Sum of the scores of the best segmentation."""
        return float(self.model.weights[self._best(_utf8(text))[0]].sum(dtype=np.float64))

    def sample(self, text: str, alpha: float, generator: np.random.Generator) -> Ids:
        """Ids of a segmentation drawn in proportion to the exponential of alpha times its score."""
        data = _utf8(text)
        ids = np.empty(len(data), np.int32)
        count = _sample(data, self.model, alpha, np.empty(len(data) + 1), generator.random(len(data)), ids)
        return self._finished(data, ids[:count])[0]

    def lattice(self, text: str) -> tuple[list[float], list[list[tuple[int, int, float]]]]:
        """For each place in the UTF-8 text, the score of the best way to it, and the pieces that end there as (start,
        id, score)."""
        data = _utf8(text)
        edges = np.empty((_edges(data, self.model, np.empty((0, 3), np.int64)), 3), np.int64)
        _edges(data, self.model, edges)
        best: list[float] = [0.0] + [-np.inf] * len(data)
        ends: list[list[tuple[int, int, float]]] = [[] for _ in best]
        for i, j, piece in edges.tolist():  # in order of i, so best[i] is final
            gain = float(self.model.weights[piece])
            ends[j].append((i, piece, gain))
            best[j] = max(best[j], best[i] + gain)
        return best, ends

    def finish(self, text: str, ids: Sequence[int]) -> Ids:
        """Ids of a segmentation as the tokenizer gives them out: unknown characters joined, or as bytes."""
        return self._finished(_utf8(text), np.array(ids, np.int32))[0]

    def forget(self) -> None:
        """Empty the cache of words met before."""
        self._caches.clear()

    def _best(
        self, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64] | None = None
    ) -> tuple[Ids, npt.NDArray[np.int64], int]:
        """The best segmentation of each text, which ends at `ends` in `data`, with an id for each unknown character;
        where each text starts among them; and the number of unknown characters."""
        ends = np.array([len(data)]) if ends is None else ends
        ids, offsets = np.empty(len(data), np.int32), np.zeros(len(ends) + 1, np.int64)
        try:
            cache = self._caches.pop()
        except IndexError:
            cache = _words()
        unknown = _encode(data, ends, *self.model, *cache, *_room(len(data)), self.cut, ids, offsets)
        self._caches.append(cache)
        count = offsets[-1]
        return ids[:count].copy() if 2 * count < len(ids) else ids[:count], offsets, unknown

    def _finished(self, data: npt.NDArray[np.uint8], ids: Ids) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids as given out, and where each ends in `data`."""
        finished, ends = np.empty(len(data), np.int32), np.empty(len(data), np.int64)
        count = _finish(data, ids, self.model, finished, ends)
        return finished[:count].copy(), ends[:count]


# No compiled function makes an array, so Numba need not count references; only outer ones are called from Python.
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)

AFRESH: Final = np.float32(-100_000)  # a running sum below this starts again at 0
SHORT: Final = 64  # bytes; longer words are not remembered
CACHE_WORDS: Final = 1 << 17  # words that a thread remembers; then it starts afresh
TRIES: Final = 64  # places tried for a node's children before they are put at the end
CHECK, BASE, VALUE = 0, 1, 2  # columns of the trie


class _Model(NamedTuple):
    """What the pieces are. `trie` [slots, 3]: parent (-1: free), base, id (-1: no piece ends here)."""

    trie: Ids
    weights: npt.NDArray[np.float32]
    lengths: Ids  # id → bytes of its spelling
    byte_ids: Ids
    unknown: npt.NDArray[np.int64]  # [2]: id of an unknown character; bytes of the longest piece


class _Room(NamedTuple):
    """Viterbi's scratch: for each place of a word the best way's score, the second best, and the best way's last piece:
    where it starts (-1: no way yet) and its id."""

    score: npt.NDArray[np.float32]
    second: npt.NDArray[np.float32]
    start: Ids
    ids: Ids


class _Words(NamedTuple):
    """Words met before. `slots`: hash with the lowest bit set (0 where free), place in `letters`, place in `ids`,
    bytes << 32 | number of ids. `limits` by slot: the largest running sum for which the ids hold, sign turned."""

    slots: npt.NDArray[np.uint64]  # [slots, 4]
    limits: npt.NDArray[np.float32]
    letters: npt.NDArray[np.uint8]
    ids: Ids
    used: npt.NDArray[np.int64]  # words, letters, ids


def _utf8(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text.encode("utf-8"), np.uint8)


def _room(n: int) -> _Room:
    scores = np.empty((2, n + 1), np.float32)
    return _Room(scores[0], scores[1], np.empty(n + 1, np.int32), np.empty(n + 1, np.int32))


def _words() -> _Words:
    return _Words(
        np.zeros((4 * CACHE_WORDS, 4), np.uint64),
        np.empty(4 * CACHE_WORDS, np.float32),
        np.empty(16 * CACHE_WORDS, np.uint8),
        np.empty(4 * CACHE_WORDS, np.int32),
        np.zeros(3, np.int64),
    )


def _lengths(spellings: Mapping[bytes, int], size: int) -> Ids:
    lengths = np.zeros(size, np.int32)
    lengths[list(spellings.values())] = list(map(len, spellings))
    return lengths


# ---------------------------------------------------------------- the trie


def _trie(spellings: Mapping[bytes, int]) -> Ids:
    """The double array of all spellings."""
    keys = sorted(spellings)
    letters = np.frombuffer(b"".join(keys), np.uint8)
    starts = np.zeros(len(keys) + 1, np.int64)
    np.cumsum([len(key) for key in keys], out=starts[1:])
    ids = np.array([spellings[key] for key in keys], np.int32)
    nodes = len(letters) + 1
    trie = np.full((2 * nodes + 1024, 3), -1, np.int32)
    while (used := _build(letters, starts, ids, trie, np.empty((2, len(trie)), np.int32), _stack(nodes))) < 0:
        trie = np.full((2 * len(trie), 3), -1, np.int32)
    return trie[: used + 256].copy()


def _stack(nodes: int) -> npt.NDArray[np.int64]:
    return np.empty((nodes, 4), np.int64)


@_outer
def _build(letters, starts, ids, trie, free, stack):
    """Fill `trie`; returns how many slots are used, or -1 if it is too small. `free` [2, slots] links the free slots
    (next, previous); `stack` holds nodes to do: first key, last key + 1, depth, slot."""
    slots = len(trie) - 256
    for s in range(slots):
        free[0, s], free[1, s] = s + 1, s - 1
    trie[0, CHECK], trie[0, BASE], used = -2, 0, 1
    stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = 0, len(ids), 0, 0
    top = 1 if len(ids) else 0
    while top:
        top -= 1
        low, high, depth, node = stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3]
        if starts[low + 1] - starts[low] == depth:
            trie[node, VALUE] = ids[low]
            low += 1
        if low == high:
            continue
        base = _base(letters, starts, trie, free, low, high, depth, used, slots)
        if base < 0:
            return -1
        trie[node, BASE] = base
        first = low
        while first < high:  # keys first to last - 1 go on with the same byte
            c, last = letters[starts[first] + depth], first + 1
            while last < high and letters[starts[last] + depth] == c:
                last += 1
            child = base + c
            trie[child, CHECK], trie[child, BASE] = node, 0
            free[0, free[1, child]] = free[0, child]
            free[1, free[0, child]] = free[1, child]
            used = max(used, child + 1)
            stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3] = first, last, depth + 1, child
            top, first = top + 1, last
    return used


@_inner
def _base(letters, starts, trie, free, low, high, depth, used, slots):
    """A base that puts all children of a node, keys low to high - 1 at `depth`, on free slots; -1 if none is left."""
    c0, slot = np.int64(letters[starts[low] + depth]), np.int64(free[0, 0])
    for tries in range(TRIES + 1):
        if tries == TRIES:
            slot = max(slot, used + c0)
        while slot < c0:
            slot = np.int64(free[0, slot])
        base = slot - c0
        if base + 256 > slots:
            return -1
        k = low
        while k < high and trie[base + letters[starts[k] + depth], CHECK] == -1:
            k += 1
        if k == high:
            return base
        slot = np.int64(free[0, slot])
    return -1


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
    n, unknown = end - begin, model.unknown[0]
    room.score[0], room.second[0] = running, -np.inf
    for j in range(1, n + 1):
        room.start[j] = -1
    i = 0
    while i < n:
        if room.score[i] < AFRESH:
            _start_afresh(room, i, min(n, i + model.unknown[1]))
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


@_outer
def _encode(
    data,
    ends,
    trie,
    weights,
    lengths,
    byte_ids,
    unknown,
    slots,
    limits,
    letters,
    word_ids,
    used,
    score,
    second,
    start,
    ids,
    cut,
    out,
    offsets,
):
    """Write the best segmentations into `out` and where each ends there into offsets[1:]; returns how many unknown
    characters there are. Arrays come one by one because Numba unpacks tuples slowly."""
    model, cache = _Model(trie, weights, lengths, byte_ids, unknown), _Words(slots, limits, letters, word_ids, used)
    room = _Room(score, second, start, ids)
    o, begin, count = np.int64(0), np.int64(0), 0
    for t in range(len(ends)):
        running = np.float32(0)
        while begin < ends[t]:
            end, h = _word(data, begin, ends[t], cut)
            first = o
            short = end - begin <= SHORT
            running = np.float32(0) if running < AFRESH else running
            s = _slot(cache, h, data, begin, end) if short else np.uint64(0)
            if short and not cache.slots[s, 0]:
                lead = _viterbi(data, begin, end, np.float32(0), model, room)
                last = _trace(room, end - begin, out, o)
                s = _remember(cache, s, h, data, begin, end, out, o, last)
                limit = min(lead / (end - begin) * np.float32(2.0**21), -AFRESH)
                cache.limits[s] = limit + 2 * room.score[end - begin]
            if short and -running < cache.limits[s]:
                o = _copy(cache, s, out, o)
                for k in range(first, o):
                    running += weights[out[k]]
                    count += out[k] == unknown[0]
            else:
                _viterbi(data, begin, end, running, model, room)
                o = _trace(room, end - begin, out, o)
                running = room.score[end - begin]
                for k in range(first, o):
                    count += out[k] == unknown[0]
            begin = end
        offsets[t + 1] = o
    return count


@_inner
def _word(data, begin, limit, cut):
    """The end of the word that starts at `begin`, `limit` at most, and its hash."""
    h, end = np.uint64(14695981039346656037), begin  # FNV-1a
    while end < limit and (end == begin or not _cuts(data, end, cut)):
        h = (h ^ np.uint64(data[end])) * np.uint64(1099511628211)
        end += 1
    return end, (h ^ h >> np.uint64(32)) | np.uint64(1)


@_inner
def _cuts(data, i, cut):
    """Whether no piece crosses place i."""
    return cut > 0 and _is_space(data, i) and (cut == 2 or i < 3 or not _is_space(data, i - 3))


@_outer
def _finish(data, ids, model, out, ends):
    """Join runs of unknown characters, or spell them in bytes; writes ids and their ends, returns how many."""
    unknown, count, place, before = model.unknown[0], 0, np.int64(0), np.int64(-1)
    for k in range(len(ids)):
        piece = np.int64(ids[k])
        size = model.lengths[piece] if piece != unknown else min(_character(data[place]), len(data) - place)
        if piece == unknown and len(model.byte_ids):
            for i in range(size):
                out[count], ends[count] = model.byte_ids[data[place + i]], place + i + 1
                count += 1
        else:
            count += 0 if piece == unknown and before == unknown else 1
            out[count - 1], ends[count - 1] = piece, place + size
        place, before = place + size, piece
    return count


# ---------------------------------------------------------------- words met before


@_inner
def _slot(words, h, data, begin, end):
    """The slot of a word, or the free one where it would go."""
    mask = np.uint64(len(words.slots) - 1)
    s = (h >> np.uint64(1)) & mask
    while words.slots[s, 0]:
        if words.slots[s, 0] == h and np.int64(words.slots[s, 3] >> np.uint64(32)) == end - begin:
            place, i = words.slots[s, 1], np.uint64(begin)
            while i < np.uint64(end) and words.letters[place] == data[i]:
                place, i = place + np.uint64(1), i + np.uint64(1)
            if i == np.uint64(end):
                break
        s = (s + np.uint64(1)) & mask
    return s


@_inner
def _copy(words, s, out, o):
    """Write the ids of the word in slot s to out[o:]; returns where they end."""
    place = words.slots[s, 2]
    for i in range(np.int64(words.slots[s, 3] & np.uint64(0xFFFFFFFF))):
        out[o] = words.ids[place + np.uint64(i)]
        o += 1
    return o


@_inner
def _remember(words, s, h, data, begin, end, ids, first, last):
    """Put a word and its ids, ids[first:last], into the free slot s; a full table is emptied first. Returns it."""
    size, count = end - begin, last - first
    full = words.used[0] >= CACHE_WORDS or words.used[1] + size > len(words.letters)
    if full or words.used[2] + count > len(words.ids):
        words.slots[:] = 0
        words.used[:] = 0
        s = _slot(words, h, data, begin, end)
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
    return s


# ---------------------------------------------------------------- other segmentations


@_outer
def _edges(data, model, edges):
    """Write every piece found in `data` as (start, end, id), in order of starts, as far as there is room; returns how
    many there are."""
    count, i, n, unknown = np.int64(0), 0, len(data), model.unknown[0]
    while i < n:
        size, single, node, j = min(_character(data[i]), n - i), False, np.int64(0), i
        while j < n:
            child = np.int64(model.trie[node, BASE]) + data[j]
            if model.trie[child, CHECK] != node:
                break
            node, j = child, j + 1
            piece = np.int64(model.trie[node, VALUE])
            if piece >= 0:
                count = _edge(edges, count, i, j, piece)
                single |= j - i == size
        if not single:
            count = _edge(edges, count, i, i + size, unknown)
        i += size
    return count


@_inner
def _edge(edges, count, i, j, piece):
    if count < len(edges):
        edges[count, 0], edges[count, 1], edges[count, 2] = i, j, piece
    return count + 1


@_inner
def _ways_from(data, i, model, alpha, total, draw):
    """The logarithm of the summed weights of all ways from place i to the end, given `total` of later places; or, with
    0 <= draw < 1, the way's first piece drawn by its share, as (id, end)."""
    n, unknown = len(data), model.unknown[0]
    size, single, node, j = min(_character(data[i]), n - i), False, np.int64(0), i
    most, mass, left = -np.inf, 0.0, draw
    while True:
        piece, end = np.int64(-1), i + size
        if j < n:
            child = np.int64(model.trie[node, BASE]) + data[j]
            if model.trie[child, CHECK] == node:
                node, j = child, j + 1
                piece, end = np.int64(model.trie[node, VALUE]), j
                single |= piece >= 0 and j - i == size
                if piece < 0:
                    continue
        if piece < 0:
            if single:
                break
            piece, single = unknown, True
            j = n  # the last one: a character without a piece
        value = alpha * np.float64(model.weights[piece]) + total[end]
        if draw >= 0:
            left -= np.exp(value - total[i])
            most, mass = np.float64(piece), np.float64(end)
            if left < 0:
                break
        elif value > most:
            most, mass = value, mass * np.exp(most - value) + 1.0
        else:
            mass += np.exp(value - most)
    return most, mass


@_outer
def _sample(data, model, alpha, total, draws, out):
    """Draw a segmentation into `out`; returns the number of ids. `total` [places]: log of the summed weights of all
    ways from a place to the end, found from the end; then pieces are drawn from the start."""
    n = len(data)
    total[n] = 0.0
    for i in range(n - 1, -1, -1):
        if data[i] & 0xC0 != 0x80:
            most, mass = _ways_from(data, i, model, alpha, total, -1.0)
            total[i] = most + np.log(mass)
    i, count = np.int64(0), 0
    while i < n:
        piece, end = _ways_from(data, i, model, alpha, total, draws[count])
        out[count] = np.int32(piece)
        count, i = count + 1, np.int64(end)
    return count
