"""Cutting text where no piece can lie: the pre-tokenization of a tokenizer that has none.

SentencePiece's BPE sees a whole text as one word. But a merge makes a piece, so two neighbouring characters that stand
side by side in no piece are never joined, and what is left of them is independent of what is right. Most pairs of
characters are of that kind (Llama 2's pieces hold 3,279 of them), any letter before a space among them, so text falls
into words that can be remembered; ids are the same, whatever the pieces are. If every pair can be joined, the text is
one word.

    The quick fox,⏎jumps    →    The|␣quick|␣fox|,|⏎|jumps        where no piece holds "x,", "e␣" …

Pairs of ASCII characters are looked up in a table, others in a set of bits by their hash: a false hit only means a cut
less.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = ["Joints", "cut_words", "finish", "joints"]

Ids = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]

BITS: Final = 18  # of the hash: 32 kB


class Joints(NamedTuple):
    """Pairs of characters that stand side by side in a piece."""

    ascii: npt.NDArray[np.uint8]  # [128 * 128]
    others: npt.NDArray[np.uint64]  # bits
    space: np.int64  # the character that ▁ is the same as


def joints(pieces: Iterable[str], *, escaped: bool) -> Joints:
    """The pairs in `pieces`; `escaped`: a space in text is ▁."""
    pairs = {(a, b) for piece in pieces for a, b in pairwise(piece)}
    space = 0x20 if escaped else 0x2581
    codes = np.array([(ord(a), ord(b)) for a, b in pairs], np.uint64).reshape(-1, 2)
    codes[codes == 0x2581] = space
    table, bits = np.zeros(128 * 128, np.uint8), np.zeros(1 << BITS - 6, np.uint64)
    low = (codes < 128).all(axis=1)
    table[(codes[low, 0] << 7 | codes[low, 1]).astype(np.int64)] = 1
    for a, b in codes[~low].tolist():
        h = (a * A + b * B & (1 << 64) - 1) >> 64 - BITS
        bits[h >> 6] |= np.uint64(1 << (h & 63))
    return Joints(table, bits, np.int64(space))


def cut_words(data: npt.NDArray[np.uint8], starts: Places, table: Joints) -> npt.NDArray[np.uint64]:
    """Where words begin in the texts data[starts[k] : starts[k + 1]], in bits as scan.py's `scan` gives them."""
    begins = np.zeros(len(data) // 64 + len(starts) - 1, np.uint64)
    _cut(data, starts, table.ascii, table.others, table.space, begins)
    return begins


def finish(ids: Ids, offsets: Places, spelled: Ids, sizes: Ids, vocab_size: int, unk_id: int) -> tuple[Ids, Places]:
    """Ids past the vocabulary are parts of characters without a piece: written in bytes, as `spelled` [parts, 4] and
    `sizes` say, or, where a size is 0, as the unknown token, one for a run of them."""
    if not len(ids) or ids.max() < vocab_size:
        return ids, offsets
    out, ends = np.empty(4 * len(ids), np.int32), np.zeros_like(offsets)
    count = _finish(ids, offsets, spelled, sizes, vocab_size, unk_id, out, ends)
    return out[:count].copy(), ends


_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False, "boundscheck": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)

_U = np.uint64
A: Final = 0x9E3779B97F4A7C15
B: Final = 0xC2B2AE3D27D4EB4F


@_inner
def _read(data, i, space):
    """The character at byte i, ▁ as a space, and its bytes."""
    b = np.int64(data[i])
    if b < 0x80:
        return b, 1
    if b < 0xE0:
        return (b & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F), 2
    if b < 0xF0:
        c = (b & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | np.int64(data[i + 2] & 0x3F)
        return space if c == 0x2581 else c, 3
    high = (b & 0x07) << 18 | np.int64(data[i + 1] & 0x3F) << 12
    return high | np.int64(data[i + 2] & 0x3F) << 6 | np.int64(data[i + 3] & 0x3F), 4


@_inner
def _joined(others, a, b):
    h = (_U(a) * _U(A) + _U(b) * _U(B)) >> _U(64 - BITS)
    return (others[h >> _U(6)] >> (h & _U(63))) & _U(1)


@_outer
def _cut(data, starts, ascii, others, space, begins):
    for k in range(len(starts) - 1):
        i, end, start = starts[k], starts[k + 1], starts[k]
        first = (start >> 6) + k
        begins[first] |= _U(1)
        before = np.int64(0)
        if i < end:
            before, size = _read(data, i, space)
            i += size
        while i < end:
            while i < end and before < 128 and data[i] < 0x80:
                now = np.int64(data[i])
                place = i - start
                begins[first + (place >> 6)] |= _U(1 ^ ascii[before << 7 | now]) << _U(place & 63)
                before = now
                i += 1
            if i < end:
                now, size = _read(data, i, space)
                if before < 128 and now < 128:
                    joined = _U(ascii[before << 7 | now])
                else:
                    joined = _joined(others, before, now)
                place = i - start
                begins[first + (place >> 6)] |= (_U(1) ^ joined) << _U(place & 63)
                before = now
                i += size
        begins[first + ((end - start) >> 6)] |= _U(1) << _U((end - start) & 63)


@_outer
def _finish(ids, offsets, spelled, sizes, vocab_size, unk_id, out, ends):
    o = np.int64(0)
    for k in range(len(offsets) - 1):
        begin = o
        for j in range(offsets[k], offsets[k + 1]):
            part = np.int64(ids[j]) - vocab_size
            if part < 0:
                out[o] = ids[j]
                o += 1
            elif sizes[part] == 0:
                if o == begin or out[o - 1] != unk_id:
                    out[o] = unk_id
                    o += 1
            else:
                for n in range(sizes[part]):
                    out[o] = spelled[part, n]
                    o += 1
        ends[k + 1] = o
    return o
