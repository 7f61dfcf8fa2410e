"""Python's strings as UTF-8: no copy where there need be none, and where there must be one not under Python's lock.

CPython keeps a string with one, two or four bytes a character, by its widest (PEP 393). ASCII is UTF-8 already, so the
string lends its own bytes. One curly quotation mark makes two bytes of every character:

    It’s he   →   I 0 t 0 ’ ’ s 0 ␣ 0 h 0 e 0   →   I t ’ ’ ’ s ␣ h e

Thirty-two characters are narrowed at once, up to the first that is not ASCII. `text.encode()` does the same while all
other threads of Python wait. Long strings are asked for their UTF-8 all the same: Python keeps it, and the next time it
is there.

    look     what each string is: takes Python's lock, and but for long strings nanoseconds
    write    the UTF-8 of those that are not
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from luthier.tokenizers.machine_code import Code

if TYPE_CHECKING:
    from luthier.tokenizers.instructions import low_bit, narrow, utf8, view

__all__ = ["LONG", "steps"]

LONG: Final = 1 << 14  # characters from which on Python is asked

_code = Code(__name__)


# A string in memory: 16 bytes of any object, its length, its hash, its state (from some bit on three that say the bytes
# of a character, one for "the characters follow", one for "they are ASCII"), some more, its characters
_LENGTH, _STATE, _UNKNOWN = 16, 32, 32


def _shift() -> int:
    """The bit at which the state says what we ask; _UNKNOWN, where it then says nothing, if this Python has another."""
    told = {
        text: ctypes.c_uint32.from_address(id(text) + _STATE).value for text in ("a", "\xe9", "\u20ac", "\U0001f600")
    }
    for shift in (2, 16):
        if [state >> shift & 31 for state in told.values()] == [0b11001, 0b01001, 0b01010, 0b01100]:
            return shift
    return _UNKNOWN


_SHIFT: Final = _shift()
_ASCII, _WIDE = sys.getsizeof("a") - 2, sys.getsizeof("\u20ac") - 4  # where the characters begin, ASCII or not


@cache
def steps() -> tuple[int, int]:
    """The addresses of `_look` and `_write`, for compiled code of another file."""
    return _look.address(*range(3)), _write.address(*range(4))


@_code.outer(held=True)
def _look(texts, starts, count):
    """Of each string at texts[k] put the address of its characters there, and into starts[k + 1] how many they are and,
    in the lowest three bits, the bytes of each, 0 for UTF-8. Returns the characters of all; -1 - k if text k is no
    Unicode text."""
    texts, starts = view(texts, count, np.int64), view(starts, count + 1, np.int64)
    total = 0
    for k in range(count):
        size = view(texts[k] + _LENGTH, 1, np.int64)[0]
        state = np.int64(view(texts[k] + _STATE, 1, np.uint32)[0]) >> _SHIFT
        width, compact, is_ascii = state & 7, state >> 3 & 1, state >> 4 & 1
        if compact and is_ascii:
            place, width = texts[k] + _ASCII, 0
        elif compact and size <= LONG:
            place = texts[k] + _WIDE
        else:
            place, size = utf8(texts[k])
            width = 0
            if not place:
                return -1 - k
        texts[k], starts[k + 1] = place, size << 3 | width
        total += size
    return total


@_code.outer
def _write(texts, starts, count, out):
    """Write the UTF-8 of the texts that are not. Then texts[k] is where the bytes of a text are, and `starts` says
    where each text starts in all bytes. Returns their number; -1 - k if text k is no Unicode text. There is room
    for four bytes a character at `out`."""
    texts, starts = view(texts, count, np.int64), view(starts, count + 1, np.int64)
    for k in range(count):
        size, width = starts[k + 1] >> 3, starts[k + 1] & 7
        if width:
            room = view(out, 4 * size + 32, np.uint8)
            if width == 1:
                size = _transcode(view(texts[k], size, np.uint8), room)
            elif width == 2:
                size = _transcode(view(texts[k], size, np.uint16), room)
            else:
                size = _transcode(view(texts[k], size, np.uint32), room)
            if size < 0:
                return -1 - k
            texts[k] = out
            out += size
        starts[k + 1] = starts[k] + size
    return starts[count]


@_code.inner
def _transcode(characters, out):
    """Write `characters` as UTF-8, and perhaps 32 bytes more; returns the number of bytes, -1 for half of a pair."""
    i, o, n = 0, 0, len(characters)
    while i < n:
        if i + 32 <= n:
            beyond = narrow(characters, i, out, o)
            if not beyond:
                i, o = i + 32, o + 32
                continue
            ascii = np.int64(low_bit(beyond))
            i, o = i + ascii, o + ascii
        c = np.uint32(characters[i])
        while True:
            if c < 0x80:
                out[o] = c
                o += 1
            elif c < 0x800:
                out[o], out[o + 1] = 0xC0 | c >> 6, 0x80 | c & 0x3F
                o += 2
            elif c < 0x10000:
                if c >> 11 == 0x1B:
                    return -1
                out[o], out[o + 1], out[o + 2] = 0xE0 | c >> 12, 0x80 | c >> 6 & 0x3F, 0x80 | c & 0x3F
                o += 3
            else:
                out[o], out[o + 1] = 0xF0 | c >> 18, 0x80 | c >> 12 & 0x3F
                out[o + 2], out[o + 3] = 0x80 | c >> 6 & 0x3F, 0x80 | c & 0x3F
                o += 4
            i += 1
            if i == n or characters[i] < 0x80:
                break
            c = np.uint32(characters[i])
    return o
