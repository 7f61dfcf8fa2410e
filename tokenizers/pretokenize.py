r"""Cutting text into pieces before BPE: words with their leading space, numbers, punctuation, white space.

BPE merges never cross a piece. Without pieces it would learn `dog.`, `dog!` and `dog,` as three unrelated tokens, and
counting pairs over a whole corpus would be slow; with them each distinct piece is counted and encoded once. A pattern
is a regular expression with alternatives tried in order at each place, for example GPT-2's (Radford et al. 2019, §2.2):

    'll|'re|…  |  ?\p{L}+  |  ?\p{N}+  |  ?[^\s\p{L}\p{N}]+  |  \s+(?!\S)  |  \s+
    contraction   letters     numerals    anything else        space, all but the last before a word   space

    "It's 20 °C  inside"  →  It · 's · ␣20 · ␣° · C · ␣ · ␣inside

`split` is the reference: the `regex` package applied as it is. `boundaries` gives the same cuts from a scanner compiled
by Numba for the patterns that are known by name: one pass over the UTF-8 bytes, one table look-up a code point (its
Unicode classes as bits), no backtracking. Any other pattern goes through `regex`. Text that a pattern does not match is
a piece of its own, as in Hugging Face's `Split`, so no byte is lost.

The classes come from the installed `regex`; code points that Unicode assigned only lately may be letters there and
unknown to another tool.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import regex
from numba import njit

__all__ = ["PATTERNS", "PatternError", "TextError", "boundaries", "compile_pattern", "pattern_name", "split", "utf8"]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"\s+(?![\s\S])|"  # white space up to the end of the text in one piece
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _gpt4(digits: str, end: str = "") -> str:
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{end}{_SPACE}"


PATTERNS: Final[dict[str, str]] = {
    # GPT-2, GPT-3 (r50k, p50k)
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # GPT-2's after every numeral was set apart; Hugging Face's Digits before ByteLevel
    "smollm": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    # GPT-4: as OpenAI's tiktoken has it today, and as Llama 3 and Qwen 2 published it
    "cl100k": _gpt4(r"\p{N}{1,3}", _END),
    "llama3": _gpt4(r"\p{N}{1,3}"),
    "qwen2": _gpt4(r"\p{N}"),
    # GPT-4o: words are also cut where a small letter meets a capital
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}",
}


class PatternError(ValueError):
    """A pattern is not a name we know and not a regular expression."""


class TextError(ValueError):
    """A string that is not Unicode text: it holds half a surrogate pair."""


# ---------------------------------------------------------------- the reference


@cache
def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """The compiled expression for a name in PATTERNS or an expression. Raises PatternError."""
    try:
        return regex.compile(PATTERNS.get(pattern, pattern))
    except regex.error as error:
        known = ", ".join(PATTERNS)
        raise PatternError(
            f"pattern {pattern!r} is not a regular expression: {error}\nKnown by name: {known}"
        ) from error


def pattern_name(expression: str) -> str:
    """The name of an expression in PATTERNS, or the expression itself."""
    return next((name for name, known in PATTERNS.items() if known == expression), expression)


def split(text: str, pattern: str) -> list[str]:
    """The pieces of `text`; joined they are `text` again."""
    pieces, end = [], 0
    for match in compile_pattern(pattern).finditer(text):
        if match.start() > end:
            pieces.append(text[end : match.start()])
        if match.end() > match.start():
            pieces.append(match.group())
        end = match.end()
    return [*pieces, text[end:]] if end < len(text) else pieces


# ---------------------------------------------------------------- the fast path

# The functions below make no arrays, so Numba need not count references (`_nrt=False`: three times as fast), and only
# the last is called from Python, so the others need no wrappers. Constants are of one type: each compiles once.
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)

NONE, LETTER, NUMBER, SPACE, NEWLINE, UPPER, LOWER = map(np.int64, (0, 1, 2, 4, 8, 16, 32))
_CLASSES = {LETTER: r"\p{L}", NUMBER: r"\p{N}", SPACE: r"\s", NEWLINE: r"[\r\n]", UPPER: _UPPER, LOWER: _LOWER}
_APOSTROPHE, _BLANK, _SLASH = 39, 32, 47

_GPT2, _SMOLLM, _GPT4, _O200K = map(np.int64, range(4))
# name → rule, numerals in one piece at most, white space up to the end of the text is one piece
_RULES = {
    "gpt2": (_GPT2, 1 << 62, False),
    "smollm": (_SMOLLM, 1, False),
    "cl100k": (_GPT4, 3, True),
    "llama3": (_GPT4, 3, False),
    "qwen2": (_GPT4, 1, False),
    "o200k": (_O200K, 3, False),
}


def utf8(text: str) -> npt.NDArray[np.uint8]:
    """The bytes of `text`. Raises TextError for a lone surrogate."""
    try:
        return np.frombuffer(text.encode("utf-8"), np.uint8)
    except UnicodeEncodeError as error:
        raise TextError(
            f"character {error.start} of the text is U+{ord(text[error.start]):04X}, half of a surrogate pair: not "
            f"Unicode text\nMend it first: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from error


def boundaries(text: str, pattern: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The UTF-8 bytes of `text` and the end of each piece in them, ascending; the last end is the number of bytes."""
    data = utf8(text)
    if pattern in _RULES:
        rule, digits, whole_end = _RULES[pattern]
        ends = np.empty(len(data), np.int64)
        count = _scan(data, _class_table(), rule, digits, whole_end, ends)
        return data, ends[:count]
    characters = np.cumsum([len(piece) for piece in split(text, pattern)], dtype=np.int64)
    if len(data) == len(text):
        return data, characters
    first_bytes = np.flatnonzero((data & 0xC0) != 0x80)  # where each character starts
    return data, np.append(first_bytes, len(data))[characters]


@cache
def _class_table() -> npt.NDArray[np.uint8]:
    """For every code point the bits of its classes."""
    every = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    table = np.zeros(len(every), np.uint8)
    for bit, expression in _CLASSES.items():
        for run in regex.finditer(f"{expression}+", every):
            table[run.start() : run.end()] |= np.uint8(bit)
    return table


@_inner
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


@_inner
def _run(data, table, i, any_of, none_of, most):
    """The end of the run from i of code points in `any_of` (0: no demand) and not in `none_of`, at most `most`."""
    while i < len(data) and most > 0:
        c, after = _read(data, table, i)
        if (any_of and not c & any_of) or c & none_of:
            break
        i, most = after, most - 1
    return i


@_inner
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


@_inner
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


@_inner
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


@_inner
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


@_inner
def _piece(data, table, i, rule, digits, whole_end):
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


@_outer
def _scan(data, table, rule, digits, whole_end, ends):
    """Write the end of every piece; returns how many there are."""
    i, count = np.int64(0), 0
    while i < len(data):
        i = _piece(data, table, i, rule, digits, whole_end)
        ends[count] = i
        count += 1
    return count
