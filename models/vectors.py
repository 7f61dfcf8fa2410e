"""The vectors store: one row of numbers for each token, opened without being read, searched exactly.

A folder holds

    vectors.safetensors   `vectors` [V, D] float32, and `contexts` [V, D] where the trainer made a second table,
                          `ngrams` [buckets, D] and `ngram_sizes` [1, 2] where words are made of character n-grams
    vocabulary.jsonl      {"token", "id", "count"} a line, line n for row n, the commonest first

`id` is the token's number in its tokenizer (or the row itself, for words), `count` how often it was trained on. Tokens
of a byte-level tokenizer stand in GPT-2's printable spelling, in which a space is Ġ, so that no token holds a blank.
The table is memory-mapped: opening costs nothing, and processes share the pages they touch.

**Nearest tokens** are those of largest cosine. The search is exact: unit(q) · unit(v) for every row, a block of rows at
a time, so that a table larger than memory is searched in the memory of one block.

**Analogies** "man is to king as woman is to ?" by 3CosAdd (Levy & Goldberg 2014, eq. 1): the token nearest to the sum
of the unit vectors king − man + woman, the three words themselves left out. 3CosMul (eq. 4) multiplies instead of
adding: cos(x, king) · cos(x, woman) / (cos(x, man) + ε), the cosines brought to 0 … 1.

**Sentences** by smooth inverse frequency (Arora, Liang & Ma 2017, algorithm 1): the mean of the words' vectors weighted
a / (a + p(w)), minus its projection on the common direction of all sentences (their first singular vector).

Legend: V rows, D numbers a row, N sentences, B rows a block.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Trained", "Vectors", "VectorsError", "load_vectors"]

TABLE = "vectors.safetensors"
VOCABULARY = "vocabulary.jsonl"
BLOCK = 65_536  # rows a block of the search: 64 MB for 256 numbers a row
SMALLEST = np.float32(1e-12)


class VectorsError(ValueError):
    """A vectors file or folder, a token or a setting that cannot be used."""


class Trained(NamedTuple):
    """What a trainer returns: two tables [V, D] float32, the mean loss of each round, and the pairs it visited."""

    vectors: np.ndarray
    contexts: np.ndarray
    losses: list[float]
    pairs: int


@dataclass(eq=False)
class Vectors:
    """A table of vectors and its tokens. `spelling` says how tokens are written: "words" as they are, "byte-level" in
    GPT-2's printable alphabet."""

    vectors: np.ndarray
    tokens: list[str]
    ids: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray | None = None
    spelling: str = "words"
    ngrams: np.ndarray | None = None
    ngram_sizes: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        sizes = {len(self.vectors), len(self.tokens), len(self.ids), len(self.counts)}
        if len(sizes) != 1 or np.ndim(self.vectors) != 2:
            raise VectorsError(
                f"{len(self.tokens)} tokens, {len(self.ids)} ids and {len(self.counts)} counts do not fit a table of "
                f"shape {np.shape(self.vectors)}"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Token → row."""
        return {token: row for row, token in enumerate(self.tokens)}

    @cached_property
    def row_of_id(self) -> np.ndarray:
        """Row of every token id up to the largest known; −1 where the id has no row."""
        rows = np.full(int(self.ids.max(initial=-1)) + 1, -1, np.int64)
        rows[self.ids] = np.arange(len(self))
        return rows

    @cached_property
    def norms(self) -> np.ndarray:
        """Length of every row, float32 [V]; never zero, so that a row of zeros is near to nothing."""
        norms = np.empty(len(self), np.float32)
        for start in range(0, len(self), BLOCK):
            norms[start : start + BLOCK] = np.linalg.norm(self.vectors[start : start + BLOCK], axis=1)
        return np.maximum(norms, SMALLEST)

    def __contains__(self, token: str) -> bool:
        return token in self.rows

    def __getitem__(self, token: str) -> np.ndarray:
        """The vector of a token; with n-grams, of any word. Raises VectorsError for a token that has none."""
        if token not in self.rows and self.ngrams is not None:
            from luthier.models.ngrams import ngram_rows

            if rows := ngram_rows(token, *self.ngram_sizes, len(self.ngrams)):
                return self.ngrams[rows].mean(axis=0)
        return self.vectors[self.row(token)]

    def row(self, token: str) -> int:
        if token not in self.rows:
            raise VectorsError(f"'{token}' is not among the {len(self):,} tokens of these vectors")
        return self.rows[token]

    def text(self, row: int) -> str:
        """A row's token as text: a byte-level token spelled out, bytes that are no character as �."""
        if self.spelling != "byte-level":
            return self.tokens[row]
        from luthier.tokenizers.formats import unspell

        try:
            return unspell(self.tokens[row]).decode("utf-8", errors="replace")
        except KeyError:  # a special token, which is not spelled in bytes
            return self.tokens[row]

    # ------------------------------------------------------------ nearest

    def nearest(self, query: np.ndarray, topn: int = 10, without: Sequence[int] = ()) -> list[tuple[int, float]]:
        """(row, cosine) of the `topn` rows nearest to a vector, best first; the rows `without` are left out."""
        query = np.asarray(query, np.float32) / np.float32(max(float(np.linalg.norm(query)), SMALLEST))
        return self._search(query[None], lambda cosines: cosines[0], topn, without)

    def _search(
        self,
        units: np.ndarray,
        combine: Callable[[np.ndarray], np.ndarray],
        topn: int,
        without: Sequence[int],
    ) -> list[tuple[int, float]]:
        """The best rows by a score that is `combine`d from their cosines [K, B] with unit vectors [K, D]."""
        found: list[tuple[float, int]] = []
        for start in range(0, len(self), BLOCK):
            block = slice(start, start + BLOCK)
            scores = combine(units @ self.vectors[block].T / self.norms[block])
            for row in without:
                if 0 <= row - start < len(scores):
                    scores[row - start] = -np.inf
            best = np.argpartition(scores, max(len(scores) - topn, 0))[-topn:]
            found += [(-value, start + row) for value, row in zip(scores[best].tolist(), best.tolist(), strict=True)]
        return [(row, -value) for value, row in sorted(found)[:topn] if value < np.inf]

    def most_similar(
        self, positive: str | Sequence[str], negative: str | Sequence[str] = (), topn: int = 10
    ) -> list[tuple[str, float]]:
        """(token, cosine) nearest to the mean of the unit vectors of `positive` minus those of `negative`; with n-grams
        any word can be given."""
        plus, minus = ([t] if isinstance(t, str) else list(t) for t in (positive, negative))
        units, rows = self._units(plus + minus)
        signs = np.array([1.0] * len(plus) + [-1.0] * len(minus), np.float32)
        return [(self.tokens[row], score) for row, score in self.nearest(signs @ units / len(units), topn, rows)]

    def analogy(self, a: str, b: str, c: str, topn: int = 10, multiply: bool = False) -> list[tuple[str, float]]:
        """Tokens nearest to a − b + c, so `analogy("king", "man", "woman")` asks for the queen: 3CosAdd, or with
        `multiply` 3CosMul, in which no single cosine can outweigh the others."""
        if not multiply:
            return self.most_similar([a, c], [b], topn)
        units, rows = self._units([a, b, c])
        found = self._search(units, _multiplied, topn, rows)
        return [(self.tokens[row], score) for row, score in found]

    def odd_one_out(self, tokens: Sequence[str]) -> str:
        """The token that lies farthest from the mean direction of all of them."""
        units, _ = self._units(tokens)
        return tokens[int((units @ units.mean(axis=0)).argmin())]

    def _units(self, tokens: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """The unit vectors of tokens, and the rows of those that have one."""
        if not tokens:
            raise VectorsError("no token given: name at least one")
        found = np.array([self[token] for token in tokens], np.float32)
        norms = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), SMALLEST)
        return found / norms, [self.rows[token] for token in tokens if token in self.rows]

    # ------------------------------------------------------------ sentences

    def sentence_vector(
        self, sentence: Sequence[str] | Sequence[int] | np.ndarray, *, a: float = 1e-3, common: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 [D] of one sentence given as tokens, or as token ids; those without a row are passed over.

        `common` is the direction to remove, from `sentence_vectors` of many sentences. Nothing known: zeros.
        """
        rows = self._known_rows(sentence)
        if not len(rows):
            return np.zeros(self.dim, np.float32)
        weights = (a / (a + self.counts[rows] / max(int(self.counts.sum()), 1))).astype(np.float32)
        vector = weights @ self.vectors[rows] / np.float32(len(rows))
        return vector if common is None else vector - common * (common @ vector)

    def sentence_vectors(
        self, sentences: Sequence[Sequence[str] | Sequence[int] | np.ndarray], *, a: float = 1e-3
    ) -> tuple[np.ndarray, np.ndarray]:
        """(float32 [N, D], the common direction float32 [D] that was taken out of them)."""
        table = np.zeros((len(sentences), self.dim), np.float32)
        for n, sentence in enumerate(sentences):
            table[n] = self.sentence_vector(sentence, a=a)
        common = _first_direction(table)
        return table - np.outer(table @ common, common), common

    def _known_rows(self, sentence: Sequence[str] | Sequence[int] | np.ndarray) -> np.ndarray:
        if not len(sentence):
            return np.zeros(0, np.int64)
        if isinstance(sentence[0], str):
            rows = np.array([self.rows.get(str(token), -1) for token in sentence], np.int64)
        else:
            ids = np.asarray(sentence, np.int64)
            rows = self.row_of_id[ids[(ids >= 0) & (ids < len(self.row_of_id))]]
        return rows[rows >= 0]

    # ------------------------------------------------------------ files

    def save(self, folder: Path) -> None:
        """Write the two files into an existing folder."""
        from safetensors.numpy import save_file

        tables = {"vectors": np.ascontiguousarray(self.vectors, np.float32)}
        if self.contexts is not None:
            tables["contexts"] = np.ascontiguousarray(self.contexts, np.float32)
        if self.ngrams is not None:
            tables["ngrams"] = np.ascontiguousarray(self.ngrams, np.float32)
            tables["ngram_sizes"] = np.array([self.ngram_sizes], np.float32)
        # One entry of metadata only: safetensors writes several in any order, and equal vectors would be unequal files.
        save_file(tables, Path(folder) / TABLE, metadata={"spelling": self.spelling})
        with (Path(folder) / VOCABULARY).open("w", encoding="utf-8", newline="\n") as file:
            for token, id_, count in zip(self.tokens, self.ids.tolist(), self.counts.tolist(), strict=True):
                file.write(json.dumps({"token": token, "id": id_, "count": count}, ensure_ascii=False) + "\n")
        shutil.copymode(Path(folder) / VOCABULARY, Path(folder) / TABLE)  # safetensors' is its owner's alone

    def to_gensim(self) -> Any:
        """The same as gensim KeyedVectors, counts included. Raises VectorsError where gensim is not installed."""
        try:
            from gensim.models import KeyedVectors
        except ImportError as error:
            raise VectorsError("to_gensim needs gensim\nInstall it: pip install 'luthier[gensim]'") from error
        keyed = KeyedVectors(self.dim)
        keyed.add_vectors(self.tokens, np.asarray(self.vectors, np.float32))
        for token, count in zip(self.tokens, self.counts.tolist(), strict=True):
            keyed.set_vecattr(token, "count", count)
        return keyed

    @staticmethod
    def from_gensim(keyed: Any) -> Vectors:
        """Vectors from gensim KeyedVectors; counts are 0 where it has none, ids are the rows."""
        tokens = list(keyed.index_to_key)
        counted = "count" in keyed.expandos
        counts = [keyed.get_vecattr(t, "count") if counted else 0 for t in tokens]
        table = np.array(keyed.vectors, np.float32)
        return Vectors(table, tokens, np.arange(len(tokens)), np.array(counts, np.int64))


def _multiplied(cosines: np.ndarray) -> np.ndarray:
    """3CosMul of the cosines [3, B] with a, b, c, each brought to 0 … 1."""
    a, b, c = (1 + cosines) / 2
    return a * c / (b + np.float32(1e-6))


def _first_direction(table: np.ndarray) -> np.ndarray:
    """The first right singular vector of `table` [N, D], float32 [D]; zeros for a table of zeros."""
    values, directions = np.linalg.eigh(table.T.astype(np.float64) @ table.astype(np.float64))
    return (directions[:, -1] * (values[-1] > 0)).astype(np.float32)


# ---------------------------------------------------------------- opening


def load_vectors(folder: Path) -> Vectors:
    """Open a vectors folder; the tables stay on disk until they are touched.

    Raises VectorsError naming file and line for a folder that is none, a table cut short, a broken vocabulary.
    """
    folder = Path(folder)
    for name in (TABLE, VOCABULARY):
        if not (folder / name).is_file():
            raise VectorsError(
                f"{folder} is no vectors folder: it has no {name}\nMake one with `luthier train-vectors`."
            )
    tables, metadata = _map_tables(folder / TABLE)
    if "vectors" not in tables:
        raise VectorsError(f"{folder / TABLE} has no table `vectors`; it has {', '.join(tables) or 'none'}")
    tokens, ids, counts = _read_vocabulary(folder / VOCABULARY)
    if len(tokens) != len(tables["vectors"]):
        raise VectorsError(
            f"{folder / VOCABULARY} has {len(tokens)} lines, {TABLE} has {len(tables['vectors'])} rows; they must agree"
        )
    least, most = tables["ngram_sizes"][0].astype(int).tolist() if "ngram_sizes" in tables else (0, 0)
    extra = (tables.get("contexts"), metadata.get("spelling", "words"), tables.get("ngrams"), (least, most))
    return Vectors(tables["vectors"], tokens, ids, counts, *extra)


def _map_tables(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Map a safetensors file: 8 bytes length of the header, the header in JSON, then the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise VectorsError(f"{path} is no safetensors file, or was cut short at {size} bytes")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            entries = {name: (e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VectorsError(f"{path}: its header cannot be read: {error}") from error
    tables = {}
    for name, (dtype, shape, start, end) in entries.items():
        if dtype != "F32" or len(shape) != 2 or end - start != 4 * shape[0] * shape[1]:
            raise VectorsError(f"{path}: `{name}` is {dtype} of shape {list(shape)}; expected F32 [rows, dim]")
        if 8 + length + end > size:
            raise VectorsError(f"{path} was cut short: `{name}` ends at byte {8 + length + end}, the file at {size}")
        empty = np.zeros(shape, np.float32)
        mapped = np.memmap(path, np.dtype("<f4"), "r", offset=8 + length + start, shape=shape) if empty.size else empty
        tables[name] = np.asarray(mapped)
    return tables, metadata


def _read_vocabulary(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    tokens, ids, counts = [], [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                tokens.append(str(row["token"]))
                ids.append(int(row["id"]))
                counts.append(int(row["count"]))
            except (ValueError, KeyError, TypeError) as error:
                raise VectorsError(f"{path}:{number}: expected {{token, id, count}}: {error}") from error
    return tokens, np.array(ids, np.int64), np.array(counts, np.int64)
