"""Compiled code kept on disk: the same results from both linkers, without Numba the second time, made anew in time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from luthier.tokenizers import machine_code

SOURCE = """
from typing import NamedTuple
import numpy as np
from luthier.tokenizers.machine_code import Code

code = Code(__name__)
FACTOR = 3

class Pair(NamedTuple):
    a: np.ndarray
    b: np.ndarray

@code.inner
def scaled(x):
    return FACTOR * x

@code.outer
def weigh(pair, table, start, nested):
    total = start
    for i in range(table.shape[0]):
        for j in range(table.shape[1]):
            total += scaled(table[i, j]) * pair.a[i] + np.int64(pair.b[j]) * nested[0][0]
    pair.a[0] = total
    return total + nested[1]

@code.outer(held=True)
def clear(array):
    array[:] = 0

@code.outer
def fold_all(words):
    h = np.uint64(1)
    for k in range(len(words)):
        h = fold(h ^ words[k], np.uint64(0x9E3779B97F4A7C15))
    return np.int64(h >> np.uint64(1))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "code"))
    return tmp_path


def loaded(folder: Path, source: str = SOURCE) -> ModuleType:
    """The source as a module of its own."""
    file = folder / "loops.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("loops", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loops"] = module
    machine_code._source.cache_clear()
    spec.loader.exec_module(module)
    return module


def given(module: ModuleType) -> tuple:
    pair = module.Pair(np.arange(1, 4), np.arange(4, dtype=np.uint8))
    return pair, np.arange(12, dtype=np.int32).reshape(3, 4), 7, ((np.int64(5),), 11)


@pytest.mark.parametrize("ours", [machine_code.OURS, False], ids=["default", "llvm"])
def test_compiled_is_what_python_says(folder: Path, monkeypatch: pytest.MonkeyPatch, ours: bool):
    monkeypatch.setattr(machine_code, "OURS", ours)
    for _ in range(2):  # compiled, and from disk
        module = loaded(folder)
        plain, fast = given(module), given(module)
        assert module.weigh(*fast) == module.weigh.function(*plain)
        assert fast[0].a.tolist() == plain[0].a.tolist()
        assert module.clear(fast[0].a) == 0 and not fast[0].a.any()
    words = np.arange(3, dtype=np.uint64) << np.uint64(60)
    h = 1
    for word in words.tolist():
        product = (h ^ word) * 0x9E3779B97F4A7C15
        h = product % (1 << 64) ^ product >> 64
    assert loaded(folder).fold_all(words) == h >> 1


def test_what_is_kept_is_used_and_made_anew_when_it_must_be(folder: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[None] = []
    monkeypatch.setattr(machine_code, "on_compile", [lambda: told.append(None)])
    array = np.ones(3)
    loaded(folder).clear(array)
    loaded(folder).clear(array)
    assert len(told) == 1
    (file,) = (folder / "code").rglob("loops.clear.*.o")
    file.write_bytes(file.read_bytes()[:-1] + b"?")  # damaged
    loaded(folder).clear(array)
    loaded(folder).clear(array.astype(np.float32))  # another kind beside it
    assert len(told) == 3 and len([*(folder / "code").rglob("loops.clear.*.o")]) == 2
    changed = loaded(folder, SOURCE.replace("array[:] = 0", "array[:] = 5"))
    changed.clear(array)
    assert array.tolist() == [5] * 3 and len(told) == 4 and changed.clear.is_kept()
    assert len([*(folder / "code").rglob("loops.clear.*.o")]) == 1  # what was of the old source is gone


def test_a_folder_that_cannot_be_written_to_costs_only_time(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", os.devnull)
    array = np.ones(3)
    module = loaded(folder)
    module.clear(array)
    assert not array.any() and not module.clear.is_kept()


def test_only_contiguous_arrays(folder: Path):
    with pytest.raises(ValueError, match="contiguous"):
        loaded(folder).clear(np.ones(6)[::2])


def test_a_relocation_that_is_not_known_is_refused(folder: Path):
    if not machine_code.OURS:
        pytest.skip("LLVM links here")
    loaded(folder).fold_all(np.ones(3, np.uint64))
    (file,) = (folder / "code").rglob("loops.fold_all.*.o")
    data = bytearray(file.read_bytes()[32:])
    kinds = machine_code._RELOCATION
    start = int.from_bytes(data[40:48], "little")
    for row in range(start, len(data), machine_code._SECTION.size):
        section = machine_code._SECTION.unpack_from(data, row)
        if section[machine_code.KIND] == 4 and section[machine_code.SIZE]:
            place, kind, addend = kinds.unpack_from(data, section[machine_code.OFFSET])
            kinds.pack_into(data, section[machine_code.OFFSET], place, kind & ~0xFF | 2, addend)
            break
    else:
        pytest.skip("nothing to fill in")
    with pytest.raises(ValueError, match="relocation"):
        machine_code._link_here(bytes(data))


TWICE = """
import sys
from luthier.tokenizers.bpe_train import train_bpe
tokenizer = train_bpe(["one two, two three"] * 3, 270)
ids = tokenizer.encode_batch(["one two", "two"], 2)[0]
assert tokenizer.decode(ids) == "one twotwo"
print("numba" in sys.modules)
"""


def test_the_second_process_does_without_numba(tmp_path: Path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)} if not machine_code.OURS else dict(os.environ)
    said = [
        subprocess.run(
            [sys.executable, "-c", TWICE], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert said[1] == "False\n"


def test_a_method_gets_an_object_and_the_rest_of_its_arguments(folder: Path):
    source = SOURCE + (
        "\n@code.outer(held=True)\ndef told(thing, known, answer):\n"
        "    for k in range(len(known)):\n        if known[k] == thing:\n            return new_reference(answer[k])\n"
        "    return new_reference(answer[len(known)])\n"
    )
    things = [object(), object(), None]
    known, answer = np.array([*map(id, things[:2])]), np.array([*map(id, [*things[1:], None])])
    method, block = loaded(folder, source).told.method(0, known, answer)
    before = sys.getrefcount(things[1])
    found = [method(things[0]) for _ in range(100)]
    references = sys.getrefcount(things[1]) - before
    assert references == 100 and all(thing is things[1] for thing in found)
    assert method(things[1]) is None and len(block) == 5


def test_where_objects_lie_otherwise_a_method_says_none(folder: Path, monkeypatch: pytest.MonkeyPatch):
    module = loaded(folder)
    monkeypatch.setattr(machine_code, "_ITEMS", 8)
    method, _ = module.clear.method(np.ones(3))
    assert method("anything") is None


def test_what_cannot_be_removed_stays(folder: Path, monkeypatch: pytest.MonkeyPatch):
    array = np.ones(3)
    loaded(folder).clear(array)

    def denied(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    changed = loaded(folder, SOURCE.replace("array[:] = 0", "array[:] = 5"))
    assert not changed.clear.is_kept()  # what is there is of another source
    monkeypatch.setattr(Path, "unlink", denied)
    changed.clear(array)
    assert array.tolist() == [5] * 3


def test_a_user_without_a_home(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("NUMBA_CACHE_DIR", "LUTHIER_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "home", unknown)
    assert machine_code._folder(Path(machine_code.__file__)) == Path(os.devnull)


def test_with_notes_for_debuggers(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("numba.config.DEBUGINFO_DEFAULT", 1)
    array = np.ones(3)
    loaded(folder).clear(array)
    assert not array.any()
