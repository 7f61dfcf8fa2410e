"""Instructions that Python has no words for: what the compiled functions of this folder are written with.

Each is a function that Numba asks, given the types of the arguments, for the type of its value and for how LLVM builds
it. Vectors are as wide as the work wants them: LLVM makes of them what the processor has.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once, get_or_insert_function
from numba.extending import intrinsic as _intrinsic
from numba.np import arrayobj

intrinsic: Any = _intrinsic  # to a type checker it takes an argument more
BIT, BYTE, HALF, WORD = map(ir.IntType, (1, 8, 32, 64))
ANYWHERE: Final = 1  # alignment of what may lie at any address


def _place(context: Any, builder: Any, array: Any, value: Any, i: Any, kind: Any) -> Any:
    """Where item i of an array is, as a place of another kind."""
    data = arrayobj.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [i]), kind.as_pointer())


def _every(builder: Any, vector: Any, value: Any) -> Any:
    """A vector of equal values."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(HALF, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(HALF, vector.count), [0] * vector.count))


def _ask(builder: Any, name: str, returns: Any, *arguments: Any) -> Any:
    """Call a function of LLVM or Python by its name."""
    kind = ir.FunctionType(returns, [argument.type for argument in arguments])
    return builder.call(get_or_insert_function(builder.module, kind, name), list(arguments))


# ---------------------------------------------------------------- addresses


@intrinsic
def view(typingctx: Any, address: Any, size: Any, dtype: Any) -> Any:
    """The array of `size` items at an address."""
    kind = types.Array(dtype.dtype, 1, "C")

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, item = context.make_array(kind)(context, builder), context.get_data_type(kind.dtype)
        step = context.get_constant(types.intp, context.get_abi_sizeof(item))
        place = builder.inttoptr(args[0], item.as_pointer())
        arrayobj.populate_array(array, data=place, shape=[args[1]], strides=[step], itemsize=step, meminfo=None)
        return array._getvalue()

    return kind(types.int64, types.int64, dtype), make


@intrinsic
def address(typingctx: Any, array: Any) -> Any:
    """Where an array lies."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(arrayobj.make_array(signature.args[0])(context, builder, args[0]).data, WORD)

    return types.int64(array), make


@intrinsic
def call(typingctx: Any, address: Any, given: Any) -> Any:
    """Call the compiled function of numbers at an address."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = builder.inttoptr(args[0], ir.FunctionType(WORD, [WORD] * given.count).as_pointer())
        return builder.call(function, [builder.extract_value(args[1], k) for k in range(given.count)])

    return types.int64(types.int64, given), make


# ---------------------------------------------------------------- Python


@intrinsic
def unlock(typingctx: Any) -> Any:
    """Give up Python's lock; returns what `lock` takes."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _ask(builder, "PyEval_SaveThread", WORD)

    return types.int64(), make


@intrinsic
def lock(typingctx: Any, thread: Any) -> Any:
    """Take Python's lock again."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _ask(builder, "PyEval_RestoreThread", ir.VoidType(), args[0])
        return context.get_dummy_value()

    return types.void(types.int64), make


@intrinsic
def new_reference(typingctx: Any, thing: Any) -> Any:
    """The object at an address, with one reference more."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _ask(builder, "Py_IncRef", ir.VoidType(), args[0])
        return args[0]

    return types.int64(types.int64), make


@intrinsic
def utf8(typingctx: Any, text: Any) -> Any:
    """Address and number of the UTF-8 bytes that Python keeps of the string at an address. The address is 0 for half of
    a surrogate pair."""
    pointer = BYTE.as_pointer()

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = alloca_once(builder, WORD)
        place = _ask(builder, "PyUnicode_AsUTF8AndSize", pointer, builder.inttoptr(args[0], pointer), size)
        with builder.if_then(builder.icmp_unsigned("==", place, pointer(None))):
            _ask(builder, "PyErr_Clear", ir.VoidType())
        return context.make_tuple(builder, signature.return_type, [builder.ptrtoint(place, WORD), builder.load(size)])

    return types.UniTuple(types.int64, 2)(text), make


# ---------------------------------------------------------------- memory


@intrinsic
def load(typingctx: Any, data: Any, i: Any) -> Any:
    """Eight bytes of data from i on, the first one lowest."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.load(_place(context, builder, data, args[0], args[1], WORD))
        word.align = ANYWHERE
        return word

    return types.uint64(data, i), make


@intrinsic
def store_two(typingctx: Any, ids: Any, i: Any, two: Any) -> Any:
    """Write two ids at once: ids[i] the lower half of `two`, ids[i + 1] the upper."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _place(context, builder, ids, args[0], args[1], WORD)).align = 4
        return context.get_dummy_value()

    return types.void(ids, i, two), make


@intrinsic
def move_16(typingctx: Any, source: Any, i: Any, target: Any, o: Any) -> Any:
    """Copy 16 bytes from source[i:] to target[o:]."""
    vector = ir.VectorType(BYTE, 16)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bytes_16 = builder.load(_place(context, builder, source, args[0], args[1], vector))
        bytes_16.align = ANYWHERE
        builder.store(bytes_16, _place(context, builder, target, args[2], args[3], vector)).align = ANYWHERE
        return context.get_dummy_value()

    return types.void(source, i, target, o), make


@intrinsic
def prefetch(typingctx: Any, slots: Any, i: Any) -> Any:
    """Ask for the line of slots[i]; it arrives while other work is done."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, slots, args[0], args[1], BYTE)
        _ask(builder, "llvm.prefetch.p0", ir.VoidType(), place, *(ir.Constant(HALF, n) for n in (0, 3, 1)))
        return context.get_dummy_value()

    return types.void(slots, i), make


