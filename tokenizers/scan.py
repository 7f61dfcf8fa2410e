r"""Where the pieces of a text begin: the patterns of pretokenize.py as a scanner compiled by Numba.

Two ways to the same places. `piece_end` walks: one code point at a time, its Unicode classes from a table, the
alternatives of the pattern in order. `scan` looks at 64 bytes at once. Vector instructions turn a block into masks with
one bit a byte, and a piece begins where the masks, shifted against each other, say so (as simdjson finds structure in
JSON; Langdale & Lemire 2019, arXiv:1902.08318). For GPT-4's pattern, bit 0 on the left:

    text            I t ' s   1 2 3 4 5   °   x ␣ ␣ y       ° has two bytes, both carry its class
    letters L       1 1 . 1 . . . . . . . . . . 1 . . 1
    numerals N      . . . . . 1 1 1 1 1 . . . . . . . .
    white W         . . . . 1 . . . . . 1 . . 1 . 1 1 .
    others O        . . 1 . . . . . . . . 1 1 . . . . .
    L & ~(L << 1)   1 . . 1 . . . . . . . . . . 1 . . 1     first letters
    begins          1 . 1 . 1 1 . . 1 . 1 . . 1 . 1 1 .     after a blank or a lone sign a word begins with that

Runs are followed by adding: a bit added at the left end of a run of ones carries to its right end. What the masks
cannot say is rare and marks the block as hard: the walk then goes over it (white space beyond ASCII; in o200k marks
after punctuation and letters without case before capitals).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import regex

from luthier.tokenizers.machine_code import Code, kept

if TYPE_CHECKING:
    from luthier.tokenizers.instructions import ascii_masks, high_bit, low_bit, view

__all__ = ["RULES", "compiled", "ends_of", "scan", "scanner"]

NONE, LETTER, NUMBER, SPACE, NEWLINE, UPPER, LOWER = map(np.int64, (0, 1, 2, 4, 8, 16, 32))
# o200k's upper and lower: letters without case and marks are both. `regex` finds single properties faster than sets.
_CLASSES = {
    **dict.fromkeys(("Lu", "Lt"), LETTER | UPPER),
    **dict.fromkeys(("Lm", "Lo"), LETTER | UPPER | LOWER),
    **{"Ll": LETTER | LOWER, "M": UPPER | LOWER, "N": NUMBER},
}
_APOSTROPHE, _BLANK, _SLASH = 39, 32, 47
_code = Code(__name__)

_GPT2, _SMOLLM, _GPT4, _O200K = map(np.int64, range(4))
# name → rule, numerals in one piece at most, white space up to the end of the text is one piece
RULES: Final = {
    "gpt2": (_GPT2, 1 << 62, False),
    "smollm": (_SMOLLM, 1, False),
    "cl100k": (_GPT4, 3, True),
    "llama3": (_GPT4, 3, False),
    "qwen2": (_GPT4, 1, False),
    "o200k": (_O200K, 3, False),
}


def scan(data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], name: str) -> npt.NDArray[np.uint64]:
    """Where pieces begin in UTF-8 texts, text k being data[starts[k] : starts[k + 1]], by the rule of that name.

    Bit i % 64 of word starts[k] // 64 + k + i // 64 is for byte i of text k; the bit after its last byte is set too."""
    begins = np.empty(len(data) // 64 + len(starts) - 1, np.uint64)
    starts = np.ascontiguousarray(starts, np.int64)
    arrays = (data.ctypes.data + starts[:-1], starts, begins, np.empty(64, np.uint8))
    places = [array.ctypes.data for array in arrays]
    _scan(*places, len(starts) - 1, *scanner(name)[1:].tolist())
    return begins


@cache
def scanner(name: str) -> npt.NDArray[np.int64]:
    """The rule of that name for compiled code of another file: the address of `_scan` and its last four arguments."""
    return np.array([_scan.address(*range(9)), _class_table().ctypes.data, *RULES[name]], np.int64)


def ends_of(begins: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The end of each piece of one text in bytes, ascending."""
    ends = np.empty(int(np.bitwise_count(begins).sum()), np.int64)
    _list_bits(begins, ends)
    return ends[1:]


def compiled() -> bool:
    """Whether this machine has the compiled code on disk."""
    return _scan.is_kept()


@cache
def _class_table() -> npt.NDArray[np.uint8]:
    """For every code point the bits of its classes. Made once for a version of `regex`, which has them from Unicode."""
    return np.frombuffer(kept(Path(__file__), "classes", regex.__version__, lambda: _classes().tobytes()), np.uint8)


def _classes() -> npt.NDArray[np.uint8]:
    every = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    table = np.zeros(len(every), np.uint8)
    runs = [run.span() for run in regex.finditer(r"\P{C}+", every)]  # what has a meaning: one in seven
    places, known = np.concatenate([np.arange(*run) for run in runs]), "".join(every[slice(*run)] for run in runs)
    for name, bits in _CLASSES.items():
        for run in regex.finditer(rf"\p{{{name}}}+", known):
            table[places[slice(*run.span())]] |= np.uint8(bits)
    for run in regex.finditer(r"\s+", every):
        table[slice(*run.span())] |= np.uint8(SPACE)
    table[[10, 13]] |= np.uint8(NEWLINE)
    return table


# ---------------------------------------------------------------- the walk


@_code.inner
def _read(data, table, i):
    """Classes of the code point that starts at byte i, and the byte after it."""
    b = np.int64(data[i])
    if b < 0x80:
        return table[b], i + 1
    if b < 0xE0:
        return table[(b & 0x1F) << 6 | (data[i + 1] & 0x3F)], i + 2
    if b < 0xF0:
        return table[(b & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | (data[i + 2] & 0x3F)], i + 3
    high = (b & 0x07) << 18 | np.int64(data[i + 1] & 0x3F) << 12
    return table[high | np.int64(data[i + 2] & 0x3F) << 6 | (data[i + 3] & 0x3F)], i + 4


@_code.inner
def _run(data, table, i, any_of, none_of, most):
    """The end of the run from i of code points in `any_of` (0: no demand) and not in `none_of`, at most `most`."""
    while i < len(data) and most > 0:
        c, after = _read(data, table, i)
        if (any_of and not c & any_of) or c & none_of:
            break
        i, most = after, most - 1
    return i


@_code.inner
def _contraction(data, i, fold):
    """Bytes of 's 't 'm 'd 're 've 'll at i, or 0. `fold`: capitals too, and ſ (U+017F), which folds to s."""
    n = len(data)
    if i + 1 >= n or data[i] != _APOSTROPHE:
        return 0
    case = 0x20 if fold else 0
    a = data[i + 1] | case
    if a == 115 or a == 116 or a == 109 or a == 100:
        return 2
    if i + 2 >= n:
        return 0
    if fold and data[i + 1] == 0xC5 and data[i + 2] == 0xBF:
        return 3
    b = data[i + 2] | case
    if (a == 114 and b == 101) or (a == 118 and b == 101) or (a == 108 and b == 108):
        return 3
    return 0


@_code.inner
def _space(data, table, i, lines, whole_end, also_before):
    r"""The end of white space at i: `\s+$` if `whole_end`, `\s*[\r\n]+` if `lines`, `\s+(?!\S)`, `\s+`."""
    e, last, newline = i, i, -1
    while e < len(data):
        c, after = _read(data, table, e)
        if not c & SPACE:
            break
        last, e = e, after
        if c & NEWLINE:
            newline = e
    if e == len(data) and (whole_end or newline < 0 or not lines):
        return e
    if lines and newline >= 0:
        return newline
    if also_before and _read(data, table, e)[0] & also_before:
        return e
    return last if last > i else e  # the last blank goes with the word after it


@_code.inner
def _capitals_then_small(data, table, i):
    """`UPPER*LOWER+` at i, or i. A letter without case is in both classes, so the run of capitals may have to give
    characters back until its next one is in LOWER."""
    e, shared = i, i
    while e < len(data):
        c, after = _read(data, table, e)
        if not c & UPPER:
            break
        e = after
        if c & LOWER:
            shared = e
    small = _run(data, table, e, LOWER, NONE, len(data))
    return small if small > e else shared


@_code.inner
def _word_o200k(data, table, i, c, after):
    """The two word alternatives of o200k at i with their optional first character and contraction, or i."""
    e = i
    prefix = not c & (LETTER | NUMBER | NEWLINE)
    if prefix:
        e = _capitals_then_small(data, table, after)
        e = e if e > after else i
    if e == i:
        e = _capitals_then_small(data, table, i)
    if e == i and prefix:
        e = _run(data, table, after, UPPER, NONE, len(data))
        e = e if e > after else i
    if e == i:
        e = _run(data, table, i, UPPER, NONE, len(data))
    return e + _contraction(data, e, c >= 0) if e > i else i


@_code.inner
def _piece_end(data, table, i, rule, digits, whole_end):
    """The end of the piece that starts at byte i."""
    n = len(data)
    c, after = _read(data, table, i)
    plain = rule in (_GPT2, _SMOLLM)
    if rule != _O200K and data[i] == _APOSTROPHE:
        length = _contraction(data, i, not plain)
        if length:
            return i + length
    if rule == _O200K:
        e = _word_o200k(data, table, i, c, after)
        if e > i:
            return e
    elif c & LETTER:
        return _run(data, table, after, LETTER, NONE, n)
    elif not plain and not c & (NUMBER | NEWLINE):  # any one character goes with the letters after it
        e = _run(data, table, after, LETTER, NONE, n)
        if e > after:
            return e
    if c & NUMBER:
        return _run(data, table, i, NUMBER, NONE, digits)
    start = i
    if data[i] == _BLANK and after < n:
        d = _read(data, table, after)[0]
        if plain and d & LETTER:
            return _run(data, table, after, LETTER, NONE, n)
        if rule == _GPT2 and d & NUMBER:
            return _run(data, table, after, NUMBER, NONE, n)
        if not d & (LETTER | NUMBER | SPACE):
            start = after
    if start > i or not c & SPACE:
        e = _run(data, table, start, NONE, LETTER | NUMBER | SPACE, n)
        while not plain and e < n and (data[e] == 10 or data[e] == 13 or (rule == _O200K and data[e] == _SLASH)):
            e += 1
        return e
    return _space(data, table, i, not plain, whole_end, NUMBER if rule == _SMOLLM else NONE)


# ---------------------------------------------------------------- 64 bytes at once

_U = np.uint64
_ZERO, _ONE, _TOP, _ALL = _U(0), _U(1), _U(63), _U(0xFFFFFFFFFFFFFFFF)


@_code.inner(inline="always")
def _masks(data, last, table, w, rule, spill):
    """Masks of block w: letters, capitals, small letters, marks, numerals, white space, newlines, blanks, apostrophes,
    slashes, continuation bytes, white space beyond ASCII; and what the block's last character has in the next block
    (its classes << 8 | bytes). `spill` is that of the block before. A letter without case is neither capital nor small;
    marks are letters in o200k and signs elsewhere. Behind the end of the text all is white."""
    at, n = w << 6, len(data)
    whole = at + 64 <= n
    small, capital, number, white, newline, blank, apostrophe, slash, rest, first = (
        ascii_masks(data, at) if whole else ascii_masks(last, np.int64(0))
    )
    letter, mark, odd = small | capital, _ZERO, _ZERO
    c, bits = spill >> 8, (_ONE << _U(spill & 0xFF)) - _ONE
    spill = np.int64(0)
    while bits or first:
        cased = rule == _O200K and c & (UPPER | LOWER)
        if c & LETTER or cased:
            letter |= bits
            if cased and not c & LOWER:
                capital |= bits
            elif cased and not c & UPPER:
                small |= bits
            elif not c & LETTER:
                mark |= bits
        elif c & NUMBER:
            number |= bits
        elif c & SPACE:
            odd |= bits
        bits = _ZERO
        if not first:
            break
        p = low_bit(first)
        first &= first - _ONE
        c, after = _read(data, table, at + np.int64(p))
        size = _U(after - at) - p
        bits = ((_ONE << size) - _ONE) << p
        if p + size > _U(64):
            spill = c << 8 | np.int64(p + size - _U(64))
    white |= odd
    if not whole:
        white |= _ALL << _U(n - at)
    return letter, capital, small, mark, number, white, newline, blank, apostrophe, slash, rest, odd, spill


@_code.outer
def _scan(texts, starts, begins, last, count, table, rule, digits, whole_end):
    """Scan `count` texts. All are numbers, so that code which knows the address can call it: those of `texts` [count]
    address of each text, `starts` [count + 1], `begins`, `last` [64] for the block that a text ends in, `table`."""
    texts, starts = view(texts, count, np.int64), view(starts, count + 1, np.int64)
    last, table = view(last, np.int64(64), np.uint8), view(table, np.int64(0x110000), np.uint8)
    for k in range(count):
        size = starts[k + 1] - starts[k]
        text, rest = view(texts[k], size, np.uint8), size & 63
        for i in range(64):
            last[i] = text[size - rest + i] if i < rest else 0
        bits = view(begins + (((starts[k] >> 6) + k) << 3), (size >> 6) + 1, np.uint64)
        _scan_text(text, last, table, rule, digits, whole_end, bits)
    return np.int64(0)


@_code.inner(inline="always")
def _scan_text(data, last, table, rule, digits, whole_end, begins):
    """Set the bits where the pieces of one text begin; `last` holds its last, incomplete block. Names with _b hold, in
    bit 0, what the block before says of its last byte; names with _a belong to the block after."""
    n, blocks = len(data), np.int64(len(begins))
    plain, o200k = rule in (_GPT2, _SMOLLM), rule == _O200K
    letter_b = small_b = caseless_b = number_b = white_b = newline_b = blank_b = other_b = lone_b = absorbed_b = _ZERO
    begin, next_begin = np.int64(0), np.int64(-1)  # the last one found; one that is known already, in a later block
    numerals = np.int64(0)  # in the piece so far
    ahead = (_ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, np.int64(0))
    for w in range(-1, blocks):
        at = w << 6
        letter, capital, small, mark, number, white, newline, blank, apostrophe, slash, rest, odd, spill = ahead
        letter_a, number_a, white_a, newline_a = _ZERO, _ZERO, _ALL, _ZERO
        if w + 1 < blocks:
            ahead = _masks(data, last, table, w + 1, rule, spill)
            letter_a, number_a, white_a, newline_a = ahead[0], ahead[4], ahead[5], ahead[6]
        if w < 0:
            continue
        other, gap = ~(letter | number | white), white & ~newline
        after_letter, after_white = letter << _ONE | letter_b, white << _ONE | white_b
        after_blank, after_newline = blank << _ONE | blank_b, newline << _ONE | newline_b
        after_other, after_number = other << _ONE | other_b, number << _ONE | number_b
        if at <= next_begin < at + 64:  # the walk may have ended a piece amid signs
            after_other &= ~(_ONE << _U(next_begin - at))
        not_white_next = ~white >> _ONE | ~white_a << _TOP
        hard = odd

        s, left = _ZERO, number & ~rest  # numerals, at most `digits` in a piece
        while left:
            bit = left & (~left + _ONE)
            left ^= bit
            if numerals == digits or not after_number & bit:
                s |= bit
                numerals = np.int64(0)
            numerals += 1
        if rule == _GPT2:
            s &= ~after_blank

        signs = other & ~rest & ~after_other & ~after_blank
        words = letter & ~after_letter
        s |= signs
        if plain:
            last_white = white & not_white_next
            if rule == _SMOLLM:
                last_white &= ~(number >> _ONE | number_a << _TOP)
            s |= words & ~after_blank | white & ~after_white | last_white
        else:
            lone = (signs << _ONE | lone_b) + rest  # where the first sign of a run ends: letters there go with it
            lone_b = signs >> _TOP | _U(lone < rest)
            s |= words & ~(lone & ~rest) & ~(gap << _ONE | white_b & ~newline_b)
            if o200k:
                caseless = letter & ~capital & ~small
                s |= capital & ~rest & (small << _ONE | small_b)
                hard |= capital & ~rest & (caseless << _ONE | caseless_b)
                hard |= mark & after_other & ~rest | slash & after_newline
                small_b, caseless_b = small >> _TOP, caseless >> _TOP
            absorbed = newline & (after_other | absorbed_b)  # newlines right after signs belong to them
            absorbed = newline & ~(newline + absorbed)
            after_absorbed = absorbed << _ONE | absorbed_b
            s |= white & ~after_white & ~absorbed | gap & after_absorbed | gap & not_white_next
            absorbed_b = absorbed >> _TOP
            lines = gap & after_newline & ~after_absorbed  # blanks after a newline, unless a newline ends them
            reach = gap + lines
            stops = reach & newline
            while stops:
                bit = stops & (~stops + _ONE)
                stops ^= bit
                lines ^= _ONE << high_bit(lines & (bit - _ONE))
            if reach < gap:
                p = low_bit(~white_a | newline_a)
                if p == _U(64):
                    hard = _ALL
                elif newline_a >> p & _ONE:
                    lines ^= _ONE << high_bit(lines)
            s |= lines

        known = settled = next_begin
        marks = apostrophe & (letter >> _ONE | letter_a << _TOP) & (after_letter if o200k else signs)
        while marks:
            p = low_bit(marks)
            marks &= marks - _ONE
            i = at + np.int64(p)
            size = _contraction(data, i, not plain) if i >= settled + o200k else 0
            if size:
                settled = i + size
                s &= ~(((_ONE << _U(size)) - _ONE - _U(not o200k)) << p)
                if settled < at + 64:
                    s |= _ONE << _U(settled - at)
                else:
                    next_begin = settled

        if hard:
            e, s = known if known >= at else begin, _ZERO
            while e < at + 64 and e < n:
                if e >= at:
                    s |= _ONE << _U(e - at)
                e = _piece_end(data, table, e, rule, digits, whole_end)
            next_begin = e
        elif known >= at:
            s = s & _ALL << _U(known - at) | _ONE << _U(known - at) if known < at + 64 else _ZERO
        if w + 1 == blocks:
            s = s & (_ONE << _U(n - at)) - _ONE | _ONE << _U(n - at)
        begins[w] = s
        if s:
            begin = at + np.int64(high_bit(s))
        letter_b, number_b, white_b, newline_b = letter >> _TOP, number >> _TOP, white >> _TOP, newline >> _TOP
        blank_b, other_b = blank >> _TOP, other >> _TOP


@_code.outer
def _list_bits(begins, places):
    """The places of all bits that are set."""
    k = 0
    for w in range(len(begins)):
        bits = begins[w]
        while bits:
            places[k] = w << 6 | np.int64(low_bit(bits))
            bits &= bits - _ONE
            k += 1
