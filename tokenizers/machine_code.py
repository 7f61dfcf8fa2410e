"""Compiled code that starts without its compiler.

Numba takes half a second and a hundred megabytes to start, and most processes start it to run what was compiled long
ago. Here it starts only where there is something to compile; what LLVM makes of it is kept as an object file and later
put into memory as a linker does it:

    function ──Numba──▶ LLVM ──▶ object file on disk ──▶ memory ──addresses filled in──▶ called

`Code(__name__)` gives a module its decorators: `@code.outer` for what Python calls, `@code.inner` for what compiled
functions of the same file call. They may use the names of their module and of instructions.py. A function is compiled
anew when its file, instructions.py or this file is another.

**Calls.** A compiled function takes one number, the address of a block of 64-bit words: for an array its address and
shape, for a tuple its items, for a number itself. Python's lock is given up meanwhile, unless `held`.

**Linking.** An object file is sections (code, constants), symbols, and relocations: places that want the address of a
symbol. Compiled for a PC's processor and addresses of 64 bits, there is one kind of relocation under Linux, and to fill
it in is one line. Elsewhere LLVM's own linker does it.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import platform
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Code", "Compiled", "kept", "on_compile", "words_of"]

on_compile: list[Callable[[], None]] = []  # called before something is compiled
_at_work = threading.RLock()

Kinds = tuple[Any, ...]  # of arguments: int; (type of items, dimensions); (class of a tuple, kinds of its items)
OURS: Final = sys.platform == "linux" and platform.machine() == "x86_64"  # we link ourselves
ENTRY, METHOD = "entry", "method"  # the functions of an object file: one takes a block, the other is for Python


class Code:
    """The compiled functions of one module."""

    def __init__(self, module: str) -> None:
        self._module = module

    def outer(self, function: Any = None, *, held: bool = False) -> Any:
        """A function that Python calls; `held`: with Python's lock."""
        return Compiled(self, function, held) if function else lambda function: Compiled(self, function, held)

    def inner(self, function: Any = None, **options: Any) -> Any:
        """A function that compiled ones call. `forceinline=True`: compiled again wherever it is called, so that its
        many arguments stay in registers; `inline="always"`: called at one place only and compiled there."""
        return _Inner(function, options) if function else lambda function: _Inner(function, options)

    @property
    def file(self) -> Path:
        """The module's source."""
        return Path(str(sys.modules[self._module].__file__))

    @cached_property
    def names(self) -> dict[str, Any]:
        """The module's names, with Numba's functions for ours, and those of instructions.py."""
        from numba import njit

        from luthier.tokenizers import instructions

        known = {**vars(instructions), **vars(sys.modules[self._module])}
        options: dict[str, Any] = {"nogil": True, "_nrt": False, "boundscheck": False, "error_model": "numpy"}
        options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        for name, given in list(known.items()):
            if isinstance(given, (Compiled, _Inner)):
                function = FunctionType(given.function.__code__, known, name)
                known[name] = njit(**options, **given.options)(function)
        return known


