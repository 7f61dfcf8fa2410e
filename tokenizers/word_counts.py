"""Counting the different pieces of a text: all that BPE training needs to know of it.

    text ──parts of 1 MB──▶ boundaries (pretokenize.py) ──▶ hash table: piece → how often ──▶ letters, ends, counts

**Table.** A slot is four numbers: two keys; count; length and place. A piece of up to 16 bytes is its own key (its
first eight bytes and the rest), so one look at one slot is enough; of a longer piece the keys are a hash and its last
eight bytes, and its letters, which stand in an array beside the table, are compared too. Counts have 64 bits.

**Parts.** A long text is cut where every pattern known by name cuts, whatever stands before and behind: after a letter
or numeral and before a blank, a line feed or a mark such as a comma. So the pieces are those of the whole text. A
part in which there is no such place (base64, genomes) is cut at its end, and the cut counted. A pattern of one's own
may look back, so it gets each text whole.

**Long pieces.** A piece of more than `max_piece_length` bytes is cut at character boundaries and counted as capped: a
file that is one word of 50 MB gives pieces of a usual size.

**Threads** each fill a table of their own; the sum does not depend on who counted what.

**Memory.** A table that would outgrow its share of `max_memory` is written to a temporary folder, sorted by hash, and
emptied. At the end these runs are merged: one range of hashes at a time is read from all of them and summed up.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from luthier.tokenizers.machine_code import Code
from luthier.tokenizers.pretokenize import PATTERNS, boundaries, compile_pattern

if TYPE_CHECKING:
    from luthier.tokenizers.instructions import load

__all__ = ["MAX_PIECE_LENGTH", "PART", "WordCounts", "count_words", "cut_place"]

MAX_PIECE_LENGTH: Final = 1024  # bytes; no word of a language comes near it
PART: Final = 1 << 19  # characters counted at once
_code = Code(__name__)
_CUT: Final = re.compile(r"[^\W_](?=[ \n.,;:!?，。、！？：；])")


class WordCounts(NamedTuple):
    """Word w is `letters[ends[w - 1] : ends[w]]` and occurs `counts[w]` times. `capped` is how many pieces were longer
    than allowed, `cut` how many times a text without any place to cut at was cut somewhere."""

    letters: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    capped: int
    cut: int

    def words(self) -> list[bytes]:
        """The words as bytes."""
        letters, starts = self.letters.tobytes(), [0, *self.ends.tolist()]
        return [letters[a:b] for a, b in pairwise(starts)]


def count_words(
    texts: Iterable[str],
    pattern: str,
    *,
    num_threads: int = 1,
    max_memory: float = 2048,
    max_piece_length: int = MAX_PIECE_LENGTH,
) -> WordCounts:
    """The different pieces of `texts` and how often each occurs, in no particular order.

    `max_memory` in MB bounds the tables of all threads; what is more goes to a temporary folder. `texts` is read by one
    thread at a time. Raises PatternError, TextError.
    """
    compile_pattern(pattern)
    with tempfile.TemporaryDirectory(prefix="luthier-words-") as folder:
        room = int(max_memory * 1e6 / max(num_threads, 1))
        counters = [_Counter(Path(folder, str(i)), room, max_piece_length) for i in range(max(num_threads, 1))]
        parts = _Parts(texts, pattern)
        _in_threads(lambda counter: counter.count_all(parts, pattern), counters)
        return _sum(counters, parts.cut)


def cut_place(text: str) -> int:
    """The last place at which `text` may be cut without changing its pieces, whatever follows; 0: there is none."""
    for start in (max(0, len(text) - 4096), 0):
        last = 0
        for match in _CUT.finditer(text, start):
            last = match.end()
        if last:
            return last
    return 0


# ---------------------------------------------------------------- parts and threads


class _Parts:
    """The parts of all texts, handed out to threads one by one."""

    def __init__(self, texts: Iterable[str], pattern: str) -> None:
        self._size = PART if pattern in PATTERNS else 0
        self._lock, self._stopped, self.cut = threading.Lock(), False, 0
        self._source = self._all(texts)

    def take(self) -> str | None:
        """The next part, None at the end."""
        with self._lock:
            return None if self._stopped else next(self._source, None)

    def stop(self) -> None:
        """Hand out no more."""
        self._stopped = True

    def _all(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            done = 0
            while self._size and len(text) - done > self._size:
                part = text[done : done + self._size]
                end = cut_place(part)
                self.cut += not end
                yield part[:end] if end else part
                done += end or self._size
            yield text[done:] if done else text


def _in_threads(work: Callable[[Any], None], items: list[Any]) -> None:
    if len(items) == 1:
        work(items[0])
        return
    with ThreadPoolExecutor(len(items)) as pool:
        for done in [pool.submit(work, item) for item in items]:
            done.result()


class _Counter:
    """One thread's table and the runs it has written."""

    def __init__(self, folder: Path, room: int, longest: int) -> None:
        self.folder, self.room, self.longest = folder, room, longest
        self.table, self.runs = _table(1 << 12, 1 << 14), 0

    def count_all(self, parts: _Parts, pattern: str) -> None:
        try:
            while (text := parts.take()) is not None:
                self.add(*boundaries(text, pattern), np.empty(0, np.int64))
        except BaseException:
            parts.stop()
            raise

    def add(self, data: Any, ends: Any, counts: Any) -> None:
        """Count the pieces, each `counts` times (empty: once)."""
        done = 0
        data, ends, counts = map(np.ascontiguousarray, (data, ends, counts))
        while (done := _count(data, ends, counts, done, self.longest, self.table)) < len(ends):
            larger = 2 * self.table.slots.nbytes + 2 * len(self.table.letters) + len(data)
            if 2 * larger > self.room and self.table.used[0] > 1 << 10:  # as much again for sorting
                self.spill()
            else:
                self.table = _larger(self.table, len(data))

    def spill(self) -> None:
        """Write the words, sorted by hash, and empty the table."""
        folder = self.folder / str(self.runs)
        folder.mkdir(parents=True)
        hashes, slots, size = _words_of(self.table)
        order = np.argsort(hashes)
        for name, array in zip(_RUN, (hashes[order], *_contents(self.table, slots[order], size)), strict=True):
            np.save(folder / f"{name}.npy", array)
        self.runs += 1
        self.table.slots[:] = 0
        self.table.used[:2] = 0

    def read(self) -> list[list[npt.NDArray[Any]]]:
        """The runs, mapped from their files."""
        folders = [self.folder / str(i) for i in range(self.runs)]
        return [[np.load(folder / f"{name}.npy", mmap_mode="r") for name in _RUN] for folder in folders]


