"""Byte-level BPE: text to ids and back.

A tokenizer is a list of tokens (id → bytes) and a list of merges in the order in which they were learned. To encode a
piece of text (see pretokenize.py), start from its bytes and, as long as there is one, join the pair of neighbours whose
merge was learned first, the leftmost of equals. `encode_by_the_book` is that loop, n² steps for n bytes. The fast path,
compiled by Numba, gives the same ids:

    cache   text repeats itself: most pieces are found, with their ids, in a hash table of pieces met before
    scan    a new piece of up to 64 bytes: look for the best pair again after each join
    heap    a longer one: candidates (rank, place) in a heap, neighbours in a linked list, so n log n steps; a megabyte
            of one letter takes a second, not a day

Because every byte is a token there is no unknown text, and decoding is joining bytes. A token may end in the middle of
a character, so single tokens need not be valid UTF-8.

Special tokens (`<|endoftext|>` …) stand for things that are not text. `encode_ordinary` takes their spelling as the
text it is; `encode` refuses it unless it is allowed, as tiktoken does: text from strangers must not be able to end a
turn. The vocabulary is laid out as bpe_train.py says, or as a file says.
Added tokens are vocabulary from outside the merges (Hugging Face's non-special ones): always recognised.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import regex
from numba import njit

from luthier.tokenizers.pretokenize import boundaries, compile_pattern, split, utf8

__all__ = [
    "BYTE_ORDER",
    "SpecialTokenError",
    "TokenIdError",
    "Tokenizer",
    "VocabularyError",
    "encode_by_the_book",
]

Ids = npt.NDArray[np.int32]

# Hugging Face's ByteLevel alphabet, ordered by the characters it spells bytes with: printable bytes stand for
# themselves and come first, then the others in their own order.
PRINTABLE: Final = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
NEVER: Final = (0xC0, 0xC1, *range(0xF5, 0x100))  # bytes that UTF-8 does not use
BYTE_ORDER: Final = (*PRINTABLE, *(b for b in range(256) if b not in PRINTABLE))


NO_MERGE = (1 << 62, 0)


class VocabularyError(ValueError):
    """Tokens and merges that make no tokenizer."""


class TokenIdError(ValueError):
    """An id that the tokenizer does not have."""


class SpecialTokenError(ValueError):
    """A special token where it is not allowed, or one that is missing."""


def encode_by_the_book(
    piece: bytes, ranks: Mapping[tuple[int, int], tuple[int, int]], byte_ids: Sequence[int]
) -> list[int]:
    """The textbook loop for one piece: `ranks` maps a pair of ids to (rank, id of the joined token)."""
    ids = [byte_ids[b] for b in piece]
    while len(ids) > 1:
        found = [ranks.get(pair, NO_MERGE) for pair in pairwise(ids)]
        rank, new = min(found)
        if (rank, new) == NO_MERGE:
            break
        i = found.index((rank, new))
        ids[i : i + 2] = [new]
    return ids


class Tokenizer:
    """A byte-level BPE vocabulary, its merges and its rules.

    `tokens` id → bytes (a special token's text in UTF-8; b"" for an id that stands for nothing); `merges` [M, 2] pairs
    of ids in order of rank; `special_tokens` and `added_tokens` text → id; `pattern` a name in PATTERNS or an
    expression; `normalizer` "NFC" or ""; `whole_pieces`: a piece that is a token is taken whole, whatever the merges
    say (tiktoken, Llama 3). `eos_token` and `pad_token` name the special tokens at a document's end and in empty
    places. `kept` holds what a file said that concerns only other programs. `joined` [M] holds the
    id that each merge makes. Raises VocabularyError naming the id or merge that is wrong.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Iterable[tuple[int, int]] | npt.NDArray[np.int32],
        *,
        pattern: str = "llama3",
        special_tokens: Mapping[str, int] | None = None,
        added_tokens: Mapping[str, int] | None = None,
        normalizer: Literal["", "NFC"] = "",
        whole_pieces: bool = False,
        eos_token: str | None = None,
        pad_token: str | None = None,
        chat_template: str | None = None,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        compile_pattern(pattern)
        self.tokens = list(tokens)
        self.merges = np.asarray(merges if isinstance(merges, np.ndarray) else list(merges), np.int32).reshape(-1, 2)
        self.pattern = pattern
        self.special_tokens = dict(special_tokens or {})
        self.added_tokens = dict(added_tokens or {})
        self.normalizer = normalizer
        self.whole_pieces = whole_pieces
        self.eos_token = _first_of(self.special_tokens, eos_token, "<|endoftext|>", "<|end_of_text|>", "</s>")
        self.pad_token = _first_of(self.special_tokens, pad_token, "<|pad|>", self.eos_token)
        self.chat_template = chat_template
        self.kept = dict(kept or {})
        self._check_added()
        self._pairs, self._whole = self._build_tables()
        self._caches: list[_Words] = []  # borrowed by one thread at a time

    # ------------------------------------------------------------ facts

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    @property
    def eos_id(self) -> int:
        """The id that ends a document. Raises SpecialTokenError where the tokenizer has none."""
        return self._special(self.eos_token, "an end-of-text token such as <|endoftext|>")

    @property
    def pad_id(self) -> int:
        """The id that fills empty places; the end-of-text id where there is no token of its own."""
        return self._special(self.pad_token, "a padding or end-of-text token")

    def _special(self, token: str | None, what: str) -> int:
        if token is None:
            have = ", ".join(self.special_tokens) or "none"
            raise SpecialTokenError(f"the tokenizer has not got {what}; its special tokens: {have}")
        return self.special_tokens[token]

    def __repr__(self) -> str:
        special = len(self.special_tokens)
        return f"Tokenizer({self.vocab_size:,} ids, {len(self.merges):,} merges, {special} special, {self.pattern!r})"

    # ------------------------------------------------------------ encoding

    def encode_ordinary(self, text: str) -> Ids:
        """Ids of `text`; the spelling of a special token is ordinary text."""
        return self._encode_with(text, self.added_tokens)

    def encode(
        self,
        text: str,
        allowed_special: Literal["all"] | Collection[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> Ids:
        """Ids of `text`, with the special tokens in `allowed_special` recognised.

        Raises SpecialTokenError if one of `disallowed_special` ("all": every one that is not allowed) is spelled in the
        text; pass () to take them as ordinary text.
        """
        allowed = set(self.special_tokens) if allowed_special == "all" else set(allowed_special)
        if unknown := allowed - set(self.special_tokens):
            raise SpecialTokenError(f"{sorted(unknown)[0]!r} is not a special token of this tokenizer")
        refused = set(self.special_tokens) - allowed if disallowed_special == "all" else set(disallowed_special)
        if refused and (found := _any_of(refused).search(text)):
            raise SpecialTokenError(
                f"the text spells the special token {found.group()!r} at character {found.start()}\nAllow it with "
                f"allowed_special={{{found.group()!r}}}, or take it as text: encode_ordinary, or disallowed_special=()."
            )
        return self._encode_with(text, {**self.added_tokens, **{t: self.special_tokens[t] for t in allowed}})

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of all texts one after the other (special tokens as ordinary text), and where each text starts:
        text i is `ids[offsets[i] : offsets[i + 1]]`."""
        if num_threads > 1 and len(texts) > 1:
            with ThreadPoolExecutor(num_threads) as pool:
                parts = list(pool.map(self.encode_ordinary, texts, chunksize=max(1, len(texts) // (8 * num_threads))))
        else:
            parts = [self.encode_ordinary(text) for text in texts]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return (np.concatenate(parts) if parts else np.empty(0, np.int32)), offsets

    def count(self, text: str) -> int:
        """Number of tokens of `text`, special tokens as ordinary text."""
        return len(self.encode_ordinary(text))

    def offsets(self, text: str) -> tuple[Ids, list[tuple[int, int]]]:
        """Ids of `text` as `encode_ordinary` gives them, and for each token the characters [start, end) that it
        touches. Tokens that share a character both name it."""
        ids = self.encode_ordinary(text)
        plain, starts = self._normalized_places(text)
        data = utf8(plain)
        character = np.cumsum((data & 0xC0) != 0x80) - 1  # byte → character
        sizes = np.array([len(self.tokens[i]) for i in ids], np.int64)
        ends = np.cumsum(sizes)
        first, last = character[ends - sizes], character[ends - 1]
        return ids, [(starts[a][0], starts[b][1]) for a, b in zip(first, last, strict=True)]

    def _normalized_places(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """The normalized text, and for each of its characters the characters of `text` it came from. Nothing combines
        with an ASCII character before it, so stretches that begin with one are normalized one by one."""
        plain = self._normalize(text)
        if plain == text:
            return text, [(i, i + 1) for i in range(len(text))]
        places: list[tuple[int, int]] = []
        for stretch in regex.finditer(r"[\x00-\x7F]?[^\x00-\x7F]*", text):
            length = len(self._normalize(stretch.group()))
            one_to_one = length == stretch.end() - stretch.start()
            places += [
                (stretch.start() + i, stretch.start() + i + 1) if one_to_one else stretch.span() for i in range(length)
            ]
        return plain, places

    def _normalize(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self.normalizer == "NFC" else text

    def _encode_with(self, text: str, whole: Mapping[str, int]) -> Ids:
        """Encode with the tokens in `whole` cut out first: the longest of those that start leftmost."""
        if not whole:
            return self._encode_plain(text)
        parts, end = [], 0
        for match in _any_of(whole).finditer(text):
            parts += [self._encode_plain(text[end : match.start()]), np.array([whole[match.group()]], np.int32)]
            end = match.end()
        return np.concatenate([*parts, self._encode_plain(text[end:])]) if parts else self._encode_plain(text)

    def _encode_plain(self, text: str) -> Ids:
        data, ends = boundaries(self._normalize(text), self.pattern)
        ids = np.empty(len(data), np.int32)
        try:
            cache = self._caches.pop()
        except IndexError:
            cache = _words(CACHE_PIECES, CACHE_PIECES * 16, CACHE_PIECES * 4)
        room = np.empty((6, _longest(ends)), np.int64)
        count = _encode(data, ends, self._pairs, self._whole, cache, room, ids)
        self._caches.append(cache)
        return ids[:count].copy() if 2 * count < len(ids) else ids[:count]

    def encode_reference(self, text: str) -> list[int]:
        """`encode_ordinary` without added tokens, by the book in plain Python: slow, for reading and for tests."""
        byte_ids, ranks = self._pairs.byte_ids.tolist(), self.ranks
        ids: list[int] = []
        for piece in split(self._normalize(text), self.pattern):
            data = piece.encode("utf-8")
            whole = self.ids_of_bytes.get(data) if self.whole_pieces else None
            ids += encode_by_the_book(data, ranks, byte_ids) if whole is None else [whole]
        return ids

    @cached_property
    def ranks(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Pair of ids → (rank, id of the joined token)."""
        pairs = zip(*self.merges.T.tolist(), strict=True) if len(self.merges) else ()
        return {pair: (k, int(new)) for k, (pair, new) in enumerate(zip(pairs, self.joined, strict=True))}

    @cached_property
    def ids_of_bytes(self) -> dict[bytes, int]:
        """Bytes → id, for tokens that ordinary text can become (no special or added ones)."""
        outside = {*self.special_tokens.values(), *self.added_tokens.values()}
        return {token: i for i, token in enumerate(self.tokens) if token and i not in outside}

    def forget(self) -> None:
        """Empty the cache of pieces met before; ids do not change."""
        self._caches.clear()

    # ------------------------------------------------------------ decoding

    def decode_bytes(self, ids: Iterable[int] | npt.NDArray[Any]) -> bytes:
        """The bytes of the tokens. Raises TokenIdError for an id out of range."""
        numbers = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
        if not len(numbers):
            return b""
        if not np.issubdtype(numbers.dtype, np.integer):
            raise TokenIdError(f"ids are whole numbers, not {numbers.dtype}")
        if numbers.min() < 0 or numbers.max() >= len(self.tokens):
            wrong = np.flatnonzero((numbers < 0) | (numbers >= len(self.tokens)))
            raise TokenIdError(
                f"id {numbers[wrong[0]]} at position {wrong[0]} is out of range: the tokenizer has ids 0 to "
                f"{len(self.tokens) - 1}"
            )
        return b"".join(map(self.tokens.__getitem__, numbers.tolist()))

    def decode(self, ids: Iterable[int] | npt.NDArray[Any], errors: str = "replace") -> str:
        """The text of the tokens; bytes that are not UTF-8 become � unless `errors` says otherwise."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    # ------------------------------------------------------------ tables

    def _check_added(self) -> None:
        for text, i in {**self.special_tokens, **self.added_tokens}.items():
            if not 0 <= i < len(self.tokens):
                raise VocabularyError(f"token {text!r} has id {i}, out of range for {len(self.tokens)} tokens")
            if self.tokens[i] != text.encode("utf-8"):
                raise VocabularyError(f"id {i} is {text!r} among the special tokens and {self.tokens[i]!r} in the list")

    def _build_tables(self) -> tuple[_Pairs, _Words]:
        ids = self.ids_of_bytes
        outside = {*self.special_tokens.values(), *self.added_tokens.values()}
        twice = [t for i, t in enumerate(self.tokens) if t and i not in outside and ids[t] != i]
        if twice:
            raise VocabularyError(f"the token {twice[0]!r} stands twice in the vocabulary: every token has one id")
        missing = [b for b in range(256) if bytes([b]) not in ids and b not in NEVER]
        if missing:
            raise VocabularyError(f"the vocabulary lacks the byte 0x{missing[0]:02X}: byte-level BPE needs every byte")
        self.joined = self._join_merges(ids)
        slots = 1 << (2 * len(self.merges) + 2).bit_length()
        byte_ids = np.array([ids.get(bytes([b]), -1) for b in range(256)], np.int32)
        pairs = _Pairs(byte_ids, np.zeros(slots, np.int64), np.zeros(slots, np.int64))
        _fill_pairs(pairs, self.merges, self.joined)
        if not self.whole_pieces:
            return pairs, _words(1, 0, 0)
        whole = _words(len(ids), sum(map(len, ids)), len(ids))
        ends = np.cumsum([len(token) for token in ids], dtype=np.int64)
        _fill_words(whole, np.frombuffer(b"".join(ids), np.uint8), ends, np.array(list(ids.values()), np.int32))
        return pairs, whole

    def _join_merges(self, ids: Mapping[bytes, int]) -> Ids:
        """The id that each merge makes."""
        tokens, joined = self.tokens, np.empty(len(self.merges), np.int32)
        wrong = np.flatnonzero(((self.merges < 0) | (self.merges >= len(tokens))).any(axis=1))
        if len(wrong):
            raise VocabularyError(f"merge {wrong[0]} joins {self.merges[wrong[0]].tolist()}: no such ids")
        for k, (left, right) in enumerate(self.merges.tolist()):
            new = ids.get(tokens[left] + tokens[right])
            if new is None:
                raise VocabularyError(
                    f"merge {k} joins {tokens[left]!r} and {tokens[right]!r}, but the result is not in the vocabulary"
                )
            joined[k] = new
        return joined


# ---------------------------------------------------------------- the fast path

# No function below makes an array, so Numba need not count references; only outer ones are called from Python.
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)

CACHE_PIECES: Final = 1 << 17  # pieces that a thread remembers, 16 MB when full; then it starts afresh
SHORT: Final = 64  # bytes; longer pieces go through the heap and are not remembered


class _Pairs(NamedTuple):
    """What can be joined. Hash table with open addressing: `keys` (left << 32 | right) + 1, 0 where free; `values`
    rank << 32 | id of the joined token, so that the smaller value is the earlier merge."""

    byte_ids: Ids
    keys: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]


class _Words(NamedTuple):
    """Pieces and their ids. Hash table whose slots hold what a look-up needs side by side, in one line of the
    processor's cache: hash with the lowest bit set (0 where free), place in `letters`, place in `ids`, bytes << 32 |
    number of ids. `used` is how many pieces, letters and ids there are."""

    slots: npt.NDArray[np.uint64]  # [slots, 4]
    letters: npt.NDArray[np.uint8]
    ids: Ids
    used: npt.NDArray[np.int64]
    pieces: npt.NDArray[np.int64]  # [1]: how many pieces fit


def _words(pieces: int, letters: int, ids: int) -> _Words:
    """An empty table with room for so many pieces, letters and ids in all."""
    return _Words(
        np.zeros((1 << (2 * pieces).bit_length(), 4), np.uint64),
        np.empty(letters, np.uint8),
        np.empty(ids, np.int32),
        np.zeros(3, np.int64),
        np.array([pieces], np.int64),
    )


@_inner
def _pair_slot(pairs, left, right):
    """The slot of a pair, or the free one where it would go."""
    key = (np.int64(left) << 32 | np.int64(right)) + 1
    mask = np.uint64(len(pairs.keys) - 1)
    s = ((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask
    while pairs.keys[s] != 0 and pairs.keys[s] != key:
        s = (s + np.uint64(1)) & mask
    return s


@_inner
def _value(pairs, left, right):
    """rank << 32 | id of the joined token; larger than any where the pair has no merge."""
    s = _pair_slot(pairs, left, right)
    return pairs.values[s] if pairs.keys[s] else np.int64(1 << 62)


@_outer
def _fill_pairs(pairs, merges, joined):
    for k in range(len(merges)):
        s = _pair_slot(pairs, merges[k, 0], merges[k, 1])
        pairs.keys[s] = (np.int64(merges[k, 0]) << 32 | np.int64(merges[k, 1])) + 1
        pairs.values[s] = np.int64(k) << 32 | np.int64(joined[k])


@_inner
def _hash(data, begin, end):
    h = np.uint64(14695981039346656037)  # FNV-1a
    for i in range(begin, end):
        h = (h ^ np.uint64(data[i])) * np.uint64(1099511628211)
    return (h ^ h >> np.uint64(32)) | np.uint64(1)


@_inner
def _word_slot(words, h, data, begin, end):
    """The slot of a piece, or the free one where it would go."""
    mask = np.uint64(len(words.slots) - 1)
    s = (h >> np.uint64(1)) & mask
    while words.slots[s, 0]:
        if words.slots[s, 0] == h and np.int64(words.slots[s, 3] >> np.uint64(32)) == end - begin:
            start, i = words.slots[s, 1], np.uint64(begin)
            while i < np.uint64(end) and words.letters[start] == data[i]:
                start, i = start + np.uint64(1), i + np.uint64(1)
            if i == np.uint64(end):
                break
        s = (s + np.uint64(1)) & mask
    return s


@_inner
def _copy_ids(words, s, out, o):
    """Write the ids of the piece in slot s to out[o:]; returns where they end."""
    first = words.slots[s, 2]
    for i in range(np.int64(words.slots[s, 3] & np.uint64(0xFFFFFFFF))):
        out[o] = words.ids[first + np.uint64(i)]
        o += 1
    return o


@_inner
def _remember(words, s, h, data, begin, end, ids, first, last):
    """Put a piece and its ids, ids[first:last], into the free slot s. A full table is emptied first."""
    size, count = end - begin, last - first
    if (
        words.used[0] >= words.pieces[0]
        or words.used[1] + size > len(words.letters)
        or words.used[2] + count > len(words.ids)
    ):
        words.slots[:] = 0
        words.used[:] = 0
        s = _word_slot(words, h, data, begin, end)
    letter, place = words.used[1], words.used[2]
    for i in range(size):
        words.letters[letter + i] = data[begin + i]
    for i in range(count):
        words.ids[place + i] = ids[first + i]
    words.slots[s, 0], words.slots[s, 1], words.slots[s, 2] = h, letter, place
    words.slots[s, 3] = size << 32 | count
    words.used[0] += 1
    words.used[1] += size
    words.used[2] += count


@_outer
def _fill_words(words, letters, ends, ids):
    begin = np.int64(0)
    for k in range(len(ends)):
        h = _hash(letters, begin, ends[k])
        s = _word_slot(words, h, letters, begin, ends[k])
        _remember(words, s, h, letters, begin, ends[k], ids, k, k + 1)
        begin = ends[k]


@_outer
def _longest(ends):
    """Bytes of the longest piece, at least SHORT."""
    longest, begin = SHORT, 0
    for k in range(len(ends)):
        longest = max(longest, ends[k] - begin)
        begin = ends[k]
    return longest


@_outer
def _encode(data, ends, pairs, whole, cache, room, out):
    """Write the ids of all pieces into `out`; returns how many. `room` [6, longest piece] is scratch."""
    o, begin = np.int64(0), np.int64(0)
    for k in range(len(ends)):
        end = ends[k]
        if end - begin == 1:
            out[o] = pairs.byte_ids[data[begin]]
            o += 1
        elif end - begin > SHORT:
            o = _whole_or_joined(data, begin, end, pairs, whole, room, out, o)
        else:
            h = _hash(data, begin, end)
            s = _word_slot(cache, h, data, begin, end)
            if cache.slots[s, 0]:
                o = _copy_ids(cache, s, out, o)
            else:
                first = o
                o = _whole_or_joined(data, begin, end, pairs, whole, room, out, o)
                _remember(cache, s, h, data, begin, end, out, first, o)
        begin = end
    return o


@_inner
def _whole_or_joined(data, begin, end, pairs, whole, room, out, o):
    """Ids of one piece into out[o:]; returns where they end."""
    if whole.used[0]:
        s = _word_slot(whole, _hash(data, begin, end), data, begin, end)
        if whole.slots[s, 0]:
            return _copy_ids(whole, s, out, o)
    for i in range(end - begin):
        out[o + i] = pairs.byte_ids[data[begin + i]]
    ids = out[o : o + end - begin]
    return o + (_scan(ids, pairs, room[0]) if end - begin <= SHORT else _heap(ids, pairs, room))


@_inner
def _scan(ids, pairs, values):
    """Join in place; returns how many ids are left. values[i] is what _value says of ids[i], ids[i + 1]."""
    n = len(ids)
    for i in range(n - 1):
        values[i] = _value(pairs, ids[i], ids[i + 1])
    while n > 1:
        best = 0
        for i in range(1, n - 1):
            if values[i] < values[best]:
                best = i
        if values[best] == 1 << 62:
            break
        ids[best] = values[best] & 0xFFFFFFFF
        n -= 1
        for i in range(best + 1, n):
            ids[i] = ids[i + 1]
            values[i - 1] = values[i]
        if best:
            values[best - 1] = _value(pairs, ids[best - 1], ids[best])
        if best < n - 1:
            values[best] = _value(pairs, ids[best], ids[best + 1])
    return n


@_inner
def _heap(ids, pairs, room):
    """The same through a heap of rank << 32 | place. A candidate whose pair has changed since is dropped when it comes
    up: joining changed the rank at its place or took the place away."""
    n = len(ids)
    after, before, rank, heap = room[0], room[1], room[2], room[3:].reshape(-1)  # a join adds at most two to the heap
    size = np.int64(0)
    for i in range(n):
        after[i], before[i] = i + 1, i - 1
        rank[i] = _value(pairs, ids[i], ids[i + 1]) >> 32 if i + 1 < n else 1 << 30  # 1 << 30: no pair starts here
        if rank[i] < 1 << 30:
            heap[size] = rank[i] << 32 | i
            size += 1
    for i in range(size // 2, -1, -1):
        _sink(heap, i, size)
    while size:
        top, i = heap[0] >> 32, heap[0] & 0xFFFFFFFF
        size -= 1
        heap[0] = heap[size]
        _sink(heap, np.int64(0), size)
        if top != rank[i]:
            continue
        j = after[i]
        ids[i] = _value(pairs, ids[i], ids[j]) & 0xFFFFFFFF
        rank[j] = 1 << 30
        after[i] = after[j]
        if after[i] < n:
            before[after[i]] = i
        for left in (before[i], i):
            if left >= 0:
                rank[left] = 1 << 30
                if after[left] < n:
                    rank[left] = _value(pairs, ids[left], ids[after[left]]) >> 32
                if rank[left] < 1 << 30:
                    size = _push(heap, size, rank[left] << 32 | left)
    i, count = np.int64(0), 0
    while i < n:
        ids[count] = ids[i]
        count += 1
        i = after[i]
    return count


@_inner
def _push(heap, size, item):
    i = size
    while i and heap[(i - 1) // 2] > item:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = item
    return size + 1


@_inner
def _sink(heap, i, size):
    item = heap[i]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = item


# ---------------------------------------------------------------- small parts


def _any_of(texts: Collection[str]) -> regex.Pattern[str]:
    """Finds any of `texts`, the longest of those that start at the same place."""
    return regex.compile("|".join(regex.escape(text) for text in sorted(texts, key=len, reverse=True)))


def _first_of(have: Collection[str], *wanted: str | None) -> str | None:
    return next((token for token in wanted if token in have), None)
