"""Vectors in other programs' files: word2vec's text and binary formats, GloVe's text.

    word2vec text     "V D" on the first line, then a line a word: the word, D numbers, separated by single blanks
    word2vec binary   "V D\\n", then V times: the word, a blank, D float32 little-endian, and (by some writers) "\\n"
    GloVe text        as word2vec's text without the first line

The formats have no way to write a blank inside a word, so a token with one cannot be exported: the writers name it and
stop before a file is there. Readers believe nothing: a header that counts wrong, a line with too few numbers, a file
cut short are errors that name file and line. Counts and ids are not in these files: counts are 0, ids the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from luthier.models.vectors import Vectors, VectorsError

__all__ = ["read_any", "read_glove", "read_word2vec", "write_glove", "write_word2vec"]


# ---------------------------------------------------------------- writing


def write_word2vec(vectors: Vectors, path: Path, *, binary: bool = False) -> None:
    """Write word2vec's text or binary format. Raises VectorsError naming a token that it cannot hold."""
    header = f"{len(vectors)} {vectors.dim}\n".encode()

    def write(file: BinaryIO) -> None:
        file.write(header)
        for token, vector in zip(_holdable(vectors, path), vectors.vectors, strict=True):
            file.write(token + b" " + (vector.astype("<f4").tobytes() if binary else _line(vector)))

    _write(path, write)


def write_glove(vectors: Vectors, path: Path) -> None:
    """Write GloVe's text format. Raises VectorsError naming a token that it cannot hold."""

    def write(file: BinaryIO) -> None:
        for token, vector in zip(_holdable(vectors, path), vectors.vectors, strict=True):
            file.write(token + b" " + _line(vector))

    _write(path, write)


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a temporary file and rename it, so that the name stands for a whole file only."""
    temporary = Path(path).with_name(f".{Path(path).name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _holdable(vectors: Vectors, path: Path) -> list[bytes]:
    """The tokens in UTF-8, checked: none empty, with white space, or without a place in UTF-8."""
    checked = []
    for token in vectors.tokens:
        if not token or any(c.isspace() for c in token):
            raise VectorsError(f"{path}: the format cannot hold the token {token!r} (white space separates its fields)")
        try:
            checked.append(token.encode())
        except UnicodeEncodeError as error:
            raise VectorsError(f"{path}: the token {token!r} cannot be written in UTF-8") from error
    return checked


def _line(vector: np.ndarray) -> bytes:
    # str of a float32 is the shortest text that reads back as the same number
    return " ".join(map(str, vector)).encode() + b"\n"


# ---------------------------------------------------------------- reading


def read_word2vec(path: Path, *, binary: bool = False) -> Vectors:
    """Read word2vec's text or binary format. Raises VectorsError naming file and line (or word) of what is wrong."""
    path = Path(path)
    with path.open("rb") as file:
        header = file.readline(100).split()
        if len(header) != 2 or not all(part.isdigit() for part in header) or int(header[1]) < 1:
            raise VectorsError(f"{path}:1: expected the number of words and the vector size, found {header[:3]}")
        count, dim = map(int, header)
        entries = _binary_entries(file, path, count, dim) if binary else _text_entries(file, path, dim, first=2)
        vectors = _collect(path, entries, dim)
    if len(vectors) != count:
        raise VectorsError(f"{path}:1: the header counts {count:,} words, the file holds {len(vectors):,}")
    return vectors


def read_any(path: Path) -> Vectors:
    """Read a file of any of the three formats: .bin is word2vec's binary, two whole numbers on the first line of a text
    are word2vec's header."""
    path = Path(path)
    if path.suffix == ".bin":
        return read_word2vec(path, binary=True)
    with path.open("rb") as file:
        header = file.readline(100).split()
    return read_word2vec(path) if len(header) == 2 and all(part.isdigit() for part in header) else read_glove(path)


def read_glove(path: Path) -> Vectors:
    """Read GloVe's text format; the first line says how many numbers a vector has."""
    path = Path(path)
    with path.open("rb") as file:
        dim = file.readline().rstrip().count(b" ")
        if dim < 1:
            raise VectorsError(f"{path}:1: expected a word and its numbers")
        file.seek(0)
        return _collect(path, _text_entries(file, path, dim, first=1), dim)


def _collect(path: Path, entries: Iterator[tuple[str, bytes, np.ndarray]], dim: int) -> Vectors:
    """Vectors of (where, word, numbers); each word must be UTF-8 and stand once."""
    rows: dict[str, np.ndarray] = {}
    for where, word, numbers in entries:
        try:
            token = word.decode()
        except UnicodeDecodeError as error:
            raise VectorsError(f"{where}: the word {word!r} is not UTF-8") from error
        if token in rows:
            raise VectorsError(f"{where}: the word '{token}' stands a second time")
        rows[token] = numbers
    if not rows:
        raise VectorsError(f"{path} holds no vector")
    table = np.stack(list(rows.values())).astype(np.float32, copy=False).reshape(-1, dim)
    return Vectors(table, list(rows), np.arange(len(rows)), np.zeros(len(rows), np.int64))


def _text_entries(file: BinaryIO, path: Path, dim: int, first: int) -> Iterator[tuple[str, bytes, np.ndarray]]:
    for number, line in enumerate(file, first):
        if not line.endswith(b"\n"):  # its last number could be half a number, and nobody would see it
            raise VectorsError(f"{path}:{number}: cut short, no line end\nIf the file is whole, end it with one.")
        word, *fields = line.rstrip(b" \r\n").split(b" ")
        if len(fields) != dim:
            raise VectorsError(f"{path}:{number}: expected a word and {dim} numbers, found {len(fields)} numbers")
        try:
            yield f"{path}:{number}", word, np.array(fields, np.float32)
        except ValueError as error:
            raise VectorsError(f"{path}:{number}: not a number: {error}") from error


def _binary_entries(file: BinaryIO, path: Path, count: int, dim: int) -> Iterator[tuple[str, bytes, np.ndarray]]:
    for number in range(1, count + 1):
        word = bytearray()
        while (byte := file.read(1)) not in (b" ", b""):
            word += byte
        data = file.read(4 * dim)
        if len(data) < 4 * dim:
            raise VectorsError(f"{path} was cut short in word {number:,} of {count:,}")
        # Some writers end each entry with a line feed, which then stands before the next word.
        yield f"{path}: word {number:,}", bytes(word.lstrip(b"\n")), np.frombuffer(data, "<f4")
    if file.read(2).strip():
        raise VectorsError(f"{path}:1: the header counts {count:,} words, the file holds more")
