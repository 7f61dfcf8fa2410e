"""The fast path of Word2Vec: `walk` of word2vec.py, compiled by Numba; the same vectors up to rounding.

One word of the text costs three small matrix products (n neighbours, K targets, D numbers a row):

    errors   E [n, K] = σ(X Tᵀ) − labels, times −rate          `_errors`
    pull     G [K, D] = Eᵀ X, what the targets are to gain     `_learn`
    push     X [n, D] += E T                                   `_learn`

A processor multiplies and adds eight numbers at once (16 such registers on x86-64, twice as many on others), and a sum
that waits for itself takes five steps. So each product keeps its sums in registers: `_errors` 2 rows × 6 targets;
`_learn` eight columns of 6 targets and of their 6 gains, past which the neighbours are led one by one, each used for
both products while it is there. Numba has no such type, so these two write LLVM's vector instructions; the loops over
targets in them run in Python, when the instructions are written. LLVM lowers them on any processor.

Rows that will be needed for the next word are called for (prefetch) while this one is computed: a vocabulary's table
is larger than the cache, and noise words lie anywhere in it.

Compiled code is given one list of *places*: the addresses of all tables, and the whole numbers of the settings. Numba
takes a tuple of arrays apart, seven numbers an array, at every call and in every function that it is handed to; that
would be half of the time of compiling.

Legend: D numbers of a row, P = D rounded up to 8 (the rest stays zero), S slots of the ring, L = K rounded up to 6.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["Model", "Room", "places", "thin", "walk"]

# One stream of chance for both twins: Knuth's 64-bit linear congruential generator; the upper half is the number.
MULTIPLIER, INCREMENT = np.uint64(6364136223846793005), np.uint64(1442695040888963407)
ONE = np.float32(1)

# No function below makes an array, so Numba need not count references. No "nnan": a number that is none must survive.
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False, "error_model": "numpy"}
_FAST["fastmath"] = {"reassoc", "contract", "arcp", "nsz"}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)
_instructions: Any = intrinsic


# ---------------------------------------------------------------- what is handed to compiled code


class Model(NamedTuple):
    """What is trained, and the chances. `table` float32 [N, P]: a row for each word, then the n-grams', then the
    contexts from `contexts` on, then the inner nodes of the Huffman tree."""

    table: np.ndarray
    keep: np.ndarray  # float64 [V]: chance that a word is not thinned out
    noise: np.ndarray  # float64 [V]: alias + chance, packed in word2vec.py
    parts: np.ndarray  # int64: rows that a word is the mean of; empty without n-grams
    part_offsets: np.ndarray  # int64 [V + 1]
    nodes: np.ndarray  # int64: rows of the nodes on a word's path; empty without the tree
    turns: np.ndarray  # float32: the label at each of them
    node_offsets: np.ndarray  # int64 [V + 1]
    contexts: int
    window: int
    negative: int
    shared: int  # words that share their noise; 0: no two pairs do
    skipgram: bool
    mean: bool  # of the neighbours, in CBOW; else their sum


class Room(NamedTuple):
    """Working space of one thread."""

    ring: np.ndarray  # float32 [S, P]: the vectors of the words in reach
    before: np.ndarray  # float32 [S, P]: what they were when they came into reach, times −1
    hidden: np.ndarray  # float32 [2, P]: CBOW's mean of them, and what it was before the step
    slots: np.ndarray  # int64 [2 · window + 1]: addresses of the neighbours' rows in the ring
    only: np.ndarray  # int64 [1]: address of the hidden row
    targets: np.ndarray  # int64 [L]: addresses of the targets' rows
    labels: np.ndarray  # float32 [8 · L / 6]: a block of six in eight places
    rates: np.ndarray  # float32, the same
    drawn: np.ndarray  # int64 [2, negative]: noise of this word and of the next
    steps: np.ndarray  # float32 [2 · window + 1, 8 · L / 6]
    old: np.ndarray  # float32 [2 · window + 1, P]: the neighbours before the step
    gains: np.ndarray  # float32 [L, P]
    places: np.ndarray  # int64: see `places`


# Where each address stands in the list, and after them each number.
(TABLE, KEEP, NOISE, PARTS, PART_OFFSETS, NODES, TURNS, NODE_OFFSETS) = range(8)
(RING, BEFORE, HIDDEN, SLOTS, ONLY, TARGETS, LABELS, RATES, DRAWN, STEPS, OLD, GAINS) = range(8, 20)
(CONTEXTS, WINDOW, NEGATIVE, SHARED, SKIPGRAM, MEAN, P, V, MASK, WIDE, GRAMS, TREE) = range(20, 32)


def places(model: Model, room: Room) -> np.ndarray:
    """The addresses of all arrays, which must outlive the list, and the whole numbers; `room.places` is not read."""
    arrays = [*model[:8], *room[:-1]]
    sizes = [model.table.shape[1], len(model.keep), len(room.ring) - 1, len(room.labels)]
    there = [len(model.parts) > 0, len(model.nodes) > 0]
    return np.array([a.ctypes.data for a in arrays] + [*map(int, model[8:])] + sizes + there, np.int64)


@_instructions
def _view(typingctx: Any, address: Any, size: Any, dtype: Any) -> Any:
    """The array of `size` items at an address."""
    kind = types.Array(dtype.dtype, 1, "C")

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from numba.np.arrayobj import populate_array

        array, item = context.make_array(kind)(context, builder), context.get_data_type(kind.dtype)
        step = context.get_constant(types.intp, context.get_abi_sizeof(item))
        place = builder.inttoptr(args[0], item.as_pointer())
        populate_array(array, data=place, shape=[args[1]], strides=[step], itemsize=step, meminfo=None)
        return array._getvalue()

    return kind(types.int64, types.int64, dtype), make


# ---------------------------------------------------------------- eight numbers at once

FLOAT, INT, LONG, EIGHT = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.VectorType(ir.FloatType(), 8)
BLOCK = 6  # targets of a block


def _floats(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, FLOAT.as_pointer())


def _load(builder: Any, pointer: Any, at: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(pointer, [at]), EIGHT.as_pointer()), align=4)


def _store(builder: Any, value: Any, pointer: Any, at: Any) -> None:
    builder.store(value, builder.bitcast(builder.gep(pointer, [at]), EIGHT.as_pointer()), align=4)


def _rows_of(builder: Any, addresses: Any, count: int) -> list[Any]:
    """Pointers to the rows whose addresses lie at an address."""
    start = builder.inttoptr(addresses, LONG.as_pointer())
    return [_floats(builder, builder.load(builder.gep(start, [LONG(k)]))) for k in range(count)]


def _columns(builder: Any, columns: Any) -> Any:
    """A loop over the columns, eight at a time."""
    return cgutils.for_range_slice(builder, LONG(0), columns, LONG(8), intp=LONG)


def _splat(builder: Any, number: Any) -> Any:
    one = builder.insert_element(ir.Constant(EIGHT, ir.Undefined), number, INT(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(INT, 8), [0] * 8))


def _numbers(value: float) -> Any:
    return ir.Constant(EIGHT, [float(np.float32(value))] * 8)


def _madd(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, in one instruction where the processor has it."""
    signature = ir.FunctionType(EIGHT, [EIGHT] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, "llvm.fmuladd.v8f32"), [a, b, c])


