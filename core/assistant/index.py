"""The index: every sentence of a corpus in one SQLite file, found by words and by meaning.

    chunks        what is quoted, with its address (core/assistant/chunks.py)
    fulltext      FTS5 over the stems of text, context and known questions; BM25 (Robertson & Zaragoza 2009) proposes
    vocabulary    in how many chunks each stem stands, for the idf
    arrays        sentence vectors as float32 rows in blocks (core/assistant/meaning.py)

A search takes the 100 best by BM25 and the 20 nearest by cosine, exactly, block by block, and scores each candidate:

    score = ((1 − s) · coverage + s · max(0, cosine)) · number          s = `similarity`, 0 without vectors

`coverage` is the share of the question's information that the sentence holds (core/assistant/match.py), so the score
is in [0, 1] and the same threshold means the same in every corpus. The order adds up to FOCUS for a chunk whose known
question, heading or sentence, or what a table's row is about, speaks of nothing else: of two that cover a question
alike, that one is meant.

The file is read-only once built; SQLite reads only the pages that a query needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import Artifact, hash_file, read_manifest
from luthier.core.assistant.chunks import Chunk, document_chunks, pair_chunks
from luthier.core.assistant.match import (
    NO_NUMBER,
    asked_words,
    coverage,
    focus,
    has_number,
    idf,
    same_meaning,
    stems,
    wants_number,
)
from luthier.core.console import progress, say
from luthier.core.data.corpus import read_corpus
from luthier.core.data.questions import read_questions
from luthier.core.errors import ArtifactError, ConfigError, InputError

if TYPE_CHECKING:
    import numpy as np

    from luthier.core.assistant.meaning import Meaning

__all__ = ["Hit", "Index", "IndexConfig", "IndexSummary", "build_index", "open_index"]

FILE = "index.sqlite"
FORMAT = 1  # of the tables and of what goes into them
CANDIDATES, NEIGHBOURS = 100, 20
BLOCK = 4096  # sentence vectors a block
KEPT_ROWS = 20_000  # chunks kept in memory once read
FOCUS = 0.1  # what a chunk that speaks of nothing else gains in order (not in score)
PREFIX = 5  # letters from which a stem also finds longer words

SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE chunks (id INTEGER PRIMARY KEY, text TEXT, context TEXT, path TEXT, page INTEGER,
                     start INTEGER, "end" INTEGER, kind TEXT, language TEXT, form TEXT, keys TEXT, heading TEXT,
                     text_stems TEXT, context_stems TEXT, key_stems TEXT, heading_stems TEXT);
CREATE VIRTUAL TABLE fulltext USING fts5(text, context, keys, content='', tokenize="unicode61 remove_diacritics 2");
CREATE VIRTUAL TABLE vocabulary USING fts5vocab(fulltext, row);
CREATE TABLE arrays (name TEXT, first INTEGER, rows INTEGER, columns INTEGER, data BLOB, PRIMARY KEY (name, first));
"""


@dataclass(frozen=True)
class IndexConfig:
    """Settings of `luthier index`."""

    pairs: bool = True
    """Also find the answers of the corpus' questions.jsonl by their trained wordings (never by held-out ones)."""
    similarity: float = 0.1
    """Share of the score that sentence vectors give, 0 to 1; the rest is the coverage of the question's words."""

    def __post_init__(self) -> None:
        if not 0 <= self.similarity <= 1:
            raise ConfigError(f"similarity = {self.similarity}: expected a share from 0 to 1")


@dataclass
class IndexSummary:
    """What is in an index: documents, the known answers that are a person's and of no document (`own`), chunks by form
    and kind, and the size of the file in bytes."""

    documents: int = 0
    forms: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    vectors: int = 0
    size: int = 0
    own: int = 0

    def __str__(self) -> str:
        rows = [("documents", self.documents), *self.forms.items()]
        rows += [("  of them your own pairs", self.own)] if self.own else []  # below the known answers, which are last
        rows += self.kinds.items()
        rows += [("dimensions of the vectors", self.vectors), ("bytes", self.size)]
        return "\n".join(f"{name:<28}{count:>12,}" for name, count in rows)