_RUN: Final = ("hashes", "letters", "ends", "counts")


def _sum(counters: list[_Counter], cut: int) -> WordCounts:
    """The words of all tables and runs together."""
    capped = sum(int(counter.table.used[2]) for counter in counters)
    first = counters[0]
    if not any(counter.runs for counter in counters):
        for other in counters[1:]:
            first.add(*_contents(other.table, *_words_of(other.table)[1:]))
        letters, ends, counts = _contents(first.table, *_words_of(first.table)[1:])
        return WordCounts(letters, ends, counts, capped, cut)
    for counter in counters:
        if counter.table.used[0]:
            counter.spill()
    runs = [run for counter in counters for run in counter.read()]
    size = sum(array.nbytes for run in runs for array in run)
    bits = (6 * size // (first.room * len(counters))).bit_length()
    ranges = [_sum_range(runs, number, bits) for number in range(1 << bits)]
    before = np.cumsum([0, *(len(letters) for letters, _, _ in ranges)])
    return WordCounts(
        np.concatenate([letters for letters, _, _ in ranges]),
        np.concatenate([ends + n for (_, ends, _), n in zip(ranges, before, strict=False)]),
        np.concatenate([counts for _, _, counts in ranges]),
        capped,
        cut,
    )


def _sum_range(runs: list[list[npt.NDArray[Any]]], number: int, bits: int) -> tuple[npt.NDArray[Any], ...]:
    """Letters, ends and counts of the words whose hash begins with the `bits` bits of `number`: of every run a
    stretch."""
    counter = _Counter(Path(), 1 << 62, 1 << 30)
    lowest = number << 64 - bits
    highest = lowest + (1 << 64 - bits) - 1
    for hashes, letters, ends, counts in runs:
        a, b = np.searchsorted(hashes, np.uint64(lowest)), np.searchsorted(hashes, np.uint64(highest), side="right")
        begin = int(ends[a - 1]) if a else 0
        if a < b:
            counter.add(letters[begin : ends[b - 1]], ends[a:b] - begin, counts[a:b])
    return _contents(counter.table, *_words_of(counter.table)[1:])


# ---------------------------------------------------------------- the table

_U = np.uint64
_C1, _C2 = _U(0x9E3779B97F4A7C15), _U(0xFF51AFD7ED558CCD)


class _Table(NamedTuple):
    """`slots` [slots, 4]: key, key, count (0: free), length << 40 | where the letters of a long word begin. `used` is
    [words, letters, capped pieces]."""

    slots: npt.NDArray[np.uint64]
    letters: npt.NDArray[np.uint8]
    used: npt.NDArray[np.int64]


def _table(slots: int, letters: int) -> _Table:
    return _Table(np.zeros((slots, 4), np.uint64), np.empty(letters, np.uint8), np.zeros(3, np.int64))


def _larger(old: _Table, letters: int) -> _Table:
    """The same table with twice the slots where they are half full, and room for `letters` more letters."""
    slots, more = old.slots, old.letters
    if 4 * old.used[0] > len(slots):
        slots = np.zeros((2 * len(old.slots), 4), np.uint64)
        _move(old.slots, slots)
    if old.used[1] + letters > len(more):
        more = np.empty(len(old.letters) + len(old.letters) // 2 + letters, np.uint8)
        more[: old.used[1]] = old.letters[: old.used[1]]
    return _Table(slots, more, old.used)


def _words_of(table: _Table) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], int]:
    """Hash and slot of every word, and how many letters they have."""
    words = int(table.used[0])
    hashes, slots = np.empty(words, np.uint64), np.empty(words, np.int64)
    return hashes, slots, _list(table, hashes, slots)