# ---------------------------------------------------------------- words


@intrinsic
def low_bit(typingctx: Any, x: Any) -> Any:
    """The place of the lowest bit that is set; 64 for 0."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], BIT(0))

    return types.uint64(types.uint64), make


@intrinsic
def high_bit(typingctx: Any, x: Any) -> Any:
    """The place of the highest bit that is set; x is not 0."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.xor(builder.ctlz(args[0], BIT(1)), WORD(63))

    return types.uint64(types.uint64), make


@intrinsic
def fold(typingctx: Any, a: Any, b: Any) -> Any:
    """The two halves of the 128-bit product, one over the other: each bit of the result depends on all of a and b."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        high = builder.trunc(builder.lshr(product, wide(64)), WORD)
        return builder.xor(builder.trunc(product, WORD), high)

    return types.uint64(types.uint64, types.uint64), make


# ---------------------------------------------------------------- vectors


@intrinsic
def pick(typingctx: Any, slots: Any, i: Any, key: Any) -> Any:
    """Of the eight words from slots[i] on, the one that is `key` above its lower 20 bits; 0 where none is."""
    vector = ir.VectorType(WORD, 8)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = builder.load(_place(context, builder, slots, args[0], args[1], vector))
        words.align = 64
        keys = builder.lshr(words, ir.Constant(vector, [20] * 8))
        alike = builder.icmp_unsigned("==", keys, _every(builder, vector, args[2]))
        return _ask(builder, "llvm.vector.reduce.or.v8i64", WORD, builder.and_(words, builder.sext(alike, vector)))

    return types.uint64(slots, i, types.uint64), make


@intrinsic
def lowest_of_32(typingctx: Any, ranks: Any, i: Any) -> Any:
    """The lowest of ranks[i : i + 32] and the place of the first that has it: lowest << 32 | place."""
    vector = ir.VectorType(HALF, 32)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        players = builder.load(_place(context, builder, ranks, args[0], args[1], vector))
        players.align = 4
        lowest = _ask(builder, "llvm.vector.reduce.umin.v32i32", HALF, players)
        who = builder.bitcast(builder.icmp_unsigned("==", players, _every(builder, vector, lowest)), HALF)
        place = builder.zext(builder.cttz(who, BIT(1)), WORD)
        return builder.or_(builder.shl(builder.zext(lowest, WORD), WORD(32)), place)

    return types.uint64(ranks, i), make


def _least_of(count: int) -> Any:
    """The lowest of keys[i : i + count], which begin with a line of the processor's cache."""
    vector = ir.VectorType(HALF, count)

    @intrinsic
    def least(typingctx: Any, keys: Any, i: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            words = builder.load(_place(context, builder, keys, args[0], args[1], vector))
            words.align = 64
            return _ask(builder, f"llvm.vector.reduce.umin.v{count}i32", HALF, words)

        return types.uint32(keys, i), make

    return least


least_of_16, least_of_32 = _least_of(16), _least_of(32)


@intrinsic
def narrow(typingctx: Any, characters: Any, i: Any, out: Any, o: Any) -> Any:
    """Write the lower byte of each of characters[i : i + 32] to `out` from o on; returns a bit for each not ASCII."""
    width = characters.dtype.bitwidth
    wide, bytes_32 = ir.VectorType(ir.IntType(width), 32), ir.VectorType(BYTE, 32)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = builder.load(_place(context, builder, characters, args[0], args[1], wide))
        x.align = width // 8
        low = x if width == 8 else builder.trunc(x, bytes_32)
        builder.store(low, _place(context, builder, out, args[2], args[3], bytes_32)).align = ANYWHERE
        beyond = builder.icmp_unsigned(">", x, ir.Constant(wide, [0x7F] * 32))
        return builder.zext(builder.bitcast(beyond, HALF), WORD)

    return types.uint64(characters, i, out, o), make


@intrinsic
def ascii_masks(typingctx: Any, data: Any, i: Any) -> Any:
    """Masks of data[i : i + 64]: a–z, A–Z, 0–9, white space, newlines, blanks, apostrophes, slashes, bytes that go on
    with a character, bytes that begin one of several."""
    vector = ir.VectorType(BYTE, 64)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = builder.load(_place(context, builder, data, args[0], args[1], vector))
        x.align = ANYWHERE

        def every(byte: int) -> Any:
            return ir.Constant(vector, [byte] * 64)

        def within(low: int, high: int) -> Any:
            return builder.icmp_unsigned("<=", builder.sub(x, every(low)), every(high - low))

        def equal(sign: str) -> Any:
            return builder.icmp_unsigned("==", x, every(ord(sign)))

        blank, newline = equal(" "), builder.or_(equal("\n"), equal("\r"))
        masks = [within(97, 122), within(65, 90), within(48, 57), builder.or_(blank, within(9, 13)), newline, blank]
        masks += [equal("'"), equal("/"), within(0x80, 0xBF), within(0xC0, 0xFF)]
        return context.make_tuple(builder, signature.return_type, [builder.bitcast(mask, WORD) for mask in masks])

    return types.UniTuple(types.uint64, 10)(data, i), make
