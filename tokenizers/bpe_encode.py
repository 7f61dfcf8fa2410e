"""The fast path of byte-level BPE, compiled by Numba: the same ids as `encode_by_the_book` in bpe.py.

read    strings.py gives the bytes of Python's strings
cut     scan.py marks where pieces begin, one bit a byte
look up text repeats itself, so most pieces were met before: a hash table holds them with their ids. A piece of up
        to 15 bytes is its own key: two words, the last byte of the second its length. Nine in ten pieces have one
        or two ids, which stand beside the key: one line of the processor's cache answers
join    a new piece: a tournament over its pairs of neighbours. Each pair plays with the rank of its merge, 32 play
        in a match (one vector instruction finds the lowest rank), the winners of matches play again. A join changes
        three pairs and their matches, so n log₃₂ n matches join n bytes, and ten megabytes of one letter are done
        as fast as any text
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from luthier.tokenizers.bpe_loop import (
    AGAIN,
    BYTES,
    CUT,
    HALF,
    NO_BITS,
    NO_IDS,
    NO_RANK,
    NO_ROOM,
    SHORT,
    STRINGS,
    Merges,
    Room,
    Words,
    aligned,
    encode,
    fill_merges,
    fill_words,
    find_pairs,
    larger,
    new_room,
    new_words,
    same_words,
)
from luthier.tokenizers.machine_code import words_of
from luthier.tokenizers.pretokenize import cut, utf8
from luthier.tokenizers.scan import RULES, scanner
from luthier.tokenizers.shares import LARGEST, Share, in_threads, joined, share_out
from luthier.tokenizers.strings import LONG, steps

__all__ = ["MOST_IDS", "Encoder", "Row", "all_pairs", "join_pairs", "row_of"]

Ids = npt.NDArray[np.int32]

MOST_IDS: Final = 1 << 20  # a pair of ids and its rank fit into one word
MOST_SLOTS: Final = 1 << 21  # of one thread's cache, 64 MB and half as much for letters and ids; then it starts afresh
FIRST_SLOTS: Final = 1 << 16
AT: Final = 32  # words: four, and from the eighth on scratch for the functions that `encode` calls


class Row(NamedTuple):
    """Tokens that text can become: all their bytes, where each ends in them, and their ids."""

    letters: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    ids: Ids


def row_of(tokens: Sequence[bytes], ids: Sequence[int]) -> Row:
    """Tokens and their ids, in a row."""
    ends = np.fromiter(accumulate(map(len, tokens)), np.int64, len(tokens))
    return Row(np.frombuffer(b"".join(tokens), np.uint8), ends, np.array(ids, np.int32))


class Encoder:
    """The tables that encoding needs, and the pieces met so far.

    `tokens` are those that text can become; `merges` [M, 2] in order of rank and `joined` [M] the id each makes;
    `whole_pieces`: a piece that is a token is taken whole, whatever the merges say. `ranks` [M]: the order of the
    merges if it is not theirs; those that make the same id may have the same rank, then the leftmost comes first.
    """

    def __init__(self, tokens: Row, merges: Ids, joined: Ids, *, whole_pieces: bool, ranks: Ids | None = None) -> None:
        if max(len(merges), int(tokens.ids.max(initial=0)) + 1) >= MOST_IDS:
            raise ValueError(
                f"{len(merges):,} merges of {len(tokens.ids):,} tokens: fewer than {MOST_IDS:,} of each are possible"
            )
        self.byte_ids, single = np.full(256, -1, np.int32), np.diff(tokens.ends, prepend=0) == 1
        self.byte_ids[tokens.letters[tokens.ends[single] - 1]] = tokens.ids[single]
        slots = aligned(8 << (len(merges) // 4).bit_length())
        if ranks is None or (np.diff(ranks) > 0).all():
            ranks = joined if (np.diff(joined) > 0).all() else np.arange(len(merges), dtype=np.int32)
        by_rank = np.empty(0, np.int32)
        if not np.array_equal(ranks, joined):
            by_rank = np.zeros(int(ranks.max(initial=-1)) + 1, np.int32)
            by_rank[ranks] = joined
        self._merges = Merges(self.byte_ids, np.full(1 << 16, NO_RANK, np.uint32), slots, by_rank)
        fill_merges(self._merges, merges, ranks)
        self._tokens, self._whole = tokens, whole_pieces
        self._desks = [self._desk()]  # borrowed by one thread at a time

    def encode(self, texts: Sequence[str], pattern: str, num_threads: int = 1) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of all texts, cut into pieces by `pattern`, and where each text starts in them (one more than texts). Any
        number of threads may call it. Raises TextError, and TypeError for what is no string."""
        texts = list(texts)  # compiled code reads the strings while others may change the caller's list
        if wrong := [kind for kind in set(map(type, texts)) if not issubclass(kind, str)]:
            raise TypeError(f"a text is a {wrong[0].__name__}, not a string")
        shares, ends = share_out(texts, num_threads, pattern)
        if num_threads > 1 and len(shares) > 1:
            self._set_desks(min(num_threads, len(shares)))
            return joined(in_threads(lambda share: self._encode_task(_task(share, pattern)), shares, num_threads), ends)
        most = sum(map(str.__len__, texts)) + (4 * LARGEST if len(shares) > 1 else 2)
        ids, offsets, k = np.empty(most, np.int32), np.zeros(len(texts) + 1, np.int64), 0
        for share in shares:  # without several threads no text is cut
            ids = self._write(_task(share, pattern), offsets[k : k + len(share) + 1], ids)
            k += len(share)
        ids.resize(offsets[-1], refcheck=False)
        return ids, offsets

    def encode_one(self, text: str, pattern: str) -> Ids:
        """Ids of one text: with as little around the compiled loop as can be, since most texts are short."""
        ids = None
        if pattern in RULES:
            desk = self._desks.pop() if self._desks else self._desk()
            if desk.sheet.pattern != pattern:
                desk = desk._replace(sheet=self._one_text(desk, pattern))
            ids = desk.sheet.encode(text)
            self._desks.append(desk)
        return self.encode([text], pattern)[0] if ids is None else ids

    def encode_cut(
        self, data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], begins: npt.NDArray[np.uint64]
    ) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The same for texts that are cut already, as `cut` gives them."""
        return self._encode_task(_cut_task(data, starts, begins))

    def _encode_task(self, task: _Task) -> tuple[Ids, npt.NDArray[np.int64]]:
        offsets = np.zeros(len(task.page.starts), np.int64)
        return self._write(task, offsets), offsets

    def _write(self, task: _Task, offsets: npt.NDArray[np.int64], ids: Ids | None = None) -> Ids:
        """Write the ids to `ids`, from offsets[0] on, and where each text ends in them to `offsets`, from its second
        place on. Returns `ids`, or a larger array; without `ids` one of that size."""
        desk = self._desks.pop() if self._desks else self._desk()
        stage, page, rule, held = task
        out, used = desk.sheet.ids if ids is None else ids, desk
        while (stopped := used.encode(stage, page, rule, out, offsets)) < 0:
            size = int(page.at[1])
            if stopped == HALF:
                self._desks.append(desk)
                utf8(held[page.at[3]])  # raises the error, but where Python had no room for the bytes
                raise MemoryError(f"no room for the UTF-8 of {str.__len__(held[page.at[3]]):,} characters")
            if stopped == NO_BITS:
                page = page._replace(begins=np.empty(size, np.uint64))
            elif stopped == NO_IDS:
                out, done = np.empty(2 * size, np.int32), out[: offsets[0]]
                out[: len(done)] = done
            elif stopped == NO_ROOM:
                used = self._desk(desk.cache, new_room(size), desk.sheet)
            else:
                full = 2 * len(desk.cache.slots) > 4 * MOST_SLOTS
                desk = self._desk(self._cache() if full else larger(desk.cache), desk.room, desk.sheet)
                used = self._desk(desk.cache, used.room, desk.sheet)
            stage = max(stage, BYTES) if stopped in (NO_BITS, NO_IDS) else AGAIN
        if ids is None:
            if len(out) <= 4 * LARGEST:
                desk = desk._replace(sheet=desk.sheet._replace(ids=out, pattern=""))
            out = out[: offsets[-1]].copy()
        self._desks.append(desk)
        return out

    def _set_desks(self, count: int) -> None:
        """Have a desk for each of so many threads; a new one knows the pieces that another one has met."""
        desks = [self._desks.pop()] if 0 < len(self._desks) < count else []
        desks += [self._desk(same_words(desks[0].cache)) for _ in range(count - 1 - len(self._desks)) if desks]
        self._desks += desks

    def _desk(self, cache: Words | None = None, room: Room | None = None, sheet: _Sheet | None = None) -> _Desk:
        cache, room, sheet = cache or self._cache(), room or new_room(128), sheet or _sheet()
        head = (0, self._merges, cache, room, (*steps(), sheet.utf8.ctypes.data))
        kinds, words = words_of(*head)
        rest, _ = words_of(*_rest(CUT, sheet.page, scanner("gpt2"), sheet.ids, sheet.offsets))
        return _Desk(cache, room, sheet._replace(pattern=""), head, words, encode.taking(kinds + rest))

    def _one_text(self, desk: _Desk, pattern: str) -> _Sheet:
        """The desk's sheet, made ready for texts that are cut by this pattern."""
        sheet = desk.sheet
        rest = _rest(STRINGS, sheet.page, scanner(pattern), sheet.ids, sheet.offsets)
        return sheet._replace(pattern=pattern, encode=encode.method(*desk.head, *rest)[0])

    def _cache(self) -> Words:
        """A new cache that knows the pieces that are one token."""
        letters, ends, ids = self._tokens
        room = new_room(max(128, int(np.diff(ends, prepend=0).max(initial=0))))
        cache = new_words(max(FIRST_SLOTS, 2 << (2 * len(ids)).bit_length()), len(letters))
        fill_words(cache, letters, ends, ids, self._merges, room, self._whole)
        return cache

    def forget(self) -> None:
        """Empty the cache of pieces met before; ids do not change."""
        self._desks = [self._desk()]


