"""What the index finds: sentences, rows of tables and known answers, each with its address.

A chunk is what will be quoted (`text`) and what it is found by beside its own words: the headings it stands under, the
document's title and file name, and for a known answer the questions it answers.

    sentence   one sentence; with the one before it where it leans on it ("It costs …"); a list item
    row        a row of a table, read out with its header: `Fret levelling – price: CHF 180, time: 3 days`
    pair       the answer of a row of questions.jsonl, found by its trained wordings

Only pairs that training may see become chunks (kind stable, split train, never a `held_out` wording): what the
evaluation asks must not stand in the index as a question. Stable and volatile documents are indexed alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from luthier.core.data.corpus import Document
from luthier.core.data.passages import Passage, leans, passages
from luthier.core.data.questions import Question
from luthier.core.data.sentences import join_lines, sentence_spans
from luthier.core.data.table_pairs import parse_table

__all__ = ["Chunk", "document_chunks", "pair_chunks"]

MAX_WORDS = 60  # a longer stretch without a full stop is cut at its line breaks


@dataclass(frozen=True)
class Chunk:
    """One thing to quote. `start` and `end` are offsets into the document's text; `page` is 0 where there are none."""

    text: str
    context: str
    path: str
    page: int
    start: int
    end: int
    kind: str = "stable"
    language: str = ""
    form: str = "sentence"
    keys: tuple[str, ...] = field(default=())
    """Questions that this chunk is known to answer."""
    heading: str = ""
    """The heading right above."""


def document_chunks(document: Document) -> Iterator[Chunk]:
    """The sentences and table rows of a document in order."""
    lead = ""  # "We are open:" belongs to the list or table that follows
    for passage in passages(document):
        if passage.kind == "heading":
            lead = ""
            continue
        rows = list(_rows(passage)) if passage.kind == "table" else []
        prose = [] if rows else [(a, b, _quoted(document.text[a:b]), "") for a, b in _spans(document, passage)]
        for start, end, text, header in rows or prose:
            if re.search(r"\w", text):
                yield _chunk(document, passage, start, end, text, f"{lead} {header}", "row" if rows else "sentence")
        text = passage.text.rstrip()
        lead = join_lines(text[-200:]) if text.endswith(":") else ""


def _chunk(document: Document, passage: Passage, start: int, end: int, text: str, lead: str, form: str) -> Chunk:
    name = re.sub(r"[_\W]+", " ", PurePosixPath(document.source.path).with_suffix("").as_posix())
    context = " · ".join(part for part in (document.title, *passage.headings, name, lead.strip()) if part)
    return Chunk(
        text,
        context,
        document.source.path,
        document.page_at(start),
        start,
        end,
        document.kind,
        document.language,
        form,
        heading=passage.headings[-1] if passage.headings else "",
    )


def _quoted(text: str) -> str:
    """As it is quoted: one line, without the mark of a list item."""
    return re.sub(r"^(?:[-*•–]|\d+[.)])\s+", "", join_lines(text))


def _spans(document: Document, passage: Passage) -> Iterator[tuple[int, int]]:
    """The sentences of a passage; one that leans on the sentence before begins with that one."""
    before: tuple[int, int] | None = None
    for start, end in sentence_spans(document.text, passage.start, passage.end):
        for a, b in _cut_lines(document.text, start, end):
            sentence = document.text[a:b]
            if before and leans(sentence) and len(document.text[before[0] : b].split()) <= MAX_WORDS:
                yield before[0], b
            else:
                yield a, b
            before = (a, b)


def _cut_lines(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """`text[start:end]` in pieces of at most MAX_WORDS where its line breaks allow it."""
    if len(text[start:end].split()) <= MAX_WORDS:
        yield start, end
        return
    first = last = start
    for match in re.finditer(r"[^\n]+", text[start:end]):
        stop = start + match.end()
        if last > first and len(text[first:stop].split()) > MAX_WORDS:
            yield first, last
            first = start + match.start()
        last = stop
    yield first, last


def _rows(passage: Passage) -> Iterator[tuple[int, int, str, str]]:
    """(start, end, the row read out, the first column's name) of each row of a table with a header."""
    header, rows = parse_table(passage)
    for start, end, cells in rows:
        others = list(zip(header, cells, strict=True))[1:]
        named = ", ".join(f"{column}: {cell}" if column else cell for column, cell in others if cell)
        yield start, end, " – ".join(part for part in (cells[0], named) if part), header[0]


def pair_chunks(questions: Iterable[Question]) -> Iterator[Chunk]:
    """The known answers that may be looked up: see the module's head."""
    for q in questions:
        if q.kind == "stable" and q.split == "train":
            path = q.path or "questions.jsonl"
            keys = (q.question, *q.phrasings)
            yield Chunk(q.answer, "", path, q.page, q.start, q.end, q.kind, q.language, "pair", keys)
