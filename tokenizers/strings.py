"""Python's strings as UTF-8: no copy where there need be none, and where there must be one not under Python's lock.

CPython keeps a string with one, two or four bytes a character, by its widest (PEP 393). ASCII is UTF-8 already, so the
string lends its own bytes. One curly quotation mark makes two bytes of every character:

    It’s he   →   I 0 t 0 ’ ’ s 0 ␣ 0 h 0 e 0   →   I t ’ ’ ’ s ␣ h e

Thirty-two characters are narrowed at once, up to the first that is not ASCII. `text.encode()` does the same while all
other threads of Python wait. Long strings are asked for their UTF-8 all the same: Python keeps it, and the next time it
is there.

    look     what each string is: takes Python's lock, and but for long strings nanoseconds
    write    the UTF-8 of those that are not
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import alloca_once, get_or_insert_function
from numba.extending import intrinsic as _intrinsic

__all__ = ["LONG", "steps"]

LONG: Final = 1 << 14  # characters from which on Python is asked

_LOCKED: dict[str, Any] = {"cache": True, "_nrt": False, "boundscheck": False}
_FAST: dict[str, Any] = {**_LOCKED, "nogil": True}
_BARE: dict[str, Any] = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
intrinsic: Any = _intrinsic  # to a type checker it takes an argument more


@cache
def steps() -> tuple[int, int]:
    """The addresses of `_look` and `_write`, for compiled code of another file."""
    found = [step.get_compile_result(types.int64(*[types.int64] * n)) for step, n in ((_look, 3), (_write, 4))]
    return tuple(code.library.get_pointer_to_function(code.fndesc.llvm_cfunc_wrapper_name) for code in found)


@intrinsic
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


@intrinsic
def _string(typingctx: Any, text: Any) -> Any:
    """Of the string at an address: the address of its characters, how many there are, bytes of each, whether all are
    ASCII."""
    word = ir.IntType(64)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        python = context.get_python_api(builder)
        _, place, *facts, _ = python.string_as_string_size_and_kind(builder.inttoptr(args[0], python.pyobj))
        facts = [builder.zext(fact, word) if fact.type != word else fact for fact in facts]
        return context.make_tuple(builder, signature.return_type, [builder.ptrtoint(place, word), *facts])

    return types.UniTuple(types.int64, 4)(text), make


@intrinsic
def _utf8(typingctx: Any, text: Any) -> Any:
    """Address and number of the UTF-8 bytes that Python keeps of the string at an address. The address is 0 for half of
    a surrogate pair."""
    word, byte = ir.IntType(64), ir.IntType(8).as_pointer()

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = alloca_once(builder, word)
        kind = ir.FunctionType(byte, [byte, word.as_pointer()])
        ask = get_or_insert_function(builder.module, kind, "PyUnicode_AsUTF8AndSize")
        place = builder.call(ask, [builder.inttoptr(args[0], byte), size])
        forget = get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), "PyErr_Clear")
        with builder.if_then(builder.icmp_unsigned("==", place, byte(None))):
            builder.call(forget, [])
        return context.make_tuple(builder, signature.return_type, [builder.ptrtoint(place, word), builder.load(size)])

    return types.UniTuple(types.int64, 2)(text), make


@intrinsic
def _narrow(typingctx: Any, characters: Any, i: Any, out: Any, o: Any) -> Any:
    """Write the lower byte of each of characters[i : i + 32] to `out` from o on; returns a bit for each not ASCII."""
    width = characters.dtype.bitwidth
    wide, narrow = ir.VectorType(ir.IntType(width), 32), ir.VectorType(ir.IntType(8), 32)

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from numba.np import arrayobj

        given, out = (arrayobj.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 2))
        x = builder.load(builder.bitcast(builder.gep(given, [args[1]]), wide.as_pointer()))
        x.align = width // 8
        low = x if width == 8 else builder.trunc(x, narrow)
        builder.store(low, builder.bitcast(builder.gep(out, [args[3]]), narrow.as_pointer())).align = 1
        beyond = builder.icmp_unsigned(">", x, ir.Constant(wide, [0x7F] * 32))
        return builder.zext(builder.bitcast(beyond, ir.IntType(32)), ir.IntType(64))

    return types.uint64(characters, i, out, o), make


@intrinsic
def _low_bit(typingctx: Any, x: Any) -> Any:
    """The place of the lowest bit that is set."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), make


@njit(**_LOCKED)
def _look(texts, starts, count):
    """Of each string at texts[k] put the address of its characters there, and into starts[k + 1] how many they are and,
    in the lowest three bits, the bytes of each, 0 for UTF-8. Returns the characters of all; -1 - k if text k is no
    Unicode text."""
    texts, starts = _view(texts, count, np.int64), _view(starts, count + 1, np.int64)
    total = 0
    for k in range(count):
        place, size, width, is_ascii = _string(texts[k])
        if is_ascii:
            width = 0
        elif not place or size > LONG:
            place, size = _utf8(texts[k])
            width = 0
            if not place:
                return -1 - k
        texts[k], starts[k + 1] = place, size << 3 | width
        total += size
    return total


@njit(**_FAST)
def _write(texts, starts, count, out):
    """Write the UTF-8 of the texts that are not. Then texts[k] is where the bytes of a text are, and `starts` says
    where each text starts in all bytes. Returns their number; -1 - k if text k is no Unicode text. There is room
    for four bytes a character at `out`."""
    texts, starts = _view(texts, count, np.int64), _view(starts, count + 1, np.int64)
    for k in range(count):
        size, width = starts[k + 1] >> 3, starts[k + 1] & 7
        if width:
            room = _view(out, 4 * size + 32, np.uint8)
            if width == 1:
                size = _transcode(_view(texts[k], size, np.uint8), room)
            elif width == 2:
                size = _transcode(_view(texts[k], size, np.uint16), room)
            else:
                size = _transcode(_view(texts[k], size, np.uint32), room)
            if size < 0:
                return -1 - k
            texts[k] = out
            out += size
        starts[k + 1] = starts[k] + size
    return starts[count]


@njit(**_BARE)
def _transcode(characters, out):
    """Write `characters` as UTF-8, and perhaps 32 bytes more; returns the number of bytes, -1 for half of a pair."""
    i, o, n = 0, 0, len(characters)
    while i < n:
        if i + 32 <= n:
            beyond = _narrow(characters, i, out, o)
            if not beyond:
                i, o = i + 32, o + 32
                continue
            ascii = _low_bit(beyond)
            i, o = i + ascii, o + ascii
        c = np.uint32(characters[i])
        while True:
            if c < 0x80:
                out[o] = c
                o += 1
            elif c < 0x800:
                out[o], out[o + 1] = 0xC0 | c >> 6, 0x80 | c & 0x3F
                o += 2
            elif c < 0x10000:
                if c >> 11 == 0x1B:
                    return -1
                out[o], out[o + 1], out[o + 2] = 0xE0 | c >> 12, 0x80 | c >> 6 & 0x3F, 0x80 | c & 0x3F
                o += 3
            else:
                out[o], out[o + 1] = 0xF0 | c >> 18, 0x80 | c >> 12 & 0x3F
                out[o + 2], out[o + 3] = 0x80 | c >> 6 & 0x3F, 0x80 | c & 0x3F
                o += 4
            i += 1
            if i == n or characters[i] < 0x80:
                break
            c = np.uint32(characters[i])
    return o
