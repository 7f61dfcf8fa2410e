"""tiktoken's file of ranks, read at the speed of the disk: a token in base64, a blank and its rank, a line each.

    IQ== 0          !
    Ig== 1          "
    …
    IHRoZQ== 279    ␣the

Base64 spells three bytes as four signs of six bits; `=` fills up the last four. `ranks_by_the_book` takes any such file
and says what is wrong with one; the compiled loop takes those that have every rank from 0 on in order, as all have that
are about, and leaves others to the book.
"""

from __future__ import annotations

import binascii
from functools import cache, partial
from typing import Final

import numpy as np
import numpy.typing as npt

from luthier.tokenizers.machine_code import Code

__all__ = ["RanksError", "ranks_by_the_book", "read_ranks"]

SIGNS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_FILL, _BLANK, _LINE, _ZERO = b"= \n0"
_code = Code(__name__)
_from_base64 = partial(binascii.a2b_base64, strict_mode=True)


class RanksError(ValueError):
    """A line that is no token and rank; the first argument is its number, the second what is wrong."""


def read_ranks(data: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None:
    """All bytes of the tokens and where each ends, if their ranks are 0, 1, 2 …; None for any other file."""
    text = np.frombuffer(data, np.uint8)
    letters, ends = np.empty(len(data) + 3, np.uint8), np.empty(data.count(b"\n") + 1, np.int64)
    count = _read(text, _values(), letters, ends)
    return None if count < 0 else (letters[: ends[count - 1] if count else 0].copy(), ends[:count].copy())


def ranks_by_the_book(data: bytes) -> dict[int, bytes]:
    """Rank → token. Raises RanksError."""
    by_rank: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            token, rank = _from_base64(token), int(rank)
        except (ValueError, binascii.Error) as error:
            raise RanksError(number, "expected a token in base64 and its rank") from error
        if rank in by_rank:
            raise RanksError(number, f"rank {rank} is given twice")
        by_rank[rank] = token
    return by_rank


@cache
def _values() -> npt.NDArray[np.uint8]:
    """For every byte the six bits it stands for, 64 for one that is no sign."""
    values = np.full(256, 64, np.uint8)
    values[list(SIGNS)] = np.arange(64)
    return values


@_code.outer
def _read(data, values, letters, ends):
    """Write the tokens' bytes and ends; returns how many there are, -1 where a line is not as expected."""
    i, o, k, n = 0, 0, 0, len(data)
    while i < n:
        bits, signs = 0, 0
        while i < n and values[data[i]] < 64:
            bits = bits << 6 | np.int64(values[data[i]])
            signs += 1
            if signs & 3 == 0:
                letters[o], letters[o + 1], letters[o + 2] = bits >> 16, bits >> 8 & 0xFF, bits & 0xFF
                bits, o = 0, o + 3
            i += 1
        fill = 4 - (signs & 3) if signs & 3 else 0
        for _ in range(fill):
            if i >= n or data[i] != _FILL:
                return -1
            i += 1
        unused = 4 if fill == 2 else 2
        if fill == 3 or signs == 0 or (fill and bits & ((1 << unused) - 1)):
            return -1
        if fill:
            bits >>= unused
            if fill == 1:
                letters[o], o = bits >> 8, o + 1
            letters[o], o = bits & 0xFF, o + 1
        if i >= n or data[i] != _BLANK:
            return -1
        i, rank, digits = i + 1, 0, 0
        while i < n and _ZERO <= data[i] <= _ZERO + 9 and digits < 10:
            rank = 10 * rank + np.int64(data[i]) - _ZERO
            i, digits = i + 1, digits + 1
        if rank != k or not digits or (i < n and data[i] != _LINE):
            return -1
        ends[k] = o
        i, k = i + 1, k + 1
    return k
