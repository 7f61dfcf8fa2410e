"""The fast path of BPE training, compiled by Numba: the same merges as `merges_by_the_book` in bpe_train.py.

The textbook recounts all pairs after every merge. Here they are counted once, and after that only what a merge changed.

**Cells.** The distinct words lie one behind the other in an array of cells, a cell a byte, a wall (-1) between two
words. A token lies over as many cells as it has bytes and has its id in its first and in its last cell, so the
neighbours of a token are found without links:

    wall  Ġ  t  h  e  wall        left neighbour: the id in the cell before the token
      -1  7  7  5  6  -1          right neighbour: the id in the cell behind it        here Ġt = 7, h = 5, e = 6

**Places.** Every pair has a list of the cells where it came to be. A merge walks the list; a cell that no longer holds
the pair is passed over. So a merge costs as many steps as its pair has places, however long the words are.

**Neighbours.** Joining a·b in x·a·b·y takes from the pairs (x, a) and (b, y) and makes (x, ab) and (ab, y). The amounts
are summed up by x and by y first, so the table of pairs is asked once for each different neighbour.

**Order.** Rows (count, pair, its list) wait in a heap, the largest count first, then the smaller pair of ids. A count
that has sunk since is corrected when it comes up. Most pairs never become frequent enough to be merged: rows below a
threshold lie in a bag, without order, until the threshold has sunk to them.

**A token may come about in two ways** (abc from ab·c and from a·bc). Hugging Face's BpeTrainer, whose merges these are,
then reuses the id, counts it as a merge, and joins, where such a token takes part, every occurrence in the word at
once (`whole`). The count of a pair that was merged stays behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from luthier.tokenizers.machine_code import Code

__all__ = ["WALL", "learn_merges"]

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

WALL: Final = -1  # in `symbols`: nothing is joined across it
INSIDE: Final = -2  # a cell that is neither a token's first nor its last
OVERHEAD: Final = 30  # what a merge costs beside its places, in places
BASE: Final = np.uint64(0x9E3779B97F4A7C15 | 1)
ENOUGH: Final = 1 << 20  # work between two looks at the progress bar
MOST_CELLS: Final = (1 << 31) - 2

_code = Code(__name__)

# Places in `used`.
LISTED, IN_HEAP, IN_BAG, IDS, MERGES, LETTERS, PAIRS, THRESHOLD, WORK, LAST, NEED = range(11)
FINISHED, GO_ON, MORE_ROOM = np.int64(0), np.int64(1), np.int64(2)


class _Text(NamedTuple):
    """The words and what a merge notes of them."""

    cells: Int32s  # [cells, 2]: id, number of the word's count in `weights`
    weights: Int64s  # the different counts of words
    sizes: Int32s  # id → bytes
    lists: Int32s  # cells where pairs came to be
    around: Int64s  # [2, ids, 3]: left and right neighbours: amount, places, slot of a pair
    seen: Int32s  # [2, ids]: the neighbours met in this merge
    events: Int32s  # [joins, 4]: left neighbour and its cell, right neighbour and the new token's cell


class _Queue(NamedTuple):
    """Rows [rows, 4] of count, pair, where its list begins, how long it is."""

    heap: Int64s
    bag: Int64s


class _Tokens(NamedTuple):
    """What is known by the bytes of a token."""

    sizes: Int32s
    hashes: npt.NDArray[np.uint64]  # [ids, 2]: polynomial in BASE of the bytes, and BASE to the power of their number
    letters: npt.NDArray[np.uint8]  # bytes of all tokens
    begins: Int64s  # id → where its bytes begin
    slots: Int32s  # hash of the bytes → id + 1
    again: npt.NDArray[np.uint8]  # id → 1 if it came about in a second way


class _State(NamedTuple):
    """Everything a merge touches; `used` says how much of each array is in use."""

    text: _Text
    queue: _Queue
    tokens: _Tokens
    pairs: Int64s  # [slots, 2]: pair + 1 (0: free), how often it occurs now
    merges: Int32s  # [merges, 2]
    used: Int64s


def learn_merges(
    tokens: Sequence[bytes],
    reusable: Sequence[bool],
    symbols: Int32s,
    ends: Int64s,
    counts: Int64s,
    *,
    vocab_size: int,
    min_frequency: int,
    max_token_length: int = 0,
    on_progress: Callable[[float, int], None] | None = None,
) -> tuple[list[bytes], Int32s, int]:
    """All tokens, the new merges [M, 2], and in how many tokens the text is then spelled; until there are `vocab_size`
    ids or no pair occurs `min_frequency` times.

    `tokens` are there already; those in `reusable` are what text can become. Word w is
    `symbols[ends[w - 1] : ends[w]]`, ids or WALL, and occurs `counts[w]` times. `max_token_length` in bytes, 0: no
    limit. `on_progress(share, ids)` hears now and then what share of the work is done, by estimate.
    """
    state = _state(tokens, reusable, symbols, ends, counts, vocab_size)
    least, longest = max(min_frequency, 1), max_token_length or 1 << 30
    state = _start(state, longest)
    while (todo := _merge(state, vocab_size, least, longest)) != FINISHED:
        if todo == MORE_ROOM:
            state = _larger(state)
        elif on_progress:
            on_progress(_share_done(state.used, len(tokens), vocab_size), int(state.used[IDS]))
    letters, starts = state.tokens.letters.tobytes(), state.tokens.begins.tolist()
    sizes, ids = state.text.sizes.tolist(), int(state.used[IDS])
    new = [letters[starts[i] : starts[i] + sizes[i]] for i in range(len(tokens), ids)]
    total = _count_tokens(state.text.cells, state.text.sizes, state.text.weights)
    return [*tokens, *new], _last_rank(state.merges[: state.used[MERGES]]), total


def _share_done(used: Int64s, first: int, vocab_size: int) -> float:
    """Work done by the estimate of all. Zipf's law says what is to come: the j-th merge has k / j times as many places
    as the k-th."""
    done = max(int(used[IDS]) - first, 1)
    left = vocab_size - int(used[IDS])
    to_come = OVERHEAD * left + float(used[LAST]) * done * math.log((done + left) / done)
    return float(used[WORK]) / (float(used[WORK]) + to_come)


def _last_rank(merges: Int32s) -> Int32s:
    """A pair that was merged twice keeps its later place."""
    keys = merges[::-1, 0].astype(np.int64) << 32 | merges[::-1, 1]
    _, last = np.unique(keys, return_index=True)
    return merges[::-1][np.sort(last)][::-1].copy()


# ---------------------------------------------------------------- room


def _state(
    tokens: Sequence[bytes], reusable: Sequence[bool], symbols: Int32s, ends: Int64s, counts: Int64s, vocab_size: int
) -> _State:
    sizes = np.zeros(vocab_size + 1, np.int32)
    sizes[: len(tokens)] = [len(token) for token in tokens]
    begins = np.zeros(vocab_size + 1, np.int64)
    np.cumsum(sizes[: len(tokens)], out=begins[1 : len(tokens) + 1])
    spans = sizes[np.maximum(symbols, 0)]
    spans[symbols < 0] = 1
    size = int(spans.sum(dtype=np.int64)) + len(ends) + 1
    if size > MOST_CELLS:
        raise MemoryError(f"{size:,} bytes of different words are too many to learn merges from; the most is 2^31")
    weights, numbers = np.unique(counts, return_inverse=True)
    letters = np.frombuffer(b"".join(tokens), np.uint8)
    text = _Text(
        np.empty((size, 2), np.int32),
        weights if len(weights) else np.zeros(1, np.int64),
        sizes,
        np.empty(3 * len(symbols) + 3, np.int32),  # a join makes one symbol of two, and two places at most
        np.zeros((2, vocab_size + 1, 3), np.int64),
        np.empty((2, vocab_size + 1), np.int32),
        np.empty((len(symbols) + 1, 4), np.int32),
    )
    known = _Tokens(
        sizes,
        np.empty((vocab_size + 1, 2), np.uint64),
        np.concatenate([letters, np.zeros(16 * vocab_size, np.uint8)]),
        begins,
        np.zeros(1 << (2 * vocab_size + 2).bit_length(), np.int32),
        np.zeros(vocab_size + 1, np.uint8),
    )
    queue = _Queue(np.empty((1 << 10, 4), np.int64), np.empty((1 << 10, 4), np.int64))
    used = np.zeros(11, np.int64)
    used[IDS], used[LETTERS], used[THRESHOLD] = len(tokens), len(letters), 1 << 62
    order = np.argsort(-counts, kind="stable")  # frequent words, in which most is joined, side by side
    _lay(symbols, ends, order, numbers.astype(np.int32), sizes, text.cells)
    _enter_tokens(known, np.array(reusable, np.uint8))
    pairs, merges = np.zeros((1 << 12, 2), np.int64), np.empty((vocab_size + 1, 2), np.int32)
    return _State(text, queue, known, pairs, merges, used)


def _start(state: _State, longest: int) -> _State:
    """Count the pairs of all words and put them into the bag with their places."""
    text, cell = state.text, 1
    while (cell := _count_pairs(text.cells, text.sizes, text.weights, state.pairs, state.used, cell, longest)) < len(
        text.cells
    ):
        state.used[NEED] = state.used[PAIRS]
        state = _larger(state)
    bag = np.empty((int(state.used[PAIRS]) + (1 << 10), 4), np.int64)
    places = np.zeros(len(state.pairs), np.int64)
    _list_pairs(text.cells, text.sizes, text.lists, state.pairs, bag, state.used, places, longest)
    return state._replace(queue=state.queue._replace(bag=bag))


def _larger(state: _State) -> _State:
    """The same state with more room where less is left than the next merge may need."""
    used, need = state.used, int(state.used[NEED])
    (heap, bag), letters, pairs, merges = state.queue, state.tokens.letters, state.pairs, state.merges
    if used[IN_HEAP] + need > len(heap):
        heap = _with_room(heap, need)
    if used[IN_BAG] + need > len(bag):
        bag = _with_room(bag, need)
    if used[LETTERS] + need > len(letters):
        letters = _with_room(letters, need)
    if used[MERGES] == len(merges):
        merges = _with_room(merges, 1)
    if 3 * (used[PAIRS] + need) > 2 * len(pairs):
        pairs = np.zeros((1 << int(3 * (used[PAIRS] + need) // 2).bit_length(), 2), np.int64)
        _move_pairs(state.pairs, pairs)
    return _State(state.text, _Queue(heap, bag), state.tokens._replace(letters=letters), pairs, merges, used)


def _with_room(old: Any, more: int) -> Any:
    """A copy with half as much room again, and with room for so many `more`."""
    new = np.empty((len(old) + len(old) // 2 + more, *old.shape[1:]), old.dtype)
    new[: len(old)] = old
    return new


# ---------------------------------------------------------------- the first cells and pairs


@_code.outer
def _lay(symbols, ends, order, numbers, sizes, cells):
    """Lay the words out in cells, in this order."""
    p = np.int64(0)
    cells[0, 0], cells[0, 1] = WALL, 0
    for k in range(len(order)):
        w = order[k]
        p += 1
        for i in range(ends[w - 1] if w else 0, ends[w]):
            token = symbols[i]
            span = np.int64(sizes[token]) if token >= 0 else 1
            for q in range(p, p + span):
                cells[q, 0], cells[q, 1] = INSIDE, numbers[w]
            cells[p, 0], cells[p + span - 1, 0] = token, token
            p += span
        cells[p, 0], cells[p, 1] = WALL, 0


@_code.outer
def _count_pairs(cells, sizes, weights, pairs, used, p, longest):
    """Count the pairs from cell p on; returns the cell to go on at when the table of pairs is two thirds full."""
    while p < len(cells):
        left = cells[p, 0]
        if left < 0:
            p += 1
            continue
        q = p + np.int64(sizes[left])
        right = cells[q, 0]
        if right >= 0 and sizes[left] + sizes[right] <= longest:
            if 3 * (used[PAIRS] + 1) > 2 * len(pairs):
                return p
            _add(pairs, used, np.int64(left) << 32 | np.int64(right), weights[cells[p, 1]])
        p = q
    return p


@_code.outer
def _list_pairs(cells, sizes, lists, pairs, bag, used, place, longest):
    """Write the places of every pair, one pair behind the other, and its row. `place` [slots] is zero."""
    for turn in range(2):
        p = np.int64(1)
        while p < len(cells):
            left = cells[p, 0]
            if left < 0:
                p += 1
                continue
            q = p + np.int64(sizes[left])
            right = cells[q, 0]
            if right >= 0 and sizes[left] + sizes[right] <= longest:
                s = _pair_slot(pairs, np.int64(left) << 32 | np.int64(right))
                if turn:
                    lists[place[s]] = p
                place[s] += 1
            p = q
        if turn:
            return
        for s in range(len(pairs)):
            if pairs[s, 0]:
                i = used[IN_BAG]
                bag[i, 0], bag[i, 1], bag[i, 2], bag[i, 3] = pairs[s, 1], pairs[s, 0] - 1, used[LISTED], place[s]
                used[IN_BAG] += 1
                used[LISTED] += place[s]
                place[s] = used[LISTED] - place[s]


@_code.outer
def _enter_tokens(tokens, reusable):
    """Hash the tokens that are there at the start, and enter those that a merge may make again."""
    for i in range(len(reusable)):
        h, power = np.uint64(0), np.uint64(1)
        for k in range(tokens.begins[i], tokens.begins[i] + tokens.sizes[i]):
            h, power = h * BASE + np.uint64(tokens.letters[k]) + np.uint64(1), power * BASE
        tokens.hashes[i, 0], tokens.hashes[i, 1] = h, power
        if reusable[i] and tokens.sizes[i]:
            mask = np.uint64(len(tokens.slots) - 1)
            s = _spread(h) & mask
            while tokens.slots[s]:
                s = (s + np.uint64(1)) & mask
            tokens.slots[s] = i + 1


@_code.outer
def _count_tokens(cells, sizes, weights):
    """The tokens of the whole text, as the words are split now."""
    p, total = np.int64(1), np.int64(0)
    while p < len(cells):
        token = cells[p, 0]
        total += weights[cells[p, 1]] if token >= 0 else 0
        p += np.int64(sizes[token]) if token >= 0 else 1
    return total


# ---------------------------------------------------------------- pairs and rows


@_code.inner
def _spread(h):
    return (h * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(24)


@_code.inner
def _pair_slot(pairs, pair):
    """The slot of a pair, or the free one where it would go."""
    mask = np.uint64(len(pairs) - 1)
    s = _spread(np.uint64(pair)) & mask
    while pairs[s, 0] != 0 and pairs[s, 0] != pair + 1:
        s = (s + np.uint64(1)) & mask
    return s


@_code.inner
def _add(pairs, used, pair, amount):
    """Add to the count of a pair; returns its slot."""
    s = _pair_slot(pairs, pair)
    if pairs[s, 0] == 0:
        pairs[s, 0], pairs[s, 1] = pair + 1, 0
        used[PAIRS] += 1
    pairs[s, 1] += amount
    return s


@_code.outer
def _move_pairs(old, new):
    for s in range(len(old)):
        if old[s, 0]:
            t = _pair_slot(new, old[s, 0] - 1)
            new[t, 0], new[t, 1] = old[s, 0], old[s, 1]


@_code.inner
def _push(queue, used, count, pair, begin, places):
    """A row goes into the heap, or into the bag if its count is below the threshold."""
    if count < used[THRESHOLD]:
        i = used[IN_BAG]
        used[IN_BAG] += 1
        rows = queue.bag
    else:
        i = used[IN_HEAP]
        used[IN_HEAP] += 1
        rows = queue.heap
        while i:
            up = (i - 1) >> 1
            if rows[up, 0] > count or (rows[up, 0] == count and rows[up, 1] < pair):
                break
            _copy(rows, up, rows, i)
            i = up
    rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3] = count, pair, begin, places


@_code.inner
def _copy(source, i, target, j):
    for k in range(4):
        target[j, k] = source[i, k]


@_code.inner
def _drop_first(heap, used):
    """Take the first row off the heap."""
    n = used[IN_HEAP] - 1
    used[IN_HEAP] = n
    count, pair, i, child = heap[n, 0], heap[n, 1], np.int64(0), np.int64(1)
    while child < n:
        if child + 1 < n and (
            heap[child + 1, 0] > heap[child, 0]
            or (heap[child + 1, 0] == heap[child, 0] and heap[child + 1, 1] < heap[child, 1])
        ):
            child += 1
        if count > heap[child, 0] or (count == heap[child, 0] and pair < heap[child, 1]):
            break
        _copy(heap, child, heap, i)
        i, child = child, 2 * child + 1
    _copy(heap, n, heap, i)


@_code.inner
def _fill_heap(queue, used):
    """Lower the threshold until the heap holds the first row of all; False: it has no room for the rows."""
    bag = queue.bag
    while used[IN_HEAP] == 0 and used[IN_BAG]:
        largest = bag[0, 0]
        for i in range(used[IN_BAG]):
            largest = max(largest, bag[i, 0])
        used[THRESHOLD] = largest - largest // 4 if largest > 8 else min(largest, np.int64(1))
        moving = np.int64(0)
        for i in range(used[IN_BAG]):
            moving += bag[i, 0] >= used[THRESHOLD]
        if moving > len(queue.heap):
            used[NEED] = moving
            return False
        kept = np.int64(0)
        for i in range(used[IN_BAG]):
            if bag[i, 0] >= used[THRESHOLD]:
                _push(queue, used, bag[i, 0], bag[i, 1], bag[i, 2], bag[i, 3])
            else:
                _copy(bag, i, bag, kept)
                kept += 1
        used[IN_BAG] = kept
    return True


# ---------------------------------------------------------------- merging


@_code.outer
def _merge(state, vocab_size, least, longest):
    """Merge until there are enough ids, no pair is left, room is short, or it is time to say how far it is."""
    text, queue, tokens, pairs, merges, used = state
    stop = used[WORK] + ENOUGH
    while used[IDS] < vocab_size:
        if not _fill_heap(queue, used):
            return MORE_ROOM
        if not used[IN_HEAP]:
            return FINISHED
        count, pair, begin, places = queue.heap[0, 0], queue.heap[0, 1], queue.heap[0, 2], queue.heap[0, 3]
        now = pairs[_pair_slot(pairs, pair), 1]
        left, right = np.int32(pair >> 32), np.int32(pair & 0xFFFFFFFF)
        whole = tokens.again[left] or tokens.again[right]
        size = np.int64(tokens.sizes[left]) + tokens.sizes[right]
        used[NEED] = max(4 * min(used[IDS] if whole else places, used[IDS]) + 4, size)
        if (
            used[IN_HEAP] + used[NEED] > len(queue.heap)
            or used[IN_BAG] + used[NEED] > len(queue.bag)
            or used[MERGES] == len(merges)
            or 3 * (used[PAIRS] + used[NEED]) > 2 * len(pairs)
            or used[LETTERS] + used[NEED] > len(tokens.letters)
        ):
            return MORE_ROOM
        if count == now and now < least:
            return FINISHED
        _drop_first(queue.heap, used)
        if count != now:
            _push(queue, used, now, pair, begin, places)
            continue
        new = _join_tokens(tokens, used, left, right)
        merges[used[MERGES], 0], merges[used[MERGES], 1] = left, right
        used[MERGES] += 1
        joins = np.int64(0)
        for k in range(begin, begin + places):
            joins = _join_at(text, np.int64(text.lists[k]), left, right, new, joins, whole)
        met_x, met_y = _count_changes(text, pairs, used, left, right, new, joins, longest)
        _make_rows(text, pairs, queue, used, joins, met_x, met_y)
        used[WORK] += places + OVERHEAD
        used[LAST] = places
        if used[WORK] > stop:
            return GO_ON
    return FINISHED


@_code.inner
def _join_tokens(tokens, used, left, right):
    """The id of the joined token: a new one, or that of a token of the same bytes."""
    sizes, hashes, begins, letters, slots = tokens.sizes, tokens.hashes, tokens.begins, tokens.letters, tokens.slots
    h = hashes[left, 0] * hashes[right, 1] + hashes[right, 0]
    size, end = np.int64(sizes[left]) + sizes[right], used[LETTERS]
    for k in range(sizes[left]):
        letters[end + k] = letters[begins[left] + k]
    for k in range(sizes[right]):
        letters[end + sizes[left] + k] = letters[begins[right] + k]
    mask = np.uint64(len(slots) - 1)
    s = _spread(h) & mask
    while slots[s]:
        old = np.int32(slots[s] - 1)
        same = hashes[old, 0] == h and sizes[old] == size
        k = np.int64(0)
        while same and k < size:
            same = letters[begins[old] + k] == letters[end + k]
            k += 1
        if same:
            tokens.again[old] = 1
            return old
        s = (s + np.uint64(1)) & mask
    new = np.int32(used[IDS])
    slots[s] = new + 1
    sizes[new], begins[new] = size, end
    hashes[new, 0], hashes[new, 1] = h, hashes[left, 1] * hashes[right, 1]
    used[LETTERS] += size
    used[IDS] += 1
    return new


@_code.inner
def _join_at(text, p, left, right, new, joins, whole):
    """Join the pair at cell p, if it is still there, or (`whole`) everywhere in the word around that cell, and note the
    neighbours; returns the number of joins so far."""
    cells, sizes, around, events = text.cells, text.sizes, text.around, text.events
    if cells[p, 0] != left or cells[p + np.int64(sizes[left]), 0] != right:
        return joins
    while whole and cells[p - 1, 0] >= 0:
        p -= np.int64(sizes[cells[p - 1, 0]])
    amount = text.weights[cells[p, 1]]
    while cells[p, 0] >= 0:
        q = p + np.int64(sizes[cells[p, 0]])
        if cells[p, 0] == left and cells[q, 0] == right:
            end = q + np.int64(sizes[right])
            x, y = cells[p - 1, 0], cells[end, 0]
            cells[q - 1, 0] = cells[q, 0] = INSIDE
            cells[p, 0] = cells[end - 1, 0] = new
            events[joins, 0], events[joins, 2], events[joins, 3] = x, y, p
            if x >= 0:
                events[joins, 1] = p - np.int64(sizes[x])
                around[0, x, 0] += amount
                around[0, x, 1] += 1
            if y >= 0:
                around[1, y, 0] += amount
                around[1, y, 1] += 1
            joins += 1
            q = end
        if not whole:
            break
        p = q
    return joins


@_code.inner
def _count_changes(text, pairs, used, left, right, new, joins, longest):
    """Count what the joins changed around them; returns how many left and right neighbours there are."""
    around, seen, sizes = text.around, text.seen, text.sizes
    met_x, met_y = np.int64(0), np.int64(0)
    for e in range(joins):
        x, y = text.events[e, 0], text.events[e, 2]
        if x >= 0 and around[0, x, 2] == 0:
            around[0, x, 2] = 1
            seen[0, met_x] = x
            met_x += 1
        if y >= 0 and around[1, y, 2] == 0:
            around[1, y, 2] = 1
            seen[1, met_y] = y
            met_y += 1
    for k in range(met_x + met_y):
        side = np.int64(k >= met_x)
        n = np.int64(seen[side, k - met_x if side else k])
        before = np.int64(right) << 32 | n if side else n << 32 | left
        after = np.int64(new) << 32 | n if side else n << 32 | new
        _add(pairs, used, before, -around[side, n, 0])
        around[side, n, 2] = -1
        if sizes[n] + sizes[new] <= longest:
            around[side, n, 2] = _add(pairs, used, after, around[side, n, 0])
    return met_x, met_y


@_code.inner
def _make_rows(text, pairs, queue, used, joins, met_x, met_y):
    """Give every pair that came to be its row and its list of places."""
    around, seen, lists, events = text.around, text.seen, text.lists, text.events
    for k in range(met_x + met_y):
        side = np.int64(k >= met_x)
        n = np.int64(seen[side, k - met_x if side else k])
        s, places = around[side, n, 2], around[side, n, 1]
        around[side, n, 1] = -1
        if s >= 0 and pairs[s, 1] > 0:
            _push(queue, used, pairs[s, 1], pairs[s, 0] - 1, used[LISTED], places)
            around[side, n, 1] = used[LISTED]
            used[LISTED] += places
    for e in range(joins):
        x, y = events[e, 0], events[e, 2]
        if x >= 0 and around[0, x, 1] >= 0:
            lists[around[0, x, 1]] = events[e, 1]
            around[0, x, 1] += 1
        if y >= 0 and around[1, y, 1] >= 0:
            lists[around[1, y, 1]] = events[e, 3]
            around[1, y, 1] += 1
    for k in range(met_x + met_y):
        side = np.int64(k >= met_x)
        n = np.int64(seen[side, k - met_x if side else k])
        around[side, n, 0] = around[side, n, 1] = around[side, n, 2] = 0
