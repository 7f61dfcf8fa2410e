"""Text as SentencePiece's pieces spell it, with the way back to the source.

    source       "Ⅳ  ﬁne "           add_dummy_prefix          a space before the first word, spelled as inside
    replaced     "IV  fine "                                    (treat_whitespace_as_suffix: after the last)
    normalized   "▁IV▁fine"          remove_extra_whitespaces  none at the ends, one for several
                                     escape_whitespaces        a space is written ▁ (U+2581)

Replacements (charsmap.py) are tried at each place, the longest first; what they make is not looked at again.
User-defined pieces are passed over, so that they stay as they are. Every rule is sentencepiece's own, also where it is
odd: decoding takes ▁ for a space even if the text had a ▁.

The fast path is one loop compiled by Numba: where an ASCII character can begin no rule and another ASCII character
follows, it is copied. `normalize_by_the_book` is the same in plain Python.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from luthier.tokenizers.charsmap import build_trie, nmt_nfkc_rules, open_charsmap, read_charsmap, write_charsmap
from luthier.tokenizers.pretokenize import utf8

__all__ = ["SPACE", "Normalizer", "nmt_nfkc", "normalize_by_the_book"]

SPACE: Final = "▁"
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Normalizer:
    """The rules of a model; the fields are those of the file."""

    name: str = "identity"
    """What the file calls its charsmap."""
    charsmap: bytes = field(default=b"", repr=False)
    """Replacements, as charsmap.py describes."""
    add_dummy_prefix: bool = True
    """A space before the first word."""
    remove_extra_whitespaces: bool = True
    """No spaces at the ends, one for several."""
    escape_whitespaces: bool = True
    """Spaces become ▁."""
    treat_whitespace_as_suffix: bool = False
    """The dummy prefix stands at the end."""
    user_defined: tuple[str, ...] = ()
    """Texts that are not changed."""

    def normalize(self, text: str) -> str:
        """The text as pieces spell it."""
        if self.plain and self.escape_whitespaces:
            return self._framed(text.replace(" ", SPACE), SPACE)
        return self.to_utf8([text])[0].tobytes().decode()

    def normalize_with_places(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """The same, and for each of its characters the characters [start, end) of `text` it came from; a ▁ that stands
        for no space is an empty place."""
        data, _, first, last = self._run([text], wide=True, places=True)
        lead = (data & 0xC0) != 0x80
        character = np.append(np.cumsum((utf8(text) & 0xC0) != 0x80) - 1, len(text))  # byte → character
        starts, ends = character[first[lead]], character[last[lead]]
        return data.tobytes().decode(), list(zip(starts.tolist(), ends.tolist(), strict=True))

    def to_utf8(self, texts: Sequence[str], *, wide: bool = True) -> tuple[Bytes, Places]:
        """The normalized texts in UTF-8, one after the other, and where each starts (one more than texts). Not `wide`:
        a space stays a space, which is shorter, and ▁ stands only where the text has it."""
        if self.plain and not (wide and self.escape_whitespaces):
            parts = [utf8(self._framed(text, " ")) for text in texts]
            starts = np.zeros(len(parts) + 1, np.int64)
            np.cumsum([len(part) for part in parts], out=starts[1:])
            return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts]), starts
        data, starts, _, _ = self._run(texts, wide=wide, places=False)
        return data, starts

    def restore(self, text: str) -> str:
        """Decoded text without the space that was put before the first word."""
        if self.add_dummy_prefix or self.remove_extra_whitespaces:
            return text.removeprefix(" ")
        return text

    @cached_property
    def plain(self) -> bool:
        """Whether all there is to do is to add a space at one end and to write spaces as ▁."""
        return not self.charsmap and not self.remove_extra_whitespaces

    @cached_property
    def tables(self) -> _Tables:
        """What the compiled loop needs. Raises CharsmapError."""
        units, replacements = open_charsmap(self.charsmap)
        whole = build_trie({text.encode(): len(text.encode()) for text in self.user_defined if text})
        whole = whole if self.user_defined else np.empty(0, np.uint32)
        flags = (self.add_dummy_prefix, self.remove_extra_whitespaces, self.treat_whitespace_as_suffix)
        alone = np.ones(128, np.uint8)
        for trie in (units, whole):
            _rule_out(trie, alone)
        return _Tables(units, replacements, whole, alone, np.array([*flags, self.escape_whitespaces], np.uint8))

    def _framed(self, text: str, space: str) -> str:
        if not self.add_dummy_prefix or not text:
            return text
        return text + space if self.treat_whitespace_as_suffix else space + text

    def _run(self, texts: Sequence[str], *, wide: bool, places: bool) -> tuple[Bytes, Places, Places, Places]:
        parts = [utf8(text) for text in texts]
        data = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])
        starts, out_starts = np.zeros((2, len(parts) + 1), np.int64)
        np.cumsum([len(part) for part in parts], out=starts[1:])
        size = len(data) * 5 // 4 + 4 * len(parts) + 2048
        while True:
            out = np.empty(size, np.uint8)
            first, last = np.empty((2, size if places else 0), np.int64)
            if _normalize(data, starts, self.tables, wide and self.escape_whitespaces, out, out_starts, first, last):
                end = out_starts[-1]
                return out[:end], out_starts, first[:end], last[:end]
            size *= 2


def nmt_nfkc(user_defined: Collection[str] = ()) -> Normalizer:
    """What SentencePiece trains with unless told otherwise."""
    return replace(Normalizer("nmt_nfkc"), charsmap=write_charsmap(nmt_nfkc_rules()), user_defined=tuple(user_defined))


# ---------------------------------------------------------------- the reference


def normalize_by_the_book(text: str, normalizer: Normalizer, rules: Mapping[str, str] | None = None) -> str:
    """`Normalizer.normalize` in plain Python. `rules` are those of its charsmap, if they have been read already."""
    rules = read_charsmap(normalizer.charsmap) if rules is None else rules
    longest = max(map(len, (*rules, *normalizer.user_defined)), default=0)
    trim, space = normalizer.remove_extra_whitespaces, SPACE if normalizer.escape_whitespaces else " "
    parts, i = [], 0
    while i < len(text):
        starts = [text[i:end] for end in range(min(len(text), i + longest), i, -1)]
        whole = next((start for start in starts if start in normalizer.user_defined), None)
        rule = next((start for start in starts if start in rules), text[i]) if whole is None else whole
        parts.append(rules.get(rule, rule) if whole is None else whole)
        i += len(rule)
    while trim and parts and parts[0] == " ":
        del parts[0]
    made, after_space = "", trim
    for part in parts:
        part = part.lstrip(" ") if after_space else part
        made += part
        after_space = trim and (part.endswith(" ") if part else after_space)
    made = made.replace(" ", space)
    if not parts:
        return ""
    made = space + made if normalizer.add_dummy_prefix and not normalizer.treat_whitespace_as_suffix else made
    while trim and made.endswith(space):
        made = made.removesuffix(space)
    return made + space if normalizer.add_dummy_prefix and normalizer.treat_whitespace_as_suffix else made


# ---------------------------------------------------------------- the fast path

_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False, "boundscheck": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)

PREFIX, TRIM, SUFFIX, ESCAPE = range(4)
BLANK: Final = 0x20


class _Tables(NamedTuple):
    """What the compiled loop needs: the charsmap's trie and replacements, the trie of texts that stay as they are, the
    ASCII characters that are changed only by what is not ASCII after them, and the flags in the order above."""

    units: npt.NDArray[np.uint32]
    replacements: Bytes
    whole: npt.NDArray[np.uint32]
    alone: Bytes
    flags: Bytes


@_outer
def _rule_out(units, alone):
    """Take the characters from `alone` that are a rule or begin one that goes on with ASCII."""
    if len(units) == 0:
        return
    for a in range(1, 128):
        node = np.uint32(a) ^ _offset(units[0])
        if units[node] & np.uint32(0x800000FF) != np.uint32(a):
            continue
        if units[node] & np.uint32(0x100):
            alone[a] = 0
        below = node ^ _offset(units[node])
        for b in range(1, 128):
            if units[below ^ np.uint32(b)] & np.uint32(0x800000FF) == np.uint32(b):
                alone[a] = 0


@_inner
def _offset(unit):
    return (unit >> np.uint32(10)) << ((unit & np.uint32(0x200)) >> np.uint32(6))


@_inner
def _longest(units, data, i, end):
    """The longest key at data[i:end]: its bytes (0 for none) and its value."""
    size, value = 0, np.int64(0)
    if len(units) == 0:
        return size, value
    node = _offset(units[0])
    for j in range(i, end):
        node ^= np.uint32(data[j])
        unit = units[node]
        if unit & np.uint32(0x800000FF) != np.uint32(data[j]):
            break
        node ^= _offset(unit)
        if unit & np.uint32(0x100):
            size, value = j + 1 - i, np.int64(units[node] & np.uint32(0x7FFFFFFF))
    return size, value


@_inner
def _prefix(data, i, end, tables):
    """What stands at data[i]: its bytes, where its replacement begins (-1: itself), and the bytes of that."""
    size, _ = _longest(tables.whole, data, i, end)
    if size:
        return size, np.int64(-1), size
    size, value = _longest(tables.units, data, i, end)
    if size:
        made = 0
        while tables.replacements[value + made]:
            made += 1
        return size, value, made
    b = data[i]
    size = 1 if b < 0x80 else 2 if b < 0xE0 else 3 if b < 0xF0 else 4
    return size, np.int64(-1), size


@_inner
def _put(out, o, byte, mark, first, last, begin, end):
    """Write a byte, or ▁ for a space if `mark`; returns where to go on."""
    count = 3 if mark and byte == BLANK else 1
    if count == 1:
        out[o] = byte
    else:
        out[o], out[o + 1], out[o + 2] = 0xE2, 0x96, 0x81
    if len(first):
        for k in range(count):
            first[o + k], last[o + k] = begin, end
    return o + count


@_inner
def _space_before(out, o, floor, escape):
    """Bytes of the space that ends at out[o], 0 where none does."""
    if o > floor and out[o - 1] == BLANK:
        return 1
    if escape and o >= floor + 3 and out[o - 3] == 0xE2 and out[o - 2] == 0x96 and out[o - 1] == 0x81:
        return 3
    return 0


@_outer
def _normalize(data, starts, tables, mark, out, out_starts, first, last):
    """Normalize all texts into `out`, spaces as ▁ if `mark`; False if there is not room enough. `first` and `last`, if
    they are not empty, take for each byte the bytes of `data` it came from."""
    flags, o = tables.flags, np.int64(0)
    prefix, trim = flags[PREFIX] and not flags[SUFFIX], flags[TRIM] != 0
    for k in range(len(starts) - 1):
        i, end, floor = starts[k] - 0, starts[k + 1], o
        origin, after_space = starts[k], trim
        while trim and i < end:
            size, place, made = _prefix(data, i, end, tables)
            if made != 1 or (data[i] if place < 0 else tables.replacements[place]) != BLANK:
                break
            i += size
        empty = i == end
        if prefix and not empty:
            if o + 3 > len(out):
                return False
            o = _put(out, o, BLANK, mark, first, last, i - origin, i - origin)
        while i < end:
            b = data[i]
            if b < 0x80 and i + 1 < end and data[i + 1] < 0x80 and tables.alone[b]:
                if o + 3 > len(out):
                    return False
                if not (after_space and b == BLANK):
                    o = _put(out, o, b, mark, first, last, i - origin, i + 1 - origin)
                after_space = trim and b == BLANK
                i += 1
                continue
            size, place, made = _prefix(data, i, end, tables)
            if o + 3 * made > len(out):
                return False
            for j in range(made):
                b = data[i + j] if place < 0 else tables.replacements[place + j]
                if not (after_space and b == BLANK):
                    o = _put(out, o, b, mark, first, last, i - origin, i + size - origin)
                    after_space = False
            if made:
                after_space = trim and b == BLANK
            i += size
        while trim and _space_before(out, o, floor, flags[ESCAPE]):
            o -= _space_before(out, o, floor, flags[ESCAPE])
        if flags[PREFIX] and flags[SUFFIX] and not empty:
            if o + 3 > len(out):
                return False
            o = _put(out, o, BLANK, mark, first, last, end - origin, end - origin)
        out_starts[k + 1] = o
    return True
