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

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import regex

from luthier.tokenizers.scan import RULES, ends_of, scan

__all__ = [
    "PATTERNS",
    "PatternError",
    "TextError",
    "boundaries",
    "compile_pattern",
    "cut",
    "pattern_name",
    "split",
    "utf8",
]

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


# ---------------------------------------------------------------- places in the bytes

LONG: Final = 1 << 14  # characters from which on a copy costs more than asking

_as_utf8 = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
_as_utf8.argtypes, _as_utf8.restype = (ctypes.py_object, ctypes.c_void_p), ctypes.c_void_p


def utf8(text: str) -> npt.NDArray[np.uint8]:
    """The bytes of `text`, not to be written to. Raises TextError for a lone surrogate.

    A long text lends its own: CPython holds ASCII as UTF-8 already and keeps other text's UTF-8 once it was asked for.
    """
    try:
        if len(text) < LONG:
            return np.frombuffer(str.encode(text, "utf-8"), np.uint8)
        size = ctypes.c_ssize_t()
        place = _as_utf8(text, ctypes.byref(size))
        lent: Any = (ctypes.c_char * size.value).from_address(place)
        lent.owner = text  # which must stay as long as the array does
        data = np.frombuffer(lent, np.uint8)
        data.flags.writeable = False
        return data
    except UnicodeEncodeError as error:
        raise _half_of_a_pair(error) from error


def _half_of_a_pair(error: UnicodeEncodeError) -> TextError:
    return TextError(
        f"character {error.start} of the text is U+{ord(error.object[error.start]):04X}, half of a surrogate pair: not "
        f"Unicode text\nMend it first: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
    )


def cut(
    texts: Sequence[str], pattern: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """The UTF-8 bytes of all texts, where each text starts in them (one more than texts), and where pieces begin, in
    bits as `scan` gives them."""
    if len(texts) == 1:
        data = utf8(texts[0])
        starts = np.array((0, len(data)))
    else:
        try:
            parts = [text.encode("utf-8") for text in texts]
        except UnicodeEncodeError as error:
            raise _half_of_a_pair(error) from error
        data = np.frombuffer(b"".join(parts), np.uint8)
        starts = np.fromiter(accumulate(map(len, parts), initial=0), np.int64, len(parts) + 1)
    if pattern in RULES:
        return data, starts, scan(data, starts, pattern)
    begins = np.zeros(len(data) // 64 + len(texts), np.uint64)
    for k, text in enumerate(texts):
        places = np.append(0, boundaries(text, pattern)[1])
        words = begins[starts[k] // 64 + k :]
        np.bitwise_or.at(words, places >> 6, np.uint64(1) << (places & 63).astype(np.uint64))
    return data, starts, begins


def boundaries(text: str, pattern: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The UTF-8 bytes of `text` and the end of each piece in them, ascending; the last end is the number of bytes."""
    data = utf8(text)
    if pattern in RULES:
        return data, ends_of(scan(data, np.array([0, len(data)]), pattern))
    characters = np.cumsum([len(piece) for piece in split(text, pattern)], dtype=np.int64)
    if len(data) == len(text):
        return data, characters
    first_bytes = np.flatnonzero((data & 0xC0) != 0x80)  # where each character starts
    return data, np.append(first_bytes, len(data))[characters]
