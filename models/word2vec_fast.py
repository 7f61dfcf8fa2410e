"""The fast path of Word2Vec: `walk` of word2vec.py, compiled by Numba; the same vectors up to rounding.

One word of the text costs three small matrix products (n neighbours, K targets, D numbers a row):

    errors   E [n, K] = σ(X Tᵀ) − labels, times −rate          `_errors`
    pull     G [K, D] = Eᵀ X, what the targets are to gain     `_pull`
    push     X [n, D] += E T                                   `_push`

A processor multiplies and adds eight numbers at once (16 such registers on x86-64, twice as many on others), and a sum
that waits for itself takes five steps. So each product keeps 12 sums in registers: 2 rows × 6 targets, or 6 targets ×
2 × 8 columns. Numba has no such type, so these three write LLVM's vector instructions; the loops over targets in them
run in Python, when the instructions are written. LLVM lowers them on any processor.

Rows that will be needed for the next word are called for (prefetch) while this one is computed: a vocabulary's table
is larger than the cache, and noise words lie anywhere in it.

Legend: D numbers of a row, P = D rounded up to 16 (the rest stays zero), S slots of the ring, L = K rounded up to 6.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["Log", "Model", "Room", "apply_log", "thin", "walk"]

# One stream of chance for both twins: Knuth's 64-bit linear congruential generator; the upper half is the number.
MULTIPLIER, INCREMENT = np.uint64(6364136223846793005), np.uint64(1442695040888963407)
ONE = np.float32(1)

# No function below makes an array, so Numba need not count references. No "nnan": a number that is none must survive.
_FAST: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False, "error_model": "numpy"}
_FAST["fastmath"] = {"reassoc", "contract", "arcp", "nsz"}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_outer, _inner = njit(**_FAST), njit(**_BARE)
_instructions: Any = intrinsic


# ---------------------------------------------------------------- eight numbers at once

FLOAT, INT, EIGHT = ir.FloatType(), ir.IntType(32), ir.VectorType(ir.FloatType(), 8)
TARGETS = 6  # of a block


def _row(context: Any, builder: Any, array_type: Any, array: Any, row: Any) -> Any:
    """Pointer to the first number of a row of a C-contiguous float32 table."""
    table = context.make_array(array_type)(context, builder, array)
    stride = cgutils.unpack_tuple(builder, table.strides)[0]
    start = builder.ptrtoint(table.data, stride.type)
    return builder.inttoptr(builder.add(start, builder.mul(row, stride)), FLOAT.as_pointer())


def _whole(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    """Number `at` of a one-dimensional int64 array."""
    table = context.make_array(array_type)(context, builder, array)
    return builder.load(builder.gep(table.data, [at]))


def _eight(builder: Any, pointer: Any, at: Any) -> Any:
    """Pointer to the eight numbers from `at` on."""
    return builder.bitcast(builder.gep(pointer, [at]), EIGHT.as_pointer())


def _load(builder: Any, pointer: Any, at: Any) -> Any:
    return builder.load(_eight(builder, pointer, at), align=4)


def _store(builder: Any, value: Any, pointer: Any, at: Any) -> None:
    builder.store(value, _eight(builder, pointer, at), align=4)


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
def _errors(typingctx, rows, X, a, b, table, targets, first, columns, labels, rates, side, steps, j, block):
    """steps[j, block] = −rates · (σ(X[a] · Tᵀ) − labels) for the six targets from `first` on; and steps[j + 1] for row
    b of X, if `rows` is 2."""
    count = rows.literal_value

    def generate(context, builder, signature, arguments):
        _, tX, _, _, tT, tt, _, _, tl, tr, _, ts, _, _ = signature.args
        _, X, a, b, table, targets, first, columns, labels, rates, side, steps, j, block = arguments
        x = [_row(context, builder, tX, X, r) for r in (a, b)[:count]]
        t = []
        for k in range(TARGETS):
            row = _whole(context, builder, tt, targets, builder.add(first, first.type(k)))
            t.append(_row(context, builder, tT, table, row))
        sums = [cgutils.alloca_once_value(builder, _numbers(0)) for _ in range(count * TARGETS)]
        zero, eight = columns.type(0), columns.type(8)
        with cgutils.for_range_slice(builder, zero, columns, eight, intp=columns.type) as (at, _):
            values = [_load(builder, p, at) for p in x]
            for k in range(TARGETS):
                value = _load(builder, t[k], at)
                for r in range(count):
                    s = sums[r * TARGETS + k]
                    builder.store(_madd(builder, values[r], value, builder.load(s)), s)
        at = builder.mul(block, block.type(8))
        label = _load(builder, _row(context, builder, tl, labels, side), at)
        rate = _load(builder, _row(context, builder, tr, rates, side), at)
        for r in range(count):
            dots = _sums(builder, [builder.load(s) for s in sums[r * TARGETS : (r + 1) * TARGETS]])
            step = builder.fmul(builder.fsub(label, _sigmoid(builder, dots)), rate)
            _store(builder, step, _row(context, builder, ts, steps, builder.add(j, j.type(r))), at)
        return context.get_dummy_value()

    return types.void(rows, X, a, b, table, targets, first, columns, labels, rates, side, steps, j, block), generate


@_instructions
def _pull(typingctx, X, slots, n, steps, block, columns, out, first):
    """out[first … first + 5] = Σ_j steps[j, block] · X[slots[j]]."""

    def generate(context, builder, signature, arguments):
        tX, tslots, _, tsteps, _, _, to, _ = signature.args
        X, slots, n, steps, block, columns, out, first = arguments
        zero, wide = columns.type(0), columns.type(16)
        lane = builder.mul(block, block.type(8))
        rows = [_row(context, builder, to, out, builder.add(first, first.type(k))) for k in range(TARGETS)]
        with cgutils.for_range_slice(builder, zero, columns, wide, intp=columns.type) as (at, _):
            next8 = builder.add(at, at.type(8))
            sums = [cgutils.alloca_once(builder, EIGHT) for _ in range(2 * TARGETS)]
            for s in sums:
                builder.store(_numbers(0), s)
            with cgutils.for_range_slice(builder, zero, n, n.type(1), intp=n.type) as (j, _):
                x = _row(context, builder, tX, X, _whole(context, builder, tslots, slots, j))
                values = _load(builder, x, at), _load(builder, x, next8)
                step = builder.gep(_row(context, builder, tsteps, steps, j), [lane])
                for k in range(TARGETS):
                    factor = _splat(builder, builder.load(builder.gep(step, [INT(k)])))
                    for h in range(2):
                        s = sums[2 * k + h]
                        builder.store(_madd(builder, values[h], factor, builder.load(s)), s)
            for k in range(TARGETS):
                _store(builder, builder.load(sums[2 * k]), rows[k], at)
                _store(builder, builder.load(sums[2 * k + 1]), rows[k], next8)
        return context.get_dummy_value()

    return types.void(X, slots, n, steps, block, columns, out, first), generate


@_instructions
def _push(typingctx, X, slots, n, steps, block, columns, table, targets, first):
    """X[slots[j]] += Σ_k steps[j, block, k] · table[targets[first + k]]."""

    def generate(context, builder, signature, arguments):
        tX, tslots, _, tsteps, _, _, tT, tt, _ = signature.args
        X, slots, n, steps, block, columns, table, targets, first = arguments
        zero, wide = columns.type(0), columns.type(16)
        lane = builder.mul(block, block.type(8))
        rows = []
        for k in range(TARGETS):
            row = _whole(context, builder, tt, targets, builder.add(first, first.type(k)))
            rows.append(_row(context, builder, tT, table, row))
        with cgutils.for_range_slice(builder, zero, columns, wide, intp=columns.type) as (at, _):
            next8 = builder.add(at, at.type(8))
            t = [(_load(builder, r, at), _load(builder, r, next8)) for r in rows]
            with cgutils.for_range_slice(builder, zero, n, n.type(1), intp=n.type) as (j, _):
                x = _row(context, builder, tX, X, _whole(context, builder, tslots, slots, j))
                values = [_load(builder, x, at), _load(builder, x, next8)]
                step = builder.gep(_row(context, builder, tsteps, steps, j), [lane])
                for k in range(TARGETS):
                    factor = _splat(builder, builder.load(builder.gep(step, [INT(k)])))
                    values = [_madd(builder, factor, t[k][h], values[h]) for h in range(2)]
                _store(builder, values[0], x, at)
                _store(builder, values[1], x, next8)
        return context.get_dummy_value()

    return types.void(X, slots, n, steps, block, columns, table, targets, first), generate


def _row_by_row(keep: bool) -> Any:
    """An intrinsic: out[o] = factor · X[x], added to what is there if `keep`."""

    def define(typingctx, out, o, X, x, factor, columns):
        def generate(context, builder, signature, arguments):
            *_, factor, columns = arguments
            to, start = (_row(context, builder, signature.args[n], arguments[n], arguments[n + 1]) for n in (0, 2))
            many = _splat(builder, factor)
            with cgutils.for_range_slice(builder, columns.type(0), columns, columns.type(8), intp=columns.type) as (
                at,
                _,
            ):
                value = builder.load(_eight(builder, start, at), align=4)
                old = builder.load(_eight(builder, to, at), align=4) if keep else None
                value = _madd(builder, value, many, old) if keep else builder.fmul(value, many)
                builder.store(value, _eight(builder, to, at), align=4)
            return context.get_dummy_value()

        return types.void(out, o, X, x, types.float32, columns), generate

    return _instructions(define)


_set, _add = _row_by_row(keep=False), _row_by_row(keep=True)


@_instructions
def _prefetch(typingctx, table, row, columns):
    """Call for a row that will be wanted soon: 16 numbers a line of the cache."""

    def generate(context, builder, signature, arguments):
        table, row, columns = arguments
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, INT, INT, INT])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        start = _row(context, builder, signature.args[0], table, row)
        with cgutils.for_range_slice(builder, columns.type(0), columns, columns.type(16), intp=columns.type) as (at, _):
            builder.call(call, [builder.bitcast(builder.gep(start, [at]), byte), INT(0), INT(3), INT(1)])
        return context.get_dummy_value()

    return types.void(table, row, columns), generate


# ---------------------------------------------------------------- the walk through the text


class Model(NamedTuple):
    """What is trained, and the chances. `table` float32 [N, P]: a row for each word, then the n-grams', then the
    contexts from `contexts` on, then the inner nodes of the Huffman tree."""

    table: np.ndarray
    keep: np.ndarray  # float64 [V]: chance that a word is not thinned out
    noise: np.ndarray  # float64 [V]: alias + chance, see `packed_noise`
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
    before: np.ndarray  # float32 [S, P]: what they were when they came into reach
    hidden: np.ndarray  # float32 [2, P]: CBOW's mean of them, and what it was before the step
    slots: np.ndarray  # int64 [2 · window + 1]: where in the ring the neighbours are
    only: np.ndarray  # int64 [1]: 0, the slot of the hidden row
    targets: np.ndarray  # int64 [2 · L]: of this word and the next
    labels: np.ndarray  # float32 [2, 8 · L / 6]: a block of six in eight places
    rates: np.ndarray  # float32, the same
    noise: np.ndarray  # int64 [negative]
    steps: np.ndarray  # float32 [2 · window + 1, 8 · L / 6]
    gains: np.ndarray  # float32 [L, P]


class Log(NamedTuple):
    """Changes to be applied later: `rows` [M, P], and in `where` the row of the table, or −1 − word: all its parts."""

    rows: np.ndarray
    where: np.ndarray


@_inner
def _uniform(state):
    return (state >> np.uint64(11)) * 1.1102230246251565e-16  # 2^−53


@_inner
def _enter(word, slot, model, room):
    """A word comes into reach: its vector is copied into the ring, and turned round beside it."""
    P = model.table.shape[1]
    if len(model.parts) == 0:
        _set(room.ring, slot, model.table, word, ONE, P)
    else:
        first, last = model.part_offsets[word], model.part_offsets[word + 1]
        share = np.float32(1 / (last - first))
        _set(room.ring, slot, model.table, word, share, P)
        for p in range(first + 1, last):
            _add(room.ring, slot, model.table, model.parts[p], share, P)
    _set(room.before, slot, room.ring, slot, -ONE, P)


@_inner
def _leave(word, slot, model, room, log, used):
    """A word goes out of reach: what its vector gained goes to its row, or to all its parts; or into the log."""
    P = model.table.shape[1]
    _add(room.before, slot, room.ring, slot, ONE, P)
    if len(log.where):
        log.where[used] = word if len(model.parts) == 0 else -1 - word
        _set(log.rows, used, room.before, slot, ONE, P)
        return used + 1
    if len(model.parts) == 0:
        _add(model.table, word, room.before, slot, ONE, P)
    else:
        for p in range(model.part_offsets[word], model.part_offsets[word + 1]):
            _add(model.table, model.parts[p], room.before, slot, ONE, P)
    return used


@_inner
def _aim(word, side, fresh, rate, model, room, state):
    """Set the targets of a word, their labels and rates; returns (how many, state)."""
    L, V, K = len(room.targets) // 2, len(model.keep), 0
    if model.negative:
        if fresh:
            for k in range(model.negative):
                state = state * MULTIPLIER + INCREMENT
                y = _uniform(state) * V
                slot = int(y)
                both = model.noise[slot]
                alias = int(both)
                room.noise[k] = slot if y - slot < both - alias else alias
        for k in range(model.negative + 1):
            drawn = word if k == 0 else room.noise[k - 1]
            room.targets[side * L + k] = model.contexts + drawn
            at = k // 6 * 8 + k % 6
            room.labels[side, at] = 1 if k == 0 else 0
            room.rates[side, at] = 0 if k > 0 and drawn == word else rate  # the word is no noise
        K = model.negative + 1
    if len(model.nodes):
        for p in range(model.node_offsets[word], model.node_offsets[word + 1]):
            room.targets[side * L + K] = model.nodes[p]
            at = K // 6 * 8 + K % 6
            room.labels[side, at] = model.turns[p]
            room.rates[side, at] = rate
            K += 1
    for k in range(K, (K + 5) // 6 * 6):
        room.targets[side * L + k] = room.targets[side * L]
        room.rates[side, k // 6 * 8 + k % 6] = 0
    return K, state


@_inner
def _step(X, slots, n, K, side, model, room, log, used):
    """One step for the rows slots[:n] of X and K targets; returns the entries in the log."""
    P, L = model.table.shape[1], len(room.targets) // 2
    zero, six = np.int64(0), np.int64(6)
    blocks = (K + 5) // 6
    T, aims, labels, rates = model.table, room.targets, room.labels, room.rates
    for block in range(blocks):
        first = side * L + block * six
        for j in range(0, n - 1, 2):
            _errors(2, X, slots[j], slots[j + 1], T, aims, first, P, labels, rates, side, room.steps, j, block)
        if n & 1:
            j = n - 1
            _errors(1, X, slots[j], slots[j], T, aims, first, P, labels, rates, side, room.steps, j, block)
    out, start = room.gains, zero
    if len(log.where):
        out, start = log.rows, used
    for block in range(blocks):
        _pull(X, slots, n, room.steps, block, P, out, start + block * six)
    for block in range(blocks):
        _push(X, slots, n, room.steps, block, P, T, room.targets, side * L + block * six)
    if len(log.where):
        for k in range(K):
            log.where[used + k] = room.targets[side * L + k]
        return used + K
    for k in range(K):
        _add(T, aims[side * L + k], room.gains, k, ONE, P)
    return used


@_inner
def _loss(n, K, side, room):
    """−Σ log(1 − |error|) over the pairs of a step, from the step itself; pairs of rate 0 do not count."""
    loss = 0.0
    for j in range(n):
        for k in range(K):
            at = k // 6 * 8 + k % 6
            if room.rates[side, at] > 0:
                loss -= np.log(1 - min(abs(room.steps[j, at] / room.rates[side, at]), np.float32(0.9999)))
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
def _mean(n, model, room):
    """CBOW's hidden row: the mean or the sum of the neighbours."""
    P, share = model.table.shape[1], np.float32(1 / n if model.mean else 1)
    _set(room.hidden, 0, room.ring, room.slots[0], share, P)
    for j in range(1, n):
        _add(room.hidden, 0, room.ring, room.slots[j], share, P)
    _set(room.hidden, 1, room.hidden, 0, -ONE, P)


