"""Training byte-level BPE: which pairs to merge, learned from text.

Byte-pair encoding (Gage 1994; for words Sennrich et al. 2016, arXiv:1508.07909, algorithm 1) starts from single bytes
and, again and again, makes one new token of the pair that occurs most often:

    while there are fewer than vocab_size tokens:
        count every pair of neighbours in every piece
        join the most frequent pair everywhere; equal counts: the smaller pair of ids

`merges_by_the_book` is that loop. It recounts everything for every merge. The fast path counts once and then only what
a merge changed: it keeps

    pairs   hash table (left, right) → number of the pair; `counts` and `fresh` go by that number
    nodes   linked lists of the words in which a pair came to be
    heap    (count, pair, its list of words), largest first; a count that has sunk since is corrected when it comes up

so a merge costs the length of the words that hold the pair. Sizes are known beforehand: a join makes one symbol of two,
so all joins together create at most two pairs a symbol, which bounds nodes and heap by 3 S for S symbols in all
distinct words.

Merges, ids and ties are those of Hugging Face's BpeTrainer, its corners included: a pair whose joined bytes are a token
already reuses that id and still counts as a merge; the count of a pair that was merged stays behind.

Ids: special tokens, then the 256 bytes in Hugging Face's ByteLevel order (printable ones first), then one a merge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from luthier.tokenizers.bpe import BYTE_ORDER, Tokenizer, VocabularyError
from luthier.tokenizers.pretokenize import boundaries, split

__all__ = ["SPECIAL_TOKENS", "check_vocab_size", "count_words", "merges_by_the_book", "train_bpe", "train_on_words"]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    pattern: str = "llama3",
    min_frequency: int = 2,
) -> Tokenizer:
    """Train a byte-level BPE tokenizer of at most `vocab_size` ids, special tokens and the 256 bytes included.

    `pattern` is a name in PATTERNS or a regular expression; pairs rarer than `min_frequency` are not merged, so a small
    text gives fewer ids. A special token's text in `texts` is ordinary text. Raises VocabularyError for a size that
    cannot be, PatternError, TextError.
    """
    check_vocab_size(vocab_size, special_tokens)
    words, counts = count_words(texts, pattern)
    return train_on_words(
        words, counts, vocab_size, special_tokens=special_tokens, pattern=pattern, min_frequency=min_frequency
    )


def train_on_words(
    words: Sequence[bytes],
    counts: npt.NDArray[np.int64],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    pattern: str = "llama3",
    min_frequency: int = 2,
    on_merge: Callable[[int], None] | None = None,
) -> Tokenizer:
    """The same from the distinct pieces and their counts; `on_merge` hears after each merge how many ids there are."""
    check_vocab_size(vocab_size, special_tokens)
    base = [token.encode("utf-8") for token in special_tokens] + [bytes([b]) for b in BYTE_ORDER]
    tokens, merges = _merge(words, counts, base, vocab_size, min_frequency, on_merge)
    ids = {token: i for i, token in enumerate(special_tokens)}
    return Tokenizer(tokens, merges, pattern=pattern, special_tokens=ids)


def check_vocab_size(vocab_size: int, special_tokens: Sequence[str]) -> None:
    """Raises VocabularyError if the 256 bytes and the special tokens do not fit or a special token is used twice."""
    if len(set(special_tokens)) < len(special_tokens) or "" in special_tokens:
        raise VocabularyError(f"special tokens must be different and not empty: {', '.join(map(repr, special_tokens))}")
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise VocabularyError(
            f"vocab_size {vocab_size} is too small: 256 bytes and {len(special_tokens)} special tokens need {least}\n"
            f"Use {least} or more; 4,000 for a few documents, 32,000 for a large corpus."
        )


# ---------------------------------------------------------------- the reference


def merges_by_the_book(
    texts: Iterable[str], vocab_size: int, pattern: str, special_tokens: Sequence[str] = (), min_frequency: int = 2
) -> list[tuple[bytes, bytes]]:
    """The textbook loop in plain Python: the pairs of tokens that are merged, in order."""
    tokens = [t.encode() for t in special_tokens] + [bytes([b]) for b in BYTE_ORDER]
    byte_ids = {token: i + len(special_tokens) for i, token in enumerate(tokens[len(special_tokens) :])}
    counted = Counter(piece for text in texts for piece in split(text, pattern))
    words = [([byte_ids[bytes([b])] for b in piece.encode()], count) for piece, count in counted.items()]
    merges = []
    while len(tokens) < vocab_size:
        pairs: Counter[tuple[int, int]] = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                pairs[pair] += count
        pair = max(pairs, key=lambda p: (pairs[p], -p[0], -p[1]), default=None)
        if pair is None or pairs[pair] < max(min_frequency, 1):
            break
        merges.append((tokens[pair[0]], tokens[pair[1]]))
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        words = [(_join(ids, pair, len(tokens) - 1), count) for ids, count in words]
    return merges


def _join(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """`ids` with every occurrence of `pair`, from the left, replaced by `new`."""
    joined, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair
        joined.append(new if found else ids[i])
        i += 2 if found else 1
    return joined


# ---------------------------------------------------------------- counting words

# No function below makes an array, so Numba need not count references; only outer ones are called from Python.
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)


class _Table(NamedTuple):
    """Distinct words. `slots` holds word number + 1 by hash; word w is `letters[starts[w] : starts[w + 1]]`; `used` is
    [number of words, number of letters]."""

    slots: npt.NDArray[np.int32]
    hashes: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    letters: npt.NDArray[np.uint8]
    used: npt.NDArray[np.int64]


def count_words(texts: Iterable[str], pattern: str) -> tuple[list[bytes], npt.NDArray[np.int64]]:
    """The distinct pieces of `texts` in order of appearance, and how often each occurs."""
    table = _table(1 << 14, 1 << 17)
    for text in texts:
        data, ends = boundaries(text, pattern)
        done = 0
        while (done := _count(data, ends, done, table)) < len(ends):
            table = _larger(table, len(data))
    words, starts = int(table.used[0]), table.starts
    letters = table.letters.tobytes()
    return [letters[starts[w] : starts[w + 1]] for w in range(words)], table.counts[:words]


def _table(words: int, letters: int) -> _Table:
    return _Table(
        np.zeros(2 * words, np.int32),
        np.empty(words, np.uint64),
        np.zeros(words + 1, np.int64),
        np.zeros(words, np.int64),
        np.empty(letters, np.uint8),
        np.zeros(2, np.int64),
    )


def _larger(old: _Table, letters: int) -> _Table:
    """The same table with twice the room, and room for `letters` more letters."""
    new = _table(2 * len(old.hashes), 2 * len(old.letters) + letters)
    for small, large in zip(old[1:], new[1:], strict=True):
        large[: len(small)] = small
    _rehash(new)
    return new


@_outer
def _rehash(table):
    mask = np.uint64(len(table.slots) - 1)
    for w in range(table.used[0]):
        s = table.hashes[w] & mask
        while table.slots[s]:
            s = (s + np.uint64(1)) & mask
        table.slots[s] = w + 1


@_outer
def _count(data, ends, first, table):
    """Count the pieces from number `first` on; returns the number of the first piece that found no room."""
    mask = np.uint64(len(table.slots) - 1)
    for k in range(first, len(ends)):
        begin, end = ends[k - 1] if k else 0, ends[k]
        h = np.uint64(14695981039346656037)  # FNV-1a
        for i in range(begin, end):
            h = (h ^ np.uint64(data[i])) * np.uint64(1099511628211)
        h ^= h >> np.uint64(32)
        s = h & mask
        while table.slots[s] and not _is(table, table.slots[s] - 1, h, data, begin, end):
            s = (s + np.uint64(1)) & mask
        if not table.slots[s]:
            w, letter = table.used[0], table.used[1]
            if w == len(table.hashes) or letter + end - begin > len(table.letters):
                return k
            for i in range(begin, end):
                table.letters[letter + i - begin] = data[i]
            table.hashes[w] = h
            table.starts[w + 1] = letter + end - begin
            table.used[0], table.used[1] = w + 1, letter + end - begin
            table.slots[s] = w + 1
        table.counts[table.slots[s] - 1] += 1
    return len(ends)


@_inner
def _is(table, w, h, data, begin, end):
    """Whether word w is the piece data[begin:end] with hash h."""
    start = table.starts[w]
    if table.hashes[w] != h or table.starts[w + 1] - start != end - begin:
        return False
    i = 0
    while i < end - begin and table.letters[start + i] == data[begin + i]:
        i += 1
    return i == end - begin


# ---------------------------------------------------------------- merging


class _State(NamedTuple):
    """Everything a merge touches. Word w is `symbols[starts[w] : starts[w] + lengths[w]]` and occurs `weights[w]`
    times. `used` is [pairs, nodes, heap entries, touched pairs]."""

    symbols: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int32]  # hash of a pair → pair number + 1
    keys: npt.NDArray[np.int64]  # pair → left << 32 | right
    counts: npt.NDArray[np.int64]  # pair → how often it occurs now
    fresh: npt.NDArray[np.int32]  # pair → list of the words where this merge made it, -1: none
    node_word: npt.NDArray[np.int32]
    node_next: npt.NDArray[np.int32]
    heap_count: npt.NDArray[np.int64]
    heap_pair: npt.NDArray[np.int32]
    heap_list: npt.NDArray[np.int32]
    touched: npt.NDArray[np.int32]
    used: npt.NDArray[np.int64]


def _merge(
    words: Sequence[bytes],
    weights: npt.NDArray[np.int64],
    base: Sequence[bytes],
    vocab_size: int,
    min_frequency: int,
    on_merge: Callable[[int], None] | None,
) -> tuple[list[bytes], npt.NDArray[np.int32]]:
    """All tokens and the merges [M, 2] as pairs of ids."""
    tokens = list(base)
    ids = {token: i for i, token in enumerate(tokens)}
    state = _state(words, weights, [ids[bytes([b])] for b in range(256)])
    _start(state)
    merges: dict[tuple[int, int], None] = {}
    while len(tokens) < vocab_size and (pair := int(_pop(state, max(min_frequency, 1)))) >= 0:
        key = int(state.keys[pair])
        left, right = key >> 32, key & 0xFFFFFFFF
        joined = tokens[left] + tokens[right]
        new = ids.setdefault(joined, len(tokens))
        if new == len(tokens):
            tokens.append(joined)
        merges.pop((left, right), None)  # merged a second time: the later rank holds
        merges[left, right] = None
        room = 2 * (int(state.used[0]) + 2 * len(tokens) + 1)  # a merge makes at most two new pairs a token
        if room > len(state.slots):
            state = state._replace(slots=np.zeros(1 << (2 * room).bit_length(), np.int32))
            _rehash_pairs(state)
        _apply(state, left, right, new)
        if on_merge:
            on_merge(len(tokens))
    return tokens, np.array(list(merges), np.int32).reshape(-1, 2)


def _state(words: Sequence[bytes], weights: npt.NDArray[np.int64], byte_ids: Sequence[int]) -> _State:
    lengths = np.array([len(word) for word in words], np.int64)
    symbols = np.array(byte_ids, np.int32)[np.frombuffer(b"".join(words), np.uint8)]
    most = 3 * len(symbols) + 1
    return _State(
        symbols,
        np.cumsum(lengths) - lengths,
        lengths,
        weights,
        np.zeros(1 << 17, np.int32),  # 256 · 256 pairs of bytes at most
        np.empty(most, np.int64),
        np.zeros(most, np.int64),
        np.full(most, -1, np.int32),
        np.empty(most, np.int32),
        np.empty(most, np.int32),
        np.empty(most, np.int64),
        np.empty(most, np.int32),
        np.empty(most, np.int32),
        np.empty(most, np.int32),
        np.zeros(4, np.int64),
    )


@_inner
def _pair_slot(state, key):
    """The slot of a pair, or the free one where it would go."""
    mask = np.uint64(len(state.slots) - 1)
    s = ((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask
    while state.slots[s] and state.keys[state.slots[s] - 1] != key:
        s = (s + np.uint64(1)) & mask
    return s


@_outer
def _rehash_pairs(state):
    for pair in range(state.used[0]):
        state.slots[_pair_slot(state, state.keys[pair])] = pair + 1


@_inner
def _change(state, left, right, amount, word):
    """Add to the count of a pair; where it came to be, remember the word."""
    key = np.int64(left) << 32 | np.int64(right)
    s = _pair_slot(state, key)
    if not state.slots[s]:
        state.keys[state.used[0]] = key
        state.used[0] += 1
        state.slots[s] = state.used[0]
    pair = state.slots[s] - 1
    state.counts[pair] += amount
    if amount > 0:
        head = state.fresh[pair]
        if head < 0:
            state.touched[state.used[3]] = pair
            state.used[3] += 1
        if head < 0 or state.node_word[head] != word:
            node = state.used[1]
            state.node_word[node], state.node_next[node] = word, head
            state.fresh[pair] = node
            state.used[1] += 1


@_inner
def _push_touched(state):
    """Put the pairs that came to be on the heap, with their words."""
    for t in range(state.used[3]):
        pair = state.touched[t]
        if state.counts[pair] > 0:
            i = state.used[2]
            state.used[2] += 1
            _set(state, i, state.counts[pair], pair, state.fresh[pair])
            _rise(state, i)
        state.fresh[pair] = -1
    state.used[3] = 0


@_outer
def _start(state):
    """Count all pairs of all words."""
    for w in range(len(state.starts)):
        for i in range(state.starts[w], state.starts[w] + state.lengths[w] - 1):
            _change(state, np.int64(state.symbols[i]), np.int64(state.symbols[i + 1]), state.weights[w], w)
    _push_touched(state)


@_inner
def _set(state, i, count, pair, words):
    state.heap_count[i], state.heap_pair[i], state.heap_list[i] = count, pair, words


@_inner
def _before(state, i, j):
    """Whether heap entry i comes before entry j: larger count, then smaller pair."""
    if state.heap_count[i] != state.heap_count[j]:
        return state.heap_count[i] > state.heap_count[j]
    return state.keys[state.heap_pair[i]] < state.keys[state.heap_pair[j]]


@_inner
def _swap(state, i, j):
    count, pair, words = state.heap_count[i], state.heap_pair[i], state.heap_list[i]
    _set(state, i, state.heap_count[j], state.heap_pair[j], state.heap_list[j])
    _set(state, j, count, pair, words)


@_inner
def _rise(state, i):
    while i and _before(state, i, (i - 1) // 2):
        _swap(state, i, (i - 1) // 2)
        i = (i - 1) // 2


@_inner
def _sink(state, i):
    while True:
        best, n = i, state.used[2]
        for child in (2 * i + 1, 2 * i + 2):
            if child < n and _before(state, child, best):
                best = child
        if best == i:
            return
        _swap(state, i, best)
        i = best


@_outer
def _pop(state, least):
    """Take the most frequent pair off the heap, its list of words left just behind the heap's end; -1: none is left
    that occurs `least` times."""
    while state.used[2]:
        now = state.counts[state.heap_pair[0]]
        if state.heap_count[0] == now:
            if now < least:
                return -1
            state.used[2] -= 1
            _swap(state, np.int64(0), state.used[2])
            _sink(state, np.int64(0))
            return state.heap_pair[state.used[2]]
        state.heap_count[0] = now
        _sink(state, np.int64(0))
    return -1


@_outer
def _apply(state, left, right, new):
    """Join the pair that was popped in every word of its list, and count what that changes around it."""
    node = state.heap_list[state.used[2]]
    while node >= 0:
        w = np.int64(state.node_word[node])
        node = state.node_next[node]
        start, length, amount = state.starts[w], state.lengths[w], state.weights[w]
        symbols = state.symbols[start : start + length]
        i, out = np.int64(0), np.int64(0)
        while i < length:
            if i + 1 < length and symbols[i] == left and symbols[i + 1] == right:
                if out:
                    _change(state, np.int64(symbols[out - 1]), left, -amount, w)
                    _change(state, np.int64(symbols[out - 1]), new, amount, w)
                if i + 2 < length:
                    _change(state, right, np.int64(symbols[i + 2]), -amount, w)
                    _change(state, new, np.int64(symbols[i + 2]), amount, w)
                symbols[out] = new
                i += 2
            else:
                symbols[out] = symbols[i]
                i += 1
            out += 1
        state.lengths[w] = out
    _push_touched(state)
