"""Rules that replace characters before tokenization, in SentencePiece's `precompiled_charsmap`.

The rules (`ﬁ` → `fi`, `e` + combining acute → `é`, tab → space …) are one block of bytes inside a .model file:

    size of the trie in bytes (uint32)  |  trie: units of uint32  |  replacements, each ended by a zero byte

The trie is a double array in which the label of an edge is xor-ed, not added (Darts-clone's layout). A unit says

    bit 31       1: a leaf, bits 0–30 are the value (where the replacement begins)
    bits 0–7     the byte that leads here
    bit 8        has a leaf: it is the child by byte 0
    bits 9–31    offset: the children of the unit at p are at p ^ offset ^ byte (bit 9: 256 times as large)

so following a byte is one xor, one load and one comparison. `read_charsmap` lists the rules of a block,
`write_charsmap` makes the block, `nmt_nfkc` the rules that SentencePiece trains with by default: Unicode's NFKC, white
space of all kinds as a space, no control characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["CharsmapError", "build_trie", "nmt_nfkc_rules", "open_charsmap", "read_charsmap", "write_charsmap"]

Units = npt.NDArray[np.uint32]

LEAF: Final = 1 << 31
HAS_LEAF: Final = 1 << 8
WINDOW: Final = 2 * 256  # places from the end in which a group of children is tried


class CharsmapError(ValueError):
    """A block of bytes that is no charsmap."""


# ---------------------------------------------------------------- reading


def open_charsmap(block: bytes) -> tuple[Units, npt.NDArray[np.uint8]]:
    """The trie and the replacements of a block; both empty for an empty one. Raises CharsmapError if following the
    trie would lead out of it."""
    if not block:
        return np.empty(0, np.uint32), np.empty(0, np.uint8)
    size = int.from_bytes(block[:4], "little")
    if len(block) < 8 or size % 4 or not 0 < size <= len(block) - 4:
        raise CharsmapError(f"its trie should have {size} bytes, of {len(block)} in all")
    units = np.frombuffer(block, "<u4", size // 4, 4).astype(np.uint32)
    replacements = np.frombuffer(block, np.uint8, offset=4 + size)
    leaf = units >= LEAF
    if (units[leaf] & (LEAF - 1) >= len(replacements)).any() or (leaf.any() and replacements[-1]):
        raise CharsmapError("a rule's replacement lies outside of it")
    places = np.arange(len(units), dtype=np.uint32)[~leaf]
    if ((places ^ _offset(units[~leaf])) | 0xFF >= len(units)).any():
        raise CharsmapError("its trie leads outside of it")
    return units, replacements


def read_charsmap(block: bytes) -> dict[str, str]:
    """The rules of a block. Raises CharsmapError."""
    units, replacements = open_charsmap(block)
    below: dict[int, list[tuple[int, int]]] = {}  # where a node's children are → (byte, child)
    for place, unit in enumerate(units.tolist()):
        if unit < LEAF and unit & 0xFF:
            below.setdefault(place ^ unit & 0xFF, []).append((unit & 0xFF, place))
    bases = (np.arange(len(units), dtype=np.uint32) ^ _offset(units)).tolist()
    texts = replacements.tobytes()
    rules: dict[str, str] = {}
    todo = [(0, b"")] if len(units) else []
    while todo:
        node, path = todo.pop()
        if units[node] & HAS_LEAF:
            begin = int(units[bases[node]]) & (LEAF - 1)
            rules[path.decode()] = texts[begin : texts.index(0, begin)].decode()
        todo += [(child, path + bytes([byte])) for byte, child in below.get(bases[node], ())]
    return dict(sorted(rules.items()))


def _offset(units: Any) -> Any:
    return (units >> np.uint32(10)) << ((units & np.uint32(0x200)) >> np.uint32(6))


# ---------------------------------------------------------------- writing


def write_charsmap(rules: Mapping[str, str]) -> bytes:
    """The block of the rules text → replacement; empty for none. Raises CharsmapError for a zero byte in a rule."""
    if not rules:
        return b""
    if wrong := [source for source, target in rules.items() if not source or "\0" in source + target]:
        raise CharsmapError(f"the rule for {wrong[0]!r} is empty or holds a zero byte, which the format cannot say")
    places: dict[str, int] = {}
    size = 0
    for target in sorted(set(rules.values())):
        places[target] = size
        size += len(target.encode()) + 1
    units = build_trie({source.encode(): places[target] for source, target in rules.items()})
    replacements = "".join(f"{target}\0" for target in places).encode()
    return (4 * len(units)).to_bytes(4, "little") + units.astype("<u4").tobytes() + replacements


def build_trie(values: Mapping[bytes, int]) -> Units:
    """The double array of keys and their values.

    Nodes from which the same goes on share their children: of the 220,000 rules of NFKC most are ways to write one of
    11,172 Korean syllables. A group of children takes the first offset that no other has and that puts all of them on
    free places.
    """
    units, taken, offsets = [0] * 256, bytearray(256), bytearray(256)
    taken[0], free = 1, 1
    groups: list[tuple[tuple[int, int], ...]] = []
    root = _group(sorted(values.items()), 0, {}, groups)
    bases: dict[int, int] = {}
    todo = [(root, 0)] if values else []
    while todo:
        group, node = todo.pop()
        children = groups[group]
        has_leaf = HAS_LEAF if children[0][0] == 0 else 0
        if group in bases:
            units[node] |= _coded(node ^ bases[group]) | has_leaf
            continue
        while free < len(taken) and taken[free]:
            free += 1
        place = max(free, len(units) - WINDOW) - 1
        while True:
            place += 1
            while len(units) <= place | 0xFF:
                units += [0] * 256
                taken += bytes(256)
                offsets += bytes(256)
            base = place ^ children[0][0]
            if not taken[place] and not offsets[base] and not any(taken[base ^ label] for label, _ in children):
                break
        bases[group], offsets[base] = base, 1
        units[node] |= _coded(node ^ base) | has_leaf
        for label, below in children:
            taken[base ^ label] = 1
            units[base ^ label] = label if label else LEAF | below
            if label:
                todo.append((below, base ^ label))
    _fill_free(units, taken, offsets)
    return np.array(units, np.uint32)


def _group(
    items: list[tuple[bytes, int]],
    depth: int,
    known: dict[tuple[tuple[int, int], ...], int],
    groups: list[tuple[tuple[int, int], ...]],
) -> int:
    """The number of the group of children of the node whose keys, `items` in order, share `depth` bytes. A child is
    (byte, its own group), or (0, value) for the key that ends here."""
    children, k = [], 0
    while k < len(items):
        key, value = items[k]
        if len(key) == depth:
            children.append((0, value))
            k += 1
            continue
        first = k
        while k < len(items) and items[k][0][depth] == key[depth]:
            k += 1
        children.append((key[depth], _group(items[first:k], depth + 1, known, groups)))
    group = tuple(children)
    if group not in known:
        known[group] = len(groups)
        groups.append(group)
    return known[group]


def _coded(offset: int) -> int:
    """An offset in bits 9 to 31 of a unit."""
    if offset < 1 << 21:
        return offset << 10
    if offset & 0xFF or offset >= 1 << 29:
        raise CharsmapError("too many rules for this format")
    return offset << 2 | 0x200


def _fill_free(units: list[int], taken: bytearray, offsets: bytearray) -> None:
    """Give free places labels that no node can reach them by: a node whose children are at `base` looks at place p for
    the byte base ^ p, so in each block of 256 the free places take an unused base."""
    for block in range(0, len(units), 256):
        base = next((b for b in range(block, block + 256) if not offsets[b]), block)
        for place in range(block, block + 256):
            if not taken[place]:
                units[place] = (base ^ place) & 0xFF


# ---------------------------------------------------------------- the default rules

_SPACES: Final = "\t\n\f\r\u1680\u200b\u200c\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"
_NOTHING: Final = (*range(1, 9), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F)


@cache
def nmt_nfkc_rules() -> dict[str, str]:
    """NFKC of every character, and of every way to spell one in several characters; then the rules for white space and
    control characters. Unicode's version is that of the running Python."""
    characters = [chr(c) for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
    rules: dict[str, str] = {}
    spellings: dict[str, set[str]] = {}
    long: list[tuple[str, str]] = []
    for c in characters:
        composed, decomposed = unicodedata.normalize("NFKC", c), unicodedata.normalize("NFKD", c)
        if composed != c:
            rules[c] = composed
        if len(decomposed) > 1 and len(composed) == 1:
            long.append((decomposed, composed))
        if len(decomposed) == 1 and decomposed != c:
            spellings.setdefault(decomposed, set()).add(c)
    for decomposed, composed in long:
        for spelling in product(*[[c, *sorted(spellings.get(c, ()))] for c in decomposed]):
            rules["".join(spelling)] = composed
    rules = {source: target for source, target in rules.items() if _one_by_one(source, rules) != target}
    del rules["\uff5e"]  # the wide tilde of Japanese stays, and so does the joiner of emoji, U+200D
    return rules | dict.fromkeys(_SPACES, " ") | {chr(c): "" for c in _NOTHING}


def _one_by_one(source: str, rules: Mapping[str, str]) -> str:
    """What shorter rules, the longest first, make of `source`."""
    target, i = "", 0
    while i < len(source):
        for end in range(min(len(source), i + 8), i, -1):
            part = source[i:end]
            if part in rules and part != source:
                target += rules[part]
                break
        else:
            target, end = target + source[i], i + 1
        i = end
    return target