def _call(builder: Any, name: str, *values: Any) -> Any:
    signature = ir.FunctionType(EIGHT, [EIGHT] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.v8f32"), values)


def _sums(builder: Any, vectors: list[Any]) -> Any:
    """One vector of the sums of up to eight: three rounds, each of which adds neighbours and halves the number."""
    zero = ir.Constant(EIGHT, [0.0] * 8)
    left = vectors + [zero] * (8 - len(vectors))
    index = ir.VectorType(INT, 8)
    # Within halves of four lanes, as the instructions do; after two rounds each half holds sums of its own lanes.
    even, odd = [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]
    for _ in range(2):
        pairs = zip(left[::2], left[1::2], strict=True)
        left = [
            builder.fadd(
                builder.shuffle_vector(a, b, ir.Constant(index, even)),
                builder.shuffle_vector(a, b, ir.Constant(index, odd)),
            )
            for a, b in pairs
        ]
    a, b = left
    low = builder.shuffle_vector(a, b, ir.Constant(index, [0, 1, 2, 3, 8, 9, 10, 11]))
    high = builder.shuffle_vector(a, b, ir.Constant(index, [4, 5, 6, 7, 12, 13, 14, 15]))
    return builder.fadd(low, high)


def _sigmoid(builder: Any, x: Any) -> Any:
    """1 / (1 + exp(−x)) for |x| up to 8, where the rest is cut off; error below 1e-6.

    exp(−x) = 2^n · 2^f with n whole and |f| ≤ ½; 2^f by its series, 2^n by writing n into the exponent's bits."""
    x = _call(builder, "minnum", _call(builder, "maxnum", x, _numbers(-8)), _numbers(8))
    t = builder.fmul(x, _numbers(-1 / np.log(2)))
    n = _call(builder, "rint", t)
    f = builder.fsub(t, n)
    series = [np.log(2) ** k / float(np.prod(np.arange(1, k + 1))) for k in range(6)]
    power = _numbers(series[5])
    for term in series[4::-1]:
        power = _madd(builder, power, f, _numbers(term))
    whole = ir.VectorType(INT, 8)
    bits = builder.shl(builder.fptosi(n, whole), ir.Constant(whole, [23] * 8))
    power = builder.bitcast(builder.add(builder.bitcast(power, whole), bits), EIGHT)
    return builder.fdiv(_numbers(1), builder.fadd(_numbers(1), power))


# ---------------------------------------------------------------- the three products


@_instructions(prefer_literal=True)
def _errors(typingctx, rows, a, b, targets, columns, labels, rates, out_a, out_b):
    """out_a = −rates · (σ(a · Tᵀ) − labels) for six targets; and out_b for row b, if `rows` is 2. All are addresses."""
    count = rows.literal_value

    def generate(context, builder, signature, arguments):
        _, a, b, targets, columns, labels, rates, out_a, out_b = arguments
        x = [_floats(builder, r) for r in (a, b)[:count]]
        t = _rows_of(builder, targets, BLOCK)
        sums = [cgutils.alloca_once_value(builder, _numbers(0)) for _ in range(count * BLOCK)]
        with _columns(builder, columns) as (at, _):
            values = [_load(builder, p, at) for p in x]
            for k in range(BLOCK):
                value = _load(builder, t[k], at)
                for r in range(count):
                    s = sums[r * BLOCK + k]
                    builder.store(_madd(builder, values[r], value, builder.load(s)), s)
        label, rate = (_load(builder, _floats(builder, place), LONG(0)) for place in (labels, rates))
        for r, out in enumerate((out_a, out_b)[:count]):
            dots = _sums(builder, [builder.load(s) for s in sums[r * BLOCK : (r + 1) * BLOCK]])
            step = builder.fmul(builder.fsub(label, _sigmoid(builder, dots)), rate)
            _store(builder, step, _floats(builder, out), LONG(0))
        return context.get_dummy_value()

    return types.void(rows, *[types.int64] * 8), generate


@_instructions(prefer_literal=True)
def _learn(typingctx, alone, slots, n, steps, wide, targets, columns, old, out):
    """Pull and push of six targets by n neighbours: G = Σ_j steps[j] · X[j], and X[j] += Σ_k steps[j, k] · T[k].

    If `alone`, T += G. Else other targets have pushed X before: G is of what `old` holds, and is written to `out`."""

    def generate(context, builder, signature, arguments):
        _, slots, n, steps, wide, targets, columns, old, out = arguments
        t, steps = _rows_of(builder, targets, BLOCK), _floats(builder, steps)
        places = builder.inttoptr(slots, LONG.as_pointer())
        with _columns(builder, columns) as (at, _):
            rows = [_load(builder, pointer, at) for pointer in t]
            gains = [cgutils.alloca_once(builder, EIGHT) for _ in range(BLOCK)]
            for gain in gains:
                builder.store(_numbers(0), gain)
            with cgutils.for_range_slice(builder, LONG(0), n, LONG(1), intp=LONG) as (j, _):
                x = _floats(builder, builder.load(builder.gep(places, [j])))
                value = was = _load(builder, x, at)
                if not alone.literal_value:
                    was = _load(builder, _floats(builder, old), builder.add(builder.mul(j, columns), at))
                first = builder.mul(j, wide)
                for k in range(BLOCK):
                    step = builder.load(builder.gep(steps, [builder.add(first, LONG(k))]))
                    factor = _splat(builder, step)
                    builder.store(_madd(builder, was, factor, builder.load(gains[k])), gains[k])
                    value = _madd(builder, factor, rows[k], value)
                _store(builder, value, x, at)
            for k in range(BLOCK):
                gain = builder.load(gains[k])
                if alone.literal_value:  # the row is read again: two targets may be the same
                    _store(builder, builder.fadd(_load(builder, t[k], at), gain), t[k], at)
                else:
                    place = builder.add(builder.mul(LONG(k), columns), at)
                    _store(builder, gain, _floats(builder, out), place)
        return context.get_dummy_value()

    return types.void(alone, *[types.int64] * 8), generate


def _row_by_row(keep: bool) -> Any:
    """An intrinsic: the row at `out` = factor · the row at `x`, added to what is there if `keep`."""

    def define(typingctx, out, x, factor, columns):
        def generate(context, builder, signature, arguments):
            to, start = (_floats(builder, address) for address in arguments[:2])
            many = _splat(builder, arguments[2])
            with _columns(builder, arguments[3]) as (at, _):
                value = _load(builder, start, at)
                value = _madd(builder, value, many, _load(builder, to, at)) if keep else builder.fmul(value, many)
                _store(builder, value, to, at)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64), generate

    return _instructions(define)


