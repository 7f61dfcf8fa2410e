"""The corpus: what `collect` writes and every later stage reads.

`documents.jsonl` holds one document a line, `rejected.jsonl` what was left out and by which rule. Offsets count Unicode
code points of `text`, so `text[start:end]` in Python is the span. Nothing is dropped in silence: a document is in one
of the two files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.core.artifacts import read_jsonl, read_manifest
from luthier.core.errors import ArtifactError, InputError

__all__ = ["Document", "Source", "Span", "read_corpus", "trained_part"]

Kind = Literal["stable", "volatile"]
Split = Literal["train", "validation"]


@dataclass
class Source:
    """Where a document came from. `path` is relative to the collected folder, with forward slashes."""

    path: str
    sha256: str
    media_type: str


@dataclass
class Span:
    """A stretch of a document's text: `text[start:end]` in code points; `page` from 1, 0 where there are no pages;
    `block` is heading, paragraph, list, table, caption, header, footer, note, comment, code or ocr."""

    start: int
    end: int
    page: int
    block: str


@dataclass
class Document:
    """One document of the corpus, clean text with the address of every block."""

    id: str
    text: str
    source: Source
    spans: list[Span] = field(default_factory=list)
    kind: Kind = "stable"
    split: Split = "train"
    modified: str = ""
    """Last change of the source file, ISO 8601 in UTC."""
    language: str = ""
    """ISO 639-1 code found in the text; empty where the text is too short to tell."""
    title: str = ""
    rules: list[str] = field(default_factory=list)
    """The cleaning rules that changed or passed this document."""

    def page_at(self, offset: int) -> int:
        """The page that holds the code point at `offset`; 0 where the document has no pages."""
        page = 0
        for span in self.spans:
            if span.start <= offset:
                page = span.page
        return page

    def to_row(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_row(row: dict[str, Any]) -> Document:
        row = dict(row)
        row["source"] = Source(**row["source"])
        row["spans"] = [Span(**span) for span in row.get("spans", [])]
        return Document(**row)


def read_corpus(folder: Path) -> Iterator[Document]:
    """Yield the documents of a corpus folder in file order.

    Raises ArtifactError if `folder` is not a finished corpus, InputError if it holds no document.
    """
    folder = Path(folder)
    read_manifest(folder, "collect")
    empty = True
    for number, row in enumerate(read_jsonl(folder / "documents.jsonl"), 1):
        try:
            document = Document.from_row(row)
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{folder}/documents.jsonl:{number}: not a document: {error}") from error
        empty = False
        yield document
    if empty:
        raise InputError(f"{folder} holds no document; see {folder}/rejected.jsonl for what was left out and why")


def trained_part(folder: Path) -> tuple[str, list[dict[str, str]]]:
    """What training reads of a corpus: a hash over its stable documents, and their {path, sha256} in order.

    Volatile documents are looked up and never trained, so today's news must not make last month's model stale: a stage
    that trains takes this hash as its input, not the corpus folder's.
    """
    digest, documents = hashlib.sha256(), []
    for line, document in enumerate(read_corpus(folder)):
        if document.kind == "stable":
            digest.update(f"{line}\0{document.id}\0{document.split}\0{document.text}\0".encode())
            documents.append({"path": document.source.path, "sha256": document.source.sha256})
    return digest.hexdigest(), documents
