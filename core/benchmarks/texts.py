"""The texts that benchmarks read when they are given none: what every machine has, so that nothing is downloaded.

    english         the documentation inside Python's standard library (core/data/general.py)
    code            the source of that library
    multilingual    made: words of letters of fourteen scripts, put together by chance, some common and most rare
                    (Zipf's law). Real scripts and a real share of repeated words, but no language: for a number to rest
                    on, give a file

A text of one's own is any file that collecting reads, .txt, .jsonl, .gz …; each file is a kind of its own.
"""

from __future__ import annotations

import sysconfig
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import regex

from luthier.core.errors import InputError

__all__ = ["Kind", "documents", "kinds"]

CODE = 3_000_000  # characters of the standard library's source
MADE_WORDS = 200_000  # of the multilingual text
DIFFERENT = 1_500  # of them in each script
# Script: how its letters' names begin in Unicode, and where they lie; the last three are written without spaces.
SCRIPTS = {
    "LATIN SMALL LETTER": (0xDF, 0x180),
    "GREEK SMALL LETTER": (0x3AC, 0x3CF),
    "CYRILLIC SMALL LETTER": (0x430, 0x460),
    "ARMENIAN SMALL LETTER": (0x561, 0x587),
    "HEBREW LETTER": (0x5D0, 0x5EB),
    "ARABIC LETTER": (0x621, 0x64B),
    "DEVANAGARI": (0x905, 0x94D),
    "BENGALI": (0x985, 0x9CD),
    "TAMIL": (0xB85, 0xBCD),
    "GEORGIAN LETTER": (0x10D0, 0x10F1),
    "HANGUL SYLLABLE": (0xAC00, 0xD7A4),
    "THAI CHARACTER": (0xE01, 0xE4E),
    "HIRAGANA LETTER": (0x3041, 0x3094),
    "CJK UNIFIED IDEOGRAPH": (0x4E00, 0x9FA6),
}
WITHOUT_SPACES = 3


class Kind(NamedTuple):
    """A text and what it is called."""

    name: str
    text: str

    @property
    def megabytes(self) -> float:
        return len(self.text.encode("utf-8", "surrogatepass")) / 1e6

    def first(self, most: int | None) -> Kind:
        """The first `most` characters."""
        return self if most is None or len(self.text) <= most else Kind(self.name, self.text[:most])


def kinds(files: Sequence[Path] = ()) -> list[Kind]:
    """A kind for each file; without files the three that every machine has. Raises InputError for one without text."""
    if not files:
        return [Kind("english", _documentation()), Kind("code", _code()), Kind("multilingual (made)", _made())]
    from luthier.core.data.texts import read_texts

    found = [Kind(file.stem, "\n\n".join(text.text for text in read_texts([file]))) for file in files]
    for kind, file in zip(found, files, strict=True):
        if not kind.text.strip():
            raise InputError(f"{file}: no text in it")
    return found


def _documentation() -> str:
    from luthier.core.data.general import python_documentation

    return "\n\n".join(text for _, text in python_documentation())


def _code() -> str:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text, parts = 0, []
    for file in files:
        if text >= CODE:
            break
        parts.append(file.read_text(encoding="utf-8", errors="replace"))
        text += len(parts[-1])
    return "\n".join(parts)[:CODE]


def _made(words: int = MADE_WORDS) -> str:
    random = np.random.default_rng(0)
    lists = [_words(prefix, span, random) for prefix, span in SCRIPTS.items()]
    chance = 1 / np.arange(2, DIFFERENT + 2)
    chance /= chance.sum()
    lines, each = [], 20
    for _ in range(words // each):
        script = int(random.integers(len(lists)))
        picked = random.choice(DIFFERENT, each, p=chance)
        between = "" if script >= len(lists) - WITHOUT_SPACES else " "
        lines.append(between.join(lists[script][i] for i in picked) + ".")
    return "\n".join(lines)


def _words(prefix: str, span: tuple[int, int], random: np.random.Generator) -> list[str]:
    letters = np.array([c for c in map(chr, range(*span)) if unicodedata.name(c, "").startswith(prefix)])
    return ["".join(letters[random.integers(len(letters), size=n)]) for n in random.integers(1, 9, DIFFERENT)]


def documents(text: str, size: int = 4000) -> list[str]:
    """`text` in parts of about `size` characters that together are the whole. It is cut before a space between two
    letters, where every pattern cuts too: the parts have, one after the other, the ids of the whole."""
    return list(_cut(text, size))


def _cut(text: str, size: int) -> Iterator[str]:
    between, start = regex.compile(r"(?<=\p{L})(?= \p{L})"), 0
    while (place := between.search(text, start + size)) is not None:
        yield text[start : place.start()]
        start = place.start()
    if start < len(text):
        yield text[start:]