class _Inner:
    """A function for compiled ones; called by another, it is plain Python."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        self.function, self.options = function, options

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class Compiled:
    """A function that Python calls, compiled for the kinds of its arguments when a machine first sees them."""

    options: Final[dict[str, Any]] = {"forceinline": True}  # into the function that reads the block

    def __init__(self, code: Code, function: Any, held: bool) -> None:
        self._code, self.function, self._held = code, function, held
        self._known: dict[Kinds, Any] = {}
        self._methods: dict[Kinds, _Method] = {}

    def __call__(self, *arguments: Any) -> int:
        """What the function returns for arrays (contiguous), whole numbers, and tuples of them; 0 for None."""
        kinds, words = words_of(*arguments)
        return self.taking(kinds)((ctypes.c_int64 * len(words))(*words))

    def taking(self, kinds: Kinds) -> Any:
        """The function for arguments of these kinds: it is called with the address of their words."""
        return self._known.get(kinds) or self._learn(kinds)

    def method(self, *arguments: Any) -> tuple[Any, npt.NDArray[np.int64]]:
        """A function of Python without anything in between: it takes one object, whose address stands for the first of
        these arguments, a number, and returns the object that the compiled function returns the address of. And the
        block of the other arguments, which must live as long. A Python whose objects lie otherwise in memory always
        gets None."""
        kinds, words = words_of(*arguments)
        self.taking(kinds)
        block = np.array(words, np.int64)
        if ctypes.c_int64.from_address(id(block) + _ITEMS).value != block.ctypes.data:
            return lambda thing: None, block
        return _make_method(ctypes.byref(self._methods[kinds]), block, None), block

    def address(self, *arguments: Any) -> int:
        """Where the function for such arguments is: for other compiled code."""
        return ctypes.cast(self.taking(words_of(*arguments)[0]), ctypes.c_void_p).value or 0

    def is_kept(self) -> bool:
        """Whether code of this function, as it is now, is on disk."""
        source = self._code.file
        return any(_folder(source).glob(f"{source.stem}.{self.function.__name__}.{_digest(_source(source))[:12]}.*.o"))

    def _learn(self, kinds: Kinds) -> Any:
        with _at_work:
            if kinds in self._known:  # another thread was faster
                return self._known[kinds]
            prototype = ctypes.PYFUNCTYPE if self._held else ctypes.CFUNCTYPE
            entry, method = _linked(self._object(kinds))
            self._methods[kinds] = _Method(self.function.__name__.encode(), method, _ONE_OBJECT, None)
            self._known[kinds] = prototype(ctypes.c_int64, ctypes.c_void_p)(entry)
            return self._known[kinds]

    def _object(self, kinds: Kinds) -> bytes:
        """The object file of this function."""

        def make() -> bytes:
            for tell in on_compile:
                tell()
            return _compile(self._code.names[self.function.__name__], kinds)

        return kept(self._code.file, self.function.__name__, (_compiler(), kinds), make)


class _Method(ctypes.Structure):
    """Python's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_ONE_OBJECT: Final = 8  # METH_O
_ITEMS: Final = 16  # where in an array stands the address of its items
_make_method = ctypes.pythonapi.PyCFunction_NewEx
_make_method.restype, _make_method.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)


def words_of(*arguments: Any) -> tuple[Kinds, list[int]]:
    """The kinds of arguments, and their words."""
    words: list[int] = []
    return _flatten(arguments, words), words


def _flatten(arguments: tuple[Any, ...], words: list[int]) -> Kinds:
    """The kinds of arguments; their words are appended to `words`."""
    kinds = []
    for given in arguments:
        if isinstance(given, np.ndarray):
            facts = given.__array_interface__
            if facts["strides"] is not None:
                raise ValueError("compiled code takes contiguous arrays only")
            kinds.append((facts["typestr"], len(facts["shape"])))
            words += (facts["data"][0], *facts["shape"])
        elif isinstance(given, tuple):
            kinds.append((type(given), _flatten(given, words)))
        else:
            kinds.append(int)
            words.append(int(given))
    return tuple(kinds)


# ---------------------------------------------------------------- on disk


def kept(source: Path, name: str, facts: Any, make: Callable[[], bytes]) -> bytes:
    """What `make` gives: from disk if it was made before, of the same source and facts, and is whole. What is there of
    another source is removed."""
    made_of = _digest(_source(source))[:12]
    file = _folder(source) / f"{source.stem}.{name}.{made_of}.{_digest(facts)[:20]}.o"
    with suppress(OSError):
        data = file.read_bytes()
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            return data[32:]
    data = make()
    _keep(file, hashlib.sha256(data).digest() + data)
    for old in file.parent.glob(f"{source.stem}.{name}.*.o"):
        if f".{made_of}." not in old.name:
            with suppress(OSError):
                old.unlink()
    return data