_set, _add = _row_by_row(keep=False), _row_by_row(keep=True)


@_instructions
def _prefetch(typingctx, row, columns):
    """Call for a row that will be changed soon: 16 numbers a line of the cache. To be changed, not read: where another
    core has changed it, one message then fetches it and takes it away from there."""

    def generate(context, builder, signature, arguments):
        row, columns = arguments
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, INT, INT, INT])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        start = _floats(builder, row)
        with cgutils.for_range_slice(builder, LONG(0), columns, LONG(16), intp=LONG) as (at, _):
            builder.call(call, [builder.bitcast(builder.gep(start, [at]), byte), INT(1), INT(3), INT(1)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


# ---------------------------------------------------------------- the walk through the text


@_inner
def _uniform(state):
    return (state >> np.uint64(11)) * 1.1102230246251565e-16  # 2^−53


@_inner
def _row(p, table, row):
    """Address of a row of a table."""
    return p[table] + row * p[P] * 4


@_inner
def _enter(word, slot, p):
    """A word comes into reach: its vector is copied into the ring, and turned round beside it."""
    to = _row(p, RING, slot)
    if p[GRAMS]:
        offsets = _view(p[PART_OFFSETS] + word * 8, 2, np.int64)
        parts, n = _view(p[PARTS] + offsets[0] * 8, offsets[1], np.int64), offsets[1] - offsets[0]
        share = np.float32(1 / n)
        _set(to, _row(p, TABLE, word), share, p[P])
        for k in range(1, n):
            _add(to, _row(p, TABLE, parts[k]), share, p[P])
    else:
        _set(to, _row(p, TABLE, word), ONE, p[P])
    _set(_row(p, BEFORE, slot), to, -ONE, p[P])


@_inner
def _leave(word, slot, p):
    """A word goes out of reach: what its vector gained goes to its row, or to all its parts."""
    gain = _row(p, BEFORE, slot)
    _add(gain, _row(p, RING, slot), ONE, p[P])
    if p[GRAMS]:
        offsets = _view(p[PART_OFFSETS] + word * 8, 2, np.int64)
        parts = _view(p[PARTS], offsets[1], np.int64)
        for k in range(offsets[0], offsets[1]):
            _add(_row(p, TABLE, parts[k]), gain, ONE, p[P])
    else:
        _add(_row(p, TABLE, word), gain, ONE, p[P])


@_inner
def _draw(side, p, state):
    """Draw noise words for a word to come, and call for their rows."""
    drawn, noise = _view(p[DRAWN] + side * p[NEGATIVE] * 8, p[NEGATIVE], np.int64), _view(p[NOISE], p[V], np.float64)
    for k in range(p[NEGATIVE]):
        state = state * MULTIPLIER + INCREMENT
        y = _uniform(state) * p[V]
        slot = np.int64(y)
        both = noise[slot]
        alias = np.int64(both)
        drawn[k] = slot if y - slot < both - alias else alias
        _prefetch(_row(p, TABLE, p[CONTEXTS] + drawn[k]), p[P])
    return state


@_inner
def _aim(word, side, rate, p):
    """Set the targets of a word, their labels and rates; returns how many."""
    wide, negative = p[WIDE], p[NEGATIVE]
    targets, drawn = _view(p[TARGETS], wide, np.int64), _view(p[DRAWN] + side * negative * 8, negative, np.int64)
    labels, rates = _view(p[LABELS], wide, np.float32), _view(p[RATES], wide, np.float32)
    K = np.int64(0)
    if negative:
        for k in range(negative + 1):
            other = word if k == 0 else drawn[k - 1]
            targets[k] = _row(p, TABLE, p[CONTEXTS] + other)
            at = k // 6 * 8 + k % 6
            labels[at] = 1 if k == 0 else 0
            rates[at] = 0 if k > 0 and other == word else rate  # the word is no noise
        K = negative + 1
    if p[TREE]:
        ends = _view(p[NODE_OFFSETS] + word * 8, 2, np.int64)
        nodes, turns = _view(p[NODES], ends[1], np.int64), _view(p[TURNS], ends[1], np.float32)
        for n in range(ends[0], ends[1]):
            targets[K] = _row(p, TABLE, nodes[n])
            at = K // 6 * 8 + K % 6
            labels[at] = turns[n]
            rates[at] = rate
            K += 1
    for k in range(K, (K + 5) // 6 * 6):
        targets[k] = targets[0]
        rates[k // 6 * 8 + k % 6] = 0
    return K


@_inner
def _step(slots, n, K, p):
    """One step for the rows at slots[:n] and K targets."""
    blocks, wide, X = (K + 5) // 6, p[WIDE], _view(slots, n, np.int64)
    for block in range(blocks):
        aims, lanes = p[TARGETS] + block * 48, block * 32
        labels, rates = p[LABELS] + lanes, p[RATES] + lanes
        for j in range(0, n - 1, 2):
            out = p[STEPS] + j * wide * 4 + lanes
            _errors(2, X[j], X[j + 1], aims, p[P], labels, rates, out, out + wide * 4)
        if n & 1:
            out = p[STEPS] + (n - 1) * wide * 4 + lanes
            _errors(1, X[n - 1], X[n - 1], aims, p[P], labels, rates, out, out)
    if blocks == 1:
        _learn(1, slots, n, p[STEPS], wide, p[TARGETS], p[P], p[OLD], p[GAINS])
        return
    for j in range(n):
        _set(_row(p, OLD, j), X[j], ONE, p[P])
    for block in range(blocks):
        aims, out = p[TARGETS] + block * 48, p[GAINS] + block * 24 * p[P]
        _learn(0, slots, n, p[STEPS] + block * 32, wide, aims, p[P], p[OLD], out)
    targets = _view(p[TARGETS], K, np.int64)
    for k in range(K):
        _add(targets[k], _row(p, GAINS, k), ONE, p[P])


@_inner
def _loss(n, K, p):
    """−Σ log(1 − |error|) over the pairs of a step, from the step itself; pairs of rate 0 do not count."""
    rates, steps, loss = _view(p[RATES], p[WIDE], np.float32), _view(p[STEPS], n * p[WIDE], np.float32), 0.0
    for j in range(n):
        for k in range(K):
            at = k // 6 * 8 + k % 6
            if rates[at] > 0:
                loss -= np.log(1 - min(abs(steps[j * p[WIDE] + at] / rates[at]), np.float32(0.9999)))
    return loss


@_outer
def thin(rows, offsets, first, last, keep, state, kept, ends):
    """Copy rows[first:last] to `kept` but for words left out by chance, and where the documents end in it to `ends`;
    returns (words kept, documents, state)."""
    document, beyond = 0, len(offsets) - 1
    while beyond - document > 1:
        middle = (document + beyond) // 2
        if offsets[middle] <= first:
            document = middle
        else:
            beyond = middle
    at, m, n = first, 0, 0
    while at < last:
        end = min(last, offsets[document + 1])
        for q in range(at, end):
            state = state * MULTIPLIER + INCREMENT
            kept[m] = rows[q]
            if _uniform(state) < keep[rows[q]]:
                m += 1
        if end > at:
            ends[n] = m
            n += 1
        at, document = end, document + 1
    return m, n, state


@_inner
def _mean(n, p):
    """CBOW's hidden row: the mean or the sum of the neighbours."""
    slots, share = _view(p[SLOTS], n, np.int64), np.float32(1 / n if p[MEAN] else 1)
    _set(p[HIDDEN], slots[0], share, p[P])
    for j in range(1, n):
        _add(p[HIDDEN], slots[j], share, p[P])
    _set(_row(p, HIDDEN, 1), p[HIDDEN], -ONE, p[P])


@_inner
def _share(n, p):
    """What the hidden row gained goes to every neighbour: whole after a mean, as in word2vec.c, the n-th part after a
    sum, as in gensim."""
    slots, share, gain = _view(p[SLOTS], n, np.int64), np.float32(1 if p[MEAN] else 1 / n), _row(p, HIDDEN, 1)
    _add(gain, p[HIDDEN], ONE, p[P])
    for j in range(n):
        _add(slots[j], gain, share, p[P])


@_inner
def _expect(word, p):
    """Call for the rows of a word to come that are no noise: its own, or those on its path."""
    if p[NEGATIVE]:
        _prefetch(_row(p, TABLE, p[CONTEXTS] + word), p[P])
    if p[TREE]:
        ends = _view(p[NODE_OFFSETS] + word * 8, 2, np.int64)
        nodes = _view(p[NODES], ends[1], np.int64)
        for n in range(ends[0], ends[1]):
            _prefetch(_row(p, TABLE, nodes[n]), p[P])


@_outer
def _walk(kept, ends, a, b, p, rate, end_rate, state):
    window, mask, m = p[WINDOW], p[MASK], len(kept)
    slots, by_pair = _view(p[SLOTS], 2 * window + 1, np.int64), p[SKIPGRAM] != 0 and p[SHARED] == 0
    loss, measured, pairs = 0.0, 0, 0
    document, low, high, entered, left = 0, np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    side = np.int64(0)
    if a < b and not by_pair:
        state = _draw(side, p, state)
    for i in range(a, b + 1):
        # Words go out of reach, all of them where the document ends; then others come into reach.
        ended = i >= high or i == b
        for j in range(left, entered if ended else i - window):
            _leave(np.int64(kept[j]), j & mask, p)
        left = max(left, i - window)
        if i == b:
            break
        if ended:
            while i >= ends[document]:
                low = ends[document]
                document += 1
            high = ends[document]
            entered = left = max(low, i - window)
        for j in range(entered, min(high, i + window + 1)):
            _enter(np.int64(kept[j]), j & mask, p)
            if j + 3 < m and not p[GRAMS]:
                _prefetch(_row(p, TABLE, np.int64(kept[j + 3])), p[P])
        entered = max(entered, min(high, i + window + 1))
        # The neighbours, and the next word's noise, so that its rows are on the way.
        state = state * MULTIPLIER + INCREMENT
        reach, n = 1 + int(_uniform(state) * window), 0
        for j in range(max(low, i - reach), min(high, i + reach + 1)):
            if j != i:
                slots[n] = _row(p, RING, j & mask)
                n += 1
        word, ahead = np.int64(kept[i]), side
        if not by_pair and i + 1 < b:
            if (i + 1 - a) % p[SHARED] == 0:
                ahead = 1 - side
                state = _draw(ahead, p, state)
            _expect(np.int64(kept[i + 1]), p)
        # The step.
        first, rows, steps, K = p[SLOTS], n, min(n, 1), np.int64(0)
        pairs += n
        if by_pair:
            rows, steps = 1, n
        elif n and not p[SKIPGRAM]:
            _mean(n, p)
            first, rows = p[ONLY], 1
        for j in range(steps):
            if by_pair:
                state = _draw(side, p, state)
            K = _aim(word, side, np.float32(rate + (end_rate - rate) * i / m), p)
            _step(first + j * 8, rows, K, p)
        if n and not p[SKIPGRAM]:
            _share(n, p)
        if i & 15 == 0 and n:
            loss += _loss(rows, K, p)
            measured += rows
        side = ahead
    return loss, measured, pairs, state


# ---------------------------------------------------------------- public functions


def walk(
    kept: np.ndarray, ends: np.ndarray, a: int, b: int, model: Model, room: Room, rate: float, end_rate: float,
    state: np.uint64,
) -> tuple:  # fmt: skip
    """Train on the words kept[a:b], each with its neighbours, which may lie outside; `ends` are the documents' ends.
    The rate goes from `rate` at kept[0] to `end_rate` at the end. `room` has the places of `model`.

    Returns (Σ loss and pairs of every 16th word, all pairs, state)."""
    return _walk(kept, ends, a, b, room.places, rate, end_rate, state)
