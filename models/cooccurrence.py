"""Counting who stands near whom, in as much memory as is given.

X_ij is how often word j stands within `window` words of word i in the same document, a pair at distance d adding 1/d
(Pennington et al. 2014, §4.2). Most entries are zero; those that are not can still be more than memory holds.

**A row at a time.** First list, for each word i, all places where it stands (one counting sort of the text). Then walk
through the places of word i, and add each neighbour j to `row[j]`. All additions to row i of X come one after the
other, so one row of V sums is all that is being written, and of it mostly the front: rows are ordered by count.
There is no table to search and no list of pairs to sort. A bit for each sum that is not zero, and a bit for each 64
of those bits, give the entries in order of j without looking at the zeros.

**Text larger than memory** is counted a block at a time. A block's rows are written to disk as a sorted run of (i, j,
sum), and the runs are merged. Entries of two frequent words come in every block, so these stay in memory throughout, in
a dense block of H × H sums, and are no part of the runs.

    text ─block─▶ places of each word ─row by row─┬─▶ i, j < H: dense block ──────────────┬─▶ i, j, x on disk, sorted
                                                  └─▶ else: runs on disk ──external merge─┘

**Sums are whole numbers**: 1/d is rounded to a multiple of 2⁻³⁰, finer than float32's own rounding, and added as int64.
Whole numbers add up to the same in any order, so X has the same bits for any block size and number of threads. A pair
can meet 2³³ times at distance 1.

Legend: V words, N words of text, H words of the dense block, P pairs. Rows are the vectors' rows, 0 the commonest word.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from luthier.models.vectors import VectorsError

__all__ = ["Cooccurrences", "count_pairs", "count_pairs_plain"]

UNIT = 1 << 30  # the sum of a pair that stood side by side once
MEMORY = 1 << 30  # bytes

# Entries of a run are int64 [n, 2]: the key i · 2³² + j, and the sum in units.


class Cooccurrences(NamedTuple):
    """The pairs with a count above zero, sorted: rows i and j int32, count x float32; where the window is symmetric,
    both (i, j) and (j, i). The arrays may lie on disk, memory-mapped."""

    i: np.ndarray
    j: np.ndarray
    x: np.ndarray


def count_pairs_plain(
    rows: np.ndarray, offsets: np.ndarray, window: int, symmetric: bool = True
) -> dict[tuple[int, int], float]:
    """X as a dictionary (i, j) → count, the readable way. Where the window is not symmetric, j stands before i."""
    counts: Counter[tuple[int, int]] = Counter()
    for start, end in pairwise(offsets):
        document = [int(row) for row in rows[start:end]]
        for at, word in enumerate(document):
            for distance in range(1, min(window, at) + 1):
                before = document[at - distance]
                counts[word, before] += 1 / distance  # pyright: ignore[reportArgumentType]
                if symmetric:
                    counts[before, word] += 1 / distance  # pyright: ignore[reportArgumentType]
    return dict(counts)


# ---------------------------------------------------------------- the fast twin


def count_pairs(
    rows: np.ndarray,
    offsets: np.ndarray,
    size: int,
    *,
    window: int = 5,
    symmetric: bool = True,
    workers: int = 1,
    max_memory: int = MEMORY,
    folder: Path | None = None,
) -> Cooccurrences:
    """X of the text `rows` (int, values below `size`, 0 the commonest), documents between `offsets`.

    At most about `max_memory` bytes are held, X itself included if `folder` is given, where X then lies in files. The
    result has the same bits for any memory and number of workers. Raises VectorsError where the memory cannot do."""
    plan = _plan(len(rows), size, window, workers, max_memory)
    with tempfile.TemporaryDirectory(prefix="runs-", dir=folder) as scratch:
        if plan.block >= len(rows):
            return _collect(_entries(rows, offsets, 0, len(rows), size, window, symmetric, workers, plan), folder)
        runs = []
        for start in range(0, len(rows), plan.block):
            stop = min(start + plan.block, len(rows))
            entries = _entries(rows, offsets, start, stop, size, window, symmetric, workers, plan)
            runs.append(_write_run(Path(scratch) / str(len(runs)), entries))
        runs.append(_write_run(Path(scratch) / "dense", _dense_entries(plan.dense)))
        return _collect(_merged(runs, max(plan.segment // len(runs), 1)), folder)


class _Plan(NamedTuple):
    """How the memory is shared out: words a block, entries a thread makes at a time, the sums [H, H] of the dense block
    (H = 0 where one block holds the whole text)."""

    block: int
    segment: int
    dense: np.ndarray


def _plan(length: int, size: int, window: int, workers: int, max_memory: int) -> _Plan:
    """A quarter each for the dense block, the text and its places (8 bytes a word), and the entries being made (16)."""
    quarter = max_memory // 4
    block, segment = quarter // 8, quarter // 16 // (workers + 1)
    least = 64 * size * (workers + 1)
    if max_memory < least:
        raise VectorsError(f"max_memory = {max_memory:,} bytes: {size:,} words and {workers} threads need {least:,}")
    hot = 0 if block >= length else min(size, int((quarter / 8) ** 0.5))
    return _Plan(block, segment, np.zeros((hot, hot), np.int64))


def _entries(
    rows: np.ndarray,
    offsets: np.ndarray,
    start: int,
    stop: int,
    size: int,
    window: int,
    symmetric: bool,
    workers: int,
    plan: _Plan,
) -> Iterator[np.ndarray]:
    """The entries of the places start … stop − 1, sorted, a part at a time; the dense block's are added to it."""
    text, first, last = _with_gaps(rows, offsets, start, stop, window)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows[start:stop], minlength=size))])
    places = np.empty(stop - start, np.int32)
    _list_places(text, first, last, starts[:-1].copy(), places)
    units = np.array([0, *(round(UNIT / d) for d in range(1, window + 1))], np.int64)
    most = np.minimum(np.diff(starts) * window * (1 + symmetric), size)  # entries a word can make
    cuts = _cuts(np.cumsum(most), plan.segment)

    def make(part: tuple[int, int]) -> np.ndarray:
        out = np.empty((int(most[slice(*part)].sum()), 2), np.int64)
        sums, bits, groups = np.zeros(size, np.int64), np.zeros(size // 64 + 1, np.uint64), size // 4096 + 1
        fixed = (sums, bits, np.zeros(groups, np.uint64), plan.dense, out)
        return out[: _count_rows(text, places, starts, *part, units, symmetric, *fixed)]

    with ThreadPoolExecutor(workers) as pool:  # each thread has one part in work, the caller one in hand
        waiting = []
        for part in pairwise(cuts):
            waiting.append(pool.submit(make, part))
            if len(waiting) > workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _with_gaps(
    rows: np.ndarray, offsets: np.ndarray, start: int, stop: int, window: int
) -> tuple[np.ndarray, int, int]:
    """The text start … stop − 1 and a window more on either side, −1 before and after each document; and where start
    and stop are in it."""
    left, right = max(start - window, 0), min(stop + window, len(rows))
    cuts = np.unique(offsets[(offsets > left) & (offsets < right)])
    text = np.full(right - left + len(cuts) + 2, -1, np.int32)
    at = left
    for number, end in enumerate([*cuts.tolist(), right], 1):
        text[at - left + number : end - left + number] = rows[at:end]
        at = end
    place = [p - left + 1 + int(np.searchsorted(cuts, p, "right")) for p in (start, stop - 1)]
    return text, place[0], place[1] + 1


def _cuts(ends: np.ndarray, most: int) -> list[int]:
    """Where to cut so that a part makes `most` entries or is one word."""
    cuts, made = [0], 0
    while cuts[-1] < len(ends):
        cuts.append(max(int(np.searchsorted(ends, made + most, "right")), cuts[-1] + 1))
        made = int(ends[cuts[-1] - 1])
    return cuts


_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False, "boundscheck": False}