@_inner
def _share(n, model, room):
    """What the hidden row gained goes to every neighbour: whole after a mean, as in word2vec.c, the n-th part after a
    sum, as in gensim."""
    P, share = model.table.shape[1], np.float32(1 if model.mean else 1 / n)
    _add(room.hidden, 1, room.hidden, 0, ONE, P)
    for j in range(n):
        _add(room.ring, room.slots[j], room.hidden, 1, share, P)


@_outer
def walk(kept, ends, a, b, model, room, log, rate, end_rate, state):
    """Train on the words kept[a:b], each with its neighbours, which may lie outside; `ends` are the documents' ends.
    The rate goes from `rate` at kept[0] to `end_rate` at the end. With a log, the table does not change.

    Returns (Σ loss and pairs of every 16th word, all pairs, entries in the log, state)."""
    P, L, window, m = model.table.shape[1], len(room.targets) // 2, model.window, len(kept)
    mask, by_pair = len(room.ring) - 1, model.skipgram and model.shared == 0
    loss, measured, pairs, used = 0.0, 0, 0, 0
    document, low, high, entered, left = 0, 0, 0, 0, 0
    side, K, next_K = 0, 0, 0
    if a < b and not by_pair:
        K, state = _aim(np.int64(kept[a]), 0, True, np.float32(rate + (end_rate - rate) * a / m), model, room, state)
    for i in range(a, b + 1):
        # Words go out of reach, all of them where the document ends; then others come into reach.
        ended = i >= high or i == b
        for j in range(left, entered if ended else i - window):
            used = _leave(np.int64(kept[j]), j & mask, model, room, log, used)
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
            _enter(np.int64(kept[j]), j & mask, model, room)
            if j + 3 < m and len(model.parts) == 0:
                _prefetch(model.table, np.int64(kept[j + 3]), P)
        entered = max(entered, min(high, i + window + 1))
        # The neighbours, and the next word's targets, so that their rows are on the way.
        state = state * MULTIPLIER + INCREMENT
        reach, n = 1 + int(_uniform(state) * window), 0
        for j in range(max(low, i - reach), min(high, i + reach + 1)):
            if j != i:
                room.slots[n] = j & mask
                n += 1
        now = np.float32(rate + (end_rate - rate) * i / m)
        if not by_pair and i + 1 < b:
            soon = np.float32(rate + (end_rate - rate) * (i + 1) / m)
            fresh = (i + 1 - a) % model.shared == 0
            next_K, state = _aim(np.int64(kept[i + 1]), 1 - side, fresh, soon, model, room, state)
            for k in range(next_K):
                _prefetch(model.table, room.targets[(1 - side) * L + k], P)
        # The step.
        X, slots, rows, steps = room.ring, room.slots, n, min(n, 1)
        pairs += n
        if by_pair:
            rows, steps = 1, n
        elif n and not model.skipgram:
            _mean(n, model, room)
            X, slots, rows = room.hidden, room.only, 1
        for j in range(steps):
            if by_pair:
                K, state = _aim(np.int64(kept[i]), side, True, now, model, room, state)
            used = _step(X, slots[j:], rows, K, side, model, room, log, used)
        if n and not model.skipgram:
            _share(n, model, room)
        if i & 15 == 0 and n:
            loss += _loss(rows, K, side, room)
            measured += rows
        side, K = 1 - side, next_K
    return loss, measured, pairs, used, state


@_outer
def apply_log(log, used, model, owner, owners):
    """Add the first `used` changes of a log to those rows that belong to `owner`, in the order of the log."""
    P = model.table.shape[1]
    for e in range(used):
        where = log.where[e]
        if where >= 0:
            if where % owners == owner:
                _add(model.table, where, log.rows, e, ONE, P)
        else:
            for p in range(model.part_offsets[-1 - where], model.part_offsets[-where]):
                if model.parts[p] % owners == owner:
                    _add(model.table, model.parts[p], log.rows, e, ONE, P)
