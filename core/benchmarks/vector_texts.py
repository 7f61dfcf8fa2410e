"""The text that vectors are compared on: words as rows, for ours, for gensim, and as a file for the programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from luthier.core.errors import InputError
from luthier.core.training.rows import words

__all__ = ["Source", "read_source"]

MOST = 12_000_000  # characters of Python's documentation that are used
MIN_COUNT = 5
LEAST = 200  # different words
SENTENCE = 10_000  # words; gensim leaves out what is longer, without a word


class Source(NamedTuple):
    """The words of a text as rows, 0 the commonest; where its documents begin and end; how often each occurs."""

    name: str
    rows: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray
    words: list[str]

    def sentences(self) -> list[list[str]]:
        """The documents as gensim wants them, long ones cut."""
        cut = []
        for start, end in pairwise(self.offsets):
            document = [self.words[row] for row in self.rows[start:end]]
            cut += [document[at : at + SENTENCE] for at in range(0, len(document), SENTENCE)]
        return cut

    def write(self, path: Path) -> Path:
        """The sentences in a file, one a line, for the programs."""
        path.write_text("\n".join(" ".join(s) for s in self.sentences()) + "\n", encoding="utf-8")
        return path

    def first(self, most: int) -> Source:
        """The first words of the text, with a vocabulary of what occurs in them."""
        if len(self.rows) <= most:
            return self
        counts = np.bincount(self.rows[:most], minlength=len(self.counts))
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        row = np.zeros(len(counts), np.int32)
        row[order] = np.arange(len(order))
        offsets = np.append(self.offsets[self.offsets < most], most)
        return Source(self.name, row[self.rows[:most]], offsets, counts[order], [self.words[n] for n in order])


def read_source(files: Sequence[Path]) -> Source:
    """The words of text files, whole, or of Python's documentation; a document ends at two blank lines.

    Raises InputError where too few words occur often enough."""
    from luthier.core.data.general import python_documentation
    from luthier.core.data.texts import read_texts

    documents: list[list[str]] = []
    room = MOST
    for text in (t.text for t in read_texts(files)) if files else (text for _, text in python_documentation()):
        documents += [words(part) for part in (text if files else text[: max(room, 0)]).split("\n\n\n")]
        room -= len(text)
    found = sorted(Counter(chain.from_iterable(documents)).items(), key=lambda item: (-item[1], item[0]))
    kept = [(word, count) for word, count in found if count >= MIN_COUNT]
    if len(kept) < LEAST:
        raise InputError(f"{len(kept)} words occur {MIN_COUNT} times or more; the benchmark needs {LEAST}")
    known = {word: row for row, (word, _) in enumerate(kept)}
    texts = [[known[w] for w in d if w in known] for d in documents]
    name = " + ".join(file.name for file in files) or "python documentation"
    rows, counts = np.array([*chain.from_iterable(texts)], np.int32), np.array([count for _, count in kept])
    return Source(name, rows, np.cumsum([0, *map(len, texts)]), counts, list(known))
