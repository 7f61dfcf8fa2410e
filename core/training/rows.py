"""A text as rows of a table: what Word2Vec and GloVe read, in files, so that a text may be larger than memory.

    texts or shards ─▶ ids of all tokens ─(phrases)─▶ count, drop the rare ─▶ rows, int32, 0 the commonest

The files lie in a folder of their own in the artefact being built, and go when it is done. A killed run finds them
again. Held in memory: the vocabulary, where documents begin, and a block of ids.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from luthier.core.artifacts import read_json, write_json
from luthier.core.console import progress
from luthier.core.data.shards import Joined, open_shards
from luthier.core.data.texts import read_texts
from luthier.core.errors import InputError

if TYPE_CHECKING:
    from luthier.core.training.vectors_config import VectorsConfig
    from luthier.models.vectors import Vectors

__all__ = ["Rows", "prepare_rows", "remove_rows", "words"]

FOLDER, FACTS = "text", "text.json"
BLOCK = 1 << 22  # ids
PART = 4_000_000  # characters read at a time
WORD = re.compile(r"[^\W_]+(?:[-’'][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, several joined by single hyphens or apostrophes, small."""
    return WORD.findall(text.lower())


class Rows(NamedTuple):
    """`rows` int32, memory-mapped, documents between `offsets`; of each row of the table the token, its id and count;
    `spelling` as in Vectors; `read` tokens in all, the rare ones included."""

    rows: np.ndarray
    offsets: np.ndarray
    tokens: list[str]
    ids: np.ndarray
    counts: np.ndarray
    spelling: str
    read: int


class Source(NamedTuple):
    """Ids of a text, where its documents begin and end, the spelling of each id, and which spelling that is."""

    ids: np.ndarray
    offsets: np.ndarray
    tokens: list[str]
    spelling: str


def prepare_rows(
    folder: Path,
    config: VectorsConfig,
    *,
    texts: Sequence[Path] = (),
    shards: Sequence[Path] = (),
    tokenizer: Path | None = None,
    start: Vectors | None = None,
) -> Rows:
    """The rows of texts, or of shards, whose files are in `folder` from now on. The tokens of `start` keep their places
    in the vocabulary, however rare. Raises InputError where fewer than two tokens are left."""
    home = folder / FOLDER
    if not (home / FACTS).is_file():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        source = _from_shards(home, shards, tokenizer) if shards else _from_texts(home, texts, config.column)
        for number in range(config.phrases if not shards else 0):
            source = _with_phrases(home, source, config, number)
        _write_rows(home, source, config, start)
    facts = read_json(home / FACTS)
    counts, ids = (np.array(facts[name], np.int64) for name in ("counts", "ids"))
    return Rows(
        _map(home / "rows"), np.fromfile(home / "offsets", "<i8"), facts["tokens"], ids, counts, facts["spelling"],
        facts["read"],
    )  # fmt: skip


def remove_rows(folder: Path) -> None:
    """Delete the files; the vectors are written."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


# ---------------------------------------------------------------- tokens


def spelled_tokens(folder: Path) -> list[str]:
    """The token of each id of the tokenizer in `folder`, spelled as in its file."""
    from luthier.tokenizers.formats import load_tokenizer, spell

    made_by = load_tokenizer(folder)
    special = {id_: text for text, id_ in made_by.special_tokens.items()}
    return [special.get(id_) or spell(token) for id_, token in enumerate(made_by.tokens)]


def check_tokens(vectors: Vectors, where: Path | str, tokens: Sequence[str]) -> None:
    """Raises InputError with the line of `where`, the vectors' vocabulary.jsonl, if their id is another token there."""
    for row, (id_, name) in enumerate(zip(vectors.ids.tolist(), vectors.tokens, strict=True)):
        found = repr(tokens[id_]) if id_ < len(tokens) else "none"
        if found != repr(name):
            raise InputError(
                f"{where}:{row + 1}: token {id_} is {name!r}, the tokenizer has {found}\n"
                "Give vectors of the same tokenizer."
            )


# ---------------------------------------------------------------- sources


def _from_texts(home: Path, texts: Sequence[Path], column: str) -> Source:
    number_of: dict[str, int] = {}
    offsets: list[int] = [0]

    def blocks() -> Iterator[np.ndarray]:
        with progress("Reading", None, "words") as advance:
            for text in read_texts(texts, part_size=PART, column=column):
                if text.split == "train":
                    found = words(text.text)
                    if not text.part:  # of a document that began before
                        offsets.append(offsets[-1])
                    offsets[-1] += len(found)
                    advance(len(found), note=text.name)
                    yield np.array([number_of.setdefault(word, len(number_of)) for word in found], np.int32)

    ids = _write(home / "ids", blocks())
    return Source(ids, np.array(offsets, np.int64), list(number_of), "words")


def _from_shards(home: Path, shards: Sequence[Path], tokenizer: Path | None) -> Source:
    tokens = spelled_tokens(tokenizer or shards[0])
    parts = [open_shards(path) for path in shards]
    starts = np.cumsum([0, *(len(part.tokens) for part in parts)])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
    ids = _write(home / "ids", (block for part in parts for block in _blocks(part.tokens)))
    return Source(ids, np.concatenate([*offsets, starts[-1:]]), tokens, "byte-level")