@intrinsic
def _low_bit(typingctx: Any, x: Any) -> Any:
    """The place of the lowest bit that is set; x is not 0."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), make


@njit(**_FAST)
def _list_places(text, first, last, ends, places):
    """places: where each word stands in text[first:last], in order; `ends` [V] where each word's list begins."""
    for p in range(first, last):
        word = text[p]
        if word >= 0:
            places[ends[word]] = p
            ends[word] += 1


@njit(**_FAST)
def _count_rows(text, places, starts, first, last, units, symmetric, sums, bits, groups, dense, out):
    """Rows first … last − 1 of X into `out` [n, 2]; returns n. `sums` [V], `bits` and `groups` are zeros before and
    after; what belongs to the dense block goes there."""
    one, n = np.uint64(1), 0
    for i in range(first, last):
        for at in range(starts[i], starts[i + 1]):
            p = places[at]
            for side in range(-1, 1 + symmetric, 2):
                for d in range(1, len(units)):
                    if text[p + side * d] < 0:
                        break
                    k = np.uint64(text[p + side * d])  # unsigned: Numba need not ask for indices from the end
                    b = k >> np.uint64(6)
                    sums[k] += units[d]
                    if bits[b] == 0:
                        groups[b >> np.uint64(6)] |= one << (b & np.uint64(63))
                    bits[b] |= one << (k & np.uint64(63))
        for g in range(len(groups)):
            group, groups[g] = groups[g], 0
            while group:
                block = g << 6 | _low_bit(group)  # pyright: ignore[reportCallIssue]
                group &= group - one
                word, bits[block] = bits[block], 0
                while word:
                    j = block << 6 | _low_bit(word)  # pyright: ignore[reportCallIssue]
                    word &= word - one
                    if i < len(dense) and j < len(dense):
                        dense[i, j] += sums[j]
                    else:
                        out[n, 0], out[n, 1] = i << 32 | j, sums[j]
                        n += 1
                    sums[j] = 0
    return n


