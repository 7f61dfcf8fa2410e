"""An index in the terminal: what it holds, a piece of each form, and with a question what it finds and why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.assistant.index import Hit, open_index
from luthier.core.console import counted

if TYPE_CHECKING:
    from luthier.core.assistant.chunks import Chunk

__all__ = ["show_index"]

FORMS = {"sentence": "sentence", "row": "row of a table", "pair": "known answer"}


def show_index(folder: Path, text: str | None = None) -> None:
    """Print the human view of an index to stdout; `text` is a question to search for. Raises ArtifactError if it is
    none."""
    with open_index(folder) as index:
        about = index.about
        own = f" and {counted(about['own_pairs'], 'pair')} of your own" if about.get("own_pairs") else ""
        sources = f"{counted(about['documents'], 'document')}{own}"
        print(f"{folder}: an index of {counted(about['chunks'], 'chunk')} of {sources}")
        chunks = list(index.chunks())
        for title, values in (("form", (FORMS[c.form] for c in chunks)), ("kind", (c.kind for c in chunks))):
            print(f"{title}: " + ", ".join(f"{name} {n:,}" for name, n in Counter(values).most_common()))
        vectors = f"{about['dimensions']} numbers each" if "dimensions" in about else "none: words are compared by stem"
        print(f"sentence vectors: {vectors}")
        if text is None:
            _examples(chunks)
            print(f"\nSearch it: luthier show {folder} --text 'a question'")
        else:
            _found(text, index.search(text))


def _examples(chunks: list[Chunk]) -> None:
    """The first chunk of each form."""
    first = {c.form: c for c in reversed(chunks)}
    for form, chunk in sorted(first.items()):
        print(f"\na {FORMS[form]}, {_place(chunk)}\n  {chunk.text}")
        print(f"  found by: {' / '.join(chunk.keys) or chunk.context}")


def _found(question: str, hits: list[Hit]) -> None:
    print(f"\n{question}")
    for hit in hits:
        print(f"  {hit.score:.2f}  {_place(hit.chunk)}\n        {hit.chunk.text}")
    if not hits:
        print("  nothing: the question has no word to look for")


def _place(chunk: Chunk) -> str:
    page = f", page {chunk.page}" if chunk.page else ""
    return f"{chunk.path}{page}, characters {chunk.start:,} to {chunk.end:,}"