def _contents(table: _Table, slots: npt.NDArray[np.int64], size: int) -> tuple[npt.NDArray[Any], ...]:
    """Letters, ends and counts of the words in these slots."""
    letters, ends, counts = np.empty(size, np.uint8), np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
    _write(table, slots, letters, ends, counts)
    return letters, ends, counts


@_code.inner
def _keys(data, begin, end):
    """Two numbers that stand for data[begin:end]: up to 16 bytes the first eight and the rest, shifted to the top."""
    size = end - begin
    if size > 16:
        h = _U(size)
        for i in range(begin, end - 8, 8):
            h = (h ^ load(data, i)) * _C1
            h ^= h >> _U(32)
        return h, load(data, end - 8)
    if begin + 16 <= len(data):  # without a branch for the size
        first = load(data, begin) << _U(64 - 8 * min(size, 8))
        half = _U(32 - 4 * max(size - 8, 0))  # two steps: no machine shifts by 64
        return first, load(data, begin + 8) << half << half
    first, rest = _U(0), _U(0)
    for i in range(size):
        if i < 8:
            first = first >> _U(8) | _U(data[begin + i]) << _U(56)
        else:
            rest = rest >> _U(8) | _U(data[begin + i]) << _U(56)
    return first, rest


@_code.inner
def _hash(key, last, size):
    h = (key ^ last * _C1 ^ _U(size)) * _C2
    h = (h ^ h >> _U(32)) * _C1
    return h ^ h >> _U(29)


@_code.inner
def _same(a, i, b, j, size):
    k = np.int64(0)
    while k < size and a[np.int64(i) + k] == b[j + k]:
        k += 1
    return k == size


@_code.outer
def _count(data, ends, counts, first, longest, table):
    """Count the pieces from number `first` on; returns the number of the first piece that finds no room."""
    slots, letters, mask = table.slots, table.letters, _U(len(table.slots) - 1)
    words, place, capped = table.used[0], table.used[1], table.used[2]
    room, space = np.int64(len(slots) >> 1), np.int64(len(letters))
    begin, k = ends[first - 1] if first else np.int64(0), first
    while k < len(ends):
        end = ends[k]
        if words >= room or place + end - begin > space:
            break
        if end - begin > longest:
            if words + (end - begin) // (longest - 3) >= room:
                break
            capped += 1
        while begin < end:
            cut = end
            if end - begin > longest:
                cut = begin + longest
                while data[cut] & 0xC0 == 0x80:
                    cut -= 1
            size = cut - begin
            key, last = _keys(data, begin, cut)
            s = _hash(key, last, size) & mask
            while slots[s, 2]:
                same = ((slots[s, 0] ^ key) | (slots[s, 1] ^ last) | (slots[s, 3] >> _U(40) ^ _U(size))) == _U(0)
                if same and (size <= 16 or _same(letters, slots[s, 3] & _U(0xFFFFFFFFFF), data, begin, size)):
                    break
                s = (s + _U(1)) & mask
            if not slots[s, 2]:
                slots[s, 0], slots[s, 1], slots[s, 3] = key, last, _U(size) << _U(40) | _U(place)
                words += 1
                if size > 16:
                    for i in range(size):
                        letters[place + i] = data[begin + i]
                    place += size
            slots[s, 2] += _U(counts[k]) if len(counts) else _U(1)
            begin = cut
        k += 1
    table.used[0], table.used[1], table.used[2] = words, place, capped
    return k


@_code.outer
def _move(old, new):
    mask = _U(len(new) - 1)
    for i in range(len(old)):
        if old[i, 2]:
            s = _hash(old[i, 0], old[i, 1], np.int64(old[i, 3] >> _U(40))) & mask
            while new[s, 2]:
                s = (s + _U(1)) & mask
            for k in range(4):
                new[s, k] = old[i, k]


@_code.outer
def _list(table, hashes, slots):
    """Hash and slot of every word; returns how many letters they have."""
    words, letters = 0, np.int64(0)
    for s in range(len(table.slots)):
        if table.slots[s, 2]:
            size = np.int64(table.slots[s, 3] >> _U(40))
            hashes[words], slots[words] = _hash(table.slots[s, 0], table.slots[s, 1], size), s
            letters += size
            words += 1
    return letters


@_code.outer
def _write(table, order, letters, ends, counts):
    """The words in the slots `order`, one behind the other."""
    end = np.int64(0)
    for w in range(len(order)):
        s = order[w]
        key, last, word = table.slots[s, 0], table.slots[s, 1], table.slots[s, 3]
        size, place = np.int64(word >> _U(40)), np.int64(word & _U(0xFFFFFFFFFF))
        for i in range(size):
            if size > 16:
                letters[end + i] = table.letters[place + i]
            elif i < 8:
                letters[end + i] = key >> _U(64 - 8 * (min(size, 8) - i))
            else:
                letters[end + i] = last >> _U(64 - 8 * (size - i))
        end += size
        ends[w], counts[w] = end, np.int64(table.slots[s, 2])