# ---------------------------------------------------------------- runs


def _write_run(path: Path, parts: Iterator[np.ndarray]) -> np.ndarray:
    """The entries in a file, as a mapped array."""
    with path.open("wb") as file:
        for part in parts:
            part.tofile(file)
    count = path.stat().st_size // 16
    return np.memmap(path, np.int64, "r", shape=(count, 2)) if count else np.zeros((0, 2), np.int64)


def _dense_entries(dense: np.ndarray) -> Iterator[np.ndarray]:
    for i, sums in enumerate(dense):
        j = np.flatnonzero(sums)
        yield np.stack([i << 32 | j, sums[j]], axis=1)


def _merged(runs: list[np.ndarray], most: int) -> Iterator[np.ndarray]:
    """All entries in order, equal keys added up, a part at a time. Each time, up to `most` entries of each run are
    looked at, and those are taken that no run's unseen entries can precede."""
    at = [0] * len(runs)
    while any(start < len(run) for start, run in zip(at, runs, strict=True)):
        seen = [run[start : start + most] for start, run in zip(at, runs, strict=True)]
        ends = [part[-1, 0] for part, start, run in zip(seen, at, runs, strict=True) if start + most < len(run)]
        bound = min(ends, default=np.iinfo(np.int64).max)
        taken = [part[: np.searchsorted(part[:, 0], bound, "right")] for part in seen]
        at = [start + len(part) for start, part in zip(at, taken, strict=True)]
        yield _add_up([np.asarray(part) for part in taken if len(part)])


def _add_up(parts: list[np.ndarray]) -> np.ndarray:
    """Sorted entries of several lists, two lists at a time."""
    while len(parts) > 1:
        pairs = [parts[n : n + 2] for n in range(0, len(parts), 2)]
        parts = [_two(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]


def _two(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.empty((len(a) + len(b), 2), np.int64)
    return out[: _merge(np.ascontiguousarray(a), np.ascontiguousarray(b), out)]


@njit(**_FAST)
def _merge(a, b, out):
    """Merge two sorted lists of entries, equal keys added up; returns how many there are."""
    m = k = n = 0
    while m < len(a) or k < len(b):
        left = k == len(b) or (m < len(a) and a[m, 0] <= b[k, 0])
        right = m == len(a) or (k < len(b) and b[k, 0] <= a[m, 0])
        out[n, 0], out[n, 1] = a[m, 0] if left else b[k, 0], 0
        if left:
            out[n, 1] += a[m, 1]
            m += 1
        if right:
            out[n, 1] += b[k, 1]
            k += 1
        n += 1
    return n


# ---------------------------------------------------------------- the result


def _collect(parts: Iterator[np.ndarray], folder: Path | None) -> Cooccurrences:
    """X of sorted entries: in memory, or in three files of the folder."""
    columns = (_columns(part) for part in parts)
    if folder is None:
        lists = [list(column) for column in zip(*columns, strict=True)]
        if not lists:
            return Cooccurrences(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
        i, j, x = (np.concatenate(column) for column in lists)
        return Cooccurrences(i, j, x)
    paths = [Path(folder) / f"pairs.{name}" for name in Cooccurrences._fields]
    files = [path.open("wb") for path in paths]
    for part in columns:
        for column, file in zip(part, files, strict=True):
            column.tofile(file)
    for file in files:
        file.close()
    return open_pairs(folder)


def _columns(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    i, j, x = np.empty(len(part), np.int32), np.empty(len(part), np.int32), np.empty(len(part), np.float32)
    _split(part, i, j, x)
    return i, j, x


@njit(**_FAST)
def _split(part, i, j, x):
    for n in range(len(part)):
        i[n], j[n], x[n] = part[n, 0] >> 32, part[n, 0] & 0xFFFFFFFF, part[n, 1] * (1.0 / UNIT)


def open_pairs(folder: Path) -> Cooccurrences:
    """X as `count_pairs` left it in the folder, memory-mapped."""
    # Mode "c" (changes stay in memory): to Numba, what cannot be changed is a type of its own, compiled once more.
    sizes = {name: (Path(folder) / f"pairs.{name}").stat().st_size // 4 for name in "ijx"}

    def column(name: str, dtype: type) -> np.ndarray:
        return np.memmap(Path(folder) / f"pairs.{name}", dtype, "c") if sizes[name] else np.zeros(0, dtype)

    return Cooccurrences(column("i", np.int32), column("j", np.int32), column("x", np.float32))
