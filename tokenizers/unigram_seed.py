"""Seed pieces of a unigram vocabulary: all substrings of words that are worth a try, from a suffix array.

A suffix array lists all places of a text in alphabetical order of what follows. Places that start with the same
substring stand side by side in it, so a substring that occurs again is a stretch of the array whose neighbours share at
least its length; the longest common prefixes of neighbours (LCP) tell where stretches begin and end:

    word   b a n a n a          suffix   LCP with the one before
                                a        -
                                ana      1      stretch "a": all three
                                anana    3      stretch "ana": the last two
                                banana   0
                                na       0
                                nana     2      stretch "na"

There are fewer stretches than letters (they are the inner nodes of the suffix tree), whatever the number of substrings.
Only `longest` characters of a suffix matter, a piece's length. So the order is found by doubling (Manber & Myers 1990):
sorted by k characters, places are sorted by 2k through one counting pass, as the order of the second k is known; four
passes for 16, linear in the text, be it ten million times the same letter.

A seed is worth (times its words occur) · (length). Words differ, so a rare one is as long a stretch as a common one; a
word that no other shares a prefix with has no stretch but counts as a seed if it occurs at least twice.

The same stretches say where each seed occurs: the lattice of every word, in which training looks for segmentations, is
read off the suffix array, without any search.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["Lattice", "Seeds", "find_seeds", "read_lattice", "sort_suffixes"]

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]

ANY: Final = -1  # script of a character that goes with any


class Seeds(NamedTuple):
    """Pieces by id, the single characters first: `where` one occurs in the text, its length, its worth."""

    where: Longs
    lengths: npt.NDArray[np.uint8]
    worth: npt.NDArray[np.float64]
    low: Longs  # where its stretch of the suffix array starts and ends; single characters have none
    high: Longs


class Lattice(NamedTuple):
    """Which pieces start at each place i of the text: pieces[first[i] : first[i + 1]], with their lengths."""

    first: Longs
    pieces: Ints
    lengths: npt.NDArray[np.uint8]


# No compiled function makes an array, so Numba need not count references; only outer ones are called from Python.
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)


def find_seeds(text: Ints, weights: Longs, scripts: Ints, longest: int, most: int) -> tuple[Seeds, Ints]:
    """The single characters and the `most` seeds of most worth, longest pieces `longest` characters; and the suffix
    array they refer to.

    `text` holds words as characters 1, 2, …, each word followed by 0; `weights` how often the word at each place
    occurs; `scripts` the script of each character: a piece has one. Character 1 (▁) only starts a piece.
    """
    order = sort_suffixes(text, longest)
    shared = np.empty(len(text) + 1, np.uint8)
    _shared(text, order, longest + 1, shared)
    total = np.zeros(len(text) + 1, np.int64)
    np.cumsum(weights[order], out=total[1:])
    found = np.empty((2 * len(text), 3), np.int64)  # length, low, high
    stack = np.empty((longest + 3, 2), np.int64)
    found = found[: _stretches(text, order, shared, total, scripts, longest, stack, found)]
    worth = (total[found[:, 2]] - total[found[:, 1]]) * found[:, 0]
    best = np.lexsort((found[:, 1], found[:, 0], -worth))[:most]
    found, worth = found[best], worth[best]
    letters, at = np.unique(text, return_index=True)
    single = np.bincount(text, weights)[1:]
    at = at[letters > 0]
    none = np.zeros(len(at), np.int64)
    return Seeds(
        np.concatenate([at, order[found[:, 1]]]).astype(np.int64),
        np.concatenate([none + 1, found[:, 0]]).astype(np.uint8),
        np.concatenate([single, worth]).astype(np.float64),
        np.concatenate([none, found[:, 1]]),
        np.concatenate([none, found[:, 2]]),
    ), order


def read_lattice(text: Ints, order: Ints, seeds: Seeds) -> Lattice:
    """All occurrences of all seeds; a single character's id is its number less 1."""
    first = np.zeros(len(text) + 2, np.int64)
    _count_edges(text, order, seeds.low, seeds.high, first)
    np.cumsum(first, out=first)
    pieces = np.empty(first[-1], np.int32)
    lengths = np.empty(first[-1], np.uint8)
    _fill_edges(text, order, seeds.low, seeds.high, seeds.lengths, first, pieces, lengths)
    return Lattice(first[:-1], pieces, lengths)


# ---------------------------------------------------------------- the suffix array


