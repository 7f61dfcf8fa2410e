"""Files that people asked people about words: similarities, analogies, categories.

    similarity    two words and a number a line, by tab, comma or blank: MEN, WordSim-353, SimLex-999, SimVerb, RW, …
    analogies     four words a line, `a b c d` for a : b = c : d, under lines `: section` (Google's questions-words);
                  a folder of such files, each a section (GloVe's question-data); or comma-separated with the columns
                  type, word1, word2, word3, target (MSR)
    categories    comma-separated with the columns category, word (AP, Battig)

The kind is seen from the file. Lines that begin with # are comments; columns without a name (row numbers) are passed
over, and lines with nothing but those. A line that does not fit the first is an error that names file and line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from luthier.core.errors import InputError

__all__ = ["Analogies", "Categories", "Score", "Similarities", "WordSet", "read_word_set"]

COUNTED = 0.7  # least coverage of a set that counts


@dataclass(frozen=True)
class Score:
    """One number of one set with its 95% interval; `used` of `all` questions could be asked."""

    set: str
    kind: str
    section: str
    value: float
    low: float
    high: float
    used: int
    all: int

    @property
    def coverage(self) -> float:
        return self.used / self.all if self.all else 0.0

    @property
    def counts(self) -> bool:
        return self.coverage >= COUNTED


class Similarities(NamedTuple):
    """Pairs of words and how alike people found them."""

    name: str
    pairs: list[tuple[str, str, float]]


class Analogies(NamedTuple):
    """Section → questions (a, b, c, d): a is to b as c is to d."""

    name: str
    sections: dict[str, list[tuple[str, str, str, str]]]


class Categories(NamedTuple):
    """Words and the category of each."""

    name: str
    words: list[tuple[str, str]]


WordSet = Similarities | Analogies | Categories


def read_word_set(path: Path) -> WordSet:
    """The set in a file or folder, named after it. Raises InputError with file and line for what fits no format."""
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise InputError(f"{path}: no .txt file in this folder\nGive a folder of analogies, a file a section.")
        return Analogies(path.name, {file.stem: _questions(file, _lines(file)) for file in files})
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    lines = list(_lines(path))
    if not lines:
        raise InputError(f"{path} is empty: expected pairs of words with a number, analogies, or categories")
    if path.suffix == ".csv":
        return _table(path, lines)
    if lines[0][1].startswith(":") or len(lines[0][1].split()) == 4:
        return Analogies(path.stem, _sections(path, lines))
    return Similarities(path.stem, [_pair(path, n, _fields(line)) for n, line in lines])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are neither empty nor comments."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig").strip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: not UTF-8: {raw[:40]!r}") from error
            if line.strip() and not line.startswith("#"):
                yield number, line


def _fields(line: str) -> list[str]:
    return [part.strip() for part in line.split("\t")] if "\t" in line else line.split()


def _pair(path: Path, number: int, fields: list[str]) -> tuple[str, str, float]:
    try:
        first, second, score = fields[:3]
        return first, second, float(score)
    except ValueError:
        raise InputError(f"{path}:{number}: expected two words and a number, found {fields[:4]}") from None


def _questions(path: Path, lines: Iterator[tuple[int, str]]) -> list[tuple[str, str, str, str]]:
    return [question for found in _sections(path, [(0, f": {path.stem}"), *lines]).values() for question in found]


def _sections(path: Path, lines: list[tuple[int, str]]) -> dict[str, list[tuple[str, str, str, str]]]:
    sections: dict[str, list[tuple[str, str, str, str]]] = {}
    section = path.stem
    for number, line in lines:
        if line.startswith(":"):
            section = line[1:].strip()
            continue
        fields = line.split()
        if len(fields) != 4:
            raise InputError(f"{path}:{number}: expected four words a b c d, found {len(fields)}: {line.strip()[:60]}")
        sections.setdefault(section, []).append((fields[0], fields[1], fields[2], fields[3]))
    return sections


def _table(path: Path, lines: list[tuple[int, str]]) -> WordSet:
    """A comma-separated table, its kind by the names of its columns."""
    (_, head), *rest = lines
    names = [name.strip().lower() for name in next(csv.reader([head]))]
    rows = []
    for number, line in rest:
        fields = next(csv.reader([line]))
        if len(fields) != len(names):
            raise InputError(f"{path}:{number}: expected {len(names)} columns, found {len(fields)}")
        row = {name: field.strip() for name, field in zip(names, fields, strict=True) if name}
        if any(row.values()):
            rows.append((number, row))
    if {"category", "word"} <= set(names):
        return Categories(path.stem, [(row["word"], row["category"]) for _, row in rows])
    if {"word1", "word2", "word3", "target"} <= set(names):
        sections: dict[str, list[tuple[str, str, str, str]]] = {}
        for _, row in rows:
            question = (row["word1"], row["word2"], row["word3"], row["target"])
            sections.setdefault(row.get("type", path.stem), []).append(question)
        return Analogies(path.stem, sections)
    if {"word1", "word2", "similarity"} <= set(names):
        fields = [(number, [row["word1"], row["word2"], row["similarity"]]) for number, row in rows]
        return Similarities(path.stem, [_pair(path, number, row) for number, row in fields])
    raise InputError(
        f"{path}:1: the columns {', '.join(filter(None, names))} are none that luthier knows\n"
        "Known: word1, word2, similarity; type, word1, word2, word3, target; category, word."
    )
