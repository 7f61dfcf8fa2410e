"""Tracing: from a batch back to the documents and pages that its tokens come from.

A window knows which stretch of which document it shows (batches.py). The shards know that document's line in the corpus
(`.doc`), and the corpus which stretch of the text stood on which page. The text before a token, decoded, gives its
place in the document.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import read_json

if TYPE_CHECKING:
    from luthier.core.training.replay import Run

__all__ = ["Traced", "trace"]


@dataclass
class Traced:
    """A stretch of a batch's row that comes from one document."""

    row: int
    name: str
    """The document's path, or what a pair or conversation is called."""
    tokens: int
    first: int = 0
    """The first token's number in the document."""
    pages: tuple[int, int] | None = None
    """First and last page; None where the document has no pages or the corpus is not at hand."""
    text: str = ""
    """How it begins."""


def trace(run: Any, number: int) -> list[Traced]:
    """Where batch `number` of a run comes from, row by row."""
    batch = run.arguments["batch_at"](number)
    if run.text is None:
        return _named(run, batch)
    size = run.config.batch_size
    corpora: dict[Path, Any] = {}
    found = []
    for row in range(size):
        windows, place = run.text.locate(number * size + row)
        for document, first, last in windows.stretches(place):
            ids = windows.tokens[windows.starts[document] + first : windows.starts[document] + last]
            found.append(
                Traced(
                    row,
                    windows.names[document],
                    last - first,
                    first,
                    _pages(run, windows, document, first, last, corpora),
                    "" if run.tokenizer is None else run.tokenizer.decode(ids),
                )
            )
    return found


def _named(run: Run, batch: Any) -> list[Traced]:
    """Examples of tuning: each carries the name of what it comes from."""
    count = max(1, len(batch.sources))
    names = [", ".join(map(str, s)) if isinstance(s, tuple) else str(s) for s in batch.sources]
    return [Traced(-1, name, batch.trained // count) for name in names]


def _pages(
    run: Run, windows: Any, document: int, first: int, last: int, corpora: dict[Path, Any]
) -> tuple[int, int] | None:
    """The pages of tokens [first, last) of a document of a corpus."""
    line = int(windows.lines[document]) if windows.lines is not None else -1
    if line < 0 or run.tokenizer is None:
        return None
    if windows.folder not in corpora:
        corpora[windows.folder] = _corpus(windows.folder)
    if corpora[windows.folder] is None:
        return None
    text = corpora[windows.folder][line]
    start = windows.starts[document]
    before = len(run.tokenizer.decode(windows.tokens[start : start + first]))
    length = len(run.tokenizer.decode(windows.tokens[start + first : start + last]))
    pages = text.page_at(before), text.page_at(max(before, before + length - 1))
    return pages if all(pages) else None


def _corpus(shards: Path) -> list[Any] | None:
    """The documents of the corpus that shards were made of, where it still lies at its place."""
    from luthier.core.data.corpus import read_corpus

    about = read_json(shards / "run.json") if (shards / "run.json").is_file() else {"given": {"inputs": []}}
    for path in (*map(Path, about["given"]["inputs"]), shards.parent / "corpus"):
        if (path / "documents.jsonl").is_file():
            return list(read_corpus(path))
    return None
