"""The compiled loop of byte-level BPE: text in, ids out. bpe_encode.py says what it does and hands it its tables.

The strings' bytes and the places where pieces begin come from compiled functions of other files, called by their
addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from luthier.tokenizers.machine_code import Code

if TYPE_CHECKING:
    from luthier.tokenizers.instructions import (
        address,
        call,
        fold,
        high_bit,
        least_of_16,
        least_of_32,
        load,
        lock,
        low_bit,
        lowest_of_32,
        new_reference,
        pick,
        prefetch,
        store_two,
        unlock,
        view,
    )

__all__ = [
    "AGAIN",
    "BYTES",
    "CUT",
    "HALF",
    "NO_BITS",
    "NO_IDS",
    "NO_RANK",
    "NO_ROOM",
    "SHORT",
    "STRINGS",
    "Merges",
    "Room",
    "Words",
    "aligned",
    "encode",
    "fill_merges",
    "fill_words",
    "find_pairs",
    "larger",
    "new_room",
    "new_words",
    "same_words",
]

Ids = npt.NDArray[np.int32]


_code = Code(__name__)
_pasted = _code.inner(forceinline=True)
_within = _code.inner(inline="always")
_U = np.uint64
NO_RANK: Final = np.uint32(0xFFFFFFFF)
STRINGS, BYTES, CUT, AGAIN = range(4)  # how far texts are: their bytes are to be asked for, to be cut, to be encoded
NO_ROOM, FULL, NO_BITS, NO_IDS, HALF = range(-5, 0)  # why `encode` stopped
INT32: Final = 5  # numpy's number for it
SHORT: Final = 1 << 14  # characters of a text that is encoded alone
HELD: Final = 1 << 12  # bytes for which Python's lock is not given up
INLINE: Final = 15  # bytes of a piece that its key holds
LONGER: Final = np.uint64(1 << 63)  # marks the key of a longer one
BATCH: Final = 64  # pieces that are looked up side by side
LONGEST: Final = 1024  # bytes of a piece that is remembered
LETTERS, IDS = 8, 2  # room in the tables, per slot
NO_KEY: Final = np.uint32(0xFFFFFFE0)  # and above: a pair without a merge
LANE: Final = 32  # bytes of a new piece that can be joined side by side with others
AHEAD: Final = 16  # a table is asked for the line of so many entries ahead
LANES: Final = 32  # new pieces joined side by side


# ---------------------------------------------------------------- merges


class Merges(NamedTuple):
    """What can be joined: `pairs` [left byte << 8 | right byte] → rank; `slots` a hash table for two ids, eight to a
    line of the processor's cache, each left << 40 | right << 20 | rank + 1, 0 where free; `joined` rank → id, empty
    where the rank is the id."""

    byte_ids: Ids
    pairs: npt.NDArray[np.uint32]
    slots: npt.NDArray[np.uint64]
    joined: Ids


@_pasted
def _place_of(merges, left, right):
    """Where in its table the merge of two ids belongs."""
    return fold(_U(left) << _U(20) | _U(right), _U(0x9E3779B97F4A7C15)) & _U(len(merges.slots) - 8)


@_pasted
def _rank(merges, left, right):
    """The rank of the merge of two ids, NO_RANK where there is none."""
    slots, key, s = merges.slots, _U(left) << _U(20) | _U(right), _place_of(merges, left, right)
    while True:
        found = pick(slots, s, key)
        if found or not slots[s + _U(7)]:
            return np.uint32((found & _U(0xFFFFF)) - _U(1))
        s = (s + _U(8)) & _U(len(slots) - 8)


@_code.outer
def fill_merges(merges, pairs, ranks):
    slots = merges.slots
    for k in range(len(pairs)):
        later = min(k + AHEAD, len(pairs) - 1)
        prefetch(slots, _place_of(merges, pairs[later, 0], pairs[later, 1]))
        key = _U(pairs[k, 0]) << _U(20) | _U(pairs[k, 1])
        s = _place_of(merges, pairs[k, 0], pairs[k, 1])
        while slots[s] and slots[s] >> _U(20) != key:
            s = (s + _U(1)) & _U(len(slots) - 1)
        slots[s] = key << _U(20) | _U(ranks[k] + 1)
    for a in range(256):
        for b in range(256):
            if merges.byte_ids[a] >= 0 and merges.byte_ids[b] >= 0:
                merges.pairs[a << 8 | b] = _rank(merges, merges.byte_ids[a], merges.byte_ids[b])


# ---------------------------------------------------------------- pieces met before


class Words(NamedTuple):
    """Pieces and their ids. A slot is four words: two of key, ids, number of ids. The key of a piece of up to INLINE
    bytes is the bytes and, last, their number; of a longer one a hash, and 1 << 63 | place in `letters` << 24 | bytes.
    One or two ids stand in the slot itself; of more it says the place in `ids`. `used` is how many pieces, letters and
    ids there are."""

    slots: npt.NDArray[np.uint64]  # [4 · slots]
    letters: npt.NDArray[np.uint8]
    ids: Ids
    used: npt.NDArray[np.int64]


def new_words(slots: int, letters: int) -> Words:
    """An empty table, with room for so many letters more than its slots bring. Two slots share a line of the
    processor's cache, none straddles two."""
    row, ids = np.empty(slots * LETTERS + letters, np.uint8), np.empty(slots * IDS, np.int32)
    return Words(aligned(4 * slots), row, ids, np.zeros(3, np.int64))