@dataclass(frozen=True)
class Hit:
    """One chunk found: its score in [0, 1], the cosine of its vector to the question's, and its focus."""

    chunk: Chunk
    score: float
    cosine: float
    focus: float


# ---------------------------------------------------------------- building


def build_index(
    corpus: Path,
    out: Path,
    config: IndexConfig | None = None,
    *,
    vectors: Path | None = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> IndexSummary:
    """Index every document of a corpus, stable and volatile, and its pairs.

    `vectors` is a vectors folder for similarity by meaning; `tokenizer` the folder of the tokenizer whose ids they
    belong to (None: vectors of words). Raises ArtifactError if `corpus` or `vectors` is none or `out` holds other work.
    """
    config, corpus, out = config or IndexConfig(), Path(corpus), Path(out)
    read_manifest(corpus, "collect")
    pairs = corpus / "questions.jsonl"
    pairs_hash = hash_file(pairs) if config.pairs and pairs.is_file() else None
    ids = hash_file(_tokenizer_file(tokenizer)) if vectors is not None and tokenizer is not None else None
    inputs: dict[str, Path | str | None] = {
        "corpus": corpus,
        "questions": pairs_hash,
        "vectors": vectors,
        "tokenizer": ids,
        "rules": _rules_state(),
    }
    work = Artifact(out, "index", {**asdict(config), "format": FORMAT}, inputs, overwrite=overwrite)
    if work.done:
        say(f"{out} is up to date")
    else:
        with work:
            chunks = list(_chunks(corpus, config.pairs and pairs.is_file()))
            _write(work.folder, chunks, config, vectors, tokenizer)
    return summary(out)


def _rules_state() -> str:
    """Hash of the sources that decide what is in an index: other rules make another one."""
    rules = (Path(__file__).with_name(name).read_bytes() for name in ("chunks.py", "index.py", "match.py"))
    return hashlib.sha256(b"".join(rules)).hexdigest()[:16]


def _tokenizer_file(folder: Path) -> Path:
    file = folder / "tokenizer.json" if Path(folder).is_dir() else Path(folder)
    if not file.is_file():
        raise InputError(f"{file} does not exist\nGive the folder of the tokenizer that the vectors belong to.")
    return file


def _chunks(corpus: Path, with_pairs: bool) -> Iterator[Chunk]:
    stands: dict[tuple[str, str], Chunk] = {}
    for document in read_corpus(corpus):
        for chunk in document_chunks(document):
            stands.setdefault((chunk.path, chunk.text), chunk)
            yield chunk
    for pair in pair_chunks(read_questions(corpus)) if with_pairs else ():
        there = stands.get((pair.path, pair.text))
        # A person's pair names its document at most; where its answer is a sentence of it, that is its address.
        found = there if there is not None and pair.end == 0 else pair
        yield replace(pair, page=found.page, start=found.start, end=found.end)


def _write(
    folder: Path, chunks: Sequence[Chunk], config: IndexConfig, vectors: Path | None, tokenizer: Path | None
) -> None:
    file = folder / FILE
    file.unlink(missing_ok=True)  # of an interrupted try
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode = OFF")  # the folder appears only when whole
        _make_tables(database)
        with progress("Indexing", len(chunks), "sentences") as advance:
            for number, chunk in enumerate(chunks, 1):
                _insert(database, number, chunk)
                advance()
        about = {"similarity": config.similarity if vectors is not None else 0.0, "chunks": len(chunks)}
        documents = {c.path for c in chunks if c.form != "pair"}
        about["documents"], about["own_pairs"] = len(documents), sum(c.path not in documents for c in chunks)
        if vectors is not None:
            about["dimensions"] = _write_vectors(database, folder, chunks, Path(vectors), tokenizer)
        database.executemany("INSERT INTO about VALUES (?, ?)", [(k, json.dumps(v)) for k, v in about.items()])
        database.execute("INSERT INTO fulltext(fulltext) VALUES ('optimize')")
        database.commit()
        database.execute("VACUUM")


def _make_tables(database: sqlite3.Connection) -> None:
    try:
        database.executescript(SCHEMA)
    except sqlite3.OperationalError as error:
        raise InputError(
            f"the SQLite {sqlite3.sqlite_version} of this Python cannot search full text: {error}\n"
            "Use a Python whose sqlite3 has FTS5, as those of python.org and of the distributions have."
        ) from error


def _insert(database: sqlite3.Connection, number: int, c: Chunk) -> None:
    values = (c.text, c.context, c.path, c.page, c.start, c.end, c.kind, c.language, c.form)
    text, context, *keys = (" ".join(stems(part)) for part in (c.text, c.context, *c.keys))
    row = (number, *values, json.dumps(c.keys), c.heading, text, context, "\n".join(keys), " ".join(stems(c.heading)))
    database.execute(f"INSERT INTO chunks VALUES ({','.join('?' * len(row))})", row)
    columns = (number, text, context, " ".join(keys))
    database.execute("INSERT INTO fulltext(rowid, text, context, keys) VALUES (?,?,?,?)", columns)


def _write_vectors(
    database: sqlite3.Connection, folder: Path, chunks: Sequence[Chunk], vectors: Path, tokenizer: Path | None
) -> int:
    """Keep the words' vectors, store the common direction and a row a chunk; returns their dimensions."""
    from luthier.core.assistant.meaning import Meaning, keep

    keep(folder, vectors, tokenizer)
    meaning = Meaning(folder)
    rows_ND = meaning.fit([f"{c.text} {' '.join(c.keys[:1])}" for c in chunks])
    assert meaning.common_D is not None
    _store(database, "common", meaning.common_D[None])
    _store(database, "sentences", rows_ND)
    return rows_ND.shape[1]


def _store(database: sqlite3.Connection, name: str, array_ND: Any) -> None:
    for first in range(0, len(array_ND), BLOCK):
        block = array_ND[first : first + BLOCK].astype("<f4")
        database.execute("INSERT INTO arrays VALUES (?,?,?,?,?)", (name, first, *block.shape, block.tobytes()))


# ---------------------------------------------------------------- searching


def open_index(address: Path | str) -> Index:
    """Open the index in a folder made by `build_index`. Raises ArtifactError if there is none, or a damaged one."""
    folder = Path(address)
    made = read_manifest(folder, "index")["settings"].get("format")
    if made != FORMAT:
        raise ArtifactError(f"{folder} has format {made}, this luthier reads {FORMAT}\nMake the index again.")
    if not (folder / FILE).is_file():
        raise ArtifactError(f"{folder / FILE} is missing\nMake the index again: luthier index CORPUS --out {folder}")
    try:
        return Index(folder)
    except sqlite3.DatabaseError as error:
        raise ArtifactError(
            f"{folder / FILE} is damaged or cut short: {error}\n"
            f"Delete {folder} and make it again: luthier index CORPUS --out {folder}"
        ) from error


class Index:
    """An open index. May be used from several threads; `close` it or use it in a `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        uri = f"{(folder / FILE).resolve().as_uri()}?mode=ro&immutable=1"
        self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)
        self.about = {k: json.loads(v) for k, v in self._database.execute("SELECT key, value FROM about")}
        self._meaning: Meaning | None = None
        self._row = lru_cache(maxsize=KEPT_ROWS)(self._read)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def __len__(self) -> int:
        return self.about["chunks"]

    def chunks(self) -> Iterator[Chunk]:
        """All chunks in order."""
        for row in self._database.execute("SELECT * FROM chunks ORDER BY id"):
            yield _chunk(row)

    def search(self, question: str, most: int = 5) -> list[Hit]:
        """The best chunks for a question, best first; empty for a question without content words."""
        words = asked_words(question)
        if not words:
            return []
        with self._lock:
            cosines_N = self._cosines(question)
            nearest = [] if cosines_N is None else (-cosines_N).argsort(kind="stable")[:NEIGHBOURS] + 1
            numbers = dict.fromkeys([*self._by_words(words), *map(int, nearest)])
            weights = {word: idf(self._count(word), len(self)) for word in words}
            wanted = wants_number(question)
            hits = [self._judge(n, weights, wanted, _at(cosines_N, n)) for n in numbers]
        hits.sort(key=lambda hit: (-_rank(hit), hit.chunk.path, hit.chunk.start))
        return hits[:most]

    def _by_words(self, words: Sequence[str]) -> list[int]:
        """The numbers of the best chunks by BM25 over the words, what means the same, and longer words."""
        wanted = dict.fromkeys(w for word in words for w in (word, *sorted(same_meaning(word))))
        query = " OR ".join(f'"{w}"*' if len(w) >= PREFIX else f'"{w}"' for w in wanted)
        found = self._database.execute(
            "SELECT rowid FROM fulltext WHERE fulltext MATCH ? ORDER BY bm25(fulltext, 1.0, 0.5, 1.0) LIMIT ?",
            (query, CANDIDATES),
        )
        return [number for (number,) in found]

    def _count(self, word: str) -> int:
        row = self._database.execute("SELECT doc FROM vocabulary WHERE term = ?", (word,)).fetchone()
        return row[0] if row else 0

    def _judge(self, number: int, words: dict[str, float], number_wanted: bool, cosine: float) -> Hit:
        chunk, (text, context, keys, heading), subject, number_there = self._row(number)
        covers = max(coverage(words, f"{text} {key}", context) for key in keys.split("\n"))
        share = self.about["similarity"]
        factor = NO_NUMBER if number_wanted and not number_there else 1.0
        score = ((1 - share) * covers + share * max(0.0, cosine)) * factor
        about = (subject,) if subject else (heading, text)
        return Hit(chunk, score, cosine, focus(words, (*keys.split("\n"), *about)))

    def _read(self, number: int) -> tuple[Chunk, tuple[str, str, str, str], str, bool]:
        """A chunk, the stems of its text, context, questions and heading, of what a table's row is about, and whether
        it says a number."""
        row = self._database.execute("SELECT * FROM chunks WHERE id = ?", (number,)).fetchone()
        chunk = _chunk(row)
        subject = " ".join(stems(chunk.text.split(" – ")[0])) if chunk.form == "row" else ""
        return chunk, row[12:], subject, has_number(chunk.text)

    def _cosines(self, question: str) -> np.ndarray | None:
        """The cosine of every chunk's vector to the question's, exactly, block by block; None without vectors."""
        import numpy as np

        if "dimensions" not in self.about:
            return None
        if self._meaning is None:
            from luthier.core.assistant.meaning import Meaning

            self._meaning = Meaning(self.folder, next(self._blocks("common"))[0])
        asked_D = self._meaning.encode(question)
        return np.concatenate([block_BD @ asked_D for block_BD in self._blocks("sentences")])

    def _blocks(self, name: str) -> Iterator[Any]:
        """The rows of a stored array, a block at a time."""
        import numpy as np

        blocks = self._database.execute("SELECT columns, data FROM arrays WHERE name = ? ORDER BY first", (name,))
        for columns, data in blocks:
            yield np.frombuffer(data, "<f4").reshape(-1, columns)


def _at(cosines_N: np.ndarray | None, number: int) -> float:
    return 0.0 if cosines_N is None else float(cosines_N[number - 1])


def _rank(hit: Hit) -> float:
    """Order among hits: by score and focus, and of two alike the known answer first."""
    return round(hit.score + FOCUS * hit.focus, 6) + 0.01 * (hit.chunk.form == "pair")


def _chunk(row: Sequence[Any]) -> Chunk:
    return Chunk(*row[1:10], keys=tuple(json.loads(row[10])), heading=row[11])


def summary(folder: Path) -> IndexSummary:
    """Counts of an index that is there."""
    with open_index(folder) as index:
        forms, kinds = Counter(), Counter()
        for chunk in index.chunks():
            forms[{"sentence": "sentences", "row": "table rows", "pair": "known answers"}[chunk.form]] += 1
            kinds[chunk.kind] += 1
        size = (folder / FILE).stat().st_size
        about = index.about
        return IndexSummary(
            about["documents"], dict(forms), dict(kinds), about.get("dimensions", 0), size, about.get("own_pairs", 0)
        )