def _with_phrases(home: Path, source: Source, config: VectorsConfig, number: int) -> Source:
    """The same text with its phrases joined."""
    from luthier.models.phrases import find_phrases, join_phrases

    counts = _count(source)
    found = find_phrases(
        source.ids, source.offsets, counts, min_count=config.min_count, threshold=config.phrase_threshold
    )
    gone = np.zeros(len(source.offsets), np.int64)  # words that joining took from before each document

    def blocks() -> Iterator[np.ndarray]:
        end = 0
        for ids, places in join_phrases(source.ids, source.offsets, found, len(source.tokens)):
            missing = np.setdiff1d(np.arange(end, places[-1] + 1), places, assume_unique=True)
            gone[:] += np.searchsorted(missing, source.offsets)
            end = int(places[-1]) + 1
            yield ids
        gone[source.offsets >= len(source.ids)] += len(source.ids) - end

    ids = _write(home / f"ids.{number}", blocks())
    tokens = source.tokens + [f"{source.tokens[key >> 32]}_{source.tokens[key & 0xFFFFFFFF]}" for key in found.tolist()]
    return Source(ids, source.offsets - gone, tokens, source.spelling)


# ---------------------------------------------------------------- rows


def _write_rows(home: Path, source: Source, config: VectorsConfig, start: Vectors | None) -> None:
    """Count, choose the vocabulary, and write the text as rows."""
    counts = _count(source)
    wanted, before = counts >= config.min_count, np.zeros(len(counts), np.int64)
    tokens, old = list(source.tokens), np.zeros(0, np.int64)
    if start is not None:
        tokens, old = _old_ids(source, start)
        counts, before = (np.concatenate([c, np.zeros(len(tokens) - len(c), np.int64)]) for c in (counts, before))
        wanted, before[old] = counts >= config.min_count, start.counts
        wanted[old] = True
    order = np.argsort(-(counts + before), kind="stable")
    kept = order[wanted[order]]
    if len(kept) < 2 or not counts[kept].any():
        raise InputError(
            f"{len(kept)} of the {np.count_nonzero(counts):,} different tokens occur {config.min_count} times or more "
            f"in {len(source.ids):,} tokens: too little to learn vectors from\nLower --min-count, or give more text."
        )
    row_of = np.full(len(tokens), -1, np.int32)
    row_of[kept] = np.arange(len(kept), dtype=np.int32)
    ends, passed = np.zeros(len(source.offsets), np.int64), 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal passed
        for begin in range(0, len(source.ids), BLOCK):
            rows = row_of[source.ids[begin : begin + BLOCK]]
            known = np.concatenate([[0], np.cumsum(rows >= 0)])
            here = slice(*np.searchsorted(source.offsets, [begin, begin + len(rows) + 1]))
            ends[here] = passed + known[source.offsets[here] - begin]
            passed += int(known[-1])
            yield rows[rows >= 0]

    _write(home / "rows", blocks())
    ends.astype("<i8").tofile(home / "offsets")
    facts = {"read": len(source.ids), "spelling": source.spelling, "tokens": [tokens[i] for i in kept.tolist()]}
    ids = kept if source.spelling == "byte-level" else np.arange(len(kept))
    write_json(home / FACTS, {**facts, "ids": ids.tolist(), "counts": (counts + before)[kept].tolist()})
    for path in home.glob("ids*"):
        path.unlink()


def _old_ids(source: Source, start: Vectors) -> tuple[list[str], np.ndarray]:
    """All tokens, those of `start` that the text lacks at the end, and the id of each of its rows."""
    if source.spelling != start.spelling:
        raise InputError(f"the vectors to start from are of {start.spelling}, the text is of {source.spelling}")
    if source.spelling == "byte-level":
        check_tokens(start, "the vectors to start from, vocabulary.jsonl", source.tokens)
        return source.tokens, start.ids
    number_of = {token: n for n, token in enumerate(source.tokens)}
    old = [number_of.setdefault(token, len(number_of)) for token in start.tokens]
    return list(number_of), np.array(old, np.int64)


# ---------------------------------------------------------------- files


def _count(source: Source) -> np.ndarray:
    counts = np.zeros(len(source.tokens), np.int64)
    for block in _blocks(source.ids):
        counts += np.bincount(block, minlength=len(counts))
    return counts


def _blocks(ids: np.ndarray | Joined) -> Iterator[np.ndarray]:
    for start in range(0, len(ids), BLOCK):
        yield np.asarray(ids[start : start + BLOCK], np.int32)


def _write(path: Path, blocks: Iterable[np.ndarray]) -> np.ndarray:
    with path.open("wb") as file:
        for block in blocks:
            file.write(block.astype("<i4", copy=False).tobytes())
    return _map(path)


def _map(path: Path) -> np.ndarray:
    """The numbers of a file, read from disk when touched. Mode "c": a plain array to Numba, and the file stays."""
    if path.stat().st_size == 0:
        return np.zeros(0, np.int32)
    return np.asarray(np.memmap(path, np.dtype("<i4"), "c"))