def all_pairs(tokens: Row) -> tuple[Ids, Ids]:
    """Every pair of tokens whose bytes together are a token, in the order of those tokens, and that token's id."""
    pairs, joined = np.empty((len(tokens.letters), 2), np.int32), np.empty(len(tokens.letters), np.int32)
    count = find_pairs(*tokens, _table(tokens), pairs, joined)
    return pairs[:count].copy(), joined[:count].copy()


def join_pairs(ids: Mapping[bytes, int], tokens: Sequence[bytes], pairs: Ids) -> Ids:
    """The id of the bytes that each pair of `tokens` makes together, -1 where they are no token."""
    together = [ids.get(tokens[left] + tokens[right], -1) for left, right in pairs.tolist()]
    return np.array(together, np.int32)


def _table(tokens: Row) -> Words:
    """A table of the tokens."""
    words, nothing = new_words(2 << len(tokens.ids).bit_length(), len(tokens.letters)), np.empty(0, np.int32)
    merges = Merges(nothing, nothing.view(np.uint32), np.empty(0, np.uint64), nothing)
    fill_words(words, *tokens, merges, new_room(1), True)
    return words


# ---------------------------------------------------------------- what a thread works with


class _Page(NamedTuple):
    """Texts, as `encode` takes them: `texts` [n] the address of each, first of the string, then of its bytes; `starts`
    [n + 1] where each starts in all their bytes; `begins` where pieces begin, as `scan` gives them; `at` [AT] where
    `encode` is: the place of the next piece, its end or what is lacking, ids so far, number of the text."""

    texts: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    begins: npt.NDArray[np.uint64]
    at: npt.NDArray[np.int64]


