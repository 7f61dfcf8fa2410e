"""The trie of a unigram vocabulary, and what else its compiled functions need to know.

A trie holds words by their letters: from the root one step a byte, and a node says whether a piece ends there. Here it
is a double array (Aoki 1989): the child of node n for byte c is slot base[n] + c, provided that the slot's `check` says
n; so a step is one look at one line of memory. Where two nodes' children would share a slot, one of them gets another
base when the array is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["BASE", "CHECK", "VALUE", "Model", "build_model"]

Ids = npt.NDArray[np.int32]

CHECK, BASE, VALUE = 0, 1, 2  # columns of the trie
TRIES: Final = 64  # places tried for a node's children before they are put at the end


class Model(NamedTuple):
    """What the pieces are. `trie` [slots, 3]: parent (-1: free), base, id (-1: no piece ends here); `weights` the score
    of each id, of an unknown character's too; `lengths` the bytes of each id's spelling; `byte_ids` byte → id, or
    empty; `facts`: id of an unknown character, bytes of the longest piece."""

    trie: Ids
    weights: npt.NDArray[np.float32]
    lengths: Ids
    byte_ids: Ids
    facts: npt.NDArray[np.int64]


def build_model(spellings: Mapping[bytes, int], weights: npt.NDArray[np.float32], byte_ids: Ids, unk_id: int) -> Model:
    """The model of pieces by their UTF-8 spelling."""
    lengths = np.zeros(len(weights), np.int32)
    lengths[list(spellings.values())] = list(map(len, spellings))
    return Model(_trie(spellings), weights, lengths, byte_ids, np.array([unk_id, max(lengths.max(initial=0), 4)]))


def _trie(spellings: Mapping[bytes, int]) -> Ids:
    """The double array of all spellings."""
    keys = sorted(spellings)
    letters = np.frombuffer(b"".join(keys), np.uint8)
    starts = np.zeros(len(keys) + 1, np.int64)
    np.cumsum([len(key) for key in keys], out=starts[1:])
    ids = np.array([spellings[key] for key in keys], np.int32)
    stack = np.empty((len(letters) + 2, 4), np.int64)
    slots, used = len(letters) + 1024, -1
    while used < 0:
        slots *= 2
        trie = np.full((slots, 3), -1, np.int32)
        used = _build(letters, starts, ids, trie, np.empty((2, slots), np.int32), stack)
    return trie[: used + 256].copy()


_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)


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