def sort_suffixes(text: Ints, longest: int) -> Ints:
    """All places of `text` in order of the `longest` characters from there on, or more."""
    n = len(text)
    letters = int(text.max(initial=0)) + 1
    order = np.argsort(text, kind="stable").astype(np.int32)
    rank = np.concatenate([[0], np.cumsum(np.bincount(text, minlength=letters))])[text].astype(np.int32)
    heads, spare = np.empty(n, np.int32), np.empty(n, np.int32)
    k = 1
    while k < longest:
        _double(k, order, rank, heads, spare)
        order, spare = spare, order
        _rank(k, order, rank, spare)
        rank, spare = spare, rank
        k *= 2
    return order


@_outer
def _double(k, order, rank, heads, out):
    """From the order by k characters that by 2k. Going through `order` and stepping k back lists places in order of
    their second k characters; each goes to the next free slot among those with its first k. rank[i] is the first
    slot of those."""
    n = len(order)
    for j in range(n):
        heads[j] = j
    for j in range(max(0, n - k), n):  # nothing follows after k characters: first of all
        out[heads[rank[j]]] = j
        heads[rank[j]] += 1
    for j in range(n):
        i = order[j] - k
        if i >= 0:
            out[heads[rank[i]]] = i
            heads[rank[i]] += 1


@_outer
def _rank(k, order, rank, out):
    """The first slot of the places that share their first 2k characters with each place."""
    n, first = len(order), 0
    for j in range(n):
        i, before = order[j], order[j - 1]
        if j and rank[i] == rank[before]:
            one = rank[i + k] if i + k < n else -1
            other = rank[before + k] if before + k < n else -1
            first = first if one == other else j
        else:
            first = j
        out[i] = first


@_outer
def _shared(text, order, most, shared):
    """shared[j]: how many characters, `most` at most, the suffixes at order[j - 1] and order[j] have in common before
    either's word ends; 0 at both ends."""
    n = len(order)
    shared[0] = shared[n] = 0
    for j in range(1, n):
        a, b, size = order[j - 1], order[j], 0
        while size < most and text[a + size] == text[b + size] and text[a + size] != 0:
            size += 1
        shared[j] = size


# ---------------------------------------------------------------- seeds


@_inner
def _valid(text, scripts, place, length):
    """Whether this is a piece: ▁ only in front, one script."""
    script = ANY
    for i in range(place, place + length):
        own = scripts[text[i]]
        if text[i] == 1:
            if i > place:
                return False
        elif own != ANY:
            if script != ANY and script != own:
                return False
            script = own
    return True


@_outer
def _stretches(text, order, shared, total, scripts, longest, stack, found):
    """Write (length, low, high) of every stretch whose substring is a piece of two characters or more, and of lone
    words; returns how many. `stack`: length and start of the stretches that are open."""
    n, top, count = len(order), 0, 0
    stack[0, 0], stack[0, 1] = 0, 0
    for j in range(1, n + 1):
        low, size = j - 1, np.int64(shared[j])
        while stack[top, 0] > size:
            length, low = stack[top, 0], stack[top, 1]
            top -= 1
            if 1 < length <= longest and _valid(text, scripts, order[low], length):
                found[count, 0], found[count, 1], found[count, 2] = length, low, j
                count += 1
        if size > stack[top, 0]:
            top += 1
            stack[top, 0], stack[top, 1] = size, low
        place = order[j - 1]  # a word that shares less than its length with both neighbours
        if total[j] - total[j - 1] > 1 and text[place] != 0 and (place == 0 or text[place - 1] == 0):
            length = 0
            while text[place + length] != 0 and length <= longest:
                length += 1
            alone = length > shared[j - 1] and length > shared[j]
            if alone and 1 < length <= longest and _valid(text, scripts, place, length):
                found[count, 0], found[count, 1], found[count, 2] = length, j - 1, j
                count += 1
    return count


@_outer
def _count_edges(text, order, low, high, first):
    """first[i + 2]: how many seeds start at place i."""
    for i in range(len(text)):
        first[i + 2] = 1 if text[i] else 0
    for s in range(len(low)):
        for j in range(low[s], high[s]):
            first[order[j] + 2] += 1


@_outer
def _fill_edges(text, order, low, high, sizes, first, pieces, lengths):
    """Write the edges; first[i + 1] moves from where those of place i start to where they end."""
    for i in range(len(text)):
        if text[i]:
            pieces[first[i + 1]], lengths[first[i + 1]] = text[i] - 1, 1
            first[i + 1] += 1
    for s in range(len(low)):
        for j in range(low[s], high[s]):
            e = first[order[j] + 1]
            pieces[e], lengths[e] = s, sizes[s]
            first[order[j] + 1] += 1