def _page(count: int, characters: int) -> _Page:
    """A page for so many texts and, of all together, so many characters."""
    begins = np.empty(characters // 16 + count, np.uint64)
    return _Page(np.empty(count, np.int64), np.zeros(count + 1, np.int64), begins, np.zeros(AT, np.int64))


class _Task(NamedTuple):
    """Texts to encode: how far they are, the rule that cuts them, and what must live while their bytes are read."""

    stage: int
    page: _Page
    rule: npt.NDArray[np.int64]
    held: Any


def _task(share: Share, pattern: str) -> _Task:
    """A share of texts that are to be cut by a pattern."""
    if pattern not in RULES:
        assert isinstance(share, list)  # texts are cut in their bytes for known patterns only
        return _cut_task(*cut(share, pattern))
    if isinstance(share, list):
        page = _page(len(share), 0)
        page.texts[:] = np.fromiter(map(id, share), np.int64, len(share))
        return _Task(STRINGS, page, scanner(pattern), share)
    page = _page(1, 0)
    page.texts[0], page.starts[1] = share.ctypes.data, len(share)
    return _Task(BYTES, page, scanner(pattern), share)


def _cut_task(data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], begins: npt.NDArray[np.uint64]) -> _Task:
    return _Task(CUT, _Page(data.ctypes.data + starts[:-1], starts, begins, np.zeros(AT, np.int64)), starts, data)


class _Sheet(NamedTuple):
    """What one short text needs, which always lies ready: a page, room for its ids and for UTF-8; and `encode` for the
    pattern it was last used for."""

    page: _Page
    ids: Ids
    offsets: npt.NDArray[np.int64]
    utf8: npt.NDArray[np.uint8]
    pattern: str = ""
    encode: Callable[[Any], Ids | None] = lambda text: None


def _sheet() -> _Sheet:
    ids, utf8 = np.empty(4 * SHORT + 2, np.int32), np.empty(4 * (LARGEST + LONG) + 32, np.uint8)
    return _Sheet(_page(1, SHORT), ids, np.zeros(2, np.int64), utf8)


class _Desk(NamedTuple):
    """What a thread works with; `call` is `encode`, `head` what it is given first, and `words` that in its block."""

    cache: Words
    room: Room
    sheet: _Sheet
    head: tuple[Any, ...]
    words: list[int]
    call: Callable[[Any], int]

    def encode(self, stage: int, page: _Page, rule: Any, ids: Ids, offsets: npt.NDArray[np.int64]) -> int:
        """What `encode` returns for a page."""
        _, rest = words_of(*_rest(stage, page, rule, ids, offsets))
        words = (*self.words, *rest)
        return self.call((ctypes.c_int64 * len(words))(*words))


def _rest(stage: int, page: _Page, rule: Any, ids: Ids, offsets: npt.NDArray[np.int64]) -> tuple[Any, ...]:
    """What `encode` is given behind the desk's own."""
    return (stage, *page, rule, ids, offsets, _python())


@cache
def _python() -> tuple[int, int, int, int]:
    """Addresses of str, None, ndarray, and of numpy's function that makes an array (PyArray_New; its number in the
    table of its C interface has been the same since there is one)."""
    core: Any = sys.modules.get("numpy._core._multiarray_umath") or sys.modules["numpy.core._multiarray_umath"]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    table = ctypes.cast(pointer(core._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    return id(str), id(None), id(np.ndarray), table[93] or 0