def aligned(size: int) -> npt.NDArray[np.uint64]:
    """So many words of 0 that begin with a line of the processor's cache; many begin with a large page of memory."""
    line = 8 if size < 1 << 18 else 1 << 18
    memory = np.zeros(size + line, np.uint64)
    first = -(memory.ctypes.data // 8) % line
    return memory[first : first + size]


def larger(old: Words) -> Words:
    """A table with twice the room that holds the same."""
    new = new_words(len(old.slots) // 2, len(old.letters))
    _copy_texts(old, new)
    _rehash(old.slots, new.slots)
    return new


def same_words(old: Words) -> Words:
    """A copy of a table."""
    slots = len(old.slots) // 4
    new = new_words(slots, len(old.letters) - slots * LETTERS)
    _copy_texts(old, new)
    new.slots[:] = old.slots
    return new


def _copy_texts(old: Words, new: Words) -> None:
    _, letters, ids = new.used[:] = old.used
    new.letters[:letters], new.ids[:ids] = old.letters[:letters], old.ids[:ids]


@_code.outer
def _rehash(old, new):
    """Every piece again: those met early stay in front."""
    for k in range(0, len(old), 4):
        later = min(k + 4 * AHEAD, len(old) - 4)
        if old[later + 1]:
            prefetch(new, _home(new, old[later], old[later + 1]))
        if old[k + 1]:
            s = _home(new, old[k], old[k + 1])
            while new[s + 1]:
                s = (s + 4) & (len(new) - 1)
            for j in range(4):
                new[s + j] = old[k + j]


@_code.inner
def _pack(first, second, size):
    """The key of `size` bytes, at most INLINE, from the sixteen that begin with them: the bytes and their number."""
    unused = _U(64) - (min(size, _U(8)) << _U(3))
    rest = (_U(1) << ((max(size, _U(8)) - _U(8)) << _U(3))) - _U(1)
    return first << unused >> unused, second & rest | size << _U(56)


@_code.inner
def _short_key(data, i, size):
    """The key of data[i : i + size], also at the end of the data."""
    last = len(data) - 16
    if i <= last:
        return _pack(load(data, i), load(data, i + 8), _U(size))
    if last >= 0:
        first, second, gone = load(data, last), load(data, last + 8), _U(i - last) << _U(3)
        if gone < _U(64):
            return _pack(first >> gone | second << (_U(64) - gone), second >> gone, _U(size))
        return _pack(second >> (gone - _U(64)), _U(0), _U(size))
    first, second = _U(0), _U(0)
    for j in range(min(size, 8)):
        first |= _U(data[i + j]) << _U(j << 3)
    for j in range(8, size):
        second |= _U(data[i + j]) << _U((j - 8) << 3)
    return first, second | _U(size) << _U(56)


@_code.inner
def _long_key(data, i, size):
    """A hash of more than INLINE bytes, and their number."""
    h = _U(size)
    for j in range(i, i + size - 7, 8):
        h = fold(h ^ load(data, j), _U(0x9E3779B97F4A7C15))
    return fold(h ^ load(data, i + size - 8), _U(0xC2B2AE3D27D4EB4F)), LONGER | _U(size)


@_code.inner
def _bare(second):
    """The second word of a key without the place that a long one has in a slot."""
    return second & (LONGER | _U(0xFFFFFF)) if second >= LONGER else second


@_code.inner
def _hash(first, second):
    return fold(first ^ _U(0x9E3779B97F4A7C15), second ^ _U(0xC2B2AE3D27D4EB4F))


@_code.inner
def _home(slots, first, second):
    """Where in `slots` a key belongs: the first of two neighbours that share a line of the processor's cache."""
    return np.int64(_hash(first, _bare(second)) & _U(len(slots) - 8))


@_code.inner
def _same(a, i, b, j, size):
    """Whether a[i : i + size] is b[j : j + size]; more than 8 bytes."""
    for k in range(0, size - 7, 8):
        if load(a, i + k) != load(b, j + k):
            return False
    return load(a, i + size - 8) == load(b, j + size - 8)


@_code.inner
def _seek(words, s, first, second, data, i, size):
    """The slot of the piece data[i : i + size] from its home s on, or the free one where it would go."""
    slots = words.slots
    while slots[s + 1]:
        place = np.int64(slots[s + 1] >> _U(24)) & 0xFFFFFFFF
        like = slots[s] == first and _bare(slots[s + 1]) == second
        if like and (size <= INLINE or _same(words.letters, place, data, i, size)):
            break
        s = (s + 4) & (len(slots) - 1)
    return s


@_within
def _copy_ids(words, s, ids, o):
    """Write the ids of slot s to ids[o:], and perhaps one more; returns where they end."""
    count = np.int64(words.slots[s + 3])
    if count <= 2:
        store_two(ids, o, words.slots[s + 2])
    else:
        place = np.int64(words.slots[s + 2])
        for k in range(count):
            ids[o + k] = words.ids[place + k]
    return o + count


@_within
def _has_room(words, size):
    return (
        7 * words.used[0] < len(words.slots)  # four of seven slots: most pieces are near where they belong
        and words.used[1] + size <= len(words.letters)
        and words.used[2] + size <= len(words.ids)
    )


@_code.inner
def _claim(words, s, first, second, data, i, size):
    """Put the piece data[i : i + size] into the free slot s, as yet without ids."""
    slots, used = words.slots, words.used
    used[0] += 1
    if size > INLINE:
        second |= _U(used[1]) << _U(24)
        for k in range(size):
            words.letters[used[1] + k] = data[i + k]
        used[1] += size
    slots[s], slots[s + 1] = first, second


@_code.inner
def _set_ids(words, s, ids, o, count):
    """ids[o : o + count] are those of the piece in slot s."""
    slots, used = words.slots, words.used
    slots[s + 3] = _U(count)
    if count <= 2:
        slots[s + 2] = _U(ids[o]) | _U(ids[o + count - 1]) << _U(32)
    else:
        slots[s + 2] = _U(used[2])
        for k in range(count):
            words.ids[used[2] + k] = ids[o + k]
        used[2] += count


@_code.inner
def _key(data, i, size):
    return _short_key(data, i, size) if size <= INLINE else _long_key(data, i, size)


@_code.inner
def _ask(words, data, i, size):
    """Ask for the line of the piece data[i : i + size]."""
    first, second = _key(data, i, size)
    prefetch(words.slots, _home(words.slots, first, second))


@_code.outer
def fill_words(words, letters, ends, ids, merges, room, whole):
    """Put in the tokens that are the ids of their bytes: all of them if `whole`, or those that the merges lead to."""
    begin = np.int64(0)
    for k in range(len(ends)):
        if k + AHEAD < len(ends):
            _ask(words, letters, ends[k + AHEAD - 1], ends[k + AHEAD] - ends[k + AHEAD - 1])
        size = ends[k] - begin
        if not whole:
            _join(letters, begin, size, merges, room)
        if whole or (room.after[0] == size and room.ids[0] == ids[k]):
            first, second = _key(letters, begin, size)
            s = _seek(words, _home(words.slots, first, second), first, second, letters, begin, size)
            _claim(words, s, first, second, letters, begin, size)
            _set_ids(words, s, ids, np.int64(k), np.int64(1))
        begin = ends[k]


@_code.inner
def _id_of(words, data, i, size):
    """The id of the token data[i : i + size], -1 where it is none."""
    first, second = _key(data, i, size)
    s = _seek(words, _home(words.slots, first, second), first, second, data, i, size)
    return np.int32(words.slots[s + 2] & _U(0x7FFFFFFF)) if words.slots[s + 1] else np.int32(-1)


@_code.outer
def find_pairs(letters, ends, ids, words, pairs, joined):
    count, begin = 0, np.int64(0)
    for k in range(len(ends)):
        if k + 1 < len(ends):
            for i in range(ends[k] + 1, ends[k + 1]):
                _ask(words, letters, ends[k], i - ends[k])
                _ask(words, letters, i, ends[k + 1] - i)
        for i in range(begin + 1, ends[k]):
            left = _id_of(words, letters, begin, i - begin)
            right = _id_of(words, letters, i, ends[k] - i) if left >= 0 else np.int32(-1)
            if right >= 0:
                pairs[count, 0], pairs[count, 1], joined[count] = left, right, ids[k]
                count += 1
        begin = ends[k]
    return count


# ---------------------------------------------------------------- new pieces


class Room(NamedTuple):
    """Scratch for joining a piece. Symbol p is ids[p]; after[p] and before[p] are its neighbours. `ranks` holds the
    matches level by level: first the rank of each pair (p, after[p]), then the lowest of each 32 of the level below,
    and so on; `levels` says where each level starts."""

    ids: Ids
    after: Ids
    before: Ids
    ranks: npt.NDArray[np.uint32]
    levels: npt.NDArray[np.int64]
    batch: npt.NDArray[np.uint64]  # [pieces · 4] key, key, slot, end
    lanes: npt.NDArray[np.uint32]  # [LANES · 64] of each piece that is joined side by side: 32 ids, 32 keys
    turns: npt.NDArray[np.uint64]  # [LANES · 4] lane, slot, symbols alive | last


def new_room(size: int) -> Room:
    """Room for a piece of so many bytes."""
    ids, after, before = np.empty((3, size), np.int32)
    return Room(
        ids,
        after,
        before,
        np.empty(size + size // 16 + 256, np.uint32),
        np.zeros(8, np.int64),
        np.empty(8 * BATCH, np.uint64),
        aligned(LANE * LANES).view(np.uint32),
        np.empty(4 * LANES, np.uint64),
    )


@_code.inner
def _fresh(data, i, size, merges, room, ids, o):
    """Write the ids of a piece that was not met before to ids[o:]; returns where they end."""
    _join(data, i, size, merges, room)
    p = _U(0)
    while p < _U(size):
        ids[o] = room.ids[p]
        o += 1
        p = _U(room.after[p])
    return o


@_code.inner
def _split(match):
    return match >> _U(32), match & _U(31)


@_pasted
def _made(merges, rank):
    """The id that a merge makes."""
    return merges.joined[rank] if len(merges.joined) else np.int32(rank)


@_code.inner
def _lowest(ranks, last):
    """What a match says of ranks[:last], one by one: a vector would wait for the ranks that were just written."""
    rank, p, q = ranks[_U(0)], _U(0), _U(1)
    while q < last:
        if ranks[q] < rank:
            rank, p = ranks[q], q
        q += _U(1)
    return _U(rank), p


@_code.inner
def _join(data, i, size, merges, room):
    """Join the pair of lowest rank, the leftmost of equals, as long as there is one."""
    names, after, before, ranks, levels = room.ids, room.after, room.before, room.ranks, room.levels
    one, last = _U(1), _U(size - 1)
    left = _U(data[i])
    p = _U(0)
    while p < last:
        right = _U(data[_U(i) + p + one])
        names[p], after[p], before[p] = merges.byte_ids[left], p + one, p - one
        ranks[p] = merges.pairs[left << _U(8) | right]
        left, p = right, p + one
    names[p], after[p], before[p] = merges.byte_ids[left], p + one, p - one
    top = _set_matches(ranks, levels, size)
    base = _U(levels[top])
    while True:
        rank, p = _lowest(ranks, last) if size <= 16 else _split(lowest_of_32(ranks, base))
        if rank == _U(NO_RANK):
            return
        for level in range(top - 1, -1, -1):
            p = p << _U(5) | lowest_of_32(ranks, _U(levels[level]) + (p << _U(5))) & _U(31)
        gone, prior = _U(after[p]), _U(before[p])
        right, new = _U(after[gone]), _made(merges, rank)
        names[p], after[p], ranks[gone], ranks[p] = new, right, NO_RANK, NO_RANK
        if p > _U(0):
            ranks[prior] = _rank(merges, names[prior], new)
        if right <= last:
            before[right] = p
            ranks[p] = _rank(merges, new, names[right])
        if top:
            _play_again(ranks, levels, top, p)
            _play_again(ranks, levels, top, gone)
            if p > _U(0):
                _play_again(ranks, levels, top, prior)


@_pasted
def _key_of(rank, place):
    """The key of a pair in a lane; at least NO_KEY without a merge."""
    return np.uint32(rank << np.uint32(5) | np.uint32(place))


@_code.inner
def _lay_out(data, i, size, merges, lanes, lane):
    """The bytes of a piece as ids in its lane, and behind them the keys of their pairs: rank << 5 | place of the left
    one, so that the least key tells both and the leftmost of equals comes first."""
    left, keys = _U(data[i]), lane + _U(LANE)
    for p in range(_U(LANE)):
        lanes[keys + p] = NO_RANK
    last = _U(size - 1)
    p = _U(0)
    while p < last:
        right = _U(data[_U(i) + p + _U(1)])
        lanes[lane + p] = np.uint32(merges.byte_ids[left])
        lanes[keys + p] = _key_of(merges.pairs[left << _U(8) | right], p)
        left, p = right, p + _U(1)
    lanes[lane + p] = np.uint32(merges.byte_ids[left])


@_code.inner
def _learn(data, i, batch, b, n, merges, cache, room):
    """Join the new pieces among those of the batch from b on and put them into the cache. They take turns: a join asks
    for the lines of the table that its two new pairs need, and they arrive while the others have their turns."""
    slots, lanes, turns, waiting = cache.slots, room.lanes, room.turns, _U(0)
    while b < n and waiting < _U(4 * LANES):
        first, second, s, e = batch[b], batch[b + _U(1)], batch[b + _U(2)], np.int64(batch[b + _U(3)])
        size = e - i
        if (slots[s] != first) | (slots[s + _U(1)] != second) and size <= LANE:
            t = _seek(cache, np.int64(s), first, second, data, i, size)
            if not slots[t + 1]:
                _claim(cache, t, first, second, data, i, size)
                lane = waiting * _U(LANE // 2)
                _lay_out(data, i, size, merges, lanes, lane)
                turns[waiting], turns[waiting + _U(1)] = lane, _U(t)
                turns[waiting + _U(2)] = _U(0xFFFFFFFF) >> _U(LANE - size)
                waiting += _U(4)
        i, b = e, b + _U(4)
    k = _U(0)
    while waiting:
        lane = turns[k]
        alive = _take_turn(merges, lanes, lane, turns[k + _U(2)])
        turns[k + _U(2)] = alive
        k += _U(4)
        if alive <= _U(0xFFFFFFFF):
            k -= _U(4)
            _set_ids(cache, np.int64(turns[k + _U(1)]), room.ids, np.int64(0), _gather(lanes, lane, alive, room.ids))
            waiting -= _U(4)
            for j in range(_U(3)):
                turns[k + j] = turns[waiting + j]
        if k >= waiting:
            k = _U(0)


@_pasted
def _take_turn(merges, lanes, lane, alive):
    """The keys that the last join left open, then one join more. `alive` is a bit for each symbol, above them
    1 + the place of the last join; without that there is nothing left to join."""
    keys, p = lane + _U(LANE), alive >> _U(32)
    alive &= _U(0xFFFFFFFF)
    # Of all but the open ones, which were just written: a vector would wait for them
    least = least_of_16(lanes, keys) if alive <= _U(0xFFFF) else least_of_32(lanes, keys)
    if p:
        p -= _U(1)
        below, above = alive & ((_U(1) << p) - _U(1)), alive >> p >> _U(1)
        if below:
            prior = high_bit(below)
            key = _key_of(_rank(merges, lanes[lane + prior], lanes[lane + p]), prior)
            lanes[keys + prior], least = key, min(least, key)
        if above:
            key = _key_of(_rank(merges, lanes[lane + p], lanes[lane + p + _U(1) + low_bit(above)]), p)
            lanes[keys + p], least = key, min(least, key)
    if least >= NO_KEY:
        return alive
    p = _U(least) & _U(31)
    gone = p + _U(1) + low_bit(alive >> p >> _U(1))
    alive ^= _U(1) << gone
    new = np.uint32(_made(merges, least >> np.uint32(5)))
    lanes[lane + p], lanes[keys + p], lanes[keys + gone] = new, NO_RANK, NO_RANK
    below, above = alive & ((_U(1) << p) - _U(1)), alive >> p >> _U(1)
    if below:
        prior = high_bit(below)
        lanes[keys + prior] = NO_RANK
        prefetch(merges.slots, _place_of(merges, lanes[lane + prior], new))
    if above:
        prefetch(merges.slots, _place_of(merges, new, lanes[lane + p + _U(1) + low_bit(above)]))
    return alive | (p + _U(1)) << _U(32)


@_code.inner
def _gather(lanes, lane, alive, ids):
    """Write the symbols of a lane that are alive to `ids`; returns their number."""
    count = np.int64(0)
    while alive:
        ids[count] = lanes[lane + low_bit(alive)]
        alive &= alive - _U(1)
        count += 1
    return count


@_within
def _set_matches(ranks, levels, size):
    """Play all matches above the ranks of `size` symbols; returns the highest level, which is one match."""
    count, top = size, 0
    ranks[size - 1] = NO_RANK
    while True:
        end, padded = levels[top] + count, (count + 31) & ~31
        for k in range(end, levels[top] + padded):
            ranks[k] = NO_RANK
        if padded == 32:
            return top
        levels[top + 1], count = levels[top] + padded, padded >> 5
        for k in range(count):
            ranks[levels[top + 1] + k] = np.uint32(lowest_of_32(ranks, levels[top] + (k << 5)) >> _U(32))
        top += 1


@_code.inner
def _play_again(ranks, levels, top, p):
    """Place p of the lowest level changed: play its matches again, up to where nothing changes."""
    for level in range(top):
        p >>= _U(5)
        lowest, place = (
            np.uint32(lowest_of_32(ranks, _U(levels[level]) + (p << _U(5))) >> _U(32)),
            _U(levels[level + 1]) + p,
        )
        if ranks[place] == lowest:
            return
        ranks[place] = lowest


# ---------------------------------------------------------------- the loop


@_code.outer(held=True)
def encode(text, merges, cache, room, steps, stage, texts, starts, begins, at, rule, ids, offsets, python):
    """Write the ids of all texts and where each text starts in them; returns their number. What is lacking it says in
    at[1], called again it goes on: NO_BITS and NO_IDS for a larger `begins` or `ids`, NO_ROOM for a piece that `room`
    cannot hold, FULL if the cache must grow. HALF: text at[3] is none. Python's lock is given up for longer texts.
    `steps`: addresses of the two functions of strings.py and of room for UTF-8.

    With `text`, the address of a Python object, that is the only text, and it returns a new array, or None for what is
    no string, is long, or when something is lacking. `python`: addresses of str, None, numpy's ndarray and the function
    that makes one."""
    if text:
        # an object's type stands behind its count of references, a string's length behind that
        if view(text + 8, 1, np.int64)[0] != python[0] or view(text + 16, 1, np.int64)[0] > SHORT:
            return new_reference(python[1])
        texts[0] = text
    count = len(offsets) - 1
    at[16], at[17], at[18], at[19] = address(texts), address(starts), count, steps[2]
    given = (address(at) + 16 * 8,)
    size = call(steps[0], given) if stage == STRINGS else starts[count]
    thread = unlock() if size > HELD else 0
    if stage == STRINGS and size >= 0:
        size = call(steps[1], given)
    found = _lacks(stage, size, begins, at, ids, offsets)
    if not found:
        if stage < CUT:
            at[18], at[19], at[20] = address(begins), address(at) + 8 * 8, count
            for k in range(4):
                at[21 + k] = rule[1 + k]
            call(rule[0], given)
        found = _encode_texts(texts, starts, begins, merges, cache, room, ids, offsets, at)
    if thread:
        lock(thread)
    if text:
        return new_reference(python[1]) if found < 0 else _new_array(ids, found, python, at)
    return found


@_code.inner
def _new_array(ids, count, python, at):
    """A new array of Python's with the first ids; 0 if there is no memory."""
    at[16] = count
    made = call(python[3], (python[2], 1, address(at) + 16 * 8, INT32, 0, 0, 0, 0, 0))
    if made:
        items = view(view(made + 16, 1, np.int64)[0], count, np.int32)
        for k in range(count):
            items[k] = ids[k]
    return made


@_within
def _lacks(stage, size, begins, at, ids, offsets):
    """Begin at the first text, if there are `size` bytes and room for their bits and ids: then 0."""
    if size < 0:
        at[3] = -1 - size
        return HALF
    if stage != AGAIN:
        at[0], at[2], at[3] = 0, offsets[0], 0
        at[1] = (size >> 6) + len(offsets) - 1
        if stage < CUT and len(begins) < at[1]:
            return NO_BITS
        at[1] = offsets[0] + size + 2
        if len(ids) < at[1]:
            return NO_IDS
    return 0


@_within
def _encode_texts(texts, starts, begins, merges, cache, room, ids, offsets, at):
    slots, batch, out = cache.slots, room.batch, ids
    home = _U(len(slots) - 8)
    i, o = at[0], at[2]
    for k in range(at[3], len(offsets) - 1):
        end = starts[k + 1] - starts[k]
        data, safe = view(texts[k], end, np.uint8), end - 16
        word, base = (starts[k] >> 6) + k + (i >> 6), i & ~63
        bits = begins[word] & ~((_U(2) << _U(i & 63)) - _U(1))
        while i < end:
            # the keys of some pieces, so that their slots are fetched side by side
            n, begin = _U(0), i
            while n < _U(4 * BATCH) and i < end:
                while bits:
                    e = base + np.int64(low_bit(bits))
                    bits &= bits - _U(1)
                    size = e - i
                    if size <= INLINE and i <= safe:
                        first, second = _pack(load(data, i), load(data, i + 8), _U(size))
                    else:
                        first, second = _short_key(data, i, size) if size <= INLINE else _long_key(data, i, size)
                    s = _hash(first, second) & home
                    prefetch(slots, s)
                    batch[n], batch[n + _U(1)], batch[n + _U(2)], batch[n + _U(3)] = first, second, s, _U(e)
                    n += _U(4)
                    i = e
                if i < end:
                    word, base = word + 1, base + 64
                    bits = begins[word]
            i, b = begin, _U(0)
            while b < n:
                first, second, s, e = batch[b], batch[b + _U(1)], batch[b + _U(2)], np.int64(batch[b + _U(3)])
                b += _U(4)
                s |= _U((slots[s] != first) | (slots[s + _U(1)] != second)) << _U(2)  # one of two, without a branch
                if (slots[s] == first) & (slots[s + _U(1)] == second) & (slots[s + _U(3)] <= _U(2)):
                    store_two(out, o, slots[s + _U(2)])
                    o += np.int64(slots[s + _U(3)])
                else:
                    size = e - i
                    t = _seek(cache, np.int64(s & home), first, second, data, i, size)
                    known = slots[t + 1] != 0
                    if not known:
                        at[0], at[1], at[2], at[3] = i, e, o, k
                        if size > len(room.ids):
                            return NO_ROOM
                        if size <= LONGEST and not _has_room(cache, max(size, LANE * LANES)):
                            return FULL
                        if size <= LANE:
                            _learn(data, i, batch, b - _U(4), n, merges, cache, room)
                            known = True
                        else:
                            before, o = o, _fresh(data, i, size, merges, room, ids, o)
                            if size <= LONGEST:
                                _claim(cache, t, first, second, data, i, size)
                                _set_ids(cache, t, ids, before, o - before)
                    if known:
                        o = _copy_ids(cache, t, ids, o)
                i = e
        offsets[k + 1] = o
        i = 0
    return o