def _digest(facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


@cache
def _source(file: Path) -> tuple[bytes, ...]:
    """All that the code of a file depends on in this library."""
    return tuple(f.read_bytes() for f in (file, Path(__file__).with_name("instructions.py"), Path(__file__)))


_OF_PROCESSOR: Final = ("model", "flags", "Features", "CPU")  # how its lines in /proc/cpuinfo begin


@cache
def _compiler() -> tuple[str, ...]:
    """Compiler, processor, and what a user asked of both."""
    homes = [Path(str(find_spec(package).origin)).parent for package in ("numba", "llvmlite")]  # pyright: ignore
    versions = [(home / "_version.py").read_text() for home in homes]
    asked = [os.environ.get(f"NUMBA_{name}", "") for name in ("CPU_NAME", "CPU_FEATURES", "OPT")]
    known: list[str] = []
    with suppress(OSError), Path("/proc/cpuinfo").open() as facts:
        known = [line for line in facts.read(1 << 14).split("\n\n")[0].split("\n") if line.startswith(_OF_PROCESSOR)]
    return (
        *versions,
        np.__version__,
        *asked,
        sys.platform,
        platform.machine(),
        sys.version,
        *(known or [platform.processor()]),
    )


def _folder(source: Path) -> Path:
    """Where the code of a file is kept: beside it if that can be written to."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given, "luthier")
    beside = source.parent / "__pycache__"
    if os.access(beside if beside.is_dir() else source.parent, os.W_OK):
        return beside
    try:
        return Path(os.environ.get("LUTHIER_CACHE") or Path.home() / ".cache" / "luthier") / "code"
    except RuntimeError:  # a user without a home: what is compiled is not kept
        return Path(os.devnull)


def _keep(file: Path, data: bytes) -> None:
    """Write a file whole or not at all; a folder that cannot be written to costs time, not results."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


# ---------------------------------------------------------------- compiling


def _compile(function: Any, kinds: Kinds) -> bytes:
    """The object file of a function of Numba's that takes its arguments from a block."""
    import llvmlite.binding as llvm
    from numba import config, njit, types
    from numba.core.codegen import get_host_cpu_features

    if config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
        raise RuntimeError("NUMBA_DISABLE_JIT is set, and these loops do not run as plain Python: unset it")
    given, signature = _arguments(kinds)
    function.compile(signature)
    nothing = function.overloads[signature].signature.return_type is types.none

    def call(block: Any) -> Any:
        function(*given(block))
        return 0

    def value(block: Any) -> Any:
        return np.int64(function(*given(block)))

    bare = {"nogil": True, "_nrt": False, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    entry = njit(**bare)(call if nothing else value).get_compile_result(types.int64(types.int64))
    module = llvm.parse_assembly(entry.library.get_llvm_str())
    names = {"name": entry.fndesc.llvm_func_name, "entry": ENTRY, "method": METHOD, "items": _ITEMS}
    module.link_in(llvm.parse_assembly(_WRAPPERS % names))
    asked: Any = config
    name = asked.CPU_NAME or llvm.get_host_cpu_name()
    features = get_host_cpu_features() if asked.CPU_FEATURES is None else asked.CPU_FEATURES
    where: dict[str, Any] = {"reloc": "static", "codemodel": "large"} if OURS else {"jit": True}
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=3, **where)
    return machine.emit_object(module)


# Numba's functions return a status and write their value to an address. A method of Python gets the object it belongs
# to, here the array that is the block, at _ITEMS the address of its items.
_WRAPPERS: Final = """
declare i32 @"%(name)s"(ptr, ptr, i64)
define i64 @%(entry)s(i64 %%block) {
  %%value = alloca i64
  %%error = alloca ptr
  %%status = call i32 @"%(name)s"(ptr %%value, ptr %%error, i64 %%block)
  %%result = load i64, ptr %%value
  ret i64 %%result
}
define ptr @%(method)s(ptr %%self, ptr %%object) {
  %%items = getelementptr i8, ptr %%self, i64 %(items)d
  %%block = load ptr, ptr %%items
  %%first = ptrtoint ptr %%object to i64
  store i64 %%first, ptr %%block
  %%place = ptrtoint ptr %%block to i64
  %%result = call i64 @%(entry)s(i64 %%place)
  %%made = inttoptr i64 %%result to ptr
  ret ptr %%made
}
"""


def _arguments(kinds: Kinds) -> tuple[Any, Any]:
    """An intrinsic that reads arguments of these kinds from a block, and their types."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic
    from numba.np import arrayobj, numpy_support

    def type_of(kind: Any) -> Any:
        if kind is int:
            return types.int64
        if not isinstance(kind[0], str):
            items = [type_of(one) for one in kind[1]]
            return types.NamedTuple(items, kind[0]) if kind[0] is not tuple else types.Tuple(items)
        return types.Array(numpy_support.from_dtype(np.dtype(kind[0])), kind[1], "C")

    def build(context: Any, builder: Any, kind: Any, block: Any, places: Any) -> Any:
        def word() -> Any:
            place = builder.gep(block, [ir.Constant(ir.IntType(64), next(places))])
            return builder.load(place)

        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder)
            item = context.get_data_type(kind.dtype)
            size = context.get_abi_sizeof(item)
            data, shape = builder.inttoptr(word(), item.as_pointer()), [word() for _ in range(kind.ndim)]
            steps = [ir.Constant(ir.IntType(64), size)]
            for length in shape[:0:-1]:
                steps.insert(0, builder.mul(steps[0], length))
            arrayobj.populate_array(array, data=data, shape=shape, strides=steps, itemsize=steps[-1], meminfo=None)
            return array._getvalue()
        if isinstance(kind, types.BaseTuple):
            items = [build(context, builder, one, block, places) for one in kind.types]  # pyright: ignore
            return context.make_tuple(builder, kind, items)
        return word()

    signature = tuple(type_of(kind) for kind in kinds)

    @intrinsic
    def given(context: Any, block: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            block = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
            return build(context, builder, signature.return_type, block, iter(range(1 << 20)))

        return types.Tuple(signature)(types.int64), make

    return given, signature


# ---------------------------------------------------------------- linking

# Rows of ELF's tables (elf(5)), and the numbers that mean something here
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")  # name, kind, flags, address, offset, size, link, info, alignment, entry
KIND, FLAGS, OFFSET, SIZE, LINK, INFO = 1, 2, 4, 5, 6, 7
_SYMBOL: Final = struct.Struct("<IBBHQQ")  # name, info, other, section, value, size
_RELOCATION: Final = struct.Struct("<QQq")  # place, symbol << 32 | kind, what is to be added
_CODE_OR_DATA, _SYMBOLS, _RELOCATIONS, _COMMON, _ADDRESS, _LOADED = 1, 2, 4, 0xFFF2, 1, 2
_in_memory: list[Any] = []  # for as long as the process lives


def _linked(data: bytes) -> tuple[int, int]:
    """Put an object file into memory; returns where its two functions are."""
    return _link_here(data) if OURS else _link_by_llvm(data)


def _link_here(data: bytes) -> tuple[int, int]:
    word = struct.Struct("<Q")
    start, count = word.unpack_from(data, 40)[0], int.from_bytes(data[60:62], "little")
    sections = _rows(_SECTION, data, start, count * _SECTION.size)
    (table,) = (section for section in sections if section[KIND] == _SYMBOLS)
    symbols, names = _rows(_SYMBOL, data, table[OFFSET], table[SIZE]), sections[table[LINK]][OFFSET]
    room = -(-len(data) // 8) * 8  # behind it a zero for each symbol: Numba's notes, which nothing here reads
    memory = mmap.mmap(-1, room + 8 * len(symbols))
    memory[: len(data)] = data
    base = np.frombuffer(memory, np.uint8).ctypes.data

    def name(symbol: tuple[int, ...]) -> str:
        begin = names + symbol[0]
        return data[begin : data.index(0, begin)].decode()

    def address(k: int) -> int:
        section, value = symbols[k][3:5]
        if section == _COMMON:
            return base + room + 8 * k
        if section:
            return base + sections[section][OFFSET] + value
        return ctypes.cast(ctypes.CDLL(None)[name(symbols[k])], ctypes.c_void_p).value or 0

    for section in sections:
        target = sections[section[INFO]] if section[KIND] == _RELOCATIONS else None
        if target is None or target[KIND] != _CODE_OR_DATA or not target[FLAGS] & _LOADED:  # it is for debuggers
            continue
        for place, kind, addend in _rows(_RELOCATION, data, section[OFFSET], section[SIZE]):
            if kind & 0xFFFFFFFF != _ADDRESS:
                raise ValueError(f"relocation of kind {kind & 0xFFFFFFFF}")
            word.pack_into(memory, target[OFFSET] + place, address(kind >> 32) + addend)
    _run(base, len(memory))
    _in_memory.append(memory)
    places = {name(symbol): k for k, symbol in enumerate(symbols)}
    return address(places[ENTRY]), address(places[METHOD])


def _rows(row: struct.Struct, data: bytes, start: int, size: int) -> list[tuple[int, ...]]:
    return list(row.iter_unpack(data[start : start + size]))


def _run(base: int, size: int) -> None:
    """Let memory be run, and no longer be written to."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(base, size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "the system does not let memory be run")


def _link_by_llvm(data: bytes) -> tuple[int, int]:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(data))
    engine.finalize_object()
    _in_memory.append(engine)
    return engine.get_function_address(ENTRY), engine.get_function_address(METHOD)
